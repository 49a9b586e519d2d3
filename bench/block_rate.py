"""Measure denoising and decoding of the pocket model relative to one block, for the estimates of `kinema doctor`:

    OMP_NUM_THREADS=1 python bench/block_rate.py --out bench/results/pocket-block-rate.json

The block is that of `kinema.benchmark.expected_time.block_rate`. All times are CPU seconds of one thread, so other
programs matter little.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import kinema
from kinema.benchmark.expected_time import block_rate
from kinema.benchmark.measure import machine, versions
from kinema.models.catalog import CATALOG, request_for
from kinema.models.loading import VideoPipeline

IMAGE = Path(__file__).parents[1] / "examples" / "rocket.jpg"


def rounded(value: Any) -> Any:
    """Round all floats to five significant digits."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def stage_seconds(pipeline: VideoPipeline) -> dict[str, float]:
    """Return the CPU seconds of each stage of one video."""
    seconds, last = {}, time.process_time()
    for step in kinema.stream(IMAGE, model=pipeline, seed=42):
        now = time.process_time()
        if isinstance(step, kinema.Step):
            seconds[step.stage] = seconds.get(step.stage, 0.0) + now - last
        last = now
    return seconds


def measure(dtype: str, rounds: int) -> dict[str, Any]:
    """Return the rate of the block before each video, the seconds of the video, and the median shares."""
    pipeline = kinema.load("pocket", device="cpu", dtype=dtype)
    tflop, steps = CATALOG["pocket"].tflop, request_for(model="pocket").num_inference_steps
    runs = []
    for _ in range(rounds + 1):
        rate = block_rate(getattr(torch, dtype), clock=time.process_time) / 1e12
        seconds = stage_seconds(pipeline)
        shares = {
            "denoise": tflop["step"] * steps / seconds["denoise"] / rate,
            "decode": tflop["decode"] / seconds["decode"] / rate,
        }
        runs.append({"block_tflop_per_second": rate, "seconds": seconds, "share_of_block_rate": shares})
    runs = runs[1:]  # the first one allocates memory
    stages = ("denoise", "decode")
    medians = {stage: statistics.median(run["share_of_block_rate"][stage] for run in runs) for stage in stages}
    return {"share_of_block_rate": medians, "runs": runs}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    record = {
        "what": "the pocket model's stages relative to one block; CPU seconds",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "tflop": CATALOG["pocket"].tflop,
    } | {dtype: measure(dtype, args.rounds) for dtype in ("bfloat16", "float32")}
    args.out.write_text(json.dumps(rounded(record), indent=1) + "\n")

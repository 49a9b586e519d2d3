"""The pocket model on this machine, beside diffusers' own pipeline on the same weights, settings and dtype:

    python bench/pocket.py --out bench/results/pocket-cpu.json

From the shell (start, imports and loading counted in), and from loaded model to frames, by stage; medians of `--runs`.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import kinema
from kinema.engine import generate
from kinema.media.still import fit_still
from kinema.models.catalog import POCKET_FOLDER, request_for

STILL = Path(__file__).parent.parent / "examples" / "rocket.jpg"


def from_the_shell() -> float:
    """Seconds of `kinema generate`, as a person waits for it."""
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        command = [sys.executable, "-m", "kinema", "generate", str(STILL), "--model", "pocket", "-o", str(video)]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started


def ours(models: object, still: object) -> dict[str, float]:
    """Seconds of one video, by stage and in all."""
    stages: dict[str, float] = {}
    started = last = time.perf_counter()
    for step in generate(models, still, request_for(model="pocket", seed=42)):
        now = time.perf_counter()
        if isinstance(step, kinema.Step):
            stages[step.stage] = stages.get(step.stage, 0) + now - last
        last = now
    return {**stages, "all": last - started}


def theirs(dtype: torch.dtype, still: object) -> Callable[[], np.ndarray]:
    """A call of diffusers' pipeline that makes the same video."""
    from diffusers import StableVideoDiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    request = request_for(model="pocket", seed=42)
    pipeline = StableVideoDiffusionPipeline.from_pretrained(POCKET_FOLDER, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    image = fit_still(still, request.width, request.height)
    names = ("width", "height", "num_frames", "num_inference_steps", "fps", "motion_bucket_id")
    names += ("noise_aug_strength", "decode_chunk_size", "min_guidance_scale", "max_guidance_scale")
    settings = {name: getattr(request, name) for name in names}

    def call() -> np.ndarray:
        made = pipeline(image, generator=torch.Generator().manual_seed(42), output_type="np", **settings)
        return made.frames[0]

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    models = kinema.load("pocket")
    load = time.perf_counter() - started
    still = kinema.open_still(STILL)
    call = theirs(models.dtype, still)
    ours(models, still), call()  # warm both up
    stages, reference = [], []
    for _ in range(args.runs):  # in turns, so that what else the machine does meets both
        stages.append(ours(models, still))
        started = time.perf_counter()
        call()
        reference.append(time.perf_counter() - started)
    shell = [from_the_shell() for _ in range(args.runs)]
    middle = lambda values: round(statistics.median(values), 2)  # noqa: E731
    result = {
        "what": "pocket model at its default settings, seconds",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "dtype": str(models.dtype),
        "settings": request_for(model="pocket", seed=42).model_dump(),
        "from_the_shell": middle(shell),
        "load_with_imports": round(load, 2),
        "kinema": {stage: middle([run[stage] for run in stages]) for stage in stages[0]},
        "diffusers": middle(reference),
        "faster_than_diffusers": round(statistics.median(reference) / statistics.median([s["all"] for s in stages]), 2),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""Measure `upscale` on videos of the pocket model of held-out photographs, and its time:

    python bench/upscaling.py --photos training/data/photos.tar --out bench/results/pocket-upscaling.json

`lanczos` is the plain video enlarged by LANCZOS. For each: the PSNR of consecutive frames after alignment by optical
flow in dB (`consecutive_psnr`), the sharpness, and the PSNR to the plain video of the frames at half their size
(`halved_psnr`). The photographs are the first of a set of held_out.json.
"""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import kinema
from kinema.engine.upscaling import upscaling_stage

sys.path.append(str(Path(__file__).parents[1]))

from bench.held_out_photographs import SEED, photographs, read_options, write_record
from training.pocket.metrics import aligned_psnr, psnr, sharpness


def resized(frames: np.ndarray, size: tuple[int, int], filter_: Image.Resampling) -> np.ndarray:
    """Return frames at another (width, height)."""
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, filter_)) for frame in frames])


def metrics(frames: np.ndarray, plain: np.ndarray) -> dict[str, float]:
    """Return the metrics of an enlarged video."""
    height, width = plain.shape[1:3]
    halved = resized(frames, (width, height), Image.Resampling.BOX)
    return {
        "consecutive_psnr": float(np.mean([aligned_psnr(a, b) for a, b in pairwise(frames)])),
        "sharpness": float(np.mean([sharpness(frame) for frame in frames])),
        "halved_psnr": float(np.mean([psnr(a, b) for a, b in zip(halved, plain, strict=True)])),
    }


def main() -> None:
    args = read_options(__doc__)
    pipeline = kinema.load("pocket", device="cpu")
    stage = upscaling_stage(torch.device("cpu"))
    each = {"upscale": {}, "lanczos": {}}
    for stem, photograph in photographs(args).items():
        plain = kinema.generate(photograph, model=pipeline, seed=SEED).frames
        height, width = plain.shape[1:3]
        started = time.perf_counter()
        larger = np.concatenate(list(stage.run(iter([plain]))))
        seconds = (time.perf_counter() - started) / len(plain)
        lanczos = resized(plain, (2 * width, 2 * height), Image.Resampling.LANCZOS)
        each["upscale"][stem] = metrics(larger, plain) | {"seconds_per_frame": seconds}
        each["lanczos"][stem] = metrics(lanczos, plain)
        print(stem, json.dumps({name: rows[stem] for name, rows in each.items()}), flush=True)
        if args.sheets:
            Image.fromarray(np.concatenate([lanczos[7], larger[7]], 1)).save(args.sheets / f"upscale-{stem}.png")
    rows = {
        name: {
            "mean": {key: round(float(np.mean([row[key] for row in rows.values()])), 3) for key in rows[stem]},
            "photographs": rows,
        }
        for name, rows in each.items()
    }
    print(json.dumps({name: row["mean"] for name, row in rows.items()}), flush=True)
    write_record(args, "videos of the pocket model at twice their size", rows)


if __name__ == "__main__":
    main()

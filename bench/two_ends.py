"""Measure loops and last images with two ways of sampling between two images, on held-out photographs:

    python bench/two_ends.py --photos training/data/photos.tar --out bench/results/pocket-two-ends.json

`bidirectional` is `kinema.engine.samplers.between`, which the product uses for last images of SVD; `fusion` is
`kinema.engine.samplers.fused`, which it uses for loops, and for last images of the pocket model. `plain` has no last
image. The last image is a part of the photograph beside the first image, slightly enlarged. The photographs are the
first of a set of held_out.json; choose settings on `choose`, and report on `report`.

For each photograph: PSNR of the first and last frame to their images in dB; mean optical flow in pixels per frame; PSNR
of consecutive frames after alignment in dB; and for loops, the mean absolute difference of last and first frame
relative to the median of consecutive frames (`seam`).
"""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from PIL import Image

import kinema
from kinema.engine import denoising, generate, samplers
from kinema.models.catalog import request_for
from kinema.steps import drive

sys.path.append(str(Path(__file__).parents[1]))

from bench.held_out_photographs import SEED, photographs, read_options, write_record
from training.pocket.metrics import aligned_psnr, mean_flow, psnr

# Each way of sampling, by the samplers that it replaces for the kind of video that has the other one.
WAYS = {
    "plain": {},
    "bidirectional": {"fused": lambda a, b, **_: samplers.between(a, b, torch.Generator().manual_seed(SEED))},
    "fusion": {"between": lambda a, b, _: samplers.fused(a, b)},
}


def view(photograph: np.ndarray, shift: float, zoom: float) -> Image.Image:
    """Return a part of the photograph at 288×160; `shift` is relative to the part's width."""
    image = Image.fromarray(photograph)
    width = min(image.width, image.height * 288 / 160) * 0.86 / zoom
    height = width * 160 / 288
    x, y = image.width / 2 + shift * width, image.height / 2
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return image.resize((288, 160), Image.Resampling.LANCZOS, box=box)


def measure(
    pipeline: kinema.VideoPipeline, first: Image.Image, last: Image.Image | None, *, loop: bool
) -> tuple[dict[str, float], kinema.Video]:
    """Generate one video and return its metrics."""
    request = request_for(model="pocket", seed=SEED, loop=loop)
    images = [kinema.open_image(image) for image in (first, last) if image is not None]
    started = time.perf_counter()
    video = drive(generate(pipeline, images[0], request, *images[1:]))
    frames, end = video.frames, first if last is None else last
    steps = [np.abs(a.astype(float) - b).mean() for a, b in pairwise(frames)]
    metrics = {
        "first_psnr": psnr(frames[0], np.asarray(first)),
        "last_psnr": psnr(frames[-1], np.asarray(end)),
        "flow": mean_flow(frames),
        "consecutive_psnr": float(np.mean([aligned_psnr(a, b) for a, b in pairwise(frames)])),
        "seam": float(np.abs(frames[-1].astype(float) - frames[0]).mean() / np.median(steps)),
        "seconds": time.perf_counter() - started,
    }
    return metrics, video


def main() -> None:
    args = read_options(__doc__)
    pipeline = kinema.load("pocket", device="cpu")
    rows = {}
    for name, replaced in WAYS.items():
        for kind in ("plain",) if name == "plain" else ("last image", "loop"):
            each = {}
            for i, (stem, photograph) in enumerate(photographs(args).items()):
                first, last = view(photograph, 0, 1), view(photograph, 0.03 if i % 2 else -0.03, 1.04)
                end = last if kind == "last image" else None
                with mock.patch.object(denoising, "samplers", SimpleNamespace(**vars(samplers) | replaced)):
                    each[stem], video = measure(pipeline, first, end, loop=kind == "loop")
                if args.sheets:
                    video.contact_sheet(columns=5).save(args.sheets / f"{name}-{kind}-{stem}.png")
            means = {key: round(float(np.mean([row[key] for row in each.values()])), 2) for key in each[stem]}
            print(name, kind, json.dumps(means), flush=True)
            rows[f"{name}, {kind}"] = {"mean": means, "photographs": each}
    write_record(args, "videos of the pocket model between two images, and loops", rows)


if __name__ == "__main__":
    main()

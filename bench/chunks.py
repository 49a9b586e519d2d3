"""Measure how decoding in chunks changes the pocket model's frames: PSNR and differences at chunk borders.

    python bench/chunks.py --out bench/results/pocket-chunks.json

The reference decodes all frames together. Each pair of consecutive frames has a mean absolute difference, in levels
(0 to 255). `border` is its mean increase over the reference at chunk borders, `within` that of all other pairs.
"""

import argparse
import datetime
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinema.benchmark.measure import distance, machine
from kinema.engine import to_latents, to_video
from kinema.engine.checkpoint import Checkpoint
from kinema.media.image import open_image
from kinema.models.catalog import request_for
from kinema.models.loading import load
from kinema.models.memory_plan import MemoryPlan
from kinema.steps import drive

EXAMPLE = Path(__file__).parent.parent / "examples" / "rocket.jpg"
CHUNKS = (14, 7, 4, 2, 1)


def frames_of(pipeline: Any, image: Any, request: Any, denoised: Checkpoint, chunk: int) -> np.ndarray:
    """Decode the same latents in chunks."""
    planned = Checkpoint(denoised.latents, MemoryPlan(denoised.plan.name, chunk))
    video = drive(to_video(pipeline, image, request, planned))
    return video.frames.astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    args = parser.parse_args()
    pipeline, image = load("pocket", device="cpu", dtype="float32"), open_image(args.image)
    request = request_for(model="pocket", seed=42)
    denoised = drive(to_latents(pipeline, image, request))
    reference = frames_of(pipeline, image, request, denoised, request.num_frames)
    results = {}
    for chunk in CHUNKS:
        frames = frames_of(pipeline, image, request, denoised, chunk)
        increase = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)) - np.abs(np.diff(reference, axis=0)).mean((1, 2, 3))
        border = np.arange(1, len(frames)) % chunk == 0
        results[str(chunk)] = distance(frames.astype(np.uint8), reference.astype(np.uint8)) | {
            "border": round(float(increase[border].mean()), 3) if border.any() else None,
            "within": round(float(increase[~border].mean()), 3) if not border.all() else None,
        }
    record = {
        "what": "the pocket model in float32, one image and seed; the same latents decoded in chunks of N frames",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(torch.device("cpu")),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "image": image.name,
        "chunks": results,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

"""What decoding in chunks does to the frames of the pocket model: PSNR beside all frames at once, and the borders.

    python bench/chunks.py --out bench/results/pocket-chunks.json

A border shows where two frames that follow each other differ by more than the same two do when all were decoded
together: `border` is the mean of that over the borders, in 255ths, and `within` over all other pairs.
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
from kinema.values import Step

EXAMPLE = Path(__file__).parent.parent / "examples" / "rocket.jpg"
CHUNKS = (14, 7, 4, 2, 1)


def frames_of(pipeline: Any, image: Any, request: Any, denoised: Checkpoint, chunk: int) -> np.ndarray:
    """The same latents, decoded in chunks."""
    planned = Checkpoint(denoised.latents, MemoryPlan(denoised.plan.name, chunk))
    *_, clip = (each for each in to_video(pipeline, image, request, planned) if not isinstance(each, Step))
    return clip.frames.astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    args = parser.parse_args()
    pipeline, image = load("pocket", device="cpu", dtype="float32"), open_image(args.image)
    request = request_for(model="pocket", seed=42)
    *_, denoised = (each for each in to_latents(pipeline, image, request) if not isinstance(each, Step))
    assert isinstance(denoised, Checkpoint)
    whole = frames_of(pipeline, image, request, denoised, request.num_frames)
    found = {}
    for chunk in CHUNKS:
        frames = frames_of(pipeline, image, request, denoised, chunk)
        more = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)) - np.abs(np.diff(whole, axis=0)).mean((1, 2, 3))
        border = np.arange(1, len(frames)) % chunk == 0
        found[str(chunk)] = distance(frames.astype(np.uint8), whole.astype(np.uint8)) | {
            "border": round(float(more[border].mean()), 3) if border.any() else None,
            "within": round(float(more[~border].mean()), 3) if not border.all() else None,
        }
    record = {
        "what": "the pocket model in float32, one still and seed, its latents decoded in chunks of that many frames",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(torch.device("cpu")),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "image": image.name,
        "chunks": found,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

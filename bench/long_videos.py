"""Measure the drift of videos of five windows with the pocket model, on held-out photographs:

    python bench/long_videos.py --photos training/data/photos.tar --seeds 42 43 44 45 46 47 \
        --out bench/results/pocket-long-videos.json
    python bench/long_videos.py --photos training/data/photos.tar --ways extended --seeds 42 43 44 45 46 47 \
        --out bench/results/pocket-extend.json
    python bench/long_videos.py --photos training/data/photos.tar --ways short --seeds 42 43 44 45 46 47 \
        --out bench/results/pocket-short-videos.json

`windows` is `num_frames` beyond what the model makes at once. `chained` is what users do without it: five videos, each
of which begins at the last frame of the one before. `extended` is a video of one window in an mp4, extended by
`kinema.extend` to five windows; its `border_jump` is that of the last frame of the file to the first new one.
`short` is one window: how its last second differs from its first is not due to the length.

The photographs are the first of a set of held_out.json; choose settings on `choose`, and report on `report`. They take
the seeds in turn: how much a window moves depends on its noise, and with one seed, all videos have the same noise
(training/README.md).

For each photograph, of the first and the last second: the difference of the mean colour (of 255), also after the frames
are aligned to the first one (`content_colour_difference`): content that enters or leaves changes the mean colour, too.
And the ratios of sharpness (last to first) and of mean optical flow. The flow after the first window relative to that
of the first window (`added_flow_ratio`). The largest difference of consecutive frames relative to their median, at the
borders of windows or videos (`border_jump`) and anywhere (`jump`); the flow in pixels per frame; and the PSNR of
consecutive frames after alignment in dB.
"""

import json
import sys
import time
from itertools import cycle, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import kinema
from kinema.models.windows import windows

sys.path.append(str(Path(__file__).parents[1]))

from bench.held_out_photographs import SEED, photographs, read_options, write_record
from training.pocket.metrics import aligned_colour, aligned_psnr, mean_flow, sharpness

FRAMES, EXTENDED, AT_ONCE = 48, 51, 14  # as many as five windows make, also when a video of one window is extended
FPS = 7


def chained(pipeline: kinema.VideoPipeline, photograph: np.ndarray, seed: int) -> np.ndarray:
    """Return the frames of five videos, each of which begins at the last frame of the one before."""
    parts, image = [], Image.fromarray(photograph)
    for i in range(5):
        frames = kinema.generate(image, model=pipeline, seed=seed + i).frames
        parts.append(frames[1:] if parts else frames)
        image = Image.fromarray(frames[-1])
    return np.concatenate(parts)


def windowed(pipeline: kinema.VideoPipeline, photograph: np.ndarray, seed: int) -> np.ndarray:
    """Return the frames of one video of five windows."""
    return kinema.generate(photograph, model=pipeline, seed=seed, num_frames=FRAMES).frames


def extended(pipeline: kinema.VideoPipeline, photograph: np.ndarray, seed: int) -> np.ndarray:
    """Return the frames of a video of one window that was saved and extended."""
    with TemporaryDirectory() as folder:
        file = kinema.generate(photograph, model=pipeline, seed=seed).save(Path(folder) / "short.mp4")
        video = kinema.extend(file, num_frames=EXTENDED - AT_ONCE, image=photograph, model=pipeline)
        assert np.array_equal(video.frames[:AT_ONCE], kinema.read_frames(file)[0])
    return video.frames


def short(pipeline: kinema.VideoPipeline, photograph: np.ndarray, seed: int) -> np.ndarray:
    """Return the frames of a video of one window."""
    return kinema.generate(photograph, model=pipeline, seed=seed).frames


WAYS = {"windows": windowed, "chained": chained, "extended": extended, "short": short}


def borders(name: str) -> set[int]:
    """Return the frames before the steps at the borders of windows, which overlap, or of videos, which do not."""
    if name == "short":
        return set()
    if name == "extended":
        return {AT_ONCE - 1}
    if name == "chained":
        return {i * (AT_ONCE - 1) + offset for i in range(1, 5) for offset in (-1, 0)}
    found = windows(FRAMES, AT_ONCE)
    return {i for before, after in pairwise(found) for i in range(after.start - 1, before.end)}


def metrics(frames: np.ndarray, borders: set[int]) -> dict[str, float]:
    """Return the metrics of a video; those of what was added only with `borders`."""
    first, last = frames[:FPS], frames[-FPS:]
    moved = [np.mean([aligned_colour(frame, frames[0]) for frame in part], 0) for part in (first, last)]
    steps = [np.abs(a.astype(float) - b).mean() for a, b in pairwise(frames)]
    row = {
        "colour_difference": float(np.abs(first.mean((0, 1, 2)) - last.mean((0, 1, 2))).max()),
        "content_colour_difference": float(np.abs(moved[0] - moved[1]).max()),
        "sharpness_ratio": float(np.mean([sharpness(f) for f in last]) / np.mean([sharpness(f) for f in first])),
        "flow_ratio": mean_flow(last) / mean_flow(first),
        "jump": float(max(steps) / np.median(steps)),
        "flow": mean_flow(frames),
        "consecutive_psnr": float(np.mean([aligned_psnr(a, b) for a, b in pairwise(frames)])),
    }
    if borders:
        row["added_flow_ratio"] = mean_flow(frames[AT_ONCE - 1 :]) / mean_flow(frames[:AT_ONCE])
        row["border_jump"] = float(max(steps[i] for i in borders) / np.median(steps))
    return row


def main() -> None:
    more = {
        "--ways": {"nargs": "+", "choices": WAYS, "default": ["windows", "chained"]},
        "--seeds": {"nargs": "+", "type": int, "default": [SEED]},
    }
    args = read_options(__doc__, more)
    pipeline = kinema.load("pocket", device="cpu")
    rows = {}
    for name in args.ways:
        each = {}
        for (stem, photograph), seed in zip(photographs(args).items(), cycle(args.seeds), strict=False):
            started = time.perf_counter()
            frames = WAYS[name](pipeline, photograph, seed)
            each[stem] = metrics(frames, borders(name)) | {
                "frames": len(frames),
                "seconds": time.perf_counter() - started,
            }
            if args.sheets:
                picked = frames[np.linspace(0, len(frames) - 1, 20).round().astype(int)]
                rows_of_sheet = [np.concatenate(list(picked[i : i + 5]), 1) for i in range(0, 20, 5)]
                Image.fromarray(np.concatenate(rows_of_sheet)).save(args.sheets / f"{name}-{stem}.png")
        columns = {key: [row[key] for row in each.values()] for key in each[stem]}
        summary = {
            label: {key: round(float(function(values)), 2) for key, values in columns.items()}
            for label, function in (("mean", np.mean), ("least", np.min), ("most", np.max))
        }
        print(name, json.dumps(summary), flush=True)
        rows[name] = summary | {"photographs": each}
    write_record(args, f"long videos of the pocket model: {', '.join(args.ways)}", rows, seed=args.seeds)


if __name__ == "__main__":
    main()

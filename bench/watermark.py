"""Measure the invisible watermark: what it survives, false positives, and its time.

    python bench/watermark.py --photos training/data/photos.tar --out bench/results/watermark.json
    python bench/watermark.py --sections time --device cuda --out out/watermark.json        # on another machine

`survival`: videos of the pocket model at 288×160 and clips of enlarged, moved photographs at 1024×576, of the set
`report` of held_out.json. PSNR of the watermarked frames; then each change of watermark_changes.py to Kinema's mp4.
Settings were chosen on the set `choose`. `false`: scores of clips without a watermark, parts of all photographs and of
the videos at random sizes. `time`: of watermarking, and of writing an mp4 with and without.

Sections are added to those that the record has; `false` continues.
"""

import argparse
import datetime
import io
import json
import math
import os
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import kinema
from kinema.benchmark.measure import machine
from kinema.media.video_writer import save_video
from kinema.media.watermark import Watermark, detect, embed, strongest
from kinema.media.watermark.watermark_detection import MAX_CHANCE
from kinema.recipe import FileEncoding

sys.path.append(str(Path(__file__).parents[1]))

from bench.watermark_changes import CHANGES, as_mp4
from training.pocket.evaluate import read_photographs

SEED = 42
LARGE_CLIPS, POCKET_VIDEOS, LARGE_FRAMES = 6, 12, 14


def psnr(before: np.ndarray, after: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((before.astype(float) - after) ** 2).mean()))


def pocket_videos(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return the videos of photographs by the pocket model; they are stored in the folder --videos."""
    options.videos.mkdir(parents=True, exist_ok=True)
    photographs = list(read_photographs(options.photos, options.set).items())[:POCKET_VIDEOS]
    pipeline = None
    videos = {}
    for name, photograph in photographs:
        path = options.videos / f"{options.set}-{name}.npy"
        if not path.exists():
            pipeline = pipeline or kinema.load("pocket", device="cpu")
            image = Image.fromarray(photograph)
            np.save(path, kinema.generate(image, model=pipeline, seed=SEED, width=288, height=160).frames)
        videos[name] = np.load(path)
    return videos


def large_clips(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return clips at 1024×576 in which the camera moves over an enlarged photograph."""
    photographs = read_photographs(options.photos, options.set).items()
    wide = [(name, photograph) for name, photograph in photographs if photograph.shape[1] >= 800][:LARGE_CLIPS]
    return {name: moved(photograph, i) for i, (name, photograph) in enumerate(wide)}


def moved(photograph: np.ndarray, way: int) -> np.ndarray:
    image = Image.fromarray(photograph)
    frames = []
    for time_ in np.linspace(0, 1, LARGE_FRAMES):
        width = image.width * 0.88 * (1 - 0.12 * time_ * (1 if way % 2 else 0.3))
        height = width * 576 / 1024
        left = (image.width - width) * (0.2 + 0.5 * time_ if way % 3 else 0.5)
        top = (image.height - height) * (0.5 + 0.2 * time_)
        box = (left, top, left + width, top + height)
        frames.append(np.asarray(image.resize((1024, 576), Image.Resampling.LANCZOS, box=box)))
    return np.stack(frames)


def survival(options: argparse.Namespace, _: object) -> dict[str, object]:
    kinds = {"288×160": pocket_videos(options), "1024×576": large_clips(options)}
    return {"set": options.set} | {size: survival_of(videos) for size, videos in kinds.items()}


def survival_of(videos: dict[str, np.ndarray]) -> dict[str, object]:
    rng = np.random.default_rng(SEED)
    ratios, rows = (
        [],
        {name: {"must": must, "read": 0, "wrong": 0, "scores": []} for name, (_, must) in CHANGES.items()},
    )
    for frames in videos.values():
        payload = int(rng.integers(2**32))
        watermarked = embed(frames, payload)
        ratios.append(psnr(frames, watermarked))
        stored = as_mp4(watermarked)
        for name, (change, _) in CHANGES.items():
            watermark = detect(change(stored))
            row = rows[name]
            row["read"] += watermark is not None and watermark.payload == payload
            row["wrong"] += watermark is not None and watermark.payload != payload
            row["scores"].append(None if watermark is None else round(watermark.score, 1))
        print(f"PSNR {ratios[-1]:.2f}", {name: row["scores"][-1] for name, row in rows.items()}, flush=True)
    for name, row in rows.items():
        print(f"{name:32} {row['read']} of {len(videos)}", "" if row["read"] == len(videos) else row, flush=True)
    return {
        "videos": len(videos),
        "psnr": {"mean": round(np.mean(ratios), 2), "worst": round(min(ratios), 2)},
        "changes": rows,
    }


def false_positives(options: argparse.Namespace, done: dict[str, object]) -> dict[str, object]:
    """Look for watermarks in clips without one; continue after the clips that the record has."""
    began = time.perf_counter()
    found, count = done.get("found", 0), done.get("clips", 0)
    lowest, histogram = done.get("lowest_chance", 1.0), Counter(done.get("scores", {}))
    with ProcessPoolExecutor(options.processes, initializer=load_unwatermarked, initargs=(options,)) as pool:
        for future in [pool.submit(strongest_in_clip, number) for number in range(count, options.clips)]:
            watermark = future.result()
            count += 1
            found += watermark.chance <= MAX_CHANCE
            lowest = min(lowest, watermark.chance)
            histogram[f"{math.floor(10 * watermark.score) / 10:04.1f}"] += 1
            if count % 500 == 0:
                print(count, f"{max(histogram)}, {time.perf_counter() - began:.0f} s", flush=True)
            if time.perf_counter() - began > options.seconds:
                pool.shutdown(cancel_futures=True)
                break
    return {
        "clips": count,
        "found": found,
        "most_allowed_chance": MAX_CHANCE,
        "lowest_chance": lowest,
        "scores": dict(sorted(histogram.items())),
    }


_unwatermarked: list[np.ndarray] = []


def load_unwatermarked(options: argparse.Namespace) -> None:
    """Read all photographs and the pocket's videos."""
    with tarfile.open(options.photos) as archive:
        files = [archive.extractfile(member).read() for member in archive if member.name.endswith(".jpg")]
    _unwatermarked.extend(np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))[None] for file in files)
    _unwatermarked.extend(pocket_videos(options).values())


def strongest_in_clip(number: int) -> Watermark:
    """Return what is most like a watermark in a part of a photograph or video, two frames from 112×112 to 288×288."""
    rng = np.random.default_rng((SEED, number))
    video = _unwatermarked[number % len(_unwatermarked)]
    height, width = (int(rng.integers(min(112, most), min(288, most) + 1)) for most in video.shape[1:3])
    top, left = int(rng.integers(video.shape[1] - height + 1)), int(rng.integers(video.shape[2] - width + 1))
    first, shift = int(rng.integers(len(video))), int(rng.integers(3))
    second = min(first + 1, len(video) - 1)
    clip = [video[i, top : top + height, x : x + width] for i, x in ((first, left), (second, max(0, left - shift)))]
    return strongest(frame[:, ::-1] if number % 2 else frame for frame in clip)


def times(options: argparse.Namespace, _: object) -> dict[str, object]:
    """Measure the time of watermarking, and of an mp4 with and without."""
    sizes = ((14, 288, 160), (25, 1024, 576))
    rows = {f"{frames} frames of {width}×{height}": times_of(frames, width, height) for frames, width, height in sizes}
    print(json.dumps(rows, indent=1))
    load = round(os.getloadavg()[0], 1)
    return {"machine": machine(torch.device(options.device)), "load": load, **rows}


def times_of(frames: int, width: int, height: int) -> dict[str, float]:
    small = np.random.default_rng(SEED).integers(0, 256, (frames, height // 8, width // 8, 3), np.uint8)
    video = np.stack([np.asarray(Image.fromarray(x).resize((width, height))) for x in small])
    watermark = FileEncoding(watermark="00000001")
    watermarked = embed(video[:7], 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        return {
            "watermarking_seconds": median_seconds(lambda: embed(video, 1), 7),
            "mp4_seconds": median_seconds(lambda: save_video(video, path, 7), 3),
            "watermarked_mp4_seconds": median_seconds(lambda: save_video(video, path, 7, encoding=watermark), 3),
            "detecting_7_frames_seconds": median_seconds(lambda: detect(watermarked), 3),
        }


def median_seconds(work: Callable[[], object], runs: int) -> float:
    work()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return round(float(np.median(taken)), 4)


SECTIONS = {"survival": survival, "false": false_positives, "time": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="photos.tar, written by training/pocket/collect.py")
    parser.add_argument("--videos", type=Path, default=Path("out/watermark"), help="folder for the pocket's videos")
    parser.add_argument("--set", default="report", choices=("choose", "report"))
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated sections")
    parser.add_argument("--clips", type=int, default=10_000, help="number of clips without a watermark")
    parser.add_argument("--seconds", type=float, default=3600, help="time limit for them")
    parser.add_argument("--processes", type=int, default=2, help="that look for watermarks in them")
    parser.add_argument("--device", default="cpu", help="only named in the record: watermarking runs on the CPU")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    record = (
        json.loads(options.out.read_text())
        if options.out.exists()
        else {"what": "the invisible watermark", "seed": SEED}
    )
    for section in options.sections.split(","):
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        record[section] = {"date": date} | SECTIONS[section](options, record.get(section, {}))
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

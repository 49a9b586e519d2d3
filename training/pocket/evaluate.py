r"""Evaluate a pocket model on held-out photographs with its default parameters, and report which thresholds are met:

    python -m training.pocket.evaluate --photos training/data/photos.tar      # the embedded model
    python -m training.pocket.evaluate --photos training/data/photos.tar --model out/pocket \
        --json out/evaluation.json --sheets out/evaluation
    python -m training.pocket.evaluate --photos training/data/photos.tar --model out/pocket \
        --against src/kinema/models/pocket --json out/first-frames.json

The photographs are one set of held_out.json: `choose` for choosing parameters, `report` for the reported figures.
Motion is measured at several motion buckets and compared at equal optical flow. With --against, only the first frames
of both models are compared.
Exit code 1 means that a threshold is not met.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import kinema
from kinema.engine import generate
from kinema.media.image import fit_image
from kinema.models.catalog import POCKET_FOLDER, request_for
from kinema.steps import drive
from training.pocket.metrics import interpolate_at_flow, psnr, video_metrics
from training.pocket.motion import HELD_OUT

BUCKETS = (40, 80, 127, 200)
SEED, OTHER_SEED = 42, 7

# name: (minimum, or the negated maximum; description)
THRESHOLDS = {
    "size_mib": (-36, "all weights, MiB"),
    "first_frame_psnr_mean": (27, "first frame against the fitted image, dB"),
    "first_frame_psnr_worst": (24, "first frame against the fitted image, worst photograph, dB"),
    "last_frame_to_image_at_0.4": (23, "last frame against the image warped by flow, at 0.4 pixels per frame, dB"),
    "last_frame_to_image_at_0.8": (21.5, "last frame against the image warped by flow, at 0.8 pixels per frame, dB"),
    "consecutive_at_0.8": (30, "consecutive frames aligned by flow, at 0.8 pixels per frame, dB"),
    "first_frame_sharpness": (0.6, "sharpness of the first frame / of the image"),
    "last_frame_sharpness": (0.75, "sharpness of the last frame / of the first frame"),
    "last_frame_sharpness_most": (-1.1, "sharpness of the last frame / of the first frame, maximum"),
    "motion_ratio": (2.5, "flow at motion bucket 200 / at motion bucket 40"),
    "chroma_error_worst": (-4, "chroma error of the worst photograph, 1/255"),
    "seeds_move_apart": (0.5, "difference of two seeds' last frames / of their first frames, minus 1; worst"),
    "seconds": (-14, "one video by the command, including its start, s"),
}


def read_photographs(tar: Path, set_name: str) -> dict[str, np.ndarray]:
    """Return the photographs of one set, uint8 [height, width, 3], by name."""
    names = json.loads(HELD_OUT.read_text())[set_name]
    with tarfile.open(tar) as archive:
        return {
            Path(name).stem: np.asarray(Image.open(BytesIO(archive.extractfile(name).read())).convert("RGB"))
            for name in names
        }


def generate_video(pipeline: object, photograph: np.ndarray, **parameters: object) -> kinema.Video:
    """Generate a video with the pocket model's default parameters, except for those given."""
    request = request_for(model="pocket", seed=parameters.pop("seed", SEED), **parameters)
    return drive(generate(pipeline, kinema.open_image(photograph), request))


def time_command(model: str, photograph: np.ndarray) -> float:
    """Return the median seconds of three runs of the command, including its start and loading the model."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(photograph).save(f"{folder}/image.png")
        for i in range(3):
            command = [sys.executable, "-m", "kinema", "generate", f"{folder}/image.png", "--model", model]
            started = time.perf_counter()
            subprocess.run([*command, "-o", f"{folder}/{i}.mp4"], check=True, capture_output=True)
            runs.append(time.perf_counter() - started)
    return sorted(runs)[1]


def evaluate_photograph(pipeline: object, photograph: np.ndarray, save_as: Path | None) -> dict[str, object]:
    """Return all metrics of one photograph; `save_as` is the path prefix of contact sheets and videos."""
    videos = {bucket: generate_video(pipeline, photograph, motion_bucket_id=bucket) for bucket in BUCKETS}
    request = request_for(model="pocket")
    video, other = videos[request.motion_bucket_id], generate_video(pipeline, photograph, seed=OTHER_SEED)
    image = np.asarray(fit_image(kinema.open_image(photograph), request.width, request.height, request.fit))
    by_bucket = {bucket: video_metrics(moving.frames, image) for bucket, moving in videos.items()}
    row: dict[str, object] = video_metrics(video.frames, image)
    for flow in (0.4, 0.8):
        for name in ("last_frame_to_image", "consecutive"):
            row[f"{name}_at_{flow}"] = interpolate_at_flow(list(by_bucket.values()), name, flow)
    row["motion_ratio"] = by_bucket[200]["flow"] / by_bucket[40]["flow"]
    apart = psnr(video.frames[0], other.frames[0]) - psnr(video.frames[-1], other.frames[-1])
    row["seeds_move_apart"] = 10 ** (apart / 20) - 1
    row["buckets"] = by_bucket
    if save_as:
        save_as.parent.mkdir(parents=True, exist_ok=True)
        for label, saved in {"-seed": other, **{f"-{b}": v for b, v in videos.items()}}.items():
            saved.contact_sheet(columns=5).save(save_as.with_name(f"{save_as.name}{label}.png"))
            saved.save(save_as.with_name(f"{save_as.name}{label}.mp4"))
    return row


def evaluate(model: str, photos: dict[str, np.ndarray], device: str | None, sheets: Path | None) -> dict[str, object]:
    """Return figures, metrics per photograph and the environment, as written by --json."""
    pipeline = kinema.load(model, device=device)
    rows = {}
    for name, photograph in photos.items():
        rows[name] = evaluate_photograph(pipeline, photograph, sheets / name if sheets else None)
        rounded = {k: round(v, 2) for k, v in rows[name].items() if isinstance(v, float)}
        print(name, json.dumps(rounded), flush=True)
    folder = POCKET_FOLDER if model == "pocket" else Path(model)
    column = lambda key: np.array([row[key] for row in rows.values()])  # noqa: E731
    mean = {
        name: column(name).mean()
        for name in (
            "last_frame_to_image_at_0.4",
            "last_frame_to_image_at_0.8",
            "consecutive_at_0.8",
            "first_frame_sharpness",
            "last_frame_sharpness",
            "motion_ratio",
        )
    }
    figures = mean | {
        "size_mib": sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 2**20,
        "first_frame_psnr_mean": column("first_frame_psnr").mean(),
        "first_frame_psnr_worst": column("first_frame_psnr").min(),
        "last_frame_sharpness_most": column("last_frame_sharpness").mean(),
        "chroma_error_worst": column("chroma_error").max(),
        "seeds_move_apart": column("seeds_move_apart").min(),
        "seconds": time_command(model, next(iter(photos.values()))),
    }
    video = generate_video(pipeline, next(iter(photos.values())), num_inference_steps=1)
    return {
        "model": model,
        "settings": request_for(model="pocket", seed=SEED).model_dump(exclude={"model"}),
        "device": video.recipe.device,
        "dtype": video.recipe.dtype,
        "versions": video.recipe.versions | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "figures": {name: round(float(figures[name]), 3) for name in THRESHOLDS},
        "photographs": json.loads(json.dumps(rows), parse_float=lambda text: round(float(text), 3)),
    }


def compare_first_frames(
    model: str, other: str, photos: dict[str, np.ndarray], device: str | None
) -> dict[str, object]:
    """Return the PSNR of both models' first frames to the fitted image, and the mean gain of `model`, in dB."""
    values: dict[str, list[float]] = {}
    for name in (model, other):
        pipeline = kinema.load(name, device=device)
        values[name] = []
        for label, photograph in photos.items():
            video = generate_video(pipeline, photograph)
            request = video.recipe.request
            fitted = fit_image(kinema.open_image(photograph), request.width, request.height, request.fit)
            values[name].append(psnr(video.frames[0], np.asarray(fitted)))
            print(name, label, f"{values[name][-1]:.2f}", flush=True)
    return {
        "settings": request_for(model="pocket", seed=SEED).model_dump(exclude={"model"}),
        "versions": video.recipe.versions | {"python": platform.python_version()},
        "models": {
            name: {"mean": round(float(np.mean(dbs)), 3), "worst": round(min(dbs), 3)} for name, dbs in values.items()
        },
        "photographs": {
            label: {name: round(dbs[i], 3) for name, dbs in values.items()} for i, label in enumerate(photos)
        },
        "gain": round(float(np.mean(values[model]) - np.mean(values[other])), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="photos.tar, written by collect.py")
    parser.add_argument(
        "--set", choices=("report", "choose"), default="report", help="set of held_out.json (default: report)"
    )
    parser.add_argument("--model", default="pocket", help="'pocket' (default) or a model folder")
    parser.add_argument("--against", help="folder of another model; compares the first frames of both, and ends")
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets and videos")
    args = parser.parse_args()
    photos = read_photographs(args.photos, args.set)
    if args.against:
        result = compare_first_frames(args.model, args.against, photos, args.device)
    else:
        result = evaluate(args.model, photos, args.device, args.sheets)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result | {"set": args.set}, indent=1) + "\n")
    if args.against:
        passed = result["gain"] >= 5
        print(f"{'pass' if passed else 'FAIL'}  {result['gain']:8.2f}  ≥ 5      first frame, gain over --against, dB")
        return 0 if passed else 1
    passed = True
    for name, (threshold, description) in THRESHOLDS.items():
        figure = result["figures"][name]
        is_met = figure <= -threshold if threshold < 0 else figure >= threshold
        passed &= is_met
        print(
            f"{'pass' if is_met else 'FAIL'}  {figure:8.2f}  "
            f"{'≤' if threshold < 0 else '≥'} {abs(threshold):<5}  {description}"
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

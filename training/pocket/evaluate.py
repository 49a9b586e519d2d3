r"""Judge a pocket model on photographs that it never saw, at its default settings, and say which bars hold:

    python -m training.pocket.evaluate --photos training/data/photos.tar      # the embedded model
    python -m training.pocket.evaluate --photos training/data/photos.tar --model out/pocket \
        --against src/kinema/models/pocket --json out/evaluation.json --sheets out/evaluation

The photographs are a set of held_out.json: `report`, or `choose` while settings are chosen. Motion is measured at
several motion buckets and compared at equal optical flow.
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
from training.pocket.metrics import at_flow, judge, psnr
from training.pocket.motion import HELD_OUT

BUCKETS = (20, 40, 80, 127, 200)
SEED, OTHER_SEED = 42, 7

# name: (the least or, negative, the most that is allowed, what it is)
BARS = {
    "size_mib": (-36, "all weights, MiB"),
    "first_frame_psnr_mean": (27, "first frame against the fitted image, dB"),
    "first_frame_psnr_worst": (24, "the worst of them, dB"),
    "last_frame_to_image_at_0.4": (23, "last frame brought back to the image by flow, at 0.4 pixels a frame, dB"),
    "last_frame_to_image_at_0.8": (21.5, "the same at 0.8 pixels a frame, dB"),
    "consecutive_at_0.8": (30, "consecutive frames brought together by flow, at 0.8 pixels a frame, dB"),
    "first_frame_sharpness": (0.6, "first frame's sharpness over the image's"),
    "last_frame_sharpness": (0.75, "last frame's sharpness over the first's"),
    "last_frame_sharpness_most": (-1.1, "the same, at most"),
    "motion_ratio": (2.5, "flow at motion bucket 200 over flow at 40"),
    "chroma_error_worst": (-4, "chroma error of the worst, /255"),
    "seeds_move_apart": (0.5, "difference of two seeds' last frames over that of their first frames, less 1; worst"),
    "seconds": (-14, "one video from the shell, start included, s"),
}


def photographs(tar: Path, chosen: str) -> dict[str, np.ndarray]:
    """The photographs of one set, [height, width, 3], by name."""
    names = json.loads(HELD_OUT.read_text())[chosen]
    with tarfile.open(tar) as archive:
        return {
            Path(name).stem: np.asarray(Image.open(BytesIO(archive.extractfile(name).read())).convert("RGB"))
            for name in names
        }


def make(models: object, photograph: np.ndarray, **settings: object) -> kinema.Video:
    request = request_for(model="pocket", seed=settings.pop("seed", SEED), **settings)
    *_, clip = generate(models, kinema.open_image(photograph), request)
    return clip


def seconds_from_the_shell(model: str, photograph: np.ndarray) -> float:
    """Run the command three times, start and loading included; the median."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(photograph).save(f"{folder}/image.png")
        for i in range(3):
            command = [sys.executable, "-m", "kinema", "generate", f"{folder}/image.png", "--model", model]
            started = time.perf_counter()
            subprocess.run([*command, "-o", f"{folder}/{i}.mp4"], check=True, capture_output=True)
            runs.append(time.perf_counter() - started)
    return sorted(runs)[1]


def judge_photograph(models: object, photograph: np.ndarray, save_as: Path | None) -> dict[str, object]:
    """All figures of one photograph, with contact sheets and videos beside `save_as`."""
    clip, other = make(models, photograph), make(models, photograph, seed=OTHER_SEED)
    request = clip.recipe.request
    image = np.asarray(fit_image(kinema.open_image(photograph), request.width, request.height, request.fit))
    moved = {bucket: make(models, photograph, motion_bucket_id=bucket) for bucket in BUCKETS}
    by_bucket = {bucket: judge(made.frames, image) for bucket, made in moved.items()}
    row: dict[str, object] = judge(clip.frames, image)
    for flow in (0.4, 0.8):
        for name in ("last_frame_to_image", "consecutive"):
            row[f"{name}_at_{flow}"] = at_flow(list(by_bucket.values()), name, flow)
    row["motion_ratio"] = by_bucket[200]["flow"] / by_bucket[40]["flow"]
    apart = psnr(clip.frames[0], other.frames[0]) - psnr(clip.frames[-1], other.frames[-1])
    row["seeds_move_apart"] = 10 ** (apart / 20) - 1
    row["buckets"] = by_bucket
    if save_as:
        save_as.parent.mkdir(parents=True, exist_ok=True)
        for label, made in {"": clip, "-seed": other, **{f"-{b}": m for b, m in moved.items()}}.items():
            made.contact_sheet(columns=5).save(save_as.with_name(f"{save_as.name}{label}.png"))
            made.save(save_as.with_name(f"{save_as.name}{label}.mp4"))
    return row


def evaluate(model: str, photos: dict[str, np.ndarray], device: str | None, sheets: Path | None) -> dict[str, object]:
    models = kinema.load(model, device=device)
    rows = {}
    for name, photograph in photos.items():
        rows[name] = judge_photograph(models, photograph, sheets / name if sheets else None)
        shown = {k: round(v, 2) for k, v in rows[name].items() if isinstance(v, float)}
        print(name, json.dumps(shown), flush=True)
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
        "seconds": seconds_from_the_shell(model, next(iter(photos.values()))),
    }
    clip = make(models, next(iter(photos.values())), num_inference_steps=1)
    return {
        "model": model,
        "settings": request_for(model="pocket", seed=SEED).model_dump(exclude={"model"}),
        "device": clip.recipe.device,
        "dtype": clip.recipe.dtype,
        "versions": clip.recipe.versions | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "figures": {name: round(float(figures[name]), 3) for name in BARS},
        "photographs": json.loads(json.dumps(rows), parse_float=lambda text: round(float(text), 3)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="the archive that collect.py makes")
    parser.add_argument("--set", choices=("report", "choose"), default="report", help="of held_out.json")
    parser.add_argument("--model", default="pocket", help="pocket, or a folder")
    parser.add_argument("--against", help="another model's folder, measured in the same run")
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets and videos")
    args = parser.parse_args()
    photos = photographs(args.photos, args.set)
    result = evaluate(args.model, photos, args.device, args.sheets) | {"set": args.set}
    if args.against:
        result["against"] = evaluate(args.against, photos, args.device, args.sheets and args.sheets / "against")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    held = True
    for name, (bar, what) in BARS.items():
        figure = result["figures"][name]
        holds = figure <= -bar if bar < 0 else figure >= bar
        held &= holds
        print(f"{'holds' if holds else 'FAILS'}  {figure:8.2f}  {'≤' if bar < 0 else '≥'} {abs(bar):<5}  {what}")
    if args.against:
        gain = result["figures"]["first_frame_psnr_mean"] - result["against"]["figures"]["first_frame_psnr_mean"]
        held &= gain >= 5
        print(f"{'holds' if gain >= 5 else 'FAILS'}  {gain:8.2f}  ≥ 5      first frame, above the other model's, dB")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

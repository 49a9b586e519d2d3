"""Judge a pocket model on photographs that it never saw, at its default settings, and say which bars hold:

    python training/evaluate.py                       # the embedded model
    python training/evaluate.py --model out/pocket --json out/evaluation.json --sheets out
    python training/evaluate.py --painter --help      # the pocket painter: evaluate_painter.py

The photographs are scikit-image's astronaut, chelsea, coffee and rocket and scikit-learn's china and flower. Motion is
compared at motion buckets 40 and 200, and seeds by what they share: the first frame.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

import kinema
from kinema.engine import generate
from kinema.media.still import fit_still
from kinema.models.catalog import POCKET_FOLDER, request_for
from metrics import judge, mean_flow, psnr

# name: (figure, the least or most that is allowed, what it is)
BARS = {
    "size_mib": (-40, "all weights, MiB"),
    "first_frame_psnr_mean": (24, "first frame against the fitted still, dB"),
    "first_frame_psnr_worst": (20, "the worst of them, dB"),
    "chroma_error_worst": (-6, "chroma error of the worst, /255"),
    "first_frame_sharpness_worst": (0.45, "first frame's sharpness over the still's, worst"),
    "last_frame_sharpness_worst": (0.35, "last frame's sharpness over the first's, worst"),
    "steadiness_mean": (26, "consecutive frames brought together by optical flow, dB"),
    "motion_ratio_worst": (2, "flow at motion 200 over flow at motion 40, worst"),
    "seeds_move_apart": (
        0.5,
        "frames of two seeds in the end, mean difference over that of their first frames, less 1",
    ),
}


def photographs() -> dict[str, np.ndarray]:
    """The evaluation photographs, from packages that carry them."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    stills = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    return stills | dict(zip(("china", "flower"), load_sample_images().images, strict=True))


def make(models: object, photograph: np.ndarray, **settings: object) -> kinema.Clip:
    request = request_for(model="pocket", seed=settings.pop("seed", 42), **settings)
    *_, clip = generate(models, kinema.open_still(photograph), request)
    return clip


def evaluate(model: str, device: str | None, sheets: Path | None) -> dict:
    models = kinema.load(model, device=device)
    rows = {}
    for name, photograph in photographs().items():
        started = time.perf_counter()
        clip = make(models, photograph)
        seconds = time.perf_counter() - started
        request = clip.recipe.request
        still = np.asarray(fit_still(kinema.open_still(photograph), request.width, request.height, request.fit))
        slow, fast = (make(models, photograph, motion_bucket_id=bucket) for bucket in (40, 200))
        other = make(models, photograph, seed=7)
        rows[name] = judge(clip.frames, still) | {
            "flow_at_40": mean_flow(slow.frames),
            "flow_at_200": mean_flow(fast.frames),
            "seeds_first_frame_psnr": psnr(clip.frames[0], other.frames[0]),
            "seeds_last_frame_psnr": psnr(clip.frames[-1], other.frames[-1]),
            "seconds": seconds,
        }
        print(name, json.dumps({k: round(v, 2) for k, v in rows[name].items()}), flush=True)
        if sheets:
            sheets.mkdir(parents=True, exist_ok=True)
            for label, made in {"": clip, "-slow": slow, "-fast": fast, "-seed": other}.items():
                made.contact_sheet(columns=5).save(sheets / f"{name}{label}.png")
                made.save(sheets / f"{name}{label}.mp4")
    folder = POCKET_FOLDER if model == "pocket" else Path(model)
    size = sum(f.stat().st_size for f in folder.rglob("*.safetensors"))
    column = lambda key: np.array([row[key] for row in rows.values()])  # noqa: E731
    apart = 10 ** ((column("seeds_first_frame_psnr") - column("seeds_last_frame_psnr")) / 20) - 1
    figures = {
        "size_mib": size / 2**20,
        "first_frame_psnr_mean": column("first_frame_psnr").mean(),
        "first_frame_psnr_worst": column("first_frame_psnr").min(),
        "chroma_error_worst": column("chroma_error").max(),
        "first_frame_sharpness_worst": column("first_frame_sharpness").min(),
        "last_frame_sharpness_worst": column("last_frame_sharpness").min(),
        "steadiness_mean": column("steadiness").mean(),
        "motion_ratio_worst": (column("flow_at_200") / column("flow_at_40")).min(),
        "seeds_move_apart": apart.min(),
    }
    return {
        "model": model,
        "settings": request.model_dump(exclude={"model"}),
        "device": clip.recipe.device,
        "dtype": clip.recipe.dtype,
        "versions": clip.recipe.versions | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "figures": {k: round(float(v), 3) for k, v in figures.items()},
        "photographs": {name: {k: round(v, 3) for k, v in row.items()} for name, row in rows.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="pocket, or a folder")
    parser.add_argument("--device")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets and videos")
    args = parser.parse_args()
    result = evaluate(args.model, args.device, args.sheets)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    held = True
    for name, (bar, what) in BARS.items():
        figure = result["figures"][name]
        holds = figure <= -bar if bar < 0 else figure >= bar
        held &= holds
        print(f"{'holds' if holds else 'FAILS'}  {figure:8.2f}  {'≤' if bar < 0 else '≥'} {abs(bar):<5}  {what}")
    return 0 if held else 1


if __name__ == "__main__":
    if "--painter" in sys.argv:
        import evaluate_painter

        sys.exit(evaluate_painter.main([a for a in sys.argv[1:] if a != "--painter"]))
    sys.exit(main())

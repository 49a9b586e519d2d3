"""Evaluate the pocket text-to-image model on held-out captions and report which thresholds are met:

    python -m training.t2i.evaluate                # the embedded model
    python -m training.t2i.evaluate --model out/t2i --json out/t2i.json --sheets out/t2i

Generate images for 200 captions of held-out combinations of thing, colour, ground and hour, and classify them with a
network trained on drawn scenes (`judge.py`), whose accuracy on drawn scenes is also reported. Then replace only the
colour word, with the same seed. Encode and decode newly drawn scenes with the VAE alone. Finally, time the command from
a prompt to a video.
Exit code 1 means that a threshold is not met.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from training.t2i.drawing import HEIGHT, TINTS, WIDTH
from training.t2i.judge import ANSWERS, accuracy_by_question, drawn_accuracy, load_judge
from training.t2i.scenes import COLOURS, Scene, held_out_scenes
from training.t2i.vae import new_images, validate
from training.t2i.words import bare_caption, caption

POCKET_T2I_FOLDER = Path(__file__).parents[2] / "src" / "kinema" / "models" / "pocket_t2i"
JUDGE = Path(__file__).with_name("judge.safetensors")
PROMPT = "a red hot-air balloon over a snowy mountain at sunset"
# Prompts of prompts.png, for visual inspection: those of the README, and some with unknown words.
PROMPTS = (
    PROMPT,
    "a photograph of an astronaut riding a horse",
    "An aerial view of a city at night, long exposure, instagram contest",
    "a white sailing boat on a calm lake at dawn",
    "a lighthouse by the sea at night",
    "an oil painting of a yellow house in a field of flowers",
    "a blue rocket over the desert at noon",
    "a city skyline at night in the rain",
    "a drawing of three pink birds over green hills",
    "a foggy forest in the morning",
    "two black horses on the beach at sunset",
    "a green zebra in the jungle at noon",
)
# name: (minimum, or the negated maximum; description)
THRESHOLDS = {
    "size_mib": (-22, "all files, MiB"),
    "vae_psnr": (29, "newly drawn scenes reconstructed by the VAE, dB"),
    "thing_found": (0.8, "held-out captions whose thing is found in the image"),
    "ground_found": (0.8, "held-out captions whose ground is found"),
    "hour_found": (0.8, "held-out captions whose hour is found"),
    "colour_swapped": (0.8, "images whose thing has the new colour after the colour word is replaced"),
    "video_seconds": (-40, "one prompt to a video by the command, s"),
}


def generate_images(
    pipeline: Any, captions: Sequence[str], seeds: Sequence[int], steps: int, guidance: float
) -> torch.Tensor:
    """Return images [n, 3, 160, 288] in 0…1, generated in batches of eight."""
    batches = []
    for i in range(0, len(captions), 8):
        output = pipeline(
            list(captions[i : i + 8]),
            height=HEIGHT,
            width=WIDTH,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(s) for s in seeds[i : i + 8]],
            output_type="pt",
        )
        batches.append(output.images.float().cpu().clamp(0, 1))
    return torch.cat(batches)


def moves_towards(before: torch.Tensor, after: torch.Tensor, colour: str) -> bool:
    """Return whether the 3% of pixels that changed most are nearer to a colour in `after`; uses no network."""
    change = (after - before).abs().sum(0)
    is_changed = change >= change.flatten().quantile(0.97)
    tint = torch.tensor(TINTS[colour])
    old, new = ((p[:, is_changed].mean(1) - tint).norm() for p in (before, after))
    return bool(new < old)


def save_contact_sheet(images: torch.Tensor, captions: Sequence[str], file: Path, columns: int = 4) -> None:
    """Save a contact sheet with each image's caption below it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (WIDTH + 8), rows * (HEIGHT + 34)), "white")
    pen = ImageDraw.Draw(page)
    for i, (image, text) in enumerate(zip(images, captions, strict=True)):
        x, y = i % columns * (WIDTH + 8) + 4, i // columns * (HEIGHT + 34) + 4
        page.paste(Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)), (x, y))
        for line, part in enumerate((text[:48], text[48:96])):
            pen.text((x, y + HEIGHT + 2 + 12 * line), part, fill="black")
    page.save(file)


def time_video(model: Path | None) -> float | None:
    """Return the seconds the command takes from a prompt to a video, or None if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kinema", "generate", "--prompt", PROMPT, "--seed", "42"]
        command += ["--image-model", str(model)] if model else []
        started = time.perf_counter()
        result = subprocess.run([*command, "-o", f"{folder}/video.mp4"], capture_output=True, text=True, check=False)
        if result.returncode:
            print(result.stderr.strip(), file=sys.stderr)
            return None
        return time.perf_counter() - started


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Return figures, the judge's answers for each caption, and the environment, as written by --json."""
    from diffusers import AutoPipelineForText2Image

    folder = args.model or POCKET_T2I_FOLDER
    pipeline = AutoPipelineForText2Image.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    pipeline.to(args.device).set_progress_bar_config(disable=True)
    judge = load_judge(args.judge)
    rng = random.Random(3)
    scenes = held_out_scenes(args.number)
    captions = [caption(s, rng, full=True) for s in scenes]
    seeds = list(range(args.number))
    started = time.perf_counter()
    images = generate_images(pipeline, captions, seeds, args.steps, args.guidance)
    seconds = (time.perf_counter() - started) / args.number
    answers = judge.answers(images)
    drawn = new_images(args.number, args.device, seed=2)  # other scenes than those that training validates on
    vae = validate(pipeline.vae, drawn)
    found = accuracy_by_question(scenes, answers)

    # Generate the shortest full caption twice, with two colours.
    swaps = scenes[: args.number // 2]
    others = [rng.choice([c for c in COLOURS if c != s.colour]) for s in swaps]
    before = generate_images(pipeline, [bare_caption(s) for s in swaps], seeds[: len(swaps)], args.steps, args.guidance)
    swapped = [bare_caption(s, c) for s, c in zip(swaps, others, strict=True)]
    after = generate_images(pipeline, swapped, seeds[: len(swaps)], args.steps, args.guidance)
    answered = [a["colour"] for a in judge.answers(after)]
    nearer = [moves_towards(b, a, c) for b, a, c in zip(before, after, others, strict=True)]

    figures: dict[str, float | None] = {
        "size_mib": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20,
        **{f"vae_{name}": vae[name] for name in ("psnr", "psnr_worst", "sharpness", "chroma")},
        **{f"{question}_found": found[question] for question in ANSWERS},
        "colour_swapped": sum(c == s for c, s in zip(others, answered, strict=True)) / len(swaps),
        "colour_moved_towards": sum(nearer) / len(swaps),
        "image_seconds_in_batches": seconds,
        "video_seconds": None if args.no_video else time_video(args.model),
    }
    if args.sheets:
        samples = generate_images(pipeline, PROMPTS, [42] * len(PROMPTS), args.steps, args.guidance)
        save_contact_sheet(samples, PROMPTS, args.sheets / "prompts.png", columns=3)
        for i in range(0, args.number, 40):
            save_contact_sheet(images[i : i + 40], captions[i : i + 40], args.sheets / f"held-out-{i // 40 + 1}.png")
        pairs = torch.stack([before, after], 1).flatten(0, 1)[:40]
        pair_captions = [t for s, w in zip(swaps, swapped, strict=True) for t in (bare_caption(s), w)][:40]
        save_contact_sheet(pairs, pair_captions, args.sheets / "swapped.png")
    versions = {name: __import__(name).__version__ for name in ("diffusers", "torch", "transformers")}
    return {
        "model": str(args.model or "pocket-t2i"),
        "settings": {"num_inference_steps": args.steps, "guidance_scale": args.guidance, "scheduler": "euler"},
        "device": args.device,
        "threads": torch.get_num_threads(),
        "versions": versions | {"python": platform.python_version()},
        "figures": {k: None if v is None else round(float(v), 3) for k, v in figures.items()},
        "judge_on_drawn_held_out_scenes": {k: round(v, 3) for k, v in drawn_accuracy(judge, args.number).items()},
        "captions": [
            {"caption": c, "asked": _expected_answers(s), "seen": a}
            for c, s, a in zip(captions, scenes, answers, strict=True)
        ],
    }


def _expected_answers(scene: Scene) -> dict[str, str | None]:
    return {question: getattr(scene, question) for question in ANSWERS}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder (default: the embedded model)")
    parser.add_argument("--judge", type=Path, default=JUDGE, help="weights saved by judge.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument("--number", type=int, default=200, help="number of captions")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument(
        "--no-video", action="store_true", help="skip timing the command; its threshold then counts as not met"
    )
    args = parser.parse_args(arguments)
    result = evaluate(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print("judge's accuracy on drawn held-out scenes:", json.dumps(result["judge_on_drawn_held_out_scenes"]))
    passed = True
    for name, (threshold, description) in THRESHOLDS.items():
        figure = result["figures"][name]
        is_met = figure is not None and (figure <= -threshold if threshold < 0 else figure >= threshold)
        passed &= is_met
        value = "    none" if figure is None else f"{figure:8.2f}"
        bound = f"{'≤' if threshold < 0 else '≥'} {abs(threshold):<5}"
        print(f"{'pass' if is_met else 'FAIL'}  {value}  {bound}  {description}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

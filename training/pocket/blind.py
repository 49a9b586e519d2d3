r"""Prepare a blind comparison of two pocket models on the photographs of the set `report`, at equal measured flow:

    python -m training.pocket.blind --photos training/data/photos.tar --model out/pocket \
        --against src/kinema/models/pocket --out out/blind

For each photograph, the model of --against generates a video at --motion, and the other model one whose measured flow
is within 10% of that. Both are written as sheet and single frames under the letters A and B, which a fixed seed
assigns. Judges see only these files and answer, for each photograph: A or B? and: would you show A, would you show B to
a friend? key.json says which model is which; keep it from them. An answer file has a line per photograph,
`name,preferred,show_a,show_b` with A or B and yes or no:

    python -m training.pocket.blind --out out/blind --answers one.csv two.csv three.csv
"""

import argparse
import csv
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

import kinema
from training.pocket.evaluate import SEED, generate_video, read_photographs
from training.pocket.metrics import mean_flow

TOLERANCE = 0.1  # of the flow
TRIALS = 6
FRAMES = (0, 4, 9, 13)
ASSIGNMENT_SEED = 20


def video_of_flow(pipeline: kinema.VideoPipeline, photograph: np.ndarray, flow: float) -> tuple[kinema.Video, float]:
    """Return the video whose measured flow is closest to `flow`, and its flow; tries at most TRIALS motion buckets."""
    bucket, best = 60.0, None
    for _ in range(TRIALS):
        video = generate_video(pipeline, photograph, motion_bucket_id=round(bucket))
        measured = mean_flow(video.frames)
        if best is None or abs(measured - flow) < abs(best[1] - flow):
            best = video, measured
        if abs(measured - flow) <= TOLERANCE * flow:
            break
        bucket = min(255.0, max(1.0, bucket * (flow / max(measured, 1e-3)) ** 0.8))
    assert best is not None
    return best


def prepare(args: argparse.Namespace) -> None:
    """Write the videos of both models as A and B, and key.json."""
    rng = random.Random(ASSIGNMENT_SEED)
    new, old = kinema.load(args.model, device=args.device), kinema.load(args.against, device=args.device)
    key = {}
    for name, photograph in read_photographs(args.photos, args.set).items():
        reference = generate_video(old, photograph, motion_bucket_id=args.motion)
        flow = mean_flow(reference.frames)
        video, measured = video_of_flow(new, photograph, flow)
        videos = {"new": video, "old": reference}
        letters = dict(zip("AB", rng.sample(sorted(videos), 2), strict=True))
        for letter, model in letters.items():
            folder = args.out / name
            folder.mkdir(parents=True, exist_ok=True)
            videos[model].contact_sheet(columns=5).save(folder / f"{letter}-sheet.png")
            for i in FRAMES:
                Image.fromarray(videos[model].frames[i]).save(folder / f"{letter}-frame-{i:02}.png")
        bucket = video.recipe.request.motion_bucket_id
        key[name] = letters | {"flow_old": flow, "flow_new": measured, "motion_bucket_new": bucket, "seed": SEED}
        print(
            name, f"flow {flow:.2f} and {measured:.2f} pixels per frame, motion {args.motion} and {bucket}", flush=True
        )
    (args.out / "key.json").write_text(json.dumps(key, indent=1) + "\n")


def count(args: argparse.Namespace) -> dict[str, object]:
    """Return how often the new model was preferred, and how often each would be shown to a friend."""
    key = json.loads((args.out / "key.json").read_text())
    preferred = {"new": 0, "old": 0}
    shown = {"new": 0, "old": 0}
    for path in args.answers:
        with path.open(newline="") as file:
            answers = {row["name"]: row for row in csv.DictReader(file)}
        if answers.keys() != key.keys():
            raise SystemExit(f"{path} answers {len(answers)} photographs, expected: {', '.join(key)}")
        for name, row in answers.items():
            preferred[key[name][row["preferred"].strip()]] += 1
            for letter in "AB":
                shown[key[name][letter]] += row[f"show_{letter.lower()}"].strip() == "yes"
    unequal = [name for name, each in key.items() if abs(each["flow_new"] / each["flow_old"] - 1) > TOLERANCE]
    return {"choices": sum(preferred.values()), "preferred": preferred, "shown": shown, "unequal_flow": unequal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and key.json")
    parser.add_argument("--answers", type=Path, nargs="+", help="answer files to count, in place of preparing")
    parser.add_argument("--photos", type=Path, help="photos.tar, written by collect.py")
    parser.add_argument("--set", choices=("choose", "report"), default="report", help="set of held_out.json")
    parser.add_argument("--model", help="model folder to judge")
    parser.add_argument("--against", default="pocket", help="model to compare with")
    parser.add_argument("--motion", type=int, default=40, help="motion bucket of --against")
    parser.add_argument("--device")
    args = parser.parse_args()
    if args.answers:
        print(json.dumps(count(args), indent=1))
    else:
        prepare(args)


if __name__ == "__main__":
    main()

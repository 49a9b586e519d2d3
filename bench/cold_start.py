"""Measure how long a fresh process takes to load the pocket model, and to write a video, beside one of diffusers.

    OMP_NUM_THREADS=1 python bench/cold_start.py --out bench/results/pocket-cold-start-cpu.json

Each figure is the wall time of a whole process, with its files in the page cache. Processes alternate, one at a time.
Both sides generate 14 frames in 8 steps in their default dtypes, and write an mp4 with Kinema's writer. `--before SRC`
adds another version of Kinema, whose `src` folder it names.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from kinema.benchmark.measure import machine
from kinema.models.catalog import POCKET_FOLDER, request_for

EXAMPLE = Path(__file__).parent.parent / "examples" / "rocket.jpg"
SEED = 42

DIFFUSERS_LOAD = """
import sys
from diffusers import StableVideoDiffusionPipeline
pipeline = StableVideoDiffusionPipeline.from_pretrained(sys.argv[1])
"""
DIFFUSERS_VIDEO = f"""{DIFFUSERS_LOAD}
import json, torch
from kinema.media.video_writer import save_video
from PIL import Image
image, generator = Image.open(sys.argv[2]).convert("RGB"), torch.Generator("cpu").manual_seed({SEED})
parameters = json.loads(sys.argv[3])
image = image.resize((parameters["width"], parameters["height"]))
frames = pipeline(image, generator=generator, output_type="np", **parameters).frames[0]
save_video((frames * 255).round().astype("uint8"), sys.argv[4], 7)
"""


def commands(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return the arguments of Python for each measured process, by kind and side."""
    request = request_for(model="pocket", seed=SEED)
    names = ("width", "height", "num_frames", "num_inference_steps", "max_guidance_scale")
    parameters = json.dumps({name: getattr(request, name) for name in names})
    generate = ["-m", "kinema", "generate", str(EXAMPLE), "--model", "pocket", "--seed", str(SEED)]
    file = str(folder / "diffusers.mp4")
    return {
        "load": {
            "kinema": ["-c", "import kinema; kinema.load('pocket')"],
            "diffusers": ["-c", DIFFUSERS_LOAD, str(POCKET_FOLDER)],
        },
        "video": {
            "kinema": [*generate, "-o", str(folder / "kinema.mp4"), "--force"],
            "diffusers": ["-c", DIFFUSERS_VIDEO, str(POCKET_FOLDER), str(EXAMPLE), parameters, file],
        },
    }


def seconds(arguments: list[str], source: Path | None) -> float:
    """Return the wall time of a process; `source` is the `src` folder of another version of Kinema."""
    environment = os.environ | ({"PYTHONPATH": str(source.resolve())} if source else {})
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def measure(rounds: int, before: Path | None) -> dict[str, dict[str, dict[str, object]]]:
    """Return the times of each kind and side, with their median."""
    times: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds + 1):
            for kind, sides in commands(Path(folder)).items():
                if i == 0 and kind == "video":
                    continue  # loading fills the page cache
                sources = {"kinema": None, "diffusers": None} | ({"before": before} if before else {})
                for side, source in sources.items():
                    found = seconds(sides["kinema" if side == "before" else side], source)
                    print(f"{kind}, {side}: {found:.1f} s", flush=True)
                    if i:
                        times.setdefault(kind, {}).setdefault(side, []).append(round(found, 2))
    return {
        kind: {side: {"median": statistics.median(each), "seconds": each} for side, each in sides.items()}
        for kind, sides in times.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--before", type=Path, metavar="SRC")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    record = {
        "what": "wall time of a fresh process with the pocket model: `load` loads it, `video` also writes an mp4",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(torch.device("cpu")),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "parameters": request_for(model="pocket", seed=SEED).model_dump(exclude_none=True),
        **measure(args.rounds, args.before),
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")

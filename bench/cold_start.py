"""Measure the time and peak memory of a fresh process that loads a model or writes a video, beside one of diffusers.

    OMP_NUM_THREADS=1 python bench/cold_start.py --out bench/results/pocket-cold-start-cpu.json
    python bench/svd_xt.py /tmp/svd-xt
    python bench/cold_start.py --model /tmp/svd-xt --rounds 3 --out bench/results/svd-xt-cold-start-gpu.json

Each figure is the wall time of a whole process, with its files in the page cache. Processes alternate, one at a time.
Both sides use the model's default parameters, float16 on a GPU and otherwise their own default dtypes, and write an mp4
with Kinema's writer. On a GPU, `nothing compiled` is Kinema with an empty cache of kernels. `--before SRC` adds another
version of Kinema, whose `src` folder it names; further options are those of `kinema generate`:

    python bench/cold_start.py --before OLD/src --kinds video --rounds 10 --without-diffusers --out RECORD --fps 7
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from kinema.benchmark.measure import machine
from kinema.models.catalog import POCKET_FOLDER, request_for

EXAMPLE = Path(__file__).parent.parent / "examples" / "rocket.jpg"
SEED = 42

DIFFUSERS_LOAD = """
import sys, torch
from diffusers import StableVideoDiffusionPipeline
options = {"torch_dtype": torch.float16, "variant": "fp16"} if torch.cuda.is_available() else {}
pipeline = StableVideoDiffusionPipeline.from_pretrained(sys.argv[1], **options)
pipeline.to("cuda" if options else "cpu")
"""
DIFFUSERS_VIDEO = f"""{DIFFUSERS_LOAD}
import json
from kinema.media.video_writer import save_video
from PIL import Image
image, generator = Image.open(sys.argv[2]).convert("RGB"), torch.Generator("cpu").manual_seed({SEED})
parameters = json.loads(sys.argv[3])
image = image.resize((parameters["width"], parameters["height"]))
frames = pipeline(image, generator=generator, output_type="np", **parameters).frames[0]
save_video((frames * 255).round().astype("uint8"), sys.argv[4], 7)
"""


@dataclass(frozen=True)
class Run:
    """One process: wall time and processor time in seconds, and peak memory in MiB."""

    seconds: float
    cpu_seconds: float
    peak_mib: int


def commands(model: str, folder: Path, options: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Return the arguments of Python for each measured process, by kind and side; `options` are Kinema's."""
    request = request_for(model=model, seed=SEED)
    names = ("width", "height", "num_frames", "num_inference_steps", "max_guidance_scale")
    parameters = json.dumps({name: getattr(request, name) for name in names})
    generate = ["-m", "kinema", "generate", str(EXAMPLE), "--model", model, "--seed", str(SEED), *options]
    weights = str(POCKET_FOLDER) if model == "pocket" else model
    file = str(folder / "diffusers.mp4")
    return {
        "load": {
            "kinema": ["-c", f"import kinema; kinema.load({model!r})"],
            "diffusers": ["-c", DIFFUSERS_LOAD, weights],
        },
        "video": {
            "kinema": [*generate, "-o", str(folder / "kinema.mp4"), "--force"],
            "diffusers": ["-c", DIFFUSERS_VIDEO, weights, str(EXAMPLE), parameters, file],
        },
    }


def run(arguments: list[str], environment: dict[str, str]) -> Run:
    """Run a process to its end."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{arguments} ended with {process.returncode}:\n{errors.read()}")
    return Run(round(seconds, 2), round(usage.ru_utime + usage.ru_stime, 2), round(usage.ru_maxrss / 1024))


def measure(
    model: str, kinds: list[str], rounds: int, before: Path | None, others: list[str], options: Sequence[str]
) -> dict[str, dict[str, dict[str, object]]]:
    """Return times and memory of each kind and side, with medians. A first round fills the page cache."""
    runs: dict[str, dict[str, list[Run]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds + 1):
            for kind, sides in commands(model, Path(folder), options).items():
                if kind not in (kinds if i else ["load"]):
                    continue
                environments: dict[str, dict[str, str]] = {side: {} for side in ("kinema", *others)}
                if before:
                    environments["before"] = {"PYTHONPATH": str(before.resolve())}
                if torch.cuda.is_available() and kind == "video":
                    empty = tempfile.mkdtemp(dir=folder)
                    caches = {"XDG_CACHE_HOME": empty, "TRITON_CACHE_DIR": f"{empty}/triton"}
                    environments = {"nothing compiled": caches, **environments}
                for side, environment in environments.items():
                    found = run(sides["diffusers" if side == "diffusers" else "kinema"], environment)
                    print(f"{kind}, {side}: {found}", flush=True)
                    if i:
                        runs.setdefault(kind, {}).setdefault(side, []).append(found)
    return {kind: {side: summary(each) for side, each in sides.items()} for kind, sides in runs.items()}


def summary(runs: list[Run]) -> dict[str, object]:
    """Return the medians, then the values in the order of the runs."""
    values = {name: [asdict(each)[name] for each in runs] for name in asdict(runs[0])}
    return {"median": {name: round(statistics.median(each), 2) for name, each in values.items()}, **values}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="pocket", help="catalog name or folder")
    parser.add_argument("--note", help="text to store with the results")
    parser.add_argument("--before", type=Path, metavar="SRC")
    parser.add_argument("--kinds", nargs="+", choices=("load", "video"), default=["load", "video"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-diffusers", action="store_true", help="compare with --before alone")
    args, options = parser.parse_known_args()
    if options and not args.without_diffusers:
        parser.error(f"{' '.join(options)} is only for Kinema; add --without-diffusers")
    others = [] if args.without_diffusers else ["diffusers"]
    record = {
        "what": "times and peak memory of a fresh process: `load` loads a model, `video` also writes an mp4",
        "model": Path(args.model).name,
        "note": args.note,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "parameters": request_for(model=args.model, seed=SEED).model_dump(exclude={"model"}, exclude_none=True),
        "options": options,
        **measure(args.model, args.kinds, args.rounds, args.before, others, options),
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")

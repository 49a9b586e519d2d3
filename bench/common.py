"""What single_kernels.py, step.py and ablation.py share: full-size SVD-XT with random weights, a stopwatch, results."""

import argparse
import datetime
import json
import platform
import statistics
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import forward as parts
from kinema.engine.fast import FastDecoder, FastUNet
from kinema.engine.fast.tuning import tuned

Work = Callable[[], Any]
Section = Callable[["Bench"], dict[str, Any]]
# Tile configurations of GEMMs to compare with the defaults, by itemsize, as in `Tuning.gemm_tiles`.
GEMM_TILES = {
    2: [(128, 128, 64, 4, 3, 0), (128, 128, 64, 4, 3, 2), (128, 256, 64, 8, 3, 1), (256, 128, 64, 8, 3, 1)],
    1: [(128, 128, 128, 4, 3, 0), (128, 256, 64, 8, 3, 1)],
}


class Bench:
    """The benchmark's networks, inputs and results."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        self.args = args
        self.device = torch.device(args.device)
        # The kernels compute 16-bit tensors only; libraries are slow with float16 on a CPU.
        self.dtype = torch.float16 if self.device.type == "cuda" or args.interpreted else torch.float32
        self.groups: tuple[str, ...] = ()
        self.started = time.perf_counter()
        self.results: dict[str, Any] = {
            "what": "SVD-XT's configuration, random weights, float16, guided; ms are medians by device events",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": parts.machine(self.device),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        self.outputs: dict[str, torch.Tensor] = {}
        self.frames: int = 25
        self.size = (1024, 576)
        if args.tiny:
            self.size, self.frames = (64, 64), 3

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def save(self) -> None:
        self.args.out.mkdir(parents=True, exist_ok=True)
        (self.args.out / f"{self.name}.json").write_text(json.dumps(self.results, indent=1, ensure_ascii=False) + "\n")

    def ms(self, work: Work, runs: int | None = None, warm: int = 1) -> float:
        """Return the median milliseconds of `runs` calls after `warm` warm-up calls."""
        for _ in range(warm):
            work()
        taken = []
        for _ in range(runs or self.args.runs):
            if self.device.type == "cuda":
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                work()
                ended.record()
                torch.cuda.synchronize()
                taken.append(began.elapsed_time(ended))
            else:
                taken.append(1000 * parts.seconds(work, self.device))
        return round(statistics.median(taken), 4)

    def guarded(self, name: str, work: Callable[[], Any], into: dict[str, Any]) -> Any:
        """Store the result of `work` under its name, or its error, and save all results."""
        before = self.seconds()
        try:
            into[name] = work()
        except Exception as error:  # noqa: BLE001 an error must not stop the other sections
            into[name] = {"error": f"{type(error).__name__}: {error}"[:600], "where": traceback.format_exc()[-900:]}
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.results.setdefault("seconds_of", {})[name] = round(self.seconds() - before, 1)
        self.save()
        if name not in self.groups:  # their parts are already printed
            print(f"{self.seconds():6.1f} s  {name}: {json.dumps(into[name])[:500]}", flush=True)
        return into[name]

    def peak(self, work: Work) -> float | None:
        return parts.peak(work, self.device) if self.device.type == "cuda" else None

    def build(self) -> dict[str, Any]:
        self.unet, self.vae = parts.networks("tiny" if self.args.tiny else "svd-xt", self.device, self.dtype)
        for part in (self.unet, self.vae):
            part.to(self.device)  # diffusers creates the mix factors on the CPU
            for parameter in part.parameters():
                if parameter.dim() < 2:  # randomise initial values of 1, 0 and 0.5
                    parameter.add_(0.1 * torch.randn_like(parameter))
        width, height = self.size
        self.inputs = parts.inputs(self.unet, frames=self.frames, width=width, height=height, guided=True)
        self.time_step = torch.tensor(parts.TIME, device=self.device)
        self.stock = parts.theirs(self.unet, self.vae, self.inputs)
        return {"seconds": round(self.seconds(), 2)}

    def make_networks(self, *, fp8: bool = False) -> None:
        """Create Kinema's networks and the constants of one video."""
        self.network, self.decoder = FastUNet(self.unet, fp8=fp8), FastDecoder(self.vae)
        self.constants = self.constants_of(self.inputs)

    def constants_of(self, inputs: dict[str, torch.Tensor]) -> Any:
        names = ("embedding", "time_ids", "image_latents")
        return self.network.constants(*(inputs[name] for name in names), self.frames)

    def step(self) -> torch.Tensor:
        return self.network(self.inputs["sample"], self.time_step, self.constants)

    def decode(self) -> torch.Tensor:
        return self.decoder(self.inputs["latents"])


def run(name: str, description: str | None, sections: dict[str, Section], groups: tuple[str, ...] = ()) -> None:
    """Parse the arguments and run the sections in order; a failed section does not stop the others.

    Args:
        name: Of the results, `OUT/name.json`.
        description: The help text.
        sections: By name.
        groups: Sections that print their own parts.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sections", default=",".join(sections), help="comma-separated sections")
    parser.add_argument("--seconds", type=float, default=150, help="time limit: no section starts later")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="use a tiny configuration, to test the script")
    parser.add_argument(
        "--interpreted", action="store_true", help="run the GPU kernels on a CPU; needs TRITON_INTERPRET=1"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    bench = Bench(name, args)
    bench.groups = groups
    with torch.inference_mode(), ExitStack() as stack:
        if args.device == "cpu":
            small = dict.fromkeys((1, 2), (32, 64, 32, 4, 2, 0))
            stack.enter_context(tuned(gpu_blocks=True, interpreted=args.interpreted, gemm_tiles=small))
        bench.guarded("build", bench.build, bench.results)
        for section in args.sections.split(","):
            if bench.seconds() > args.seconds:
                bench.results.setdefault("left_out", []).append(section)
                continue
            bench.guarded(section, lambda section=section: sections[section](bench), bench.results)
    bench.save()

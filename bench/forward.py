"""One step of the UNet and one decoding, by our forward and by diffusers' own, on the same weights and inputs:

    python bench/forward.py --out bench/results/forward-cpu.json
    python bench/forward.py --model svd-xt --device cuda --dtype float16 --out bench/results/forward-h100.json

The two take turns in one process, so that what else the machine does meets both; where it does much, set
OMP_WAIT_POLICY=passive, or threads that wait for each other take the cores from those that work. `svd-xt` is the
published configuration with random weights: their speed is that of the real ones. Errors are against diffusers in
float32.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kinema.engine.fast import FastDecoder, FastUNet
from kinema.engine.fast.decoder import FrameAttention
from kinema.engine.fast.layers import FeedForward, ResBlock, SelfAttention, Upsample

SIZES = {"pocket": (288, 160, 14), "svd-xt": (1024, 576, 25), "tiny": (64, 64, 3)}
TIME = 1.0

# What is timed by itself: of ours (class, method), of diffusers (class).
OUR_PARTS = {
    "temporal resnets": (ResBlock, "add_to"),
    "spatial resnets": (ResBlock, "change"),  # where it is not within the former
    "attention within frames": (SelfAttention, "within_frames"),
    "attention along time": (SelfAttention, "along_time"),
    "attention in the decoder": (FrameAttention, "add_to"),
    "feed-forwards": (FeedForward, "add_to"),
    "upsampling": (Upsample, "__call__"),
}
THEIR_PARTS = {
    "ResnetBlock2D": "spatial resnets",
    "TemporalResnetBlock": "temporal resnets",
    "Attention": "attention",
    "FeedForward": "feed-forwards",
    "Upsample2D": "upsampling",
}


def networks(model: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """diffusers' UNet and VAE: the pocket's, or SVD-XT's shape (or a tiny one) with random weights."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    if model == "pocket":
        import kinema

        models = kinema.load("pocket", device=str(device), dtype=str(dtype).removeprefix("torch."))
        return models.unet.to(device), models.vae.to(device)
    widths, vae_widths, heads = (320, 640, 1280, 1280), (128, 256, 512, 512), (5, 10, 20, 20)
    if model == "tiny":
        widths, vae_widths, heads = (32, 32, 64, 64), (32, 32, 64, 64), (1, 1, 2, 2)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            unet = UNetSpatioTemporalConditionModel(block_out_channels=widths, num_attention_heads=heads)
            vae = AutoencoderKLTemporalDecoder(
                block_out_channels=vae_widths, layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4
            )
    finally:
        torch.set_default_dtype(torch.float32)
    return tuple(part.eval().requires_grad_(requires_grad=False) for part in (unet, vae))


def inputs(unet: Any, *, frames: int, width: int, height: int, guided: bool) -> dict[str, torch.Tensor]:
    """Random ones, of the UNet's device and arithmetic; under guidance the first half is without the still."""
    generator = torch.Generator().manual_seed(1)
    channels, size = unet.config.out_channels, (height // 8, width // 8)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(unet.device, unet.dtype)

    embedding, held = noise(1, 1, unet.config.cross_attention_dim), noise(1, channels, *size)
    if guided:
        embedding, held = (torch.cat([torch.zeros_like(each), each]) for each in (embedding, held))
    time_ids = torch.tensor([[6.0, 127.0, 0.02]], device=unet.device).repeat(len(held), 1)
    sample, latents = noise(1, frames, channels, *size), noise(frames, channels, *size)
    return {"sample": sample, "embedding": embedding, "held": held, "time_ids": time_ids, "latents": latents}


def theirs(unet: Any, vae: Any, given: dict[str, torch.Tensor]) -> dict[str, Callable[[], torch.Tensor]]:
    """diffusers' step and decoding, as its pipeline calls them; the decoding by all frames at once."""
    frames = given["sample"].shape[1]
    moment = torch.tensor(TIME, device=given["sample"].device)

    def step() -> torch.Tensor:
        sample = given["sample"].expand(len(given["held"]), -1, -1, -1, -1)
        sample = torch.cat([sample, given["held"][:, None].expand(-1, frames, -1, -1, -1)], 2)
        return unet(sample, moment, given["embedding"], given["time_ids"], return_dict=False)[0]

    latents = given["latents"]
    return {"step": step, "decode": lambda: vae.decode(latents, num_frames=len(latents)).sample}


def ours(unet: Any, vae: Any, given: dict[str, torch.Tensor]) -> dict[str, Callable[[], torch.Tensor]]:
    """Our step, with what is constant in the clip prepared before, and our decoding."""
    network, decoder = FastUNet(unet), FastDecoder(vae)
    moment = torch.tensor(TIME, device=given["sample"].device)
    constants = network.constants(given["embedding"], given["time_ids"], given["held"], given["sample"].shape[1])
    return {"step": lambda: network(given["sample"], moment, constants), "decode": lambda: decoder(given["latents"])}


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    works: dict[str, Callable[[], object]], runs: int, device: torch.device
) -> dict[str, dict[str, float | list[float]]]:
    """Each work's seconds, after one call to warm up."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            taken[name].append(seconds(work, device))
    return {
        name: {
            "least": round(min(each), 4),
            "median": round(statistics.median(each), 4),
            "all": [round(one, 4) for one in each],
        }
        for name, each in taken.items()
    }


@contextmanager
def timed_parts(device: torch.device, unet: Any, vae: Any) -> Iterator[dict[str, float]]:
    """Seconds of each part while inside, waited for one by one; a part within a part counts to the outer one."""
    spent: dict[str, float] = {}
    within: list[str] = []

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if within:
                return method(*args, **kwargs)
            within.append(name)
            synchronize(device)
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                synchronize(device)
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
                within.pop()

        return call

    kept = {(owner, method): getattr(owner, method) for owner, method in OUR_PARTS.values()}
    for name, (owner, method) in OUR_PARTS.items():
        setattr(owner, method, timed(name, kept[owner, method]))
    modules = [module for part in (unet, vae) for module in part.modules() if type(module).__name__ in THEIR_PARTS]
    for module in modules:
        module.forward = timed(THEIR_PARTS[type(module).__name__], module.forward)
    try:
        yield spent
    finally:
        for (owner, method), original in kept.items():
            setattr(owner, method, original)
        for module in modules:
            del module.forward


def relative_error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm())


def errors(unet: Any, vae: Any, given: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Relative to diffusers in float32 without TF32, for each of step and decode; of eight frames' decoding at most."""
    given = given | {"latents": given["latents"][:8]}
    runs = {"diffusers": theirs(unet, vae, given), "kinema": ours(unet, vae, given)}
    found = {name: {work: call().cpu() for work, call in calls.items()} for name, calls in runs.items()}
    del runs
    wide = {name: tensor.float() for name, tensor in given.items()}
    result: dict[str, dict[str, float]] = {}
    for part, work in enumerate(("step", "decode")):
        pair = [unet, vae]
        pair[part] = deepcopy(pair[part]).float()
        true = theirs(*pair, wide)[work]().cpu()
        result[work] = {name: relative_error(each[work], true) for name, each in found.items()}
    return result


def peak(work: Callable[[], object], device: torch.device) -> float:
    """GiB on a GPU beyond what lies there anyway."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**30, 3)


def machine(device: torch.device) -> dict[str, Any]:
    described = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    described |= {"capability": torch.backends.cpu.get_cpu_capability(), "load": list(os.getloadavg())}
    described["omp_wait_policy"] = os.environ.get("OMP_WAIT_POLICY", "unset")
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    unet, vae = networks(args.model, device, dtype)
    width, height, frames = (
        given or usual for given, usual in zip((args.width, args.height, args.frames), SIZES[args.model], strict=True)
    )
    given = inputs(unet, frames=frames, width=width, height=height, guided=args.guided)
    runs = {"diffusers": theirs(unet, vae, given), "kinema": ours(unet, vae, given)}
    result: dict[str, Any] = {
        "what": "one UNet step and one decoding of all frames together, seconds",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "model": args.model,
        "dtype": args.dtype,
        "settings": {"width": width, "height": height, "num_frames": frames, "guided": args.guided},
    }
    for work in ("step", "decode"):
        calls = {name: each[work] for name, each in runs.items()}
        entry: dict[str, Any] = in_turns(calls, args.runs, device)
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            entry[name]["tflop"] = round(counter.get_total_flops() / 1e12, 4)
            if device.type == "cuda":
                entry[name]["peak_gib"] = peak(call, device)
            with timed_parts(device, unet, vae) as spent:
                call()
            entry[name]["parts"] = {part: round(each, 4) for part, each in spent.items()}
        entry["faster"] = round(entry["diffusers"]["least"] / entry["kinema"]["least"], 2)
        result[work] = entry
        print(work, entry["diffusers"]["least"], "→", entry["kinema"]["least"], flush=True)
    if not args.no_errors:
        result["relative_error"] = errors(unet, vae, given)
    if device.type == "cpu":
        result["peak_process_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=SIZES, default="pocket")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--width", type=int)
    parser.add_argument("--height", type=int)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--alone", dest="guided", action="store_false", help="without guidance")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-errors", action="store_true", help="do not compute in float32 as well")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    result = measure(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

"""Compare one UNet step and one decoding of Kinema's and diffusers' forward, with the same weights and inputs:

    python bench/forward.py --out bench/results/forward-cpu.json
    python bench/forward.py --model svd-xt --device cuda --dtype float16 --out bench/results/forward-h100.json

Both alternate in one process, so that other load affects both. On a busy machine set OMP_WAIT_POLICY=passive:
otherwise waiting threads occupy cores. `svd-xt` is the published configuration with random weights, which run at the
same speed as trained ones. Errors are relative to diffusers in float32.
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

from kinema.engine.fast import FastDecoder, FastUNet, blocks_cpu, decoder

SIZES = {"pocket": (288, 160, 14), "svd-xt": (1024, 576, 25), "tiny": (64, 64, 3)}
TIME = 1.0

# Parts that are timed separately: Kinema's as (module, function), diffusers' by class name.
OUR_PARTS = {
    "temporal resnets": (blocks_cpu, "temporal_resblock"),
    "spatial resnets": (blocks_cpu, "residual_branch"),  # if not called by the former
    "attention within frames": (blocks_cpu, "spatial_self_attention"),
    "attention along time": (blocks_cpu, "temporal_self_attention"),
    "attention in the decoder": (decoder, "_add_attention"),
    "feed-forwards": (blocks_cpu, "feed_forward"),
    "upsampling in the decoder": (blocks_cpu, "upsample_conv"),
}
THEIR_PARTS = {
    "ResnetBlock2D": "spatial resnets",
    "TemporalResnetBlock": "temporal resnets",
    "Attention": "attention",
    "FeedForward": "feed-forwards",
    "Upsample2D": "upsampling",
}


def networks(model: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load diffusers' UNet and VAE of the pocket model, or create SVD-XT's or tiny ones with random weights."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    if model == "pocket":
        import kinema

        name = str(dtype).removeprefix("torch.")
        pipeline = kinema.load("pocket", device=str(device), dtype=name, engine="reference")
        return pipeline.unet.to(device), pipeline.vae.to(device)
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
    """Return random inputs on the UNet's device and in its dtype; with guidance the first half is unconditional."""
    generator = torch.Generator().manual_seed(1)
    channels, size = unet.config.out_channels, (height // 8, width // 8)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(unet.device, unet.dtype)

    embedding, image_latents = noise(1, 1, unet.config.cross_attention_dim), noise(1, channels, *size)
    if guided:
        embedding, image_latents = (torch.cat([torch.zeros_like(each), each]) for each in (embedding, image_latents))
    time_ids = torch.tensor([[6.0, 127.0, 0.02]], device=unet.device).repeat(len(image_latents), 1)
    sample, latents = noise(1, frames, channels, *size), noise(frames, channels, *size)
    return {
        "sample": sample,
        "embedding": embedding,
        "image_latents": image_latents,
        "time_ids": time_ids,
        "latents": latents,
    }


def theirs(unet: Any, vae: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Callable[[], torch.Tensor]]:
    """Return diffusers' step and decoding as its pipeline calls them; all frames are decoded together."""
    frames = tensors["sample"].shape[1]
    time_step = torch.tensor(TIME, device=tensors["sample"].device)

    def step() -> torch.Tensor:
        sample = tensors["sample"].expand(len(tensors["image_latents"]), -1, -1, -1, -1)
        sample = torch.cat([sample, tensors["image_latents"][:, None].expand(-1, frames, -1, -1, -1)], 2)
        return unet(sample, time_step, tensors["embedding"], tensors["time_ids"], return_dict=False)[0]

    latents = tensors["latents"]
    return {"step": step, "decode": lambda: vae.decode(latents, num_frames=len(latents)).sample}


def ours(unet: Any, vae: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Callable[[], torch.Tensor]]:
    """Return Kinema's step, with precomputed constants, and its decoding."""
    network, decoder = FastUNet(unet), FastDecoder(vae)
    time_step = torch.tensor(TIME, device=tensors["sample"].device)
    constants = network.constants(
        tensors["embedding"], tensors["time_ids"], tensors["image_latents"], tensors["sample"].shape[1]
    )
    return {
        "step": lambda: network(tensors["sample"], time_step, constants),
        "decode": lambda: decoder(tensors["latents"]),
    }


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, including the device's work."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    works: dict[str, Callable[[], object]], runs: int, device: torch.device
) -> dict[str, dict[str, float | list[float]]]:
    """Return the seconds of each function, called alternately after one warm-up call."""
    for work in works.values():
        work()
    durations: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            durations[name].append(seconds(work, device))
    return {
        name: {
            "least": round(min(each), 4),
            "median": round(statistics.median(each), 4),
            "all": [round(one, 4) for one in each],
        }
        for name, each in durations.items()
    }


@contextmanager
def timed_parts(device: torch.device, unet: Any, vae: Any) -> Iterator[dict[str, float]]:
    """Yield the seconds of each part, synchronised per call; nested parts count as the outer one."""
    spent: dict[str, float] = {}
    active: list[str] = []

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if active:
                return method(*args, **kwargs)
            active.append(name)
            synchronize(device)
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                synchronize(device)
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
                active.pop()

        return call

    originals = {(owner, method): getattr(owner, method) for owner, method in OUR_PARTS.values()}
    for name, (owner, method) in OUR_PARTS.items():
        setattr(owner, method, timed(name, originals[owner, method]))
    modules = [module for part in (unet, vae) for module in part.modules() if type(module).__name__ in THEIR_PARTS]
    for module in modules:
        module.forward = timed(THEIR_PARTS[type(module).__name__], module.forward)
    try:
        yield spent
    finally:
        for (owner, method), original in originals.items():
            setattr(owner, method, original)
        for module in modules:
            del module.forward


def relative_error(ours: torch.Tensor, true: torch.Tensor) -> float:
    return float((ours.double() - true.double()).norm() / true.double().norm())


def errors(unet: Any, vae: Any, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Return errors relative to diffusers in float32 without TF32; at most eight frames are decoded."""
    tensors = tensors | {"latents": tensors["latents"][:8]}
    runs = {"diffusers": theirs(unet, vae, tensors), "kinema": ours(unet, vae, tensors)}
    outputs = {name: {work: call().cpu() for work, call in calls.items()} for name, calls in runs.items()}
    del runs
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    result: dict[str, dict[str, float]] = {}
    for part, work in enumerate(("step", "decode")):
        pair = [unet, vae]
        pair[part] = deepcopy(pair[part]).float()
        true = theirs(*pair, wide)[work]().cpu()
        result[work] = {name: relative_error(each[work], true) for name, each in outputs.items()}
    return result


def peak(work: Callable[[], object], device: torch.device) -> float:
    """Return the peak GiB on a GPU in addition to the memory in use before."""
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
        value or default
        for value, default in zip((args.width, args.height, args.frames), SIZES[args.model], strict=True)
    )
    tensors = inputs(unet, frames=frames, width=width, height=height, guided=args.guided)
    runs = {"diffusers": theirs(unet, vae, tensors), "kinema": ours(unet, vae, tensors)}
    result: dict[str, Any] = {
        "what": "seconds of one UNet step and of decoding all frames together",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "model": args.model,
        "dtype": args.dtype,
        "parameters": {"width": width, "height": height, "num_frames": frames, "guided": args.guided},
    }
    for work in ("step", "decode"):
        calls = {name: each[work] for name, each in runs.items()}
        entry: dict[str, Any] = alternate(calls, args.runs, device)
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
        result["relative_error"] = errors(unet, vae, tensors)
    if device.type == "cpu":
        result["peak_process_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--model", choices=SIZES, default="pocket")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--width", type=int)
    parser.add_argument("--height", type=int)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--alone", dest="guided", action="store_false", help="run without guidance")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-errors", action="store_true", help="do not measure errors, which needs a float32 copy")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    result = measure(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

"""Measure where the time of a UNet step goes whose frames are divided between GPUs, with one process per GPU:

    python bench/frame_shards.py --gpus 2 --out bench/results/frame-shards-h200.json
    python bench/frame_shards.py --gpus 2 --tiny --device cpu --out /tmp/tiny.json

It is full-size SVD-XT in float16 with random weights, one half of guidance, 25 frames of 1024×576. `link` has the rate
of exchanges between the GPUs. Each variant of the step has the milliseconds until the GPU is done, and those until the
call returns, in which the CPU launches kernels: where both are equal, the GPU waits for the CPU. `whole` is the step
without a division, `local` the divided one without exchanges (its results are wrong). A graph replays all launches.
"""

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

import forward as parts
from kinema.engine.fast import FastUNet
from kinema.engine.fast.cuda_graph import GraphedCallable
from kinema.engine.fast.frame_shards import FrameShards, ShardConnection, split_evenly

LINK_MIB = (1, 10, 38)


class LocalShards(FrameShards):
    """Exchanges nothing: each process keeps what it would send, as often as it would receive something."""

    def exchange(self, sent: torch.Tensor, *, sends: Sequence[int], receives: Sequence[int]) -> torch.Tensor:  # noqa: ARG002
        return sent.repeat(-(-sum(receives) // len(sent)))[: sum(receives)].contiguous()


def times(work: Callable[[], object], device: torch.device, runs: int, warm: int = 2) -> dict[str, float]:
    """Return the median milliseconds until the GPU is done, and until the call returns."""
    for _ in range(warm):
        work()
    done, returned = [], []
    for _ in range(runs):
        parts.synchronize(device)
        began = time.perf_counter()
        work()
        returned.append(time.perf_counter() - began)
        parts.synchronize(device)
        done.append(time.perf_counter() - began)
    return {"ms": round(1000 * statistics.median(done), 2), "launch_ms": round(1000 * statistics.median(returned), 2)}


def link(shards: FrameShards, device: torch.device, runs: int) -> dict[str, float]:
    """Return the rate of exchanges in which each process sends so many MiB to each other, GB/s in each direction."""
    rates = {}
    others = len(shards.frames) - 1
    for mib in LINK_MIB:
        counts = [mib * 2**20] * len(shards.frames)
        sent = torch.zeros(sum(counts), dtype=torch.uint8, device=device)
        work = partial(shards.exchange, sent, sends=counts, receives=counts)
        rates[f"{mib} MiB"] = round(others * mib * 2**20 / times(work, device, runs)["ms"] / 1e6, 1)
    return rates


def profile(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return the time of the kernels of one step, those of NCCL apart, and the number of launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        parts.synchronize(device)
    kernels = [e for e in profiler.key_averages() if e.device_time_total > 0]
    exchanges = [e for e in kernels if "nccl" in e.key.lower()]
    return {
        "kernels_ms": round(sum(e.self_device_time_total for e in kernels) / 1000, 2),
        "exchanges_ms": round(sum(e.self_device_time_total for e in exchanges) / 1000, 2),
        "launches": sum(e.count for e in kernels),
        "exchanges": sum(e.count for e in exchanges),
    }


@torch.inference_mode()
def measure(rank: int, args: argparse.Namespace, store: str) -> None:
    """Measure in one process; the first writes the results."""
    device = torch.device(args.device, rank) if args.device == "cuda" else torch.device("cpu")
    dtype = torch.float16 if args.device == "cuda" else torch.float32
    if args.device == "cuda":
        torch.cuda.set_device(device)
    frames, size = (3, (128, 128)) if args.tiny else (25, (1024, 576))
    unet, _ = parts.networks("tiny" if args.tiny else "svd-xt", device, dtype)
    unet.to(device)  # diffusers creates the mix factors on the CPU
    tensors = parts.inputs(unet, frames=frames, width=size[0], height=size[1], guided=False)
    network, moment = FastUNet(unet), torch.tensor(parts.TIME, device=device)
    connection = ShardConnection(store, "step", rank, args.gpus, device, 60)
    shards = FrameShards(connection, tuple(split_evenly(frames, args.gpus)))
    local = LocalShards(shards.connection, shards.frames)
    result: dict[str, Any] = {
        "what": f"one step of {'a tiny SVD' if args.tiny else 'SVD-XT'}, one half of guidance, random weights; medians",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": parts.machine(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "frames": shards.frames,
        "link_gb_per_second": link(shards, device, args.runs),
    }

    def step_of(division: FrameShards | None) -> Callable[..., torch.Tensor]:
        constants = network.constants(
            *(tensors[name] for name in ("embedding", "time_ids", "image_latents")), frames, division
        )
        return lambda sample, moment: network(sample, moment, constants)

    own, whole = tensors["sample"][:, shards.own].contiguous(), tensors["sample"]
    variants = {"whole": (step_of(None), whole), "local": (step_of(local), own), "divided": (step_of(shards), own)}
    if args.device == "cuda":
        result["peer_access"] = torch.cuda.can_device_access_peer(rank, (rank + 1) % args.gpus)
        graphs = {f"{name}_graph": (GraphedCallable(step), x) for name, (step, x) in variants.items()}
        variants |= graphs
    outputs = {}
    for name, (step, sample) in variants.items():
        result[name] = times(lambda step=step, sample=sample: step(sample, moment), device, args.runs, warm=3)
        outputs[name] = step(sample, moment).clone()
        if rank == 0:
            print(name, result[name], flush=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    expected = outputs["whole"][:, shards.own].float()
    result["relative_difference"] = float((outputs["divided"].float() - expected).norm() / expected.norm())
    if args.device == "cuda":
        result["graph_equal"] = bool(torch.equal(outputs["divided"], outputs["divided_graph"]))
        for name in ("whole", "local", "divided"):
            step, sample = variants[name]
            result[name] |= profile(lambda step=step, sample=sample: step(sample, moment), device)
        for graph, _ in graphs.values():
            graph.close()
    shards.connection.abort()
    if rank == 0:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2, help="processes between which the frames are divided")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="use a tiny configuration, to test the script")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(measure, (args, str(Path(folder) / "store")), nprocs=args.gpus)


if __name__ == "__main__":
    main()

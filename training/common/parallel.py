"""Data-parallel training under torchrun: each process draws its own samples; gradients are averaged."""

import os
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass
class ProcessGroup:
    """This process's device and rank among `world` processes, and a clock shared by all of them."""

    device: str
    rank: int
    world: int
    started: float = 0.0

    @classmethod
    def join(cls, device: str) -> "ProcessGroup":
        """Join the process group that torchrun set up, if any, and enable TF32 and cuDNN autotuning."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if world > 1:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        return cls(device, rank, world)

    def leave(self) -> None:
        """Destroy the process group, if there is one."""
        if self.world > 1:
            dist.destroy_process_group()

    def print(self, *values: object) -> None:
        """Print from rank 0 only."""
        if self.rank == 0:
            print(*values, flush=True)

    def start(self) -> None:
        """Start the clock and seed each process differently, so that no two draw the same samples."""
        self.started = time.monotonic()
        torch.manual_seed(time.time_ns() % 2**31 * 64 + self.rank)

    def elapsed_minutes(self) -> float:
        """Return the minutes since `start` as measured by rank 0, the same value in every process."""
        elapsed = torch.tensor((time.monotonic() - self.started) / 60, device=self.device)
        if self.world > 1:
            dist.broadcast(elapsed, 0)
        return elapsed.item()

    def average(self, flat: torch.Tensor) -> None:
        """Replace `flat` with its mean over all processes."""
        if self.world > 1:
            dist.all_reduce(flat)
            flat /= self.world

    def average_gradients(self, weights: list[torch.nn.Parameter]) -> None:
        """Replace the gradients of `weights` with their means over all processes."""
        if self.world == 1:
            return
        grads = [p.grad for p in weights if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        self.average(flat)
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))

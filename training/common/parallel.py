"""Several GPUs of one machine under torchrun: each draws its own clips, and their gradients are averaged."""

import os
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass
class Fleet:
    """This process's place among `world` of them, and the clock that all of them stop by."""

    device: str
    rank: int
    world: int
    started: float = 0.0

    @classmethod
    def join(cls, device: str) -> "Fleet":
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if world > 1:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        return cls(device, rank, world)

    def leave(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    def say(self, *words: object) -> None:
        if self.rank == 0:
            print(*words, flush=True)

    def begin(self) -> None:
        """Start the clock, with a fresh seed for each process, so that no two draw the same clips."""
        self.started = time.monotonic()
        torch.manual_seed(time.time_ns() % 2**31 * 64 + self.rank)

    def minutes(self) -> float:
        """Minutes since the start, the same in every process."""
        elapsed = torch.tensor((time.monotonic() - self.started) / 60, device=self.device)
        if self.world > 1:
            dist.broadcast(elapsed, 0)
        return elapsed.item()

    def average(self, flat: torch.Tensor) -> None:
        """Put the mean over all processes into `flat`."""
        if self.world > 1:
            dist.all_reduce(flat)
            flat /= self.world

    def average_gradients(self, weights: list[torch.nn.Parameter]) -> None:
        if self.world == 1:
            return
        grads = [p.grad for p in weights if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        self.average(flat)
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))

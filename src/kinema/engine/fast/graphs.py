"""Replay a call that repeats with tensors of the same shapes as a CUDA graph, without Python overhead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Replayed:
    """A call that runs normally at first, is captured as a CUDA graph the second time, and is replayed from then on.

    In the first call libraries create their handles and Triton compiles; neither can be captured.
    """

    def __init__(self, work: Callable[..., Tensor]) -> None:
        """Wrap `work`, which takes tensors on the GPU and must not synchronise with it."""
        self.work = work
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given: tuple[Tensor, ...] = ()
        self.made: Tensor | None = None

    def __call__(self, *given: Tensor) -> Tensor:
        """Return the result; from the second call on, the next call overwrites it."""
        self.calls += 1
        if self.calls == 1:
            return self.work(*given)
        if self.graph is None:
            self.given = tuple(each.clone() for each in given)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(given[0].device), torch.cuda.graph(graph):
                self.made = self.work(*self.given)
            self.graph = graph  # only after a complete capture
        for place, each in zip(self.given, given, strict=True):
            place.copy_(each)
        self.graph.replay()
        assert self.made is not None
        return self.made

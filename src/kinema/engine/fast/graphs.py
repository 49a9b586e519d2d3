"""A call that is made again and again with tensors of the same shapes, replayed by a GPU without Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Replayed:
    """Made as it is the first time, captured as a CUDA graph the second time, and replayed from then on.

    The first call is what lets libraries make their handles and Triton compile, neither of which can be captured.
    """

    def __init__(self, work: Callable[..., Tensor]) -> None:
        """`work` takes tensors on the GPU, and waits for nothing there."""
        self.work = work
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given: tuple[Tensor, ...] = ()
        self.made: Tensor | None = None

    def __call__(self, *given: Tensor) -> Tensor:
        """The result lies where the next call will write its own."""
        self.calls += 1
        if self.calls == 1:
            return self.work(*given)
        if self.graph is None:
            self.given = tuple(each.clone() for each in given)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(given[0].device), torch.cuda.graph(graph):
                self.made = self.work(*self.given)
            self.graph = graph  # only when all of it was captured
        for place, each in zip(self.given, given, strict=True):
            place.copy_(each)
        self.graph.replay()
        assert self.made is not None
        return self.made

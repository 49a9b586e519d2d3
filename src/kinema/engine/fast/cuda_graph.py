"""Replay a call that repeats with tensors of the same shapes as a CUDA graph, without Python overhead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class GraphedCallable:
    """A call that runs normally at first, is captured as a CUDA graph the second time, and is replayed from then on.

    In the first call libraries create their handles and Triton compiles; neither can be captured.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        """Wrap `function`, which takes tensors on the GPU and must not synchronise with it."""
        self.function = function
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.output: Tensor | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the result; from the second call on, the next call overwrites it."""
        self.calls += 1
        if self.calls == 1:
            return self.function(*inputs)
        if self.graph is None:
            self.inputs = tuple(each.clone() for each in inputs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(inputs[0].device), torch.cuda.graph(graph):
                self.output = self.function(*self.inputs)
            self.graph = graph  # only after a complete capture
        for static_input, each in zip(self.inputs, inputs, strict=True):
            static_input.copy_(each)
        self.graph.replay()
        assert self.output is not None
        return self.output

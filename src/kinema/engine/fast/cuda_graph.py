"""Replay a call that repeats with tensors of the same shapes as a CUDA graph, without Python overhead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from kinema.engine.fast.trees import map_tensors, tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class GraphedCallable:
    """A call that runs normally at first, is captured as a CUDA graph the second time, and is replayed from then on.

    In the first call libraries create their handles and Triton compiles; neither can be captured.
    """

    def __init__(self, function: Callable[..., Tensor], constants: Any = None) -> None:
        """Wrap a function.

        Args:
            function: Takes tensors on the GPU, and must not synchronise with it.
            constants: A tree of tensors that the function reads; a copy of it is its last argument, unless it is None.
        """
        self.function = function
        self.constants = map_tensors(constants, torch.clone)
        self.source = constants
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.output: Tensor | None = None

    def use(self, constants: Any) -> None:
        """Let further calls read the values of other constants of the same shapes."""
        if constants is not self.source:
            for own, each in zip(tensors_of(self.constants), tensors_of(constants), strict=True):
                own.copy_(each)
            self.source = constants

    def close(self) -> None:
        """Destroy the graph, after its last replay if that is not done."""
        if self.graph is not None:
            self.graph.reset()
            self.graph = self.output = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the result; from the second call on, the next call overwrites it."""
        self.calls += 1
        if self.calls == 1:
            return self._call(*inputs)
        if self.graph is None:
            self.inputs = tuple(each.clone() for each in inputs)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as one that decodes the video before, may allocate memory meanwhile.
            mode = "thread_local"
            with torch.cuda.device(inputs[0].device), torch.cuda.graph(graph, capture_error_mode=mode):
                self.output = self._call(*self.inputs)
            self.graph = graph  # only after a complete capture
        for static_input, each in zip(self.inputs, inputs, strict=True):
            static_input.copy_(each)
        self.graph.replay()
        assert self.output is not None
        return self.output

    def _call(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs) if self.constants is None else self.function(*inputs, self.constants)

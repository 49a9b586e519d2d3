"""Prefetch weights from CPU memory to the device, each piece while the previous one is in use.

A piece is any tree of dataclasses, tuples and tensors. All pieces are stored in one block of pinned memory, from which
a GPU copies asynchronously while it computes. The device has two buffers that alternate: one piece is in use while the
next is being copied.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

import torch

from kinema.engine.fast.trees import Tree, map_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

# Alignment in bytes of each tensor, sufficient for every library.
ALIGNMENT_BYTES = 256


@contextmanager
def moved(modules: Sequence[Any], device: torch.device) -> Iterator[None]:
    """Move small modules to a device within the context, and back to their own devices afterwards."""
    origins = [next(module.parameters()).device for module in modules]
    to_move = [(module, origin) for module, origin in zip(modules, origins, strict=True) if origin != device]
    try:
        for module, _ in to_move:
            module.to(device)
        yield
    finally:
        for module, origin in to_move:
            module.to(origin)


class Prefetched(Generic[Tree]):
    """Pieces to iterate over in order, repeatedly; a piece's tensors are valid only until the next piece."""

    def __init__(self, pieces: Sequence[Tree], device: torch.device) -> None:
        """Copy the pieces' tensors.

        Args:
            pieces: Their tensors are in CPU memory and may be freed afterwards.
            device: The device that computes with them.

        Raises:
            RuntimeError: From torch, if not enough memory can be pinned.
        """
        self.device = device
        layouts = [_Layout(piece) for piece in pieces]
        ends = torch.tensor([0, *(layout.size for layout in layouts)]).cumsum(0).tolist()
        pinned = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
        largest = max(layout.size for layout in layouts)
        self.buffers = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(2)]
        self.pieces: list[Tree] = []
        self.pinned: list[Tensor] = []
        for i, (piece, layout) in enumerate(zip(pieces, layouts, strict=True)):
            part = pinned[ends[i] : ends[i + 1]]
            layout.fill(part)
            self.pinned.append(part)
            self.pieces.append(map_tensors(piece, partial(layout.view, block=self.buffers[i % 2])))
        self.copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Tree]:
        """Yield each piece once the current stream can use it."""
        if self.copy_stream is None:
            for i, piece in enumerate(self.pieces):
                self._copy(i)
                yield piece
            return
        stream, copy_stream = torch.cuda.current_stream(self.device), self.copy_stream
        copied, free = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))  # type: ignore[no-untyped-call]
        copy_stream.wait_stream(stream)  # which may still be using the last pieces

        def prefetch(i: int) -> None:
            with torch.cuda.stream(copy_stream):
                copy_stream.wait_event(free[i % 2])
                self._copy(i)
                copied[i % 2].record(copy_stream)

        prefetch(0)
        for i, piece in enumerate(self.pieces):
            if i + 1 < len(self.pieces):
                prefetch(i + 1)
            stream.wait_event(copied[i % 2])
            yield piece
            free[i % 2].record(stream)

    def _copy(self, i: int) -> None:
        source = self.pinned[i]
        self.buffers[i % 2][: len(source)].copy_(source, non_blocking=True)


class _Layout:
    """The position in a block of bytes of each tensor of a piece; views of the same storage share one position."""

    def __init__(self, piece: Any) -> None:
        self.tensors: dict[tuple[int, int], tuple[int, Tensor]] = {}
        self.size = 0
        map_tensors(piece, self._add)

    def _add(self, tensor: Tensor) -> Tensor:
        key = _storage_key(tensor)
        if key not in self.tensors:
            self.tensors[key] = self.size, tensor
            self.size += -(-tensor.numel() * tensor.itemsize // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return tensor

    def fill(self, block: Tensor) -> None:
        """Copy the tensors into the block."""
        for _, tensor in self.tensors.values():
            self.view(tensor, block).copy_(tensor)

    def view(self, tensor: Tensor, block: Tensor) -> Tensor:
        """Return the tensor's view of a block, with the tensor's shape and strides."""
        start, _ = self.tensors[_storage_key(tensor)]
        elements = block[start : start + tensor.numel() * tensor.itemsize].view(tensor.dtype)
        return elements.as_strided(tensor.shape, tensor.stride())


def _storage_key(tensor: Tensor) -> tuple[int, int]:
    """Return a key that is equal for views of the same storage.

    Raises:
        AssertionError: If the tensor has gaps in memory.
    """
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    assert reach == tensor.numel(), "weights are contiguous"
    return tensor.data_ptr(), tensor.numel()

"""Stream weights from CPU memory to the device; each piece is prefetched while the previous one is in use.

A piece is any tree of dataclasses, tuples and tensors. All pieces are stored in one block of pinned memory, from which
a GPU copies asynchronously while it computes. The device has two buffers that alternate: one piece is in use while the
next is being copied.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

Tree = TypeVar("Tree")
# Alignment in bytes of each tensor, sufficient for every library.
ALIGNED = 256


def mapped(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """Return a copy of a tree with `change` applied to its tensors.

    In a class that defines STREAMED, only the fields named there are changed.
    """
    found: Any = tree
    if isinstance(tree, torch.Tensor):
        found = change(tree)
    elif isinstance(tree, tuple):
        found = tuple(mapped(each, change) for each in tree)
    elif is_dataclass(tree) and not isinstance(tree, type):
        names = getattr(tree, "STREAMED", None) or [field.name for field in fields(tree)]
        found = replace(tree, **{name: mapped(getattr(tree, name), change) for name in names})
    return found  # type: ignore[no-any-return] # the type of `tree`


@contextmanager
def brought(modules: Sequence[Any], device: torch.device) -> Iterator[None]:
    """Move small modules to a device within the context, and back to their own devices afterwards."""
    homes = [next(module.parameters()).device for module in modules]
    away = [(module, home) for module, home in zip(modules, homes, strict=True) if home != device]
    try:
        for module, _ in away:
            module.to(device)
        yield
    finally:
        for module, home in away:
            module.to(home)


class Streamed(Generic[Tree]):
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
        waiting = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
        largest = max(layout.size for layout in layouts)
        self.places = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(2)]
        self.pieces: list[Tree] = []
        self.waiting: list[Tensor] = []
        for i, (piece, layout) in enumerate(zip(pieces, layouts, strict=True)):
            here = waiting[ends[i] : ends[i + 1]]
            layout.fill(here)
            self.waiting.append(here)
            self.pieces.append(mapped(piece, partial(layout.seen, block=self.places[i % 2])))
        self.bringing = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Tree]:
        """Yield each piece once the current stream can use it."""
        if self.bringing is None:
            for i, piece in enumerate(self.pieces):
                self._copy(i)
                yield piece
            return
        using, bringing = torch.cuda.current_stream(self.device), self.bringing
        there, free = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))  # type: ignore[no-untyped-call]
        bringing.wait_stream(using)  # which may still be using the last pieces

        def bring(i: int) -> None:
            with torch.cuda.stream(bringing):
                bringing.wait_event(free[i % 2])
                self._copy(i)
                there[i % 2].record(bringing)

        bring(0)
        for i, piece in enumerate(self.pieces):
            if i + 1 < len(self.pieces):
                bring(i + 1)
            using.wait_event(there[i % 2])
            yield piece
            free[i % 2].record(using)

    def _copy(self, i: int) -> None:
        waiting = self.waiting[i]
        self.places[i % 2][: len(waiting)].copy_(waiting, non_blocking=True)


class _Layout:
    """The position in a block of bytes of each tensor of a piece; views of the same storage share one position."""

    def __init__(self, piece: Any) -> None:
        self.tensors: dict[tuple[int, int], tuple[int, Tensor]] = {}
        self.size = 0
        mapped(piece, self._note)

    def _note(self, tensor: Tensor) -> Tensor:
        key = _same(tensor)
        if key not in self.tensors:
            self.tensors[key] = self.size, tensor
            self.size += -(-tensor.numel() * tensor.itemsize // ALIGNED) * ALIGNED
        return tensor

    def fill(self, block: Tensor) -> None:
        """Copy the tensors into the block."""
        for _, tensor in self.tensors.values():
            self.seen(tensor, block).copy_(tensor)

    def seen(self, tensor: Tensor, block: Tensor) -> Tensor:
        """Return the tensor's view of a block, with the tensor's shape and strides."""
        start, _ = self.tensors[_same(tensor)]
        numbers = block[start : start + tensor.numel() * tensor.itemsize].view(tensor.dtype)
        return numbers.as_strided(tensor.shape, tensor.stride())


def _same(tensor: Tensor) -> tuple[int, int]:
    """Return a key that is equal for views of the same storage.

    Raises:
        AssertionError: If the tensor has gaps in memory.
    """
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    assert reach == tensor.numel(), "weights lie together"
    return tensor.data_ptr(), tensor.numel()

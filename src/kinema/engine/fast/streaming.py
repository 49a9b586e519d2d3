"""Weights that wait in the computer's memory and come to the device one piece ahead of their use.

A piece is any tree of dataclasses, tuples and tensors. All pieces lie in one block of pinned memory, from which a GPU
fetches by itself while it computes, into two places that they take in turn: one in use, one on its way.
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
# Bytes at whose multiples a tensor begins: what any library wants.
ALIGNED = 256


def mapped(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """A copy of a tree whose tensors are changed; of a class that says STREAMED, in those fields alone."""
    found: Any = tree
    if isinstance(tree, torch.Tensor):
        found = change(tree)
    elif isinstance(tree, tuple):
        found = tuple(mapped(each, change) for each in tree)
    elif is_dataclass(tree) and not isinstance(tree, type):
        names = getattr(tree, "STREAMED", None) or [field.name for field in fields(tree)]
        found = replace(tree, **{name: mapped(getattr(tree, name), change) for name in names})
    return found  # type: ignore[no-any-return] # as what came


@contextmanager
def brought(modules: Sequence[Any], device: torch.device) -> Iterator[None]:
    """Small modules on a device while inside, wherever else they are kept."""
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
    """Pieces to be gone through in their order, again and again; the tensors of one are its own until the next."""

    def __init__(self, pieces: Sequence[Tree], device: torch.device) -> None:
        """Copy the pieces' tensors.

        Args:
            pieces: Whose tensors lie in the computer's memory; they are not needed any more.
            device: Where they are computed with.

        Raises:
            RuntimeError: as torch does where there is not enough memory that can be pinned.
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
        """Each piece, when it is there for what the current stream does next."""
        if self.bringing is None:
            for i, piece in enumerate(self.pieces):
                self._copy(i)
                yield piece
            return
        using, bringing = torch.cuda.current_stream(self.device), self.bringing
        there, free = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))  # type: ignore[no-untyped-call]
        bringing.wait_stream(using)  # which may still compute with the last pieces

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
    """Where in a block of bytes each tensor of a piece lies; two that are views of the same numbers lie together."""

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
        """Copy them into it."""
        for _, tensor in self.tensors.values():
            self.seen(tensor, block).copy_(tensor)

    def seen(self, tensor: Tensor, block: Tensor) -> Tensor:
        """The tensor's place in a block, in its own shape and order."""
        start, _ = self.tensors[_same(tensor)]
        numbers = block[start : start + tensor.numel() * tensor.itemsize].view(tensor.dtype)
        return numbers.as_strided(tensor.shape, tensor.stride())


def _same(tensor: Tensor) -> tuple[int, int]:
    """What views of the same numbers have in common; none may have gaps between its own."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    assert reach == tensor.numel(), "weights lie together"
    return tensor.data_ptr(), tensor.numel()

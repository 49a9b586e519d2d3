"""Trees of dataclasses, tuples and tensors."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Tree = TypeVar("Tree")


def map_tensors(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """Return a copy of a tree with `change` applied to its tensors.

    In a class that defines PREFETCHED, only the fields named there are changed.
    """
    result: Any = tree
    if isinstance(tree, torch.Tensor):
        result = change(tree)
    elif isinstance(tree, tuple):
        result = tuple(map_tensors(each, change) for each in tree)
    elif is_dataclass(tree) and not isinstance(tree, type):
        names = getattr(tree, "PREFETCHED", None) or [field.name for field in fields(tree)]
        result = replace(tree, **{name: map_tensors(getattr(tree, name), change) for name in names})
    return result  # type: ignore[no-any-return] # the type of `tree`


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors of a tree, in an order that depends on its shape alone."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(tree, note)
    return found

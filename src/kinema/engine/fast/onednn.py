"""Matrix products on a CPU by oneDNN, which does what follows a product while its numbers are at hand.

torch's own products in float32 are MKL's, which takes twice as long on AMD's processors, and bias, activation and
residual are passes of their own. The operators are those that torch's compiler calls; where a build of torch has none,
`suits` says no and plain torch computes.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@cache
def _kinds() -> tuple[torch.dtype, ...]:
    """The arithmetic that oneDNN has here."""
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # noqa: SLF001
        return ()
    in_half = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return (torch.float32, torch.bfloat16) if in_half else (torch.float32,)


def suits(x: Tensor) -> bool:
    """Whether oneDNN takes a matrix."""
    return x.device.type == "cpu" and x.dtype in _kinds()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """x·weightᵀ + bias, activated by nothing or "gelu" (by the error function); [rows, in] and [out, in]."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")  # noqa: SLF001
    return made


def linear_with(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, operation: str) -> Tensor:
    """x·weightᵀ + bias, and then "add" or "mul" another matrix, [rows, out]."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, operation)  # noqa: SLF001
    return made

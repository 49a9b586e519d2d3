"""Matrix products on a CPU by oneDNN, which does what follows a product while its numbers are at hand.

torch's own products in float32 are MKL's, which are slow on AMD's processors, and bias, activation and
residual are passes of their own. The operators are those that torch's compiler calls; where a build of torch has none,
`suits` says no and plain torch computes.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


# Pixels of a frame for which `attention` can be quicker than torch's own: a head's scores pay and fit the cache.
PIXELS = range(512, 2049)


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


def attends(pixels: int) -> bool:
    """Whether `attention` is quicker than torch's own for frames of so many pixels."""
    return pixels in PIXELS and not _has_amx()


@cache
def _has_amx() -> bool:
    """Whether this CPU has Intel's matrix units, for which torch's own attention is written, and MKL's products."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_tile"))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """x·weightᵀ + bias, activated by nothing or "gelu" (by the error function); [rows, in] and [out, in]."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")  # noqa: SLF001
    return made


def linear_with(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, operation: str) -> Tensor:
    """x·weightᵀ + bias, and then "add" or "mul" another matrix, [rows, out]."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, operation)  # noqa: SLF001
    return made


def attention(qkv: Tensor) -> Tensor:
    """Softmax of q·kᵀ/√d, times v, in float32: one frame and head at a time, whose scores stay in the cache.

    Args:
        qkv: [frames, pixels, 3, heads, d].

    Returns:
        [frames, pixels, heads, d].
    """
    taken = torch.empty_like(qkv[:, :, 0])
    for frame, out in zip(qkv, taken, strict=True):
        q, k, v = frame.float().permute(1, 2, 0, 3)  # [heads, pixels, d]
        q, k, v = q * q.shape[-1] ** -0.5, k.contiguous(), v.mT.contiguous()
        for head in range(len(q)):
            scores = linear(q[head], k[head], None)
            out[:, head] = linear(scores.softmax(-1), v[head], None)
    return taken

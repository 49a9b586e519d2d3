"""CPU matmuls by oneDNN, which fuses bias, activation and residual into the GEMM.

torch's own float32 matmuls use MKL, which is slow on AMD CPUs, and bias, activation and residual are separate passes.
The operators used here are those that torch.compile emits. Where a build of torch lacks them, `supports` returns False
and plain torch computes.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from kinema.engine.fast.tuning import tuning

if TYPE_CHECKING:
    from torch import Tensor


@cache
def _dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes that oneDNN supports on this machine."""
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # noqa: SLF001
        return ()
    bf16 = hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    return (torch.float32, torch.bfloat16) if bf16 else (torch.float32,)


def supports(x: Tensor) -> bool:
    """Return whether oneDNN supports a matrix's device and dtype."""
    return x.device.type == "cpu" and x.dtype in _dtypes()


def attention_is_faster(pixels: int) -> bool:
    """Return whether `attention` is faster than torch's own for frames with this number of pixels."""
    return pixels in tuning().onednn_attention_pixels and not _has_amx()


@cache
def _has_amx() -> bool:
    """Return whether this CPU has Intel's AMX, for which torch's own attention and MKL's matmuls are optimised."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_tile"))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Compute x·weightᵀ + bias, with no activation or "gelu" (by erf); shapes: [rows, in] and [out, in]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")  # noqa: SLF001
    return out


def linear_with(x: Tensor, other: Tensor, weight: Tensor, bias: Tensor, operation: str) -> Tensor:
    """Compute x·weightᵀ + bias, then "add" or "mul" with another matrix, [rows, out]."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, operation)  # noqa: SLF001
    return out


def attention(qkv: Tensor) -> Tensor:
    """Compute softmax(q·kᵀ/√d)·v in float32, one frame and head at a time, so that the scores stay in the cache.

    Args:
        qkv: [frames, pixels, 3, heads, d].

    Returns:
        [frames, pixels, heads, d].
    """
    out = torch.empty_like(qkv[:, :, 0])
    for frame, frame_out in zip(qkv, out, strict=True):
        q, k, v = frame.float().permute(1, 2, 0, 3)  # [heads, pixels, d]
        q, k, v = q * q.shape[-1] ** -0.5, k.contiguous(), v.mT.contiguous()
        for head in range(len(q)):
            scores = linear(q[head], k[head], None)
            frame_out[:, head] = linear(scores.softmax(-1), v[head], None)
    return out

"""Linear layers and GEMMs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kinema.engine.fast import onednn
from kinema.engine.fast.fp8 import FP8_DTYPE
from kinema.engine.fast.hardware import use_triton
from kinema.engine.fast.layout import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.engine.fast.weights import Linear, PackedWeight


def linear(x: Tensor, layer: Linear) -> Tensor:
    """Compute a layer: [rows, in] → [rows, out]."""
    if onednn.supports(x):
        return onednn.linear(x, layer.weight.t(), layer.bias)
    return torch.addmm(layer.bias, x, layer.weight)


def linear_gelu(x: Tensor, layer: Linear) -> Tensor:
    """Compute a layer and GELU."""
    if onednn.supports(x):
        return onednn.linear(x, layer.weight.t(), layer.bias, "gelu")
    out: Tensor = torch.ops.aten.gelu_(linear(x, layer))
    return out


def linear_multiply(x: Tensor, layer: Linear, other: Tensor) -> Tensor:
    """Compute a layer and multiply the result by another matrix, [rows, out]."""
    if onednn.supports(x):
        return onednn.linear_with(x, other, layer.weight.t(), layer.bias, "mul")
    return linear(x, layer).mul_(other)


def linear_add(out: Tensor, x: Tensor, layer: Linear) -> Tensor:
    """Add a layer's result to `out`, [rows, out], in place: the residual needs no separate pass."""
    if onednn.supports(x):
        return out.copy_(onednn.linear_with(x, out, layer.weight.t(), layer.bias, "add"))
    return out.add_(layer.bias).addmm_(x, layer.weight)


def packed_linear(x: Tensor, packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Compute a GEMM, [rows, in] → [rows, out], with a result of the given dtype."""
    if x.dtype == FP8_DTYPE and use_triton("linear", x.device, x.dtype):
        from kinema.engine.fast.kernels import triton_gemm

        out = x.new_empty(len(x), len(packed.weight), dtype=dtype)
        return triton_gemm.matmul(x, packed.weight, packed.bias, packed.scale, out)
    return reference_packed_linear(x, packed, dtype)


def reference_packed_linear(x: Tensor, packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Compute `packed_linear` with torch's matmul."""
    if x.dtype == dtype:
        return torch.nn.functional.linear(x, packed.weight, packed.bias)
    out = at_least_float32(x) @ at_least_float32(packed.weight).t()
    out = out if packed.scale is None else out * packed.scale
    return (out if packed.bias is None else out + packed.bias).to(dtype)


def packed_linear_add(out: Tensor, x: Tensor, packed: PackedWeight) -> Tensor:
    """Add the result of a GEMM without bias to `out`, [rows, out], in place."""
    if x.dtype == FP8_DTYPE and use_triton("linear", x.device, x.dtype):
        from kinema.engine.fast.kernels import triton_gemm

        return triton_gemm.matmul(x, packed.weight, None, packed.scale, out, add=True)
    if x.dtype == out.dtype:
        return out.addmm_(x, packed.weight.t())
    return out.add_(reference_packed_linear(x, packed, out.dtype))

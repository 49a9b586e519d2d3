"""GEGLU: value · GELU(gate), fused with the GEMM that computes both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from kinema.engine.fast.fp8 import FP8_DTYPE, FP8_MAX
from kinema.engine.fast.hardware import capabilities, use_matmul_kernel, use_triton
from kinema.engine.fast.layout import at_least_float32
from kinema.engine.fast.ops.linear import reference_packed_linear

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.engine.fast.weights import PackedWeight


def geglu_linear(x: Tensor, packed: PackedWeight, out_scale: float = 1.0) -> Tensor:
    """Compute the GEGLU of a GEMM whose columns are `interleaved`: [rows, in] → [rows, out / 2].

    An fp8 GEMM returns fp8, multiplied by `out_scale`.
    """
    if use_matmul_kernel("geglu_linear", x.device, x.dtype):
        return _kernel_geglu_linear(x, packed, out_scale)
    if use_triton("geglu_linear", x.device, x.dtype):
        from kinema.engine.fast.kernels import triton_gemm

        return triton_gemm.geglu(reference_packed_linear(x, packed, x.dtype))
    return reference_geglu_linear(x, packed, out_scale)


def _kernel_geglu_linear(x: Tensor, packed: PackedWeight, out_scale: float) -> Tensor:
    """Compute `geglu_linear` by the weight-stationary kernel where it fits, else by a persistent GEMM."""
    assert packed.bias is not None
    operands = packed.weight, packed.bias, packed.scale, x.new_empty(len(x), len(packed.weight) // 2)
    if capabilities(x.device).gluon:
        from kinema.engine.fast.kernels import hopper_geglu

        if hopper_geglu.fits(x, packed.weight):
            return hopper_geglu.geglu_linear(x, *operands, out_scale)
    from kinema.engine.fast.kernels import triton_gemm

    return triton_gemm.matmul(x, *operands, geglu=True, out_scale=out_scale)


def reference_geglu_linear(x: Tensor, packed: PackedWeight, out_scale: float = 1.0) -> Tensor:
    """Compute `geglu_linear` in three passes."""
    both = reference_packed_linear(x, packed, at_least_float32(x).dtype).view(len(x), -1, 8, 4, 2).transpose(2, 3)
    value, gate = both.reshape(len(x), -1, 2).unbind(-1)
    out = value * F.gelu(gate)
    return (out * out_scale).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE) if x.dtype == FP8_DTYPE else out.to(x.dtype)

"""Operations that a GPU runs best in one pass: each in plain torch, and by a kernel of this package where there is one.

Tests compare each kernel with the plain torch version, which also runs in float32, on MPS, or without Triton. Videos
are passed as [frames, pixels, c] where frames matter and as [pixels of all frames, c] where they do not. `plus` is
added to every pixel of a frame: [frames, c], in float32 at least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinema.engine.fast.fp8 import FP8_DTYPE, FP8_MAX, FP8_SCALE
from kinema.models import devices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from kinema.engine.fast.layers import GroupNorm, LayerNorm, Product

# Backends for attention within frames, fastest first, as measured on an H100 for SVD's shapes.
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Most frames whose attention along time fits in the registers of one program of the kernel.
MOST_FRAMES = 64
# Head dimension and minimum number of pixels for which our kernel for attention within frames is faster than cuDNN.
HEAD, MANY_PIXELS = 64, 1024
# No library is fast for wider heads; the scores of one frame at a time are stored in memory instead.
WIDEST = 256


def has_kernels(x: Tensor) -> bool:
    """Return whether this package's kernels support the tensor's device and dtype."""
    return x.is_cuda and (x.dtype == FP8_DTYPE or devices.has_kernels(x.device, x.dtype))


def multiplies(device: torch.device) -> bool:
    """Return whether this package's matmul kernels are known to be faster on the device than the libraries'."""
    return devices.is_hopper(device)


def wide(x: Tensor) -> Tensor:
    """Convert to float32 at least."""
    return x.float() if x.dtype == FP8_DTYPE else x.to(torch.promote_types(x.dtype, torch.float32))


def channel_sums(x: Tensor) -> Tensor:
    """Return the sum and the sum of squares of each frame and channel, in pieces: [frames, pieces, 2, c]."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.channel_sums(x)
    return plain_channel_sums(x)


def plain_channel_sums(x: Tensor) -> Tensor:
    """Compute `channel_sums` in one piece."""
    values = wide(x)
    return torch.stack([values.sum(1), values.square().sum(1)], 1)[:, None]


def add(x: Tensor, y: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Write x + y + bias into `out`, which may be x or y, and return its `channel_sums`; all [frames, pixels, c]."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.add(x, y, bias, out)
    return plain_add(x, y, bias, out)


def plain_add(x: Tensor, y: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Compute `add`; the sum is computed before it is rounded."""
    out.copy_(wide(x) + wide(y) + wide(bias))
    return plain_channel_sums(out)


def group_norm(
    x: Tensor,
    norm: GroupNorm,
    *,
    span: int = 1,
    sums: Tensor | None = None,
    plus: Tensor | None = None,
    silu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Return the group norm of x + plus, optionally followed by SiLU.

    Args:
        x: [frames, pixels, c].
        norm: Its groups, weight and bias.
        span: Frames that are normalised together.
        sums: `channel_sums` of x, if known.
        plus: [1 or frames / span, c], for example a convolution's bias that has not been added yet.
        silu: Whether to apply SiLU.
        out: The output, which may be x; by default a new tensor.
    """
    scales = affine(channel_sums(x) if sums is None else sums, norm, x.shape[1], span=span, plus=plus)
    return normalised(x, scales, span=span, silu=silu, out=torch.empty_like(x) if out is None else out)


Scales = tuple["Tensor", "Tensor"]


def affine(sums: Tensor, norm: GroupNorm, pixels: int, *, span: int = 1, plus: Tensor | None = None) -> Scales:
    """Return a group norm with known sums as one factor and one offset per channel.

    Args:
        sums: `channel_sums` of the frames.
        norm: Its groups, weight and bias.
        pixels: Pixels of a frame.
        span: Frames that are normalised together.
        plus: [1 or frames / span, c], added before the norm; the returned offset includes it.

    Returns:
        Factor and offset, both float32, [frames / span, c].
    """
    if has_kernels(norm.weight):
        from kinema.engine.fast import kernels

        return kernels.affine(sums, norm.groups, norm.weight, norm.bias, norm.eps, span, pixels, plus)
    return plain_affine(sums, norm, pixels, span=span, plus=plus)


def plain_affine(sums: Tensor, norm: GroupNorm, pixels: int, *, span: int = 1, plus: Tensor | None = None) -> Scales:
    """Compute `affine` in the dtype of the sums."""
    frames, channels = len(sums), sums.shape[-1]
    count = span * pixels
    total, square = sums.view(frames // span, -1, 2, channels).sum(1).unbind(1)
    added = torch.zeros_like(total) if plus is None else wide(plus).expand_as(total)
    square = square + 2 * added * total + count * added.square()
    total = total + count * added

    def mean(sums: Tensor) -> Tensor:
        """Return the mean of each group, repeated for each of its channels."""
        means = sums.view(len(sums), norm.groups, -1).mean(-1) / count
        return means.repeat_interleave(channels // norm.groups, -1)

    variance = mean(square) - mean(total).square()
    scale = (variance.clamp_min(0) + norm.eps).rsqrt() * wide(norm.weight)
    return scale, wide(norm.bias) + (added - mean(total)) * scale


def normalised(x: Tensor, scales: Scales, *, span: int = 1, silu: bool = False, out: Tensor) -> Tensor:
    """Write x, [frames, pixels, c], normalised by a norm's `affine`, into `out`, which may be x.

    If `out` is fp8, the values are multiplied by `FP8_SCALE`.
    """
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.normalised(x, *scales, span, out, FP8_SCALE, silu=silu)
    return plain_normalised(x, scales, span=span, silu=silu, out=out)


def plain_normalised(x: Tensor, scales: Scales, *, span: int = 1, silu: bool = False, out: Tensor) -> Tensor:
    """Compute `normalised` in two passes."""
    scale, shift = (each.repeat_interleave(span, 0)[:, None] for each in scales)
    value = wide(x) * scale + shift
    value = F.silu(value) if silu else value
    return out.copy_((value * FP8_SCALE).clamp(-FP8_MAX, FP8_MAX) if out.dtype == FP8_DTYPE else value)


def layer_norm(x: Tensor, norm: LayerNorm, plus: Tensor | None = None, *, bare: bool = False) -> Tensor:
    """Return the layer norm of x + plus; x: [pixels of all frames, c].

    With `bare`, the following GEMM applies the norm's weight and bias, and the result is fp8, multiplied by
    `FP8_SCALE`. Standardised values do not exceed √c, so no scale has to be determined.
    """
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, plus, spread=FP8_SCALE if bare else None)
    return plain_layer_norm(x, norm, plus, bare=bare)


def plain_layer_norm(x: Tensor, norm: LayerNorm, plus: Tensor | None = None, *, bare: bool = False) -> Tensor:
    """Compute `layer_norm` in two passes."""
    value = wide(x) if plus is None else _plus(wide(x), plus)
    if bare:
        return (F.layer_norm(value, norm.weight.shape, None, None, norm.eps) * FP8_SCALE).to(FP8_DTYPE)
    return F.layer_norm(value, norm.weight.shape, wide(norm.weight), wide(norm.bias), norm.eps).to(x.dtype)


def add_layer_norm(x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, *, bare: bool = False) -> Tensor:
    """Return the layer norm of x + y + plus; the sum is written into y."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        spread = FP8_SCALE if bare else None
        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, plus, add_to=y, spread=spread)
    return plain_add_layer_norm(x, y, norm, plus, bare=bare)


def plain_add_layer_norm(x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, *, bare: bool = False) -> Tensor:
    """Compute `add_layer_norm` in two passes."""
    y.copy_(_plus(wide(x) + wide(y), plus))
    return plain_layer_norm(y, norm, bare=bare)


def mix_layer_norm(
    x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, blend: Tensor, share: float, *, bare: bool = False
) -> Tensor:
    """Return the layer norm of x + plus; y becomes share · x + (1 − share) · y + blend."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        spread = FP8_SCALE if bare else None
        given = norm.weight, norm.bias, norm.eps, plus
        return kernels.layer_norm(x, *given, mix_into=y, blend=blend, share=share, spread=spread)
    return plain_mix_layer_norm(x, y, norm, plus, blend, share, bare=bare)


def plain_mix_layer_norm(
    x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, blend: Tensor, share: float, *, bare: bool = False
) -> Tensor:
    """Compute `mix_layer_norm` in two passes."""
    y.copy_(_plus(share * wide(x) + (1 - share) * wide(y), blend))
    return plain_layer_norm(x, norm, plus, bare=bare)


def _plus(x: Tensor, plus: Tensor) -> Tensor:
    """Add one row of `plus` per frame to x, [pixels of all frames, c]."""
    return (x.view(len(plus), -1, x.shape[1]) + plus[:, None]).view_as(x)


def in_turn(values: Tensor, gates: Tensor) -> Tensor:
    """Interleave the weights or biases of values and gates, [n, …] each, in the order of `gated`: [2n, …].

    n is a multiple of 32. Each value is next to its gate, so a thread of the matrix units has both. Four threads share
    32 outputs. Each of them gets eight outputs that are contiguous in memory, to store them at once: the order is the
    first output of each thread, then the second of each, and so on.
    """
    both = torch.stack([values, gates], 1)
    return both.view(-1, 4, 8, *both.shape[1:]).transpose(1, 2).flatten(0, 3)


def gated(x: Tensor, product: Product, factor: float = 1.0) -> Tensor:
    """Compute the GEGLU of a GEMM whose columns are in the order of `in_turn`: value · GELU(gate), [rows, out / 2].

    An fp8 GEMM returns fp8, multiplied by `factor`.
    """
    if has_kernels(x) and multiplies(x.device):
        from kinema.engine.fast import kernels

        out = x.new_empty(len(x), len(product.weight) // 2)
        assert product.bias is not None
        return kernels.gated(x, product.weight, product.bias, product.scale, out, factor)
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.geglu(plain_product(x, product, x.dtype))
    return plain_gated(x, product, factor)


def plain_gated(x: Tensor, product: Product, factor: float = 1.0) -> Tensor:
    """Compute `gated` in three passes."""
    both = plain_product(x, product, wide(x).dtype).view(len(x), -1, 8, 4, 2).transpose(2, 3)
    value, gate = both.reshape(len(x), -1, 2).unbind(-1)
    made = value * F.gelu(gate)
    return (made * factor).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE) if x.dtype == FP8_DTYPE else made.to(x.dtype)


def product(x: Tensor, by: Product, dtype: torch.dtype) -> Tensor:
    """Compute a GEMM, [rows, in] → [rows, out], with a result of the given dtype."""
    if x.dtype == FP8_DTYPE and has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.product(x, by.weight, by.bias, by.scale, x.new_empty(len(x), len(by.weight), dtype=dtype))
    return plain_product(x, by, dtype)


def plain_product(x: Tensor, by: Product, dtype: torch.dtype) -> Tensor:
    """Compute `product` with torch's matmul."""
    if x.dtype == dtype:
        return F.linear(x, by.weight, by.bias)
    made = wide(x) @ wide(by.weight).t()
    made = made if by.scale is None else made * by.scale
    return (made if by.bias is None else made + by.bias).to(dtype)


def add_product(out: Tensor, x: Tensor, by: Product) -> Tensor:
    """Add the result of a GEMM without bias to `out`, [rows, out], in place."""
    if x.dtype == FP8_DTYPE and has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.product(x, by.weight, None, by.scale, out, add=True)
    if x.dtype == out.dtype:
        return out.addmm_(x, by.weight.t())
    return out.add_(plain_product(x, by, out.dtype))


def activated_convolved(
    parts: Sequence[Tensor],
    scales: Scales,
    by: Product,
    dtype: torch.dtype,
    *,
    into: Tensor | None = None,
    kept: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a 3×3 convolution of images after a group norm and SiLU.

    Args:
        parts: [images, h, w, c] each, concatenated along the channels.
        scales: The norm's `affine` for the channels of all parts.
        by: The convolution's weight, [out, 3 · 3 · total channels].
        dtype: Of the result.
        into: A tensor that may be overwritten with the convolution's input, [images, h, w, total channels].
        kept: Added to the result, [images, h, w, out]; requires `bias`.
        bias: [out], added with `kept`.
        out: The output, which may be `kept`; by default a new tensor.

    Returns:
        The result and its `channel_sums`.
    """
    if has_kernels(parts[0]) and multiplies(parts[0].device):
        from kinema.engine.fast import kernels

        if kernels.activated_convolves(parts, by.weight):
            out = parts[0].new_empty(*parts[0].shape[:3], len(by.weight), dtype=dtype) if out is None else out
            return out, kernels.activated_convolved(parts, scales, by.weight, kept, bias, out)
    return plain_activated_convolved(parts, scales, by, dtype, into=into, kept=kept, bias=bias, out=out)


def plain_activated_convolved(
    parts: Sequence[Tensor],
    scales: Scales,
    by: Product,
    dtype: torch.dtype,
    *,
    into: Tensor | None = None,
    kept: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute norm and SiLU first, then the convolution."""
    widths = [part.shape[-1] for part in parts]
    if into is None or into.dtype != by.weight.dtype:
        into = parts[0].new_empty(*parts[0].shape[:3], sum(widths), dtype=by.weight.dtype)
    split = (torch.split(each, widths, -1) for each in (*scales, into))
    for part, scale, shift, place in zip(parts, *split, strict=True):
        normalised(part.flatten(1, 2), (scale, shift), silu=True, out=place.flatten(1, 2))
    return convolved(into, by, dtype, kept=kept, bias=bias, out=out)


def convolved(
    x: Tensor,
    by: Product,
    dtype: torch.dtype,
    *,
    kept: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a 3×3 convolution.

    Args:
        x: [images, h, w, c].
        by: Its weight, [out, 3 · 3 · c].
        dtype: Of the result.
        kept: Added to the result, [images, h, w, out]; requires `bias`.
        bias: [out], added with `kept`.
        out: The output, which may be `kept`; by default a new tensor.

    Returns:
        The result and its `channel_sums`.
    """
    if has_kernels(x) and multiplies(x.device):
        from kinema.engine.fast import kernels

        if kernels.convolves(x, by.weight):
            out = x.new_empty(*x.shape[:3], len(by.weight), dtype=dtype) if out is None else out
            return out, kernels.convolved(x, by.weight, by.scale, kept, bias, out)
    return plain_convolved(x, by, dtype, kept=kept, bias=bias, out=out)


def plain_convolved(
    x: Tensor,
    by: Product,
    dtype: torch.dtype,
    *,
    kept: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `convolved` with torch's convolution and a second pass."""
    made = _by_torch(x, by, (3, 3)).to(dtype)
    rows = made.flatten(1, 2)
    if kept is None or bias is None:
        return (made if out is None else out.copy_(made)), channel_sums(rows)
    out = made if out is None else out
    return out, add(rows, kept.flatten(1, 2), bias, out.flatten(1, 2))


def _by_torch(x: Tensor, by: Product, kernel: tuple[int, int]) -> Tensor:
    """Compute a convolution of [n, h, w, c] that keeps h and w; input and result have channels last in memory."""
    seen, weight = (wide(x), wide(by.weight)) if x.dtype == FP8_DTYPE else (x, by.weight)
    weight = weight.view(len(weight), *kernel, -1).permute(0, 3, 1, 2)
    made = F.conv2d(seen.permute(0, 3, 1, 2), weight, None, 1, tuple(size // 2 for size in kernel))
    made = made.permute(0, 2, 3, 1).contiguous()
    return made if by.scale is None else made * by.scale


def along_time(
    x: Tensor,
    by: Product,
    span: int,
    dtype: torch.dtype,
    *,
    kept: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a convolution of kernel 3 along time.

    Args:
        x: [frames of all videos, pixels, c].
        by: Its weight, [out, 3 · c].
        span: Frames per video.
        dtype: Of the result.
        kept: Added to the result, [frames of all videos, pixels, out]; requires `bias`.
        bias: [out], added with `kept`.
        out: The output, which may be `kept`; by default a new tensor.

    Returns:
        The result and its `channel_sums`: per frame if `kept` is given, else per video.
    """
    if has_kernels(x) and multiplies(x.device):
        from kinema.engine.fast import kernels

        out = x.new_empty(*x.shape[:2], len(by.weight), dtype=dtype) if out is None else out
        return out, kernels.along_time(x, by.weight, by.scale, span, kept, bias, out)
    return plain_along_time(x, by, span, dtype, kept=kept, bias=bias, out=out)


def plain_along_time(
    x: Tensor,
    by: Product,
    span: int,
    dtype: torch.dtype,
    *,
    kept: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `along_time` with torch's convolution and a second pass."""
    made = _by_torch(x.view(-1, span, *x.shape[1:]), by, (3, 1)).to(dtype)
    if kept is None or bias is None:
        made = made.flatten(0, 1) if out is None else out.copy_(made.flatten(0, 1))
        return made, channel_sums(made.reshape(len(x) // span, -1, made.shape[-1]))
    made = made.flatten(0, 1)
    out = made if out is None else out
    return out, add(made, kept, bias, out)


def time_attention(qkv: Tensor) -> Tensor:
    """Compute attention of each pixel to its position in all frames.

    Args:
        qkv: [b, f, pixels, 3, heads, d].

    Returns:
        [b, f, pixels, heads · d].
    """
    depth = qkv.shape[-1]
    if has_kernels(qkv) and qkv.shape[1] <= MOST_FRAMES and 16 <= depth <= 128 and depth & (depth - 1) == 0:
        from kinema.engine.fast import kernels

        return kernels.time_attention(qkv)
    return plain_time_attention(qkv)


def plain_time_attention(qkv: Tensor) -> Tensor:
    """Compute `time_attention` with torch's attention, which copies its input into another layout."""
    batch, frames, pixels, _, heads, depth = qkv.shape
    q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).reshape(3, batch * pixels, heads, frames, depth)
    seen = F.scaled_dot_product_attention(q, k, v).reshape(batch, pixels, heads, frames, depth)
    return seen.permute(0, 3, 1, 2, 4).reshape(batch, frames, pixels, heads * depth)


def frame_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention within frames: [frames, heads, pixels, d] each → [frames, pixels, heads · d]."""
    frames, heads, pixels, depth = q.shape
    if q.is_cuda and heads == 1 and depth > WIDEST and q.dtype.itemsize == 2:
        return torch.stack([_written_out(*each) for each in zip(q[:, 0], k[:, 0], v[:, 0], strict=True)])
    if depth == HEAD and pixels >= MANY_PIXELS and has_kernels(q) and multiplies(q.device):
        from kinema.engine.fast import kernels

        if kernels.HAS_GLUON:
            return kernels.frame_attention(q, k, v)
    with sdpa_kernel(BACKENDS, set_priority=True):
        seen = F.scaled_dot_product_attention(q, k, v)
    return seen.transpose(1, 2).reshape(frames, pixels, heads * depth)


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention of one frame and head, [pixels, d] each, by two matmuls, with scores in float32."""
    return softmax(torch.mm(q, k.t(), out_dtype=torch.float32), q.shape[-1] ** -0.5, v.dtype) @ v


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Compute the softmax of each row of scale · scores, float32 [rows, cols], in the given dtype."""
    if devices.has_kernels(scores.device, dtype):
        from kinema.engine.fast import kernels

        return kernels.softmax(scores, scale, scores.new_empty(scores.shape, dtype=dtype))
    return plain_softmax(scores, scale, dtype)


def plain_softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Compute `softmax` in three passes."""
    return torch.softmax(scores * scale, -1).to(dtype)

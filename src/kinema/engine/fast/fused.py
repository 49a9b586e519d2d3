"""What a GPU does best in one pass: each function in plain torch, and by a kernel of ours where there is one.

Plain torch is what a kernel is held to by its test, and what runs in float32, on MPS, or where Triton is missing.
Clips come as [frames, pixels, c] where frames matter and as [pixels of all frames, c] where they do not; `plus` is
what is added to every pixel of a frame, [frames, c], in float32 at least.
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

# Attention within frames, best first: as measured on an H100 for SVD's shapes.
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Frames whose attention along time one program of the kernel holds in its registers.
MOST_FRAMES = 64
# The width of a head, and the least pixels of a frame, that our kernel attends within frames more quickly than cuDNN.
HEAD, MANY_PIXELS = 64, 1024
# Heads wider than this no library attends to quickly; the scores of one frame at a time are written out instead.
WIDEST = 256


def has_kernels(x: Tensor) -> bool:
    """Whether our kernels compute with this tensor."""
    return x.is_cuda and (x.dtype == FP8_DTYPE or devices.has_kernels(x.device, x.dtype))


def multiplies(device: torch.device) -> bool:
    """Whether those of our kernels that multiply matrices are known to be quicker there than the libraries'."""
    return devices.is_hopper(device)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.float() if x.dtype == FP8_DTYPE else x.to(torch.promote_types(x.dtype, torch.float32))


def channel_sums(x: Tensor) -> Tensor:
    """Of each frame and channel the sum and the sum of squares, in pieces: [frames, pieces, 2, c]."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.channel_sums(x)
    return plain_channel_sums(x)


def plain_channel_sums(x: Tensor) -> Tensor:
    """In one piece."""
    values = wide(x)
    return torch.stack([values.sum(1), values.square().sum(1)], 1)[:, None]


def add(x: Tensor, y: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Write x + y + bias into `out`, which may be x or y, and give its `channel_sums`; all [frames, pixels, c]."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.add(x, y, bias, out)
    return plain_add(x, y, bias, out)


def plain_add(x: Tensor, y: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Summed before it is rounded."""
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
    """Group norm of x + plus, and SiLU if asked for.

    Args:
        x: [frames, pixels, c].
        norm: Its groups, weight and bias.
        span: Frames that are normalised together.
        sums: `channel_sums` of x, where they are known.
        plus: [1 or frames / span, c], as a convolution's bias that has not been added yet.
        silu: Whether the result is activated.
        out: Where the result goes, which may be x; else a new tensor.
    """
    scales = affine(channel_sums(x) if sums is None else sums, norm, x.shape[1], span=span, plus=plus)
    return normalised(x, scales, span=span, silu=silu, out=torch.empty_like(x) if out is None else out)


Scales = tuple["Tensor", "Tensor"]


def affine(sums: Tensor, norm: GroupNorm, pixels: int, *, span: int = 1, plus: Tensor | None = None) -> Scales:
    """What a group norm comes to once sums are known: a factor for each channel, and what is added after it.

    Args:
        sums: `channel_sums` of the frames.
        norm: Its groups, weight and bias.
        pixels: Of a frame.
        span: Frames that are normalised together.
        plus: [1 or frames / span, c], to be added before; the second of the result has it in.

    Returns:
        Both float32, [frames / span, c].
    """
    if has_kernels(norm.weight):
        from kinema.engine.fast import kernels

        return kernels.affine(sums, norm.groups, norm.weight, norm.bias, norm.eps, span, pixels, plus)
    return plain_affine(sums, norm, pixels, span=span, plus=plus)


def plain_affine(sums: Tensor, norm: GroupNorm, pixels: int, *, span: int = 1, plus: Tensor | None = None) -> Scales:
    """In the arithmetic of the sums."""
    frames, channels = len(sums), sums.shape[-1]
    count = span * pixels
    total, square = sums.view(frames // span, -1, 2, channels).sum(1).unbind(1)
    added = torch.zeros_like(total) if plus is None else wide(plus).expand_as(total)
    square = square + 2 * added * total + count * added.square()
    total = total + count * added

    def mean(sums: Tensor) -> Tensor:
        """Of each group, given to each of its channels."""
        means = sums.view(len(sums), norm.groups, -1).mean(-1) / count
        return means.repeat_interleave(channels // norm.groups, -1)

    variance = mean(square) - mean(total).square()
    scale = (variance.clamp_min(0) + norm.eps).rsqrt() * wide(norm.weight)
    return scale, wide(norm.bias) + (added - mean(total)) * scale


def normalised(x: Tensor, scales: Scales, *, span: int = 1, silu: bool = False, out: Tensor) -> Tensor:
    """x, [frames, pixels, c], by a norm's `affine`, into `out`, which may be x.

    If `out` is of numbers of one byte, they are multiplied by `FP8_SCALE`.
    """
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.normalised(x, *scales, span, out, FP8_SCALE, silu=silu)
    return plain_normalised(x, scales, span=span, silu=silu, out=out)


def plain_normalised(x: Tensor, scales: Scales, *, span: int = 1, silu: bool = False, out: Tensor) -> Tensor:
    """In two passes."""
    scale, shift = (each.repeat_interleave(span, 0)[:, None] for each in scales)
    value = wide(x) * scale + shift
    value = F.silu(value) if silu else value
    return out.copy_((value * FP8_SCALE).clamp(-FP8_MAX, FP8_MAX) if out.dtype == FP8_DTYPE else value)


def layer_norm(x: Tensor, norm: LayerNorm, plus: Tensor | None = None, *, bare: bool = False) -> Tensor:
    """Layer norm of x + plus; x: [pixels of all frames, c].

    If it is to be `bare`, its weight and bias are left to the product that follows, and the result is in numbers of one
    byte, multiplied by `FP8_SCALE`: standardised, nothing exceeds √c, so that no scale need be found.
    """
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, plus, spread=FP8_SCALE if bare else None)
    return plain_layer_norm(x, norm, plus, bare=bare)


def plain_layer_norm(x: Tensor, norm: LayerNorm, plus: Tensor | None = None, *, bare: bool = False) -> Tensor:
    """In two passes."""
    value = wide(x) if plus is None else _plus(wide(x), plus)
    if bare:
        return (F.layer_norm(value, norm.weight.shape, None, None, norm.eps) * FP8_SCALE).to(FP8_DTYPE)
    return F.layer_norm(value, norm.weight.shape, wide(norm.weight), wide(norm.bias), norm.eps).to(x.dtype)


def add_layer_norm(x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, *, bare: bool = False) -> Tensor:
    """Layer norm of x + y + plus, which goes into y."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        spread = FP8_SCALE if bare else None
        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, plus, add_to=y, spread=spread)
    return plain_add_layer_norm(x, y, norm, plus, bare=bare)


def plain_add_layer_norm(x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, *, bare: bool = False) -> Tensor:
    """In two passes."""
    y.copy_(_plus(wide(x) + wide(y), plus))
    return plain_layer_norm(y, norm, bare=bare)


def mix_layer_norm(
    x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, blend: Tensor, share: float, *, bare: bool = False
) -> Tensor:
    """Layer norm of x + plus; y becomes share · x + (1 − share) · y + blend."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        spread = FP8_SCALE if bare else None
        given = norm.weight, norm.bias, norm.eps, plus
        return kernels.layer_norm(x, *given, mix_into=y, blend=blend, share=share, spread=spread)
    return plain_mix_layer_norm(x, y, norm, plus, blend, share, bare=bare)


def plain_mix_layer_norm(
    x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, blend: Tensor, share: float, *, bare: bool = False
) -> Tensor:
    """In two passes."""
    y.copy_(_plus(share * wide(x) + (1 - share) * wide(y), blend))
    return plain_layer_norm(x, norm, plus, bare=bare)


def _plus(x: Tensor, plus: Tensor) -> Tensor:
    """x: [pixels of all frames, c] and what each frame gets."""
    return (x.view(len(plus), -1, x.shape[1]) + plus[:, None]).view_as(x)


def in_turn(values: Tensor, gates: Tensor) -> Tensor:
    """What makes values and what makes their gates, [n, …] each, n a multiple of 32, in the order of `gated`: [2n, …].

    Each value is beside its gate, as a thread of the matrix units has them. And of 32 outputs, which four threads have,
    eight that lie together are one's, to be stored at once: after the first of each come the second, and so on.
    """
    both = torch.stack([values, gates], 1)
    return both.view(-1, 4, 8, *both.shape[1:]).transpose(1, 2).flatten(0, 3)


def gated(x: Tensor, product: Product, factor: float = 1.0) -> Tensor:
    """GEGLU of a product whose columns are `in_turn`: value · GELU(gate), [rows, out / 2].

    A product in numbers of one byte gives such numbers, multiplied by `factor`.
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
    """In three passes."""
    both = plain_product(x, product, wide(x).dtype).view(len(x), -1, 8, 4, 2).transpose(2, 3)
    value, gate = both.reshape(len(x), -1, 2).unbind(-1)
    made = value * F.gelu(gate)
    return (made * factor).clamp(-FP8_MAX, FP8_MAX).to(FP8_DTYPE) if x.dtype == FP8_DTYPE else made.to(x.dtype)


def product(x: Tensor, by: Product, dtype: torch.dtype) -> Tensor:
    """[rows, in] → [rows, out] in an arithmetic."""
    if x.dtype == FP8_DTYPE and has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.product(x, by.weight, by.bias, by.scale, x.new_empty(len(x), len(by.weight), dtype=dtype))
    return plain_product(x, by, dtype)


def plain_product(x: Tensor, by: Product, dtype: torch.dtype) -> Tensor:
    """By torch's own."""
    if x.dtype == dtype:
        return F.linear(x, by.weight, by.bias)
    made = wide(x) @ wide(by.weight).t()
    made = made if by.scale is None else made * by.scale
    return (made if by.bias is None else made + by.bias).to(dtype)


def add_product(out: Tensor, x: Tensor, by: Product) -> Tensor:
    """Add a product without bias to `out`, [rows, out], in place."""
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
    """A convolution of kernel 3×3 of what a group norm and SiLU make of pictures.

    Args:
        parts: [pictures, h, w, c] each, whose channels come one after the other.
        scales: The norm's `affine`, of all of them.
        by: The convolution's weight, [out, 3 · 3 · c of all].
        dtype: Of the result.
        into: A tensor that may be overwritten with what is convolved, [pictures, h, w, c of all].
        kept: What is added to the result, [pictures, h, w, out], and with it
        bias: [out].
        out: Where the result goes, which may be `kept`; else a new tensor.

    Returns:
        The result, and its `channel_sums`.
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
    """One after the other."""
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
    """A convolution of kernel 3×3.

    Args:
        x: [pictures, h, w, c].
        by: Its weight, [out, 3 · 3 · c].
        dtype: Of the result.
        kept: What is added to the result, [pictures, h, w, out], and with it
        bias: [out].
        out: Where the result goes, which may be `kept`; else a new tensor.

    Returns:
        The result, and its `channel_sums`.
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
    """By torch's own, and then another pass."""
    made = _by_torch(x, by, (3, 3)).to(dtype)
    rows = made.flatten(1, 2)
    if kept is None or bias is None:
        return (made if out is None else out.copy_(made)), channel_sums(rows)
    out = made if out is None else out
    return out, add(rows, kept.flatten(1, 2), bias, out.flatten(1, 2))


def _by_torch(x: Tensor, by: Product, kernel: tuple[int, int]) -> Tensor:
    """A convolution of [n, h, w, c] that keeps their size, and whose result has channels last in memory too."""
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
    """A convolution along time of kernel 3.

    Args:
        x: [frames of all clips, pixels, c].
        by: Its weight, [out, 3 · c].
        span: Frames of a clip.
        dtype: Of the result.
        kept: What is added to the result, [frames of all clips, pixels, out], and with it
        bias: [out].
        out: Where the result goes, which may be `kept`; else a new tensor.

    Returns:
        The result, and its `channel_sums`: of its frames where something is added, else of its clips.
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
    """By torch's own, and then another pass."""
    made = _by_torch(x.view(-1, span, *x.shape[1:]), by, (3, 1)).to(dtype)
    if kept is None or bias is None:
        made = made.flatten(0, 1) if out is None else out.copy_(made.flatten(0, 1))
        return made, channel_sums(made.reshape(len(x) // span, -1, made.shape[-1]))
    made = made.flatten(0, 1)
    out = made if out is None else out
    return out, add(made, kept, bias, out)


def time_attention(qkv: Tensor) -> Tensor:
    """Attention of each pixel to its place in all frames: [b, f, pixels, 3, heads, d] → [b, f, pixels, heads · d]."""
    depth = qkv.shape[-1]
    if has_kernels(qkv) and qkv.shape[1] <= MOST_FRAMES and 16 <= depth <= 128 and depth & (depth - 1) == 0:
        from kinema.engine.fast import kernels

        return kernels.time_attention(qkv)
    return plain_time_attention(qkv)


def plain_time_attention(qkv: Tensor) -> Tensor:
    """By torch's attention, which copies what it is given into its own layout."""
    batch, frames, pixels, _, heads, depth = qkv.shape
    q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).reshape(3, batch * pixels, heads, frames, depth)
    seen = F.scaled_dot_product_attention(q, k, v).reshape(batch, pixels, heads, frames, depth)
    return seen.permute(0, 3, 1, 2, 4).reshape(batch, frames, pixels, heads * depth)


def frame_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention within frames: each [frames, heads, pixels, d] → [frames, pixels, heads · d]."""
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
    """Attention of one frame and head, [pixels, d] each, by two products, with scores in float32."""
    return softmax(torch.mm(q, k.t(), out_dtype=torch.float32), q.shape[-1] ** -0.5, v.dtype) @ v


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Of each row of scale · scores, float32 [rows, cols], in an arithmetic."""
    if devices.has_kernels(scores.device, dtype):
        from kinema.engine.fast import kernels

        return kernels.softmax(scores, scale, scores.new_empty(scores.shape, dtype=dtype))
    return plain_softmax(scores, scale, dtype)


def plain_softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """In three passes."""
    return torch.softmax(scores * scale, -1).to(dtype)

"""What a GPU does best in one pass: each function in plain torch, and by a kernel of ours where there is one.

Plain torch is what a kernel is held to by its test, and what runs in float32, on MPS, or where Triton is missing.
Clips come as [frames, pixels, c] where frames matter and as [pixels of all frames, c] where they do not; `plus` is
what is added to every pixel of a frame, [frames, c], in float32 at least.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.engine.fast.layers import GroupNorm, LayerNorm, Linear

# Attention within frames, best first: as measured on an H100 for SVD's shapes.
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Frames whose attention along time one program of the kernel holds in its registers.
MOST_FRAMES = 64
# Heads wider than this no library attends to quickly; the scores of one frame at a time are written out instead.
WIDEST = 256


@cache
def _triton() -> bool:
    return find_spec("triton") is not None


def has_kernels(x: Tensor) -> bool:
    """Whether our kernels compute with this tensor."""
    return x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) and _triton()


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
    if sums is None:
        sums = channel_sums(x)
    out = torch.empty_like(x) if out is None else out
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.group_norm(x, sums, norm.groups, norm.weight, norm.bias, norm.eps, span, plus, out, silu=silu)
    return plain_group_norm(x, norm, span, sums, plus, out, silu=silu)


def plain_group_norm(
    x: Tensor, norm: GroupNorm, span: int, sums: Tensor, plus: Tensor | None, out: Tensor, *, silu: bool
) -> Tensor:
    """By the sums."""
    frames, pixels, channels = x.shape
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
    shift = wide(norm.bias) + (added - mean(total)) * scale
    scale, shift = (each.repeat_interleave(span, 0)[:, None] for each in (scale, shift))
    value = wide(x) * scale + shift
    return out.copy_(F.silu(value) if silu else value)


def layer_norm(x: Tensor, norm: LayerNorm, plus: Tensor | None = None) -> Tensor:
    """Layer norm of x + plus; x: [pixels of all frames, c]."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, plus)
    return plain_layer_norm(x, norm, plus)


def plain_layer_norm(x: Tensor, norm: LayerNorm, plus: Tensor | None = None) -> Tensor:
    """Rounded once."""
    value = wide(x) if plus is None else _plus(wide(x), plus)
    return F.layer_norm(value, norm.weight.shape, wide(norm.weight), wide(norm.bias), norm.eps).to(x.dtype)


def add_layer_norm(x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor) -> Tensor:
    """Layer norm of x + y + plus, which y becomes."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, plus, add_to=y)
    return plain_add_layer_norm(x, y, norm, plus)


def plain_add_layer_norm(x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor) -> Tensor:
    """In two passes."""
    y.copy_(_plus(wide(x) + wide(y), plus))
    return plain_layer_norm(y, norm)


def mix_layer_norm(x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, blend: Tensor, share: float) -> Tensor:
    """Layer norm of x + plus; y becomes share · x + (1 − share) · y + blend."""
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, plus, mix_into=y, blend=blend, share=share)
    return plain_mix_layer_norm(x, y, norm, plus, blend, share)


def plain_mix_layer_norm(x: Tensor, y: Tensor, norm: LayerNorm, plus: Tensor, blend: Tensor, share: float) -> Tensor:
    """In two passes."""
    y.copy_(_plus(share * wide(x) + (1 - share) * wide(y), blend))
    return plain_layer_norm(x, norm, plus)


def _plus(x: Tensor, plus: Tensor) -> Tensor:
    """x: [pixels of all frames, c] and what each frame gets."""
    return (x.view(len(plus), -1, x.shape[1]) + plus[:, None]).view_as(x)


def geglu(x: Tensor, linear: Linear) -> Tensor:
    """[rows, c] → the first half of the product's columns, times the GELU of the second half."""
    product = linear(x)
    if has_kernels(x):
        from kinema.engine.fast import kernels

        return kernels.geglu(product)
    return plain_geglu(product)


def plain_geglu(product: Tensor) -> Tensor:
    """[rows, 2n] → [rows, n]."""
    value, gate = product.chunk(2, -1)
    return value * F.gelu(gate)


def geglu_in_one(x: Tensor, linear: Linear) -> Tensor:
    """The same as `geglu` by one kernel, in which the wide product never reaches memory."""
    from kinema.engine.fast import kernels

    return kernels.geglu_linear(x, linear.weight.t(), linear.bias)


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
    with sdpa_kernel(BACKENDS, set_priority=True):
        seen = F.scaled_dot_product_attention(q, k, v)
    return seen.transpose(1, 2).reshape(frames, pixels, heads * depth)


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one frame and head, [pixels, d] each, by two products, with scores in float32."""
    scores = torch.mm(q, k.t(), out_dtype=torch.float32)
    return torch.softmax(scores.mul_(q.shape[-1] ** -0.5), -1, dtype=torch.float32).to(v.dtype) @ v

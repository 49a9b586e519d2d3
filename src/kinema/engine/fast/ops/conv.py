"""Convolutions: 3×3 within frames, also fused with the norm before them; of kernel 3 along time; and upsampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from kinema.engine.fast.fp8 import FP8_DTYPE
from kinema.engine.fast.hardware import capabilities, use_matmul_kernel
from kinema.engine.fast.layout import at_least_float32
from kinema.engine.fast.ops.norm import Scales, add, apply_group_norm, channel_sums
from kinema.engine.fast.tuning import tuning, use_winograd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from kinema.engine.fast.weights import Conv, PackedWeight, Upsample

Operation = Literal["norm_silu_conv3x3", "conv3x3", "temporal_conv"]
Implementation = Literal["winograd", "hopper", "triton", "torch"]


def choose_conv(
    operation: Operation, inputs: Sequence[Tensor], weight: Tensor, *, residual: bool = False
) -> Implementation:
    """Return the fastest implementation of a convolution.

    Args:
        operation: Of this module. "winograd" computes only a convolution with its norm.
        inputs: [images, h, w, c] each, concatenated along the channels, of videos [videos, frames, pixels, c] for a
            temporal convolution.
        weight: [out, 3 · 3 · total channels], or [out, 3 · channels] along time.
        residual: Whether a residual is added.
    """
    x, settings = inputs[0], tuning()
    if not use_matmul_kernel(operation, x.device, x.dtype):
        return "torch"
    if operation == "norm_silu_conv3x3":
        many = x[..., 0].numel() >= settings.winograd_pixels
        return "winograd" if many and use_winograd(weight, sum(each.shape[-1] for each in inputs)) else "torch"
    channels, width = x.shape[3], x.shape[2]
    # No other implementation of fp8 convolutions is fast.
    if operation == "temporal_conv":
        least = settings.hopper_temporal_residual_channels if residual else settings.hopper_temporal_channels
        wanted, otherwise = x.dtype == FP8_DTYPE or channels >= least, "triton"
    else:
        wanted = x.dtype == FP8_DTYPE or (len(weight) % 64 == 0 and width >= settings.hopper_conv_width)
        otherwise = "torch"
    fits = channels * x.itemsize % 16 == 0 and capabilities(x.device).gluon
    return "hopper" if wanted and fits else otherwise  # type: ignore[return-value] # one of the literals


def conv2d(x: Tensor, conv: Conv, bias: Tensor | None = None) -> Tensor:
    """Compute a convolution by torch: [n, in, h, w] → [n, out, h', w'].

    Args:
        x: The input.
        conv: Its weights.
        bias: Replaces the layer's own bias: [1, out], or [n, out], one row per image.
    """
    if bias is None:
        bias = conv.bias[None]
    if len(bias) == 1:
        return F.conv2d(x, conv.weight, bias[0], conv.stride, conv.padding)
    return conv2d_without_bias(x, conv).add_(bias[..., None, None])


def conv2d_without_bias(x: Tensor, conv: Conv) -> Tensor:
    """Compute a convolution without its bias; the caller adds the bias later."""
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding)


def pad_channels(x: Tensor, conv: Conv) -> Tensor:
    """Return x, [n, c, h, w], with zeros in the channels that `Conv.aligned` added, channels last in memory."""
    x = F.pad(x, (0, 0, 0, 0, 0, conv.weight.shape[1] - x.shape[1]))
    return x.contiguous(memory_format=torch.channels_last)


def upsample_conv(x: Tensor, upsample: Upsample, size: tuple[int, int] | None = None, *, bias: bool = True) -> Tensor:
    """Upsample [n, c, h, w] to [n, c, *size] and convolve.

    Args:
        x: The input.
        upsample: Its weights.
        size: 2h × 2w by default; a side of odd size is one less.
        bias: Whether to add the bias; otherwise the caller adds it later.
    """
    doubled, added = (2 * x.shape[2], 2 * x.shape[3]), upsample.conv.bias if bias else None
    if size in (None, doubled) and tuning().transposed_upsample:
        return F.conv_transpose2d(x, upsample.transposed, added, stride=2, padding=1)
    x = F.interpolate(x, size or doubled, mode="nearest")
    return F.conv2d(x, upsample.conv.weight, added, padding=1)


def norm_silu_conv3x3(
    inputs: Sequence[Tensor],
    scales: Scales,
    packed: PackedWeight,
    dtype: torch.dtype,
    *,
    workspace: Tensor | None = None,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a 3×3 convolution of images after a group norm and SiLU.

    Args:
        inputs: [images, h, w, c] each, concatenated along the channels.
        scales: The norm's `group_norm_scales` for the channels of all inputs.
        packed: The convolution's weight, [out, 3 · 3 · total channels].
        dtype: Of the result.
        workspace: A tensor that may be overwritten with the convolution's input, [images, h, w, total channels].
        residual: Added to the result, [images, h, w, out]; requires `bias`.
        bias: [out], added with `residual`.
        out: The output, which may be `residual`; by default a new tensor.

    Returns:
        The result and its `channel_sums`.
    """
    if choose_conv("norm_silu_conv3x3", inputs, packed.weight) == "winograd":
        from kinema.engine.fast.kernels import winograd

        if out is None:
            out = inputs[0].new_empty(*inputs[0].shape[:3], len(packed.weight), dtype=dtype)
        sums = winograd.norm_silu_conv3x3(inputs, scales, packed.weight, residual, bias, out)
        return out, _condensed(sums)
    widths = [x.shape[-1] for x in inputs]
    if workspace is None or workspace.dtype != packed.weight.dtype:
        workspace = inputs[0].new_empty(*inputs[0].shape[:3], sum(widths), dtype=packed.weight.dtype)
    split = (torch.split(each, widths, -1) for each in (*scales, workspace))
    for x, scale, shift, part in zip(inputs, *split, strict=True):
        apply_group_norm(x.flatten(1, 2), (scale, shift), silu=True, out=part.flatten(1, 2))
    return conv3x3(workspace, packed, dtype, residual=residual, bias=bias, out=out)


def conv3x3(
    x: Tensor,
    packed: PackedWeight,
    dtype: torch.dtype,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a 3×3 convolution.

    Args:
        x: [images, h, w, c].
        packed: Its weight, [out, 3 · 3 · c].
        dtype: Of the result.
        residual: Added to the result, [images, h, w, out]; requires `bias`.
        bias: [out], added with `residual`.
        out: The output, which may be `residual`; by default a new tensor.

    Returns:
        The result and its `channel_sums`.
    """
    if choose_conv("conv3x3", [x], packed.weight) == "hopper":
        from kinema.engine.fast.kernels import hopper_conv

        out = x.new_empty(*x.shape[:3], len(packed.weight), dtype=dtype) if out is None else out
        return out, _condensed(hopper_conv.conv(x, packed.weight, packed.scale, residual, bias, out))
    return reference_conv3x3(x, packed, dtype, residual=residual, bias=bias, out=out)


def reference_conv3x3(
    x: Tensor,
    packed: PackedWeight,
    dtype: torch.dtype,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `conv3x3` with torch's convolution and a second pass."""
    convolved = _torch_conv(x, packed, (3, 3)).to(dtype)
    rows = convolved.flatten(1, 2)
    if residual is None or bias is None:
        return (convolved if out is None else out.copy_(convolved)), channel_sums(rows)
    out = convolved if out is None else out
    return out, add(rows, residual.flatten(1, 2), bias, out.flatten(1, 2))


def _torch_conv(x: Tensor, packed: PackedWeight, kernel: tuple[int, int]) -> Tensor:
    """Compute a convolution of [n, h, w, c] that keeps h and w; input and result have channels last in memory."""
    weight = packed.weight
    if x.dtype == FP8_DTYPE:
        x, weight = at_least_float32(x), at_least_float32(weight)
    weight = weight.view(len(weight), *kernel, -1).permute(0, 3, 1, 2)
    out = F.conv2d(x.permute(0, 3, 1, 2), weight, None, 1, tuple(size // 2 for size in kernel))
    out = out.permute(0, 2, 3, 1).contiguous()
    return out if packed.scale is None else out * packed.scale


def temporal_conv(
    x: Tensor,
    packed: PackedWeight,
    span: int,
    dtype: torch.dtype,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute a convolution of kernel 3 along time.

    Args:
        x: [frames of all videos, pixels, c].
        packed: Its weight, [out, 3 · c].
        span: Frames per video.
        dtype: Of the result.
        residual: Added to the result, [frames of all videos, pixels, out]; requires `bias`.
        bias: [out], added with `residual`.
        out: The output, which may be `residual`; by default a new tensor.

    Returns:
        The result and its `channel_sums`: per frame if `residual` is given, else per video.
    """
    videos = _by_video(x, span)
    chosen = choose_conv("temporal_conv", [videos], packed.weight, residual=residual is not None)
    if chosen == "torch":
        return reference_temporal_conv(x, packed, span, dtype, residual=residual, bias=bias, out=out)
    out = x.new_empty(*x.shape[:2], len(packed.weight), dtype=dtype) if out is None else out
    if chosen == "hopper":
        from kinema.engine.fast.kernels import hopper_conv

        added = None if residual is None else _by_video(residual, span)
        sums = hopper_conv.conv(videos, packed.weight, packed.scale, added, bias, _by_video(out, span))
    else:
        from kinema.engine.fast.kernels import triton_temporal

        sums = triton_temporal.temporal_conv(x, packed.weight, packed.scale, span, residual, bias, out)
        sums = sums if residual is not None else sums.view(len(x) // span, -1, 2, sums.shape[-1])
    return out, _condensed(sums)


def reference_temporal_conv(
    x: Tensor,
    packed: PackedWeight,
    span: int,
    dtype: torch.dtype,
    *,
    residual: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `temporal_conv` with torch's convolution and a second pass."""
    convolved = _torch_conv(_by_video(x, span), packed, (3, 1)).to(dtype).flatten(0, 1)
    if residual is None or bias is None:
        convolved = convolved if out is None else out.copy_(convolved)
        return convolved, channel_sums(convolved.reshape(len(x) // span, -1, convolved.shape[-1]))
    out = convolved if out is None else out
    return out, add(convolved, residual, bias, out)


def _by_video(x: Tensor, span: int) -> Tensor:
    """Return a view of [frames, pixels, c] as [videos, span, pixels, c]."""
    return x.view(-1, span, *x.shape[1:])


def _condensed(sums: Tensor) -> Tensor:
    """Add up the partial sums if there are many, so that the norm reads them quickly."""
    return sums if sums.shape[1] <= tuning().partial_sums else sums.sum(1, keepdim=True)

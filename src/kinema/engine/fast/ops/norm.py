"""Group norm, layer norm and channel sums; norms may add biases or a second tensor on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kinema.engine.fast.fp8 import FP8_DTYPE, FP8_MAX, FP8_SCALE
from kinema.engine.fast.hardware import use_triton
from kinema.engine.fast.layout import at_least_float32
from kinema.engine.fast.tuning import tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from kinema.engine.fast.weights import GroupNorm, LayerNorm

Scales = tuple["Tensor", "Tensor"]
"""A group norm whose sums are known, as one scale and one shift per channel."""


def channel_sums(x: Tensor) -> Tensor:
    """Return the sum and the sum of squares of each frame and channel, in pieces: [frames, pieces, 2, c]."""
    if use_triton("channel_sums", x.device, x.dtype):
        from kinema.engine.fast.kernels import triton_norm

        return triton_norm.channel_sums(x)
    return reference_channel_sums(x)


def reference_channel_sums(x: Tensor) -> Tensor:
    """Compute `channel_sums` in one piece."""
    values = at_least_float32(x)
    return torch.stack([values.sum(1), values.square().sum(1)], 1)[:, None]


def add(x: Tensor, y: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Write x + y + bias into `out`, which may be x or y, and return its `channel_sums`; all [frames, pixels, c]."""
    if use_triton("add", x.device, x.dtype):
        from kinema.engine.fast.kernels import triton_norm

        return triton_norm.add(x, y, bias, out)
    return reference_add(x, y, bias, out)


def reference_add(x: Tensor, y: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Compute `add`; the sum is computed before it is rounded."""
    out.copy_(at_least_float32(x) + at_least_float32(y) + at_least_float32(bias))
    return reference_channel_sums(out)


def group_norm(
    x: Tensor,
    norm: GroupNorm,
    *,
    sums: Tensor | None = None,
    frame_bias: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Return the group norm of each frame of x + frame_bias, optionally followed by SiLU.

    Args:
        x: [frames, pixels, c].
        norm: Its groups, weight and bias.
        sums: `channel_sums` of x, if known.
        frame_bias: [1 or frames, c], for example a convolution's bias that has not been added yet.
        silu: Whether to apply SiLU.
    """
    sums = channel_sums(x) if sums is None else sums
    scales = group_norm_scales(sums, norm, x.shape[1], frame_bias=frame_bias)
    return apply_group_norm(x, scales, silu=silu, out=torch.empty_like(x))


def group_norm_images(x: Tensor, norm: GroupNorm, *, silu: bool = False) -> Tensor:
    """Normalise images, [n, c, h, w], channels last in memory; the result has the same layout."""
    n, channels, height, width = x.shape
    if use_triton("apply_group_norm", x.device, x.dtype):
        rows = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)
        return group_norm(rows, norm, silu=silu).view(n, height, width, channels).permute(0, 3, 1, 2)
    if x.device.type == "cpu" and height * width < tuning().small_norm_pixels:
        out = _group_norm_small_images(x, norm)
    else:
        out = F.group_norm(x, norm.groups, norm.weight, norm.bias, norm.eps)
    return F.silu(out, inplace=True) if silu else out


def _group_norm_small_images(x: Tensor, norm: GroupNorm) -> Tensor:
    """Normalise by sums over whole rows of channels, which a CPU adds with vector instructions."""
    n, channels, height, width = x.shape
    rows = at_least_float32(x.permute(0, 2, 3, 1).reshape(n, height * width, channels))

    def mean(rows: Tensor) -> Tensor:
        """Return the mean of each group, repeated for each of its channels: [n, 1, c]."""
        groups = rows.mean(1).view(n, norm.groups, -1).mean(-1, keepdim=True)
        return groups.expand(-1, -1, channels // norm.groups).reshape(n, 1, channels)

    centered = rows - mean(rows)
    scale = (mean(centered.square()) + norm.eps).rsqrt_() * norm.weight
    out = torch.addcmul(norm.bias.to(rows.dtype), centered, scale, out=centered).to(x.dtype)
    return out.view(n, height, width, channels).permute(0, 3, 1, 2)


def group_norm_scales_of_bands(
    norm: GroupNorm, bands: Iterable[Tensor], gather: Callable[[Tensor], Tensor] | None = None
) -> Scales:
    """Return the scale and shift, [1, c, 1, 1] each, of the norm over all bands together, each [1, c, h, w].

    `gather` concatenates a tensor of each process that has bands of the same video (`FrameShards.gather`).
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for x in map(at_least_float32, bands):
        channels, pixels = x.shape[1], x[0, 0].numel()
        _, mean, rstd = torch.native_group_norm(x, None, None, 1, channels, pixels, norm.groups, norm.eps)
        mean, variance = mean.double(), rstd.double() ** -2 - norm.eps
        total = total + torch.stack([mean, variance + mean**2]) * pixels
        count += pixels
    if gather is not None:
        totals = gather(torch.cat([total.flatten(), torch.tensor([count], dtype=total.dtype)])[None]).sum(0)
        total, count = totals[:-1], int(totals[-1])
    mean, square = (total / count).view(2, norm.groups, 1)
    scale = (square - mean**2 + norm.eps).rsqrt() * norm.weight.view(norm.groups, -1)
    shift = norm.bias.view(norm.groups, -1) - mean * scale
    scale, shift = (each.to(norm.weight.dtype).view(1, -1, 1, 1) for each in (scale, shift))
    return scale, shift


def apply_group_norm_to_band(x: Tensor, scales: Scales, out: Tensor | None = None) -> Tensor:
    """Normalise a band, [1, c, h, w], and apply SiLU, into a new tensor or into `out`."""
    scale, shift = scales
    return F.silu(torch.addcmul(shift, x, scale, out=out), inplace=True)


def group_norm_scales(
    sums: Tensor, norm: GroupNorm, pixels: int, *, span: int = 1, frame_bias: Tensor | None = None
) -> Scales:
    """Return a group norm with known sums as one scale and one shift per channel.

    Args:
        sums: `channel_sums` of the frames.
        norm: Its groups, weight and bias.
        pixels: Pixels of a frame.
        span: Frames that are normalised together.
        frame_bias: [1 or frames / span, c], added before the norm; the returned shift includes it.

    Returns:
        Scale and shift, both float32, [frames / span, c].
    """
    if use_triton("group_norm_scales", norm.weight.device, norm.weight.dtype):
        from kinema.engine.fast.kernels import triton_norm

        return triton_norm.group_norm_scales(
            sums, norm.groups, norm.weight, norm.bias, norm.eps, span, pixels, frame_bias
        )
    return reference_group_norm_scales(sums, norm, pixels, span=span, frame_bias=frame_bias)


def reference_group_norm_scales(
    sums: Tensor, norm: GroupNorm, pixels: int, *, span: int = 1, frame_bias: Tensor | None = None
) -> Scales:
    """Compute `group_norm_scales` in the dtype of the sums."""
    frames, channels = len(sums), sums.shape[-1]
    count = span * pixels
    total, square = sums.view(frames // span, -1, 2, channels).sum(1).unbind(1)
    added = torch.zeros_like(total) if frame_bias is None else at_least_float32(frame_bias).expand_as(total)
    square = square + 2 * added * total + count * added.square()
    total = total + count * added

    def mean(sums: Tensor) -> Tensor:
        """Return the mean of each group, repeated for each of its channels."""
        means = sums.view(len(sums), norm.groups, -1).mean(-1) / count
        return means.repeat_interleave(channels // norm.groups, -1)

    variance = mean(square) - mean(total).square()
    scale = (variance.clamp_min(0) + norm.eps).rsqrt() * at_least_float32(norm.weight)
    return scale, at_least_float32(norm.bias) + (added - mean(total)) * scale


def apply_group_norm(x: Tensor, scales: Scales, *, span: int = 1, silu: bool = False, out: Tensor) -> Tensor:
    """Write x, [frames, pixels, c], normalised by `group_norm_scales`, into `out`, which may be x.

    If `out` is fp8, the values are multiplied by `FP8_SCALE`.
    """
    if use_triton("apply_group_norm", x.device, x.dtype):
        from kinema.engine.fast.kernels import triton_norm

        return triton_norm.apply_group_norm(x, *scales, span, out, silu=silu)
    return reference_apply_group_norm(x, scales, span=span, silu=silu, out=out)


def reference_apply_group_norm(x: Tensor, scales: Scales, *, span: int = 1, silu: bool = False, out: Tensor) -> Tensor:
    """Compute `apply_group_norm` in two passes."""
    scale, shift = (each.repeat_interleave(span, 0)[:, None] for each in scales)
    value = at_least_float32(x) * scale + shift
    value = F.silu(value) if silu else value
    return out.copy_((value * FP8_SCALE).clamp(-FP8_MAX, FP8_MAX) if out.dtype == FP8_DTYPE else value)


def layer_norm(x: Tensor, norm: LayerNorm, frame_bias: Tensor | None = None, *, quantize: bool = False) -> Tensor:
    """Return the layer norm of x + frame_bias; x: [pixels of all frames, c].

    With `quantize`, the following GEMM applies the norm's weight and bias, and the result is fp8, multiplied by
    `FP8_SCALE`. Standardised values do not exceed √c, so no scale has to be determined.
    """
    if use_triton("layer_norm", x.device, x.dtype):
        from kinema.engine.fast.kernels import triton_norm

        return triton_norm.layer_norm(x, norm.weight, norm.bias, norm.eps, frame_bias, quantize=quantize)
    return reference_layer_norm(x, norm, frame_bias, quantize=quantize)


def reference_layer_norm(
    x: Tensor, norm: LayerNorm, frame_bias: Tensor | None = None, *, quantize: bool = False
) -> Tensor:
    """Compute `layer_norm` in two passes."""
    value = at_least_float32(x) if frame_bias is None else _add_frame_bias(at_least_float32(x), frame_bias)
    if quantize:
        return (F.layer_norm(value, norm.weight.shape, None, None, norm.eps) * FP8_SCALE).to(FP8_DTYPE)
    weight, bias = at_least_float32(norm.weight), at_least_float32(norm.bias)
    return F.layer_norm(value, norm.weight.shape, weight, bias, norm.eps).to(x.dtype)


def add_layer_norm(x: Tensor, y: Tensor, norm: LayerNorm, frame_bias: Tensor, *, quantize: bool = False) -> Tensor:
    """Return the layer norm of x + y + frame_bias; the sum is written into y."""
    if use_triton("add_layer_norm", x.device, x.dtype):
        from kinema.engine.fast.kernels import triton_norm

        return triton_norm.layer_norm(x, norm.weight, norm.bias, norm.eps, frame_bias, add_to=y, quantize=quantize)
    return reference_add_layer_norm(x, y, norm, frame_bias, quantize=quantize)


def reference_add_layer_norm(
    x: Tensor, y: Tensor, norm: LayerNorm, frame_bias: Tensor, *, quantize: bool = False
) -> Tensor:
    """Compute `add_layer_norm` in two passes."""
    y.copy_(_add_frame_bias(at_least_float32(x) + at_least_float32(y), frame_bias))
    return reference_layer_norm(y, norm, quantize=quantize)


def mix_layer_norm(
    x: Tensor,
    y: Tensor,
    norm: LayerNorm,
    frame_bias: Tensor,
    blend_bias: Tensor,
    alpha: float,
    *,
    quantize: bool = False,
) -> Tensor:
    """Return the layer norm of x + frame_bias; y becomes alpha · x + (1 − alpha) · y + blend_bias."""
    if use_triton("mix_layer_norm", x.device, x.dtype):
        from kinema.engine.fast.kernels import triton_norm

        parameters = norm.weight, norm.bias, norm.eps, frame_bias
        return triton_norm.layer_norm(x, *parameters, mix_into=y, blend_bias=blend_bias, alpha=alpha, quantize=quantize)
    return reference_mix_layer_norm(x, y, norm, frame_bias, blend_bias, alpha, quantize=quantize)


def reference_mix_layer_norm(
    x: Tensor,
    y: Tensor,
    norm: LayerNorm,
    frame_bias: Tensor,
    blend_bias: Tensor,
    alpha: float,
    *,
    quantize: bool = False,
) -> Tensor:
    """Compute `mix_layer_norm` in two passes."""
    y.copy_(_add_frame_bias(alpha * at_least_float32(x) + (1 - alpha) * at_least_float32(y), blend_bias))
    return reference_layer_norm(x, norm, frame_bias, quantize=quantize)


def _add_frame_bias(x: Tensor, frame_bias: Tensor) -> Tensor:
    """Add one row of `frame_bias` per frame to x, [pixels of all frames, c]."""
    return (x.view(len(frame_bias), -1, x.shape[1]) + frame_bias[:, None]).view_as(x)

"""The blocks in the order of work for a GPU; same weights.

On a GPU, operations other than matmuls are limited by memory bandwidth, so every pass over the video counts. Three
methods save passes. Constants per frame (biases, the one-key cross-attention, the frame positions) are not added where
they arise; they are collected in small tables and added by the norm that reads the pixels next (`BiasTables`). Kernels
that add two videos also compute their channel sums, so the following group norm need not (`sums`). And GEMMs accumulate
into their output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kinema.engine.fast.layout import as_images, as_rows, as_video, at_least_float32
from kinema.engine.fast.ops.attention import spatial_attention, temporal_attention
from kinema.engine.fast.ops.conv import norm_silu_conv3x3, temporal_conv, upsample_conv
from kinema.engine.fast.ops.geglu import geglu_linear
from kinema.engine.fast.ops.linear import linear, packed_linear, packed_linear_add
from kinema.engine.fast.ops.norm import (
    add,
    add_layer_norm,
    apply_group_norm,
    channel_sums,
    group_norm,
    group_norm_scales,
    layer_norm,
    mix_layer_norm,
)
from kinema.engine.fast.tuning import tuning
from kinema.engine.fast.weights import PackedWeight

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.engine.fast.blocks_cpu import LayerConstants
    from kinema.engine.fast.frame_shards import FrameShards
    from kinema.engine.fast.weights import (
        Linear,
        PackedAttention,
        PackedFeedForward,
        PackedLayer,
        ResBlock,
        SpatioTemporalResBlock,
        Transformer,
        TransformerLayer,
        Upsample,
    )

WithSums = tuple["Tensor", "Tensor | None"]
"""The hidden states of all frames, and their `channel_sums` if known."""


def use_gpu_blocks(x: Tensor) -> bool:
    """Return whether this order of work is the faster one on the tensor's device."""
    return x.is_cuda or tuning().gpu_blocks


def frame_chunks(frames: Tensor) -> tuple[Tensor, ...]:
    """Split frames, [f, …], into chunks that fill a GPU and limit its memory use."""
    return torch.split(frames, max(1, tuning().chunk_elements // frames[0].numel()))


def with_sums(x: Tensor) -> WithSums:
    """Return a video with its channel sums, for a video that more than one norm reads."""
    return x, channel_sums(_as_frames(x))


def add_to_each_frame(x: Tensor, image_latents: Tensor) -> Tensor:
    """Add images to all frames of videos; both contiguous.

    Args:
        x: [n, f, h, w, c].
        image_latents: [b, n, 1, h, w, c].

    Returns:
        [b · n, f, h, w, c].
    """
    out = x.new_empty(len(image_latents), *x.shape)
    no_bias = x.new_zeros(x.shape[-1], dtype=torch.float32)
    for images, batch_out in zip(image_latents, out, strict=True):
        for video, image, video_out in zip(x, images, batch_out, strict=True):  # torch's broadcast add is slow
            frames = video.flatten(1, 2)
            add(frames, image.flatten(1, 2).expand_as(frames), no_bias, video_out.flatten(1, 2))
    return out.flatten(0, 1)


# ResBlocks


def spatial_resblock(
    block: ResBlock,
    x: Tensor,
    *,
    sums: Tensor | None = None,
    skip: WithSums | None = None,
    pending_bias: Tensor | None = None,
    shift: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a block within frames; only `out` is modified.

    Args:
        block: Its weights.
        x: [b, f, h, w, c].
        sums: `channel_sums` of the frames, if known.
        skip: [b, f, h, w, c''], channels that follow those of x; they are concatenated only inside the norm.
        pending_bias: [c], still to be added to x.
        shift: [1 or b, c'], the first convolution's bias including the time embedding.
        out: The output, which may be x; by default a new tensor.

    Returns:
        The result, [b, f, h, w, c'], and its `channel_sums`.
    """
    size = x.shape[:4]
    parts = [(x, sums)] if skip is None else [(x, sums), skip]
    inputs = [each.view(-1, *size[2:], each.shape[-1]) for each, _ in parts]
    shift = block.conv1.bias[None] if shift is None else shift
    if len(shift) > 1:
        shift = shift.repeat_interleave(size[1], 0)
    bias, frame_bias = block.bias, None
    if pending_bias is not None:
        frame_bias = F.pad(pending_bias, (0, len(block.norm1.weight) - len(pending_bias)))[None]
        bias = bias + (
            pending_bias if block.shortcut is None else pending_bias @ block.shortcut.weight[: len(pending_bias)]
        )
    first, second = block.packed or (PackedWeight(conv.rows) for conv in (block.conv1, block.conv2))
    sums = torch.cat([channel_sums(_as_frames(each)) if known is None else known for each, known in parts], -1)
    scales = group_norm_scales(sums, block.norm1, size[2] * size[3], frame_bias=frame_bias)
    hidden, sums = norm_silu_conv3x3(inputs, scales, first, x.dtype)
    scales = group_norm_scales(sums, block.norm2, size[2] * size[3], frame_bias=shift)
    out = x.new_empty(*size, len(block.bias)) if out is None else out
    out_images = out.view(-1, *out.shape[2:])
    if block.shortcut is not None:
        _shortcut(inputs, block.shortcut.weight, as_rows(out))
    residual = inputs[0] if block.shortcut is None else out_images
    into = {"workspace": hidden, "residual": residual, "bias": bias, "out": out_images}
    return out, norm_silu_conv3x3([hidden], scales, second, x.dtype, **into)[1]


def temporal_resblock(
    block: ResBlock,
    x: Tensor,
    *,
    shift: Tensor | None = None,
    sums: Tensor | None = None,
    next_bias: Tensor | None = None,
    out: Tensor | None = None,
    shards: FrameShards | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a block without shortcut along time; only `out` is modified.

    Except for the norms, the block mixes pixels only along time, and the norms need only sums. So a large video is
    processed in bands of pixels with all frames of each. The only additional memory is the tensor between the two
    convolutions.

    Args:
        block: Its weights.
        x: [b, f, h, w, c].
        shift: [1 or b, c], the first convolution's bias including the time embedding.
        sums: `channel_sums` of the frames, if known.
        next_bias: [c], a bias of a later layer, also added to every pixel of the result.
        out: The output, which may be x; by default a new tensor.
        shards: If other processes have the video's other frames.

    Returns:
        The result, [b, f, h, w, c], and its `channel_sums`.
    """
    out = torch.empty_like(x) if out is None else out
    pixels = x.shape[2] * x.shape[3]
    sums = channel_sums(_as_frames(x)) if sums is None else sums
    if shards is None:
        return _temporal_resblock(block, x, out, pixels, sums, shift, next_bias)
    part = shards.to_pixels(x)
    sums = shards.gather(sums.sum(1, keepdim=True), shards.frames)
    part, sums = _temporal_resblock(block, part, part, pixels, sums, shift, next_bias, shards)
    pieces = shards.gather(sums.sum(1)[None].contiguous())  # [processes, frames, 2, c]
    return shards.to_frames(part, out), pieces.transpose(0, 1)[shards.own].contiguous()


def _temporal_resblock(
    block: ResBlock,
    x: Tensor,
    out: Tensor,
    frame_pixels: int,
    sums: Tensor,
    shift: Tensor | None,
    next_bias: Tensor | None,
    shards: FrameShards | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `temporal_resblock` for all frames and all or some of the `frame_pixels` pixels of a frame."""
    rows, out_rows, span = _as_frames(x), _as_frames(out), x.shape[1]
    shift = block.conv1.bias[None] if shift is None else shift
    bias = block.bias if next_bias is None else block.bias + next_bias
    first, second = block.packed or (PackedWeight(conv.rows) for conv in (block.conv1, block.conv2))
    pixels, multiple = max(1, tuning().chunk_elements // (len(rows) * rows.shape[2])), tuning().band_multiple
    bands = range(0, rows.shape[1], pixels // multiple * multiple or pixels)
    scales = group_norm_scales(sums, block.norm1, frame_pixels, span=span)
    hidden, band_sums = [], []
    for start in bands:
        band = rows[:, start : start + bands.step]
        normalized = band.new_empty(band.shape, dtype=first.weight.dtype)
        apply_group_norm(band, scales, span=span, silu=True, out=normalized)
        convolved, sums = temporal_conv(normalized, first, span, band.dtype)
        hidden.append(convolved)
        band_sums.append(sums)
    sums = torch.cat(band_sums, 1)
    if shards is not None:
        sums = shards.gather(sums.sum(1)).unsqueeze(0)
    scales = group_norm_scales(sums, block.norm2, span * frame_pixels, frame_bias=shift)
    band_sums = []
    for start in bands:
        band, part = hidden.pop(0), slice(start, start + bands.step)
        same_dtype = band.dtype == second.weight.dtype
        normalized = band if same_dtype else torch.empty_like(band, dtype=second.weight.dtype)
        apply_group_norm(band, scales, span=span, silu=True, out=normalized)
        into = {"residual": rows[:, part], "bias": bias, "out": out_rows[:, part]}
        band_sums.append(temporal_conv(normalized, second, span, band.dtype, **into)[1])
    return out, torch.cat(band_sums, 1)


def _shortcut(inputs: list[Tensor], weight: Tensor, out: Tensor) -> None:
    """Write the matmul of the concatenated inputs, [frames, h, w, c] each, into `out`, [rows, c'], one by one."""
    (x, part), *rest = zip(inputs, torch.split(weight, [x.shape[-1] for x in inputs]), strict=True)
    torch.mm(as_rows(x), part, out=out)
    for x, part in rest:
        out.addmm_(as_rows(x), part)


def _as_frames(x: Tensor) -> Tensor:
    """Return a view of [b, f, h, w, c] as [b·f, h·w, c]."""
    return x.view(-1, x.shape[2] * x.shape[3], x.shape[4])


def block_with_transformer(
    block: SpatioTemporalResBlock,
    transformer: Transformer | None,
    x: Tensor,
    shifts: tuple[Tensor, Tensor],
    tables: tuple[BiasTables, ...],
    *,
    sums: Tensor | None = None,
    skip: WithSums | None = None,
    pending_bias: Tensor | None = None,
    shards: FrameShards | None = None,
) -> Tensor:
    """Return a new tensor: the result of a block, with an optional skip, and of the optional transformer after it.

    `sums`, `skip` and `pending_bias` are those of `spatial_resblock`, `shards` that of `temporal_resblock`.
    """
    x, sums = spatial_resblock(block.spatial, x, sums=sums, skip=skip, pending_bias=pending_bias, shift=shifts[0])
    if transformer is None:
        return temporal_resblock(block.temporal, x, shift=shifts[1], sums=sums, shards=shards)[0]
    # The bias of the transformer's output GEMM is added here; `frame_bias` subtracts it again for its norm.
    bias = at_least_float32(transformer.proj_out.bias)
    x, sums = temporal_resblock(block.temporal, x, shift=shifts[1], sums=sums, next_bias=bias, shards=shards)
    normalized = group_norm(_as_frames(x), transformer.norm, sums=sums, frame_bias=-bias[None])
    hidden = linear(as_rows(normalized), transformer.proj_in).view_as(x)
    del normalized
    for layer, layer_tables in zip(transformer.layers, tables, strict=True):
        assert layer.packed is not None
        transformer_layer(layer.packed, hidden, layer_tables, shards)
    as_rows(x).addmm_(as_rows(hidden), transformer.proj_out.weight)
    return x


def decoder_spatial_resblock(block: ResBlock, x: Tensor, upsample: Upsample | None = None) -> tuple[Tensor, Tensor]:
    """Run a block on one video, in chunks of frames where they are large; may overwrite the input.

    Args:
        block: Its weights.
        x: [1, f, h, w, c].
        upsample: Doubles height and width first; only one chunk at a time is stored at that size with the input's
            number of channels.

    Returns:
        The result, which is x itself if the shape allows, and its sums.
    """
    out, channels = x, len(block.conv2.weight)
    if upsample is not None:
        out = x.new_empty(1, x.shape[1], 2 * x.shape[2], 2 * x.shape[3], channels)
    elif channels != x.shape[4]:
        out = x.new_empty(*x.shape[:4], channels)
    frames = max(1, tuning().chunk_elements // (out.shape[2] * out.shape[3] * max(x.shape[4], channels)))
    sums = []
    for chunk, chunk_out in zip(torch.split(x, frames, 1), torch.split(out, frames, 1), strict=True):
        hidden, pending_bias = chunk, None
        if upsample is not None:  # `spatial_resblock` adds the bias, without a separate pass
            images, pending_bias = upsample_conv(as_images(chunk), upsample, bias=False), upsample.conv.bias
            hidden = as_video(images, *chunk_out.shape[1:4])
        sums.append(spatial_resblock(block, hidden, pending_bias=pending_bias, out=chunk_out)[1])
    return out, torch.cat(sums)


# Transformer layers


@dataclass(frozen=True, slots=True, eq=False)
class BiasTables:
    """Sums of the constants added to each pixel of a frame, up to each norm of a layer and the blend: [b · f, c]."""

    feed_forward: Tensor
    temporal: Tensor
    temporal_attention: Tensor
    temporal_feed_forward: Tensor
    blend: Tensor

    @classmethod
    def of(cls, layer: TransformerLayer, constants: LayerConstants) -> BiasTables:
        """Build from a video's constants of the layer."""

        def bias(linear: Linear) -> Tensor:
            """Return the GEMM's bias on the device of the constants; a prefetched layer stores it elsewhere."""
            return linear.bias.to(constants.spatial.device)

        spatial = at_least_float32(constants.spatial) + bias(layer.attention.out)
        after_spatial = spatial + bias(layer.feed_forward.out)
        before_temporal = after_spatial + at_least_float32(constants.positions)[:, 0]
        temporal = at_least_float32(constants.temporal) + bias(layer.temporal_attention.out)
        blend = torch.lerp(after_spatial, temporal + bias(layer.temporal_feed_forward.out), layer.alpha)
        before_attention = before_temporal + bias(layer.temporal_feed_forward_in.out)
        tables = (spatial, before_temporal, before_attention, temporal, blend)
        return cls(*(each.expand_as(before_temporal).flatten(0, 1).contiguous() for each in tables))


def transformer_layer(layer: PackedLayer, x: Tensor, tables: BiasTables, shards: FrameShards | None = None) -> None:
    """Run a layer on a video, [b, f, h, w, c], in place; other processes may have further frames (`shards`)."""
    rows, quantize = as_rows(x), layer.fp8
    attention, feed_forward = layer.attention, layer.feed_forward
    normalized = layer_norm(rows, attention.norm, quantize=quantize)
    packed_linear_add(rows, spatial_self_attention(attention, normalized, x), attention.out)
    normalized = layer_norm(rows, feed_forward.norm, tables.feed_forward, quantize=quantize)
    packed_linear_add(rows, _geglu(feed_forward, normalized), feed_forward.out)

    attention, feed_forward = layer.temporal_attention, layer.temporal_feed_forward_in
    normalized = layer_norm(rows, feed_forward.norm, tables.temporal, quantize=quantize)
    temporal = packed_linear(_geglu(feed_forward, normalized), feed_forward.out, rows.dtype)
    normalized = add_layer_norm(rows, temporal, attention.norm, tables.temporal_attention, quantize=quantize)
    packed_linear_add(temporal, temporal_self_attention(attention, normalized, x, shards), attention.out)
    feed_forward = layer.temporal_feed_forward
    biases = tables.temporal_feed_forward, tables.blend
    normalized = mix_layer_norm(temporal, rows, feed_forward.norm, *biases, layer.alpha, quantize=quantize)
    del temporal
    packed_linear_add(rows, _geglu(feed_forward, normalized), feed_forward.out)


def _geglu(feed_forward: PackedFeedForward, normalized: Tensor) -> Tensor:
    """Compute the first half of a feed-forward."""
    return geglu_linear(normalized, feed_forward.projection, feed_forward.hidden_scale)


def _qkv(attention: PackedAttention, normalized: Tensor, x: Tensor) -> Tensor:
    """Return query, key and value of a video's normed pixels, [pixels, c]: [b, f, h·w, 3, heads, c / heads]."""
    batch, frames, height, width, channels = x.shape
    qkv = packed_linear(normalized, attention.qkv, x.dtype)
    return qkv.view(batch, frames, height * width, 3, attention.heads, channels // attention.heads)


def spatial_self_attention(attention: PackedAttention, normalized: Tensor, x: Tensor) -> Tensor:
    """Return the attention of each pixel to its frame, [pixels, c], before the output GEMM."""
    q, k, v = _qkv(attention, normalized, x).flatten(0, 1).movedim(2, 0).transpose(2, 3)
    return spatial_attention(q, k, v).reshape(len(normalized), -1)


def temporal_self_attention(
    attention: PackedAttention, normalized: Tensor, x: Tensor, shards: FrameShards | None = None
) -> Tensor:
    """Return the attention of each pixel to its position in all frames, [pixels, c], before the output GEMM."""
    if shards is None:
        return temporal_attention(_qkv(attention, normalized, x)).reshape(len(normalized), -1)
    part = shards.to_pixels(normalized.view(x.shape))
    attended = temporal_attention(_qkv(attention, as_rows(part), part))
    return as_rows(shards.to_frames(attended, torch.empty_like(x)))

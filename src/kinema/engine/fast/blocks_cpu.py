"""The blocks in the order of work for a CPU, which has few cores and a cache; also for MPS.

Work is split into pieces that fit in the cache, and value and gate, query, key and value are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kinema.engine.fast import onednn
from kinema.engine.fast.layout import as_images, as_rows, as_strip, as_video, at_least_float32
from kinema.engine.fast.ops.conv import conv2d, upsample_conv
from kinema.engine.fast.ops.linear import linear, linear_add, linear_gelu, linear_multiply
from kinema.engine.fast.ops.norm import apply_group_norm_to_band, group_norm_images, group_norm_scales_of_bands
from kinema.engine.fast.tuning import tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from kinema.engine.fast.frame_shards import FrameShards
    from kinema.engine.fast.weights import (
        FeedForward,
        LayerNorm,
        ResBlock,
        SelfAttention,
        SpatioTemporalResBlock,
        Transformer,
        TransformerLayer,
        Upsample,
    )


@dataclass(frozen=True, slots=True, eq=False)
class LayerConstants:
    """Values that one layer adds to every pixel of a video, at every step.

    positions: [f, 1, c], the embedding of the frame index;
    spatial: [b, 1, c] and temporal: [b, 1, c], the cross-attentions to the image embedding.
    """

    positions: Tensor
    spatial: Tensor
    temporal: Tensor


# ResBlocks


def residual_branch(block: ResBlock, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return a block's residual branch for x, [n, c, h, w]; shift: the first bias including the time embedding."""
    hidden = conv2d(group_norm_images(x, block.norm1, silu=True), block.conv1, shift)
    return conv2d(group_norm_images(hidden, block.norm2, silu=True), block.conv2)


def spatial_resblock(block: ResBlock, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return a block's result for images, [n, c, h, w], in a new tensor; x is not modified."""
    out = residual_branch(block, x, shift)
    if block.shortcut is None:
        return out.add_(x)
    rows = out.permute(0, 2, 3, 1).reshape(-1, out.shape[1])
    linear_add(rows, x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), block.shortcut)
    return rows.view(*out.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)


def temporal_resblock(block: ResBlock, x: Tensor, shift: Tensor | None = None) -> None:
    """Run a block on a strip, [b, c, f, h·w], in place; `sharded_temporal_resblock` divides it between processes."""
    if x.device.type != "cpu" or x[0].numel() <= tuning().band_elements:
        x.add_(residual_branch(block, x, shift))
        return
    shifts = [None] * len(x) if shift is None else shift[:, None].expand(len(x), -1, -1)
    for video, video_shift in zip(torch.split(x, 1), shifts, strict=True):
        _temporal_resblock_in_bands(block, video, video_shift)


def sharded_temporal_resblock(block: ResBlock, x: Tensor, shift: Tensor, shards: FrameShards) -> None:
    """Run a block on the own frames of a video, [1, f, h, w, c], in place."""
    part = shards.to_pixels(x)
    _temporal_resblock_in_bands(block, as_strip(part), shift, shards)
    shards.to_frames(part, x)


def _temporal_resblock_in_bands(
    block: ResBlock, x: Tensor, shift: Tensor | None, shards: FrameShards | None = None
) -> None:
    """Run a block on one strip in bands of columns, so that intermediate results stay in the cache."""
    gather = None if shards is None else shards.gather
    _, channels, frames, _ = x.shape
    elements = tuning().band_elements
    rows = x.permute(0, 2, 3, 1).view(1, 1, -1, channels).permute(0, 3, 1, 2)
    scales = group_norm_scales_of_bands(block.norm1, torch.split(rows, elements // channels, 3), gather)
    bands = torch.split(x, max(1, elements // (channels * frames)), 3)
    hidden = [conv2d(apply_group_norm_to_band(band, scales), block.conv1, shift) for band in bands]
    scales = group_norm_scales_of_bands(block.norm2, hidden, gather)
    for band, each in zip(bands, hidden, strict=True):
        band.add_(conv2d(apply_group_norm_to_band(each, scales, out=each), block.conv2))


def resblock(
    block: SpatioTemporalResBlock, x: Tensor, shifts: tuple[Tensor, Tensor], shards: FrameShards | None = None
) -> Tensor:
    """Return the result for a video, [b, f, h, w, c], in a new tensor.

    Args:
        block: Its weights.
        x: The hidden states.
        shifts: [1 or b, c] for the spatial and the temporal first convolution.
        shards: If other processes have the video's other frames.
    """
    frames, height, width = x.shape[1:4]
    spatial, temporal = shifts
    if len(spatial) > 1:
        spatial = spatial.repeat_interleave(frames, 0)
    out = as_video(spatial_resblock(block.spatial, as_images(x), spatial), frames, height, width)
    if shards is None:
        temporal_resblock(block.temporal, as_strip(out), temporal)
    else:
        sharded_temporal_resblock(block.temporal, out, temporal, shards)
    return out


# Transformers


def transformer(
    weights: Transformer, x: Tensor, constants: tuple[LayerConstants, ...], shards: FrameShards | None = None
) -> None:
    """Run a transformer on a video, [b, f, h, w, c], in place; other processes may have further frames (`shards`)."""
    normalized = as_video(group_norm_images(as_images(x), weights.norm), *x.shape[1:4])
    hidden = linear(as_rows(normalized), weights.proj_in).view_as(x)
    for layer, layer_constants in zip(weights.layers, constants, strict=True):
        transformer_layer(layer, hidden, layer_constants, shards)
    linear_add(as_rows(x), as_rows(hidden), weights.proj_out)


def transformer_layer(
    layer: TransformerLayer, x: Tensor, constants: LayerConstants, shards: FrameShards | None = None
) -> None:
    """Run a layer in place."""
    batch, frames, *_, channels = x.shape
    rows = as_rows(x)
    linear_add(rows, spatial_self_attention(layer.attention, x), layer.attention.out)
    x.view(batch, -1, channels).add_(constants.spatial)
    feed_forward(layer.feed_forward, rows)

    temporal = (x.view(batch, frames, -1, channels) + constants.positions).view_as(x)
    temporal_rows = as_rows(temporal)
    feed_forward(layer.temporal_feed_forward_in, temporal_rows)
    attention = layer.temporal_attention
    linear_add(temporal_rows, temporal_self_attention(attention, temporal, shards), attention.out)
    temporal.view(batch, -1, channels).add_(constants.temporal)
    feed_forward(layer.temporal_feed_forward, temporal_rows)
    x.lerp_(temporal, layer.alpha)


def feed_forward(weights: FeedForward, x: Tensor) -> None:
    """Add a feed-forward to x, [pixels, c], in place."""
    for rows in _row_chunks(x):
        normalized = _layer_norm(rows, weights.norm)
        hidden = linear_multiply(normalized, weights.value, linear_gelu(normalized, weights.gate))
        linear_add(rows, hidden, weights.out)


def _row_chunks(x: Tensor) -> Iterator[Tensor]:
    """Yield chunks of rows: on a CPU as many as its cache holds, elsewhere all at once."""
    yield from x.chunk(-(-len(x) // tuning().feed_forward_rows) if x.device.type == "cpu" else 1)


def _layer_norm(x: Tensor, norm: LayerNorm) -> Tensor:
    """Normalise […, c] over the channels."""
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


def _qkv(attention: SelfAttention, x: Tensor) -> Tensor:
    """Return query, key and value of each pixel, [pixels, 3c], from [b, f, h, w, c]."""
    rows = _layer_norm(as_rows(x), attention.norm)
    return onednn.linear(rows, attention.qkv.t(), None) if onednn.supports(rows) else rows @ attention.qkv


def _split_qkv(attention: SelfAttention, qkv: Tensor, x: Tensor) -> Tensor:
    """Return a view of the pixels' projections, [pixels, 3c], as [3, b, f, h·w, heads, c / heads]."""
    batch, frames, height, width, channels = x.shape
    return qkv.view(batch, frames, height * width, 3, attention.heads, channels // attention.heads).movedim(3, 0)


def spatial_self_attention(attention: SelfAttention, x: Tensor) -> Tensor:
    """Return the attention of each pixel to its frame, [pixels, c], before the output layer."""
    qkv = _split_qkv(attention, _qkv(attention, x), x).flatten(1, 2)  # [3, b·f, h·w, heads, d]
    if onednn.supports(x) and onednn.attention_is_faster(qkv.shape[2]):
        return onednn.attention(qkv.movedim(0, 2)).view(-1, x.shape[-1])
    q, k, v = qkv.transpose(2, 3)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, x.shape[-1])


def temporal_self_attention(attention: SelfAttention, x: Tensor, shards: FrameShards | None = None) -> Tensor:
    """Return the attention of each pixel to its position in all frames, [pixels, c], before the output layer."""
    if shards is not None:
        part = shards.to_pixels(x)
        attended = temporal_self_attention(attention, part).view(part.shape)
        return as_rows(shards.to_frames(attended, torch.empty_like(x)))
    batch, frames, *_, channels = x.shape
    out = x.new_empty(batch, frames, x.shape[2] * x.shape[3], channels)
    # This runs on a CPU, where torch's attention to a few keys is twice as fast in float32 as in half precision.
    qkv = _split_qkv(attention, at_least_float32(_qkv(attention, x)), x)
    for i, (q, k, v) in enumerate(qkv.permute(1, 0, 3, 4, 2, 5)):  # [h·w, heads, f, d]
        attended = F.scaled_dot_product_attention(q, k, v)
        out[i] = attended.permute(2, 0, 1, 3).flatten(2)
    return as_rows(out)


# The decoder's layers within frames


def frame_chunks(x: Tensor) -> tuple[Tensor, ...]:
    """Split images, [f, c, h, w], into chunks of one frame per thread.

    The intermediate results of a chunk are small enough to stay in the cache, and with one frame per thread no frame is
    divided between threads.
    """
    return torch.split(x, torch.get_num_threads())


def by_chunks(function: Callable[[Tensor], Tensor], chunks: tuple[Tensor, ...]) -> Tensor:
    """Apply a function to chunks of images, [f, c, h, w]; each image may change its shape."""
    first, *rest = chunks
    result = function(first)
    if not rest:
        return result
    frames = sum(map(len, chunks))
    out = result.new_empty(frames, *result.shape[2:], result.shape[1]).permute(0, 3, 1, 2)
    parts = iter(torch.split(out, [len(chunk) for chunk in chunks]))
    next(parts).copy_(result)
    for part, chunk in zip(parts, rest, strict=True):
        part.copy_(function(chunk))
    return out


def decoder_spatial_resblock(block: ResBlock, x: Tensor, upsample: Upsample | None = None) -> Tensor:
    """Run an optional upsampling and a block on images, [f, c, h, w], chunk by chunk; may overwrite x."""
    if upsample is not None:
        x = by_chunks(lambda images: upsample_conv(images, upsample), frame_chunks(x))
    if block.shortcut is not None:
        return by_chunks(lambda images: spatial_resblock(block, images), frame_chunks(x))
    for images in frame_chunks(x):
        images.add_(residual_branch(block, images))
    return x

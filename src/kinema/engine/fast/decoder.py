"""Run SVD's temporal decoder with few copies; per-frame layers process a few frames at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from kinema.engine.fast import blocks_cpu, blocks_gpu
from kinema.engine.fast.blocks_gpu import use_gpu_blocks
from kinema.engine.fast.layout import as_images, as_strip, as_video
from kinema.engine.fast.ops.attention import spatial_attention
from kinema.engine.fast.ops.conv import conv2d, pad_channels
from kinema.engine.fast.ops.linear import linear, linear_add
from kinema.engine.fast.ops.norm import group_norm_images
from kinema.engine.fast.weights import Conv, DecoderAttention, GroupNorm, SpatioTemporalResBlock, Upsample

if TYPE_CHECKING:
    from torch import Tensor


class FastDecoder:
    """The same network as the given module's decoder, on its device and in its dtype."""

    def __init__(self, module: Any) -> None:
        """Build from diffusers' AutoencoderKLTemporalDecoder in eval mode."""
        decoder = module.decoder
        self.conv_in = Conv.of(decoder.conv_in).aligned()
        self.middle = [SpatioTemporalResBlock.of(block) for block in decoder.mid_block.resnets]
        self.attentions = [DecoderAttention.of(attention) for attention in decoder.mid_block.attentions]
        self.levels = [
            (
                [SpatioTemporalResBlock.of(block) for block in level.resnets],
                Upsample.of(level.upsamplers[0]) if level.upsamplers else None,
            )
            for level in decoder.up_blocks
        ]
        self.norm_out = GroupNorm.of(decoder.conv_norm_out)
        self.conv_out, self.conv_time = (Conv.of(conv) for conv in (decoder.conv_out, decoder.time_conv_out))
        self.channels = self.conv_time.weight.shape[0]
        self.conv_out, self.conv_time = self.conv_out.aligned(), self.conv_time.aligned()

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Decode unscaled latents of one group of frames, [f, c, h, w], to frames in −1…1, [f, 3, height, width]."""
        x = conv2d(pad_channels(latents, self.conv_in), self.conv_in)
        x = _temporal(self.middle[0], *_spatial(self.middle[0], x))
        for attention, block in zip(self.attentions, self.middle[1:], strict=False):
            _add_attention(attention, x)
            x = _temporal(block, *_spatial(block, x))
        upsample: Upsample | None = None
        for blocks, next_upsample in self.levels:
            for block in blocks:
                x, sums = _spatial(block, x, upsample)
                x, upsample = _temporal(block, x, sums), None
            upsample = next_upsample
        chunks = blocks_gpu.frame_chunks(x) if use_gpu_blocks(x) else blocks_cpu.frame_chunks(x)
        x = blocks_cpu.by_chunks(self._out, chunks)
        video = _as_one_video(x)
        return as_images(as_video(conv2d(as_strip(video), self.conv_time), *video.shape[1:4]))[:, : self.channels]

    def _out(self, x: Tensor) -> Tensor:
        return conv2d(group_norm_images(x, self.norm_out, silu=True), self.conv_out)


def _add_attention(attention: DecoderAttention, x: Tensor) -> None:
    """Add self-attention within each frame to x, [f, c, h, w], channels last in memory, in place."""
    frames, channels, height, width = x.shape
    rows = group_norm_images(x, attention.norm).permute(0, 2, 3, 1).reshape(-1, channels)
    qkv = linear(rows, attention.qkv).view(frames, height * width, 3, attention.heads, -1)
    q, k, v = qkv.movedim(2, 0).transpose(2, 3)  # [f, heads, h·w, d]
    if use_gpu_blocks(x):
        attended = spatial_attention(q, k, v).reshape(-1, channels)
    else:
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, channels)
    linear_add(x.permute(0, 2, 3, 1).view(-1, channels), attended, attention.out)


def _spatial(
    block: SpatioTemporalResBlock, x: Tensor, upsample: Upsample | None = None
) -> tuple[Tensor, Tensor | None]:
    """Run an optional upsampling and a block's spatial half; may overwrite x. On a GPU, also return channel sums."""
    if use_gpu_blocks(x):
        video, sums = blocks_gpu.decoder_spatial_resblock(block.spatial, _as_one_video(x), upsample)
        return as_images(video), sums
    return blocks_cpu.decoder_spatial_resblock(block.spatial, x, upsample), None


def _temporal(block: SpatioTemporalResBlock, x: Tensor, sums: Tensor | None) -> Tensor:
    """Run the temporal half in place."""
    video = _as_one_video(x)
    if use_gpu_blocks(x):
        blocks_gpu.temporal_resblock(block.temporal, video, sums=sums, out=video)
    else:
        blocks_cpu.temporal_resblock(block.temporal, as_strip(video))
    return x


def _as_one_video(x: Tensor) -> Tensor:
    """Return a view of [f, c, h, w], channels last in memory, as [1, f, h, w, c]."""
    return x.permute(0, 2, 3, 1)[None]

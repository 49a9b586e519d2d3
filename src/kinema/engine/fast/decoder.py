"""Run SVD's temporal decoder with few copies; on a CPU, per-frame layers process a few frames at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from kinema.engine.fast import fused, gpu
from kinema.engine.fast.layers import ClipBlock, Conv, GroupNorm, Linear, Upsample, as_clip, images, strip

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def few_frames(x: Tensor) -> tuple[Tensor, ...]:
    """Split images, [f, c, h, w], into chunks: on a CPU one frame per thread, on a GPU as many as fill it.

    On a CPU the intermediate results of a chunk are small enough to stay in the cache, and with one frame per thread no
    frame is divided between threads. On a GPU chunks limit the memory.
    """
    return gpu.few_frames(x) if gpu.suits(x) else torch.split(x, torch.get_num_threads())


def by_few_frames(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply `work` to images, [f, c, h, w], chunk by chunk; each image may change its shape."""
    first, *rest = pieces = few_frames(x)
    made = work(first)
    if not rest:
        return made
    out = made.new_empty(len(x), *made.shape[2:], made.shape[1]).permute(0, 3, 1, 2)
    places = iter(torch.split(out, [len(piece) for piece in pieces]))
    next(places).copy_(made)
    for place, images_here in zip(places, rest, strict=True):
        place.copy_(work(images_here))
    return out


@dataclass(frozen=True, slots=True, eq=False)
class FrameAttention:
    """Self-attention within each frame, with one head as wide as the channels, added in place."""

    norm: GroupNorm
    qkv: Linear
    out: Linear
    heads: int

    @classmethod
    def of(cls, module: Any) -> FrameAttention:
        """Build from diffusers' Attention with a group norm and a residual."""
        projections = (module.to_q, module.to_k, module.to_v)
        weight = torch.cat([each.weight for each in projections]).t()
        qkv = Linear(weight, torch.cat([each.bias for each in projections]))
        return cls(GroupNorm.of(module.group_norm), qkv, Linear.of(module.to_out[0]), module.heads)

    def add_to(self, x: Tensor) -> None:
        """Add the attention to x, [f, c, h, w], channels last in memory, in place."""
        frames, channels, height, width = x.shape
        rows = self.norm(x).permute(0, 2, 3, 1).reshape(-1, channels)
        qkv = self.qkv(rows).view(frames, height * width, 3, self.heads, -1)
        q, k, v = qkv.movedim(2, 0).transpose(2, 3)  # [f, heads, h·w, d]
        if gpu.suits(x):
            seen = fused.frame_attention(q, k, v).reshape(-1, channels)
        else:
            seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, channels)
        self.out.add_to(x.permute(0, 2, 3, 1).view(-1, channels), seen)


class FastDecoder:
    """The same network as the given module's decoder, on its device and in its dtype."""

    def __init__(self, module: Any) -> None:
        """Build from diffusers' AutoencoderKLTemporalDecoder in eval mode."""
        decoder = module.decoder
        self.conv_in = Conv.of(decoder.conv_in).aligned()
        self.middle = [ClipBlock.of(block) for block in decoder.mid_block.resnets]
        self.attentions = [FrameAttention.of(attention) for attention in decoder.mid_block.attentions]
        self.levels = [
            (
                [ClipBlock.of(block) for block in level.resnets],
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
        x = self.conv_in(self.conv_in.filled(latents))
        x = _moved(self.middle[0], *_each_frame(self.middle[0], x))
        for attention, block in zip(self.attentions, self.middle[1:], strict=False):
            attention.add_to(x)
            x = _moved(block, *_each_frame(block, x))
        larger: Upsample | None = None
        for blocks, upsample in self.levels:
            for block in blocks:
                x, sums = _each_frame(block, x, larger)
                x, larger = _moved(block, x, sums), None
            larger = upsample
        x = by_few_frames(lambda frames: self.conv_out(self.norm_out.silu(frames)), x)
        return images(as_clip(self.conv_time(strip(_clip(x))), *_clip(x).shape[1:4]))[:, : self.channels]


def _each_frame(block: ClipBlock, x: Tensor, upsample: Upsample | None = None) -> tuple[Tensor, Tensor | None]:
    """Run an optional upsampling and a block's spatial half; may overwrite x. On a GPU, also return channel sums."""
    if gpu.suits(x):
        clip, sums = gpu.each_frame(block.spatial, _clip(x), upsample)
        return images(clip), sums
    if upsample is not None:
        x = by_few_frames(upsample, x)
    if block.spatial.shortcut is not None:
        return by_few_frames(block.spatial, x), None
    for frames in few_frames(x):
        frames.add_(block.spatial.change(frames))
    return x, None


def _moved(block: ClipBlock, x: Tensor, sums: Tensor | None) -> Tensor:
    """Run the temporal half in place."""
    if gpu.suits(x):
        clip = _clip(x)
        gpu.temporal(block.temporal, clip, sums=sums, out=clip)
    else:
        block.move(_clip(x))
    return x


def _clip(x: Tensor) -> Tensor:
    """Return a view of [f, c, h, w], channels last in memory, as [1, f, h, w, c]."""
    return x.permute(0, 2, 3, 1)[None]

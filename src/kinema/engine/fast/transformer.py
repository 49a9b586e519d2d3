"""The UNet's transformers: attention within frames and along time; constants of a video are computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from kinema.engine.fast import gpu
from kinema.engine.fast.layers import (
    FeedForward,
    GroupNorm,
    Linear,
    SelfAttention,
    as_clip,
    cross_attention,
    images,
    pixels,
    sinusoids,
    time_share,
)
from kinema.engine.fast.streaming import brought

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LayerConstants:
    """Values that one layer adds to every pixel of a video, at every step.

    positions: [f, 1, c], the embedding of the frame index;
    within: [b, 1, c] and along: [b, 1, c], the spatial and temporal cross-attention to the image embedding;
    additions: the same values in the form that the GPU code uses; None on a CPU.
    """

    positions: Tensor
    within: Tensor
    along: Tensor
    additions: gpu.Additions | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A spatial block and a temporal block, blended.

    Each consists of self-attention, cross-attention (a constant) and a feed-forward; before these, the temporal block
    has another feed-forward.
    """

    module: Any
    """The two diffusers blocks; their cross-attentions give the constants."""
    attention: SelfAttention
    feed_forward: FeedForward
    time_feed_forward_in: FeedForward
    time_attention: SelfAttention
    time_feed_forward: FeedForward
    share: float
    """Weight of the temporal block in the blend of both."""
    on_gpu: gpu.GpuLayer | None
    """The same weights in the GPU layout; None on a CPU."""
    STREAMED: ClassVar = ("on_gpu",)

    @classmethod
    def of(cls, spatial: Any, temporal: Any, share: Tensor, *, for_gpu: bool, in_bytes: bool = False) -> Layer:
        """Build from diffusers' BasicTransformerBlock and TemporalBasicTransformerBlock."""
        attention, feed_forward = (
            SelfAttention.of(spatial.norm1, spatial.attn1),
            FeedForward.of(spatial.norm3, spatial.ff),
        )
        time_in = FeedForward.of(temporal.norm_in, temporal.ff_in)
        time_attention = SelfAttention.of(temporal.norm1, temporal.attn1)
        time_feed_forward = FeedForward.of(temporal.norm3, temporal.ff)
        parts = attention, feed_forward, time_in, time_attention, time_feed_forward
        on_gpu = gpu.GpuLayer.of(*parts, share, in_bytes=in_bytes) if for_gpu else None
        return cls((spatial, temporal), *parts, share.item(), on_gpu)

    def constants(self, embedding: Tensor, positions: Tensor) -> LayerConstants:
        """Return the layer's constants from the embedding, [b, 1, d], and the frame positions, [f, 1, c]."""
        with brought([block.attn2 for block in self.module], embedding.device):
            within, along = (cross_attention(block.attn2, embedding) for block in self.module)
        additions = gpu.Additions.of(self, within, along, positions) if self.on_gpu else None
        return LayerConstants(positions, within, along, additions)

    def __call__(self, clip: Tensor, constants: LayerConstants) -> None:
        """Run the layer in place."""
        batch, frames, *_, channels = clip.shape
        rows = pixels(clip)
        self.attention.out.add_to(rows, self.attention.within_frames(clip))
        clip.view(batch, -1, channels).add_(constants.within)
        self.feed_forward.add_to(rows)

        moved = (clip.view(batch, frames, -1, channels) + constants.positions).view_as(clip)
        moved_rows = pixels(moved)
        self.time_feed_forward_in.add_to(moved_rows)
        self.time_attention.out.add_to(moved_rows, self.time_attention.along_time(moved))
        moved.view(batch, -1, channels).add_(constants.along)
        self.time_feed_forward.add_to(moved_rows)
        clip.lerp_(moved, self.share)


@dataclass(frozen=True, slots=True, eq=False)
class Transformer:
    """Norm, input projection, layers and output projection, added to the input."""

    module: Any
    """The diffusers module; embeds the positions of frames."""
    norm: GroupNorm
    proj_in: Linear
    layers: tuple[Layer, ...]
    proj_out: Linear

    @classmethod
    def of(cls, module: Any, *, for_gpu: bool, in_bytes: bool = False) -> Transformer:
        """Build from diffusers' TransformerSpatioTemporalModel."""
        share = time_share(module.time_mixer)
        blocks = zip(module.transformer_blocks, module.temporal_transformer_blocks, strict=True)
        choices = {"for_gpu": for_gpu, "in_bytes": in_bytes}
        layers = tuple(Layer.of(spatial, temporal, share, **choices) for spatial, temporal in blocks)
        norm, proj_in, proj_out = GroupNorm.of(module.norm), Linear.of(module.proj_in), Linear.of(module.proj_out)
        return cls(module, norm, proj_in, layers, proj_out)

    def constants(self, embedding: Tensor, num_frames: int) -> tuple[LayerConstants, ...]:
        """Return the constants of each layer for an embedding, [b, 1, d], and a number of frames."""
        places = sinusoids(torch.arange(num_frames, device=embedding.device), self.module.in_channels)
        with brought([self.module.time_pos_embed], embedding.device):
            positions = self.module.time_pos_embed(places.to(embedding.dtype))[:, None]
        return tuple(layer.constants(embedding, positions) for layer in self.layers)

    def __call__(self, clip: Tensor, constants: tuple[LayerConstants, ...]) -> None:
        """Run the transformer in place."""
        seen = as_clip(self.norm(images(clip)), *clip.shape[1:4])
        inner = self.proj_in(pixels(seen)).view_as(clip)
        for layer, layer_constants in zip(self.layers, constants, strict=True):
            layer(inner, layer_constants)
        self.proj_out.add_to(pixels(clip), pixels(inner))

"""Weights of diffusers' modules in the layouts that `ops` use; nothing is computed with them here.

Weights are used by reference where the layout fits, else converted once. Where weights are merged, a comment or
docstring explains why the result is equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from kinema.engine.fast.fp8 import FP8_DTYPE, FP8_MAX, FP8_SCALE
from kinema.engine.fast.layout import at_least_float32
from kinema.engine.fast.tuning import use_winograd

if TYPE_CHECKING:
    from torch import Tensor

# GPU matrix units need a channel count that is a multiple of this, for 16-bit dtypes.
CHANNEL_MULTIPLE = 8


@dataclass(frozen=True, slots=True, eq=False)
class GroupNorm:
    """Group normalisation."""

    groups: int
    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> GroupNorm:
        """Build from torch's module."""
        return cls(module.num_groups, module.weight, module.bias, module.eps)


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    """Layer normalisation of each pixel."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> LayerNorm:
        """Build from torch's module."""
        return cls(module.weight, module.bias, module.eps)


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear layer; weight: [in, out], a transposed view of the module's weight."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: Any) -> Linear:
        """Build from torch's Linear or a convolution with a 1×1 kernel."""
        return cls(module.weight.flatten(1).t(), module.bias)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A GEMM's operand for a GPU: weight [out, in], and the optional bias and scale of its output columns."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None

    @classmethod
    def quantized(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        norm: LayerNorm | None = None,
        input_scale: float = FP8_SCALE,
    ) -> PackedWeight:
        """Quantise the weight to fp8 with one scale per row.

        Args:
            weight: [out, in].
            bias: [out].
            norm: The layer norm before the GEMM, whose weight and bias are merged into those of the GEMM.
            input_scale: The factor by which the GEMM's input is already multiplied.
        """
        weight = at_least_float32(weight)
        if norm is not None:
            shift = weight @ at_least_float32(norm.bias)
            weight, bias = weight * norm.weight, shift if bias is None else shift + bias
        unit = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / FP8_MAX
        return cls((weight / unit).to(FP8_DTYPE), bias, (unit[:, 0] / input_scale).contiguous())


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """A convolution of a view with channels last in memory; its weight has channels last too."""

    weight: Tensor
    bias: Tensor
    padding: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, module: Any, *, scale: Tensor | None = None) -> Conv:
        """Build from torch's Conv2d, or from a Conv3d of kernel (3, 1, 1): a Conv2d of kernel (3, 1) on a strip.

        Args:
            module: The convolution.
            scale: A factor of the result, which is merged into the weight and bias.
        """
        weight, bias = module.weight, module.bias
        temporal = weight.dim() == 5
        if temporal:
            weight = weight[..., 0]
        if scale is not None:  # in float32 at least, to round only once
            weight, bias = ((scale * tensor).to(tensor.dtype) for tensor in (weight, bias))
        weight = weight.contiguous(memory_format=torch.channels_last)
        if scale is None:  # the same values in another order: replace them instead of storing them twice
            module.weight.data = weight[..., None] if temporal else weight
        return cls(weight, bias, module.padding[:2], module.stride[:2])

    @property
    def rows(self) -> Tensor:
        """Return the weight as a GEMM operand: [out, kernel's pixels · in]."""
        return self.weight.permute(0, 2, 3, 1).flatten(1)

    def aligned(self) -> Conv:
        """Return the layer on CUDA with zero channels added, in and out, up to the multiple that GPU matrix units need.

        The input must be padded likewise (`ops.conv.pad_channels`), and the result has the additional channels.
        """
        if not self.weight.is_cuda:
            return self
        more_out, more_in = (-size % CHANNEL_MULTIPLE for size in self.weight.shape[:2])
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
        weight = weight.contiguous(memory_format=torch.channels_last)
        return Conv(weight, F.pad(self.bias, (0, more_out)), self.padding, self.stride)


@dataclass(frozen=True, slots=True, eq=False)
class Upsample:
    """Nearest-neighbour upsampling by 2, then a 3×3 convolution.

    Several of the nine pixels under the kernel are copies of one pixel. Adding their weights in advance gives a
    transposed convolution of kernel 4 and stride 2, which computes the same in 16/36 of the multiplications.
    """

    conv: Conv
    transposed: Tensor

    @classmethod
    def of(cls, module: Any) -> Upsample:
        """Build from diffusers' Upsample2D."""
        weight = at_least_float32(module.conv.weight)  # [out, in, 3, 3]
        for axis in (2, 3):
            first, middle, last = weight.unbind(axis)
            weight = torch.stack([last, middle + last, first + middle, first], axis)
        transposed = weight.transpose(0, 1).to(module.conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        return cls(Conv(module.conv.weight, module.conv.bias), transposed)


@dataclass(frozen=True, slots=True, eq=False)
class ResBlock:
    """Norm, SiLU and convolution, twice; spatial on images or temporal on a strip.

    The time embedding that is added between the two is constant per channel, so it is merged into the bias of the first
    convolution (`unet.TimeShifts`).
    """

    norm1: GroupNorm
    conv1: Conv
    norm2: GroupNorm
    conv2: Conv
    shortcut: Linear | None
    bias: Tensor
    """Added to every pixel of the result."""
    packed: tuple[PackedWeight, PackedWeight] | None = None
    """Both convolutions for fp8, [out, kernel pixels · in]: quantized, or not if `use_winograd`."""

    @classmethod
    def of(cls, module: Any, *, scale: Tensor | None = None, fp8: bool = False) -> ResBlock:
        """Build from diffusers' ResnetBlock2D or TemporalResnetBlock; `scale` multiplies the residual branch."""
        shortcut = None if module.conv_shortcut is None else Linear.of(module.conv_shortcut)
        norm1, conv1, norm2 = GroupNorm.of(module.norm1), Conv.of(module.conv1), GroupNorm.of(module.norm2)
        conv2 = Conv.of(module.conv2, scale=scale)
        bias = at_least_float32(conv2.bias)
        bias = bias if shortcut is None else bias + shortcut.bias
        if not fp8:
            return cls(norm1, conv1, norm2, conv2, shortcut, bias)
        first, second = (
            PackedWeight(conv.rows)
            if use_winograd(conv.rows, conv.weight.shape[1])
            else PackedWeight.quantized(conv.rows)
            for conv in (conv1, conv2)
        )
        return cls(norm1, conv1, norm2, conv2, shortcut, bias, (first, second))


@dataclass(frozen=True, slots=True, eq=False)
class SpatioTemporalResBlock:
    """A spatial and a temporal ResBlock, blended.

    The blend α·s + (1 − α)·(s + residual(s)) equals s + (1 − α)·residual(s), and 1 − α is merged into the last
    convolution.
    """

    spatial: ResBlock
    temporal: ResBlock

    @classmethod
    def of(cls, module: Any, *, fp8: bool = False) -> SpatioTemporalResBlock:
        """Build from diffusers' SpatioTemporalResBlock."""
        alpha = temporal_alpha(module.time_mixer)
        spatial = ResBlock.of(module.spatial_res_block, fp8=fp8)
        return cls(spatial, ResBlock.of(module.temporal_res_block, scale=alpha, fp8=fp8))


def temporal_alpha(mixer: Any) -> Tensor:
    """Return the temporal half's weight in diffusers' AlphaBlender, [1], in float32 at least.

    It is computed on the CPU, so that it is bit-identical whatever device the network is on.
    """
    spatial = torch.sigmoid(at_least_float32(mixer.mix_factor.cpu()))
    alpha = spatial if mixer.switch_spatial_to_temporal_mix else 1 - spatial
    return alpha.to(mixer.mix_factor.device)


@dataclass(frozen=True, slots=True, eq=False)
class FeedForward:
    """Norm, GEGLU and output projection; value and gate are two GEMMs, so no result has to be split."""

    norm: LayerNorm
    value: Linear
    gate: Linear
    out: Linear

    @classmethod
    def of(cls, norm: Any, module: Any) -> FeedForward:
        """Build from torch's LayerNorm and diffusers' FeedForward."""
        projection = module.net[0].proj
        (value, gate), (value_bias, gate_bias) = projection.weight.chunk(2), projection.bias.chunk(2)
        halves = Linear(value.t(), value_bias), Linear(gate.t(), gate_bias)
        return cls(LayerNorm.of(norm), *halves, Linear.of(module.net[2]))


@dataclass(frozen=True, slots=True, eq=False)
class SelfAttention:
    """Norm and self-attention of a transformer; query, key and value are one GEMM, [in, 3 · out]."""

    norm: LayerNorm
    qkv: Tensor
    out: Linear
    heads: int

    @classmethod
    def of(cls, norm: Any, module: Any) -> SelfAttention:
        """Build from torch's LayerNorm and diffusers' Attention, in which only the output projection has a bias."""
        projections = module.to_q, module.to_k, module.to_v
        qkv = torch.cat([each.weight for each in projections])
        for each, part in zip(projections, qkv.chunk(3), strict=True):
            each.weight.data = part  # no need to have them twice
        return cls(LayerNorm.of(norm), qkv.t(), Linear.of(module.to_out[0]), module.heads)


@dataclass(frozen=True, slots=True, eq=False)
class DecoderAttention:
    """The decoder's self-attention within each frame, with one head as wide as the channels."""

    norm: GroupNorm
    qkv: Linear
    out: Linear
    heads: int

    @classmethod
    def of(cls, module: Any) -> DecoderAttention:
        """Build from diffusers' Attention with a group norm and a residual."""
        projections = (module.to_q, module.to_k, module.to_v)
        weight = torch.cat([each.weight for each in projections]).t()
        qkv = Linear(weight, torch.cat([each.bias for each in projections]))
        return cls(GroupNorm.of(module.group_norm), qkv, Linear.of(module.to_out[0]), module.heads)


def interleaved(values: Tensor, gates: Tensor) -> Tensor:
    """Interleave the weights or biases of values and gates, [n, …] each, in the order of `geglu_linear`: [2n, …].

    n is a multiple of 32. Each value is next to its gate, so a thread of the matrix units has both. Four threads share
    32 outputs. Each of them gets eight outputs that are contiguous in memory, to store them at once: the order is the
    first output of each thread, then the second of each, and so on.
    """
    both = torch.stack([values, gates], 1)
    return both.view(-1, 4, 8, *both.shape[1:]).transpose(1, 2).flatten(0, 3)


@dataclass(frozen=True, slots=True, eq=False)
class PackedAttention:
    """A norm, the GEMM for query, key and value, and the output GEMM after attention."""

    norm: LayerNorm
    qkv: PackedWeight
    out: PackedWeight
    heads: int

    @classmethod
    def of(cls, attention: SelfAttention, *, fp8: bool) -> PackedAttention:
        """Build from a self-attention."""
        weight = attention.qkv.t()
        qkv = PackedWeight.quantized(weight, norm=attention.norm) if fp8 else PackedWeight(weight)
        return cls(attention.norm, qkv, PackedWeight(attention.out.weight.t()), attention.heads)


@dataclass(frozen=True, slots=True, eq=False)
class PackedFeedForward:
    """A norm and a feed-forward's two GEMMs; the first applies GEGLU before it stores its result."""

    norm: LayerNorm
    projection: PackedWeight
    """Columns of values and gates are `interleaved`."""
    out: PackedWeight
    hidden_scale: float = 1.0
    """Scale of the result of GEGLU in fp8."""

    @classmethod
    def of(cls, feed_forward: FeedForward, *, alpha: Tensor | float = 1.0, fp8: bool = False) -> PackedFeedForward:
        """Build from a feed-forward; its result is multiplied by `alpha`."""
        parts, norm = (feed_forward.value, feed_forward.gate), feed_forward.norm
        weight = interleaved(*(each.weight.t() for each in parts))
        bias = interleaved(*(each.bias for each in parts))
        last = feed_forward.out.weight.t()
        out = last if isinstance(alpha, float) else (at_least_float32(last) * alpha).to(last.dtype)
        if not fp8:
            return cls(norm, PackedWeight(weight, bias), PackedWeight(out))
        projection = PackedWeight.quantized(weight, bias, norm=norm)
        hidden_scale = FP8_SCALE / _geglu_rms(projection)
        return cls(norm, projection, PackedWeight.quantized(out, input_scale=hidden_scale), hidden_scale)


def _geglu_rms(projection: PackedWeight) -> float:
    """Return the root mean square of value · gate for standardised input, estimated from the weights and biases."""
    assert projection.scale is not None
    assert projection.bias is not None
    weight = at_least_float32(projection.weight) * (projection.scale * FP8_SCALE)[:, None]
    value, gate = (weight.square().sum(1) + at_least_float32(projection.bias).square()).view(-1, 2).unbind(1)
    return float((value * gate).mean().sqrt().clamp_min(1e-6))


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayer:
    """The weights of a transformer layer as `blocks_gpu` uses them."""

    attention: PackedAttention
    feed_forward: PackedFeedForward
    temporal_feed_forward_in: PackedFeedForward
    temporal_attention: PackedAttention
    temporal_feed_forward: PackedFeedForward
    """Its weights include the alpha of the temporal block."""
    alpha: float
    fp8: bool


@dataclass(frozen=True, slots=True, eq=False)
class TransformerLayer:
    """A spatial block and a temporal block, blended.

    Each consists of self-attention, cross-attention (a constant) and a feed-forward; before these, the temporal block
    has another feed-forward.
    """

    module: Any
    """The two diffusers blocks; their cross-attentions give the constants."""
    attention: SelfAttention
    feed_forward: FeedForward
    temporal_feed_forward_in: FeedForward
    temporal_attention: SelfAttention
    temporal_feed_forward: FeedForward
    alpha: float
    """Weight of the temporal block in the blend of both."""
    packed: PackedLayer | None
    """The same weights in the GPU layout; None on a CPU."""
    PREFETCHED: ClassVar = ("packed",)

    @classmethod
    def of(cls, spatial: Any, temporal: Any, alpha: Tensor, *, for_gpu: bool, fp8: bool = False) -> TransformerLayer:
        """Build from diffusers' BasicTransformerBlock and TemporalBasicTransformerBlock."""
        attention = SelfAttention.of(spatial.norm1, spatial.attn1)
        feed_forward = FeedForward.of(spatial.norm3, spatial.ff)
        temporal_in = FeedForward.of(temporal.norm_in, temporal.ff_in)
        temporal_attention = SelfAttention.of(temporal.norm1, temporal.attn1)
        temporal_feed_forward = FeedForward.of(temporal.norm3, temporal.ff)
        packed = None
        if for_gpu:
            packed = PackedLayer(
                PackedAttention.of(attention, fp8=fp8),
                PackedFeedForward.of(feed_forward, fp8=fp8),
                PackedFeedForward.of(temporal_in, fp8=fp8),
                PackedAttention.of(temporal_attention, fp8=fp8),
                PackedFeedForward.of(temporal_feed_forward, alpha=alpha, fp8=fp8),
                alpha.item(),
                fp8,
            )
        parts = attention, feed_forward, temporal_in, temporal_attention, temporal_feed_forward
        return cls((spatial, temporal), *parts, alpha.item(), packed)


@dataclass(frozen=True, slots=True, eq=False)
class Transformer:
    """Norm, input projection, layers and output projection, added to the input."""

    module: Any
    """The diffusers module; embeds the positions of frames."""
    norm: GroupNorm
    proj_in: Linear
    layers: tuple[TransformerLayer, ...]
    proj_out: Linear

    @classmethod
    def of(cls, module: Any, *, for_gpu: bool, fp8: bool = False) -> Transformer:
        """Build from diffusers' TransformerSpatioTemporalModel."""
        alpha = temporal_alpha(module.time_mixer)
        blocks = zip(module.transformer_blocks, module.temporal_transformer_blocks, strict=True)
        layers = tuple(
            TransformerLayer.of(spatial, temporal, alpha, for_gpu=for_gpu, fp8=fp8) for spatial, temporal in blocks
        )
        norm, proj_in, proj_out = GroupNorm.of(module.norm), Linear.of(module.proj_in), Linear.of(module.proj_out)
        return cls(module, norm, proj_in, layers, proj_out)

"""The layers of the UNet and the temporal decoder, in one memory layout.

A video is a contiguous tensor [batch, frames, height, width, channels]. All other shapes are views of it without a
copy: `images` for layers that work within a frame, `strip` for layers that work along time, and a matrix with one row
per pixel for layers that work on single pixels. So no tensor is permuted in memory between the spatial and the temporal
half of a layer.

The layers use the weights of diffusers' modules: by reference where the layout fits, else converted once. Results are
exact up to rounding. Where a computation is omitted or merged, a comment or docstring explains why the result is equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from kinema.engine.fast import fp8, fused, onednn
from kinema.engine.fast.tuning import use_winograd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

# GPU matrix units need a channel count that is a multiple of this, for 16-bit dtypes.
ALIGNED = 8
# Pixels per feed-forward chunk on a CPU, so that its wide hidden layer stays in the cache.
ROWS = 4096
# With fewer pixels and channels last, torch's group norm on a CPU works group by group, three channels at a time.
SMALL = 1024
# Elements per band of the temporal layers on a CPU: 8 MiB in float32.
BAND = 2**21


def images(clip: Tensor) -> Tensor:
    """Return a view of [b, f, h, w, c] as [b·f, c, h, w]: each frame an image, channels last in memory."""
    return clip.flatten(0, 1).permute(0, 3, 1, 2)


def strip(clip: Tensor) -> Tensor:
    """Return a view of [b, f, h, w, c] as [b, c, f, h·w]: an image with one row per frame, time as vertical axis."""
    return clip.flatten(2, 3).permute(0, 3, 1, 2)


def as_clip(view: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Convert the result of `images` or `strip` back to [b, f, h, w, c]."""
    return view.permute(0, 2, 3, 1).reshape(-1, frames, height, width, view.shape[1])


def pixels(clip: Tensor) -> Tensor:
    """Return a view of […, c] as [pixels of all frames, c]."""
    return clip.view(-1, clip.shape[-1])


@dataclass(frozen=True, slots=True, eq=False)
class GroupNorm:
    """Group normalisation of a view."""

    groups: int
    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> GroupNorm:
        """Build from torch's module."""
        return cls(module.num_groups, module.weight, module.bias, module.eps)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise [n, c, h, w], channels last in memory; the result has the same layout."""
        if fused.has_kernels(x):
            return self._fused(x, silu=False)
        if x.device.type == "cpu" and x[0, 0].numel() < SMALL:
            return self._of_small(x)
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)

    def _of_small(self, x: Tensor) -> Tensor:
        """Normalise by sums over whole rows of channels, which a CPU adds with vector instructions."""
        n, channels, height, width = x.shape
        rows = at_least_float32(x.permute(0, 2, 3, 1).reshape(n, height * width, channels))

        def mean(rows: Tensor) -> Tensor:
            """Return the mean of each group, repeated for each of its channels: [n, 1, c]."""
            groups = rows.mean(1).view(n, self.groups, -1).mean(-1, keepdim=True)
            return groups.expand(-1, -1, channels // self.groups).reshape(n, 1, channels)

        centred = rows - mean(rows)
        scale = (mean(centred.square()) + self.eps).rsqrt_() * self.weight
        out = torch.addcmul(self.bias.to(rows.dtype), centred, scale, out=centred).to(x.dtype)
        return out.view(n, height, width, channels).permute(0, 3, 1, 2)

    def silu(self, x: Tensor) -> Tensor:
        """Normalise, then apply SiLU in place to the normalised tensor."""
        if fused.has_kernels(x):
            return self._fused(x, silu=True)
        return F.silu(self(x), inplace=True)

    def _fused(self, x: Tensor, *, silu: bool) -> Tensor:
        """Normalise with the project's own kernels."""
        n, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n, height * width, channels)
        return fused.group_norm(rows, self, silu=silu).view(n, height, width, channels).permute(0, 3, 1, 2)

    def across(self, pieces: Iterable[Tensor]) -> Affine:
        """Return the norm over all pieces together, each [1, c, h, w], of a tensor that is processed piece by piece."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for x in map(at_least_float32, pieces):
            channels, pixels_here = x.shape[1], x[0, 0].numel()
            _, mean, rstd = torch.native_group_norm(x, None, None, 1, channels, pixels_here, self.groups, self.eps)
            mean, variance = mean.double(), rstd.double() ** -2 - self.eps
            total = total + torch.stack([mean, variance + mean**2]) * pixels_here
            count += pixels_here
        mean, square = (total / count).view(2, self.groups, 1)
        scale = (square - mean**2 + self.eps).rsqrt() * self.weight.view(self.groups, -1)
        shift = self.bias.view(self.groups, -1) - mean * scale
        return Affine(*(each.to(self.weight.dtype).view(1, -1, 1, 1) for each in (scale, shift)))


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """A norm whose means and variances are known, as scale and shift, both [1, c, 1, 1]."""

    scale: Tensor
    shift: Tensor

    def silu(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalise and apply SiLU, into a new tensor or into `out`."""
        return F.silu(torch.addcmul(self.shift, x, self.scale, out=out), inplace=True)


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

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise […, c] over the channels."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear layer; weight: [in, out], a transposed view of the module's weight."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: Any) -> Linear:
        """Build from torch's Linear or a convolution with a 1×1 kernel."""
        return cls(module.weight.flatten(1).t(), module.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the layer: [rows, in] → [rows, out]."""
        if onednn.suits(x):
            return onednn.linear(x, self.weight.t(), self.bias)
        return torch.addmm(self.bias, x, self.weight)

    def gelu(self, x: Tensor) -> Tensor:
        """Compute the layer and GELU."""
        if onednn.suits(x):
            return onednn.linear(x, self.weight.t(), self.bias, "gelu")
        made: Tensor = torch.ops.aten.gelu_(self(x))
        return made

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """Compute the layer and multiply the result by another matrix, [rows, out]."""
        if onednn.suits(x):
            return onednn.linear_with(x, other, self.weight.t(), self.bias, "mul")
        return self(x).mul_(other)

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the layer's result to `out`, [rows, out], in place: the residual needs no separate pass."""
        if onednn.suits(x):
            return out.copy_(onednn.linear_with(x, out, self.weight.t(), self.bias, "add"))
        return out.add_(self.bias).addmm_(x, self.weight)


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """A GEMM for a GPU: weight [out, in], and the optional scale and bias of its output columns."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None

    @classmethod
    def in_bytes(
        cls, weight: Tensor, bias: Tensor | None = None, *, norm: LayerNorm | None = None, factor: float = fp8.FP8_SCALE
    ) -> Product:
        """Quantise the weight to fp8 with one scale per row.

        Args:
            weight: [out, in].
            bias: [out].
            norm: The layer norm before the GEMM, whose weight and bias are merged into those of the GEMM.
            factor: The factor by which the GEMM's input is already multiplied.
        """
        weight = at_least_float32(weight)
        if norm is not None:
            shift = weight @ at_least_float32(norm.bias)
            weight, bias = weight * norm.weight, shift if bias is None else shift + bias
        unit = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / fp8.FP8_MAX
        return cls((weight / unit).to(fp8.FP8_DTYPE), bias, (unit[:, 0] / factor).contiguous())


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
        along_time = weight.dim() == 5
        if along_time:
            weight = weight[..., 0]
        if scale is not None:  # in float32 at least, to round only once
            weight, bias = ((scale * tensor).to(tensor.dtype) for tensor in (weight, bias))
        weight = weight.contiguous(memory_format=torch.channels_last)
        if scale is None:  # the same values in another order: replace them instead of storing them twice
            module.weight.data = weight[..., None] if along_time else weight
        return cls(weight, bias, module.padding[:2], module.stride[:2])

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute the convolution: [n, in, h, w] → [n, out, h', w'].

        Args:
            x: The input.
            bias: Replaces the layer's own bias: [1, out], or [n, out], one row per image.
        """
        if bias is None:
            bias = self.bias[None]
        if len(bias) == 1:
            return F.conv2d(x, self.weight, bias[0], self.stride, self.padding)
        return self.product(x).add_(bias[..., None, None])

    @property
    def rows(self) -> Tensor:
        """Return the weight as a GEMM operand: [out, kernel's pixels · in]."""
        return self.weight.permute(0, 2, 3, 1).flatten(1)

    def product(self, x: Tensor) -> Tensor:
        """Compute the convolution without its bias; the caller adds the bias later."""
        return F.conv2d(x, self.weight, None, self.stride, self.padding)

    def aligned(self) -> Conv:
        """Return the layer on CUDA with zero channels added, in and out, up to the multiple that GPU matrix units need.

        The input must be padded likewise (`filled`), and the result has the additional channels.
        """
        if not self.weight.is_cuda:
            return self
        more_out, more_in = (-size % ALIGNED for size in self.weight.shape[:2])
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
        weight = weight.contiguous(memory_format=torch.channels_last)
        return Conv(weight, F.pad(self.bias, (0, more_out)), self.padding, self.stride)

    def filled(self, x: Tensor) -> Tensor:
        """Return x, [n, c, h, w], with zeros in the channels that `aligned` added, channels last in memory."""
        x = F.pad(x, (0, 0, 0, 0, 0, self.weight.shape[1] - x.shape[1]))
        return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True, eq=False)
class Upsample:
    """Nearest-neighbour upsampling by 2, then a 3×3 convolution.

    Several of the nine pixels under the kernel are copies of one pixel. Adding their weights in advance gives a
    transposed convolution of kernel 4 and stride 2, which computes the same in 16/36 of the multiplications.
    """

    conv: Conv
    joined: Tensor

    @classmethod
    def of(cls, module: Any) -> Upsample:
        """Build from diffusers' Upsample2D."""
        weight = at_least_float32(module.conv.weight)  # [out, in, 3, 3]
        for axis in (2, 3):
            first, middle, last = weight.unbind(axis)
            weight = torch.stack([last, middle + last, first + middle, first], axis)
        joined = weight.transpose(0, 1).to(module.conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        return cls(Conv(module.conv.weight, module.conv.bias), joined)

    def __call__(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Upsample [n, c, h, w] to [n, c, *size].

        Args:
            x: The input.
            size: 2h × 2w by default; a side of odd size is one less.
        """
        return self._enlarged(x, size, self.conv.bias)

    def product(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Upsample without the bias; the caller adds the bias later."""
        return self._enlarged(x, size, None)

    def _enlarged(self, x: Tensor, size: tuple[int, int] | None, bias: Tensor | None) -> Tensor:
        if size in (None, (2 * x.shape[2], 2 * x.shape[3])):
            return F.conv_transpose2d(x, self.joined, bias, stride=2, padding=1)
        x = F.interpolate(x, size, mode="nearest")
        return F.conv2d(x, self.conv.weight, bias, padding=1)


@dataclass(frozen=True, slots=True, eq=False)
class ResBlock:
    """Norm, SiLU and convolution, twice; the same code is spatial on `images` and temporal on a `strip`.

    The time embedding that is added between the two is constant per channel, so it is merged into the bias of the first
    convolution (`TimeShifts`).
    """

    norm1: GroupNorm
    conv1: Conv
    norm2: GroupNorm
    conv2: Conv
    shortcut: Linear | None
    bias: Tensor
    """Added to every pixel of the result."""
    products: tuple[Product, Product] | None = None
    """Both convolutions for fp8, [out, kernel pixels · in]: quantized, or not if `use_winograd`."""

    @classmethod
    def of(cls, module: Any, *, scale: Tensor | None = None, in_bytes: bool = False) -> ResBlock:
        """Build from diffusers' ResnetBlock2D or TemporalResnetBlock; `scale` multiplies the residual branch."""
        shortcut = None if module.conv_shortcut is None else Linear.of(module.conv_shortcut)
        norm1, conv1, norm2 = GroupNorm.of(module.norm1), Conv.of(module.conv1), GroupNorm.of(module.norm2)
        conv2 = Conv.of(module.conv2, scale=scale)
        bias = at_least_float32(conv2.bias)
        bias = bias if shortcut is None else bias + shortcut.bias
        if not in_bytes:
            return cls(norm1, conv1, norm2, conv2, shortcut, bias)
        first, second = (
            Product(conv.rows) if use_winograd(conv.rows, conv.weight.shape[1]) else Product.in_bytes(conv.rows)
            for conv in (conv1, conv2)
        )
        return cls(norm1, conv1, norm2, conv2, shortcut, bias, (first, second))

    def change(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Return the residual branch for x, [n, c, h, w]; shift: the first bias including the time embedding."""
        hidden = self.conv1(self.norm1.silu(x), shift)
        return self.conv2(self.norm2.silu(hidden))

    def add_to(self, x: Tensor, shift: Tensor | None = None) -> None:
        """Add the residual branch to a strip, [b, c, f, h·w], in place."""
        if x.device.type != "cpu" or x[0].numel() <= BAND:
            x.add_(self.change(x, shift))
            return
        shifts = [None] * len(x) if shift is None else shift[:, None].expand(len(x), -1, -1)
        for one, one_shift in zip(torch.split(x, 1), shifts, strict=True):
            self._add_in_bands(one, one_shift)

    def _add_in_bands(self, x: Tensor, shift: Tensor | None) -> None:
        """Add the residual branch to one strip in bands of columns, so that intermediate results stay in the cache."""
        _, channels, frames, _ = x.shape
        rows = x.permute(0, 2, 3, 1).view(1, 1, -1, channels).permute(0, 3, 1, 2)
        norm1 = self.norm1.across(torch.split(rows, BAND // channels, 3))
        bands = torch.split(x, max(1, BAND // (channels * frames)), 3)
        hidden = [self.conv1(norm1.silu(band), shift) for band in bands]
        norm2 = self.norm2.across(hidden)
        for band, each in zip(bands, hidden, strict=True):
            band.add_(self.conv2(norm2.silu(each, out=each)))

    def __call__(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Return the block's result in a new tensor; x is not modified."""
        out = self.change(x, shift)
        if self.shortcut is None:
            return out.add_(x)
        rows = out.permute(0, 2, 3, 1).reshape(-1, out.shape[1])
        self.shortcut.add_to(rows, x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]))
        return rows.view(*out.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class ClipBlock:
    """A spatial and a temporal ResBlock, blended.

    The blend α·s + (1 − α)·(s + change(s)) equals s + (1 − α)·change(s), and 1 − α is merged into the last convolution.
    """

    spatial: ResBlock
    temporal: ResBlock

    @classmethod
    def of(cls, module: Any, *, in_bytes: bool = False) -> ClipBlock:
        """Build from diffusers' SpatioTemporalResBlock."""
        share = time_share(module.time_mixer)
        spatial = ResBlock.of(module.spatial_res_block, in_bytes=in_bytes)
        return cls(spatial, ResBlock.of(module.temporal_res_block, scale=share, in_bytes=in_bytes))

    def __call__(self, clip: Tensor, shifts: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the result in a new tensor; shifts: [1 or b, c] for the spatial and the temporal first convolution."""
        frames, height, width = clip.shape[1:4]
        spatial, temporal = shifts or (None, None)
        if spatial is not None and len(spatial) > 1:
            spatial = spatial.repeat_interleave(frames, 0)
        out = as_clip(self.spatial(images(clip), spatial), frames, height, width)
        self.move(out, temporal)
        return out

    def move(self, clip: Tensor, shift: Tensor | None = None) -> None:
        """Run the temporal half in place."""
        self.temporal.add_to(strip(clip), shift)


def time_share(mixer: Any) -> Tensor:
    """Return the temporal half's weight in diffusers' AlphaBlender, [1], in float32 at least.

    It is computed on the CPU, so that it is bit-identical whatever device the network is on.
    """
    spatial = torch.sigmoid(at_least_float32(mixer.mix_factor.cpu()))
    share = spatial if mixer.switch_spatial_to_temporal_mix else 1 - spatial
    return share.to(mixer.mix_factor.device)


@dataclass(frozen=True, slots=True, eq=False)
class FeedForward:
    """Norm, GEGLU and output projection, added in place; value and gate are two GEMMs, so no result has to be split."""

    norm: LayerNorm
    value: Linear
    gate: Linear
    out: Linear

    @classmethod
    def of(cls, norm: Any, module: Any) -> FeedForward:
        """Build from torch's LayerNorm and diffusers' FeedForward."""
        wide = module.net[0].proj
        (value, gate), (value_bias, gate_bias) = wide.weight.chunk(2), wide.bias.chunk(2)
        halves = Linear(value.t(), value_bias), Linear(gate.t(), gate_bias)
        return cls(LayerNorm.of(norm), *halves, Linear.of(module.net[2]))

    def add_to(self, x: Tensor) -> None:
        """Add the feed-forward to x, [pixels, c], in place."""
        for rows in in_pieces(x):
            seen = self.norm(rows)
            self.out.add_to(rows, self.value.times(seen, self.gate.gelu(seen)))


def in_pieces(x: Tensor) -> Iterator[Tensor]:
    """Yield chunks of rows: all rows at once on a GPU, and on a CPU as many as its cache holds."""
    yield from x.chunk(-(-len(x) // ROWS) if x.device.type == "cpu" else 1)


@dataclass(frozen=True, slots=True, eq=False)
class SelfAttention:
    """Norm and self-attention; query, key and value are one GEMM."""

    norm: LayerNorm
    qkv: Tensor
    out: Linear
    heads: int

    @classmethod
    def of(cls, norm: Any, module: Any) -> SelfAttention:
        """Build from torch's LayerNorm and diffusers' Attention, in which only the output projection has a bias."""
        projections = module.to_q, module.to_k, module.to_v
        joined = torch.cat([each.weight for each in projections])
        for each, part in zip(projections, joined.chunk(3), strict=True):
            each.weight.data = part  # no need to have them twice
        return cls(LayerNorm.of(norm), joined.t(), Linear.of(module.to_out[0]), module.heads)

    def projected(self, clip: Tensor) -> Tensor:
        """Return query, key and value of each pixel, [pixels, 3c], from [b, f, h, w, c]."""
        seen = self.norm(pixels(clip))
        return onednn.linear(seen, self.qkv.t(), None) if onednn.suits(seen) else seen @ self.qkv

    def split(self, qkv: Tensor, clip: Tensor) -> Tensor:
        """Return a view of the pixels' projections, [pixels, 3c], as [3, b, f, h·w, heads, c / heads]."""
        batch, frames, height, width, channels = clip.shape
        return qkv.view(batch, frames, height * width, 3, self.heads, channels // self.heads).movedim(3, 0)

    def within_frames(self, clip: Tensor) -> Tensor:
        """Return the attention of each pixel to its frame, [pixels, c], before the output layer."""
        qkv = self.split(self.projected(clip), clip).flatten(1, 2)  # [3, b·f, h·w, heads, d]
        if onednn.suits(clip) and onednn.attends(qkv.shape[2]):
            return onednn.attention(qkv.movedim(0, 2)).view(-1, clip.shape[-1])
        q, k, v = qkv.transpose(2, 3)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, clip.shape[-1])

    def along_time(self, clip: Tensor) -> Tensor:
        """Return the attention of each pixel to its position in all frames, [pixels, c], before the output layer."""
        batch, frames, *_, channels = clip.shape
        taken = clip.new_empty(batch, frames, clip.shape[2] * clip.shape[3], channels)
        # This runs on a CPU, where torch's attention to a few keys is twice as fast in float32 as in half precision.
        qkv = self.split(at_least_float32(self.projected(clip)), clip)
        for i, (q, k, v) in enumerate(qkv.permute(1, 0, 3, 4, 2, 5)):  # [h·w, heads, f, d]
            seen = F.scaled_dot_product_attention(q, k, v)
            taken[i] = seen.permute(2, 0, 1, 3).flatten(2)
        return pixels(taken)


def cross_attention(module: Any, embedding: Tensor) -> Tensor:
    """Return the cross-attention to one key; the softmax of one score is 1, so all queries have the same result.

    Args:
        module: diffusers' Attention.
        embedding: [b, 1, d].

    Returns:
        [b, 1, c].
    """
    taken: Tensor = module.to_out[0](module.to_v(embedding))
    return taken


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to float32 at least, for sums of weights, which are then rounded once."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sinusoids(positions: Tensor, channels: int, longest: float = 10000.0) -> Tensor:
    """Return cosines and sines of each position, float32 [n, channels] (Vaswani et al. 2017, cosines first)."""
    half = channels // 2
    # In diffusers' order of operations, so that both round alike.
    exponents = -math.log(longest) * torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angles = positions.float()[:, None] * torch.exp(exponents)
    return torch.cat([angles.cos(), angles.sin()], -1)

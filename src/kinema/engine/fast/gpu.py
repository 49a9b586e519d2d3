"""The blocks of `layers` and `transformer` in the order of operations that is fastest on a GPU; same weights.

On a GPU, operations other than matmuls are limited by memory bandwidth, so every pass over the video counts. Three
methods save passes. Constants per frame (biases, the one-key cross-attention, the frame positions) are not added where
they arise; they are collected in small tables and added by the norm that reads the pixels next (`Additions`). Kernels
that add two videos also compute their channel sums, so the following group norm need not (`sums`). And GEMMs accumulate
into their output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kinema.engine.fast import fp8, fused
from kinema.engine.fast.layers import Product, as_clip, at_least_float32, images, pixels

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.engine.fast.layers import ClipBlock, FeedForward, LayerNorm, Linear, ResBlock, SelfAttention, Upsample
    from kinema.engine.fast.transformer import Layer, LayerConstants, Transformer

# Elements per chunk of a large video: half a gigabyte in half precision.
PIECE = 2**28
# Pixels of a kernel's largest tile; a band is a multiple of it where possible.
TILED = 256


Summed = tuple["Tensor", "Tensor | None"]
"""The hidden states of all frames, and their `channel_sums` if known."""


def suits(x: Tensor) -> bool:
    """Return whether this order of operations is the faster one on the tensor's device."""
    return x.is_cuda


def few_frames(frames: Tensor) -> tuple[Tensor, ...]:
    """Split frames, [f, …], into chunks that fill a GPU and limit its memory use."""
    return torch.split(frames, max(1, PIECE // frames[0].numel()))


def summed(clip: Tensor) -> Summed:
    """Return a video with its channel sums, for a video that more than one norm reads."""
    return clip, fused.channel_sums(_frames(clip))


def with_each(clip: Tensor, held: Tensor) -> Tensor:
    """Add images to all frames of videos; both contiguous.

    Args:
        clip: [n, f, h, w, c].
        held: [b, n, 1, h, w, c].

    Returns:
        [b · n, f, h, w, c].
    """
    made = clip.new_empty(len(held), *clip.shape)
    nothing = clip.new_zeros(clip.shape[-1], dtype=torch.float32)
    for pictures, out in zip(held, made, strict=True):
        for one, picture, place in zip(clip, pictures, out, strict=True):  # torch's broadcast add is slow
            frames = one.flatten(1, 2)
            fused.add(frames, picture.flatten(1, 2).expand_as(frames), nothing, place.flatten(1, 2))
    return made.flatten(0, 1)


def spatial(
    block: ResBlock,
    clip: Tensor,
    *,
    sums: Tensor | None = None,
    skip: Summed | None = None,
    before: Tensor | None = None,
    shift: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a ResBlock within frames; only `out` is modified.

    Args:
        block: Its weights.
        clip: [b, f, h, w, c].
        sums: `channel_sums` of the frames, if known.
        skip: [b, f, h, w, c''], channels that follow those of `clip`; they are concatenated only inside the norm.
        before: [c], still to be added to `clip`.
        shift: [1 or b, c'], the first convolution's bias including the time embedding.
        out: The output, which may be `clip`; by default a new tensor.

    Returns:
        The result, [b, f, h, w, c'], and its `channel_sums`.
    """
    size = clip.shape[:4]
    read = [(clip, sums)] if skip is None else [(clip, sums), skip]
    parts = [each.view(-1, *size[2:], each.shape[-1]) for each, _ in read]
    shift = block.conv1.bias[None] if shift is None else shift
    if len(shift) > 1:
        shift = shift.repeat_interleave(size[1], 0)
    bias, plus = block.bias, None
    if before is not None:
        plus = F.pad(before, (0, len(block.norm1.weight) - len(before)))[None]
        bias = bias + (before if block.shortcut is None else before @ block.shortcut.weight[: len(before)])
    first, second = block.products or (Product(conv.rows) for conv in (block.conv1, block.conv2))
    sums = torch.cat([fused.channel_sums(_frames(each)) if of is None else of for each, of in read], -1)
    scales = fused.affine(sums, block.norm1, size[2] * size[3], plus=plus)
    hidden, sums = fused.activated_convolved(parts, scales, first, clip.dtype)
    scales = fused.affine(sums, block.norm2, size[2] * size[3], plus=shift)
    out = clip.new_empty(*size, len(block.bias)) if out is None else out
    place = out.view(-1, *out.shape[2:])
    if block.shortcut is not None:
        _through_shortcut(parts, block.shortcut.weight, pixels(out))
    adding = {"kept": parts[0] if block.shortcut is None else place, "bias": bias, "out": place}
    return out, fused.activated_convolved([hidden], scales, second, clip.dtype, into=hidden, **adding)[1]


def temporal(
    block: ResBlock,
    clip: Tensor,
    *,
    shift: Tensor | None = None,
    sums: Tensor | None = None,
    more: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a ResBlock without shortcut along time; only `out` is modified.

    Except for the norms, the block mixes pixels only along time, and the norms need only sums. So a large video is
    processed in bands of pixels with all frames of each. The only additional memory is the tensor between the two
    convolutions.

    Args:
        block: Its weights.
        clip: [b, f, h, w, c].
        shift: [1 or b, c], the first convolution's bias including the time embedding.
        sums: `channel_sums` of the frames, if known.
        more: [c], also added to every pixel of the result.
        out: The output, which may be `clip`; by default a new tensor.

    Returns:
        The result, [b, f, h, w, c], and its `channel_sums`.
    """
    out = torch.empty_like(clip) if out is None else out
    rows, places, span = _frames(clip), _frames(out), clip.shape[1]
    shift = block.conv1.bias[None] if shift is None else shift
    bias = block.bias if more is None else block.bias + more
    first, second = block.products or (Product(conv.rows) for conv in (block.conv1, block.conv2))
    together = max(1, PIECE // (len(rows) * rows.shape[2]))
    bands = range(0, rows.shape[1], together // TILED * TILED or together)
    scales = fused.affine(fused.channel_sums(rows) if sums is None else sums, block.norm1, rows.shape[1], span=span)
    hidden, found = [], []
    for start in bands:
        band = rows[:, start : start + bands.step]
        seen = band.new_empty(band.shape, dtype=first.weight.dtype)
        fused.normalised(band, scales, span=span, silu=True, out=seen)
        made, sums = fused.along_time(seen, first, span, band.dtype)
        hidden.append(made)
        found.append(sums)
    scales = fused.affine(torch.cat(found, 1), block.norm2, span * rows.shape[1], plus=shift)
    found = []
    for start in bands:
        band, here = hidden.pop(0), slice(start, start + bands.step)
        seen = band if band.dtype == second.weight.dtype else torch.empty_like(band, dtype=second.weight.dtype)
        fused.normalised(band, scales, span=span, silu=True, out=seen)
        adding = {"kept": rows[:, here], "bias": bias, "out": places[:, here]}
        found.append(fused.along_time(seen, second, span, band.dtype, **adding)[1])
    return out, torch.cat(found, 1)


def _through_shortcut(parts: list[Tensor], weight: Tensor, out: Tensor) -> None:
    """Write the matmul of the concatenated parts, [frames, h, w, c] each, into `out`, [rows, c'], part by part."""
    (first, by), *rest = zip(parts, torch.split(weight, [part.shape[-1] for part in parts]), strict=True)
    torch.mm(pixels(first), by, out=out)
    for part, by in rest:
        out.addmm_(pixels(part), by)


def _frames(clip: Tensor) -> Tensor:
    """Return a view of [b, f, h, w, c] as [b·f, h·w, c]."""
    return clip.view(-1, clip.shape[2] * clip.shape[3], clip.shape[4])


def through(
    block: ClipBlock,
    transformer: Transformer | None,
    clip: Tensor,
    shifts: tuple[Tensor, Tensor],
    constants: tuple[LayerConstants, ...],
    *,
    sums: Tensor | None = None,
    skip: Summed | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """Return a new tensor: the result of a ClipBlock, with an optional skip, and of the optional transformer after it.

    `sums`, `skip` and `before` are those of `spatial`.
    """
    clip, sums = spatial(block.spatial, clip, sums=sums, skip=skip, before=before, shift=shifts[0])
    if transformer is None:
        return temporal(block.temporal, clip, shift=shifts[1], sums=sums)[0]
    # The bias of the transformer's output GEMM is added here; `plus` subtracts it again for the transformer's norm.
    later = at_least_float32(transformer.proj_out.bias)
    clip, sums = temporal(block.temporal, clip, shift=shifts[1], sums=sums, more=later)
    seen = fused.group_norm(_frames(clip), transformer.norm, sums=sums, plus=-later[None])
    inner = transformer.proj_in(pixels(seen)).view_as(clip)
    del seen
    for layer, each in zip(transformer.layers, constants, strict=True):
        assert layer.on_gpu is not None
        assert each.additions is not None
        layer.on_gpu(inner, each.additions)
    pixels(clip).addmm_(pixels(inner), transformer.proj_out.weight)
    return clip


def each_frame(block: ResBlock, clip: Tensor, upsample: Upsample | None = None) -> tuple[Tensor, Tensor]:
    """Run a spatial ResBlock on one video, in chunks of frames where they are large; may overwrite the input.

    Args:
        block: Its weights.
        clip: [1, f, h, w, c].
        upsample: Doubles height and width first; only one chunk at a time is stored at that size with the input's
            number of channels.

    Returns:
        The result, which is `clip` itself if the shape allows, and its sums.
    """
    made, channels = clip, len(block.conv2.weight)
    if upsample is not None:
        made = clip.new_empty(1, clip.shape[1], 2 * clip.shape[2], 2 * clip.shape[3], channels)
    elif channels != clip.shape[4]:
        made = clip.new_empty(*clip.shape[:4], channels)
    together = max(1, PIECE // (made.shape[2] * made.shape[3] * max(clip.shape[4], channels)))
    sums = []
    for seen, place in zip(torch.split(clip, together, 1), torch.split(made, together, 1), strict=True):
        piece, before = seen, None
        if upsample is not None:  # `spatial` adds the bias, without a separate pass
            piece, before = as_clip(upsample.product(images(seen)), *place.shape[1:4]), upsample.conv.bias
        sums.append(spatial(block, piece, before=before, out=place)[1])
    return made, torch.cat(sums)


@dataclass(frozen=True, slots=True, eq=False)
class Additions:
    """Sums of the constants added to each pixel of a frame, up to each norm of a layer and the blend: [b · f, c]."""

    before_feed_forward: Tensor
    before_time: Tensor
    after_time_in: Tensor
    before_time_feed_forward: Tensor
    blend: Tensor

    @classmethod
    def of(cls, layer: Layer, within: Tensor, along: Tensor, positions: Tensor) -> Additions:
        """Build from a video's cross-attentions, [b, 1, c] each, and frame positions, [f, 1, c]."""

        def bias(product: Linear) -> Tensor:
            """Return the GEMM's bias on the device of the constants; a streamed layer stores it elsewhere."""
            return product.bias.to(within.device)

        wide = at_least_float32
        spatial = wide(within) + bias(layer.attention.out)
        settled = spatial + bias(layer.feed_forward.out)
        before_time = settled + wide(positions)[:, 0]
        temporal = wide(along) + bias(layer.time_attention.out)
        blend = torch.lerp(settled, temporal + bias(layer.time_feed_forward.out), layer.share)
        entering = before_time + bias(layer.time_feed_forward_in.out)
        every = (spatial, before_time, entering, temporal, blend)
        return cls(*(each.expand_as(before_time).flatten(0, 1).contiguous() for each in every))


@dataclass(frozen=True, slots=True, eq=False)
class Attending:
    """A norm, the GEMM for query, key and value, and the output GEMM after attention."""

    norm: LayerNorm
    qkv: Product
    out: Product
    heads: int

    @classmethod
    def of(cls, attention: SelfAttention, *, in_bytes: bool) -> Attending:
        """Build from the CPU's form of the layer."""
        weight = attention.qkv.t()
        qkv = Product.in_bytes(weight, norm=attention.norm) if in_bytes else Product(weight)
        return cls(attention.norm, qkv, Product(attention.out.weight.t()), attention.heads)

    def projected(self, seen: Tensor, clip: Tensor) -> Tensor:
        """Return query, key and value of a video's normed pixels, [pixels, c]: [b, f, h·w, 3, heads, c / heads]."""
        batch, frames, height, width, channels = clip.shape
        made = fused.product(seen, self.qkv, clip.dtype)
        return made.view(batch, frames, height * width, 3, self.heads, channels // self.heads)

    def within_frames(self, seen: Tensor, clip: Tensor) -> Tensor:
        """Return the attention of each pixel to its frame, [pixels, c], before the output GEMM."""
        q, k, v = self.projected(seen, clip).flatten(0, 1).movedim(2, 0).transpose(2, 3)
        return fused.frame_attention(q, k, v).reshape(len(seen), -1)

    def along_time(self, seen: Tensor, clip: Tensor) -> Tensor:
        """Return the attention of each pixel to its position in all frames, [pixels, c], before the output GEMM."""
        return fused.time_attention(self.projected(seen, clip)).reshape(len(seen), -1)


@dataclass(frozen=True, slots=True, eq=False)
class Gated:
    """A norm and a feed-forward's two GEMMs; the first applies its gate (GEGLU) before it stores its result."""

    norm: LayerNorm
    wide: Product
    """Columns of values and gates alternate (`in_turn`)."""
    out: Product
    factor: float = 1.0
    """Scale of the intermediate values in fp8."""

    @classmethod
    def of(cls, feed_forward: FeedForward, *, share: Tensor | float = 1.0, in_bytes: bool = False) -> Gated:
        """Build from a feed-forward; its result is multiplied by `share`."""
        parts, norm = (feed_forward.value, feed_forward.gate), feed_forward.norm
        wide = fused.in_turn(*(each.weight.t() for each in parts))
        bias = fused.in_turn(*(each.bias for each in parts))
        last = feed_forward.out.weight.t()
        out = last if isinstance(share, float) else (at_least_float32(last) * share).to(last.dtype)
        if not in_bytes:
            return cls(norm, Product(wide, bias), Product(out))
        first = Product.in_bytes(wide, bias, norm=norm)
        factor = fp8.FP8_SCALE / _usual(first)
        return cls(norm, first, Product.in_bytes(out, factor=factor), factor)

    def __call__(self, seen: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute the feed-forward without the last bias: [rows, c] → [rows, c]."""
        return fused.product(fused.gated(seen, self.wide, self.factor), self.out, dtype)

    def add_to(self, rows: Tensor, seen: Tensor) -> None:
        """Add the feed-forward without the last bias to `rows` in place."""
        fused.add_product(rows, fused.gated(seen, self.wide, self.factor), self.out)


def _usual(wide: Product) -> float:
    """Return the root mean square of value · gate for standardised input, estimated from the weights and biases."""
    assert wide.scale is not None
    assert wide.bias is not None
    weight = fused.wide(wide.weight) * (wide.scale * fp8.FP8_SCALE)[:, None]
    value, gate = (weight.square().sum(1) + at_least_float32(wide.bias).square()).view(-1, 2).unbind(1)
    return float((value * gate).mean().sqrt().clamp_min(1e-6))


@dataclass(frozen=True, slots=True, eq=False)
class GpuLayer:
    """A transformer layer in the order of operations for a GPU."""

    attention: Attending
    feed_forward: Gated
    time_feed_forward_in: Gated
    time_attention: Attending
    time_feed_forward: Gated
    """Its weights include the share of the temporal block."""
    share: float
    in_bytes: bool

    @classmethod
    def of(
        cls,
        attention: SelfAttention,
        feed_forward: FeedForward,
        time_feed_forward_in: FeedForward,
        time_attention: SelfAttention,
        time_feed_forward: FeedForward,
        share: Tensor,
        *,
        in_bytes: bool,
    ) -> GpuLayer:
        """Build from the CPU's form of the layer's parts and the temporal block's weight in the blend."""
        return cls(
            Attending.of(attention, in_bytes=in_bytes),
            Gated.of(feed_forward, in_bytes=in_bytes),
            Gated.of(time_feed_forward_in, in_bytes=in_bytes),
            Attending.of(time_attention, in_bytes=in_bytes),
            Gated.of(time_feed_forward, share=share, in_bytes=in_bytes),
            share.item(),
            in_bytes,
        )

    def __call__(self, clip: Tensor, additions: Additions) -> None:
        """Run the layer in place."""
        rows, bare = pixels(clip), self.in_bytes
        seen = fused.layer_norm(rows, self.attention.norm, bare=bare)
        fused.add_product(rows, self.attention.within_frames(seen, clip), self.attention.out)
        seen = fused.layer_norm(rows, self.feed_forward.norm, additions.before_feed_forward, bare=bare)
        self.feed_forward.add_to(rows, seen)

        seen = fused.layer_norm(rows, self.time_feed_forward_in.norm, additions.before_time, bare=bare)
        moved = self.time_feed_forward_in(seen, rows.dtype)
        seen = fused.add_layer_norm(rows, moved, self.time_attention.norm, additions.after_time_in, bare=bare)
        fused.add_product(moved, self.time_attention.along_time(seen, clip), self.time_attention.out)
        table, blend = additions.before_time_feed_forward, additions.blend
        norm = self.time_feed_forward.norm
        seen = fused.mix_layer_norm(moved, rows, norm, table, blend, self.share, bare=bare)
        del moved
        self.time_feed_forward.add_to(rows, seen)

"""The blocks as a GPU computes them best: the weights of `layers` and `transformer`, in another order of work.

On a GPU what does not multiply matrices costs what it moves, so that each pass over a clip counts. Three things save
them. What is added to every pixel of a frame (biases, the one-key cross-attention, the frames' places) is not added
when it arises, but gathered in small tables for the norm that reads the pixels next (`Additions`). What adds two clips
also sums up their channels, so that the group norm that follows need not (`sums`). And products add to what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kinema.engine.fast import fused
from kinema.engine.fast.layers import as_clip, at_least_float32, images, pixels, strip

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.engine.fast.layers import ClipBlock, Conv, FeedForward, ResBlock, SelfAttention
    from kinema.engine.fast.transformer import Layer, LayerConstants, Transformer

# Numbers in the frames that the decoder works on together: half a gigabyte in half precision.
PIECE = 2**28
# Bytes of a clip beyond which cuDNN leaves its quick kernels; what looks along time then goes in pieces.
QUICK = 2**31
# Channels from which a convolution along time is quicker as three products (measured alone, not in a step yet).
BY_PRODUCTS = 640


def suits(x: Tensor) -> bool:
    """Whether this order of work is the better one where the tensor lies."""
    return x.is_cuda


def few_frames(frames: Tensor) -> tuple[Tensor, ...]:
    """Frames, [f, …], in pieces that fill a GPU and spare its memory."""
    return torch.split(frames, max(1, PIECE // frames[0].numel()))


def residual(
    block: ResBlock,
    clip: Tensor,
    *,
    along_time: bool,
    shift: Tensor | None = None,
    sums: Tensor | None = None,
    more: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A ResBlock on frames or along time, which changes nothing but `out`.

    Args:
        block: Its weights.
        clip: [b, f, h, w, c].
        along_time: Whether the convolutions see time.
        shift: [1 or b, c'], the first convolution's bias with the time embedding in it.
        sums: `channel_sums` of the clip's frames, where they are known.
        more: [c'], added to every pixel of the result.
        out: Where the result goes, which may be the clip; else a new tensor.

    Returns:
        The result, [b, f, h, w, c'], and its sums.
    """
    frames = clip.shape[1]
    span = frames if along_time else 1
    shift = block.conv1.bias[None] if shift is None else shift
    if len(shift) > 1 and not along_time:
        shift = shift.repeat_interleave(frames, 0)
    seen = fused.group_norm(_frames(clip), block.norm1, span=span, sums=sums, silu=True)
    hidden = _convolved(block.conv1, seen.view_as(clip), along_time=along_time)
    rows = _frames(hidden)
    del seen
    fused.group_norm(rows, block.norm2, span=span, plus=shift, silu=True, out=rows)
    hidden = _convolved(block.conv2, hidden, along_time=along_time)
    rows = _frames(hidden)
    kept = _frames(clip)
    if block.shortcut is not None:
        kept = (pixels(clip) @ block.shortcut.weight).view_as(rows)
    out = hidden if out is None else out
    bias = block.bias if more is None else block.bias + more
    return out, fused.add(rows, kept, bias, _frames(out))


def _frames(clip: Tensor) -> Tensor:
    """[b, f, h, w, c] → [frames of all clips, h·w, c]."""
    return clip.view(-1, clip.shape[2] * clip.shape[3], clip.shape[4])


def _convolved(conv: Conv, clip: Tensor, *, along_time: bool) -> Tensor:
    """Of frames or along time, without its bias, at the same size."""
    if not along_time:
        return as_clip(conv.product(images(clip)), *clip.shape[1:4])
    if clip.shape[-1] >= BY_PRODUCTS:
        return _by_products(conv, clip)
    count = clip.shape[1]
    together = max(1, QUICK // (clip[:, :1].numel() * clip.element_size()) - 2)  # two more are seen
    if count <= together:
        return as_clip(conv.product(strip(clip)), *clip.shape[1:4])
    out = clip.new_empty(*clip.shape[:4], len(conv.weight))
    for start in range(0, count, together):
        stop = min(start + together, count)
        first, last = max(0, start - 1), min(count, stop + 1)
        seen = as_clip(conv.product(strip(clip[:, first:last])), last - first, *clip.shape[2:4])
        out[:, start:stop] = seen[:, start - first : stop - first]  # what saw an end that is none is left out
    return out


def _by_products(conv: Conv, clip: Tensor) -> Tensor:
    """Along time: each frame's pixels, and those of the frames before and after it, times a matrix of their own."""
    before, here, after = (weight.t() for weight in conv.weight[..., 0].unbind(2))
    out = (pixels(clip) @ here).view(*clip.shape[:4], -1)
    for one, seen in zip(out, clip, strict=True):
        pixels(one[1:]).addmm_(pixels(seen[:-1]), before)
        pixels(one[:-1]).addmm_(pixels(seen[1:]), after)
    return out


def through(
    block: ClipBlock,
    transformer: Transformer | None,
    clip: Tensor,
    shifts: tuple[Tensor, Tensor],
    constants: tuple[LayerConstants, ...],
) -> Tensor:
    """A ClipBlock and the transformer after it, if there is one: a new clip."""
    clip, sums = residual(block.spatial, clip, along_time=False, shift=shifts[0])
    if transformer is None:
        return residual(block.temporal, clip, along_time=True, shift=shifts[1], sums=sums)[0]
    # What the transformer's last product adds to every pixel is added here, and hidden from its norm.
    later = at_least_float32(transformer.proj_out.bias)
    clip, sums = residual(block.temporal, clip, along_time=True, shift=shifts[1], sums=sums, more=later)
    seen = fused.group_norm(_frames(clip), transformer.norm, sums=sums, plus=-later[None])
    inner = transformer.proj_in(pixels(seen)).view_as(clip)
    del seen
    for layer, each in zip(transformer.layers, constants, strict=True):
        assert each.additions is not None
        attend(layer, inner, each.additions)
    pixels(clip).addmm_(pixels(inner), transformer.proj_out.weight)
    return clip


def in_pieces(block: ClipBlock, clip: Tensor) -> Tensor:
    """A ClipBlock on one clip that nobody needs any more, a few frames at a time where they are large."""
    out = clip
    if block.spatial.shortcut is not None:
        out = clip.new_empty(*clip.shape[:4], block.spatial.shortcut.weight.shape[1])
    together = len(few_frames(max(clip[0], out[0], key=torch.numel))[0])
    pieces = zip(torch.split(clip, together, 1), torch.split(out, together, 1), strict=True)
    sums = [residual(block.spatial, piece, along_time=False, out=place)[1] for piece, place in pieces]
    del clip
    residual(block.temporal, out, along_time=True, sums=torch.cat(sums), out=out)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Additions:
    """What a layer has added to every pixel of a frame, [b · f, c], by the time that it is looked at or settled."""

    before_feed_forward: Tensor
    before_time: Tensor
    after_time_in: Tensor
    before_time_feed_forward: Tensor
    blend: Tensor

    @classmethod
    def of(cls, layer: Layer, within: Tensor, along: Tensor, positions: Tensor) -> Additions:
        """From the constants of a clip: [b, 1, c], [b, 1, c] and [f, 1, c]."""
        wide = at_least_float32
        spatial = wide(within) + layer.attention.out.bias
        settled = spatial + layer.feed_forward.out.bias
        before_time = settled + wide(positions)[:, 0]
        temporal = wide(along) + layer.time_attention.out.bias
        blend = torch.lerp(settled, temporal + layer.time_feed_forward.out.bias, layer.share)
        entering = before_time + layer.time_feed_forward_in.out.bias
        every = (spatial, before_time, entering, temporal, blend)
        return cls(*(each.expand_as(before_time).flatten(0, 1).contiguous() for each in every))


def attend(layer: Layer, clip: Tensor, additions: Additions) -> None:
    """A transformer's layer, in place."""
    rows = pixels(clip)
    attention, feed_forward = layer.attention, layer.feed_forward
    seen = fused.layer_norm(rows, attention.norm)
    rows.addmm_(_within_frames(attention, seen, clip), attention.out.weight)
    seen = fused.layer_norm(rows, feed_forward.norm, additions.before_feed_forward)
    rows.addmm_(_gated(feed_forward, seen), feed_forward.out.weight)

    feed_forward, attention = layer.time_feed_forward_in, layer.time_attention
    seen = fused.layer_norm(rows, feed_forward.norm, additions.before_time)
    moved = _gated(feed_forward, seen) @ feed_forward.out.weight
    seen = fused.add_layer_norm(rows, moved, attention.norm, additions.after_time_in)
    moved.addmm_(_along_time(attention, seen, clip), attention.out.weight)
    feed_forward = layer.time_feed_forward
    table = additions.before_time_feed_forward
    seen = fused.mix_layer_norm(moved, rows, feed_forward.norm, table, additions.blend, layer.share)
    del moved
    assert layer.blended_out is not None
    rows.addmm_(_gated(feed_forward, seen), layer.blended_out)


def _gated(feed_forward: FeedForward, seen: Tensor) -> Tensor:
    """The wide middle of a feed-forward."""
    return fused.geglu(seen, feed_forward.wide)


def _within_frames(attention: SelfAttention, seen: Tensor, clip: Tensor) -> Tensor:
    """Of pixels after their norm: what each takes from its frame, before the last product."""
    q, k, v = attention.split(seen @ attention.qkv, clip).flatten(1, 2).transpose(2, 3)
    return fused.frame_attention(q, k, v).reshape(len(seen), -1)


def _along_time(attention: SelfAttention, seen: Tensor, clip: Tensor) -> Tensor:
    """Likewise, what each takes from its place in all frames."""
    qkv = attention.split(seen @ attention.qkv, clip)
    return fused.time_attention(qkv.movedim(0, 3)).reshape(len(seen), -1)

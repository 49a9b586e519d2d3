"""SVD's UNet (UNetSpatioTemporalConditionModel), computed with what is constant in a clip left out of the steps."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice, pairwise, zip_longest
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F

from kinema.engine.fast import gpu
from kinema.engine.fast.layers import ClipBlock, Conv, GroupNorm, Upsample, as_clip, images, sinusoids
from kinema.engine.fast.streaming import Streamed, brought, mapped
from kinema.engine.fast.transformer import LayerConstants, Transformer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ClipConstants:
    """What is the same at every step of a clip; from `FastUNet.constants`.

    held: [b, 1, h, w, c], what the still's latents add to the first convolution of each frame, with its bias;
    ids: [1 or b, d], the time ids' half of the time embedding: one row when all are alike;
    layers: what each transformer adds, in their order.
    """

    held: Tensor
    ids: Tensor
    layers: tuple[tuple[LayerConstants, ...], ...]


Shifts = tuple["Tensor", "Tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A block, the transformer after it, if there is one, and what then changes the resolution, if anything does."""

    block: ClipBlock
    transformer: Transformer | None
    after: Conv | Upsample | None
    before: Tensor | None = None
    """On a GPU what the upsampling before leaves to be added to the clip: its bias, [c]."""

    @classmethod
    def all_of(cls, module: Any, *, for_gpu: bool, in_bytes: bool) -> list[Stage]:
        """Of one resolution on the way down or up: one of diffusers' four kinds of such blocks, or its middle."""
        attentions = getattr(module, "attentions", None) or ()
        blocks = [ClipBlock.of(block, in_bytes=in_bytes) for block in module.resnets]
        transformers = [Transformer.of(attention, for_gpu=for_gpu, in_bytes=in_bytes) for attention in attentions]
        *rest, (block, transformer) = zip_longest(blocks, transformers)
        after: Conv | Upsample | None = None
        if getattr(module, "downsamplers", None):
            after = Conv.of(module.downsamplers[0].conv)
        elif getattr(module, "upsamplers", None):
            after = Upsample.of(module.upsamplers[0])
        return [*(cls(*each, None) for each in rest), cls(block, transformer, after)]


@dataclass(frozen=True, slots=True, eq=False)
class TimeShifts:
    """All projections of the time embedding in one product; each is added to the bias of a first convolution."""

    weight: Tensor
    bias: Tensor
    widths: list[int]

    @classmethod
    def of(cls, modules: list[Any]) -> TimeShifts:
        """From diffusers' SpatioTemporalResBlocks, in the order in which they are used."""
        halves = [half for module in modules for half in (module.spatial_res_block, module.temporal_res_block)]
        weight = torch.cat([half.time_emb_proj.weight for half in halves])
        bias = torch.cat([half.time_emb_proj.bias + half.conv1.bias for half in halves])
        return cls(weight, bias, [len(half.conv1.bias) for half in halves])

    def __call__(self, embedding: Tensor) -> Iterator[Shifts]:
        """[1 or b, d] → for each block, [1 or b, c] of its spatial and its temporal half."""
        shifts = iter(torch.split(F.linear(F.silu(embedding), self.weight, self.bias), self.widths, -1))
        return zip(shifts, shifts, strict=True)


class FastUNet:
    """The same network as the module it is made from, on its device and in its arithmetic.

    Make it anew when the module has been moved. The module's weights are shared where the layout fits, or laid out
    anew in its place; only what is multiplied or joined with something else is held beside them.
    """

    def __init__(self, module: Any, *, in_bytes: bool = False, stream_to: torch.device | None = None) -> None:
        """From diffusers' UNetSpatioTemporalConditionModel, in evaluation.

        Args:
            module: On the device where it will compute, or in the computer's memory if it is streamed.
            in_bytes: Whether the large products and convolutions are of numbers of one byte (fp8), on a GPU that
                multiplies those: quicker, and not exact.
            stream_to: The GPU that computes, where its memory is to hold two pieces of the network at a time.
        """
        self.module = module
        first = module.conv_in
        channels = module.config.out_channels  # of the noise; those of the still come after
        noisy, held = first.weight[:, :channels], first.weight[:, channels:]
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        for_gpu = stream_to is not None or gpu.suits(noisy)
        self.conv_noisy = Conv(noisy, torch.zeros_like(first.bias))
        self.conv_held = Conv(held, first.bias)
        choices = {"for_gpu": for_gpu, "in_bytes": in_bytes}
        down = [stage for block in module.down_blocks for stage in Stage.all_of(block, **choices)]
        middle = Stage.all_of(module.mid_block, **choices)
        up = [stage for block in module.up_blocks for stage in Stage.all_of(block, **choices)]
        if for_gpu:
            up = [up[0], *(_with_bias_of(last, stage) for last, stage in pairwise(up))]
        self.counts = len(down), len(middle), len(up)
        self.stages: list[Stage] | Streamed[Stage] = [*down, *middle, *up]
        self.norm_out = GroupNorm.of(module.conv_norm_out)
        self.conv_out = Conv.of(module.conv_out)
        self.channels = channels
        self.kind = tuple(module.config.block_out_channels), in_bytes  # which decides on its kernels
        blocks = [*module.down_blocks, module.mid_block, *module.up_blocks]
        self.time_shifts = TimeShifts.of([resnet for block in blocks for resnet in block.resnets])
        self.time_embedding = module.time_embedding
        if stream_to is not None:
            self._stream(stream_to)
        stages = self.stages.pieces if isinstance(self.stages, Streamed) else self.stages
        self.transformers = [stage.transformer for stage in stages if stage.transformer is not None]
        self.conv_noisy, self.conv_out = self.conv_noisy.aligned(), self.conv_out.aligned()

    def _stream(self, device: torch.device) -> None:
        """Keep the stages where they can be fetched from, and the little that is not of them on the device."""
        assert isinstance(self.stages, list)
        self.stages = Streamed(self.stages, device)
        self.time_embedding = deepcopy(self.time_embedding).to(device)
        for name in ("conv_noisy", "conv_held", "norm_out", "conv_out", "time_shifts"):
            setattr(self, name, mapped(getattr(self, name), lambda tensor: tensor.to(device)))

    @torch.no_grad()
    def constants(self, embedding: Tensor, time_ids: Tensor, held: Tensor, num_frames: int) -> ClipConstants:
        """Everything that the steps of a clip share.

        Args:
            embedding: Of the still, [b, 1, cross_attention_dim].
            time_ids: fps, motion and noise, [b, 3].
            held: The still's latents, [b, c, h, w].
            num_frames: Of the clip.
        """
        assert embedding.shape[1] == 1, "SVD's cross-attention has one key"
        alike = bool((time_ids == time_ids[:1]).all())
        rows = time_ids[:1] if alike else time_ids
        sines = sinusoids(rows.flatten(), self.module.add_time_proj.num_channels).view(len(rows), -1)
        with brought([self.module.add_embedding], embedding.device):
            ids = self.module.add_embedding(sines.to(embedding.dtype))
        layers = tuple(each.constants(embedding, num_frames) for each in self.transformers)
        return ClipConstants(as_clip(self.conv_held(held), 1, *held.shape[2:]).contiguous(), ids, layers)

    @torch.no_grad()
    def __call__(self, sample: Tensor, time: Tensor, constants: ClipConstants) -> Tensor:
        """What the network says of the noisy latents: [b, f, c, h, w].

        Args:
            sample: Scaled noisy latents, [b, f, c, h, w], or fewer clips that stand for all b in turn: under guidance
                both halves see the same noise, and its first convolution is done once.
            time: Of the noise level, a scalar.
            constants: Of this clip.
        """
        frames = sample.shape[1]
        shifts = self.time_shifts(self._embedded(time, sample.dtype) + constants.ids)
        layers = iter(constants.layers)
        seen = _summed(self._first(sample, constants.held))
        skips = [seen]
        stages, (down, middle, up) = iter(self.stages), self.counts
        for stage in islice(stages, down):
            seen = _summed(_through(stage, seen, shifts, layers))
            skips.append(seen)
            if stage.after is not None:
                seen = _summed(_resized(seen[0], stage.after(images(seen[0]))))
                skips.append(seen)
        for stage in islice(stages, middle):
            seen = _through(stage, seen, shifts, layers), None
        clip, _ = seen
        for stage in islice(stages, up):
            clip = _through(stage, (clip, None), shifts, layers, skips.pop())
            if isinstance(stage.after, Upsample):
                enlarge = stage.after.product if gpu.suits(clip) else stage.after
                _, _, height, width, _ = skips[-1][0].shape
                clip = _resized(clip, enlarge(images(clip), (height, width)))
        out = self.conv_out(self.norm_out.silu(images(clip)))[:, : self.channels]
        return out.reshape(-1, frames, *out.shape[1:])

    def _embedded(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """The time's half of the time embedding, [1, d]."""
        sines = sinusoids(time.reshape(1), self.module.time_proj.num_channels)
        return cast(torch.Tensor, self.time_embedding(sines.to(dtype)))

    def _first(self, sample: Tensor, held: Tensor) -> Tensor:
        """The first convolution: of the noise once, and of the still never again."""
        clips, frames, _, height, width = sample.shape
        noisy = self.conv_noisy.product(self.conv_noisy.filled(sample.flatten(0, 1)))
        noisy = as_clip(noisy, frames, height, width)
        held = held.view(-1, clips, *held.shape[1:])
        return gpu.with_each(noisy, held) if gpu.suits(noisy) else (noisy + held).flatten(0, 1)


def _with_bias_of(last: Stage, stage: Stage) -> Stage:
    """A stage that adds what the last one's upsampling does not."""
    return replace(stage, before=last.after.conv.bias) if isinstance(last.after, Upsample) else stage


def _summed(clip: Tensor) -> gpu.Summed:
    """What the next block and one on the way up will norm: on a GPU it is summed up once for both."""
    return gpu.summed(clip) if gpu.suits(clip) else (clip, None)


def _through(
    stage: Stage,
    seen: gpu.Summed,
    shifts: Iterator[Shifts],
    layers: Iterator[tuple[LayerConstants, ...]],
    skip: gpu.Summed | None = None,
) -> Tensor:
    """A new clip, of its size; what comes stays as it is, for it may be needed on the way up."""
    block, transformer, (clip, sums) = stage.block, stage.transformer, seen
    if gpu.suits(clip):
        constants, before = next(layers) if transformer else (), stage.before
        return gpu.through(block, transformer, clip, next(shifts), constants, sums=sums, skip=skip, before=before)
    if skip is not None:
        clip = torch.cat([clip, skip[0]], -1)
    clip = block(clip, next(shifts))
    if transformer is not None:
        transformer(clip, next(layers))
    return clip


def _resized(clip: Tensor, view: Tensor) -> Tensor:
    """A view of another size as a clip of as many frames."""
    return as_clip(view, clip.shape[1], *view.shape[2:])

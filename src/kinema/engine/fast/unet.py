"""Run SVD's UNet (UNetSpatioTemporalConditionModel); what is constant for a video is computed once, not per step."""

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
    """Values that are the same at every step of a video; returned by `FastUNet.constants`.

    held: [b, 1, h, w, c], the first convolution of the image latents, with its bias; added to each frame;
    ids: [1 or b, d], the time ids' part of the time embedding; one row if all rows are equal;
    layers: the constants of each transformer, in order.
    """

    held: Tensor
    ids: Tensor
    layers: tuple[tuple[LayerConstants, ...], ...]


Shifts = tuple["Tensor", "Tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A block, the optional transformer after it, and the optional change of resolution after that."""

    block: ClipBlock
    transformer: Transformer | None
    after: Conv | Upsample | None
    before: Tensor | None = None
    """On a GPU, the bias of the preceding upsampling, [c], added here."""

    @classmethod
    def all_of(cls, module: Any, *, for_gpu: bool, in_bytes: bool) -> list[Stage]:
        """Return the stages of one resolution.

        Args:
            module: One of diffusers' four kinds of down and up blocks, or the mid block.
            for_gpu: Whether a GPU computes.
            in_bytes: Whether large matmuls and convolutions run in fp8.
        """
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
    """All projections of the time embedding in one matmul; each is added to the bias of a block's first convolution."""

    weight: Tensor
    bias: Tensor
    widths: list[int]

    @classmethod
    def of(cls, modules: list[Any]) -> TimeShifts:
        """Build from diffusers' SpatioTemporalResBlocks, in the order of use."""
        halves = [half for module in modules for half in (module.spatial_res_block, module.temporal_res_block)]
        weight = torch.cat([half.time_emb_proj.weight for half in halves])
        bias = torch.cat([half.time_emb_proj.bias + half.conv1.bias for half in halves])
        return cls(weight, bias, [len(half.conv1.bias) for half in halves])

    def __call__(self, embedding: Tensor) -> Iterator[Shifts]:
        """Return each block's spatial and temporal shift, [1 or b, c] each, from the embedding, [1 or b, d]."""
        shifts = iter(torch.split(F.linear(F.silu(embedding), self.weight, self.bias), self.widths, -1))
        return zip(shifts, shifts, strict=True)


class FastUNet:
    """The same network as the given module, on its device and in its dtype.

    Build a new one after moving the module. Weights are shared with the module where the layout fits. Otherwise the
    module's weights are replaced by the new layout. Only weights that are multiplied or concatenated with others are
    stored in addition.
    """

    def __init__(self, module: Any, *, in_bytes: bool = False, stream_to: torch.device | None = None) -> None:
        """Build from diffusers' UNetSpatioTemporalConditionModel in eval mode.

        Args:
            module: On the device that computes, or in CPU memory if it is streamed.
            in_bytes: Whether large matmuls and convolutions run in fp8, on a GPU with fp8 matmuls: faster, not exact.
            stream_to: The GPU that computes, if its memory is to hold only two stages of the network at a time.
        """
        self.module = module
        first = module.conv_in
        channels = module.config.out_channels  # of the noise; the image latents' channels come after them
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
        self.kind = tuple(module.config.block_out_channels), in_bytes  # determines which kernels it needs
        blocks = [*module.down_blocks, module.mid_block, *module.up_blocks]
        self.time_shifts = TimeShifts.of([resnet for block in blocks for resnet in block.resnets])
        self.time_embedding = module.time_embedding
        if stream_to is not None:
            self._stream(stream_to)
        stages = self.stages.pieces if isinstance(self.stages, Streamed) else self.stages
        self.transformers = [stage.transformer for stage in stages if stage.transformer is not None]
        self.conv_noisy, self.conv_out = self.conv_noisy.aligned(), self.conv_out.aligned()

    def _stream(self, device: torch.device) -> None:
        """Stream the stages from CPU memory and move the few remaining weights to the device."""
        assert isinstance(self.stages, list)
        self.stages = Streamed(self.stages, device)
        self.time_embedding = deepcopy(self.time_embedding).to(device)
        for name in ("conv_noisy", "conv_held", "norm_out", "conv_out", "time_shifts"):
            setattr(self, name, mapped(getattr(self, name), lambda tensor: tensor.to(device)))

    @torch.no_grad()
    def constants(self, embedding: Tensor, time_ids: Tensor, held: Tensor, num_frames: int) -> ClipConstants:
        """Return the values that all steps of a video share.

        Args:
            embedding: Image embedding, [b, 1, cross_attention_dim].
            time_ids: fps, motion bucket and noise augmentation, [b, 3].
            held: Image latents, [b, c, h, w].
            num_frames: Number of frames of the video.
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
        """Return the network's prediction for the noisy latents, [b, f, c, h, w].

        Args:
            sample: Scaled noisy latents, [b, f, c, h, w]. The batch may be smaller than b and is then repeated: under
                guidance both halves have the same noise, and its first convolution is computed once.
            time: Timestep of the noise level, a scalar.
            constants: Of this video.
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
        """Return the timestep's part of the time embedding, [1, d]."""
        sines = sinusoids(time.reshape(1), self.module.time_proj.num_channels)
        return cast(torch.Tensor, self.time_embedding(sines.to(dtype)))

    def _first(self, sample: Tensor, held: Tensor) -> Tensor:
        """Return the first convolution: that of the noise, plus `held`, that of the image latents, computed once."""
        clips, frames, _, height, width = sample.shape
        noisy = self.conv_noisy.product(self.conv_noisy.filled(sample.flatten(0, 1)))
        noisy = as_clip(noisy, frames, height, width)
        held = held.view(-1, clips, *held.shape[1:])
        return gpu.with_each(noisy, held) if gpu.suits(noisy) else (noisy + held).flatten(0, 1)


def _with_bias_of(last: Stage, stage: Stage) -> Stage:
    """Return the stage with `before` set to the bias that the preceding stage's upsampling omits."""
    return replace(stage, before=last.after.conv.bias) if isinstance(last.after, Upsample) else stage


def _summed(clip: Tensor) -> gpu.Summed:
    """Return the video and, on a GPU, its channel sums, which two norms read: of the next block and of the skip."""
    return gpu.summed(clip) if gpu.suits(clip) else (clip, None)


def _through(
    stage: Stage,
    seen: gpu.Summed,
    shifts: Iterator[Shifts],
    layers: Iterator[tuple[LayerConstants, ...]],
    skip: gpu.Summed | None = None,
) -> Tensor:
    """Return the output of a stage as a new tensor of the same frame size.

    The input is not modified: the up blocks may need it as a skip connection.
    """
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
    """Convert a view of another frame size to a video with the same number of frames."""
    return as_clip(view, clip.shape[1], *view.shape[2:])

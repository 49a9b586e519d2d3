"""Run SVD's UNet (UNetSpatioTemporalConditionModel); what is constant for a video is computed once, not per step."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice, pairwise, zip_longest
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F

from kinema.engine.fast import blocks_cpu, blocks_gpu
from kinema.engine.fast.blocks_cpu import LayerConstants
from kinema.engine.fast.blocks_gpu import BiasTables, WithSums, use_gpu_blocks
from kinema.engine.fast.layout import as_images, as_video
from kinema.engine.fast.ops.attention import cross_attention
from kinema.engine.fast.ops.conv import conv2d, conv2d_without_bias, pad_channels, upsample_conv
from kinema.engine.fast.ops.norm import group_norm_images
from kinema.engine.fast.prefetch import Prefetched, moved
from kinema.engine.fast.trees import map_tensors
from kinema.engine.fast.weights import Conv, GroupNorm, SpatioTemporalResBlock, Transformer, Upsample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from kinema.engine.fast.frame_shards import FrameShards


@dataclass(frozen=True, slots=True, eq=False)
class VideoConstants:
    """Values that are the same at every step of a video; returned by `FastUNet.constants`.

    image_latents: [b, 1, h, w, c], the first convolution of the image latents, with its bias; added to each frame;
    time_ids: [1 or b, d], the time ids' part of the time embedding; one row if all rows are equal;
    layers: the constants of each transformer, in order.
    """

    image_latents: Tensor
    time_ids: Tensor
    layers: tuple[tuple[LayerConstants, ...] | tuple[BiasTables, ...], ...]
    shards: FrameShards | None = None
    """If other processes compute some of the frames."""


Shifts = tuple["Tensor", "Tensor"]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A block, the optional transformer after it, and the optional change of resolution after that."""

    block: SpatioTemporalResBlock
    transformer: Transformer | None
    resampler: Conv | Upsample | None
    pending_bias: Tensor | None = None
    """On a GPU, the bias of the preceding upsampling, [c], added here."""

    @classmethod
    def all_of(cls, module: Any, *, for_gpu: bool, fp8: bool) -> list[Stage]:
        """Return the stages of one resolution.

        Args:
            module: One of diffusers' four kinds of down and up blocks, or the mid block.
            for_gpu: Whether a GPU computes.
            fp8: Whether large matmuls and convolutions run in fp8.
        """
        attentions = getattr(module, "attentions", None) or ()
        blocks = [SpatioTemporalResBlock.of(block, fp8=fp8) for block in module.resnets]
        transformers = [Transformer.of(attention, for_gpu=for_gpu, fp8=fp8) for attention in attentions]
        *rest, (block, transformer) = zip_longest(blocks, transformers)
        resampler: Conv | Upsample | None = None
        if getattr(module, "downsamplers", None):
            resampler = Conv.of(module.downsamplers[0].conv)
        elif getattr(module, "upsamplers", None):
            resampler = Upsample.of(module.upsamplers[0])
        return [*(cls(*each, None) for each in rest), cls(block, transformer, resampler)]


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

    def __init__(self, module: Any, *, fp8: bool = False, stream_to: torch.device | None = None) -> None:
        """Build from diffusers' UNetSpatioTemporalConditionModel in eval mode.

        Args:
            module: On the device that computes, or in CPU memory if it is streamed.
            fp8: Whether large matmuls and convolutions run in fp8, on a GPU with fp8 matmuls: faster, not exact.
            stream_to: The GPU that computes, if its memory is to hold only two stages of the network at a time.
        """
        self.module = module
        first = module.conv_in
        channels = module.config.out_channels  # of the noise; the image latents' channels come after them
        noisy, image = first.weight[:, :channels], first.weight[:, channels:]
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        for_gpu = stream_to is not None or use_gpu_blocks(noisy)
        self.conv_noisy = Conv(noisy, torch.zeros_like(first.bias))
        self.conv_image = Conv(image, first.bias)
        choices = {"for_gpu": for_gpu, "fp8": fp8}
        down = [stage for block in module.down_blocks for stage in Stage.all_of(block, **choices)]
        middle = Stage.all_of(module.mid_block, **choices)
        up = [stage for block in module.up_blocks for stage in Stage.all_of(block, **choices)]
        if for_gpu:
            up = [up[0], *(_with_pending_bias(previous, stage) for previous, stage in pairwise(up))]
        self.counts = len(down), len(middle), len(up)
        self.stages: list[Stage] | Prefetched[Stage] = [*down, *middle, *up]
        self.norm_out = GroupNorm.of(module.conv_norm_out)
        self.conv_out = Conv.of(module.conv_out)
        self.channels = channels
        self.kind = tuple(module.config.block_out_channels), fp8  # determines which kernels it needs
        blocks = [*module.down_blocks, module.mid_block, *module.up_blocks]
        self.time_shifts = TimeShifts.of([resnet for block in blocks for resnet in block.resnets])
        self.time_embedding = module.time_embedding
        if stream_to is not None:
            self._prefetch(stream_to)
        stages = self.stages.pieces if isinstance(self.stages, Prefetched) else self.stages
        self.transformers = [stage.transformer for stage in stages if stage.transformer is not None]
        self.conv_noisy, self.conv_out = self.conv_noisy.aligned(), self.conv_out.aligned()

    def _prefetch(self, device: torch.device) -> None:
        """Prefetch the stages from CPU memory and move the few remaining weights to the device."""
        assert isinstance(self.stages, list)
        self.stages = Prefetched(self.stages, device)
        self.time_embedding = deepcopy(self.time_embedding).to(device)
        for name in ("conv_noisy", "conv_image", "norm_out", "conv_out", "time_shifts"):
            setattr(self, name, map_tensors(getattr(self, name), lambda tensor: tensor.to(device)))

    @torch.no_grad()
    def constants(
        self,
        embedding: Tensor,
        time_ids: Tensor,
        image_latents: Tensor,
        num_frames: int,
        shards: FrameShards | None = None,
    ) -> VideoConstants:
        """Return the values that all steps of a video share.

        Args:
            embedding: Image embedding, [b, 1, cross_attention_dim].
            time_ids: fps, motion bucket and noise augmentation, [b, 3].
            image_latents: [b, c, h, w].
            num_frames: Number of frames of the video.
            shards: Divides the frames between processes; the network is then called with the own frames.
        """
        assert embedding.shape[1] == 1, "SVD's cross-attention has one key"
        frames = torch.arange(num_frames, device=embedding.device)[shards.own if shards else slice(None)]
        equal = bool((time_ids == time_ids[:1]).all())
        rows = time_ids[:1] if equal else time_ids
        sines = sinusoids(rows.flatten(), self.module.add_time_proj.num_channels).view(len(rows), -1)
        with moved([self.module.add_embedding], embedding.device):
            ids = self.module.add_embedding(sines.to(embedding.dtype))
        layers = tuple(_layer_constants(each, embedding, frames) for each in self.transformers)
        image = as_video(conv2d(image_latents, self.conv_image), 1, *image_latents.shape[2:]).contiguous()
        return VideoConstants(image, ids, layers, shards)

    @torch.no_grad()
    def __call__(self, sample: Tensor, time: Tensor, constants: VideoConstants) -> Tensor:
        """Return the network's prediction for the noisy latents, [b, f, c, h, w].

        Args:
            sample: Scaled noisy latents of all or the own frames, [b, f, c, h, w]. The batch may be smaller than b and
                is then repeated: under guidance both halves have the same noise, and its first convolution is computed
                once.
            time: Timestep of the noise level, a scalar.
            constants: Of this video.
        """
        frames = sample.shape[1]
        shifts = self.time_shifts(self._time_embedding(time, sample.dtype) + constants.time_ids)
        layers, shards = iter(constants.layers), constants.shards
        x = _with_sums(self._first_conv(sample, constants.image_latents))
        skips = [x]
        stages, (down, middle, up) = iter(self.stages), self.counts
        for stage in islice(stages, down):
            x = _with_sums(_run(stage, x, shifts, layers, shards))
            skips.append(x)
            if isinstance(stage.resampler, Conv):
                x = _with_sums(_as_resized(x[0], conv2d(as_images(x[0]), stage.resampler)))
                skips.append(x)
        for stage in islice(stages, middle):
            x = _run(stage, x, shifts, layers, shards), None
        hidden, _ = x
        for stage in islice(stages, up):
            hidden = _run(stage, (hidden, None), shifts, layers, shards, skips.pop())
            if isinstance(stage.resampler, Upsample):
                _, _, height, width, _ = skips[-1][0].shape
                bias = not use_gpu_blocks(hidden)  # on a GPU, the next stage adds it
                images = upsample_conv(as_images(hidden), stage.resampler, (height, width), bias=bias)
                hidden = _as_resized(hidden, images)
        normalized = group_norm_images(as_images(hidden), self.norm_out, silu=True)
        out = conv2d(normalized, self.conv_out)[:, : self.channels]
        return out.reshape(-1, frames, *out.shape[1:])

    def _time_embedding(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the timestep's part of the time embedding, [1, d]."""
        sines = sinusoids(time.reshape(1), self.module.time_proj.num_channels)
        return cast(torch.Tensor, self.time_embedding(sines.to(dtype)))

    def _first_conv(self, sample: Tensor, image_latents: Tensor) -> Tensor:
        """Return the first convolution: that of the noise, plus that of the image latents, computed once."""
        videos, frames, _, height, width = sample.shape
        noisy = conv2d_without_bias(pad_channels(sample.flatten(0, 1), self.conv_noisy), self.conv_noisy)
        noisy = as_video(noisy, frames, height, width)
        image_latents = image_latents.view(-1, videos, *image_latents.shape[1:])
        if use_gpu_blocks(noisy):
            return blocks_gpu.add_to_each_frame(noisy, image_latents)
        return (noisy + image_latents).flatten(0, 1)


def sinusoids(positions: Tensor, channels: int, longest: float = 10000.0) -> Tensor:
    """Return cosines and sines of each position, float32 [n, channels] (Vaswani et al. 2017, cosines first)."""
    half = channels // 2
    # In diffusers' order of operations, so that both round alike.
    exponents = -math.log(longest) * torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angles = positions.float()[:, None] * torch.exp(exponents)
    return torch.cat([angles.cos(), angles.sin()], -1)


def _layer_constants(
    transformer: Transformer, embedding: Tensor, frames: Tensor
) -> tuple[LayerConstants, ...] | tuple[BiasTables, ...]:
    """Return the constants of each layer for an embedding, [b, 1, d], and the numbers of the frames, [f]."""
    sines = sinusoids(frames, transformer.module.in_channels)
    with moved([transformer.module.time_pos_embed], embedding.device):
        positions = transformer.module.time_pos_embed(sines.to(embedding.dtype))[:, None]
    constants = []
    for layer in transformer.layers:
        with moved([block.attn2 for block in layer.module], embedding.device):
            spatial, temporal = (cross_attention(block.attn2, embedding) for block in layer.module)
        constants.append(LayerConstants(positions, spatial, temporal))
    if transformer.layers[0].packed is None:
        return tuple(constants)
    return tuple(BiasTables.of(*each) for each in zip(transformer.layers, constants, strict=True))


def _with_pending_bias(previous: Stage, stage: Stage) -> Stage:
    """Return the stage with the bias that the preceding stage's upsampling omits."""
    return (
        replace(stage, pending_bias=previous.resampler.conv.bias) if isinstance(previous.resampler, Upsample) else stage
    )


def _with_sums(x: Tensor) -> WithSums:
    """Return the video and, on a GPU, its channel sums, which two norms read: of the next block and of the skip."""
    return blocks_gpu.with_sums(x) if use_gpu_blocks(x) else (x, None)


def _run(
    stage: Stage,
    x: WithSums,
    shifts: Iterator[Shifts],
    layers: Iterator[Any],
    shards: FrameShards | None,
    skip: WithSums | None = None,
) -> Tensor:
    """Return the output of a stage as a new tensor of the same frame size.

    The input is not modified: the up blocks may need it as a skip connection.
    """
    block, transformer, (hidden, sums) = stage.block, stage.transformer, x
    if use_gpu_blocks(hidden):
        tables, bias = next(layers) if transformer else (), stage.pending_bias
        return blocks_gpu.block_with_transformer(
            block, transformer, hidden, next(shifts), tables, sums=sums, skip=skip, pending_bias=bias, shards=shards
        )
    if skip is not None:
        hidden = torch.cat([hidden, skip[0]], -1)
    hidden = blocks_cpu.resblock(block, hidden, next(shifts), shards)
    if transformer is not None:
        blocks_cpu.transformer(transformer, hidden, next(layers), shards)
    return hidden


def _as_resized(x: Tensor, view: Tensor) -> Tensor:
    """Convert a view of another frame size to a video with the same number of frames."""
    return as_video(view, x.shape[1], *view.shape[2:])

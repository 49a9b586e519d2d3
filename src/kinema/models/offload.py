"""Offload: moves the parts of a model to the device and back as its memory plan says."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kinema.models.devices import free_memory, has_kernels, release_cache
from kinema.models.memory_plan import FAST_SHARE, PARTS, STREAMED_SHARE, MemoryPlan, Part, Shape, plan_memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from kinema.values import Engine, VideoRequest


class Placeable(Protocol):
    """What placement needs of `kinema.models.loading.VideoPipeline`."""

    unet: torch.nn.Module
    vae: torch.nn.Module
    image_encoder: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    engine: Engine
    forwards: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """What decides its memory."""


def plan_for(pipeline: Placeable, request: VideoRequest) -> MemoryPlan:
    """The plan for one request on the memory that is free now.

    Raises:
        InsufficientMemory: as `plan_memory`.
    """
    on_cpu = pipeline.device.type == "cpu"
    lying = {part: _bytes(_module(pipeline, part)) for part in PARTS}
    there = sum(each[pipeline.device.type] for each in lying.values())
    # What is kept there is counted again with what the plan needs.
    shares = {"resident": FAST_SHARE, "streamed": (1 + FAST_SHARE) * STREAMED_SHARE}
    there += sum(int(lying["unet"].total() * shares[name]) for name in pipeline.forwards)
    return plan_memory(
        {part: each.total() for part, each in lying.items()},
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        guided=request.guided,
        dtype_bytes=pipeline.dtype.itemsize,
        free_bytes=free_memory(pipeline.device) + there,
        shape=pipeline.shape,
        decode_chunk_size=request.decode_chunk_size,
        offload=not on_cpu,
        fast=is_fast(pipeline),
    )


def plan_for_stored_weights(pipeline: Placeable) -> MemoryPlan:
    """For a moment's work of one part: nothing moves where the whole model is on its device, else that part comes."""
    there = all(set(_bytes(_module(pipeline, part))) == {pipeline.device.type} for part in PARTS)
    return MemoryPlan("resident" if there else "model_offload", 1)


def is_fast(pipeline: Placeable) -> bool:
    """Whether our own forward computes by its kernels, which decides what it needs and how it may be placed."""
    return pipeline.engine == "fast" and has_kernels(pipeline.device, pipeline.dtype)


def _module(pipeline: Placeable, part: Part) -> torch.nn.Module:
    module: torch.nn.Module = getattr(pipeline, part)
    return module


def _bytes(module: torch.nn.Module) -> Counter[str]:
    """Bytes of a module's weights, by the type of device where they lie."""
    lying: Counter[str] = Counter()
    for weight in module.parameters():
        lying[weight.device.type] += weight.numel() * weight.element_size()
    return lying


@dataclass
class Placed:
    """A model whose parts come to the device by a plan; made by `place`."""

    pipeline: Placeable
    plan: MemoryPlan

    @contextmanager
    def on_device(self, part: Part, dtype: torch.dtype | None = None, of: Sequence[str] | None = None) -> Iterator[Any]:
        """The part, ready to compute on the model's device; enter once for each stage, not for each step.

        Args:
            part: "image_encoder", "vae" or "unet".
            dtype: Other arithmetic than the model's, for this while only.
            of: The part's modules that it is for, where others are not used.
        """
        module, home = _module(self.pipeline, part), self.pipeline.dtype
        turned = []
        if dtype not in (None, home):
            turned = [module] if of is None else [module.get_submodule(name) for name in of]
        try:
            for each in turned:
                _move(each, device=None, dtype=dtype)
            with self._offloaded(part, module):
                yield module
        finally:
            for each in turned:
                _move(each, device=None, dtype=home)

    @contextmanager
    def _offloaded(self, part: Part, module: torch.nn.Module) -> Iterator[None]:
        """The module on the device while inside, and back where the plan keeps it after; streamed, it never moves."""
        device = self.pipeline.device
        if self.plan.stays or (self.plan.name == "streamed" and part == "unet"):  # `place` has put it there
            yield
            return
        if self.plan.name == "sequential_offload":
            with _sequential(module, device):
                yield
            return
        _move(module, device, dtype=None)
        try:
            yield
        finally:
            _move(module, "cpu", dtype=None)
            release_cache(device)


@contextmanager
def place(pipeline: Placeable, plan: MemoryPlan) -> Iterator[Placed]:
    """Put a model where its plan wants it, and hand out its parts by `Placed.on_device`.

    Under a plan that stays all parts are on the device afterwards; under the others none is. Each is in the model's
    arithmetic. They are one generator's until it ends: nobody else may place them between two of its steps.
    """
    where = pipeline.device if plan.stays else "cpu"
    for part in PARTS:
        _move(_module(pipeline, part), where, pipeline.dtype)
    for name in set(pipeline.forwards) - {plan.keeps}:
        del pipeline.forwards[name]
    if not plan.stays:
        release_cache(pipeline.device)
    yield Placed(pipeline, plan)


def _move(module: torch.nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """`module.to` where it is not there yet, past diffusers' own, which warns of modules that no SVD has."""
    import torch

    wanted = torch.empty(0, device=device or "cpu").device  # with its index
    for tensor in _tensors(module):
        turns = dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype
        if turns or (device is not None and tensor.device != wanted):
            torch.nn.Module.to(module, device=device, dtype=dtype)
            return


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Weights and buffers. torch's own ways to them take several milliseconds, for which a GPU would wait."""
    for each in module.modules():
        for tensor in (*each._parameters.values(), *each._buffers.values()):  # noqa: SLF001
            if tensor is not None:
                yield tensor


@contextmanager
def _sequential(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Each layer comes to the device as it is called, and leaves after: slow, and hardly any memory."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    _move(module, "cpu", dtype=None)
    cpu_offload(module, device, offload_buffers=True)
    try:
        yield
    finally:
        remove_hook_from_module(module, recurse=True)
        release_cache(device)

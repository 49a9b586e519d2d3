"""Offload: move the components of a model between CPU memory and its device according to the memory plan."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kinema.models.devices import free_memory, has_kernels, release_cache
from kinema.models.finishing_memory import network_bytes
from kinema.models.memory_plan import COMPONENTS, FAST_SHARE, STREAMED_SHARE, Component, MemoryPlan, plan_memory
from kinema.models.reference_networks import as_reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kinema.models.loading import VideoPipeline
    from kinema.values import VideoRequest


def plan_for(pipeline: VideoPipeline, request: VideoRequest) -> MemoryPlan:
    """Return the plan for one request in the memory that is free now.

    Raises:
        InsufficientMemory: see `plan_memory`.
    """
    on_cpu = pipeline.device.type == "cpu"
    weights = {component: _bytes_by_device(_module(pipeline, component)) for component in COMPONENTS}
    # Weights and cached networks on the device count as free: the plan's size includes them.
    reusable = sum(each[pipeline.device.type] for each in weights.values())
    shares = {"resident": FAST_SHARE, "streamed": (1 + FAST_SHARE) * STREAMED_SHARE}
    reusable += sum(int(weights["unet"].total() * shares[name]) for name in pipeline.cached_networks)
    return plan_memory(
        {component: each.total() for component, each in weights.items()},
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        guided=request.guided,
        dtype_bytes=pipeline.dtype.itemsize,
        free_bytes=free_memory(pipeline.device) + reusable,
        shape=pipeline.shape,
        decode_chunk_size=request.decode_chunk_size,
        offload=not on_cpu,
        fast=is_fast(pipeline),
        gpus=pipeline.gpus,
        finishing_bytes=network_bytes(request, torch.float16) if pipeline.device.type == "cuda" else 0,
    )


def plan_for_stored_weights(pipeline: VideoPipeline) -> MemoryPlan:
    """Return a plan for a short use of one component: resident if all are on the device, else model_offload."""
    is_resident = all(
        set(_bytes_by_device(_module(pipeline, component))) == {pipeline.device.type} for component in COMPONENTS
    )
    return MemoryPlan("resident" if is_resident else "model_offload", 1)


def is_fast(pipeline: VideoPipeline) -> bool:
    """Return whether the fast engine runs with its kernels; that determines its memory and the possible plans."""
    return pipeline.engine == "fast" and has_kernels(pipeline.device, pipeline.dtype)


def _module(pipeline: VideoPipeline, component: Component) -> torch.nn.Module:
    module: torch.nn.Module = getattr(pipeline, component)
    return module


def _bytes_by_device(module: torch.nn.Module) -> Counter[str]:
    """Return the bytes of a module's weights by device type."""
    counts: Counter[str] = Counter()
    for weight in module.parameters():
        counts[weight.device.type] += weight.numel() * weight.element_size()
    return counts


@dataclass
class Placed:
    """A model whose components are moved to the device according to a plan; created by `place`."""

    pipeline: VideoPipeline
    plan: MemoryPlan

    @contextmanager
    def on_device(
        self, component: Component, dtype: torch.dtype | None = None, of: Sequence[str] | None = None
    ) -> Iterator[Any]:
        """Move a component to the model's device and yield it; enter once per stage, not once per step.

        Args:
            component: "image_encoder", "vae" or "unet".
            dtype: A temporary dtype, if other than the model's.
            of: The names of the component's modules to convert; None converts the whole component.
        """
        module, own_dtype = _module(self.pipeline, component), self.pipeline.dtype
        converted = []
        if dtype not in (None, own_dtype):
            converted = [module] if of is None else [module.get_submodule(name) for name in of]
        try:
            for each in converted:
                _move(each, device=None, dtype=dtype)
            with self._offloaded(component, module) as placed:
                yield placed
        finally:
            for each in converted:
                _move(each, device=None, dtype=own_dtype)

    @contextmanager
    def _offloaded(self, component: Component, module: torch.nn.Module) -> Iterator[torch.nn.Module]:
        """Move the module to the device on entry and back on exit; a resident or streamed module does not move.

        Sequential offload yields diffusers' module with the same weights.
        """
        device = self.pipeline.device
        if self.plan.is_resident or (self.plan.name == "streamed" and component == "unet"):  # `place` has moved it
            yield module
            return
        if self.plan.name == "sequential_offload":
            if self.pipeline.engine == "fast":
                module = as_reference(component, module)
            with _sequential(module, device):
                yield module
            return
        _move(module, device, dtype=None)
        try:
            yield module
        finally:
            _move(module, "cpu", dtype=None)
            release_cache(device)


@contextmanager
def place(pipeline: VideoPipeline, plan: MemoryPlan) -> Iterator[Placed]:
    """Move a model to where its plan requires, and yield an object that moves single components.

    Under a resident plan all components are on the device afterwards, under the others none. All are in the model's
    dtype. Only one generator may use the model at a time: do not call `place` between two of its steps.
    """
    device = pipeline.device if plan.is_resident else "cpu"
    for component in COMPONENTS:
        _move(_module(pipeline, component), device, pipeline.dtype)
    for name in set(pipeline.cached_networks) - {plan.cache_key}:
        del pipeline.cached_networks[name]
    if not plan.is_resident:
        release_cache(pipeline.device)
    yield Placed(pipeline, plan)


def _move(module: torch.nn.Module, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    """Call torch's `Module.to` if a tensor has to move; diffusers' own `to` warns about modules that no SVD has."""
    import torch

    target = torch.empty(0, device=device or "cpu").device  # with its index
    for tensor in _tensors(module):
        converts = dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype
        if converts or (device is not None and tensor.device != target):
            torch.nn.Module.to(module, device=device, dtype=dtype)
            return


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield weights and buffers. torch's own iterators take several milliseconds, during which a GPU would be idle."""
    for each in module.modules():
        for tensor in (*each._parameters.values(), *each._buffers.values()):  # noqa: SLF001
            if tensor is not None:
                yield tensor


@contextmanager
def _sequential(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Move each layer to the device for its call and back after it: slow, with minimal memory."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    _move(module, "cpu", dtype=None)
    cpu_offload(module, device, offload_buffers=True)
    try:
        yield
    finally:
        remove_hook_from_module(module, recurse=True)
        release_cache(device)

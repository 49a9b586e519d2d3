"""Loading of text-to-image pipelines of diffusers, and the choice of the default image model."""

from __future__ import annotations

import gc
import inspect
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kinema.errors import InsufficientMemory, InvalidRequest, NotAnImagePipeline
from kinema.models import hub
from kinema.models.catalog import IMAGE_MODELS, for_image_model, image_model_defaults
from kinema.models.cpu_allocator import keep_pages
from kinema.models.devices import check_host_memory, check_process, free_memory, pick_device, pick_dtype, release_cache
from kinema.models.image_pipeline_files import IMAGE_PIPELINE, SKIPPED_COMPONENTS, PipelineComponent, components_of
from kinema.models.image_pipeline_offload import plan_image_pipeline
from kinema.models.model_files import (
    INDEX,
    VARIANT,
    Weights,
    choose_weights,
    damaged,
    folder_names,
    read_headers,
    read_json,
    weights_sha256,
)
from kinema.models.resolve import installed_snapshot, locate, resolve
from kinema.recipe import ModelIdentity
from kinema.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch

    from kinema.models.hub import Progress, Snapshot
    from kinema.values import Scheduler, VideoRequest

SCHEDULERS: Mapping[Scheduler, str] = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass(frozen=True, eq=False)
class ImagePipeline:
    """A loaded text-to-image pipeline of diffusers.

    Its networks are in CPU memory; `kinema.models.image_pipeline_offload.on_device` moves them to the device.
    """

    name: str
    pipeline: Any
    device: torch.device
    dtype: torch.dtype
    snapshot: Snapshot
    defaults: dict[str, Any] = field(default_factory=dict)
    """The model's default parameters, under `VideoRequest`'s names."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how it was loaded."""
    process: int = field(default_factory=os.getpid)
    """Id of the process that loaded it, the only one that can use it (`check_process`)."""

    @cached_property
    def identity(self) -> ModelIdentity:
        """Identity of the weights; they are hashed on first access."""
        weights = [name for name in self.snapshot.files if name.endswith(".safetensors")]
        return ModelIdentity(
            name=self.name,
            revision=self.snapshot.revision,
            weights_sha256=weights_sha256(self.snapshot.folder, weights),
        )

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """Parts with weights, by name."""
        import torch

        return {
            name: component
            for name, component in self.pipeline.components.items()
            if isinstance(component, torch.nn.Module)
        }

    @property
    def tokenizer(self) -> Any | None:
        """The tokenizer with the longest maximum length, or None."""
        tokenizers = [
            component
            for name, component in self.pipeline.components.items()
            if name.startswith("tokenizer") and component
        ]
        return max(tokenizers, key=lambda tokenizer: tokenizer.model_max_length, default=None)

    def has_parameter(self, name: str) -> bool:
        """Return whether the pipeline's `__call__` has the parameter."""
        return name in inspect.signature(self.pipeline.__call__).parameters

    def make_scheduler(self, name: Scheduler | None) -> Any:
        """Return a new scheduler with the configuration of the model's own: of the given class, or of its own class.

        Raises:
            InvalidRequest: if the model was trained for an incompatible scheduler.
        """
        import diffusers

        own = self.pipeline.scheduler
        kind = type(own) if name is None else getattr(diffusers, SCHEDULERS[name])
        if kind is not type(own) and kind not in getattr(own, "compatibles", ()):
            raise InvalidRequest(
                f"scheduler {name!r} is not compatible with {self.name}, which uses {type(own).__name__}; omit it",
                "scheduler",
            )
        with hub.quiet():  # warns about settings that only the other scheduler has
            return kind.from_config(own.config)

    def check_process(self) -> None:
        """Check that this process loaded the pipeline, as `VideoPipeline.check_process` does.

        Raises:
            InvalidRequest: another process did.
        """
        check_process(self.name, self.process)

    def release(self) -> None:
        """Free the memory; the pipeline can't be used afterwards."""
        import torch

        for network in self.networks.values():
            torch.nn.Module.to(network, device="meta")
        gc.collect()  # objects in reference cycles
        release_cache(self.device)


def load_image_pipeline(
    image_pipeline: str | Path = "pocket-t2i",
    *,
    device: str | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ImagePipeline:
    """Load a text-to-image pipeline; download it first if necessary. Reads only safetensors and runs no custom code.

    Args:
        image_pipeline: Catalog name, hub id ("owner/name", or "owner/name@revision"), or folder in diffusers' layout.
        device: As for `kinema.models.loading.load`.
        dtype: As for `load`.
        settings: As for `load`.
        progress: As for `load`.

    Raises:
        InvalidRequest: if the device or dtype is not available.
        ModelError: if the model is unavailable or invalid; NotAnImagePipeline if it is another kind of model.
        InsufficientMemory: if the weights alone do not fit.
        InsufficientDisk: if there is no disk space for the download.
    """
    settings = settings or read_settings()
    chosen_device = pick_device(device if device not in (None, "auto") else settings.device)
    chosen_dtype = pick_dtype(dtype if dtype not in (None, "auto") else settings.dtype, chosen_device)
    source = resolve(image_pipeline, text_to_image=True)
    half = chosen_dtype.itemsize == 2
    snapshot = locate(source, half=half, progress=progress, layout=IMAGE_PIPELINE)
    index = read_json(snapshot.folder / INDEX)
    networks = {
        component: _weights(snapshot.folder, component, half=half)
        for component in components_of(index)
        if component.is_network
    }
    check_host_memory(source.name, sum(count for _, count in networks.values()), chosen_dtype, "a smaller image model")
    if chosen_device.type == "cpu":
        keep_pages()
    loaded = {
        component.name: _network(snapshot.folder, component, weights, chosen_dtype)
        for component, (weights, _) in networks.items()
    }
    pipeline = _assemble(snapshot.folder, str(index["_class_name"]), loaded, chosen_dtype)
    in_half = [component.name for component, (weights, _) in networks.items() if weights.half]
    rounded = f"text-to-image runs in float32 with weights rounded to float16 ({', '.join(in_half)})"
    return ImagePipeline(
        name=source.name,
        pipeline=pipeline,
        device=chosen_device,
        dtype=chosen_dtype,
        snapshot=snapshot,
        defaults=_defaults(str(image_pipeline), snapshot.folder, pipeline),
        notes=(rounded,) if in_half and not half else (),
    )


def _weights(folder: Path, component: PipelineComponent, *, half: bool) -> tuple[Weights, int]:
    """Return the complete weight files of a component and their number of elements."""
    weights = choose_weights(folder_names(folder), component.name, half=half, stem=component.stem)
    assert weights is not None, "locate has checked them"
    headers = read_headers(folder, weights).values()
    return weights, sum(math.prod(shape) for header in headers for shape in header.values())


def _network(folder: Path, component: PipelineComponent, weights: Weights, dtype: torch.dtype) -> torch.nn.Module:
    """Load one network; all of its weights must be present."""
    from safetensors import SafetensorError

    kind = getattr(import_module(component.library), component.kind, None)
    if kind is None:
        raise NotAnImagePipeline(
            f"{folder / INDEX} requires {component.kind}, which the installed version of {component.library} does "
            "not have"
        )
    try:
        with _silence():
            network, loading_info = kind.from_pretrained(
                folder / component.name,
                variant=VARIANT if weights.half else None,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **{"dtype" if component.library == "transformers" else "torch_dtype": dtype},
            )
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        SafetensorError,
    ) as error:
        reason = next(filter(None, str(error).splitlines()), type(error).__name__)
        raise damaged(
            folder / weights.files[0], f"does not hold the {component.kind} that its config.json describes ({reason})"
        ) from None
    missing = sorted(map(str, [*loading_info.get("missing_keys", ()), *loading_info.get("mismatched_keys", ())]))
    if missing:
        raise damaged(folder / weights.files[0], f"lacks the tensor {missing[0]}, which its config.json requires")
    module: torch.nn.Module = network.eval().requires_grad_(requires_grad=False)
    return module


def _assemble(folder: Path, name: str, networks: Mapping[str, torch.nn.Module], dtype: torch.dtype) -> Any:
    """Build the pipeline from the loaded networks, and the tokenizers and scheduler in the folder."""
    import diffusers

    with _silence():
        kind = getattr(diffusers, name)
    known = inspect.signature(kind).parameters
    absent: dict[str, Any] = dict.fromkeys((component for component in SKIPPED_COMPONENTS if component in known), None)
    if "requires_safety_checker" in known:
        absent["requires_safety_checker"] = False
    try:
        with _silence():
            pipeline = kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **absent, **networks)
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(folder / INDEX, f"does not describe a {name} that can be loaded ({error})") from None
    has_callback = "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters
    if not has_callback or not hasattr(type(pipeline), "num_timesteps"):
        raise NotAnImagePipeline(f"{folder} is a {name}, which has no callback per step; use --image-model sd-2.1-base")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the libraries' warnings, log messages below ERROR and progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [one for one in (diffusers_logging, transformers_logging) if one.is_progress_bar_enabled()]
    with hub.quiet():
        for library in libraries:
            library.disable_progress_bar()
        try:
            yield
        finally:
            for library in libraries:
                library.enable_progress_bar()


def _defaults(image_pipeline: str, folder: Path, pipeline: Any) -> dict[str, Any]:
    """Return the model's default parameters: the catalog's, or those of its pipeline class."""
    if known := image_model_defaults(image_pipeline if image_pipeline in IMAGE_MODELS else str(folder)):
        return known
    parameters = inspect.signature(pipeline.__call__).parameters
    names = {"image_guidance_scale": "guidance_scale", "image_num_inference_steps": "num_inference_steps"}
    return {name: parameters[keyword].default for name, keyword in names.items() if keyword in parameters}


def default_image_model(size: tuple[int, int], settings: Settings | None = None) -> tuple[str, str]:
    """Return the default text-to-image model, and the reason for the choice.

    It is `sd-2.1-base` on a GPU with enough memory, else `pocket-t2i`. It is always `pocket-t2i` if `size`, (width,
    height) in pixels, is that model's training size, for which no large model was trained.
    """
    settings = settings or read_settings()
    pocket, entry = IMAGE_MODELS["pocket-t2i"], IMAGE_MODELS["sd-2.1-base"]
    assert entry.weights_bytes is not None
    if size == pocket.native_size:
        return pocket.name, f"it is trained on {size[0]}×{size[1]}"
    device = pick_device(settings.device)
    if device.type != "cuda":
        return pocket.name, f"the device is {device.type}, not a CUDA GPU"
    dtype = pick_dtype(settings.dtype, device)
    try:
        plan = plan_image_pipeline(
            {component: count // 2 * dtype.itemsize for component, count in entry.weights_bytes.items()},
            width=size[0],
            height=size[1],
            guided=True,
            dtype_bytes=dtype.itemsize,
            free_bytes=free_memory(device),
        )
    except InsufficientMemory as error:
        return pocket.name, f"{entry.name} does not fit on {device}: {error}"
    if plan.name == "sequential_offload":
        return pocket.name, f"{entry.name} fits on {device} only with sequential offload; select it with --image-model"
    if installed_snapshot(entry) is None and not hub.reachable():
        return pocket.name, (
            f"{entry.name} is not downloaded, and the hub can't be reached; run `kinema models pull {entry.name}`"
        )
    return entry.name, f"it fits on {device}"


def completed(image_pipeline: ImagePipeline, request: VideoRequest) -> VideoRequest:
    """Return the request with the model's defaults for all image parameters that are None, as a recipe records it."""
    return for_image_model(request, request.image_model or image_pipeline.name, image_pipeline.defaults)

"""A painter: a text-to-image pipeline of diffusers, found, fetched, judged and loaded; and which one is taken."""

from __future__ import annotations

import gc
import inspect
import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kinema.errors import InsufficientMemory, InvalidRequest, NotAnImagePipeline
from kinema.models import hub
from kinema.models.catalog import IMAGE_MODELS, for_image_model, image_model_defaults
from kinema.models.cpu_allocator import keep_pages
from kinema.models.devices import free_memory, pick_device, pick_dtype, release_cache
from kinema.models.image_pipeline_files import IMAGE_PIPELINE, LEFT_OUT, ImagePipelinePart, parts_of
from kinema.models.image_pipeline_offload import plan_image_pipeline
from kinema.models.memory_plan import GIB
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
from kinema.models.resolve import held, locate, resolve
from kinema.settings import Settings, read_settings
from kinema.values import ModelIdentity, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import torch

    from kinema.models.hub import Progress, Snapshot
    from kinema.values import VideoRequest

SCHEDULERS: Mapping[Scheduler, str] = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm_solver": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass(eq=False)
class ImagePipeline:
    """A loaded text-to-image pipeline.

    Its networks are in CPU memory; `kinema.models.image_pipeline_offload.on_device` moves them to the device.
    """

    name: str
    pipeline: Any
    device: torch.device
    dtype: torch.dtype
    snapshot: Snapshot
    defaults: dict[str, Any] = field(default_factory=dict)
    """The painter's own, under `VideoRequest`'s names."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it was loaded."""

    def __post_init__(self) -> None:
        self._own_scheduler = self.pipeline.scheduler

    @cached_property
    def identity(self) -> ModelIdentity:
        """Which weights these are; hashed when first asked for."""
        weights = [name for name in self.snapshot.files if name.endswith(".safetensors")]
        return ModelIdentity(
            name=self.name,
            revision=self.snapshot.revision,
            weights_sha256=weights_sha256(self.snapshot.folder, weights),
        )

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The parts that have weights, by name."""
        import torch

        return {name: part for name, part in self.pipeline.components.items() if isinstance(part, torch.nn.Module)}

    @property
    def tokenizer(self) -> Any | None:
        """The tokenizer that reads most of a prompt, where there is any."""
        named = [part for name, part in self.pipeline.components.items() if name.startswith("tokenizer") and part]
        return max(named, key=lambda tokenizer: tokenizer.model_max_length, default=None)

    def takes(self, name: str) -> bool:
        """Whether the pipeline has such a parameter."""
        return name in inspect.signature(self.pipeline.__call__).parameters

    def sampler(self, name: Scheduler | None) -> Any:
        """A fresh scheduler: the one named, with the settings of the painter's own; or its own.

        Raises:
            InvalidRequest: when the painter was trained for another kind.
        """
        import diffusers

        own = self._own_scheduler
        kind = type(own) if name is None else getattr(diffusers, SCHEDULERS[name])
        if kind is not type(own) and kind not in getattr(own, "compatibles", ()):
            raise InvalidRequest(
                f"scheduler {name!r} does not go with {self.name}, which has a {type(own).__name__}; leave it out",
                "scheduler",
            )
        with hub.quiet():  # of settings that only the other scheduler knows
            return kind.from_config(own.config)

    def release(self) -> None:
        """Give the memory back; the painter can't be used afterwards."""
        import torch

        for network in self.networks.values():
            torch.nn.Module.to(network, device="meta")
        gc.collect()  # what only cycles of references hold
        release_cache(self.device)


def load_image_pipeline(
    image_pipeline: str | Path = "pocket-t2i",
    *,
    device: str | None = None,
    dtype: str | None = None,
    settings: Settings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ImagePipeline:
    """A painter in memory, fetched before where it must be. Only safetensors are opened, and no code of a model's own.

    Args:
        image_pipeline: Catalog name, hub id ("owner/name", or "owner/name@revision"), or folder in diffusers' layout.
        device: As for `kinema.models.loading.load`, and so are the others.
        dtype: Likewise.
        settings: Likewise.
        progress: Likewise.

    Raises:
        InvalidRequest: no such device or dtype.
        WeightsError: one of its kinds, naming the file and what to do; NotAnImagePipeline for a model of another kind.
        InsufficientMemory: when the weights alone do not fit.
        InsufficientDisk: when a download has no room.
    """
    settings = settings or read_settings()
    chosen = pick_device(device if device not in (None, "auto") else settings.device)
    kind = pick_dtype(dtype if dtype not in (None, "auto") else settings.dtype, chosen)
    source = resolve(image_pipeline, text_to_image=True)
    half = kind.itemsize == 2
    snapshot = locate(source, half=half, progress=progress, layout=IMAGE_PIPELINE)
    index = read_json(snapshot.folder / INDEX)
    networks = {part: _weights(snapshot.folder, part, half=half) for part in parts_of(index) if part.is_network}
    _check_room(source.name, sum(count for _, count in networks.values()) * kind.itemsize)
    if chosen.type == "cpu":
        keep_pages()
    loaded = {part.name: _network(snapshot.folder, part, weights, kind) for part, (weights, _) in networks.items()}
    pipeline = _assembled(snapshot.folder, str(index["_class_name"]), loaded, kind)
    in_half = [part.name for part, (weights, _) in networks.items() if weights.half]
    rounded = f"painting in float32 with weights rounded to float16 ({', '.join(in_half)})"
    return ImagePipeline(
        name=source.name,
        pipeline=pipeline,
        device=chosen,
        dtype=kind,
        snapshot=snapshot,
        defaults=_defaults(str(image_pipeline), snapshot.folder, pipeline),
        notes=(rounded,) if in_half and not half else (),
    )


def _weights(folder: Path, part: ImagePipelinePart, *, half: bool) -> tuple[Weights, int]:
    """The files that hold a part, seen to be whole, and how many numbers are in them."""
    weights = choose_weights(folder_names(folder), part.name, half=half, stem=part.stem)
    assert weights is not None, "locate has seen them"
    headers = read_headers(folder, weights).values()
    return weights, sum(math.prod(shape) for header in headers for shape in header.values())


def _check_room(name: str, needed: int) -> None:
    """Refuse what does not fit into the computer's memory, where every painter waits."""
    import torch

    free = free_memory(torch.device("cpu"))
    if free < needed:
        raise InsufficientMemory(
            f"the weights of {name} take {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB of memory are free: close "
            "something, load in --dtype float16 or bfloat16 where float32 is not needed, or take --image-model "
            "pocket-t2i"
        )


def _network(folder: Path, part: ImagePipelinePart, weights: Weights, dtype: torch.dtype) -> torch.nn.Module:
    """One network with its weights, of which none may be missing."""
    from safetensors import SafetensorError

    kind = getattr(import_module(part.library), part.kind, None)
    if kind is None:
        raise NotAnImagePipeline(
            f"{folder / INDEX} asks for {part.kind}, which the {part.library} that is here does not have"
        )
    try:
        with _silence():
            network, told = kind.from_pretrained(
                folder / part.name,
                variant=VARIANT if weights.half else None,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **{"dtype" if part.library == "transformers" else "torch_dtype": dtype},
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
            folder / weights.files[0], f"does not hold a {part.kind} as its config.json says ({reason})"
        ) from None
    lacking = sorted(map(str, [*told.get("missing_keys", ()), *told.get("mismatched_keys", ())]))
    if lacking:
        raise damaged(folder / weights.files[0], f"lacks the tensor {lacking[0]}, which its config.json asks for")
    module: torch.nn.Module = network.eval().requires_grad_(requires_grad=False)
    return module


def _assembled(folder: Path, name: str, networks: Mapping[str, torch.nn.Module], dtype: torch.dtype) -> Any:
    """The pipeline around the loaded networks: its tokenizers and its scheduler come from the folder."""
    import diffusers

    known = inspect.signature(getattr(diffusers, name)).parameters
    absent: dict[str, Any] = dict.fromkeys((part for part in LEFT_OUT if part in known), None)
    if "requires_safety_checker" in known:
        absent["requires_safety_checker"] = False
    try:
        with _silence():
            pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
                folder, torch_dtype=dtype, local_files_only=True, **absent, **networks
            )
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(folder / INDEX, f"describes no {name} that can be loaded ({error})") from None
    followed = "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters
    if not followed or not hasattr(type(pipeline), "num_timesteps"):
        raise NotAnImagePipeline(
            f"{folder} is a {name}, which can't be followed step by step; take --image-model sd-2.1-base"
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _silence() -> Iterator[None]:
    """No notices and no bars of the libraries: what a person must know, Kinema says itself."""
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
    """The painter's own settings: the catalog's, or those of its pipeline."""
    if known := image_model_defaults(image_pipeline if image_pipeline in IMAGE_MODELS else str(folder)):
        return known
    parameters = inspect.signature(pipeline.__call__).parameters
    names = {"image_guidance_scale": "guidance_scale", "image_num_inference_steps": "num_inference_steps"}
    return {ours: parameters[theirs].default for ours, theirs in names.items() if theirs in parameters}


def default_image_model(size: tuple[int, int], settings: Settings | None = None) -> tuple[str, str]:
    """The painter to take when none is asked for, and why.

    It is `sd-2.1-base` on a GPU with room for it, else `pocket-t2i`; and that one always where `size`, (width,
    height) in pixels, is its own, at which no large painter was trained.
    """
    settings = settings or read_settings()
    pocket, entry = IMAGE_MODELS["pocket-t2i"], IMAGE_MODELS["sd-2.1-base"]
    assert entry.weights_bytes is not None
    if size in pocket.native_sizes:
        return pocket.name, f"it is made for {size[0]}×{size[1]}"
    device = pick_device(settings.device)
    if device.type != "cuda":
        return pocket.name, "no CUDA device in use"
    dtype = pick_dtype(settings.dtype, device)
    try:
        plan = plan_image_pipeline(
            {part: count // 2 * dtype.itemsize for part, count in entry.weights_bytes.items()},
            width=size[0],
            height=size[1],
            guided=True,
            dtype_bytes=dtype.itemsize,
            free_bytes=free_memory(device),
        )
    except InsufficientMemory as lack:
        return pocket.name, f"{entry.name} does not fit on {device}: {lack}"
    if plan.name == "sequential_offload":
        return pocket.name, f"{entry.name} would fit on {device} layer by layer only; ask for it by --image-model"
    if held(entry) is None and not hub.reachable():
        return pocket.name, (
            f"{entry.name} is not on this machine, and the hub can't be reached; `kinema models pull {entry.name}`"
        )
    return entry.name, f"{device} has room for it"


def completed(image_pipeline: ImagePipeline, request: VideoRequest) -> VideoRequest:
    """The request with everything of the painter's own that was left open, as it is painted and kept in a recipe."""
    return for_image_model(request, request.image_model or image_pipeline.name, image_pipeline.defaults)

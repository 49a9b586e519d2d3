"""A catalog name, a hub id or a folder becomes a model in memory: found, fetched, judged, and only then loaded."""

from __future__ import annotations

import gc
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from kinema.errors import InsufficientMemory, InvalidRequest
from kinema.models import hub
from kinema.models.catalog import CATALOG, default_settings, request_for
from kinema.models.cpu_allocator import keep_pages
from kinema.models.devices import free_memory, has_kernels, is_hopper, pick_device, pick_dtype, release_cache
from kinema.models.memory_plan import GIB, PARTS, Part, Shape, plan_memory
from kinema.models.model_files import (
    CLASSES,
    CONFIGS,
    Header,
    check_configs,
    check_tensors,
    choose_weights,
    damaged,
    folder_names,
    read_headers,
    weights_sha256,
)
from kinema.models.resolve import inventory, locate, pull, resolve
from kinema.settings import Settings, read_settings
from kinema.values import Engine, ModelIdentity, Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from kinema.models.hub import Progress, Snapshot

Result = TypeVar("Result")

__all__ = ["VideoPipeline", "default_model", "inventory", "load", "pull", "resolve"]


@dataclass(eq=False)
class VideoPipeline:
    """A loaded SVD: its three networks, and what of its configuration the engine needs.

    `kinema.models.offload.place` brings its parts to the device as the memory plan says.
    """

    name: str
    unet: torch.nn.Module
    vae: torch.nn.Module
    image_encoder: torch.nn.Module
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    scheduler: dict[str, Any]
    """Configuration of the EulerDiscreteScheduler."""
    device: torch.device
    dtype: torch.dtype
    shape: Shape
    image_size: int
    """Side in pixels of the square that the image encoder sees."""
    snapshot: Snapshot
    defaults: dict[str, Any] = field(default_factory=dict)
    """The model's own defaults, under `VideoRequest`'s names."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it was loaded."""
    engine: Engine = "reference"
    """Which forward computes: ours (fast), or diffusers' own."""
    precision: Precision = "full"
    """Whether the fast UNet computes its large products in numbers of one byte."""
    forwards: dict[str, Any] = field(default_factory=dict, repr=False)
    """What `kinema.engine.backends` keeps from one video to the next, by `MemoryPlan.keeps`."""

    @property
    def force_upcast(self) -> bool:
        """Whether stills must be encoded in float32, because float16 overflows in this VAE's encoder."""
        return self.shape.force_upcast

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)  # type: ignore[union-attr, arg-type]

    @cached_property
    def identity(self) -> ModelIdentity:
        """Which weights these are; hashed when first asked for, or since `prepare_identity`."""
        self.prepare_identity()
        digest = self._digest.result()
        return ModelIdentity(name=self.name, revision=self.snapshot.revision, weights_sha256=digest)

    def prepare_identity(self) -> None:
        """Begin to hash the weights while others compute: seconds for a folder of gigabytes."""
        if "identity" not in self.__dict__:
            _ = self._digest

    @cached_property
    def _digest(self) -> Future[str]:
        weights = [name for name in self.snapshot.files if name.endswith(".safetensors")]
        return _in_background(partial(weights_sha256, self.snapshot.folder, weights))

    def release(self) -> None:
        """Give the memory back; the model can't be used afterwards."""
        import torch

        self.forwards.clear()
        for part in PARTS:
            torch.nn.Module.to(getattr(self, part), device="meta")
        gc.collect()  # what only cycles of references hold
        release_cache(self.device)


def _in_background(work: Callable[[], Result]) -> Future[Result]:
    """By a thread that nobody waits for but who asks for the result."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)

    Thread(target=run, name="kinema-hashing", daemon=True).start()
    return future


def load(
    model: str | Path = "pocket",
    *,
    device: str | None = None,
    dtype: str | None = None,
    engine: Engine | None = None,
    settings: Settings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> VideoPipeline:
    """A model in memory, fetched before where it must be.

    Args:
        model: Catalog name, hub id ("owner/name", or "owner/name@revision"), or folder in diffusers' layout.
        device: "cuda", "cuda:1", "mps", "cpu"; "auto" or None asks the settings, and then takes the best there is.
        dtype: "float16", "bfloat16", "float32"; "auto" or None likewise.
        engine: "fast" or "reference"; None takes the fast one where it is known to be as exact and quicker.
        settings: Read now when not given; also says the precision.
        progress: Called with each piece of a download.

    Raises:
        InvalidRequest: no such device, dtype or engine, or fp8 where it can't be.
        WeightsError: one of its kinds, naming the file and what to do.
        InsufficientMemory: when the weights alone do not fit.
        InsufficientDisk: when a download has no room.
    """
    settings = settings or read_settings()
    chosen = pick_device(device if device not in (None, "auto") else settings.device)
    kind = pick_dtype(dtype if dtype not in (None, "auto") else settings.dtype, chosen)
    forward = _engine(engine, chosen, kind)
    _check_precision(settings.precision, forward, chosen, kind)
    source = resolve(model)
    half = kind.itemsize == 2
    snapshot = locate(source, half=half, progress=progress)
    configs = check_configs(snapshot.folder)
    checked = {part: _check_part(snapshot.folder, part, configs[part], half=half) for part in PARTS}
    if chosen.type == "cpu":
        keep_pages()
    home = _room(sum(_count(module) for module, _, _ in checked.values()) * kind.itemsize, chosen, source.name)
    for module, headers, _ in checked.values():
        _fill(module, snapshot.folder, headers, home, kind)
    red, green, blue = zip(*(configs["feature_extractor"][name] for name in ("image_mean", "image_std")), strict=True)
    return VideoPipeline(
        name=source.name,
        unet=checked["unet"][0],
        vae=checked["vae"][0],
        image_encoder=checked["image_encoder"][0],
        image_mean=(red[0], green[0], blue[0]),
        image_std=(red[1], green[1], blue[1]),
        scheduler=configs["scheduler"],
        device=chosen,
        dtype=kind,
        shape=Shape.of(configs["unet"], configs["vae"]),
        image_size=int(checked["image_encoder"][0].config.image_size),  # type: ignore[union-attr, arg-type]
        snapshot=snapshot,
        defaults=default_settings(str(model)),
        engine=forward,
        precision=settings.precision,
        notes=_notes(chosen, kind, [part for part, (_, _, in_half) in checked.items() if in_half]),
    )


def _engine(wanted: str | None, device: torch.device, dtype: torch.dtype) -> Engine:
    """The forward asked for, or the fast one where it has been measured to be as exact and quicker.

    Raises:
        InvalidRequest: when there is none of that name.
    """
    if wanted is None:
        return "fast" if device.type == "cpu" or has_kernels(device, dtype) else "reference"
    if wanted not in get_args(Engine):
        raise InvalidRequest(f"there is no engine {wanted!r}; there is {' and '.join(get_args(Engine))}", "engine")
    return cast(Engine, wanted)


def _check_precision(precision: Precision, engine: Engine, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse numbers of one byte where they can't be multiplied.

    Raises:
        InvalidRequest: saying what they need.
    """
    if precision == "full":
        return
    lack = None
    if engine != "fast":
        lack = f"the fast engine, not {engine!r}"
    elif not is_hopper(device):
        lack = f"an NVIDIA GPU of the Hopper generation (H100, H200), not {device}"
    elif not has_kernels(device, dtype):
        lack = f"Triton, and float16 or bfloat16 for all else; this is {str(dtype).removeprefix('torch.')}"
    if lack:
        raise InvalidRequest(f"precision 'fp8' needs {lack}; take precision 'full'", "precision")


def _notes(device: torch.device, dtype: torch.dtype, in_half: Sequence[Part]) -> tuple[str, ...]:
    """What a person should know of the arithmetic; `in_half` are the parts whose weights were kept in float16."""
    notes = []
    quickest = pick_dtype("auto", device)
    if device.type == "cpu" and dtype.itemsize == 2 and dtype != quickest:
        name, better = (str(kind).removeprefix("torch.") for kind in (dtype, quickest))
        notes.append(f"this CPU computes slowly in {name}; {better} is quicker here")
    if in_half and dtype.itemsize > 2:
        notes.append(f"computing in float32 with weights rounded to float16 ({', '.join(in_half)})")
    return tuple(notes)


Checked = tuple["torch.nn.Module", dict[str, Header], bool]


def _check_part(folder: Path, part: Part, config: Mapping[str, Any], *, half: bool) -> Checked:
    """One network without weights yet, and the files that are seen to hold exactly its tensors."""
    weights = choose_weights(folder_names(folder), part, half=half)
    assert weights is not None, "locate has seen them"
    headers = read_headers(folder, weights)
    module = _empty(folder, part, config)
    check_tensors(folder, part, headers, {name: tuple(t.shape) for name, t in module.state_dict().items()})
    return module, headers, weights.half


def _empty(folder: Path, part: Part, config: Mapping[str, Any]) -> torch.nn.Module:
    """A network as its configuration says, which takes no memory yet."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        with hub.quiet(), init_empty_weights():
            module: torch.nn.Module
            if part == "image_encoder":
                module = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**settings))
            else:
                module = getattr(diffusers, CLASSES[part]).from_config(settings)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(folder / CONFIGS[part], f"describes no {CLASSES[part]} ({error})") from None
    return module.eval().requires_grad_(requires_grad=False)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _room(needed: int, device: torch.device, name: str) -> torch.device:
    """Where the weights go first: to the device where half as much again is free for computing, else to the CPU.

    Raises:
        InsufficientMemory: when they fit nowhere.
    """
    import torch

    if device.type != "cpu" and free_memory(device) > 1.5 * needed:
        return device
    free = free_memory(torch.device("cpu"))
    if free < needed:
        raise InsufficientMemory(
            f"the weights of {name} take {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB of memory are free: close "
            "something, load in --dtype float16 or bfloat16 where float32 is not needed, or take --model pocket"
        )
    return torch.device("cpu")


def _fill(
    module: torch.nn.Module, folder: Path, headers: Mapping[str, Header], device: torch.device, dtype: torch.dtype
) -> None:
    """Read each tensor straight to its device and arithmetic: no more than one is ever held twice."""
    import torch
    from safetensors import SafetensorError, safe_open

    wanted = module.state_dict().keys()
    state = {}
    for name in headers:
        try:
            with safe_open(folder / name, framework="pt", device="cpu") as file:
                for tensor in wanted & set(file.keys()):
                    # Copied, for a tensor that stays mapped dies with the process when its file is changed.
                    state[tensor] = file.get_tensor(tensor).to(device).to(dtype, copy=device.type == "cpu")
        except (SafetensorError, OSError) as error:
            raise damaged(folder / name, f"can't be read ({error})") from None
    module.load_state_dict(state, strict=True, assign=True)
    torch.nn.Module.to(module.requires_grad_(requires_grad=False), device=device)


def default_model(settings: Settings | None = None) -> tuple[str, str]:
    """The model to take when none is asked for, and why: `svd-xt` on a GPU with room for it, else `pocket`."""
    settings = settings or read_settings()
    if settings.model is not None:
        return settings.model, "the settings name it"
    device = pick_device(settings.device)
    if device.type != "cuda":
        return "pocket", "no CUDA device in use"
    entry = CATALOG["svd-xt"]
    assert entry.weights_bytes is not None
    assert entry.repository is not None
    request = request_for(model=entry.name)
    dtype = pick_dtype(settings.dtype, device)
    try:
        plan = plan_memory(
            {part: entry.weights_bytes[part] // 2 * dtype.itemsize for part in PARTS},
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            guided=request.guided,
            dtype_bytes=dtype.itemsize,
            free_bytes=free_memory(device),
            fast=has_kernels(device, dtype),
        )
    except InsufficientMemory as lack:
        return "pocket", f"svd-xt does not fit on {device}: {lack}"
    if plan.name == "sequential_offload":
        return (
            "pocket",
            f"svd-xt would fit on {device} layer by layer only, which is slow; ask for it by --model svd-xt",
        )
    if hub.cached(entry.repository, entry.revision or "main", half=True) is None and not hub.reachable():
        return "pocket", "svd-xt is not on this machine, and the hub can't be reached; `kinema models pull svd-xt`"
    return "svd-xt", f"{device} has room for it"

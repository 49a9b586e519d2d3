"""Loading of Stable Video Diffusion models: resolve, download, check, then load into memory; the default model."""

from __future__ import annotations

import gc
import os
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from kinema.errors import InsufficientMemory, InvalidRequest
from kinema.models import gpu_group, hub
from kinema.models.catalog import CATALOG, DEFAULTS_FILE, default_parameters, request_for
from kinema.models.cpu_allocator import keep_pages
from kinema.models.devices import (
    check_host_memory,
    check_process,
    free_memory,
    has_kernels,
    is_hopper,
    pick_device,
    pick_dtype,
    release_cache,
)
from kinema.models.memory_plan import COMPONENTS, Component, Shape, plan_memory
from kinema.models.model_files import (
    CLASSES,
    CONFIGS,
    SVD_CHANNELS,
    Header,
    check_configs,
    check_tensors,
    choose_weights,
    damaged,
    folder_names,
    read_headers,
    weights_sha256,
)
from kinema.models.reference_networks import make_reference_network
from kinema.models.resolve import ModelSource, inventory, locate, pull, resolve
from kinema.recipe import ModelIdentity
from kinema.settings import Settings, read_settings
from kinema.values import Engine, Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from kinema.models.gpu_group import GpuGroup, Peer
    from kinema.models.hub import Progress, Snapshot

Result = TypeVar("Result")

__all__ = ["VideoPipeline", "default_model", "inventory", "load", "pull", "resolve"]


@dataclass(frozen=True, eq=False)
class VideoPipeline:
    """A loaded SVD: its three networks, and the configuration that the engine needs.

    With the fast engine these are networks of `kinema.models.networks`, whose UNet and decoder have no forward of their
    own; with the reference engine they are diffusers' and transformers' models.
    `kinema.models.offload.place` moves its components to the device according to the memory plan.
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
    """Side in pixels of the image encoder's square input."""
    snapshot: Snapshot
    frames_at_once: int = 25
    """Frames that the model was trained to make at once; longer videos are made in windows."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """The model's default parameters, under `VideoRequest`'s names."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how it was loaded."""
    engine: Engine = "reference"
    """The implementation: "fast" is Kinema's own, "reference" is diffusers'."""
    precision: Precision = "full"
    """Precision of the fast UNet's large matmuls: "full" or "fp8"."""
    cached_networks: dict[str, Any] = field(default_factory=dict, repr=False)
    """Fast UNets that `kinema.engine.engines` keeps for the next video, by `MemoryPlan.cache_key`."""
    group: GpuGroup | None = field(default=None, repr=False)
    """Processes that have the same model on further GPUs, and compute parts of each video."""
    process: int = field(default_factory=os.getpid)
    """Id of the process that loaded it, the only one that can use it (`check_process`)."""

    @property
    def force_upcast(self) -> bool:
        """Whether images are encoded in float32, because float16 overflows in this VAE's encoder."""
        return self.shape.force_upcast

    @property
    def gpus(self) -> int:
        """Number of GPUs that generate a video together."""
        return 1 + len(self.peers)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The processes of the group."""
        return self.group.peers if self.group else ()

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.config.latent_channels)  # type: ignore[union-attr, arg-type]

    @cached_property
    def encodes_frames(self) -> bool:
        """Whether the VAE's encoder gives all channels of a frame's latents. It leaves some 0 if only the UNet does."""
        weight: torch.Tensor = self.vae.quant_conv.weight  # type: ignore[union-attr, assignment]
        return bool(weight[: self.latent_channels].flatten(1).any(1).all())

    @cached_property
    def identity(self) -> ModelIdentity:
        """Identity of the weights; they are hashed on first access, or in the background after `prepare_identity`."""
        self.prepare_identity()
        digest = self._digest.result()
        return ModelIdentity(name=self.name, revision=self.snapshot.revision, weights_sha256=digest)

    def prepare_identity(self) -> None:
        """Start to hash the weights in the background; it takes seconds for gigabytes."""
        if "identity" not in self.__dict__:
            _ = self._digest

    @cached_property
    def _digest(self) -> Future[str]:
        weights = [name for name in self.snapshot.files if name.endswith(".safetensors")]
        return _in_background(partial(weights_sha256, self.snapshot.folder, weights))

    def check_process(self) -> None:
        """Check that this process loaded the pipeline: after `os.fork`, torch's threads are missing and it would hang.

        Raises:
            InvalidRequest: another process did, or the pipeline was released.
        """
        check_process(self.name, self.process)
        if next(self.unet.parameters()).is_meta:
            raise InvalidRequest(f"the pipeline of {self.name} was released; load the model again", "model")

    def release(self) -> None:
        """Free the memory; the pipeline can't be used afterwards."""
        import torch

        self.cached_networks.clear()
        if self.group:
            self.group.close()
        for component in COMPONENTS:
            torch.nn.Module.to(getattr(self, component), device="meta")
        gc.collect()  # objects in reference cycles
        release_cache(self.device)


def _in_background(work: Callable[[], Result]) -> Future[Result]:
    """Run the work in a daemon thread and return its future."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised by Future.result
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
    """Load a model; download it first if necessary.

    Args:
        model: Catalog name, hub id ("owner/name", or "owner/name@revision"), or folder in diffusers' layout.
        device: "cuda", "cuda:1", "mps" or "cpu"; "auto" or None uses the settings' device, by default the fastest.
        dtype: "float16", "bfloat16" or "float32"; "auto" or None uses the settings' dtype.
        engine: "fast" or "reference"; None selects "fast" on CPUs and on GPUs with kernels.
        settings: Read now if None; they also give the precision and the number of GPUs.
        progress: Called with each chunk of a download.

    Raises:
        InvalidRequest: if the device, dtype or engine is not available, fp8 is not supported, or there are fewer GPUs.
        ModelError: if the model is unavailable or invalid.
        InsufficientMemory: if the weights alone do not fit.
        InsufficientDisk: if there is no disk space for the download.
    """
    settings = settings or read_settings()
    chosen_device = pick_device(device if device not in (None, "auto") else settings.device)
    chosen_dtype = pick_dtype(dtype if dtype not in (None, "auto") else settings.dtype, chosen_device)
    chosen_engine = _pick_engine(engine, chosen_device, chosen_dtype)
    _check_precision(settings.precision, chosen_engine, chosen_device, chosen_dtype)
    _, *further_devices = gpu_group.devices_of(chosen_device, settings)
    source = resolve(model)
    half = chosen_dtype.itemsize == 2
    snapshot = locate(source, half=half, progress=progress)
    configs = check_configs(snapshot.folder)
    checked = {
        component: _check_component(snapshot.folder, component, configs[component], half=half, engine=chosen_engine)
        for component in COMPONENTS
    }
    group = None
    if further_devices:
        group = gpu_group.GpuGroup(
            further_devices,
            settings.step_timeout,
            model=str(snapshot.folder),
            dtype=str(chosen_dtype).removeprefix("torch."),
            precision=settings.precision,
            engine=chosen_engine,
        )
    if chosen_device.type == "cpu":
        keep_pages()
    storage_device = _storage_device(
        sum(_count(module) for module, _, _ in checked.values()), chosen_dtype, chosen_device, source.name
    )
    for module, headers, _ in checked.values():
        _load_weights(module, snapshot.folder, headers, storage_device, chosen_dtype)
    if group:
        group.wait_until_loaded()
    in_half = [component for component, (_, _, is_half) in checked.items() if is_half]
    red, green, blue = zip(*(configs["feature_extractor"][name] for name in ("image_mean", "image_std")), strict=True)
    return VideoPipeline(
        name=source.name,
        unet=checked["unet"][0],
        vae=checked["vae"][0],
        image_encoder=checked["image_encoder"][0],
        image_mean=(red[0], green[0], blue[0]),
        image_std=(red[1], green[1], blue[1]),
        scheduler=configs["scheduler"],
        device=chosen_device,
        dtype=chosen_dtype,
        shape=Shape.of(configs["unet"], configs["vae"]),
        image_size=int(checked["image_encoder"][0].config.image_size),  # type: ignore[union-attr, arg-type]
        snapshot=snapshot,
        frames_at_once=_frames_at_once(snapshot.folder, configs["unet"]),
        defaults=default_parameters(str(model)),
        engine=chosen_engine,
        precision=settings.precision,
        group=group,
        notes=(
            *_missing_defaults_note(source, configs["unet"]),
            *_notes(chosen_device, chosen_dtype, in_half),
        ),
    )


def _frames_at_once(folder: Path, config: Mapping[str, Any]) -> int:
    """Return `num_frames` of the UNet's configuration, or diffusers' default.

    Raises:
        ModelCorrupt: it is not a number of frames.
    """
    frames = config.get("num_frames", 25)
    if not isinstance(frames, int) or frames < 1:
        raise damaged(folder / CONFIGS["unet"], f"has num_frames {frames!r}")
    return frames


def _pick_engine(wanted: str | None, device: torch.device, dtype: torch.dtype) -> Engine:
    """Return the requested engine; None selects "fast" where it is measured to be as exact and faster.

    Raises:
        InvalidRequest: if the engine is unknown.
    """
    if wanted is None:
        return "fast" if device.type == "cpu" or has_kernels(device, dtype) else "reference"
    if wanted not in get_args(Engine):
        raise InvalidRequest(f"engine {wanted!r} is not supported; use {' or '.join(get_args(Engine))}", "engine")
    return cast(Engine, wanted)


def _check_precision(precision: Precision, engine: Engine, device: torch.device, dtype: torch.dtype) -> None:
    """Check that the machine supports the precision.

    Raises:
        InvalidRequest: naming what fp8 needs and the machine lacks.
    """
    if precision == "full":
        return
    missing = None
    if engine != "fast":
        missing = f"the fast engine, not {engine!r}"
    elif not is_hopper(device):
        missing = f"an NVIDIA Hopper GPU (H100, H200), not {device}"
    elif not has_kernels(device, dtype):
        missing = f"Triton and dtype float16 or bfloat16; dtype is {str(dtype).removeprefix('torch.')}"
    if missing:
        raise InvalidRequest(f"precision 'fp8' needs {missing}; use precision 'full'", "precision")


def _missing_defaults_note(source: ModelSource, unet: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a remark if a folder's model is not of SVD's size and does not define its default parameters."""
    folder = source.folder
    if folder is None or (folder / DEFAULTS_FILE).exists():
        return ()
    if tuple(unet["block_out_channels"]) == SVD_CHANNELS:
        return ()  # a fine-tuned SVD
    return (f"{folder} has no {DEFAULTS_FILE}: unset parameters have svd-xt's defaults, which may not suit this model",)


def _notes(device: torch.device, dtype: torch.dtype, in_half: Sequence[Component]) -> tuple[str, ...]:
    """Return remarks on the dtype; `in_half` are the components whose files are of the variant "fp16"."""
    notes = []
    fastest = pick_dtype("auto", device)
    if device.type == "cpu" and dtype.itemsize == 2 and dtype != fastest:
        name, better = (str(kind).removeprefix("torch.") for kind in (dtype, fastest))
        notes.append(f"{name} is slow on this CPU; {better} is faster")
    if in_half and dtype.itemsize > 2:
        notes.append(f"dtype is float32, but the weights are rounded to float16 ({', '.join(in_half)})")
    return tuple(notes)


Checked = tuple["torch.nn.Module", dict[str, Header], bool]


def _check_component(
    folder: Path, component: Component, config: Mapping[str, Any], *, half: bool, engine: Engine
) -> Checked:
    """Return one network without weights, its weight files' headers, and whether those are of the variant "fp16"."""
    weights = choose_weights(folder_names(folder), component, half=half)
    assert weights is not None, "locate has checked them"
    headers = read_headers(folder, weights)
    module = _make_empty(folder, component, config, engine)
    check_tensors(folder, component, headers, {name: tuple(t.shape) for name, t in module.state_dict().items()})
    return module, headers, weights.half


def _make_empty(folder: Path, component: Component, config: Mapping[str, Any], engine: Engine) -> torch.nn.Module:
    """Create a network from its configuration on the meta device; only the reference engine imports diffusers."""
    from kinema.models.networks import make_network

    make = make_network if engine == "fast" else make_reference_network
    try:
        module = make(component, config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(folder / CONFIGS[component], f"does not describe a {CLASSES[component]} ({error})") from None
    return module.eval().requires_grad_(requires_grad=False)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _storage_device(elements: int, dtype: torch.dtype, device: torch.device, name: str) -> torch.device:
    """Return where to load the weights: the device if 1.5 times their size is free, else the CPU.

    Raises:
        InsufficientMemory: if they fit on neither.
    """
    import torch

    if device.type != "cpu" and free_memory(device) > 1.5 * elements * dtype.itemsize:
        return device
    check_host_memory(name, elements, dtype, "a smaller model")
    return torch.device("cpu")


def _load_weights(
    module: torch.nn.Module, folder: Path, headers: Mapping[str, Header], device: torch.device, dtype: torch.dtype
) -> None:
    """Read each tensor directly to its device and dtype; at most one tensor is in memory twice.

    Raises:
        ModelCorrupt: a file can't be read.
        InsufficientMemory: memory runs out, or the address space of the process.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from kinema.models.out_of_memory import insufficient, is_out_of_memory

    wanted = module.state_dict().keys()
    state = {}
    for name in headers:
        try:
            with safe_open(folder / name, framework="pt", device="cpu") as file:
                for tensor in wanted & set(file.keys()):
                    # Copied: reading a memory-mapped tensor crashes the process if its file is truncated.
                    state[tensor] = file.get_tensor(tensor).to(device).to(dtype, copy=device.type == "cpu")
        except (SafetensorError, OSError) as error:
            raise damaged(folder / name, f"can't be read ({error})") from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise insufficient(error, f"loading {folder / name}", "use a smaller model") from None
    module.load_state_dict(state, strict=True, assign=True)
    torch.nn.Module.to(module.requires_grad_(requires_grad=False), device=device)


def default_model(settings: Settings | None = None) -> tuple[str, str]:
    """Return the default model and the reason: the settings' model, `svd-xt` on a GPU if it fits, else `pocket`."""
    settings = settings or read_settings()
    if settings.model is not None:
        return settings.model, "it is set in the settings"
    device = pick_device(settings.device)
    if device.type != "cuda":
        return "pocket", f"the device is {device.type}, not a CUDA GPU"
    entry = CATALOG["svd-xt"]
    assert entry.weights_bytes is not None
    assert entry.repository is not None
    request = request_for(model=entry.name)
    dtype = pick_dtype(settings.dtype, device)
    try:
        plan = plan_memory(
            {component: entry.weights_bytes[component] // 2 * dtype.itemsize for component in COMPONENTS},
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            guided=request.guided,
            dtype_bytes=dtype.itemsize,
            free_bytes=free_memory(device),
            fast=has_kernels(device, dtype),
        )
    except InsufficientMemory as error:
        return "pocket", f"svd-xt does not fit on {device}: {error}"
    if plan.name == "sequential_offload":
        return (
            "pocket",
            f"svd-xt fits on {device} only with sequential offload, which is slow; select it with --model svd-xt",
        )
    if hub.cached(entry.repository, entry.revision or "main", half=True) is None and not hub.reachable():
        return "pocket", "svd-xt is not downloaded, and the hub can't be reached; run `kinema models pull svd-xt`"
    return "svd-xt", f"it fits on {device}"

"""The baseline: diffusers' StableVideoDiffusionPipeline, plain or compiled, with the time of each stage."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableVideoDiffusionPipeline

from kinema.benchmark.stopwatch import Stopwatch, TimedRun
from kinema.errors import GenerationFailed
from kinema.media.image import fit_image
from kinema.models import hub
from kinema.models.model_files import VARIANT
from kinema.models.out_of_memory import insufficient, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kinema.benchmark.stopwatch import BenchmarkTask, Make
    from kinema.values import VideoRequest

# (pipeline method at the start of a stage, the stage before it).
STAGE_ENDS = (("prepare_latents", "encode"), ("decode_latents", "denoise"))
PARAMETERS = (
    "width", "height", "num_frames", "num_inference_steps", "fps", "motion_bucket_id", "noise_aug_strength",
    "min_guidance_scale", "max_guidance_scale", "decode_chunk_size",
)  # fmt: skip


def load_baseline(name: str, task: BenchmarkTask) -> Make:
    """Load diffusers' pipeline as documented, and return a function that generates a video.

    Args:
        name: "diffusers", or "diffusers-compile" with the UNet and the decoder under torch.compile, which compiles
            during the first video.
        task: Its engine is ignored.
    """
    device, dtype = torch.device(task.device), getattr(torch, task.dtype)
    with hub.quiet(), _no_bars():
        pipeline = StableVideoDiffusionPipeline.from_pretrained(
            task.folder,
            torch_dtype=dtype,
            variant=VARIANT if task.half else None,
            use_safetensors=True,
            local_files_only=True,
        ).to(device)
        if name == "diffusers-compile":
            pipeline.unet.compile()
            pipeline.vae.decoder.compile()
    pipeline.set_progress_bar_config(disable=True)

    def make(request: VideoRequest) -> TimedRun:
        image = fit_image(task.image, request.width, request.height, request.fit, request.crop_position)
        latents = _noise(request, pipeline.unet.config.out_channels, pipeline.vae_scale_factor).to(dtype)
        parameters = {name: getattr(request, name) for name in PARAMETERS}
        with hub.quiet(), _translate_errors():
            watch = Stopwatch(device)
            with _timed(pipeline, watch) as arguments:
                generator = torch.Generator().manual_seed(request.seed)
                output = pipeline(image, latents=latents, generator=generator, output_type="np", **parameters)
            watch.end_stage("decode")
        last = arguments["decode_latents"][0].float().cpu().numpy()
        return TimedRun(watch.seconds, (output.frames[0] * 255).round().astype("uint8"), last)

    return make


def _noise(request: VideoRequest, channels: int, factor: int) -> torch.Tensor:
    """Draw Kinema's initial noise, so that both sides generate the same video; in half precision diffusers' differs.

    [1, frames, channels, h/f, w/f] with the VAE's factor f. The first draw of a seed is the noise on the image.
    """
    generator = torch.Generator().manual_seed(request.seed)
    torch.randn((1, 3, request.height, request.width), generator=generator)
    latent_size = request.height // factor, request.width // factor
    return torch.randn((1, request.num_frames, channels, *latent_size), generator=generator)


@contextmanager
def _timed(pipeline: Any, watch: Stopwatch) -> Iterator[dict[str, tuple[Any, ...]]]:
    """Record the end of each stage, and yield the arguments of the methods in STAGE_ENDS."""
    arguments: dict[str, tuple[Any, ...]] = {}

    def ending(name: str, stage: str) -> Callable[..., Any]:
        method = getattr(pipeline, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            watch.end_stage(stage)
            arguments[name] = args
            return method(*args, **kwargs)

        return call

    for name, stage in STAGE_ENDS:
        setattr(pipeline, name, ending(name, stage))
    try:
        yield arguments
    finally:
        for name, _ in STAGE_ENDS:
            delattr(pipeline, name)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate errors of diffusers and torch.compile.

    Raises:
        InsufficientMemory, GenerationFailed: naming the baseline.
    """
    from torch._dynamo.exc import TorchDynamoException

    alternative = "use --against nothing"
    try:
        yield
    except TorchDynamoException as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise GenerationFailed(f"torch.compile failed ({first}); use --against diffusers, or {alternative}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise insufficient(
            error, "diffusers generated the video", f"use smaller parameters, or {alternative}"
        ) from None


@contextmanager
def _no_bars() -> Iterator[None]:
    """Suppress progress bars of model loading."""
    import diffusers.utils.logging
    import transformers.utils.logging

    logger_modules = (diffusers.utils.logging, transformers.utils.logging)
    enabled = [logger_module for logger_module in logger_modules if logger_module.is_progress_bar_enabled()]
    for logger_module in enabled:
        logger_module.disable_progress_bar()
    try:
        yield
    finally:
        for logger_module in enabled:
            logger_module.enable_progress_bar()

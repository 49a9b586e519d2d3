"""Image to video: a generator of events that returns the video.

The image is fitted, embedded and encoded (`conditioning`). Noise is denoised to latents, step by step (`sampling`).
Latents are decoded to frames, chunk by chunk (`decoding`), to which further stages may follow (`finishing`). The caller
owns progress and cancelling: to cancel, stop iterating.

`generate` is `to_latents` followed by `to_video`. The `Checkpoint` between them can be saved to a file. Another process
that continues from it generates the same bytes as an uninterrupted run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch

from kinema.engine import held_frames
from kinema.engine.checkpoint import Checkpoint
from kinema.engine.conditioning import ENCODE_STEPS, condition, encoder_inputs
from kinema.engine.decoding import NotFinite, decode
from kinema.engine.denoising import denoise, window_frames
from kinema.engine.engines import engine_for, precision_for
from kinema.engine.finishing import finish, finish_extended, finishing_stages
from kinema.engine.repetition import denoise_again
from kinema.errors import GenerationFailed
from kinema.media.image import fit_image
from kinema.media.video import Video
from kinema.models.devices import cpu_instructions
from kinema.models.finishing_memory import check_finishing_memory
from kinema.models.finishing_weights import finishing_sha256
from kinema.models.offload import place, plan_for
from kinema.models.out_of_memory import SMALLER, insufficient, is_out_of_memory
from kinema.models.upscaler_weights import upscaler_file
from kinema.models.windows import check_two_ends
from kinema.recipe import Recipe
from kinema.steps import Restart, Step, replaced
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from PIL import Image

    from kinema.engine.conditioning import Conditions, EncoderInputs
    from kinema.engine.held_frames import HeldFrames
    from kinema.media.image import InputImage
    from kinema.media.source_video import SourceVideo
    from kinema.media.video_writer import Frames
    from kinema.models.loading import VideoPipeline
    from kinema.models.memory_plan import MemoryPlan
    from kinema.steps import Event
    from kinema.values import VideoRequest

LIBRARIES = ("diffusers", "transformers", "accelerate")


@dataclass(frozen=True, slots=True)
class PreparedImages:
    """The encoders' inputs of the images at the video's ends, and the generator that draws the rest of the noise."""

    inputs: tuple[EncoderInputs, ...]
    generator: torch.Generator


def prepare_images(
    pipeline: VideoPipeline, image: InputImage, request: VideoRequest, last_image: InputImage | None = None
) -> PreparedImages:
    """Fit the images, and compute on the CPU what the encoders read; another generator may use the pipeline meanwhile.

    The arguments are those of `to_latents`, which takes the result once, and then does not wait for it.

    Raises:
        InsufficientMemory: memory runs out.
    """
    generator = torch.Generator("cpu").manual_seed(request.seed)
    ends = [image] if last_image is None else [image, last_image]
    try:
        inputs = tuple(encoder_inputs(pipeline, _fitted(end, request), request, generator) for end in ends)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise insufficient(error, "encoding the image", SMALLER) from None
    return PreparedImages(inputs, generator)


@torch.no_grad()
def generate(
    pipeline: VideoPipeline,
    image: InputImage,
    request: VideoRequest,
    last_image: InputImage | None = None,
    source: SourceVideo | None = None,
) -> Generator[Event, None, Video]:
    """Yield a `Step` after each unit of work, and a `Restart` if decoding begins again; return the `Video`.

    All noise is drawn on the CPU from the request's seed, so a seed gives a similar video on every device. Without
    guidance (both scales 1) there is no unconditional pass.

    Args:
        pipeline: From `kinema.models.loading.load`; used by one generator at a time.
        image: From `kinema.media.image.open_image` or `kinema.engine.text_to_image.generate_image`.
        request: The checked parameters.
        last_image: Where the video ends; not for a loop.
        source: A video of the same model to extend: the first frames are its frames, and the request's `num_frames`
            counts them.

    Raises:
        InvalidRequest: if another process loaded the pipeline.
        InsufficientMemory: before any work if no plan fits; later if memory runs out and no leaner plan is left.
        GenerationFailed: if the model's output has NaN or infinity, or is one constant colour.
        DeviceLost: if a process of a group of GPUs ends.
    """
    pipeline.check_process()
    denoised = yield from to_latents(pipeline, image, request, last_image, source)
    return (yield from to_video(pipeline, image, request, denoised, last_image, source))


@torch.no_grad()
def to_latents(
    pipeline: VideoPipeline,
    image: InputImage,
    request: VideoRequest,
    last_image: InputImage | None = None,
    source: SourceVideo | None = None,
    prepared: PreparedImages | None = None,
) -> Generator[Event, None, Checkpoint]:
    """Encode and denoise: yield a `Step` after each unit of work, and return the `Checkpoint`.

    `prepared` comes from `prepare_images` with the same arguments; None computes it now.

    Raises:
        InsufficientMemory, GenerationFailed: see `generate`.
    """
    pipeline.check_process()
    if request.upscale > 1:
        upscaler_file()  # an error here, not after denoising
    check_finishing_memory(request, pipeline.device, 0 if source is None else source.lengths[-1])
    check_two_ends(request, pipeline.frames_at_once, has_last_image=last_image is not None)
    at_once = window_frames(pipeline, request) if source is None else pipeline.frames_at_once
    plan = plan_for(pipeline, request.model_copy(update={"num_frames": at_once}))
    pipeline.prepare_identity()  # for the recipe
    prepared = prepared or prepare_images(pipeline, image, request, last_image)
    return (yield from _to_denoised(pipeline, plan, prepared, request, source))


@torch.no_grad()
def to_video(
    pipeline: VideoPipeline,
    image: InputImage,
    request: VideoRequest,
    denoised: Checkpoint,
    last_image: InputImage | None = None,
    source: SourceVideo | None = None,
) -> Generator[Event, None, Video]:
    """Decode with the plan at the end of denoising, and finish: yield a `Step` per chunk, and return the `Video`.

    Args:
        pipeline: The same model, device and dtype as for `to_latents`.
        image: The same image.
        request: The same request.
        denoised: The result of `to_latents`.
        last_image: The same last image.
        source: The same video to extend.

    Raises:
        InsufficientMemory, GenerationFailed: see `generate`.
    """
    pipeline.check_process()
    events = list(denoised.events)
    is_flat = partial(_is_flat, image, request)
    stages = finishing_stages(request, pipeline.device)
    latents = denoised.latents.to(pipeline.device)
    frames = yield from _decode(pipeline, denoised.plan, latents, is_flat, events, are_final=not stages and not source)
    del latents
    if source is None:
        frames = yield from finish(frames, stages)
    else:
        frames = yield from finish_extended(frames, stages, source, request)
    recipe = _recipe(pipeline, denoised.plan, (image, last_image), request, events)
    if source is not None:
        recipe = recipe.model_copy(update={"extension": source.extension})
    files = tuple(end.file for end in (image, last_image) if end is not None and end.file is not None)
    return Video(frames, request.frame_rate, recipe, image.rgb, files, None if source is None else source.watermark)


def _to_denoised(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    prepared: PreparedImages,
    request: VideoRequest,
    source: SourceVideo | None,
) -> Generator[Step, None, Checkpoint]:
    """Encode the images at the video's ends, one or two, and denoise."""
    events: list[str] = []
    generator = prepared.generator
    encoded = []
    total = ENCODE_STEPS * len(prepared.inputs) + (
        0 if source is None else held_frames.hold_steps(pipeline, source, request)
    )
    for i, inputs in enumerate(prepared.inputs):
        steps = ENCODE_STEPS * i, total
        encoded.append((yield from _encode(pipeline, plan, inputs, request, steps)))
    ends = encoded * 2 if request.loop else encoded
    held: HeldFrames | None = None
    done = 0
    if source is not None and pipeline.encodes_frames:
        held = yield from _encode_held(pipeline, plan, source, request)
    elif source is not None:
        again = denoise_again(pipeline, plan, ends, source, request, generator, events)
        held, plan = yield from again
        done = len(source.lengths) * request.num_inference_steps

    def counted(step: Step) -> Step:
        return replace(step, step=done + step.step, total=done + step.total)

    steps_to_end = denoise(pipeline, plan, ends, request, generator, events, held)
    latents, plan = yield from replaced(steps_to_end, counted)
    return Checkpoint(latents, plan, tuple(events))


def _encode(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    inputs: EncoderInputs,
    request: VideoRequest,
    steps: tuple[int, int],
) -> Generator[Step, None, Conditions]:
    """Yield a step after embedding and after encoding; return the conditions."""
    try:
        with place(pipeline, plan) as placed:
            return (yield from condition(pipeline, placed, inputs, request, steps))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise insufficient(error, "encoding the image", SMALLER) from None


def _encode_held(
    pipeline: VideoPipeline, plan: MemoryPlan, source: SourceVideo, request: VideoRequest
) -> Generator[Step, None, HeldFrames]:
    """Yield a step after each encoded frame of the video to extend; return those that new windows hold."""
    try:
        with place(pipeline, plan) as placed:
            return (yield from held_frames.encode(pipeline, placed, source, request))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise insufficient(error, "encoding the frames of the video to extend", SMALLER) from None


def _decode(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    latents: torch.Tensor,
    is_flat: Callable[[], bool],
    events: list[str],
    *,
    are_final: bool,
) -> Generator[Event, None, Frames]:
    """Yield a step for each chunk; return all frames, checked for NaN and one constant colour.

    Decoding begins again in float32 if a check fails in half precision. `is_flat` returns whether the image has one
    colour. Frames that are not final are not in the steps.
    """
    attempts = [pipeline.dtype] if pipeline.dtype == torch.float32 else [pipeline.dtype, torch.float32]
    problem = ""
    for dtype in attempts:
        if problem:
            events.append(f"{problem}: repeated decoding in float32")
            yield Restart("decode", events[-1])
        # Frames are copied from the device to their place, so that nothing is copied twice while the device waits.
        factor = pipeline.shape.vae_factor
        video = np.empty((latents.shape[1], latents.shape[3] * factor, latents.shape[4] * factor, 3), np.uint8)
        done = 0
        try:
            with place(pipeline, plan) as placed, placed.on_device("vae", dtype) as vae:
                engine = engine_for(pipeline, plan)
                for chunk in decode(vae, latents, plan, events, video, engine=engine, peers=pipeline.peers):
                    done += len(chunk)
                    yield Step("decode", done, latents.shape[1], frames=chunk if are_final else None)
        except NotFinite:
            problem = f"the decoder's output has NaN or infinity in {dtype}"
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise insufficient(error, "decoding", SMALLER) from None
        # For an image of one colour, a constant video is correct.
        if not _one_colour(video) or is_flat():
            return video
        problem = f"the decoder's output is one constant colour in {dtype}"
    raise GenerationFailed(f"{problem}; no video was saved. Check the weights, or try another seed or other parameters")


def _fitted(image: InputImage, request: VideoRequest) -> Image.Image:
    return fit_image(image, request.width, request.height, request.fit, request.crop_position)


def _is_flat(image: InputImage, request: VideoRequest) -> bool:
    return _one_colour(np.asarray(_fitted(image, request)))


def _one_colour(pixels: Frames) -> bool:
    """Return whether all pixels, [n, ..., 3], are equal."""
    flat = pixels.reshape(-1, 3)
    if (flat[:: 1 + len(flat) // 1000] != flat[0]).any():  # nearly always; the rest takes milliseconds
        return False
    return all((part == flat[0]).all() for part in pixels)


def _recipe(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    images: tuple[InputImage, InputImage | None],
    request: VideoRequest,
    events: list[str],
) -> Recipe:
    """Return the recipe of the video; of a local folder it contains only the last part of the path."""
    image, last_image = images
    device = pipeline.device.type
    on_cpu = device == "cpu"
    if device == "cuda":
        device = f"cuda ({torch.cuda.get_device_name(pipeline.device)})"
    names = {"model": pipeline.name}
    if image.image_generation is not None:
        names["image_model"] = image.image_generation.model.name
    return Recipe(
        kinema=own_version(),
        request=request.model_copy(update=names),
        image_sha256=image.sha256,
        last_image_sha256=None if last_image is None else last_image.sha256,
        image_generation=image.image_generation,
        model=pipeline.identity,
        finishing_sha256=finishing_sha256(request),
        device=device,
        threads=torch.get_num_threads() if on_cpu else None,
        cpu=cpu_instructions() if on_cpu else None,
        dtype=str(pipeline.dtype).removeprefix("torch."),
        engine=engine_for(pipeline, plan),
        precision=precision_for(pipeline, plan),
        memory_plan=plan.name,
        gpus=pipeline.gpus,
        decode_chunk_size=plan.decode_chunk_size,
        events=tuple(events),
        versions=_versions(),
    )


@cache
def _versions() -> dict[str, str]:
    """Return the versions of the libraries; that of torch with its build."""
    return {"torch": str(torch.__version__)} | {name: version(name) for name in LIBRARIES}

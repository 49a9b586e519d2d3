"""Text to image: a generator of events that returns an image.

Any text-to-image pipeline of diffusers can be used, so the denoising loop is diffusers' own. `threaded_generator` turns
its callbacks into a generator, so that the caller owns progress and cancelling here too. Image and video start from the
same seed, each with its own random generator: a saved image gives the same video as its prompt.
"""

from __future__ import annotations

import re
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kinema.engine.threaded_generator import threaded_generator
from kinema.errors import GenerationFailed, InvalidRequest
from kinema.media.image import open_image, plain_name
from kinema.models import hub
from kinema.models.catalog import IMAGE_MODELS, quote_words, words_in
from kinema.models.finishing_memory import check_finishing_memory
from kinema.models.image_pipeline import completed
from kinema.models.image_pipeline_offload import PLANS, on_device, plan_for
from kinema.models.out_of_memory import insufficient, is_out_of_memory
from kinema.recipe import ImageGeneration
from kinema.steps import Restart, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from kinema.media.image import InputImage
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.memory_plan import MemoryPlan
    from kinema.steps import Event
    from kinema.values import VideoRequest

    Pixels = np.ndarray[Any, np.dtype[np.float32]]


def generate_image(image_pipeline: ImagePipeline, request: VideoRequest) -> Generator[Event, None, InputImage]:
    """Yield a `Step` for each denoising step, and return the `InputImage` with its `image_generation`.

    The noise is drawn on the CPU in float32 from the request's seed. The device is always freed at the end. If the
    image has NaN or infinity or is of one colour, generation is repeated once in float32. If memory runs out, it is
    repeated once with the next leaner plan. A `Restart` precedes each repetition.

    Args:
        image_pipeline: From `kinema.models.image_pipeline.load_image_pipeline`; used by one generator at a time.
        request: A request with a prompt; parameters that are None use the model's defaults.

    Raises:
        InvalidRequest: if the model does not support a parameter, or another process loaded it.
        InsufficientMemory: before any work if no plan fits; later if memory runs out and no leaner plan is left.
        GenerationFailed: if the image is invalid in float32 too.
    """
    image_pipeline.check_process()
    if request.prompt is None:
        raise InvalidRequest("prompt is missing; text-to-image needs one", "prompt")
    prompt, request = request.prompt, completed(image_pipeline, request)
    _check_parameters(image_pipeline, request)
    check_finishing_memory(request, image_pipeline.device)  # of the video: an error here, not after this work
    events: list[str] = []
    pixels, plan, dtype = yield from _generate_pixels(image_pipeline, request, events)
    image = open_image((pixels * 255).round().astype(np.uint8))
    image_generation = ImageGeneration(
        model=image_pipeline.identity,
        pipeline=type(image_pipeline.pipeline).__name__,
        dtype=str(dtype).removeprefix("torch."),
        memory_plan=plan.name,
        events=tuple(events),
    )
    return replace(image, name=plain_name(prompt, 60), image_generation=image_generation)


def _generate_pixels(
    image_pipeline: ImagePipeline, request: VideoRequest, events: list[str]
) -> Generator[Event, None, tuple[Pixels, MemoryPlan, torch.dtype]]:
    """Yield the events, and return the image with its final plan and dtype."""
    dtype = image_pipeline.dtype
    plan = plan_for(image_pipeline, request)
    can_retry = True
    while True:
        try:
            with on_device(image_pipeline, plan, dtype) as pipeline:
                pixels = yield from threaded_generator(partial(_run_pipeline, image_pipeline, pipeline, request, dtype))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            next_plan = plan.next(PLANS) if can_retry and image_pipeline.device.type != "cpu" else None
            if next_plan is None:
                raise insufficient(error, "generating the image", "use a smaller width and height") from None
            events.append(f"memory ran out while generating the image: repeated with {next_plan.name}")
            plan, can_retry = next_plan, False
        else:
            problem = _find_problem(pixels, dtype)
            if problem is None:
                return pixels, plan, dtype
            if dtype == torch.float32:
                raise GenerationFailed(
                    f"{problem}; no image was saved. Check the weights, or try another seed, scheduler or other "
                    "parameters"
                )
            events.append(f"{problem}: repeated in float32")
            dtype = torch.float32
            plan = plan_for(image_pipeline, request, dtype)
        yield Restart("text_to_image", events[-1])


def _run_pipeline(
    image_pipeline: ImagePipeline,
    pipeline: Any,
    request: VideoRequest,
    dtype: torch.dtype,
    report: Callable[[Step], None],
) -> Pixels:
    """Generate one image with diffusers' denoising loop: float32 [height, width, 3] in 0…1."""

    def on_step_end(pipe: Any, i: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors.get("latents")
        as_frame = latents[:, None] if latents is not None and latents.ndim == 4 else None
        report(Step("text_to_image", i + 1, int(pipe.num_timesteps), as_frame))
        return tensors

    generator = torch.Generator("cpu").manual_seed(request.seed)
    options = {
        "negative_prompt": request.negative_prompt,
        "guidance_scale": request.image_guidance_scale,
        "num_inference_steps": request.image_num_inference_steps,
        "latents": _first_latents(pipeline, request, generator, dtype),
    }
    pipeline = copy(pipeline)  # with the same networks
    pipeline.scheduler = image_pipeline.make_scheduler(request.scheduler)
    try:
        image: Pixels = pipeline(
            request.prompt,
            width=request.width,
            height=request.height,
            generator=generator,
            output_type="np",
            callback_on_step_end=on_step_end,
            **{name: value for name, value in options.items() if value is not None},
        ).images[0]
    except ValueError as error:  # requirements of one pipeline, such as a multiple of 16
        raise InvalidRequest(f"{image_pipeline.name} rejected a parameter: {error}") from None
    return image.astype(np.float32)


def _first_latents(
    pipeline: Any, request: VideoRequest, generator: torch.Generator, dtype: torch.dtype
) -> torch.Tensor | None:
    """Draw the initial noise in float32, [1, channels, h/f, w/f]; diffusers would draw different noise in float16.

    Returns None for a pipeline without such latents, which draws its own noise.
    """
    unet = getattr(pipeline, "unet", None)
    scale = getattr(pipeline, "vae_scale_factor", None)
    if unet is None or scale is None:
        return None
    shape = (1, unet.config.in_channels, request.height // scale, request.width // scale)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)


def _find_problem(pixels: Pixels, dtype: torch.dtype) -> str | None:
    """Return the problem of an invalid image, or None."""
    if not np.isfinite(pixels).all():
        return f"the image has NaN or infinity in {dtype}"
    levels = (pixels * 255).round()
    if (levels == levels[0, 0]).all():
        return f"the image is one constant colour in {dtype}"
    return None


def _check_parameters(image_pipeline: ImagePipeline, request: VideoRequest) -> None:
    """Check that the pipeline supports the parameters of the request.

    Raises:
        InvalidRequest: naming the unsupported parameter.
    """
    image_pipeline.make_scheduler(request.scheduler)
    names = {
        "negative_prompt": "negative_prompt",
        "image_guidance_scale": "guidance_scale",
        "image_num_inference_steps": "num_inference_steps",
    }
    for name, keyword in names.items():
        if getattr(request, name) is not None and not image_pipeline.has_parameter(keyword):
            raise InvalidRequest(f"{image_pipeline.name} does not support {name}; omit it", name)


def prompt_warnings(image_pipeline: ImagePipeline, request: VideoRequest) -> list[str]:
    """Return warnings about words that are unknown to the model's tokenizer, and about prompts that are too long.

    For a model with a vocabulary in the catalog, `catalog.parameter_warnings` reports unknown words.
    """
    tokenizer = image_pipeline.tokenizer
    if tokenizer is None:
        return []
    found = []
    with hub.quiet():
        entry = IMAGE_MODELS.get(image_pipeline.name)
        unknown = _unknown_words(tokenizer, request.prompt or "") if entry is None or entry.vocabulary is None else []
        if unknown:
            found.append(f"{image_pipeline.name} does not know {quote_words(unknown)}")
        texts = {"prompt": request.prompt or "", "negative_prompt": request.negative_prompt or ""}
        cut = {name: _cut_off(tokenizer, text) for name, text in texts.items()}
    return found + [
        f"the {name} is too long for {image_pipeline.name}; this part is ignored: {end!r}"
        for name, end in cut.items()
        if end
    ]


def _unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """Return the distinct words that the tokenizer maps to its unknown token."""
    if tokenizer.unk_token_id is None:
        return []
    words = dict.fromkeys(words_in(prompt))
    return [word for word in words if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids]


def _cut_off(tokenizer: Any, prompt: str) -> str:
    """Return the end of a prompt that exceeds the tokenizer's maximum length, from the first incomplete word."""
    max_length = tokenizer.model_max_length
    if len(tokenizer(prompt).input_ids) <= max_length:
        return ""
    spans = tokenizer(prompt, truncation=True, max_length=max_length, return_offsets_mapping=True).offset_mapping
    end = max(end for _, end in spans)
    word = re.search(r"\w*$", prompt[:end])
    assert word is not None, "the pattern matches an empty string"
    inside = prompt[end : end + 1].isalnum()
    return prompt[word.start() if inside else end :].strip()

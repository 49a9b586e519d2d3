"""Text to image: a generator of steps that ends with an image.

Any text-to-image pipeline of diffusers can be used, so the denoising loop is diffusers' own. `threaded_generator` turns
its callbacks into a generator, so that the caller owns progress and cancelling here too. Image and video start from the
same seed, each with its own random generator: a saved image gives the same video as its prompt.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kinema.engine.out_of_memory import insufficient, is_out_of_memory
from kinema.engine.threaded_generator import threaded_generator
from kinema.errors import GenerationFailed, InvalidRequest
from kinema.media.image import open_image, plain_name
from kinema.models import hub
from kinema.models.catalog import IMAGE_MODELS, quote_words, words_in
from kinema.models.image_pipeline import completed
from kinema.models.image_pipeline_offload import PLANS, on_device, plan_for
from kinema.values import ImageGeneration, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from kinema.media.image import InputImage
    from kinema.models.image_pipeline import ImagePipeline
    from kinema.models.memory_plan import MemoryPlan
    from kinema.values import VideoRequest

    Pixels = np.ndarray[Any, np.dtype[np.float32]]


def generate_image(image_pipeline: ImagePipeline, request: VideoRequest) -> Iterator[Step | InputImage]:
    """Yield a `Step` for each denoising step, and at last the `InputImage` with its `image_generation`.

    The noise is drawn on the CPU in float32 from the request's seed. The device is given back at the end, however it
    comes. Where the picture is NaN, infinite or of one colour, or memory runs out, it is begun again, once: in
    float32, or in the next leaner plan.

    Args:
        image_pipeline: From `kinema.models.image_pipeline.load_image_pipeline`; used by one generator at a time.
        request: With a prompt; what it leaves open is the painter's own.

    Raises:
        InvalidRequest: when the painter can't follow a setting.
        InsufficientMemory: before any work when no plan fits; later when none was left all the same.
        GenerationFailed: when the painter gave no picture in float32 either.
    """
    if request.prompt is None:
        raise InvalidRequest("there is no prompt to draw a still from; give one", "prompt")
    prompt, request = request.prompt, completed(image_pipeline, request)
    _check_followed(image_pipeline, request)
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
    yield replace(image, name=plain_name(prompt, 60), image_generation=image_generation)


def _generate_pixels(
    image_pipeline: ImagePipeline, request: VideoRequest, events: list[str]
) -> Generator[Step, None, tuple[Pixels, MemoryPlan, torch.dtype]]:
    """Yield the steps, and return the picture with the plan and the arithmetic in which it came about."""
    dtype = image_pipeline.dtype
    plan = plan_for(image_pipeline, request)
    had_room = True
    while True:
        try:
            with on_device(image_pipeline, plan, dtype) as pipeline:
                pixels = yield from threaded_generator(partial(_draw, image_pipeline, pipeline, request, dtype))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            following = plan.next(PLANS) if had_room and image_pipeline.device.type != "cpu" else None
            if following is None:
                raise insufficient(error, "painting the still", "take smaller width and height") from None
            events.append(f"memory ran out while painting: painted again with {following.name}")
            plan, had_room = following, False
            continue
        fault = _fault(pixels, dtype)
        if fault is None:
            return pixels, plan, dtype
        if dtype == torch.float32:
            raise GenerationFailed(
                f"{fault}; no still was kept. Check the weights, or try another seed, scheduler and settings"
            )
        events.append(f"{fault}: painted again in float32")
        dtype = torch.float32
        plan = plan_for(image_pipeline, request, dtype)


def _draw(
    image_pipeline: ImagePipeline,
    pipeline: Any,
    request: VideoRequest,
    dtype: torch.dtype,
    report: Callable[[Step], None],
) -> Pixels:
    """One picture, float32 [height, width, 3] in 0…1, by diffusers' loop."""

    def told(pipe: Any, i: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors.get("latents")
        as_frame = latents[:, None] if latents is not None and latents.ndim == 4 else None
        report(Step("text_to_image", i + 1, int(pipe.num_timesteps), as_frame))
        return tensors

    generator = torch.Generator("cpu").manual_seed(request.seed)
    given = {
        "negative_prompt": request.negative_prompt,
        "guidance_scale": request.image_guidance_scale,
        "num_inference_steps": request.image_num_inference_steps,
        "latents": _first_latents(pipeline, request, generator, dtype),
    }
    pipeline.scheduler = image_pipeline.make_scheduler(request.scheduler)
    try:
        image: Pixels = pipeline(
            request.prompt,
            width=request.width,
            height=request.height,
            generator=generator,
            output_type="np",
            callback_on_step_end=told,
            **{name: value for name, value in given.items() if value is not None},
        ).images[0]
    except ValueError as error:  # what this pipeline alone asks of its settings, as a multiple of 16
        raise InvalidRequest(f"{image_pipeline.name} can't draw this: {error}") from None
    return image.astype(np.float32)


def _first_latents(
    pipeline: Any, request: VideoRequest, generator: torch.Generator, dtype: torch.dtype
) -> torch.Tensor | None:
    """The generator's first draw in float32, [1, channels, h/f, w/f]; diffusers would draw other noise in float16.

    None where the pipeline has no such latents, and draws its own.
    """
    unet = getattr(pipeline, "unet", None)
    scale = getattr(pipeline, "vae_scale_factor", None)
    if unet is None or scale is None:
        return None
    shape = (1, unet.config.in_channels, request.height // scale, request.width // scale)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)


def _fault(pixels: Pixels, dtype: torch.dtype) -> str | None:
    """What is wrong with a picture that no one can have wanted."""
    if not np.isfinite(pixels).all():
        return f"the painter gave NaN or infinity in {dtype}"
    levels = (pixels * 255).round()
    if (levels == levels[0, 0]).all():
        return f"the painter gave one constant colour in {dtype}"
    return None


def _check_followed(image_pipeline: ImagePipeline, request: VideoRequest) -> None:
    """Refuse settings that the painter's pipeline does not have.

    Raises:
        InvalidRequest: naming the setting.
    """
    image_pipeline.make_scheduler(request.scheduler)
    names = {
        "negative_prompt": "negative_prompt",
        "image_guidance_scale": "guidance_scale",
        "image_num_inference_steps": "num_inference_steps",
    }
    for ours, theirs in names.items():
        if getattr(request, ours) is not None and not image_pipeline.has_parameter(theirs):
            raise InvalidRequest(f"{image_pipeline.name} knows no {ours}; leave it out", ours)


def prompt_warnings(image_pipeline: ImagePipeline, request: VideoRequest) -> list[str]:
    """What of the request's prompts the painter does not read: words unknown to its tokenizer, and what is too long.

    Of a painter whose words the catalog holds, `catalog.warnings` has named them already.
    """
    tokenizer = image_pipeline.tokenizer
    if tokenizer is None:
        return []
    found = []
    with hub.quiet():
        entry = IMAGE_MODELS.get(image_pipeline.name)
        unknown = _unknown_words(tokenizer, request.prompt or "") if entry is None or entry.vocabulary is None else []
        if unknown:
            found.append(f"{image_pipeline.name} can't draw {quote_words(unknown)}")
        texts = {"prompt": request.prompt or "", "negative_prompt": request.negative_prompt or ""}
        cut = {name: _cut_off(tokenizer, text) for name, text in texts.items()}
    return found + [
        f"the painter reads the beginning of the {name} alone; this is left out: {end!r}"
        for name, end in cut.items()
        if end
    ]


def _unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """The words for which the tokenizer has only its token for what it does not know, each once."""
    if tokenizer.unk_token_id is None:
        return []
    words = dict.fromkeys(words_in(prompt))
    return [word for word in words if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids]


def _cut_off(tokenizer: Any, prompt: str) -> str:
    """The end of a prompt that is too long for the tokenizer, from its first word that is not wholly read."""
    longest = tokenizer.model_max_length
    if len(tokenizer(prompt).input_ids) <= longest:
        return ""
    spans = tokenizer(prompt, truncation=True, max_length=longest, return_offsets_mapping=True).offset_mapping
    end = max(end for _, end in spans)
    word = re.search(r"\w*$", prompt[:end])
    assert word is not None, "an empty word is one"
    inside = prompt[end : end + 1].isalnum()
    return prompt[word.start() if inside else end :].strip()

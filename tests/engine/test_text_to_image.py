"""Test image generation from a prompt: parity with diffusers, steps, cancellation and errors."""

import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kinema.engine import generate_image, prompt_warnings
from kinema.errors import GenerationFailed, InsufficientMemory, InvalidRequest
from kinema.media.image import InputImage, open_image
from kinema.models.image_pipeline import SCHEDULERS, ImagePipeline, load_image_pipeline
from kinema.steps import Event, Restart, Step, drive
from kinema.values import VideoRequest
from tiny import SD_SCHEDULER, make_tiny_sd, write_json

PROMPT = "a red balloon over a snowy mountain"
SMALL = {"prompt": PROMPT, "seed": 7, "width": 64, "height": 64, "image_num_inference_steps": 3}
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def image_pipeline(tiny_sd: Path) -> ImagePipeline:
    return load_image_pipeline(tiny_sd, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("weights") / "tiny-sdxl", xl=True)


def request_of(**settings: object) -> VideoRequest:
    return VideoRequest.checked(**SMALL | settings)


def image_of(image_pipeline: ImagePipeline, **settings: object) -> InputImage:
    return drive(generate_image(image_pipeline, request_of(**settings)))


def pixels(image: InputImage) -> np.ndarray:
    return np.asarray(image.rgb).astype(int)


def placement(image_pipeline: ImagePipeline) -> set[tuple[str, torch.dtype]]:
    return {(p.device.type, p.dtype) for network in image_pipeline.networks.values() for p in network.parameters()}


# Parity


def diffusers_pixels(folder: Path, scheduler: str | None, **settings: object) -> np.ndarray:
    """Return the image of diffusers' pipeline: uint8 [height, width, 3]."""
    import diffusers
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        if scheduler is not None:
            kind = getattr(diffusers, SCHEDULERS[scheduler])
            pipeline.scheduler = kind.from_pretrained(folder, subfolder="scheduler")
        pipeline.set_progress_bar_config(disable=True)
        [image] = pipeline(**settings).images
    return np.asarray(image)


def assert_parity(folder: Path, **settings: object) -> None:
    image = image_of(load_image_pipeline(folder, device="cpu", dtype="float32"), **settings)
    request = request_of(**settings)
    reference = diffusers_pixels(
        folder,
        request.scheduler,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.image_num_inference_steps,
        guidance_scale=request.image_guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
    )
    assert np.ptp(reference) > 20, "a constant image can't reveal a difference"
    assert np.array_equal(np.asarray(image.rgb), reference)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_image_equals_diffusers_with_every_scheduler(tiny_sd: Path, scheduler: str) -> None:
    assert_parity(tiny_sd, scheduler=scheduler, image_guidance_scale=7.5)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"width": 88, "height": 72}, id="multiples of 8 but not of 64"),
        pytest.param({"image_guidance_scale": 1.0}, id="no guidance"),
        pytest.param({"image_guidance_scale": 0.0}, id="guidance 0"),
        pytest.param({"negative_prompt": "a blue sea"}, id="negative prompt"),
        pytest.param(
            {"prompt": "a red balloon over a snowy mountain at sunset " * 3}, id="longer than the tokenizer's limit"
        ),
        pytest.param({"prompt": "a zebra quiz"}, id="unknown words"),
        pytest.param({"image_num_inference_steps": 1}, id="one step"),
        pytest.param({"seed": 2**53 - 1}, id="largest seed"),
    ],
)
def test_image_equals_diffusers(tiny_sd: Path, settings: dict[str, object]) -> None:
    assert_parity(tiny_sd, **{"scheduler": "euler", "image_guidance_scale": 7.5} | settings)


@pytest.mark.parametrize("scheduler", ["euler", "euler_ancestral"])
def test_image_equals_diffusers_with_sdxl(tiny_sdxl: Path, scheduler: str) -> None:
    assert_parity(tiny_sdxl, scheduler=scheduler, image_guidance_scale=5.0, negative_prompt="a sea")


def test_image_equals_diffusers_with_vae_of_factor_4(tmp_path: Path) -> None:
    folder = make_tiny_sd(tmp_path, vae_levels=3)
    settings = {"width": 88, "height": 72, "scheduler": "euler", "image_guidance_scale": 3.0}
    assert_parity(folder, **settings)
    image_pipeline = load_image_pipeline(folder, device="cpu", dtype="float32")
    steps: list[Event] = []
    drive(generate_image(image_pipeline, request_of(**settings)), steps.append)
    assert [step.latents.shape for step in steps if step.latents is not None] == [(1, 1, 4, 18, 22)] * 3


# Steps


def test_steps_have_latents_and_image_is_last(image_pipeline: ImagePipeline) -> None:
    steps = []
    image = drive(generate_image(image_pipeline, request_of()), steps.append)
    assert [(step.stage, step.step, step.total) for step in steps] == [("text_to_image", i, 3) for i in (1, 2, 3)]
    assert {tuple(step.latents.shape) for step in steps} == {(1, 1, 4, 8, 8)}
    assert image.rgb.size == (64, 64)
    assert image.name == "a-red-balloon-over-a-snowy-mountain"


def test_scheduler_with_more_steps_reports_its_total(image_pipeline: ImagePipeline) -> None:
    steps = []
    drive(generate_image(image_pipeline, request_of(scheduler="pndm")), steps.append)
    assert [step.step for step in steps] == list(range(1, steps[0].total + 1))
    assert len(steps) == 4  # PNDM repeats its first step


def test_image_has_image_generation(image_pipeline: ImagePipeline) -> None:
    image = image_of(image_pipeline)
    assert image.image_generation is not None
    assert image.image_generation.model == image_pipeline.identity
    assert image.image_generation.model_dump(exclude={"model"}) == {
        "pipeline": "StableDiffusionPipeline",
        "dtype": "float32",
        "memory_plan": "resident",
        "events": (),
    }
    assert image.sha256 == open_image(image.rgb).sha256


def test_seed_determines_image(image_pipeline: ImagePipeline) -> None:
    first, again, other = (image_of(image_pipeline, seed=seed) for seed in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256


def test_image_parameters_change_image(image_pipeline: ImagePipeline) -> None:
    changes = [
        {"prompt": "a blue sea"},
        {"negative_prompt": "a sea"},
        {"image_guidance_scale": 2.0},
        {"image_num_inference_steps": 4},
        {"scheduler": "ddim"},
    ]
    images = [image_of(image_pipeline, **change).sha256 for change in [{}, *changes]]
    assert len(set(images)) == len(images)


def test_missing_image_parameters_use_model_defaults(image_pipeline: ImagePipeline) -> None:
    assert image_pipeline.defaults == {
        "image_guidance_scale": 7.5,
        "image_num_inference_steps": 50,
        "scheduler": "euler",
    }
    without_parameters = image_of(image_pipeline, image_num_inference_steps=None)
    assert without_parameters.sha256 == image_of(image_pipeline, **image_pipeline.defaults).sha256


@pytest.mark.parametrize(("dtype", "levels"), [("bfloat16", 3), ("float16", 1)])
def test_seed_gives_similar_image_in_half_precision(
    tiny_sd: Path, image_pipeline: ImagePipeline, dtype: str, levels: float
) -> None:
    image = image_of(load_image_pipeline(tiny_sd, device="cpu", dtype=dtype))
    assert image.image_generation is not None
    assert image.image_generation.dtype == dtype
    assert np.abs(pixels(image) - pixels(image_of(image_pipeline))).mean() < levels


def test_gradient_mode_and_warnings_are_unchanged_between_steps(image_pipeline: ImagePipeline) -> None:
    iterator = generate_image(image_pipeline, request_of())
    step = next(iterator)
    assert isinstance(step, Step)
    assert torch.is_grad_enabled()
    with pytest.warns(UserWarning, match="expected"):
        warnings.warn("expected", stacklevel=1)
    iterator.close()


# Cancellation


def count_calls(image_pipeline: ImagePipeline) -> tuple[list[int], Callable[[], None]]:
    calls: list[int] = []
    hook = image_pipeline.networks["unet"].register_forward_pre_hook(lambda *_: calls.append(1))
    return calls, hook.remove


def test_close_stops_generation_within_step(image_pipeline: ImagePipeline) -> None:
    calls, remove = count_calls(image_pipeline)
    try:
        iterator = generate_image(image_pipeline, request_of(image_num_inference_steps=50))
        next(iterator)
        assert len(calls) == 1
        next(iterator)
        iterator.close()
        assert len(calls) == 2
    finally:
        remove()
    assert not [thread for thread in threading.enumerate() if thread.name == "kinema-threaded_generator"]
    assert placement(image_pipeline) == {("cpu", torch.float32)}
    assert image_of(image_pipeline).sha256 == image_of(image_pipeline).sha256


# Errors


@pytest.fixture
def own(tmp_path: Path, tiny_sd: Path) -> Path:
    """Return a copy of the tiny text-to-image model that a test may modify."""
    return shutil.copytree(tiny_sd, tmp_path / "own")


def scaled(folder: Path, tensor: str, factor: float) -> Path:
    tensors = load_file(folder / VAE)
    tensors[tensor] = tensors[tensor] * factor
    save_file(tensors, folder / VAE)
    return folder


@pytest.fixture
def failing(image_pipeline: ImagePipeline) -> Iterator[Callable[[Exception], None]]:
    """Make the UNet raise an error at its second call."""
    hooks = []

    def fail(error: Exception) -> None:
        calls: list[int] = []

        def hook(*_: object) -> None:
            calls.append(1)
            if len(calls) == 2:
                raise error

        hooks.append(image_pipeline.networks["unet"].register_forward_pre_hook(hook))

    yield fail
    for hook in hooks:
        hook.remove()


def test_overflow_repeats_in_float32(own: Path) -> None:
    scaled(own, "decoder.conv_in.weight", 1e4)  # exceeds the float16 range until the next normalisation
    half = load_image_pipeline(own, device="cpu", dtype="float16")
    events: list[Event] = []
    image = drive(generate_image(half, request_of()), events.append, events.append)
    assert image.image_generation is not None
    assert image.image_generation.events == ("the image has NaN or infinity in torch.float16: repeated in float32",)
    assert image.image_generation.dtype == "float32"
    assert [getattr(event, "step", "restart") for event in events] == [1, 2, 3, "restart", 1, 2, 3]
    assert events[3] == Restart("text_to_image", image.image_generation.events[0])
    expected = image_of(load_image_pipeline(own, device="cpu", dtype="float32"))
    assert np.abs(pixels(image) - pixels(expected)).mean() < 5
    assert placement(half) == {("cpu", torch.float16)}


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (float("nan"), "the image has NaN or infinity in torch.float32"),
        (0.0, "the image is one constant colour"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_invalid_image_in_float32_fails(own: Path, factor: float, message: str, dtype: str) -> None:
    scaled(own, "decoder.conv_out.weight", factor)
    scaled(own, "decoder.conv_out.bias", factor)
    with pytest.raises(GenerationFailed, match=f"{message}.*no image was saved"):
        image_of(load_image_pipeline(own, device="cpu", dtype=dtype))


def test_out_of_memory_raises_insufficient_memory(
    image_pipeline: ImagePipeline, failing: Callable[[Exception], None]
) -> None:
    failing(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"))
    with pytest.raises(InsufficientMemory, match="memory ran out while generating the image; use a smaller width"):
        image_of(image_pipeline)
    assert placement(image_pipeline) == {("cpu", torch.float32)}


def test_other_error_is_not_translated(image_pipeline: ImagePipeline, failing: Callable[[Exception], None]) -> None:
    failing(RuntimeError("unexpected"))
    with pytest.raises(RuntimeError, match="unexpected"):
        image_of(image_pipeline)


def test_pipeline_value_error_becomes_invalid_request(
    image_pipeline: ImagePipeline, failing: Callable[[Exception], None]
) -> None:
    failing(ValueError("`height` has to be divisible by 16"))
    with pytest.raises(InvalidRequest, match=r"tiny-sd rejected a parameter: `height` has to be divisible by 16"):
        image_of(image_pipeline)


def test_too_large_image_fails_before_work(image_pipeline: ImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinema.models.image_pipeline_offload.free_memory", lambda _device: 10**8)
    calls, remove = count_calls(image_pipeline)
    with pytest.raises(InsufficientMemory, match="an image of 2048×2048 needs at least"):
        image_of(image_pipeline, width=2048, height=2048)
    remove()
    assert calls == []


def test_incompatible_scheduler_is_rejected(own: Path) -> None:
    kind = "FlowMatchEulerDiscreteScheduler"
    write_json(own / "scheduler" / "scheduler_config.json", {"_class_name": kind})
    index = own / "model_index.json"
    index.write_text(index.read_text().replace("PNDMScheduler", kind))
    with pytest.raises(
        InvalidRequest, match=f"scheduler 'euler' is not compatible with own, which uses {kind}"
    ) as raised:
        image_of(load_image_pipeline(own, device="cpu", dtype="float32"), scheduler="euler")
    assert raised.value.param == "scheduler"


def test_own_scheduler_keeps_its_configuration(own: Path) -> None:
    write_json(own / "scheduler" / "scheduler_config.json", SD_SCHEDULER | {"prediction_type": "v_prediction"})
    assert_parity(own, scheduler="euler", image_guidance_scale=7.5)


def test_attention_slicing_of_loaded_pipeline_is_kept(own: Path) -> None:
    plain, sliced = (load_image_pipeline(own, device="cpu", dtype="float32") for _ in range(2))
    sliced.pipeline.enable_attention_slicing()
    pixels = [np.asarray(image_of(each).rgb).astype(int) for each in (plain, sliced)]
    kinds = {type(each).__name__ for each in sliced.pipeline.unet.attn_processors.values()}
    assert kinds == {"SlicedAttnProcessor"}
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_request_without_prompt_is_rejected(image_pipeline: ImagePipeline) -> None:
    with pytest.raises(InvalidRequest, match="prompt is missing"):
        next(iter(generate_image(image_pipeline, VideoRequest(seed=1))))


# Prompt warnings


def test_known_words_give_no_warning(image_pipeline: ImagePipeline) -> None:
    assert prompt_warnings(image_pipeline, request_of(prompt="A red HOT balloon over a snowy mountain")) == []


@pytest.mark.parametrize(
    ("prompt", "warning"),
    [
        ("a zebra over a mountain", "tiny-sd does not know 'zebra'"),
        ("a zebra's quiz", "tiny-sd does not know 'zebra', 'quiz'"),
        ("a zebra, zebra", "tiny-sd does not know 'zebra'"),
        ("빨간 풍선", "tiny-sd does not know '빨간', '풍선'"),
        (
            "j1 j2 j3 j4 j5 j6 j7 j8 j9",
            "tiny-sd does not know 'j1', 'j2', 'j3', 'j4', 'j5', 'j6', 'j7', 'j8' and 1 more",
        ),
    ],
)
def test_unknown_words_are_listed(image_pipeline: ImagePipeline, prompt: str, warning: str) -> None:
    messages = prompt_warnings(image_pipeline, request_of(prompt=prompt))
    assert messages[0].startswith(warning)


def test_truncated_part_of_prompt_is_reported(image_pipeline: ImagePipeline) -> None:
    fits = "a red balloon over a snowy mountain at sunset over"
    assert prompt_warnings(image_pipeline, request_of(prompt=fits)) == []
    assert prompt_warnings(
        image_pipeline, request_of(prompt=f"{fits}, a red  boat at", negative_prompt=f"{fits} snowy")
    ) == [
        "the prompt is too long for tiny-sd; this part is ignored: ', a red  boat at'",
        "the negative_prompt is too long for tiny-sd; this part is ignored: 'snowy'",
    ]
    split = prompt_warnings(image_pipeline, request_of(prompt=f"{fits[:-5]} oversun"))
    assert split == ["the prompt is too long for tiny-sd; this part is ignored: 'oversun'"]

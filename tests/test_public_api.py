"""The public API is what docs/public-api.txt lists; its keywords are typed; diffusers' parameters are explained."""

import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_type_hints

import pytest
from PIL import Image

import kinema
from kinema import errors, library
from kinema.values import VideoParameters

ROOT = Path(__file__).parent.parent
LISTING = ROOT / "docs" / "public-api.txt"


def test_public_names_and_signatures_are_those_of_the_listing() -> None:
    listing = subprocess.run(
        [sys.executable, ROOT / "checks" / "public_api.py"], capture_output=True, text=True, check=True
    ).stdout
    assert listing == LISTING.read_text(encoding="utf-8"), (
        "the public API has changed; see docs/stability.md, then run: python checks/public_api.py > docs/public-api.txt"
    )


def test_every_error_is_public() -> None:
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined <= set(kinema.__all__)


def test_typed_keywords_are_the_fields_of_the_request_size_and_seconds() -> None:
    fields = {*kinema.VideoRequest.model_fields, "size", "seconds"} - {"model", "prompt", "image_model"}
    assert set(get_type_hints(VideoParameters)) == fields
    for function in (kinema.generate, kinema.stream):
        assert fields <= set(inspect.signature(function).parameters)


# What users of diffusers type


@pytest.mark.parametrize("name", library.DIFFUSERS_PARAMETERS)
def test_parameter_of_diffusers_is_explained(name: str) -> None:
    with pytest.raises(kinema.InvalidRequest, match=f"{name} is a parameter of diffusers' pipelines; ") as error:
        kinema.generate("rocket.png", **{name: 1})
    assert error.value.param == name
    assert library.DIFFUSERS_PARAMETERS[name] in str(error.value)


def test_diffusers_parameters_of_the_issue_name_the_remedy() -> None:
    for name, remedy in {
        "generator": "use seed=",
        "callback_on_step_end": "iterate over kinema.stream",
        "num_videos_per_prompt": "once per video",
        "output_type": "`frames`",
    }.items():
        with pytest.raises(kinema.InvalidRequest, match=remedy):
            kinema.stream("rocket.png", **{name: 1})


def test_list_of_images_is_rejected() -> None:
    with pytest.raises(kinema.InvalidImage, match="image is a list of 2; pass one image, and call once for each"):
        kinema.generate(["a.png", "b.png"])


def test_unknown_parameter_names_the_nearest_one() -> None:
    with pytest.raises(kinema.InvalidRequest, match="unknown parameter 'motion_bucket'; did you mean motion_bucket_id"):
        kinema.generate("rocket.png", motion_bucket=1)


# Loaded pipelines


def test_loaded_pipeline_is_immutable(tiny_svd: Path, tiny_sd: Path) -> None:
    for pipeline in (kinema.load(tiny_svd, device="cpu"), kinema.load_image_pipeline(tiny_sd, device="cpu")):
        with pytest.raises(AttributeError, match="cannot assign to field 'name'"):
            pipeline.name = "other"


@pytest.mark.parametrize("option", [{"engine": "reference"}, {"precision": "full"}])
def test_engine_and_precision_with_loaded_model_are_rejected(tiny_svd: Path, option: dict[str, str]) -> None:
    pipeline = kinema.load(tiny_svd, device="cpu")
    with pytest.raises(kinema.InvalidRequest, match=f"{next(iter(option))} .* cannot be changed for a loaded model"):
        kinema.generate(Image.new("RGB", (64, 64)), model=pipeline, **option)


def test_engine_is_passed_to_the_loaded_model(tiny_svd: Path) -> None:
    image = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB")
    options = {"device": "cpu", "dtype": "float32", "width": 64, "height": 64, "num_inference_steps": 1}
    for engine in ("reference", "fast"):
        assert kinema.generate(image, model=tiny_svd, engine=engine, **options).recipe.engine == engine


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")
@pytest.mark.slow
def test_pipelines_are_rejected_after_fork(tiny_svd: Path, tiny_sd: Path) -> None:
    """Without the check, the child hangs in torch's thread pool."""
    script = textwrap.dedent(
        """
        import os, sys, kinema
        from PIL import Image
        pipeline = kinema.load(sys.argv[1], device="cpu")
        image_pipeline = kinema.load_image_pipeline(sys.argv[2], device="cpu")
        image = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB")
        size = {"width": 64, "height": 64, "num_inference_steps": 1}
        calls = [
            lambda: kinema.generate(image, model=pipeline, **size),
            lambda: kinema.generate(prompt="a boat", model=pipeline, image_model=image_pipeline, **size),
        ]
        calls[1]()
        if os.fork() == 0:
            for call in calls:
                try:
                    call()
                except kinema.InvalidRequest as error:
                    print(error, flush=True)
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
        """
    )
    command = [sys.executable, "-c", script, tiny_svd, tiny_sd]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for name, message in zip((tiny_svd.name, tiny_sd.name), done.stdout.splitlines(), strict=True):
        assert message.startswith(f"{name} was loaded by process ")
        assert "is a fork of it, in which torch would hang; load the model in the process that uses it" in message


def test_events_have_a_short_repr(tiny_svd: Path) -> None:
    image = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 90).convert("RGB")
    options = {"width": 64, "height": 64, "num_frames": 2, "num_inference_steps": 1}
    texts = [repr(event) for event in kinema.stream(image, model=tiny_svd, device="cpu", **options)]
    assert texts[0] == "<Step encode 1/2>"
    assert texts[-2] == "<Step decode 2/2, frames [2, 64, 64, 3]>"
    assert max(map(len, texts)) < 100

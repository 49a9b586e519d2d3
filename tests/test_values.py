"""`VideoRequest` validation, errors and immutability; JSON round trips of requests."""

import math
import re
from fractions import Fraction

import pytest
from pydantic import ValidationError

from kinema.errors import InvalidRequest, KinemaError
from kinema.frame_rate import exact_rate
from kinema.values import MAX_SEED, VideoRequest

RANGES = [
    ("seed", 0, MAX_SEED),
    ("width", 64, 2048),
    ("height", 64, 2048),
    ("num_frames", 1, 128),
    ("num_inference_steps", 1, 200),
    ("fps", 1, 120),
    ("playback_fps", 1, 120),
    ("motion_bucket_id", 0, 1023),
    ("noise_aug_strength", 0, 10),
    ("min_guidance_scale", 1, 30),
    ("max_guidance_scale", 1, 30),
    ("image_guidance_scale", 0, 50),
    ("image_num_inference_steps", 1, 200),
]


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_limits_of_range_are_accepted(name: str, low: int, high: int) -> None:
    for value in (low, high):
        assert getattr(VideoRequest.checked(prompt="a boat", **{name: value}), name) == value


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
@pytest.mark.parametrize("end", [0, 1])
def test_value_out_of_range_is_rejected_with_name_value_and_range(name: str, low: int, high: int, end: int) -> None:
    value = (low - (2 if name == "seed" else 1), high + 1)[end]  # -1 selects a random seed
    with pytest.raises(InvalidRequest) as error:
        VideoRequest.checked(**{name: value})
    random = ", or -1 for a random one" if name == "seed" else ""
    assert str(error.value) == f"{name} {value} is out of range: {low} to {high}{random}"
    assert error.value.param == name


@pytest.mark.parametrize("name", ["width", "height"])
@pytest.mark.parametrize(("value", "below", "above"), [(1001, 1000, 1008), (65, 64, 72), (2047, 2040, 2048)])
def test_size_not_multiple_of_8_is_rejected_with_nearest_sizes(name: str, value: int, below: int, above: int) -> None:
    with pytest.raises(InvalidRequest) as error:
        VideoRequest.checked(**{name: value})
    assert str(error.value) == f"{name} {value} is not a multiple of 8; use {below} or {above}"
    assert error.value.param == name


def test_decode_chunk_size_0_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match=r"^decode_chunk_size 0 is out of range: at least 1$"):
        VideoRequest.checked(decode_chunk_size=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("width", "abc", "width 'abc' is not an integer; use 64 to 2048"),
        ("fps", 7.5, "fps 7.5 is not an integer; use 1 to 120"),
        ("max_guidance_scale", "strong", "max_guidance_scale 'strong' is not a number; use 1 to 30"),
        ("noise_aug_strength", math.inf, "noise_aug_strength inf is out of range: 0 to 10"),
    ],
)
def test_value_that_is_no_number_is_rejected_with_range(name: str, value: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{re.escape(message)}$"):
        VideoRequest.checked(**{name: value})


@pytest.mark.parametrize("name", ["noise_aug_strength", "min_guidance_scale", "max_guidance_scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_number_is_rejected(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} {value!r} is ") as error:
        VideoRequest.checked(**{name: value})
    assert error.value.param == name


@pytest.mark.parametrize(
    ("parameters", "texts"),
    [
        ({"fit": "zoom"}, ["fit 'zoom'", "use one of crop, pad, stretch"]),
        ({"loop": "maybe"}, ["loop 'maybe'", "true or false"]),
        ({"fps": 7.5}, ["fps 7.5", "integer"]),
        ({"num_frames": "many"}, ["num_frames 'many'", "integer"]),
        ({"seed": "lucky"}, ["seed 'lucky'", "integer"]),
        ({"model": ""}, ["model ''", "at least 1 character"]),
        ({"max_guidance_scale": "strong"}, ["max_guidance_scale 'strong'", "number"]),
        ({"width": None}, ["width None", "integer"]),
        ({"last_imge": 3}, ["unknown parameter 'last_imge'; did you mean last_image?"]),
        ({"cfg": 3}, ["size, seconds, last_image"]),
        ({"cfg": 3}, ["unknown parameter 'cfg'", "max_guidance_scale"]),
        ({"scheduler": "heun", "prompt": "a boat"}, ["scheduler 'heun'", "use one of euler, "]),
        ({"image_model": "", "prompt": "a boat"}, ["image_model ''", "at least 1 character"]),
        ({"prompt": 7}, ["prompt 7", "string"]),
    ],
)
def test_value_of_wrong_type_is_rejected_by_name(parameters: dict[str, object], texts: list[str]) -> None:
    with pytest.raises(InvalidRequest) as error:
        VideoRequest.checked(**parameters)
    assert all(text in str(error.value) for text in texts)
    assert error.value.param == next(iter(parameters))


@pytest.mark.parametrize("prompt", ["", "  ", "\n\t"])
def test_blank_prompt_is_rejected(prompt: str) -> None:
    with pytest.raises(InvalidRequest, match=r"is empty; describe the image") as error:
        VideoRequest.checked(prompt=prompt)
    assert error.value.param == "prompt"


def test_long_prompt_is_rejected_without_repeating_it() -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt has 10001 characters; at most 10000 are allowed$"):
        VideoRequest.checked(prompt="a" * 10_001)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("negative_prompt", "fog"),
        ("image_model", "sd-2.1-base"),
        ("image_guidance_scale", 7.5),
        ("image_num_inference_steps", 50),
        ("scheduler", "euler"),
    ],
)
def test_text_to_image_parameter_requires_a_prompt(name: str, value: object) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"^{name} only applies with a prompt; remove it or add a prompt$"
    ) as error:
        VideoRequest.checked(**{name: value})
    assert error.value.param == name
    request = VideoRequest.checked(prompt="a boat", **{name: value})
    assert getattr(request, name) == value
    assert VideoRequest.model_validate_json(request.model_dump_json()) == request


def test_invalid_request_is_kinema_error_and_value_error() -> None:
    with pytest.raises(KinemaError):
        VideoRequest.checked(fps=0)
    with pytest.raises(ValueError, match="fps"):
        VideoRequest.checked(fps=0)


def test_numeric_strings_are_parsed() -> None:
    request = VideoRequest.checked(width="512", seed="42", noise_aug_strength="0.1")
    assert (request.width, request.seed, request.noise_aug_strength) == (512, 42, 0.1)


def test_request_is_immutable() -> None:
    request = VideoRequest(seed=1)
    with pytest.raises(ValidationError):
        request.seed = 2
    assert request.seed == 1


def test_changed_returns_new_request_with_other_fields_unchanged() -> None:
    request = VideoRequest(seed=5, width=512, fit="pad")
    changed = request.changed(height=320)
    assert changed == VideoRequest(seed=5, width=512, height=320, fit="pad")
    assert request.height == 576


def test_changed_validates() -> None:
    with pytest.raises(InvalidRequest, match="width 1001 is not a multiple of 8"):
        VideoRequest().changed(width=1001)
    with pytest.raises(InvalidRequest, match="unknown parameter 'speed'"):
        VideoRequest().changed(speed=2)


def test_max_seed_is_the_largest_safe_integer_of_javascript() -> None:
    assert MAX_SEED == 2**53 - 1
    assert VideoRequest.checked(seed=2**32).seed == 2**32  # randint(0, 2**32) can return it


@pytest.mark.parametrize("parameters", [{}, {"seed": None}, {"seed": -1}, {"seed": "-1"}, {"seed": " -1 "}])
def test_unset_seed_is_random(parameters: dict[str, None]) -> None:
    seeds = {VideoRequest.checked(**parameters).seed for _ in range(4)}
    assert len(seeds) > 1
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_changed_keeps_random_seed_unless_set() -> None:
    request = VideoRequest()
    assert request.changed(fps=8).seed == request.seed
    assert len({request.changed(seed=None).seed for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("parameters", "guided"),
    [
        ({}, True),
        ({"max_guidance_scale": 1.0}, False),
        ({"min_guidance_scale": 2.0, "max_guidance_scale": 1.0}, True),
        ({"num_frames": 1}, False),  # its only frame has min_guidance_scale
        ({"num_frames": 1, "min_guidance_scale": 1.5, "max_guidance_scale": 1.0}, True),
        ({"num_frames": 2}, True),
    ],
)
def test_guided_is_true_if_any_frame_is(parameters: dict[str, float], guided: bool) -> None:
    assert VideoRequest.checked(**parameters).guided is guided


@pytest.mark.parametrize(
    ("given", "stored", "rate"),
    [
        (24, 24, Fraction(24)),
        ("24.0", 24, Fraction(24)),
        ("23.976", 23.976, Fraction(2997, 125)),
        ("30000/1001", 30000 / 1001, Fraction(30000, 1001)),
        (29.97003, 30000 / 1001, Fraction(30000, 1001)),
        (" 60 / 8 ", 7.5, Fraction(15, 2)),
    ],
)
def test_playback_rate_is_exact_and_survives_json(given: object, stored: float, rate: Fraction) -> None:
    request = VideoRequest.checked(playback_fps=given)
    assert (request.playback_fps, type(request.playback_fps)) == (stored, type(stored))
    assert exact_rate(request.frame_rate) == rate
    assert VideoRequest.model_validate_json(request.model_dump_json()) == request
    assert f'"playback_fps":{stored},' in request.model_dump_json()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (29.12345, "playback_fps 29.12345 can't be stored exactly; use up to three decimals, or a fraction such as"),
        ("30/0", "playback_fps '30/0' is not a number; use 1 to 120"),
        ("1/3", "playback_fps 0.3333333333333333 is out of range: 1 to 120"),
        (math.nan, "playback_fps nan is out of range: 1 to 120"),
    ],
)
def test_playback_rate_that_cannot_be_stored_is_rejected(given: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{re.escape(message)}") as error:
        VideoRequest.checked(playback_fps=given)
    assert error.value.param == "playback_fps"


def test_frame_rate_is_fps_unless_playback_fps_is_set() -> None:
    assert VideoRequest(fps=9).frame_rate == 9
    assert VideoRequest(fps=9, playback_fps=24).frame_rate == 24


def test_every_field_has_description_and_every_number_a_range() -> None:
    for name, field in VideoRequest.model_json_schema()["properties"].items():
        assert field["description"].endswith("."), name
        numbers = [kind for kind in field.get("anyOf", [field]) if kind.get("type") in {"integer", "number"}]
        assert all("minimum" in kind for kind in numbers), name


def test_request_survives_json() -> None:
    request = VideoRequest(noise_aug_strength=0.1 + 0.2, decode_chunk_size=3, fit="stretch")
    assert VideoRequest.model_validate_json(request.model_dump_json()) == request

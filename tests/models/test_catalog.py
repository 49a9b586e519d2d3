import json
import re
import shutil
from pathlib import Path

import pytest

from kinema.errors import InvalidRequest, ModelCorrupt
from kinema.models.catalog import (
    CATALOG,
    POCKET_FOLDER,
    default_parameters,
    human_bytes,
    parameter_warnings,
    request_for,
)
from kinema.models.resolve import check_folder


@pytest.fixture
def model_folder(tmp_path, tiny_svd):
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny_svd, tmp_path / "model"))


def test_request_for_fills_missing_parameters_with_model_defaults():
    request = request_for(model="pocket", seed=7, num_frames=8, width=None)
    assert (request.width, request.height, request.num_frames, request.seed) == (288, 160, 8, 7)
    assert request_for(model="svd").num_frames == 14
    assert request_for(model="svd-xt").num_frames == 25
    assert request_for(model="svd-xt-1.1").fps == 6


def test_default_num_frames_of_folder_comes_from_unet_config(model_folder, tmp_path):
    (model_folder / "kinema.json").unlink()
    assert default_parameters(str(model_folder)) == {"num_frames": 25}
    assert default_parameters(str(tmp_path)) == {}
    assert default_parameters("someone/some-model") == {}


def test_defaults_of_folder_come_from_its_kinema_json(model_folder):
    (model_folder / "kinema.json").write_text('{"defaults": {"width": 320, "num_inference_steps": 4}}')
    assert default_parameters(str(model_folder)) == {"num_frames": 25, "width": 320, "num_inference_steps": 4}
    request = request_for(model=str(model_folder), num_inference_steps=6)
    assert (request.width, request.height, request.num_inference_steps) == (320, 576, 6)


def test_copy_of_pocket_has_the_defaults_of_pocket():
    assert default_parameters(str(POCKET_FOLDER)) == default_parameters("pocket")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"kinema\.json can't be read .*; correct or delete it"),
        ('{"width": 320}', r"must be of the form \{\"defaults\": "),
        ('{"defaults": [320]}', "must be of the form"),
        ('{"defaults": {"steps": 4}}', "steps is no parameter of a model; use width, height,"),
        ('{"defaults": {"seed": 4}}', "seed is no parameter of a model"),
        ('{"defaults": {"width": 1001}}', "width 1001 is not a multiple of 8; use 1000 or 1008"),
    ],
)
def test_invalid_kinema_json_is_named(model_folder, content, message):
    (model_folder / "kinema.json").write_text(content)
    with pytest.raises(ModelCorrupt, match=message):
        default_parameters(str(model_folder))
    with pytest.raises(ModelCorrupt, match=message):
        check_folder(str(model_folder))


def test_request_without_model_lists_catalog():
    with pytest.raises(InvalidRequest, match=r"pocket, svd, svd-xt, svd-xt-1\.1"):
        request_for(seed=1)


def test_all_model_defaults_are_valid():
    for name in CATALOG:
        assert request_for(model=name).model == name


def test_hub_entries_have_commit_licence_and_size():
    for entry in CATALOG.values():
        assert entry.licence
        assert entry.licence_url.startswith("https://")
        if entry.repository:
            assert re.fullmatch(r"[0-9a-f]{40}", entry.revision)
            assert entry.size_bytes > sum(entry.weights_bytes.values()) > 4e9
    assert [entry.name for entry in CATALOG.values() if entry.gated] == ["svd-xt-1.1"]


@pytest.mark.parametrize("name", CATALOG)
def test_model_defaults_give_no_warning(name):
    assert parameter_warnings(request_for(model=name)) == []
    assert parameter_warnings(request_for(model=name, crop_position=0.2)) == []
    assert parameter_warnings(request_for(model=name, fit="pad")) == []


@pytest.mark.parametrize("size", [(288, 160), (160, 288), (224, 224)])
def test_sizes_that_the_pocket_was_trained_on_give_no_warning(size):
    width, height = size
    assert parameter_warnings(request_for(model="pocket", width=width, height=height)) == []


@pytest.mark.parametrize(
    ("model", "parameters", "message"),
    [
        ("pocket", {"width": 256, "height": 160}, "pocket was trained on 288×160, not 256×160"),
        ("svd-xt", {"motion_bucket_id": 300}, "motion_bucket_id 300 is above 255"),
        ("svd-xt", {"fps": 4}, "fps 4 is outside 5 to 30"),
        ("svd-xt", {"fps": 31}, "fps 31 is outside"),
        ("svd-xt", {"width": 512, "height": 512}, "svd-xt was trained on 1024×576, not 512×512"),
        ("svd-xt", {"width": 576, "height": 1024}, "svd-xt was trained on 1024×576, not 576×1024"),
        ("svd-xt-1.1", {"fps": 7}, "svd-xt-1.1 was fine-tuned at fps 6, not 7"),
        ("svd-xt", {"fit": "pad", "crop_position": 0.2}, "crop_position 0.2 has no effect with fit pad; use fit crop"),
        ("someone/model", {"fit": "stretch", "crop_position": 1}, "crop_position 1 has no effect with fit stretch"),
        ("someone/some-model", {"motion_bucket_id": 256}, "motion_bucket_id 256"),
    ],
)
def test_parameter_outside_training_range_gives_warning(model, parameters, message):
    (warning,) = parameter_warnings(request_for(model=model, **parameters))
    assert message in warning


def test_human_bytes_uses_decimal_units():
    assert [human_bytes(n) for n in (999, 1500, 4_509_188_841)] == ["999 B", "1.5 KB", "4.5 GB"]


def test_folder_with_invalid_config_has_no_defaults(tmp_path):
    (tmp_path / "unet").mkdir()
    for text in ("{", "[]", json.dumps({"num_frames": "many"})):
        (tmp_path / "unet" / "config.json").write_text(text)
        assert default_parameters(str(tmp_path)) == {}


def prompt_warnings(prompt):
    return parameter_warnings(request_for(model="pocket", prompt=prompt, image_model="pocket-t2i"))


@pytest.mark.parametrize(
    "prompt",
    [
        "a red hot-air balloon over a snowy mountain at sunset",
        "a photograph of an astronaut riding a horse",
        "An aerial view of a city at night, long exposure, instagram contest",
        "A bird's eye view of a CITY",
        "three white boats on the sea in fog",
    ],
)
def test_prompt_of_known_words_gives_no_warning(prompt):
    assert prompt_warnings(prompt) == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("an old man on a beach in Paris", "'old', 'man', 'Paris'"),
        ("a boat, Boat and Kangaroo, kangaroo", "'Kangaroo'"),
        ("a beautiful sunset, masterpiece", "'beautiful', 'masterpiece'"),
        ("a boat " + " ".join(f"j{i}" for i in range(9)), ", ".join(f"'j{i}'" for i in range(8)) + " and 1 more"),
    ],
)
def test_unknown_words_of_prompt_are_listed(prompt, words):
    assert prompt_warnings(prompt) == [f"pocket-t2i does not know {words}"]


@pytest.mark.parametrize(
    "prompt", ["an old man in Paris", "an old man in the middle", "빨간 풍선", "in a beautiful red", "🚀"]
)
def test_prompt_without_known_words_warns_of_arbitrary_scene(prompt):
    (warning,) = prompt_warnings(prompt)
    assert warning.startswith("pocket-t2i does not know any word of this prompt")


def test_model_without_vocabulary_gives_no_word_warning():
    assert parameter_warnings(request_for(model="svd", prompt="an old man in Paris", image_model="sd-2.1-base")) == []


def test_pocket_default_motion_gives_no_warning():
    request = request_for(model="pocket")
    assert request.motion_bucket_id == 80
    assert parameter_warnings(request) == []
    assert request_for(model="svd").motion_bucket_id == 127

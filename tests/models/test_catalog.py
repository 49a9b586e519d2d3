import json
import re

import pytest

from kinema.errors import InvalidRequest
from kinema.models.catalog import CATALOG, default_settings, human_bytes, parameter_warnings, request_for


def test_a_models_own_defaults_lie_beneath_what_is_given():
    request = request_for(model="pocket", seed=7, num_frames=8, width=None)
    assert (request.width, request.height, request.num_frames, request.seed) == (288, 160, 8, 7)
    assert request_for(model="svd").num_frames == 14
    assert request_for(model="svd-xt").num_frames == 25
    assert request_for(model="svd-xt-1.1").fps == 6


def test_a_folders_frames_are_read_from_its_configuration(tiny_svd, tmp_path):
    assert default_settings(str(tiny_svd)) == {"num_frames": 4}
    assert default_settings(str(tmp_path)) == {}
    assert default_settings("someone/some-model") == {}


def test_a_request_without_a_model_is_refused_with_the_catalog():
    with pytest.raises(InvalidRequest, match=r"pocket, svd, svd-xt, svd-xt-1\.1"):
        request_for(seed=1)


def test_every_default_is_one_that_a_request_accepts():
    for name in CATALOG:
        assert request_for(model=name).model == name


def test_hub_entries_are_pinned_to_a_commit_and_know_their_licence_and_size():
    for entry in CATALOG.values():
        assert entry.licence
        assert entry.licence_url.startswith("https://")
        if entry.repository:
            assert re.fullmatch(r"[0-9a-f]{40}", entry.revision)
            assert entry.size_bytes > sum(entry.weights_bytes.values()) > 4e9
    assert [entry.name for entry in CATALOG.values() if entry.gated] == ["svd-xt-1.1"]


@pytest.mark.parametrize("name", CATALOG)
def test_a_models_own_defaults_need_no_caution(name):
    assert parameter_warnings(request_for(model=name)) == []


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("svd-xt", {"motion_bucket_id": 300}, "motion_bucket_id 300 is above 255"),
        ("svd-xt", {"fps": 4}, "fps 4 is outside the 5 to 30"),
        ("svd-xt", {"fps": 31}, "fps 31 is outside"),
        ("svd-xt", {"width": 512, "height": 512}, "512×512 is not the 1024×576 or 576×1024"),
        ("svd", {"num_frames": 25}, "25 frames are more than the 14"),
        ("svd-xt-1.1", {"fps": 7}, "fps 7 is not the 6 at which svd-xt-1.1 was tuned"),
        ("someone/some-model", {"motion_bucket_id": 256}, "motion_bucket_id 256"),
    ],
)
def test_what_lies_outside_training_is_cautioned_and_allowed(model, settings, words):
    (warning,) = parameter_warnings(request_for(model=model, **settings))
    assert words in warning


def test_portrait_is_native_too():
    assert parameter_warnings(request_for(model="svd-xt", width=576, height=1024)) == []


def test_bytes_are_told_as_people_read_them():
    assert [human_bytes(n) for n in (999, 1500, 4_509_188_841)] == ["999 B", "1.5 KB", "4.5 GB"]


def test_a_folder_with_a_broken_configuration_has_no_defaults(tmp_path):
    (tmp_path / "unet").mkdir()
    for text in ("{", "[]", json.dumps({"num_frames": "many"})):
        (tmp_path / "unet" / "config.json").write_text(text)
        assert default_settings(str(tmp_path)) == {}


def drawn(prompt):
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
def test_a_prompt_that_the_embedded_model_can_draw_needs_no_caution(prompt):
    assert drawn(prompt) == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("an old man on a beach in Paris", "'old', 'man', 'Paris'"),
        ("a boat, Boat and Kangaroo, kangaroo", "'Kangaroo'"),
        ("a beautiful sunset, masterpiece", "'beautiful', 'masterpiece'"),
        ("a boat " + " ".join(f"j{i}" for i in range(9)), ", ".join(f"'j{i}'" for i in range(8)) + " and 1 more"),
    ],
)
def test_words_that_draw_nothing_are_named_although_the_tokenizer_knows_them(prompt, words):
    assert drawn(prompt) == [f"pocket-t2i can't draw {words}"]


@pytest.mark.parametrize("prompt", ["an old man in Paris", "빨간 풍선", "in a beautiful red", "🚀"])
def test_a_prompt_of_which_nothing_can_be_drawn_says_so(prompt):
    (warning,) = drawn(prompt)
    assert warning.startswith("pocket-t2i can't draw anything of this prompt")


def test_models_that_draw_any_sentence_judge_no_words():
    assert parameter_warnings(request_for(model="svd", prompt="an old man in Paris", image_model="sd-2.1-base")) == []


def test_the_pocket_moves_less_than_svd_and_is_not_warned_of():
    request = request_for(model="pocket")
    assert request.motion_bucket_id == 40
    assert parameter_warnings(request) == []
    assert request_for(model="svd").motion_bucket_id == 127

"""Captions of scenes, and the tokenizer's vocabulary."""

import random

import pytest
from training.t2i.scenes import COLOURS, Scene, held_out_scenes, random_scene
from training.t2i.words import (
    COLOUR_WORDS,
    GROUND_WORDS,
    HOUR_WORDS,
    MAX_TOKENS,
    bare_caption,
    caption,
    effective_words,
    split_words,
    token_ids,
    vocabulary,
    write_effective_words,
    write_tokenizer,
)
from transformers import CLIPTokenizer

from kinema.models.catalog import POCKET_T2I_FOLDER, parameter_warnings, request_for


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def unknown_words(tokenizer, text):
    return [w for w in text.split() if tokenizer.unk_token_id in tokenizer(w).input_ids]


def test_full_caption_names_colour_ground_and_hour():
    rng = random.Random(0)
    for scene in held_out_scenes(60):
        text = caption(scene, rng, full=True)
        for words in (GROUND_WORDS[scene.ground], HOUR_WORDS[scene.hour], COLOUR_WORDS[scene.colour]):
            assert any(w in text for w in words), (scene, text)


def test_bare_caption_with_another_colour_changes_only_colour_word():
    scene = Scene("mountains", "sunset", thing="balloon", colour="red")
    assert bare_caption(scene) == "a red hot-air balloon over snowy mountains at sunset"
    assert bare_caption(scene, "orange") == "an orange hot-air balloon over snowy mountains at sunset"
    rider = Scene("beach", "night", thing="rider", colour="white")
    assert bare_caption(rider, "orange") == "an astronaut riding an orange horse on the beach at night"


def test_caption_of_one_scene_varies():
    rng = random.Random(1)
    scene = Scene("lake", "dawn", "fog", "boat", "blue")
    assert len({caption(scene, rng) for _ in range(100)}) > 90


def test_tokenizer_maps_each_caption_word_to_one_known_token(tokenizer):
    rng = random.Random(2)
    texts = [caption(random_scene(rng), rng) for _ in range(500)]
    ids = vocabulary()
    for text, tokens in zip(texts, tokenizer(texts).input_ids, strict=True):
        assert tokens == token_ids(text, ids)
        assert tokenizer.unk_token_id not in tokens
        assert len(tokens) == len(split_words(text)) + 2 <= MAX_TOKENS


@pytest.mark.parametrize(
    "prompt",
    [
        "a photograph of an astronaut riding a horse",
        "An aerial view of a city at night, long exposure, instagram contest",
        "a red hot-air balloon over a snowy mountain at sunset",
        "A lonely lighthouse on the coast, waves crossing below it, under the full moon.",
        "two little boats drift on a quiet lake (early morning mist)!",
        "a bird's eye view of Tokyo by night, 8k, highly detailed",
    ],
)
def test_ordinary_prompts_have_no_unknown_word(tokenizer, prompt):
    assert unknown_words(tokenizer, prompt) == []


def test_unknown_words_contain_unknown_token(tokenizer):
    assert unknown_words(tokenizer, "a zebra and an aide in the carpet of 2023 카메라 redder") == [
        "zebra", "aide", "carpet", "2023", "카메라", "redder",
    ]  # fmt: skip
    assert tokenizer.unk_token_id not in {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}


def test_case_and_punctuation_do_not_change_word_tokens(tokenizer):
    plain = tokenizer("a red boat on the sea").input_ids
    assert tokenizer("A RED Boat on the SEA").input_ids == plain
    marked = tokenizer('"A red boat", on the sea...').input_ids
    assert [t for t in marked if t in plain] == plain
    assert tokenizer.unk_token_id not in marked


def test_colour_words_belong_to_one_colour():
    words_by_colour = [
        set(split_words(" ".join(COLOUR_WORDS[c]))) - {"dark", "bright", "snow", "-", "jet"} for c in COLOURS
    ]
    assert sum(len(words) for words in words_by_colour) == len(set.union(*words_by_colour))


def test_embedded_words_json_matches_caption_words(tmp_path):
    write_effective_words(tmp_path)
    assert (tmp_path / "words.json").read_bytes() == (POCKET_T2I_FOLDER / "words.json").read_bytes()


def test_bare_captions_cause_no_warning():
    for scene in held_out_scenes(60):
        request = request_for(model="pocket", prompt=bare_caption(scene), image_model="pocket-t2i")
        assert parameter_warnings(request) == []


def test_effective_scene_words_are_tokens():
    words = effective_words()
    assert {*words["scene"]} <= vocabulary().keys()
    assert not {*words["scene"]} & {*words["other"]}

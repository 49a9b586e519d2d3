import json

import pytest
import torch
from cli_inputs import draw

from kinema.media.video_writer import read_recipe, save_video
from tiny import make_tiny_svd


@pytest.fixture
def made(generate, folder):
    """`rocket.mp4`, made by a tiny model."""
    assert generate().code == 0
    return folder / "rocket.mp4"


@pytest.fixture
def remake(kinema, made, image, tiny_svd):
    """`remake rocket.mp4 --image rocket.png` with the tiny model."""

    def run(*arguments, image=image.name, model=tiny_svd):
        return kinema("remake", "rocket.mp4", "--image", image, "--model", model, *arguments)

    return run


def test_inspect_tells_a_recipe_in_words(kinema, made):
    ran = kinema("inspect", made)
    facts = dict(line.split(None, 1) for line in ran.out.splitlines())
    recipe = read_recipe(made)
    assert facts["model"] == "tiny-svd"
    assert facts["seed"] == "7"
    assert facts["num_inference_steps"] == "2"
    assert recipe.model.weights_sha256 in facts["weights"]
    assert recipe.image_sha256 in facts["image"]
    threads = "1 CPU thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} CPU threads"
    assert facts["device"] == (f"cpu, {recipe.dtype}, {recipe.engine} engine, {threads} ({recipe.cpu})")
    assert ran.err == ""


def test_inspect_json_is_the_recipe_exactly(kinema, made):
    assert json.loads(kinema("inspect", made, "--json").out) == read_recipe(made).model_dump(mode="json")


def test_a_video_without_a_recipe_is_refused(kinema, folder, made):
    import numpy as np

    save_video(np.zeros((2, 64, 64, 3), np.uint8), folder / "other.mp4", 7)
    ran = kinema("inspect", "other.mp4")
    assert ran.code == 2
    assert ran.err.startswith("error: other.mp4 has no recipe")


def test_a_remake_is_identical_to_the_last_byte(remake, made, folder):
    ran = remake()
    assert (ran.code, ran.out) == (0, "rocket-remade.mp4\n")
    assert ran.err.splitlines()[-1] == "identical: all 2 frames are the same, pixel for pixel"
    assert (folder / "rocket-remade.mp4").read_bytes() == made.read_bytes()


def test_a_remake_of_another_kind_is_compared_as_the_original_would_show_it(remake, folder):
    ran = remake("-o", "again.gif", "--json")
    assert ran.code == 0
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert events[-2]["path"] == "again.gif"
    assert events[-1] == {
        "event": "compared",
        "identical": True,
        "frames_differing": 0,
        "max_difference": 0,
        "reasons": [],
    }
    assert not [path for path in folder.iterdir() if "again" in path.name and path.suffix != ".gif"]


def test_another_still_is_refused_before_the_model_is_loaded(remake, folder):
    draw(folder / "cat.png", seed=1)
    ran = remake(image="cat.png")
    assert ran.code == 2
    assert ran.err.startswith("error: the image cat.png is not the one of the recipe (SHA-256 ")
    assert "loading" not in ran.err
    assert not (folder / "rocket-remade.mp4").exists()


def test_another_still_makes_another_video_and_says_so(remake, folder):
    draw(folder / "cat.png", seed=1)
    ran = remake("--anyway", image="cat.png")
    assert (ran.code, ran.out) == (7, "rocket-remade.mp4\n")
    assert "caution: the image cat.png is not the one of the recipe" in ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith("different: 2 of 2 frames differ, by ")
    assert "; not as in the recipe: image " in last


def test_other_weights_are_refused_before_any_work(remake, folder, tmp_path_factory):
    other = make_tiny_svd(tmp_path_factory.mktemp("weights") / "tiny-svd", seed=1)
    ran = remake(model=other)
    assert ran.code == 2
    assert f"the model {other} is not the one of the recipe" in ran.err
    assert "encode" not in ran.err
    assert not (folder / "rocket-remade.mp4").exists()


def test_weights_from_a_folder_have_to_be_named(kinema, made):
    ran = kinema("remake", made, "--image", "rocket.png")
    assert ran.code == 2
    assert "the weights lay in a folder named tiny-svd" in ran.err
    assert "--model FOLDER" in ran.err


def test_a_remake_replaces_neither_the_original_nor_an_unnamed_file(remake, made, folder):
    before = made.read_bytes()
    assert "rocket.mp4 is what the video is made from" in remake("-o", "rocket.mp4").err
    (folder / "rocket-remade.mp4").write_text("mine")
    assert "rocket-remade.mp4 already exists" in remake().err
    assert made.read_bytes() == before
    assert (folder / "rocket-remade.mp4").read_text() == "mine"


def test_a_recipe_from_elsewhere_warns_that_frames_may_differ(kinema, made, folder, tiny_svd):
    from kinema.media.video_writer import read_frames

    recipe = read_recipe(made)
    changes = {"device": "cuda (Some GPU)", "versions": recipe.versions | {"torch": "1.0"}, "dtype": "float32"}
    frames, fps = read_frames(made)
    save_video(frames, folder / "far.mp4", fps, recipe.model_copy(update=changes))
    err = kinema("remake", "far.mp4", "--image", "rocket.png", "--model", tiny_svd).err
    assert "caution: it was made on cuda (Some GPU), which is not here: the frames may differ" in err
    assert "caution: it was made by torch 1.0, and " in err


@pytest.fixture
def another_thread_count():
    """Torch computing with one thread more than before, while the test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield before + 1
    torch.set_num_threads(before)


def test_a_remake_runs_with_the_threads_of_the_recipe(remake, made, folder, another_thread_count):
    ran = remake()
    assert ran.code == 0
    assert read_recipe(folder / "rocket-remade.mp4").threads == read_recipe(made).threads == another_thread_count - 1
    assert torch.get_num_threads() == another_thread_count


def test_a_recipe_without_threads_is_remade_with_those_of_this_machine(kinema, made, folder, tiny_svd):
    from kinema.media.video_writer import read_frames

    frames, fps = read_frames(made)
    older = read_recipe(made).model_copy(update={"threads": None, "cpu": None})
    save_video(255 - frames, folder / "older.mp4", fps, older)
    ran = kinema("remake", "older.mp4", "--image", "rocket.png", "--model", tiny_svd)
    assert ran.code == 7
    threads, cpu = torch.get_num_threads(), read_recipe(made).cpu
    reasons = f"; not as in the recipe: threads {threads} instead of unknown, cpu {cpu} instead of unknown"
    assert ran.err.splitlines()[-1].endswith(reasons)


def test_frames_that_differ_for_no_recorded_reason_say_so(kinema, made, folder, tiny_svd):
    from kinema.media.video_writer import read_frames

    frames, fps = read_frames(made)
    save_video(255 - frames, folder / "other.mp4", fps, read_recipe(made))
    ran = kinema("remake", "other.mp4", "--image", "rocket.png", "--model", tiny_svd, "--json")
    assert ran.code == 7
    assert json.loads(ran.out.splitlines()[-1])["reasons"] == []


def test_a_recipe_in_fp8_is_made_in_full_where_nothing_multiplies_that(kinema, made, folder, tiny_svd):
    from kinema.media.video_writer import read_frames

    frames, fps = read_frames(made)
    changes = {"precision": "fp8", "dtype": "float32"}
    save_video(frames, folder / "fp8.mp4", fps, read_recipe(made).model_copy(update=changes))
    assert ", fp8, " in kinema("inspect", "fp8.mp4").out
    remade = kinema("remake", "fp8.mp4", "--image", "rocket.png", "--model", tiny_svd)
    assert "caution: it was made in fp8, which this device can't multiply: the frames differ" in remade.err
    assert read_recipe(folder / "fp8-remade.mp4").precision == "full"


def test_a_png_folder_can_be_inspected_and_remade(generate, kinema, folder, tiny_svd):
    assert generate("-o", "frames").code == 0
    assert json.loads(kinema("inspect", "frames", "--json").out)["request"]["seed"] == 7
    ran = kinema("remake", "frames", "--image", "rocket.png", "--model", tiny_svd, "-o", "again")
    assert ran.code == 0
    assert "identical" in ran.err

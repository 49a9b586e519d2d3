import json
import re

import pytest
import torch
from cli_inputs import write_image
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file

from kinema.media.video_writer import read_recipe, save_video
from kinema.models import frame_interpolator
from tiny import make_tiny_svd


@pytest.fixture
def video_path(generate, folder):
    """Generate `rocket.mp4` with a tiny model and return its path."""
    assert generate().code == 0
    return folder / "rocket.mp4"


@pytest.fixture
def remake(kinema, video_path, image, tiny_svd):
    """Return a function that runs `remake rocket.mp4 --image rocket.png` with the tiny model."""

    def run(*arguments, image=image.name, model=tiny_svd):
        return kinema("remake", "rocket.mp4", "--image", image, "--model", model, *arguments)

    return run


def test_inspect_prints_the_recipe(kinema, video_path):
    result = kinema("inspect", video_path)
    facts = dict(line.split(None, 1) for line in result.out.splitlines())
    recipe = read_recipe(video_path)
    assert facts["model"] == "tiny-svd"
    assert facts["seed"] == "7"
    assert facts["num_inference_steps"] == "2"
    assert recipe.model.weights_sha256 in facts["weights"]
    assert recipe.image_sha256 in facts["image"]
    threads = "1 CPU thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} CPU threads"
    assert facts["device"] == (f"cpu, {recipe.dtype}, {recipe.engine} engine, {threads} ({recipe.cpu})")
    assert result.err == ""


def test_inspect_json_equals_the_recipe(kinema, video_path):
    assert json.loads(kinema("inspect", video_path, "--json").out) == read_recipe(video_path).model_dump(mode="json")


def test_inspect_video_without_recipe_is_rejected(kinema, folder, video_path):
    import numpy as np

    save_video(np.zeros((2, 64, 64, 3), np.uint8), folder / "other.mp4", 7)
    result = kinema("inspect", "other.mp4")
    assert result.code == 2
    assert result.err.startswith("error: other.mp4 has no recipe")


def test_remake_is_byte_identical(remake, video_path, folder):
    result = remake()
    assert (result.code, result.out) == (0, "rocket-remade.mp4\n")
    assert result.err.splitlines()[-1] == "identical: all 2 frames are the same, pixel for pixel"
    assert (folder / "rocket-remade.mp4").read_bytes() == video_path.read_bytes()


def test_remake_of_a_video_with_a_last_image_needs_that_image(generate, remake, folder):
    write_image(folder / "last.png", seed=1)
    assert generate("--last-image", "last.png", "--force").code == 0
    result = remake("--last-image", "last.png")
    assert (result.code, result.err.splitlines()[-1]) == (0, "identical: all 2 frames are the same, pixel for pixel")
    missing = remake("-o", "other.mp4")
    assert (missing.code, missing.err) == (
        2,
        "error: the video ends at an image, which its recipe does not contain; pass it with --last-image\n",
    )
    assert "last image rocket.png differs from the recipe" in remake("--last-image", "rocket.png", "-o", "a.mp4").err


def test_extend_and_its_remake(kinema, video_path, image, tiny_svd, folder):
    extended = kinema("extend", "rocket.mp4", "--num-frames=2", "--image", image.name, "--model", tiny_svd)
    assert (extended.code, extended.out) == (0, "rocket-extended.mp4\n")
    recipe = read_recipe(folder / "rocket-extended.mp4")
    assert recipe.request.num_frames == 4
    assert "2 frames, SHA-256" in kinema("inspect", "rocket-extended.mp4").out
    options = ["--image", image.name, "--model", tiny_svd]
    missing = kinema("remake", "rocket-extended.mp4", *options)
    assert (missing.code, missing.err.split(";")[1]) == (2, " pass it with --extends\n")
    remade = kinema("remake", "rocket-extended.mp4", "--extends", "rocket.mp4", *options)
    assert (remade.code, remade.err.splitlines()[-1]) == (0, "identical: all 4 frames are the same, pixel for pixel")
    other = kinema("remake", "rocket-extended.mp4", "--extends", "rocket-extended.mp4", *options, "-o", "other.mp4")
    assert (other.code, "differs from the recipe" in other.err) == (2, True)
    loop = ["generate", image.name, "--loop", "--num-frames=3", "--num-inference-steps=1", "--model", tiny_svd]
    assert kinema(*loop, "-o", "loop.mp4").code == 0
    wrong = kinema("remake", "rocket-extended.mp4", "--extends", "loop.mp4", *options, "-o", "other.mp4")
    assert (wrong.code, wrong.err) == (
        2,
        "error: loop.mp4 is not the video from which this one was extended; use that one\n",
    )


def test_extend_without_image_says_so_and_is_remade_without(kinema, video_path, tiny_svd, folder, monkeypatch):
    monkeypatch.setenv("KINEMA_WATERMARK", "on")
    extended = kinema("extend", "rocket.mp4", "--seconds=0.3", "--model", tiny_svd, "-o", "longer.webm")
    assert (extended.code, "made from the first frame of the video" in extended.err) == (0, True)
    assert read_recipe(folder / "longer.webm").encoding.watermark is not None
    remade = kinema("remake", "longer.webm", "--extends", "rocket.mp4", "--model", tiny_svd)
    assert (remade.code, remade.out) == (0, "longer-remade.webm\n")


def test_extended_and_remade_videos_are_signed_and_watermarked_on_request(
    kinema, video_path, image, tiny_svd, folder, monkeypatch
):
    monkeypatch.setenv("KINEMA_DATA_DIR", str(folder / "data"))
    options = ["--image", image.name, "--model", tiny_svd]
    extend = ["extend", "rocket.mp4", "--num-frames=1", *options]
    assert kinema(*extend, "--credentials", "--watermark").code == 0
    assert read_recipe("rocket-extended.mp4").encoding.watermark is not None
    assert kinema("remake", "rocket.mp4", *options, "--credentials", "-o", "again.webm").code == 0
    assert (folder / "again.c2pa").exists()
    assert kinema("verify", "rocket-extended.mp4", "again.webm").code == 0
    monkeypatch.setenv("KINEMA_CREDENTIALS", "on")
    monkeypatch.setenv("KINEMA_WATERMARK", "on")
    assert kinema(*extend, "--no-credentials", "--no-watermark", "--force").code == 0
    assert read_recipe("rocket-extended.mp4").encoding.watermark is None
    assert kinema("remake", "rocket.mp4", *options, "--no-credentials").code == 0
    found = kinema("verify", "rocket-extended.mp4", "rocket-remade.mp4")
    assert (found.code, found.out.count("credentials  none")) == (9, 2)


def test_remake_of_an_upright_video_is_byte_identical(kinema, folder):
    model = make_tiny_svd(folder / "model")
    defaults = {"width": 96, "height": 64, "num_frames": 2, "num_inference_steps": 1}
    (model / "kinema.json").write_text(json.dumps({"defaults": defaults}))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.radial_gradient("L").resize((128, 72)).convert("RGB").save(folder / "phone.jpg", exif=turned)
    assert kinema("generate", "phone.jpg", "--model", model, "--seed=7").code == 0
    request = read_recipe(folder / "phone.mp4").request
    assert (request.width, request.height) == (64, 96)
    assert kinema("remake", "phone.mp4", "--image", "phone.jpg", "--model", model).code == 0
    assert (folder / "phone-remade.mp4").read_bytes() == (folder / "phone.mp4").read_bytes()


def test_remake_in_other_format_is_compared_in_original_format(remake, folder):
    result = remake("-o", "again.gif", "--json")
    assert result.code == 0
    events = [json.loads(line) for line in result.out.splitlines()]
    assert events[-2]["path"] == "again.gif"
    assert events[-1] == {
        "event": "compared",
        "identical": True,
        "frames_differing": 0,
        "max_difference": 0,
        "reasons": [],
    }
    assert not [path for path in folder.iterdir() if "again" in path.name and path.suffix != ".gif"]


def test_remake_with_other_image_is_rejected_before_loading(remake, folder):
    write_image(folder / "cat.png", seed=1)
    result = remake(image="cat.png")
    assert result.code == 2
    assert result.err.startswith("error: the image cat.png differs from the recipe (SHA-256 ")
    assert "loading" not in result.err
    assert not (folder / "rocket-remade.mp4").exists()


def test_remake_anyway_with_other_image_exits_7(remake, folder):
    write_image(folder / "cat.png", seed=1)
    result = remake("--anyway", image="cat.png")
    assert (result.code, result.out) == (7, "rocket-remade.mp4\n")
    assert "warning: the image cat.png differs from the recipe" in result.err
    last = result.err.splitlines()[-1]
    assert last.startswith("different: 2 of 2 frames differ, by ")
    assert "; differs from the recipe: image " in last


def test_remake_with_other_weights_is_rejected_before_generation(remake, folder, tmp_path_factory):
    other = make_tiny_svd(tmp_path_factory.mktemp("weights") / "tiny-svd", seed=1)
    result = remake(model=other)
    assert result.code == 2
    assert f"the model {other} differs from the recipe" in result.err
    assert "encode" not in result.err
    assert not (folder / "rocket-remade.mp4").exists()


def test_remake_compares_the_weights_of_the_interpolation_network(generate, remake, kinema, folder, monkeypatch):
    assert generate("--interpolate", "2", "--force").code == 0
    [(stage, digest)] = read_recipe(folder / "rocket.mp4").finishing_sha256.items()
    assert re.search(rf"weights of interpolate +SHA-256 {digest}\n", kinema("inspect", "rocket.mp4").out)
    assert (stage, remake().code) == ("interpolate", 0)
    other = folder / "other.safetensors"
    network = load_file(frame_interpolator.WEIGHTS_FILE)
    save_file({name: tensor * 1.01 for name, tensor in network.items()}, other)
    monkeypatch.setattr(frame_interpolator, "WEIGHTS_FILE", other)
    rejected = remake("--force")
    assert rejected.code == 2
    assert rejected.err.startswith("error: the network of interpolate differs from the recipe (SHA-256 ")
    assert "loading" not in rejected.err
    result = remake("--force", "--anyway")
    assert result.code == 7
    assert "warning: the network of interpolate differs from the recipe" in result.err
    assert f" instead of {digest[:12]}" in result.err.splitlines()[-1]


def test_remake_with_model_from_folder_requires_its_path(kinema, video_path):
    result = kinema("remake", video_path, "--image", "rocket.png")
    assert result.code == 2
    assert "the model was loaded from a folder named tiny-svd" in result.err
    assert "--model FOLDER" in result.err


def test_remake_overwrites_neither_original_nor_existing_file(remake, video_path, folder):
    before = video_path.read_bytes()
    assert "rocket.mp4 is the input and would be" in remake("-o", "rocket.mp4").err
    (folder / "rocket-remade.mp4").write_text("old")
    assert "rocket-remade.mp4 already exists" in remake().err
    assert video_path.read_bytes() == before
    assert (folder / "rocket-remade.mp4").read_text() == "old"


def test_remake_on_other_device_and_version_warns(kinema, video_path, folder, tiny_svd):
    from kinema.media.video_writer import read_frames

    recipe = read_recipe(video_path)
    changes = {"device": "cuda (Some GPU)", "versions": recipe.versions | {"torch": "1.0"}, "dtype": "float32"}
    frames, fps = read_frames(video_path)
    save_video(frames, folder / "far.mp4", fps, recipe.model_copy(update=changes))
    err = kinema("remake", "far.mp4", "--image", "rocket.png", "--model", tiny_svd).err
    assert "warning: made on cuda (Some GPU), which is not available: the frames may differ" in err
    assert "warning: made with torch 1.0, but " in err


@pytest.fixture
def another_thread_count():
    """Increase torch's number of threads by one during the test, and return it."""
    previous = torch.get_num_threads()
    torch.set_num_threads(previous + 1)
    yield previous + 1
    torch.set_num_threads(previous)


def test_remake_uses_thread_count_of_recipe(remake, video_path, folder, another_thread_count):
    result = remake()
    assert result.code == 0
    assert (
        read_recipe(folder / "rocket-remade.mp4").threads == read_recipe(video_path).threads == another_thread_count - 1
    )
    assert torch.get_num_threads() == another_thread_count


def test_remake_without_recorded_threads_uses_current_thread_count(kinema, video_path, folder, tiny_svd):
    from kinema.media.video_writer import read_frames

    frames, fps = read_frames(video_path)
    older = read_recipe(video_path).model_copy(update={"threads": None, "cpu": None})
    save_video(255 - frames, folder / "older.mp4", fps, older)
    result = kinema("remake", "older.mp4", "--image", "rocket.png", "--model", tiny_svd)
    assert result.code == 7
    threads, cpu = torch.get_num_threads(), read_recipe(video_path).cpu
    reasons = f"; differs from the recipe: threads {threads} instead of unknown, cpu {cpu} instead of unknown"
    assert result.err.splitlines()[-1].endswith(reasons)


def test_remake_difference_without_recorded_reason_has_empty_reasons(kinema, video_path, folder, tiny_svd):
    from kinema.media.video_writer import read_frames

    frames, fps = read_frames(video_path)
    save_video(255 - frames, folder / "other.mp4", fps, read_recipe(video_path))
    result = kinema("remake", "other.mp4", "--image", "rocket.png", "--model", tiny_svd, "--json")
    assert result.code == 7
    assert json.loads(result.out.splitlines()[-1])["reasons"] == []


def test_remake_of_fp8_recipe_on_unsupported_device_uses_full_precision(kinema, video_path, folder, tiny_svd):
    from kinema.media.video_writer import read_frames

    frames, fps = read_frames(video_path)
    changes = {"precision": "fp8", "dtype": "float32"}
    save_video(frames, folder / "fp8.mp4", fps, read_recipe(video_path).model_copy(update=changes))
    assert ", fp8, " in kinema("inspect", "fp8.mp4").out
    remade = kinema("remake", "fp8.mp4", "--image", "rocket.png", "--model", tiny_svd)
    assert "warning: made with fp8, which this device does not support: the frames will differ" in remade.err
    assert read_recipe(folder / "fp8-remade.mp4").precision == "full"


def test_png_folder_can_be_inspected_and_remade(generate, kinema, folder, tiny_svd):
    assert generate("-o", "frames").code == 0
    assert json.loads(kinema("inspect", "frames", "--json").out)["request"]["seed"] == 7
    result = kinema("remake", "frames", "--image", "rocket.png", "--model", tiny_svd, "-o", "again")
    assert result.code == 0
    assert "identical" in result.err

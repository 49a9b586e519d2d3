import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_cli_machine import python

from kinema.errors import GenerationFailed
from kinema.media.video_writer import probe, read_frames, read_recipe
from tiny import make_tiny_sd

PROMPT = "a red balloon over a snowy mountain"
STEM = "a-red-balloon-over-a-snowy-mountain"
TINY = ["--width=64", "--height=64", "--num-inference-steps=2", "--num-frames=2", "--image-num-inference-steps=3"]


@pytest.fixture
def draw(kinema, tiny_svd, tiny_sd):
    """`generate --prompt` with tiny models and small settings."""

    def run(*arguments, prompts=(PROMPT,), image_pipeline=tiny_sd):
        options = [f"--prompt={prompt}" for prompt in prompts]
        return kinema(
            "generate", *options, "--model", tiny_svd, "--image-model", image_pipeline, *TINY, "--seed=7", *arguments
        )

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# What comes out, and where


def test_a_prompt_becomes_a_video_named_after_it_and_both_halves_are_told(draw, folder):
    ran = draw()
    assert (ran.code, ran.out) == (0, f"{STEM}.mp4\n")
    lines = ran.err.splitlines()
    order = [
        "loading " + next(line for line in lines if line.startswith("loading ")).partition(" ")[2],
        f'"{PROMPT}": image of 64×64, 3 steps, seed 7',
        "text_to_image 3/3",
        f'"{PROMPT}": 2 frames of 64×64, 2 steps, seed 7',
        "denoise 2/2",
    ]
    assert [lines.index(line) for line in order] == sorted(lines.index(line) for line in order)
    assert re.search(r"in \d+\.\d s \(text_to_image \d+\.\d s, encode ", ran.err)
    assert "\x1b" not in ran.err
    assert probe(folder / f"{STEM}.mp4").frames == 2
    assert names(folder) == [f"{STEM}.mp4"]


def test_every_setting_of_a_painter_is_an_option_and_in_the_recipe(draw, folder):
    given = {
        "negative_prompt": "42",
        "image_guidance_scale": 5.5,
        "image_num_inference_steps": 2,
        "scheduler": "ddim",
    }
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert draw("-o", "out.mp4", *options).code == 0
    recipe = read_recipe(folder / "out.mp4")
    request = recipe.request.model_dump()
    assert {name: request[name] for name in given} == given
    assert (request["prompt"], request["image_model"]) == (PROMPT, "tiny-sd")
    assert recipe.image_generation.model.name == "tiny-sd"


def test_a_kept_still_gives_the_same_video(draw, kinema, folder, tiny_svd):
    ran = draw("-o", "drawn.mp4", "--save-image", "image.png")
    assert "saved as image.png" in ran.err
    with Image.open(folder / "image.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
    assert kinema("generate", "image.png", "--model", tiny_svd, *TINY[:-1], "--seed=7", "-o", "kept.mp4").code == 0
    assert np.array_equal(read_frames(folder / "drawn.mp4")[0], read_frames(folder / "kept.mp4")[0])


def test_several_prompts_load_each_model_once_and_draw_first(draw, folder):
    for name in ("videos", "images"):
        (folder / name).mkdir()
    prompts = ("a red balloon", "a blue sea")
    ran = draw("-o", "videos", "--save-image", "images/{index}-{stem}.png", prompts=prompts)
    assert ran.out.splitlines() == ["videos/a-red-balloon.mp4", "videos/a-blue-sea.mp4"]
    assert ran.err.count("loaded in") == 2
    assert names(folder / "images") == ["1-a-red-balloon.png", "2-a-blue-sea.png"]
    order = ['1/2 "a red balloon": image of', '2/2 "a blue sea": image of', '1/2 "a red balloon": 2 frames']
    assert [ran.err.index(line) for line in order] == sorted(ran.err.index(line) for line in order)
    images = [read_recipe(folder / "videos" / f"{name}.mp4").image_sha256 for name in ("a-red-balloon", "a-blue-sea")]
    assert images[0] != images[1]


def test_words_that_the_painter_does_not_know_are_told_before_it_paints(draw):
    err = draw("-o", "out.mp4", prompts=("a zebra over a mountain",)).err
    warning = "warning: tiny-sd can't draw 'zebra'"
    assert err.index(warning) < err.index("text_to_image 1/3")


def test_words_that_the_embedded_model_cannot_draw_are_named_before_it_is_loaded(kinema, folder, monkeypatch):
    def load(*_given):
        raise GenerationFailed("stopped here")

    monkeypatch.setattr("kinema.cli.render.generate_images", load)
    models = "--model", "pocket", "--image-model", "pocket-t2i"
    err = kinema("generate", "--prompt", "an old boat in Paris", *models).err
    assert err.splitlines() == ["warning: pocket-t2i can't draw 'old', 'Paris'", "error: stopped here"]
    err = kinema("generate", "--prompt", "빨간 풍선", *models).err
    assert err.startswith("warning: pocket-t2i can't draw anything of this prompt")


def test_json_events_tell_both_halves(draw):
    ran = draw("--json", "--save-image", "image.png", prompts=("a zebra",))
    assert (ran.code, ran.err) == (0, "")
    events = [json.loads(line) for line in ran.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert [kinds.index(kind) for kind in ("text_to_image", "image_done", "start", "done")] == sorted(
        kinds.index(kind) for kind in ("text_to_image", "image_done", "start", "done")
    )
    generate_image, image_done, start, done = (
        events[kinds.index(kind)] for kind in ("text_to_image", "image_done", "start", "done")
    )
    assert (generate_image["prompt"], generate_image["seed"]) == ("a zebra", 7)
    assert image_done["path"] == "image.png"
    assert (start["image"], start["request"]["prompt"]) == (None, "a zebra")
    steps = [(event["stage"], event["step"], event["total"]) for event in events if event["event"] == "step"]
    assert steps[:4] == [("text_to_image", 1, 3), ("text_to_image", 2, 3), ("text_to_image", 3, 3), ("encode", 1, 2)]
    assert "tiny-sd can't draw 'zebra'" in done["warnings"]


def test_quiet_tells_the_path_alone(draw):
    assert draw("--quiet") == (0, f"{STEM}.mp4\n", "")


def test_a_terminal_shows_bars_of_both_halves(draw, terminal):
    with terminal:
        draw()
    for stage, count in (("text_to_image", "3/3"), ("encode", "2/2"), ("denoise", "2/2"), ("decode", "2/2")):
        assert stage in terminal.text
        assert count in terminal.text


def test_an_unset_painter_is_chosen_with_a_reason(kinema, tiny_svd):
    ran = kinema("generate", "--prompt", PROMPT, "--model", tiny_svd, "--device=cpu", "-o", "refused.avi")
    assert ran.code == 2
    assert ran.err.splitlines()[0] == ("using text-to-image model pocket-t2i: no CUDA device in use")
    ran = kinema("generate", "--prompt", PROMPT, "--model", "pocket", "--device=cpu", "-o", "refused.avi")
    assert ran.err.splitlines()[0] == "using text-to-image model pocket-t2i: it is made for 288×160"


# What is refused

MISTAKES = {
    "an SVD as painter": (["--image-model={svd}"], 3, "makes videos from stills, and draws none"),
    "a model's name": (["--image-model=svd-xt"], 3, "svd-xt makes videos from stills, and draws none"),
    "no painter": (["--image-model=full"], 3, "full has no model_index.json, so it is no model in diffusers' layout"),
    "misspelt": (["--image-model=sd-21-base"], 3, "there is no painter 'sd-21-base'; did you mean sd-2.1-base?"),
    "offline": (["--image-model=some/one"], 3, "some/one is not on this machine, and HF_HUB_OFFLINE forbids"),
    "missing weights": (["--image-model=lacking"], 3, "has no weights of its unet"),
    "no such scheduler": (["--scheduler=heun"], 2, "scheduler 'heun' is invalid"),
    "out of range": (["--image-num-inference-steps=0"], 2, "image_num_inference_steps 0 is out of range: 1 to 200"),
    "an empty second prompt": (["--prompt="], 2, "prompt '' is empty"),
    "one name for two": ([f"--prompt={PROMPT}"], 2, f"{STEM}.mp4 is the path of more than one result"),
    "still of another kind": (["--save-image=a.jpg"], 2, "the image a.jpg must end in .png; use a.png"),
    "still over the sheet": (["--save-image=a.png", "--contact-sheet=a.png"], 2, "a.png is the path of more than one"),
    "still that is there": (
        ["--save-image=full/", "--prompt=a sea", "-o", "{{index}}.mp4"],
        2,
        ".png already exists",
    ),
}


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_a_line_and_leaves_nothing(
    draw, folder, tiny_svd, tiny_sd, tmp_path_factory, arguments, code, words
):
    (folder / "full").mkdir()
    (folder / "full" / f"{STEM}.png").touch()
    shutil.copytree(tiny_sd, folder / "lacking")
    (folder / "lacking" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    before = names(folder)
    ran = draw(*[argument.format(svd=tiny_svd) for argument in arguments])
    assert ran.code == code
    assert ran.out == ""
    error = ran.err[ran.err.index("error: ") :]
    assert words in error
    assert error.count("\n") == 1
    assert "Traceback" not in ran.err
    assert names(folder) == before


def test_a_painter_that_gives_no_picture_is_refused_before_the_video_model_is_loaded(draw, folder, tmp_path_factory):
    broken = make_tiny_sd(tmp_path_factory.mktemp("weights") / "nan")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: np.full_like(t, np.nan) if "decoder" in name else t for name, t in tensors.items()}, weights)
    ran = draw("--save-image", "image.png", image_pipeline=broken)
    assert ran.code == 5
    assert ran.err.splitlines()[-1].startswith("error: the painter gave NaN or infinity in torch.float32; no still was")
    assert ran.err.count("loading") == 1
    assert names(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_painting_and_leaves_nothing(folder, tiny_svd, tiny_sd, number, code):
    options = ["--width=256", "--height=256", "--image-num-inference-steps=200", "--save-image", folder / "image.png"]
    models = ["--model", tiny_svd, "--image-model", tiny_sd]
    process = python("-m", "kinema", "generate", "--prompt", PROMPT, *models, *options, "-o", folder / "out.mp4")
    for line in process.stderr:
        if line.startswith("text_to_image 2/"):
            break
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - began < 10
    assert out == ""
    assert err.splitlines()[-1] == "interrupted: no partial file is left"
    assert list(folder.iterdir()) == []


# Remaking


@pytest.fixture
def made(draw, folder):
    """`drawn.mp4`, made from a prompt, and the still that was drawn."""
    assert draw("-o", "drawn.mp4", "--save-image", "image.png").code == 0
    return folder / "drawn.mp4"


@pytest.fixture
def remake(kinema, made, tiny_svd, tiny_sd):
    """`remake drawn.mp4` with the tiny models."""

    def run(*arguments, image_pipeline=tiny_sd):
        return kinema("remake", "drawn.mp4", "--model", tiny_svd, "--image-model", image_pipeline, *arguments)

    return run


def test_a_remake_needs_no_still(remake, made, folder):
    (folder / "image.png").unlink()
    ran = remake()
    assert (ran.code, ran.out) == (0, "drawn-remade.mp4\n")
    assert ran.err.splitlines()[-1] == "identical: all 2 frames are the same, pixel for pixel"
    assert (folder / "drawn-remade.mp4").read_bytes() == made.read_bytes()


def test_a_remake_may_be_given_the_kept_still_and_paints_nothing_then(remake, made, folder):
    ran = remake("--image", "image.png")
    assert ran.code == 0
    assert "text_to_image" not in ran.err
    assert (folder / "drawn-remade.mp4").read_bytes() == made.read_bytes()


def test_another_painter_is_refused_before_it_paints(remake, folder, tmp_path_factory):
    other = make_tiny_sd(tmp_path_factory.mktemp("weights") / "tiny-sd", seed=1)
    ran = remake(image_pipeline=other)
    assert ran.code == 2
    assert f"the text-to-image model {other} differs from the recipe" in ran.err
    assert "text_to_image 1/3" not in ran.err
    ran = remake("--anyway", image_pipeline=other)
    assert ran.code == 7
    assert "warning: the generated image differs from the recipe's" in ran.err
    assert ran.err.splitlines()[-1].startswith("different: ")


def test_a_painter_from_a_folder_has_to_be_named(kinema, made, tiny_svd):
    ran = kinema("remake", made, "--model", tiny_svd)
    assert ran.code == 2
    assert "the model was loaded from a folder named tiny-sd" in ran.err
    assert "--image-model FOLDER" in ran.err


def test_a_video_from_a_still_needs_it(kinema, generate):
    assert generate().code == 0
    ran = kinema("remake", "rocket.mp4")
    assert (ran.code, ran.err) == (
        2,
        "error: the video was made from an image, which its recipe does not contain; pass it by --image\n",
    )


def test_inspect_tells_prompt_and_painter(kinema, made):
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in kinema("inspect", made).out.splitlines())
    recipe = read_recipe(made)
    assert facts["prompt"] == PROMPT
    assert facts["image model"] == "tiny-sd"
    assert recipe.image_generation.model.weights_sha256 in facts["image model's weights"]
    assert facts["scheduler"] == "euler"

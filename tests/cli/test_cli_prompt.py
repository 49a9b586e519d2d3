import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_cli_machine import start_python

from kinema.errors import GenerationFailed
from kinema.media.video_writer import probe, read_frames, read_recipe
from tiny import make_tiny_sd

PROMPT = "a red balloon over a snowy mountain"
STEM = "a-red-balloon-over-a-snowy-mountain"
TINY = ["--width=64", "--height=64", "--num-inference-steps=2", "--num-frames=2", "--image-num-inference-steps=3"]


@pytest.fixture
def generate_from_prompt(kinema, tiny_svd, tiny_sd):
    """Return a function that runs `generate --prompt` with tiny models and small parameters."""

    def run(*arguments, prompts=(PROMPT,), image_pipeline=tiny_sd):
        options = [f"--prompt={prompt}" for prompt in prompts]
        return kinema(
            "generate", *options, "--model", tiny_svd, "--image-model", image_pipeline, *TINY, "--seed=7", *arguments
        )

    return run


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


# Output files


def test_prompt_gives_video_named_after_it_and_reports_both_models(generate_from_prompt, folder):
    result = generate_from_prompt()
    assert (result.code, result.out) == (0, f"{STEM}.mp4\n")
    lines = result.err.splitlines()
    order = [
        "loading " + next(line for line in lines if line.startswith("loading ")).partition(" ")[2],
        f'"{PROMPT}": image of 64×64, 3 steps, seed 7',
        "text_to_image 3/3",
        f'"{PROMPT}": 2 frames of 64×64, 2 steps, seed 7',
        "denoise 2/2",
    ]
    assert [lines.index(line) for line in order] == sorted(lines.index(line) for line in order)
    assert re.search(r"in \d+\.\d s \(text_to_image \d+\.\d s, encode ", result.err)
    assert "\x1b" not in result.err
    assert probe(folder / f"{STEM}.mp4").frames == 2
    assert file_names(folder) == [f"{STEM}.mp4"]


def test_text_to_image_options_are_recorded_in_recipe(generate_from_prompt, folder):
    parameters = {
        "negative_prompt": "42",
        "image_guidance_scale": 5.5,
        "image_num_inference_steps": 2,
        "scheduler": "ddim",
    }
    options = [part for name, value in parameters.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert generate_from_prompt("-o", "out.mp4", *options).code == 0
    recipe = read_recipe(folder / "out.mp4")
    request = recipe.request.model_dump()
    assert {name: request[name] for name in parameters} == parameters
    assert (request["prompt"], request["image_model"]) == (PROMPT, "tiny-sd")
    assert recipe.image_generation.model.name == "tiny-sd"


def test_saved_image_gives_the_same_video(generate_from_prompt, kinema, folder, tiny_svd):
    result = generate_from_prompt("-o", "from_prompt.mp4", "--save-image", "image.png")
    assert "saved as image.png" in result.err
    with Image.open(folder / "image.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
    assert (
        kinema("generate", "image.png", "--model", tiny_svd, *TINY[:-1], "--seed=7", "-o", "from_image.mp4").code == 0
    )
    assert np.array_equal(read_frames(folder / "from_prompt.mp4")[0], read_frames(folder / "from_image.mp4")[0])


def test_several_prompts_load_each_model_once_and_generate_images_first(generate_from_prompt, folder):
    for name in ("videos", "images"):
        (folder / name).mkdir()
    prompts = ("a red balloon", "a blue sea")
    result = generate_from_prompt("-o", "videos", "--save-image", "images/{index}-{stem}.png", prompts=prompts)
    assert result.out.splitlines() == ["videos/a-red-balloon.mp4", "videos/a-blue-sea.mp4"]
    assert result.err.count("loaded in") == 2
    assert file_names(folder / "images") == ["1-a-red-balloon.png", "2-a-blue-sea.png"]
    order = ['1/2 "a red balloon": image of', '2/2 "a blue sea": image of', '1/2 "a red balloon": 2 frames']
    assert [result.err.index(line) for line in order] == sorted(result.err.index(line) for line in order)
    images = [read_recipe(folder / "videos" / f"{name}.mp4").image_sha256 for name in ("a-red-balloon", "a-blue-sea")]
    assert images[0] != images[1]


def test_unknown_prompt_words_are_warned_of_before_generation(generate_from_prompt):
    err = generate_from_prompt("-o", "out.mp4", prompts=("a zebra over a mountain",)).err
    warning = "warning: tiny-sd does not know 'zebra'"
    assert err.index(warning) < err.index("text_to_image 1/3")


def test_prompt_words_unknown_to_pocket_t2i_are_warned_of_before_loading(kinema, folder, monkeypatch):
    def load(*_arguments):
        raise GenerationFailed("stopped here")

    monkeypatch.setattr("kinema.cli.render.generate_images", load)
    models = "--model", "pocket", "--image-model", "pocket-t2i"
    err = kinema("generate", "--prompt", "an old boat in Paris", *models).err
    assert err.splitlines() == ["warning: pocket-t2i does not know 'old', 'Paris'", "error: stopped here"]
    err = kinema("generate", "--prompt", "빨간 풍선", *models).err
    assert err.startswith("warning: pocket-t2i does not know any word of this prompt")


def test_json_prints_events_of_both_models(generate_from_prompt):
    result = generate_from_prompt("--json", "--save-image", "image.png", prompts=("a zebra",))
    assert (result.code, result.err) == (0, "")
    events = [json.loads(line) for line in result.out.splitlines()]
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
    assert "tiny-sd does not know 'zebra'" in done["warnings"]


def test_quiet_prints_only_the_path(generate_from_prompt):
    assert generate_from_prompt("--quiet") == (0, f"{STEM}.mp4\n", "")


def test_terminal_shows_progress_bars_of_both_models(generate_from_prompt, terminal):
    with terminal:
        generate_from_prompt()
    for stage, count in (("text_to_image", "3/3"), ("encode", "2/2"), ("denoise", "2/2"), ("decode", "2/2")):
        assert stage in terminal.text
        assert count in terminal.text


def test_default_image_model_is_reported_with_reason(kinema, tiny_svd):
    result = kinema("generate", "--prompt", PROMPT, "--model", tiny_svd, "--device=cpu", "-o", "refused.avi")
    assert result.code == 2
    assert result.err.splitlines()[0] == ("using text-to-image model pocket-t2i: the device is cpu, not a CUDA GPU")
    result = kinema("generate", "--prompt", PROMPT, "--model", "pocket", "--device=cpu", "-o", "refused.avi")
    assert result.err.splitlines()[0] == "using text-to-image model pocket-t2i: it is trained on 288×160"


# Errors

INVALID_ARGUMENTS = {
    "SVD as image model": (["--image-model={svd}"], 3, "generates videos, not images"),
    "video model name as image model": (["--image-model=svd-xt"], 3, "svd-xt generates videos, not images"),
    "not a model": (
        ["--image-model=full"],
        3,
        "full has no model_index.json, so it is not a model in diffusers' layout",
    ),
    "misspelt image model": (
        ["--image-model=sd-21-base"],
        3,
        "image model 'sd-21-base' not found; did you mean sd-2.1-base?",
    ),
    "offline": (["--image-model=some/one"], 3, "some/one is not downloaded, and HF_HUB_OFFLINE is set"),
    "missing weights": (["--image-model=incomplete"], 3, "has no weights for its unet"),
    "unknown scheduler": (["--scheduler=heun"], 2, "scheduler 'heun' is invalid"),
    "out of range": (["--image-num-inference-steps=0"], 2, "image_num_inference_steps 0 is out of range: 1 to 200"),
    "blank second prompt": (["--prompt="], 2, "prompt is empty"),
    "one name for two": ([f"--prompt={PROMPT}"], 2, f"{STEM}.mp4 is the path of more than one result"),
    "image extension": (["--save-image=a.jpg"], 2, "the image a.jpg must end in .png; use a.png"),
    "image at contact sheet path": (
        ["--save-image=a.png", "--contact-sheet=a.png"],
        2,
        "a.png is the path of more than one",
    ),
    "existing image": (
        ["--save-image=full/", "--prompt=a sea", "-o", "{{index}}.mp4"],
        2,
        ".png already exists",
    ),
}


@pytest.mark.parametrize(("arguments", "code", "message"), INVALID_ARGUMENTS.values(), ids=INVALID_ARGUMENTS)
def test_invalid_prompt_arguments_print_one_line_and_leave_no_file(
    generate_from_prompt, folder, tiny_svd, tiny_sd, tmp_path_factory, arguments, code, message
):
    (folder / "full").mkdir()
    (folder / "full" / f"{STEM}.png").touch()
    shutil.copytree(tiny_sd, folder / "incomplete")
    (folder / "incomplete" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    before = file_names(folder)
    result = generate_from_prompt(*[argument.format(svd=tiny_svd) for argument in arguments])
    assert result.code == code
    assert result.out == ""
    error = result.err[result.err.index("error: ") :]
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in result.err
    assert file_names(folder) == before


def test_nan_from_image_model_exits_5_before_video_model_is_loaded(generate_from_prompt, folder, tmp_path_factory):
    broken = make_tiny_sd(tmp_path_factory.mktemp("weights") / "nan")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: np.full_like(t, np.nan) if "decoder" in name else t for name, t in tensors.items()}, weights)
    result = generate_from_prompt("--save-image", "image.png", image_pipeline=broken)
    assert result.code == 5
    assert result.err.splitlines()[-1].startswith("error: the image has NaN or infinity in torch.float32; no image was")
    assert result.err.count("loading") == 1
    assert file_names(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_text_to_image_exits_and_leaves_no_file(folder, tiny_svd, tiny_sd, number, code):
    options = ["--width=256", "--height=256", "--image-num-inference-steps=200", "--save-image", folder / "image.png"]
    models = ["--model", tiny_svd, "--image-model", tiny_sd]
    process = start_python("-m", "kinema", "generate", "--prompt", PROMPT, *models, *options, "-o", folder / "out.mp4")
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


# Remake


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder for the files of `video_path`, which are generated once."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def video_path(made, generate_from_prompt, folder):
    """Write `from_prompt.mp4` and its image `image.png`, and return the video's path."""
    if not list(made.iterdir()):
        assert generate_from_prompt("-o", "from_prompt.mp4", "--save-image", "image.png").code == 0
        for file in folder.iterdir():
            shutil.copy(file, made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder / "from_prompt.mp4"


@pytest.fixture
def remake(kinema, video_path, tiny_svd, tiny_sd):
    """Return a function that runs `remake from_prompt.mp4` with the tiny models."""

    def run(*arguments, image_pipeline=tiny_sd):
        return kinema("remake", "from_prompt.mp4", "--model", tiny_svd, "--image-model", image_pipeline, *arguments)

    return run


def test_remake_of_prompt_video_needs_no_image(remake, video_path, folder):
    (folder / "image.png").unlink()
    result = remake()
    assert (result.code, result.out) == (0, "from_prompt-remade.mp4\n")
    assert result.err.splitlines()[-1] == "identical: all 2 frames are the same, pixel for pixel"
    assert (folder / "from_prompt-remade.mp4").read_bytes() == video_path.read_bytes()


def test_remake_with_saved_image_skips_text_to_image(remake, video_path, folder):
    result = remake("--image", "image.png")
    assert result.code == 0
    assert "text_to_image" not in result.err
    assert (folder / "from_prompt-remade.mp4").read_bytes() == video_path.read_bytes()


def test_remake_with_other_image_model_is_rejected_before_generation(remake, folder, tmp_path_factory):
    other = make_tiny_sd(tmp_path_factory.mktemp("weights") / "tiny-sd", seed=1)
    result = remake(image_pipeline=other)
    assert result.code == 2
    assert f"the text-to-image model {other} differs from the recipe" in result.err
    assert "text_to_image 1/3" not in result.err
    result = remake("--anyway", image_pipeline=other)
    assert result.code == 7
    assert "warning: the generated image differs from the recipe's" in result.err
    assert result.err.splitlines()[-1].startswith("different: ")


def test_remake_with_image_model_from_folder_requires_its_path(kinema, video_path, tiny_svd):
    result = kinema("remake", video_path, "--model", tiny_svd)
    assert result.code == 2
    assert "the model was loaded from a folder named tiny-sd" in result.err
    assert "--image-model FOLDER" in result.err


def test_remake_of_image_video_requires_the_image(kinema, generate):
    assert generate().code == 0
    result = kinema("remake", "rocket.mp4")
    assert (result.code, result.err) == (
        2,
        "error: the video was made from an image, which its recipe does not contain; pass it with --image\n",
    )


def test_inspect_shows_prompt_and_image_model(kinema, video_path):
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in kinema("inspect", video_path).out.splitlines())
    recipe = read_recipe(video_path)
    assert facts["prompt"] == PROMPT
    assert facts["image model"] == "tiny-sd"
    assert recipe.image_generation.model.weights_sha256 in facts["image model's weights"]
    assert facts["scheduler"] == "euler"

import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from cli_inputs import SMALL, draw
from PIL import Image
from safetensors.numpy import load_file, save_file

from kinema.cli import main
from kinema.media.video import Video
from kinema.media.video_writer import probe, read_frames, read_recipe
from kinema.values import TEXT_TO_IMAGE_FIELDS, Step, VideoRequest
from tiny import make_tiny_svd


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# What comes out, and where


def test_stdout_has_the_path_alone_and_stderr_plain_lines(generate, folder):
    ran = generate("-o", "out.mp4")
    assert (ran.code, ran.out) == (0, "out.mp4\n")
    lines = ran.err.splitlines()
    assert "rocket.png: 2 frames of 64×64, 2 steps, seed 7" in lines
    assert "denoise 2/2" in lines
    assert re.fullmatch(r"denoise 1/2, \d+\.\d s left", lines[lines.index("denoise 2/2") - 1])
    assert "\x1b" not in ran.err
    assert probe(folder / "out.mp4").frames == 2


def test_the_video_is_named_after_the_still(generate, folder):
    assert generate().out == "rocket.mp4\n"
    assert names(folder) == ["rocket.mp4", "rocket.png"]


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        ([], "rocket.mp4"),
        (["-o", "rocket.mp4"], "rocket.mp4"),
        (["-o", "{stem}.gif"], "rocket.gif"),
        (["--contact-sheet", "all.png"], "all.png"),
    ],
)
def test_an_existing_file_is_overwritten_by_force_alone(generate, folder, arguments, file):
    (folder / file).write_text("mine")
    refused = generate(*arguments)
    assert refused.code == 2
    assert f"{file} already exists; add --force to overwrite it" in refused.err
    assert (folder / file).read_text() == "mine"
    assert names(folder) == sorted([file, "rocket.png"])
    assert generate(*arguments, "--force").code == 0
    assert (folder / file).read_bytes() != b"mine"


def test_missing_folders_are_created_when_the_work_begins(generate, folder):
    ran = generate("-o", "new/videos/{stem}.mp4", "--contact-sheet", "sheets/", "--fps=500")
    assert (ran.code, names(folder)) == (2, ["rocket.png"])
    assert generate("-o", "new/videos/{stem}.mp4", "--contact-sheet", "sheets/").out == "new/videos/rocket.mp4\n"
    assert names(folder / "sheets") == ["rocket.png"]


def test_a_tilde_in_quotes_is_the_home_folder(generate, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "home").mkdir()
    (folder / "rocket.png").rename(folder / "home" / "rocket.png")
    ran = generate("-o", "~/videos/", images=("~/rocket.png",))
    assert ran.out == f"{folder}/home/videos/rocket.mp4\n"
    assert names(folder) == ["home"]


def test_a_dash_writes_the_video_to_stdout(image, folder, tiny_svd, capsysbinary):
    arguments = image.name, "--model", str(tiny_svd), *map(str, SMALL)
    assert main(["generate", *arguments, "-o", "-"]) == 0
    (folder / "piped.mp4").write_bytes(capsysbinary.readouterr().out)
    assert main(["generate", *arguments, "-o", "named.mp4"]) == 0
    assert (folder / "piped.mp4").read_bytes() == (folder / "named.mp4").read_bytes()
    assert not (folder / "-").exists()
    capsysbinary.readouterr()
    assert main(["generate", *arguments, "-o", "-", "--json"]) == 2
    assert b"-o - writes the video to stdout, which is used by --json" in capsysbinary.readouterr().err


@pytest.mark.parametrize("sources", [("rocket.png", "rocket.png"), ("--prompt", "a fox", "--prompt", "an owl")])
def test_stdout_takes_one_video(generate, folder, sources):
    ran = generate("-o", "-", images=sources)
    assert ran.code == 2
    assert "-o - writes one video to stdout, but 2 were requested" in ran.err
    assert "tmp" not in ran.err


@pytest.mark.parametrize("arguments", [["--version"], ["generate", "rocket.png", "--json", "--width=1"]])
def test_a_reader_that_goes_ends_the_run_quietly(image, folder, arguments):
    script = "import sys; from kinema.cli import main; sys.exit(main())"
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments], stdout=writer, stderr=subprocess.PIPE, check=False, cwd=folder
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_several_stills_load_the_model_once_and_go_into_a_folder(generate, folder):
    draw(folder / "cat.png", seed=1)
    (folder / "videos").mkdir()
    ran = generate("-o", "videos", images=("rocket.png", "cat.png"))
    assert ran.out.splitlines() == ["videos/rocket.mp4", "videos/cat.mp4"]
    assert ran.err.count("loaded in") == 1
    assert "1/2 rocket.png" in ran.err
    assert "2/2 cat.png" in ran.err
    assert names(folder / "videos") == ["cat.mp4", "rocket.mp4"]


def test_a_template_names_videos_and_contact_sheets(generate, folder):
    draw(folder / "cat.png", seed=1)
    ran = generate(
        "-o", "{index}-{stem}-{seed}.webp", "--contact-sheet", "{stem}-all.png", images=("rocket.png", "cat.png")
    )
    assert ran.out.splitlines() == ["1-rocket-7.webp", "2-cat-7.webp"]
    assert {"rocket-all.png", "cat-all.png"} <= set(names(folder))
    with Image.open(folder / "cat-all.png") as sheet:
        assert sheet.width > 2 * 64
        assert sheet.format == "PNG"


def test_a_trailing_slash_means_a_folder_and_no_ending_means_png(generate, folder):
    (folder / "videos").mkdir()
    assert generate("-o", "videos/").out == "videos/rocket.mp4\n"
    assert generate("-o", "frames").out == "frames\n"
    assert probe(folder / "frames").codec == "png"


def test_every_setting_of_a_request_is_an_option(generate, folder):
    given = {
        "seed": 5,
        "width": 72,
        "height": 80,
        "num_frames": 3,
        "num_inference_steps": 1,
        "fps": 9,
        "playback_fps": 11,
        "motion_bucket_id": 33,
        "noise_aug_strength": 0.25,
        "min_guidance_scale": 1.5,
        "max_guidance_scale": 2.5,
        "decode_chunk_size": 2,
        "fit": "pad",
    }
    assert set(given) == set(VideoRequest.model_fields) - {"model", *TEXT_TO_IMAGE_FIELDS}
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert generate("-o", "out.mp4", *options).code == 0
    request = read_recipe(folder / "out.mp4").request
    assert request.model_dump(exclude={"model", *TEXT_TO_IMAGE_FIELDS}) == given
    assert read_frames(folder / "out.mp4")[0].shape == (3, 80, 72, 3)


def test_a_model_lends_its_own_defaults(kinema, image, folder, tiny_svd):
    assert (
        kinema("generate", image, "--model", tiny_svd, "--width=64", "--height=64", "--num-inference-steps=1").code == 0
    )
    assert probe(folder / "rocket.mp4").frames == 4  # what the tiny UNet's configuration says


def test_a_seed_is_drawn_and_told(kinema, image, folder, tiny_svd):
    ran = kinema("generate", image, "--model", tiny_svd, *SMALL[:-1])
    seed = read_recipe(folder / "rocket.mp4").request.seed
    assert f"seed {seed}" in ran.err


def test_arithmetic_is_as_asked(generate, folder):
    assert generate("--dtype", "bfloat16", "--device", "cpu").code == 0
    assert read_recipe(folder / "rocket.mp4").dtype == "bfloat16"


def test_a_video_decoded_again_holds_the_second_attempt_alone(generate, folder, monkeypatch, tiny_svd):
    """No model fails in one arithmetic and not in another on demand, so this engine stands in."""
    real = importlib.import_module("kinema.engine").generate

    def twice(models, image, request):
        video = list(real(models, image, request))[-1]
        yield Step("decode", 1, 2, frames=255 - video.frames[:1], start=0)
        yield Step("decode", 1, 2, frames=video.frames[:1], start=0)
        yield Step("decode", 2, 2, frames=video.frames[1:], start=1)
        yield Video(video.frames, video.fps, video.recipe.model_copy(update={"events": ("decoded again in float32",)}))

    assert generate("-o", "plain.mp4").code == 0
    monkeypatch.setattr("kinema.engine.generate", twice)
    ran = generate("-o", "again.mp4")
    assert "warning: decoded again in float32" in ran.err
    assert np.array_equal(read_frames(folder / "plain.mp4")[0], read_frames(folder / "again.mp4")[0])


# What is told


def test_json_events_tell_the_whole_run(generate, folder):
    ran = generate("--json", "--contact-sheet", "all.png")
    assert (ran.code, ran.err) == (0, "")
    events = [json.loads(line) for line in ran.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert [kinds.index(kind) for kind in ("loaded", "start", "step", "done")] == sorted(
        kinds.index(kind) for kind in ("loaded", "start", "step", "done")
    )
    start = events[kinds.index("start")]
    assert start["seed"] == start["request"]["seed"] == 7
    steps = [(event["stage"], event["step"], event["total"]) for event in events if event["event"] == "step"]
    assert steps == [("encode", 1, 2), ("encode", 2, 2), ("denoise", 1, 2), ("denoise", 2, 2), ("decode", 2, 2)]
    done = events[-1]
    assert (done["path"], done["contact_sheet"], done["seed"]) == ("rocket.mp4", "all.png", 7)
    assert done["seconds"] > 0
    assert done["warnings"] == []


def test_json_tells_an_error_too(generate):
    ran = generate("--json", "--fps", "0")
    event = json.loads(ran.out)
    assert (event["event"], event["code"], event["param"]) == ("error", "invalid_request", "fps")
    assert event["exit_code"] == ran.code == 2
    assert ran.err == f"error: {event['message']}\n"


def test_quiet_tells_the_path_alone(generate):
    assert generate("--quiet") == (0, "rocket.mp4\n", "")


def test_cautions_come_before_the_work(generate):
    err = generate("--width=128", "--fps=2", "-o", "out.mp4", "--num-inference-steps=1").err
    assert "warning: the still (96×64) is enlarged" in err
    assert err.index("warning: ") < err.index("loading")


def test_an_unset_model_is_chosen_with_a_reason(kinema, image):
    ran = kinema("generate", image, "-o", "no/where.mp4", "--device", "cpu")
    assert ran.err.splitlines()[0] == "using model pocket: no CUDA device in use"


def test_the_environment_can_name_the_model(kinema, image, tiny_svd, monkeypatch):
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    ran = kinema("generate", image, *SMALL)
    assert ran.code == 0
    assert "tiny-svd on cpu" in ran.err


def test_a_terminal_shows_bars_that_vanish(generate, terminal):
    with terminal:
        generate()
    screen = terminal.text
    for stage, count in (("encode", "2/2"), ("denoise", "2/2"), ("decode", "2/2")):
        assert stage in screen
        assert count in screen
    assert "━" in screen
    assert screen.count("denoise 1/2,") == 0  # no plain lines besides
    assert "2 frames of 64×64 at 7 fps, seed 7" in screen.rpartition("\x1b[?25h")[2]  # after the cursor is back


def test_a_simple_terminal_gets_plain_lines(generate, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with terminal:
        generate()
    screen = terminal.text
    assert "denoise 2/2" in screen
    assert "\x1b" not in screen


def test_colour_is_left_out_by_the_environment(generate, terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal:
        generate("--fps", "0")
    assert not re.search(r"\x1b\[[\d;]*3\d", terminal.text)


def test_errors_are_coloured_on_a_terminal(generate, terminal):
    with terminal:
        generate("--fps", "0")
    assert "\x1b[1;31merror: " in terminal.text


# What is refused

MISTAKES = {
    "no such still": (["nope.png"], 2, "there is no file nope.png; check the name and the folder"),
    "no picture": (["text.txt"], 2, "text.txt is no picture that is known here; give a JPEG, PNG or WebP"),
    "cut short": (["cut.png"], 2, "cut.png is damaged or cut short"),
    "a folder as still": (["full"], 2, "full is a folder; give one picture inside it"),
    "out of range": (["rocket.png", "--fps=500"], 2, "fps 500 is out of range: 1 to 120"),
    "no multiple of 8": (["rocket.png", "--width=100"], 2, "width 100 is not a multiple of 8; use 96 or 104"),
    "no such choice": (["rocket.png", "--fit=zoom"], 2, "fit 'zoom' is invalid: input should be 'crop', 'pad' or"),
    "no number": (["rocket.png", "--seed=abc"], 2, "seed 'abc' is invalid: input should be a valid integer"),
    "no such option": (["rocket.png", "--frames=3"], 2, "no such option: --frames (Possible options: "),
    "no still": (["--seed=3"], 2, "neither an image nor a prompt was passed; pass one of them"),
    "a still and a prompt": (["rocket.png", "--prompt=a boat"], 2, "both an image and a prompt were passed; remove"),
    "an empty prompt": (["--prompt= "], 2, "prompt ' ' is empty; describe the image"),
    "a painter's setting": (["rocket.png", "--scheduler=euler"], 2, "scheduler only applies with a prompt"),
    "a still to keep": (["rocket.png", "--save-image=a.png"], 2, "--save-image only applies with --prompt"),
    "a painter as model": (["rocket.png", "--model=sd-2.1-base"], 3, "sd-2.1-base draws stills from prompts"),
    "unknown ending": (["rocket.png", "-o", "x.avi"], 2, "x.avi ends in .avi, which can't be written; use .mp4"),
    "a file for a folder": (["rocket.png", "-o", "photo.webp/no/x.mp4"], 2, "photo.webp is not a folder"),
    "full folder": (["rocket.png", "-o", "full"], 2, "the folder full is not empty; name a new one"),
    "one file for two": (["rocket.png", "cut2.png", "-o", "x.mp4"], 2, "x.mp4 is one file, but there are 2 inputs"),
    "one name for two": (["rocket.png", "rocket.png"], 2, "rocket.mp4 is the path of more than one result"),
    "unknown field": (["rocket.png", "-o", "{stme}.mp4"], 2, "unknown field {stme} in {stme}.mp4; expected one of "),
    "the still itself": (["photo.webp", "-o", "photo.webp"], 2, "photo.webp is the input and would be"),
    "the sheet on the still": (["rocket.png", "--contact-sheet=rocket.png"], 2, "rocket.png is the input and would be"),
    "sheet of another kind": (["rocket.png", "--contact-sheet=a.jpg"], 2, "a.jpg must end in .png; use a.png"),
    "too quick for a gif": (["rocket.png", "-o", "a.gif", "--fps=90"], 2, "gif plays at most 50 frames/s, not 90"),
    "no such model": (["rocket.png", "--model=svdxt"], 3, "there is no model 'svdxt'; did you mean svd-xt?"),
    "no SVD": (["rocket.png", "--model=full"], 3, "full has no model_index.json"),
    "offline": (["rocket.png", "--model=some/one"], 3, "some/one is not on this machine, and HF_HUB_OFFLINE forbids"),
    "no such device": (["rocket.png", "--device=cuda:77"], 2, "there is no device 'cuda:77' here; there is "),
    "no such dtype": (["rocket.png", "--dtype=fp16"], 2, "dtype 'fp16' is invalid; expected auto (float16 on GPUs, "),
    "too large": (
        ["rocket.png", "--width=2048", "--height=2048", "--num-frames=128", "--decode-chunk-size=128"],
        4,
        "128 frames of 2048×2048 need about",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_a_line_and_leaves_nothing(kinema, folder, image, tiny_svd, arguments, code, words):
    (folder / "text.txt").write_text("not a picture")
    (folder / "cut.png").write_bytes(image.read_bytes()[:300])
    draw(folder / "cut2.png")
    draw(folder / "photo.webp")
    (folder / "full").mkdir()
    (folder / "full" / "x").touch()
    before = names(folder)
    model = [] if any("--model" in argument for argument in arguments) else ["--model", tiny_svd]
    ran = kinema("generate", *arguments, *model)
    assert ran.code == code
    assert ran.out == ""
    error = ran.err[ran.err.index("error: ") :]
    assert words in error
    assert error.count("\n") == 1
    assert "Traceback" not in ran.err
    assert names(folder) == before
    assert names(folder / "full") == ["x"]


def test_all_stills_are_checked_before_the_model_is_loaded(generate, folder):
    ran = generate(images=("rocket.png", "nope.png"))
    assert ran.code == 2
    assert "loading" not in ran.err
    assert names(folder) == ["rocket.png"]


def test_a_setting_of_the_machine_is_refused_by_its_name(kinema, image, monkeypatch):
    monkeypatch.setenv("KINEMA_DEVICE", "tpu")
    ran = kinema("generate", image)
    assert (ran.code, ran.err) == (
        2,
        "error: KINEMA_DEVICE 'tpu' is invalid; expected auto, cuda, cuda:N, mps or cpu\n",
    )


def test_a_model_that_gives_no_video_is_refused_and_leaves_nothing(kinema, image, folder, tmp_path_factory):
    broken = make_tiny_svd(tmp_path_factory.mktemp("weights") / "nan")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: np.full_like(t, np.nan) if "decoder" in name else t for name, t in tensors.items()}, weights)
    ran = kinema("generate", image, "--model", broken, *SMALL)
    assert ran.code == 5
    assert ran.err.splitlines()[-1].startswith("error: the decoder gave NaN or infinity in torch.float32")
    assert names(folder) == ["rocket.png"]


def test_a_defect_is_shown_whole(generate, monkeypatch):
    def fail(*_args):
        raise RuntimeError("nobody thought of this")

    monkeypatch.setattr("kinema.media.image.open_image", fail)
    ran = generate()
    assert ran.code == 70
    assert "Traceback" in ran.err
    assert "RuntimeError: nobody thought of this" in ran.err

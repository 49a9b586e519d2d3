import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from cli_inputs import SMALL, write_image
from PIL import Image
from safetensors.numpy import load_file, save_file

from kinema.cli import main
from kinema.media.video import Video
from kinema.media.video_writer import probe, read_frames, read_recipe
from kinema.steps import Restart, Step, drive
from kinema.values import MAX_SEED, TEXT_TO_IMAGE_FIELDS, VideoRequest
from tiny import make_tiny_svd


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


# Output files


def test_generate_prints_only_path_to_stdout_and_plain_lines_to_stderr(generate, folder):
    result = generate("-o", "out.mp4")
    assert (result.code, result.out) == (0, "out.mp4\n")
    lines = result.err.splitlines()
    assert "rocket.png: 2 frames of 64×64, 2 steps, seed 7" in lines
    assert "denoise 2/2" in lines
    assert re.fullmatch(r"denoise 1/2, \d+\.\d s left", lines[lines.index("denoise 2/2") - 1])
    assert "\x1b" not in result.err
    assert probe(folder / "out.mp4").frames == 2


def test_default_output_is_named_after_the_image(generate, folder):
    assert generate().out == "rocket.mp4\n"
    assert file_names(folder) == ["rocket.mp4", "rocket.png"]


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        ([], "rocket.mp4"),
        (["-o", "rocket.mp4"], "rocket.mp4"),
        (["-o", "{stem}.gif"], "rocket.gif"),
        (["--contact-sheet", "all.png"], "all.png"),
    ],
)
def test_existing_file_is_overwritten_only_with_force(generate, folder, arguments, file):
    (folder / file).write_text("old")
    rejected = generate(*arguments)
    assert rejected.code == 2
    assert f"{file} already exists; add --force to overwrite it" in rejected.err
    assert (folder / file).read_text() == "old"
    assert file_names(folder) == sorted([file, "rocket.png"])
    assert generate(*arguments, "--force").code == 0
    assert (folder / file).read_bytes() != b"old"


def test_missing_folders_are_created_after_validation(generate, folder):
    result = generate("-o", "new/videos/{stem}.mp4", "--contact-sheet", "sheets/", "--fps=500")
    assert (result.code, file_names(folder)) == (2, ["rocket.png"])
    assert generate("-o", "new/videos/{stem}.mp4", "--contact-sheet", "sheets/").out == "new/videos/rocket.mp4\n"
    assert file_names(folder / "sheets") == ["rocket.png"]


def test_tilde_in_paths_is_the_home_folder(generate, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "home").mkdir()
    (folder / "rocket.png").rename(folder / "home" / "rocket.png")
    result = generate("-o", "~/videos/", images=("~/rocket.png",))
    assert result.out == f"{folder}/home/videos/rocket.mp4\n"
    assert file_names(folder) == ["home"]


def test_output_dash_writes_video_to_stdout(image, folder, tiny_svd, capsysbinary):
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
def test_output_dash_with_two_videos_is_rejected(generate, folder, sources):
    result = generate("-o", "-", images=sources)
    assert result.code == 2
    assert "-o - writes one video to stdout, but 2 were requested" in result.err
    assert "tmp" not in result.err


@pytest.mark.parametrize("arguments", [["--version"], ["generate", "rocket.png", "--json", "--width=1"]])
def test_closed_stdout_exits_141_without_message(image, folder, arguments):
    script = "import sys; from kinema.cli import main; sys.exit(main())"
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], stdout=writer, stderr=subprocess.PIPE, check=False, cwd=folder
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


def test_several_images_load_the_model_once_and_write_to_a_folder(generate, folder):
    write_image(folder / "cat.png", seed=1)
    (folder / "videos").mkdir()
    result = generate("-o", "videos", images=("rocket.png", "cat.png"))
    assert result.out.splitlines() == ["videos/rocket.mp4", "videos/cat.mp4"]
    assert result.err.count("loaded in") == 1
    assert "1/2 rocket.png" in result.err
    assert "2/2 cat.png" in result.err
    assert file_names(folder / "videos") == ["cat.mp4", "rocket.mp4"]


def test_output_template_names_videos_and_contact_sheets(generate, folder):
    write_image(folder / "cat.png", seed=1)
    result = generate(
        "-o", "{index}-{stem}-{seed}.webp", "--contact-sheet", "{stem}-all.png", images=("rocket.png", "cat.png")
    )
    assert result.out.splitlines() == ["1-rocket-7.webp", "2-cat-7.webp"]
    assert {"rocket-all.png", "cat-all.png"} <= set(file_names(folder))
    with Image.open(folder / "cat-all.png") as sheet:
        assert sheet.width > 2 * 64
        assert sheet.format == "PNG"


def test_output_with_trailing_slash_is_folder_and_without_extension_is_png(generate, folder):
    (folder / "videos").mkdir()
    assert generate("-o", "videos/").out == "videos/rocket.mp4\n"
    assert generate("-o", "frames").out == "frames\n"
    assert probe(folder / "frames").codec == "png"


def test_every_request_field_has_an_option(generate, folder):
    parameters = {
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
        "fit": "crop",
        "crop_position": 0.25,
        "interpolate": 2,
        "upscale": 1,
    }
    assert set(parameters) == set(VideoRequest.model_fields) - {"model", "loop", *TEXT_TO_IMAGE_FIELDS}
    options = [part for name, value in parameters.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert generate("-o", "out.mp4", "--loop", *options).code == 0
    request = read_recipe(folder / "out.mp4").request
    assert request.model_dump(exclude={"model", *TEXT_TO_IMAGE_FIELDS}) == {**parameters, "loop": True}
    assert read_frames(folder / "out.mp4")[0].shape == (6, 80, 72, 3)  # 3 generated, 3 between


def test_unset_options_use_the_model_defaults(kinema, image, folder, tiny_svd):
    assert (
        kinema("generate", image, "--model", tiny_svd, "--width=64", "--height=64", "--num-inference-steps=1").code == 0
    )
    assert probe(folder / "rocket.mp4").frames == 4  # what the tiny UNet's configuration says


def test_size_option_sets_width_and_height(kinema, image, folder, tiny_svd):
    options = "--model", tiny_svd, "--num-frames=1", "--num-inference-steps=1"
    assert kinema("generate", image, "--size=72×64", *options).code == 0
    info = probe(folder / "rocket.mp4")
    assert (info.width, info.height) == (72, 64)


def test_random_seed_is_printed(kinema, image, folder, tiny_svd):
    result = kinema("generate", image, "--model", tiny_svd, *SMALL[:-1])
    seed = read_recipe(folder / "rocket.mp4").request.seed
    assert f"seed {seed}" in result.err


def test_dtype_option_is_used(generate, folder):
    assert generate("--dtype", "bfloat16", "--device", "cpu").code == 0
    assert read_recipe(folder / "rocket.mp4").dtype == "bfloat16"


def test_restarted_decode_writes_only_second_attempt(generate, folder, monkeypatch, tiny_svd):
    """A fake engine restarts decoding, because no tiny model fails in one dtype only."""
    engine_generate = importlib.import_module("kinema.engine").generate

    def restart_decode(pipeline, image, request, *_):
        video = drive(engine_generate(pipeline, image, request))
        yield Step("decode", 1, 2, frames=255 - video.frames[:1])
        yield Restart("decode", "decoded again in float32")
        yield Step("decode", 1, 2, frames=video.frames[:1])
        yield Step("decode", 2, 2, frames=video.frames[1:])
        return Video(video.frames, video.fps, video.recipe.model_copy(update={"events": ("decoded again in float32",)}))

    assert generate("-o", "plain.mp4").code == 0
    monkeypatch.setattr("kinema.engine.generate", restart_decode)
    result = generate("-o", "again.mp4")
    assert "decode begins again: decoded again in float32" in result.err
    assert "warning: decoded again in float32" in result.err
    assert np.array_equal(read_frames(folder / "plain.mp4")[0], read_frames(folder / "again.mp4")[0])


# Reports


def test_json_prints_events_of_the_run(generate, folder):
    result = generate("--json", "--contact-sheet", "all.png")
    assert (result.code, result.err) == (0, "")
    events = [json.loads(line) for line in result.out.splitlines()]
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


def test_json_prints_error_event(generate):
    result = generate("--json", "--fps", "0")
    event = json.loads(result.out)
    assert (event["event"], event["code"], event["param"]) == ("error", "invalid_request", "fps")
    assert event["exit_code"] == result.code == 2
    assert result.err == f"error: {event['message']}\n"


def test_quiet_prints_only_the_path(generate):
    assert generate("--quiet") == (0, "rocket.mp4\n", "")


def test_warnings_are_printed_before_loading(generate):
    err = generate("--width=128", "--fps=2", "-o", "out.mp4", "--num-inference-steps=1").err
    assert "warning: the image (96×64) is enlarged" in err
    assert err.index("warning: ") < err.index("loading")


def test_default_model_is_reported_with_reason(kinema, image):
    result = kinema("generate", image, *SMALL)
    assert result.err.splitlines()[0] == "using model pocket: the device is cpu, not a CUDA GPU"


def test_model_from_environment_is_used(kinema, image, tiny_svd, monkeypatch):
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    result = kinema("generate", image, *SMALL)
    assert result.code == 0
    assert "tiny-svd on cpu" in result.err


def test_terminal_shows_transient_progress_bars(generate, terminal):
    with terminal:
        generate()
    screen = terminal.text
    for stage, count in (("encode", "2/2"), ("denoise", "2/2"), ("decode", "2/2")):
        assert stage in screen
        assert count in screen
    assert "━" in screen
    assert screen.count("denoise 1/2,") == 0  # no plain lines besides
    assert "2 frames of 64×64 at 7 fps, seed 7" in screen.rpartition("\x1b[?25h")[2]  # after the cursor is back


def test_dumb_terminal_gets_plain_lines(generate, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with terminal:
        generate()
    screen = terminal.text
    assert "denoise 2/2" in screen
    assert "\x1b" not in screen


def test_no_color_disables_colour(generate, terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal:
        generate("--fps", "0")
    assert not re.search(r"\x1b\[[\d;]*3\d", terminal.text)


def test_errors_are_coloured_on_a_terminal(generate, terminal):
    with terminal:
        generate("--fps", "0")
    assert "\x1b[1;31merror: " in terminal.text


# Errors

INVALID_ARGUMENTS = {
    "missing image": (["nope.png"], 2, "file nope.png not found; check the name and the folder"),
    "not an image": (["text.txt"], 2, "text.txt is not a supported image; use a JPEG, PNG, WebP, HEIC or AVIF"),
    "truncated": (["cut.png"], 2, "cut.png is damaged or truncated"),
    "folder without images": (["full"], 2, "the folder full has no images (.avif, .heic, .heif, .hif, .jpeg,"),
    "out of range": (["rocket.png", "--fps=500"], 2, "fps 500 is out of range: 1 to 120"),
    "not a multiple of 8": (["rocket.png", "--width=100"], 2, "width 100 is not a multiple of 8; use 96 or 104"),
    "invalid choice": (["rocket.png", "--fit=zoom"], 2, "fit 'zoom' is invalid: use one of crop, pad, stretch"),
    "invalid on-error": (["rocket.png", "--on-error=x"], 2, "--on-error 'x' is invalid: 'x' is not one of 'continue'"),
    "no videos": (["rocket.png", "--num-videos=0"], 2, "--num-videos 0 is too low; use at least 1"),
    "crf is no number": (["rocket.png", "--crf=best"], 2, "--crf 'best' is not an integer"),
    "not a number": (["rocket.png", "--seed=abc"], 2, "seed 'abc' is not an integer; use 0 to"),
    "unknown option": (["rocket.png", "--frames=3"], 2, "no such option: --frames (Possible options: "),
    "no image": (["--seed=3"], 2, "neither an image nor a prompt was passed; pass one of them"),
    "image and prompt": (["rocket.png", "--prompt=a boat"], 2, "both an image and a prompt were passed; remove"),
    "blank prompt": (["--prompt= "], 2, "prompt is empty; describe the image"),
    "scheduler without prompt": (["rocket.png", "--scheduler=euler"], 2, "scheduler only applies with a prompt"),
    "save-image without prompt": (["rocket.png", "--save-image=a.png"], 2, "--save-image only applies with --prompt"),
    "image model as video model": (["rocket.png", "--model=sd-2.1-base"], 3, "generates images, not videos"),
    "unknown extension": (["rocket.png", "-o", "x.avi"], 2, "x.avi has the unsupported extension .avi; use .mp4"),
    "a file for a folder": (["rocket.png", "-o", "photo.webp/no/x.mp4"], 2, "photo.webp is not a folder"),
    "non-empty folder": (["rocket.png", "-o", "full"], 2, "the folder full is not empty; use a new one"),
    "one file for two": (["rocket.png", "cut2.png", "-o", "x.mp4"], 2, "x.mp4 is one file, but there are 2 videos"),
    "one name for two": (["rocket.png", "rocket.png"], 2, "rocket.mp4 is the path of more than one result"),
    "unknown field": (["rocket.png", "-o", "{stme}.mp4"], 2, "unknown field {stme} in {stme}.mp4; expected one of "),
    "output at image path": (["photo.webp", "-o", "photo.webp"], 2, "photo.webp is the input and would be"),
    "contact sheet at image path": (["rocket.png", "--contact-sheet=rocket.png"], 2, "rocket.png is the input and"),
    "contact sheet extension": (["rocket.png", "--contact-sheet=a.jpg"], 2, "a.jpg must end in .png; use a.png"),
    "crf of gif": (["rocket.png", "-o", "a.gif", "--crf=20"], 2, "gif has no crf; use .mp4 or .webm"),
    "crf out of range": (["rocket.png", "--crf=52"], 2, "crf 52 is out of range: 1 to 51 for mp4; lower is better"),
    "inexact rate": (["rocket.png", "--playback-fps=7.12345"], 2, "playback_fps 7.12345 can't be stored exactly"),
    "seed too high": (["rocket.png", "--num-videos=2", f"--seed={MAX_SEED}"], 2, f"use at most {MAX_SEED - 1}"),
    "stdin twice": (["-", "-"], 2, "- reads one image from stdin, but was passed twice"),
    "sheet of two images": (["rocket.png", "cut2.png", "--sheet=a.png"], 2, "of one image, but 2 were passed"),
    "sheet of a prompt": (["--prompt=a boat", "--sheet=a.png"], 2, "of one image, but a prompt was passed"),
    "sheet extension": (["rocket.png", "--sheet=a.jpg"], 2, "the sheet a.jpg must end in .png; use a.png"),
    "sheet at path of video": (
        ["rocket.png", "--sheet={stem}.png", "--contact-sheet={stem}.png", "--num-videos=1", "--motions=40"],
        2,
        "rocket.png is the input and would be overwritten",
    ),
    "motions without sheet": (["rocket.png", "--motions=40"], 2, "--motions only applies with --sheet"),
    "motion out of range": (["rocket.png", "--sheet=a.png", "--motions=40,2000"], 2, "motion_bucket_id '2000' is out"),
    "motion twice": (["rocket.png", "--sheet=a.png", "--motions=4", "--motion-bucket-id=9"], 2, "both passed; remove"),
    "sheet too large": (["rocket.png", "--sheet=a.png", "--num-videos=34"], 2, "would have 102 videos; at most 100"),
    "unknown on-error": (["rocket.png", "--on-error=skip"], 2, "'skip' is not one of"),
    "fps too high for gif": (["rocket.png", "-o", "a.gif", "--fps=90"], 2, "gif supports at most 50 frames/s, not 90"),
    "unknown model": (["rocket.png", "--model=svdxt"], 3, "model 'svdxt' not found; did you mean svd-xt?"),
    "not an SVD": (["rocket.png", "--model=full"], 3, "full has no model_index.json"),
    "offline": (["rocket.png", "--model=some/one"], 3, "some/one is not downloaded, and HF_HUB_OFFLINE is set"),
    "invalid size": (["rocket.png", "--size=576"], 2, "size '576' is invalid; expected width x height, such as 1024x"),
    "size and width": (["rocket.png", "--size=64x64", "--width=64"], 2, "size '64x64' and width 64 are both set; re"),
    "size out of range": (["rocket.png", "--size=64x2056"], 2, "height 2056 is out of range: 64 to 2048"),
    "unavailable device": (["rocket.png", "--device=cuda:77"], 2, "device 'cuda:77' is not available; use auto, "),
    "unknown dtype": (["rocket.png", "--dtype=fp16"], 2, "dtype 'fp16' is invalid; expected auto (float16 on GPUs, "),
    "too large": (
        ["rocket.png", "--width=2048", "--height=2048", "--num-frames=128", "--decode-chunk-size=128"],
        4,
        "25 frames of 2048×2048 need at least",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), INVALID_ARGUMENTS.values(), ids=INVALID_ARGUMENTS)
def test_invalid_arguments_print_one_line_and_leave_no_file(kinema, folder, image, tiny_svd, arguments, code, message):
    (folder / "text.txt").write_text("not a picture")
    (folder / "cut.png").write_bytes(image.read_bytes()[:300])
    write_image(folder / "cut2.png")
    write_image(folder / "photo.webp")
    (folder / "full").mkdir()
    (folder / "full" / "x").touch()
    before = file_names(folder)
    model = [] if any("--model" in argument for argument in arguments) else ["--model", tiny_svd]
    result = kinema("generate", *arguments, *model)
    assert result.code == code
    assert result.out == ""
    error = result.err[result.err.index("error: ") :]
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in result.err
    assert file_names(folder) == before
    assert file_names(folder / "full") == ["x"]


def test_missing_second_image_is_rejected_before_loading_with_on_error_stop(generate, folder):
    result = generate("--on-error=stop", images=("rocket.png", "nope.png"))
    assert result.code == 2
    assert "loading" not in result.err
    assert file_names(folder) == ["rocket.png"]


def test_invalid_setting_is_rejected_by_variable_name(kinema, image, monkeypatch):
    monkeypatch.setenv("KINEMA_DEVICE", "tpu")
    result = kinema("generate", image)
    assert (result.code, result.err) == (
        2,
        (
            "error: KINEMA_DEVICE 'tpu' is invalid; expected auto (the first available of cuda, mps, cpu), cuda, "
            "cuda:N, mps or cpu\n"
        ),
    )


def test_nan_from_video_model_exits_5_and_leaves_no_file(kinema, image, folder, tmp_path_factory):
    broken = make_tiny_svd(tmp_path_factory.mktemp("weights") / "nan")
    weights = broken / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: np.full_like(t, np.nan) if "decoder" in name else t for name, t in tensors.items()}, weights)
    result = kinema("generate", image, "--model", broken, *SMALL)
    assert result.code == 5
    assert result.err.splitlines()[-1].startswith("error: the decoder's output has NaN or infinity in torch.float32")
    assert file_names(folder) == ["rocket.png"]


def test_unexpected_exception_prints_traceback_and_exits_70(generate, monkeypatch):
    def fail(*_args):
        raise RuntimeError("unexpected")

    monkeypatch.setattr("kinema.media.image.open_image", fail)
    result = generate()
    assert result.code == 70
    assert "Traceback" in result.err
    assert "RuntimeError: unexpected" in result.err

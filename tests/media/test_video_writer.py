import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from fractions import Fraction
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from kinema.errors import InsufficientDisk, InvalidRequest, RecipeError, VideoError
from kinema.media import reencode as reencode_module
from kinema.media.video import Video
from kinema.media.video_writer import (
    VideoWriter,
    check_target,
    encode_video,
    probe,
    read_first_frame,
    read_frames,
    read_recipe,
    save_video,
)
from kinema.recipe import FileEncoding

KINDS = ["a.mp4", "a.webm", "a.gif", "a.webp", "a"]
FILES = KINDS[:-1]
FLAT = [
    (0, 0, 0),
    (255, 255, 255),
    (128, 128, 128),
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (200, 120, 40),
    (30, 90, 160),
]


def digest(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def boxes(data):
    """Return the names of an mp4's top-level boxes, in order."""
    names, at = [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4], "big")
    assert at == len(data)
    return names


# Formats


@pytest.mark.parametrize("name", KINDS)
def test_every_format_keeps_frames_and_frame_rate(tmp_path, frames, name):
    path = save_video(frames, tmp_path / name, 7)
    decoded, fps = read_frames(path)
    assert (path, fps, decoded.shape, decoded.dtype) == (tmp_path / name, 7, frames.shape, np.uint8)
    assert np.abs(decoded.astype(int) - frames).mean() < (6 if name == "a.gif" else 2)


@pytest.mark.parametrize("name", KINDS)
def test_read_first_frame_equals_first_of_read_frames(tmp_path, frames, name):
    path = save_video(frames, tmp_path / name, 7)
    assert np.array_equal(read_first_frame(path), read_frames(path)[0][0])


def test_read_first_frame_of_truncated_file(tmp_path, frames):
    path = save_video(np.tile(frames, (10, 1, 1, 1)), tmp_path / "a.mp4", 7)
    first = read_first_frame(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(VideoError, match=r"can't be read|truncated"):
        read_frames(path)
    assert np.array_equal(read_first_frame(path), first)


def test_png_frames_are_exact(tmp_path, frames):
    folder = save_video(frames, tmp_path / "frames", 7)
    assert sorted(file.name for file in folder.iterdir()) == [f"{i:03d}.png" for i in range(6)]
    assert np.array_equal(read_frames(folder)[0], frames)


def test_mp4_is_h264_yuv420p_bt709_faststart(tmp_path, frames):
    info = probe(save_video(frames, tmp_path / "a.mp4", 7))
    assert (info.container, info.codec, info.pix_fmt) == ("mp4", "h264", "yuv420p")
    assert (info.width, info.height, info.frames) == (96, 64, 6)
    assert (info.matrix, info.primaries, info.transfer, info.color_range) == ("bt709", "bt709", "bt709", "limited")
    assert info.faststart


def test_mp4_moov_is_before_mdat(frames, recipe):
    names = boxes(encode_video(frames, ".mp4", 7, recipe))
    assert names.index("moov") < names.index("mdat")


def test_probe_detects_moov_after_mdat(tmp_path, frames):
    data = encode_video(frames, ".mp4", 7)
    moov = data.index(b"moov") - 4
    mdat = data.index(b"mdat") - 4
    last = tmp_path / "last.mp4"
    last.write_bytes(data[:moov] + data[mdat:] + data[moov:mdat])
    assert probe(last).faststart is False


def test_webm_is_vp9_yuv420p_bt709(tmp_path, frames):
    info = probe(save_video(frames, tmp_path / "a.webm", 7))
    assert (info.container, info.codec, info.pix_fmt, info.frames) == ("webm", "vp9", "yuv420p", 6)
    assert (info.matrix, info.primaries, info.transfer, info.color_range) == ("bt709", "bt709", "bt709", "limited")
    assert info.faststart is None


@pytest.mark.parametrize("fps", [1, 7, 24, 30, 120])
@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_frame_rate_is_exact(tmp_path, frames, name, fps):
    info = probe(save_video(frames, tmp_path / name, fps))
    assert (info.fps, info.duration) == (Fraction(fps), Fraction(6, fps))


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(2997, 125), Fraction(15, 2)])
@pytest.mark.parametrize("name", KINDS)
def test_fractional_frame_rate_is_exact(tmp_path, frames, recipe, name, rate):
    request = recipe.request.changed(playback_fps=f"{rate.numerator}/{rate.denominator}")
    path = save_video(frames, tmp_path / name, request.frame_rate, recipe.model_copy(update={"request": request}))
    info = probe(path)
    assert (info.fps, info.frames, info.duration) == (rate, 6, 6 / rate)
    assert read_frames(path)[1] == read_recipe(path).request.frame_rate == float(rate)


@pytest.mark.parametrize("fps", [1, 6, 7, 30, 120, Fraction(30000, 1001)])
def test_mp4_frame_times_are_exact(tmp_path, frames, fps):
    import av

    with av.open(save_video(frames, tmp_path / "a.mp4", fps)) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == Fraction(6, fps)
        assert [frame.pts * frame.time_base for frame in container.decode(stream)] == [
            Fraction(i) / fps for i in range(6)
        ]


# Quality and order of the frames


@pytest.mark.parametrize(("name", "high", "low"), [("a.mp4", 1, 51), ("a.webm", 0, 63)])
def test_lower_crf_gives_larger_and_more_exact_file(tmp_path, frames, recipe, name, high, low):
    sizes, errors = [], []
    for crf in (high, None, low):
        path = save_video(frames, tmp_path / f"{crf}-{name}", 7, recipe, encoding=FileEncoding(crf=crf))
        assert read_recipe(path).encoding == FileEncoding(crf=crf)
        sizes.append(path.stat().st_size)
        errors.append(np.abs(read_frames(path)[0].astype(int) - frames).mean())
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert len(set(errors)) == 3


@pytest.mark.parametrize(
    ("name", "crf", "message"),
    [
        ("a.mp4", 0, "crf 0 is out of range: 1 to 51 for mp4"),
        ("a.webm", 64, "crf 64 is not an integer from 0 to 63"),
        ("a.mp4", 52, "crf 52 is out of range: 1 to 51 for mp4"),
        ("a.gif", 20, "gif has no crf; use .mp4 or .webm, or remove crf 20"),
        ("a", 20, "a folder of png has no crf"),
    ],
)
def test_crf_outside_range_of_format_is_rejected(tmp_path, frames, recipe, name, crf, message):
    with pytest.raises(InvalidRequest, match=message) as error:
        Video(frames, 7, recipe).save(tmp_path / name, crf=crf)
    assert error.value.param == "crf"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "a.mp4", "a.gif"])
def test_boomerang_plays_frames_forward_and_backward_without_repeating_ends(tmp_path, frames, recipe, name):
    path = Video(frames, 7, recipe).save(tmp_path / name, boomerang=True)
    shown, _ = read_frames(path)
    order = np.abs(shown[:, None].astype(int) - frames[None]).mean(axis=(2, 3, 4)).argmin(axis=1)
    assert order.tolist() == [0, 1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert read_recipe(path).encoding == FileEncoding(boomerang=True)


@pytest.mark.parametrize(("count", "length"), [(1, 1), (2, 2), (3, 4)])
def test_boomerang_of_few_frames(tmp_path, frames, recipe, count, length):
    path = Video(frames[:count], 7, recipe).save(tmp_path / "a", boomerang=True)
    assert len(read_frames(path)[0]) == length


@pytest.mark.parametrize("frames_in_memory", [1, 3, 100])
@pytest.mark.parametrize(("crf", "boomerang"), [(30, False), (None, True), (30, True)])
def test_reencoded_file_has_the_bytes_that_its_recipe_gives(
    tmp_path, frames, recipe, crf, boomerang, frames_in_memory, monkeypatch
):
    monkeypatch.setattr(reencode_module, "CHUNK_BYTES", frames[0].nbytes * frames_in_memory)
    stored = save_video(frames, tmp_path / "stored.mp4", 7.5, recipe)
    (tmp_path / "other.mp4").write_bytes(reencode_module.reencode(stored, crf, boomerang=boomerang))
    encoding = read_recipe(tmp_path / "other.mp4").encoding
    assert encoding == FileEncoding(crf=crf, boomerang=boomerang, from_stored=True)
    again = save_video(frames, tmp_path / "again.mp4", 7.5, recipe, encoding=encoding)
    assert again.read_bytes() == (tmp_path / "other.mp4").read_bytes()
    assert probe(again).frames == (10 if boomerang else 6)
    assert probe(again).fps == Fraction(15, 2)


@pytest.mark.parametrize(
    ("name", "fps", "unit"), [("a.gif", 7, 10), ("a.gif", 50, 10), ("a.webp", 7, 1), ("a.webp", 30, 1)]
)
def test_rounding_of_frame_times_does_not_accumulate(tmp_path, frames, name, fps, unit):
    with Image.open(save_video(np.concatenate([frames, frames[::-1]]), tmp_path / name, fps)) as image:
        end = 0
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            assert image.info["loop"] == 0
            end += image.info["duration"]
            if name == "a.gif" or i < 5:  # the repeated frame is merged
                assert abs(end - 1000 * (i + 1) / fps) <= unit / 2 or i >= 5
    assert abs(end - 1000 * 12 / fps) <= unit / 2


@pytest.mark.parametrize("name", KINDS)
def test_flat_colours_are_preserved(tmp_path, name):
    patches = np.array(FLAT, np.uint8).reshape(2, 4, 3).repeat(32, 0).repeat(32, 1)
    decoded, _ = read_frames(save_video(np.stack([patches] * 3), tmp_path / name, 7))
    assert decoded.shape == (3, 64, 128, 3) or name in {"a.gif", "a.webp"}
    centres = decoded[:, 16::32, 16::32].reshape(len(decoded), 8, 3).astype(int)
    assert np.abs(centres - FLAT).max() <= 3


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_red_luma_follows_bt709(tmp_path, name):
    """Red's luma is 16 + 219 × 0.2126 = 62.6 in BT.709 (ITU-R BT.709-6, item 3.2), but 81 in BT.601."""
    import av

    red = np.zeros((1, 64, 64, 3), np.uint8)
    red[..., 0] = 255
    with av.open(save_video(red, tmp_path / name, 7)) as container:
        luma = next(container.decode(video=0)).to_ndarray()[:64]
    assert np.abs(luma.astype(int) - 63).max() <= 1


@pytest.mark.parametrize("name", KINDS)
def test_single_frame_is_written(tmp_path, frames, name):
    path = save_video(frames[:1], tmp_path / name, 7)
    assert read_frames(path)[0].shape == (1, 64, 96, 3)


@pytest.mark.parametrize("name", KINDS)
def test_smallest_size_is_written(tmp_path, frames, name):
    assert probe(save_video(frames[:, :64, :64], tmp_path / name, 7)).width == 64


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_merged_frames_are_restored_on_reading(tmp_path, frames, recipe, name):
    repeated = frames[[0, 1, 1, 1, 2, 3]]
    decoded, fps = read_frames(save_video(repeated, tmp_path / name, 7, recipe))
    assert (fps, len(decoded)) == (7, 6)
    assert np.abs(decoded.astype(int) - repeated).mean(axis=(1, 2, 3)).max() < 6


# Determinism


@pytest.mark.parametrize("name", KINDS)
def test_chunked_and_single_write_give_same_bytes(tmp_path, frames, recipe, name):
    whole = save_video(frames, tmp_path / f"1{name}", 7, recipe)
    with VideoWriter(tmp_path / f"2{name}", 7) as writer:
        writer.write(frames[:1])
        writer.write(frames[1:4])
        writer.write(frames[4:])
        chunked = writer.finish(recipe)
    assert digest(whole) == digest(chunked)


def test_other_process_gives_same_bytes(tmp_path, frames):
    np.save(tmp_path / "frames.npy", frames)
    script = (
        "import sys, hashlib, numpy as np\n"
        "from kinema.media.video_writer import encode_video\n"
        "frames = np.load(sys.argv[1])\n"
        "for kind in sys.argv[2:]: print(hashlib.sha256(encode_video(frames, kind, 7)).hexdigest())"
    )
    kinds = [".mp4", ".webm", ".gif", ".webp"]
    output = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "frames.npy", *kinds], capture_output=True, text=True, check=True
    ).stdout.split()
    assert output == [hashlib.sha256(encode_video(frames, kind, 7)).hexdigest() for kind in kinds]


def test_repeated_encoding_gives_same_bytes():
    """At a size and length at which x264's macroblock tree is not deterministic with AVX-512."""
    down, right = np.mgrid[:320, :576]
    frames = np.stack([np.stack([3 * right + 9 * i, 5 * down, right + down + i], -1) for i in range(7)]).astype(
        np.uint8
    )
    assert len({encode_video(frames, ".mp4", 7) for _ in range(12)}) == 1


def test_mp4_has_no_creation_time_and_no_encoder_name(frames):
    data = encode_video(frames, ".mp4", 7)
    header = data.index(b"mvhd") + 8
    assert data[header : header + 8] == bytes(8)  # creation and modification time
    assert b"Lavf" not in data


# Recipe


@pytest.mark.parametrize("name", KINDS)
def test_recipe_is_read_from_every_format(tmp_path, frames, recipe, name):
    assert read_recipe(save_video(frames, tmp_path / name, 7, recipe)) == recipe


def test_recipe_is_read_from_one_png_of_folder(tmp_path, frames, recipe):
    assert read_recipe(save_video(frames, tmp_path / "a", 7, recipe) / "003.png") == recipe


def test_recipe_of_finish_overrides_first_recipe(tmp_path, frames, recipe):
    other = recipe.model_copy(update={"dtype": "bfloat16"})
    with VideoWriter(tmp_path / "a.mp4", 7, recipe) as writer:
        writer.write(frames)
        assert read_recipe(writer.finish(other)) == other


def test_webp_has_wellformed_xmp(frames, recipe, tmp_path):
    with Image.open(save_video(frames, tmp_path / "a.webp", 7, recipe)) as image:
        (text,) = ET.fromstring(image.info["xmp"]).iter("{urn:kinema:}recipe")
    assert json.loads(text.text) == recipe.model_dump(mode="json")


@pytest.mark.parametrize("name", KINDS)
def test_file_without_recipe_is_rejected(tmp_path, frames, name):
    with pytest.raises(RecipeError, match="has no recipe"):
        read_recipe(save_video(frames, tmp_path / name, 7))


def test_invalid_recipe_is_rejected(tmp_path, frames, recipe):
    folder = save_video(frames, tmp_path / "a", 7, recipe)
    good = json.loads((folder / "recipe.json").read_text())
    seedless = {**good, "request": {k: v for k, v in good["request"].items() if k != "seed"}}
    out_of_range = {**good, "request": good["request"] | {"width": 1001}}
    for text, message in [
        ("holiday", "not a recipe"),
        ("[]", "not a recipe"),
        (json.dumps(good | {"surprise": 1}), "surprise"),
        (json.dumps(out_of_range), "1001"),
        (json.dumps(seedless), "without a seed"),
        (
            json.dumps({name: value for name, value in good.items() if name != "format"}),
            rf"has a recipe of format 1, written by Kinema {re.escape(good['kinema'])}; this version reads format 2",
        ),
        (json.dumps(good | {"format": 3}), "has a recipe of format 3"),
    ]:
        (folder / "recipe.json").write_text(text)
        with pytest.raises(RecipeError, match=message):
            read_recipe(folder)


# Writing in chunks


def test_file_appears_only_after_finish(tmp_path, frames):
    with VideoWriter(tmp_path / "a.mp4", 7) as writer:
        writer.write(frames)
        assert list(tmp_path.iterdir()) == []
        writer.finish()
        assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit, SystemExit])
@pytest.mark.parametrize("name", KINDS)
def test_error_during_writing_leaves_no_file_and_no_thread(tmp_path, frames, name, error):
    with pytest.raises(error), VideoWriter(tmp_path / name, 7) as writer:  # noqa: PT012
        writer.write(frames)
        raise error
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kinema-encoder")]


def test_closed_generator_leaves_no_file(tmp_path, frames):
    def work():
        with VideoWriter(tmp_path / "a.mp4", 7) as writer:
            for frame in frames:
                writer.write(frame[None])
                yield
            writer.finish()

    generator = work()
    next(generator)
    generator.close()
    assert list(tmp_path.iterdir()) == []


def test_restart_discards_written_frames(tmp_path, frames):
    with VideoWriter(tmp_path / "a.mp4", 7) as writer:
        writer.write(np.zeros_like(frames))
        writer.restart()
        writer.write(frames)
        writer.finish()
    assert digest(tmp_path / "a.mp4") == digest(save_video(frames, tmp_path / "b.mp4", 7))


def test_write_copies_frames(tmp_path, frames):
    changing = frames.copy()
    with VideoWriter(tmp_path / "a", 7) as writer:
        writer.write(changing)
        changing[:] = 0
        writer.finish()
    assert np.array_equal(read_frames(tmp_path / "a")[0], frames)


def test_write_returns_before_encoding_ends(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 512, 512, 3), dtype=np.uint8)
    with VideoWriter(tmp_path / "a.mp4", 7) as writer:
        writer.write(noise)
        encoding = [thread.name for thread in threading.enumerate() if thread.name.startswith("kinema-encoder")]
        assert not writer._jobs[0].done()
        assert len(encoding) == 1


def test_encoder_error_is_raised_by_finish(tmp_path, frames):
    with VideoWriter(tmp_path / "a.mp4", 7) as writer:
        writer.write(frames[:, :, :95])
        with pytest.raises(VideoError, match="even width and height, got 95×64"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_encoder_error_is_raised_by_next_write(tmp_path, frames):
    with VideoWriter(tmp_path / "a.mp4", 7) as writer:
        writer.write(frames[:, :, :95])
        writer._jobs[0].exception()
        with pytest.raises(VideoError, match="even"):
            writer.write(frames[:, :, :95])


def test_finish_without_frames_is_rejected(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 7) as writer, pytest.raises(VideoError, match="at least one frame"):
        writer.finish()


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 64, 64, 3)), np.zeros((64, 64, 3), np.uint8), np.zeros((0, 64, 64, 3), np.uint8)]
)
def test_invalid_frames_are_rejected(tmp_path, frames):
    with pytest.raises(VideoError, match=r"expected frames of uint8|the frames are empty"):
        save_video(frames, tmp_path / "a.mp4", 7)


def test_frames_of_other_size_are_rejected(tmp_path, frames):
    with VideoWriter(tmp_path / "a.mp4", 7) as writer:
        writer.write(frames)
        with pytest.raises(VideoError, match="size of the first, 96×64"):
            writer.write(frames[:, :32])


def test_existing_file_is_replaced_only_by_complete_one(tmp_path, frames):
    path = save_video(frames[:2], tmp_path / "a.mp4", 7)
    before = digest(path)
    with pytest.raises(RuntimeError), VideoWriter(path, 7) as writer:  # noqa: PT012
        writer.write(frames)
        raise RuntimeError
    assert digest(path) == before
    save_video(frames, path, 7)
    assert probe(path).frames == 6


def test_file_mode_follows_umask(tmp_path, frames):
    old = os.umask(0o022)
    try:
        assert save_video(frames, tmp_path / "a.mp4", 7).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


# Targets that can't be written


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/a.mp4", r"does not exist; create it"),
        ("file.txt/a.mp4", r"is not a folder"),
        ("a.avi", r"\.avi.*\.mp4, \.webm, \.gif, \.webp.*folder of png"),
        ("a.png", r"folder of png"),
        ("folder.mp4", r"is a folder; choose another name"),
        ("full", r"not empty; use a new one"),
        ("file", r"is a file"),
        ("", r"not empty"),
        (("x" * 300) + ".mp4", r"can't be written"),
    ],
)
def test_invalid_target_is_rejected_before_writing(tmp_path, name, message):
    (tmp_path / "file.txt").touch()
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    for function in (check_target, lambda path: VideoWriter(path, 7)):
        with pytest.raises(VideoError, match=message):
            function(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["/proc/a.mp4", "/dev/null", "/dev/stdout"])
@pytest.mark.skipif(not os.path.exists("/proc"), reason="needs Linux's /proc")  # noqa: PTH110
def test_device_and_proc_targets_are_rejected(path):
    with pytest.raises(VideoError):
        check_target(path)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX permissions")
def test_folder_without_permission_is_rejected(tmp_path):
    tmp_path.chmod(0o500)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may write everywhere
    try:
        with pytest.raises(VideoError, match="permissions"):
            check_target(tmp_path / "a.mp4")
    finally:
        os.seteuid(user)


def test_check_target_writes_nothing_and_accepts_upper_case(tmp_path):
    assert check_target(str(tmp_path / "A.MP4")) == tmp_path / "A.MP4"
    assert list(tmp_path.iterdir()) == []


def test_png_frames_are_written_to_empty_folder(tmp_path, frames):
    (tmp_path / "a").mkdir()
    assert probe(save_video(frames, tmp_path / "a", 7)).frames == 6


@pytest.mark.parametrize(("name", "fps"), [("a.gif", 51), ("a.webp", 91), ("a.mp4", 0)])
def test_unsupported_frame_rate_is_rejected(tmp_path, name, fps):
    with pytest.raises(VideoError, match=str(fps)):
        check_target(tmp_path / name, fps)


def test_full_disk_is_reported_by_check_target(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(InsufficientDisk, match=r"only 1 MB .* free disk space"):
        check_target(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", KINDS)
def test_full_disk_during_writing_leaves_no_file(tmp_path, frames, monkeypatch, name):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InsufficientDisk, match="free disk space"):
        save_video(frames, tmp_path / name, 7)
    assert list(tmp_path.iterdir()) == []


def test_interrupt_during_writing_leaves_no_file(tmp_path, frames, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_video(frames, tmp_path / "a", 7)
    assert list(tmp_path.iterdir()) == []


def test_folder_deleted_during_writing_is_reported(tmp_path, frames):
    (tmp_path / "out").mkdir()
    with VideoWriter(tmp_path / "out" / "a.mp4", 7) as writer:
        writer.write(frames)
        (tmp_path / "out").rmdir()
        with pytest.raises(VideoError, match="can't be written"):
            writer.finish()


# Files that can't be read


@pytest.mark.parametrize("read", [probe, read_frames, read_first_frame, read_recipe])
def test_files_without_video_are_rejected(tmp_path, read):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("just some text " * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n")
    for name, message in [
        ("none.mp4", "not found"),
        ("empty.mp4", "empty"),
        ("text.mp4", "can't be read"),
        ("list.mp4", "can't be read"),
        ("folder", "without png"),
        ("/dev/null", "regular file"),
        ("x" * 300, "can't be read"),
    ]:
        with pytest.raises(VideoError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize("fraction", [0.03, 0.6])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
def test_truncated_video_is_rejected(tmp_path, frames, name, fraction):
    path = save_video(frames, tmp_path / name, 7)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(VideoError, match=r"can't be read|damaged|no video stream|truncated"):
        read_frames(path)


def test_png_folder_of_several_sizes_is_rejected(tmp_path, frames):
    folder = save_video(frames, tmp_path / "a", 7)
    Image.new("RGB", (40, 40)).save(folder / "002.png")
    with pytest.raises(VideoError, match="several sizes"):
        read_frames(folder)


@pytest.mark.parametrize("kind", ["mp4", ".avi", ""])
def test_unknown_extension_is_rejected(frames, kind):
    with pytest.raises(VideoError, match=r"\.mp4"):
        encode_video(frames, kind, 7)


def test_import_loads_no_codec():
    script = "import sys, kinema.media.video, kinema.media.image; print({'av', 'torch', 'httpx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

import base64
import re

import numpy as np
import pytest

from kinema.errors import InvalidRequest, VideoError
from kinema.media.video import Video
from kinema.media.video_writer import probe, read_frames, read_recipe


@pytest.fixture
def video(frames, recipe):
    return Video(frames, 7, recipe)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.webp", "a"])
def test_saved_video_has_frame_rate_and_recipe(tmp_path, video, name):
    path = video.save(tmp_path / name)
    assert read_recipe(path) == video.recipe
    frames, fps = read_frames(path)
    assert (frames.shape, fps) == (video.frames.shape, 7)


def test_video_seed_and_repr(video):
    assert video.seed == 7
    assert repr(video) == "<Video 96×64, 6 frames at 7/s, seed 7>"


def test_notebook_html_has_autoplaying_video(tmp_path, video):
    html = video._repr_html_()
    tag, data = re.fullmatch(r'<video ([^>]*) src="data:video/mp4;base64,([^"]+)"></video>', html).groups()
    assert {"autoplay", "loop", "muted", "controls"} <= set(tag.split())
    (tmp_path / "a.mp4").write_bytes(base64.b64decode(data))
    info = probe(tmp_path / "a.mp4")
    assert (info.codec, info.pix_fmt, info.frames, info.faststart) == ("h264", "yuv420p", 6, True)


def test_contact_sheet_has_all_frames_in_order(frames, recipe):
    shades = np.stack([np.full((64, 96, 3), 40 * (i + 1), np.uint8) for i in range(5)])
    sheet = np.asarray(Video(shades, 7, recipe).contact_sheet(columns=2))
    assert sheet.shape == (3 * 68 + 4, 2 * 100 + 4, 3)
    shown = [int(sheet[4 + 68 * row + 32, 4 + 100 * column + 48, 0]) for row in range(3) for column in range(2)]
    assert shown == [40, 80, 120, 160, 200, 0]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 2), (6, 3), (14, 4), (25, 5)])
def test_default_contact_sheet_is_about_square_in_frames(recipe, count, columns):
    sheet = Video(np.zeros((count, 64, 96, 3), np.uint8), 7, recipe).contact_sheet()
    assert sheet.width == columns * 100 + 4


def test_contact_sheet_of_large_frames_is_scaled_down(recipe):
    sheet = Video(np.zeros((4, 576, 1024, 3), np.uint8), 7, recipe).contact_sheet(4)
    assert sheet.width <= 2048
    assert 0.55 < sheet.height / (sheet.width / 4) < 0.6


@pytest.mark.parametrize("columns", [0, -1, 7])
def test_contact_sheet_with_invalid_columns_is_rejected(video, columns):
    with pytest.raises(InvalidRequest, match="1 to 6") as error:
        video.contact_sheet(columns)
    assert error.value.param == "columns"


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((6, 64, 96, 3)), r"got float64 \[6, 64, 96, 3\]; for values from 0 to 1 use \(frames \* 255\)"),
        (np.zeros((0, 64, 96, 3), np.uint8), r"the frames are empty \(shape \[0, 64, 96, 3\]\); pass at least one"),
        (np.zeros((64, 96, 3), np.uint8), r"expected frames of uint8 .*, got uint8 \[64, 96, 3\]$"),
    ],
)
def test_video_of_invalid_frames_is_rejected(frames, message, recipe):
    with pytest.raises(VideoError, match=message):
        Video(frames, 7, recipe)


def test_video_is_immutable(video):
    with pytest.raises(AttributeError):
        video.fps = 8

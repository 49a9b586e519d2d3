"""Thumbnails and contact sheets of finished videos."""

import asyncio
import io
from types import SimpleNamespace

import numpy as np
import pytest
from server_work import make_recipe

from kinema.errors import InvalidRequest
from kinema.media.video import Video
from kinema.media.video_reader import probe, read_frames, read_recipe
from kinema.recipe import FileEncoding
from kinema.serving.image_service import ImageService
from kinema.serving.image_tasks import contact_sheet
from kinema.serving.video_variants import MAX_ENCODINGS, VideoVariants, requested_encoding
from kinema.values import VideoRequest


@pytest.fixture
def queue(tmp_path):
    """A queue whose jobs all have the same video of 32 frames."""
    frames = np.random.default_rng(1).integers(0, 255, (32, 128, 128, 3), np.uint8)
    video = Video(frames, 7, make_recipe(VideoRequest(model="pocket", seed=1))).save(tmp_path / "video.mp4")
    return SimpleNamespace(result=lambda _: video)


def test_concurrent_requests_create_variant_once(queue):
    images = ImageService()

    async def ask(variants):
        path, _ = await variants.file(queue, images, None, "a job", "spritesheet")
        return path.stat().st_ino

    async def both():
        variants = VideoVariants()
        return await asyncio.gather(ask(variants), ask(variants))

    first, second = asyncio.run(both())
    images.close()
    assert first == second


def test_encodings_are_created_once_and_few_are_kept(queue):
    images, variants = ImageService(), VideoVariants()

    async def ask(crf, *, boomerang=False):
        encoding = requested_encoding("video", crf, boomerang=boomerang)
        path, kind = await variants.file(queue, images, None, "a job", "video", encoding)
        assert kind == "video/mp4"
        return path, path.stat().st_ino

    async def work():
        first, again = await asyncio.gather(ask(40, boomerang=True), ask(40, boomerang=True))
        assert first == again
        assert probe(first[0]).frames == 62
        assert read_recipe(first[0]).encoding == FileEncoding(crf=40, boomerang=True, from_stored=True)
        assert (await ask(18))[0] == queue.result("")
        later = [(await ask(crf))[0] for crf in range(41, 41 + MAX_ENCODINGS)]
        assert sorted(queue.result("").parent.glob("video-*.mp4")) == later
        assert queue.result("").exists()

    asyncio.run(work())
    images.close()


def test_video_beyond_limits_of_encoder_is_rejected_with_remedy(queue, monkeypatch):
    monkeypatch.setattr("kinema.serving.image_service.ENCODER_MB", 1)
    images = ImageService()
    encoding = requested_encoding("video", 30, boomerang=False)
    with pytest.raises(InvalidRequest, match="download it without crf and boomerang"):
        asyncio.run(VideoVariants().file(queue, images, None, "a job", "video", encoding))
    images.close()
    assert [path.name for path in queue.result("").parent.iterdir()] == ["video.mp4"]


def test_contact_sheet_from_file_equals_that_of_video(queue):
    frames, fps = read_frames(queue.result(""))
    whole = io.BytesIO()
    Video(frames, fps, make_recipe(VideoRequest(model="pocket", seed=1))).contact_sheet().save(
        whole, "JPEG", quality=85
    )
    assert contact_sheet(queue.result("")) == whole.getvalue()

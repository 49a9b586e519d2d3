"""Thumbnails and contact sheets of finished videos."""

import asyncio
import io
from types import SimpleNamespace

import numpy as np
import pytest
from server_work import make_recipe

from kinema.media.video import Video
from kinema.media.video_reader import read_frames
from kinema.serving.image_service import ImageService
from kinema.serving.image_tasks import contact_sheet
from kinema.serving.video_variants import VideoVariants
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


def test_contact_sheet_from_file_equals_that_of_video(queue):
    frames, fps = read_frames(queue.result(""))
    whole = io.BytesIO()
    Video(frames, fps, make_recipe(VideoRequest(model="pocket", seed=1))).contact_sheet().save(
        whole, "JPEG", quality=85
    )
    assert contact_sheet(queue.result("")) == whole.getvalue()

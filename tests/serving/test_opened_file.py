"""A video that is deleted while it is sent arrives completely; one deleted before is not found."""

import asyncio

import pytest

from kinema.errors import JobNotFound, JobUnfinished
from kinema.serving.image_service import ImageService
from kinema.serving.opened_file import OpenedFile
from kinema.serving.video_variants import VideoVariants

CONTENT = bytes(range(256)) * 2000


def send_response(response, **headers):
    """Send a response; return its status and body."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        await asyncio.sleep(60)

    scope = {"type": "http", "method": "GET", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    asyncio.run(response(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(CONTENT)
    return path


def test_file_deleted_after_open_is_sent_completely(video):
    response = OpenedFile(video, media_type="video/mp4")
    video.unlink()
    assert send_response(response) == (200, CONTENT)


def test_range_of_deleted_file_is_sent(video):
    response = OpenedFile(video, media_type="video/mp4")
    video.unlink()
    assert send_response(response, range="bytes=300-399999") == (206, CONTENT[300:400_000])


def test_missing_file_raises_job_not_found(video):
    video.unlink()
    with pytest.raises(JobNotFound, match="was deleted"):
        OpenedFile(video, media_type="video/mp4")


class DeletingQueue:
    """A queue whose job is deleted just after `result` returns."""

    def __init__(self, video):
        self.video = video

    def result(self, _):
        self.video.unlink(missing_ok=True)
        self.video.parent.rmdir()
        return self.video


@pytest.mark.parametrize("variant", ["thumbnail", "spritesheet"])
def test_variant_of_deleted_video_raises_job_not_found(video, variant):
    folder = video.parent / "job"
    folder.mkdir()
    moved = video.rename(folder / video.name)
    images = ImageService()
    with pytest.raises(JobNotFound, match="was deleted"):
        asyncio.run(VideoVariants().file(DeletingQueue(moved), images, None, "job", variant))
    images.close()


def test_variant_of_unfinished_job_raises_job_unfinished():
    class UnfinishedQueue:
        def result(self, _):
            raise JobUnfinished("it runs")

    with pytest.raises(JobUnfinished):
        asyncio.run(VideoVariants().file(UnfinishedQueue(), None, None, "job", "thumbnail"))

"""Signed copies of videos: what happens if one can't be stored."""

import asyncio

import pytest

from kinema.errors import CredentialsError, JobNotFound
from kinema.serving.signed_videos import SignedVideos
from kinema.settings import Settings


@pytest.fixture
def signed(tmp_path):
    signed = SignedVideos(Settings(data_dir=tmp_path / "data"))
    yield signed
    signed.close()


def test_copy_that_cannot_be_stored_is_an_error_of_credentials(signed, tmp_path):
    video = tmp_path / f"{'v' * 245}.mp4"  # with a prefix, the name is too long
    video.write_bytes(b"video")
    with pytest.raises(CredentialsError, match=r"signed copy of video_1 can't be stored \(File name too long\); make"):
        asyncio.run(signed.file(None, None, "video_1", video))
    video.unlink()
    with pytest.raises(JobNotFound, match="'video_1' was deleted"):
        asyncio.run(signed.file(None, None, "video_1", video))

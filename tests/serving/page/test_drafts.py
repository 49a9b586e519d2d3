"""Drafts: stills that were given on the page and not submitted yet."""

import os
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from kinema.jobs.job_files import atomic_file
from kinema.serving.body_quota import BodyQuota
from kinema.serving.image_service import ImageService
from kinema.serving.page.page_routes import Drafts, routes


@pytest.fixture
def images():
    service = ImageService()
    yield service
    service.close()


def test_a_draft_leaves_alone_what_others_are_writing(tmp_path, png, images):
    drafts = Drafts(tmp_path, 0, images)
    other = tmp_path / "drafts" / ("b" * 64)
    with atomic_file(other) as aside:
        aside.write_bytes(b"half of it")
        drafts.add(png)
    assert other.read_bytes() == b"half of it"


def test_what_was_half_written_a_day_ago_goes(tmp_path, png, images):
    drafts = Drafts(tmp_path, 0, images)
    left = tmp_path / "drafts" / ".part-0-left"
    left.write_bytes(b"half of it")
    os.utime(left, (time.time() - 90_000,) * 2)
    drafts.add(png)
    assert not left.exists()


def test_an_old_file_that_is_no_draft_stays(tmp_path, png, images):
    drafts = Drafts(tmp_path, 0, images)
    letter = tmp_path / "drafts" / "letter.txt"
    letter.write_text("someone's")
    os.utime(letter, (time.time() - 90_000,) * 2)
    drafts.add(png)
    assert letter.exists()


def test_no_draft_is_kept_where_the_disk_has_less_than_its_reserve(tmp_path, png, images):
    app = FastAPI()
    app.include_router(routes(None, Drafts(tmp_path, 1e9, images), BodyQuota(20, 0), lambda: False))
    answer = TestClient(app).post("/studio/images", content=png)
    assert answer.status_code == 507
    assert "must stay free (KINEMA_MIN_FREE_GB); delete videos or free disk space" in answer.json()["error"]["message"]
    assert list((tmp_path / "drafts").iterdir()) == []

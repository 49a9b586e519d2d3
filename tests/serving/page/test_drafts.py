"""Drafts: images that were uploaded on the page but not submitted yet."""

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


def test_add_keeps_a_recent_partial_file(tmp_path, png, images):
    drafts = Drafts(tmp_path, 0, images)
    other = tmp_path / "drafts" / ("b" * 64)
    with atomic_file(other) as partial:
        partial.write_bytes(b"half of it")
        drafts.add(png)
    assert other.read_bytes() == b"half of it"


def test_add_deletes_a_day_old_partial_file(tmp_path, png, images):
    drafts = Drafts(tmp_path, 0, images)
    partial = tmp_path / "drafts" / ".part-0-name"
    partial.write_bytes(b"half of it")
    os.utime(partial, (time.time() - 90_000,) * 2)
    drafts.add(png)
    assert not partial.exists()


def test_add_keeps_an_old_file_that_is_not_a_draft(tmp_path, png, images):
    drafts = Drafts(tmp_path, 0, images)
    letter = tmp_path / "drafts" / "letter.txt"
    letter.write_text("someone's")
    os.utime(letter, (time.time() - 90_000,) * 2)
    drafts.add(png)
    assert letter.exists()


def test_upload_below_the_disk_reserve_returns_507_and_stores_nothing(tmp_path, png, images):
    app = FastAPI()
    app.include_router(routes(None, Drafts(tmp_path, 1e9, images), BodyQuota(20, 0), lambda: False))
    response = TestClient(app).post("/studio/images", content=png)
    assert response.status_code == 507
    assert "must stay free (KINEMA_MIN_FREE_GB)" in response.json()["error"]["message"]
    assert list((tmp_path / "drafts").iterdir()) == []

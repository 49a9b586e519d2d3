"""A server with a safety check and blocked words refuses images and prompts before it stores anything."""

import base64
import os

import pytest
from server_process import start, stop, wait_for

from kinema.errors import ContentRefused, InvalidRequest
from kinema.serving.image_service import ImageService
from kinema.serving.lifespan import ServerState, trust_summary
from kinema.settings import Settings

ANY = 1e-30  # every score is above it


def test_decode_process_checks_images_and_keeps_the_network(png):
    images, strict = ImageService(0.8), ImageService(ANY)
    try:
        facts = images.inspect(png, lambda: False)
        pid = images.process.pid
        assert images.inspect(png + b" ", lambda: False) == facts
        assert images.process.pid == pid
        for _ in range(2):  # a refusal is not cached as a success
            with pytest.raises(ContentRefused):
                strict.inspect(png, lambda: False)
    finally:
        images.close()
        strict.close()


def test_summary_names_what_is_on(tmp_path):
    (tmp_path / "words").write_text("bomb\nhow to steal\n")
    assert trust_summary(Settings()) == (
        "content credentials: on, invisible watermark: on, safety check: off, blocked words: none"
    )
    changed = Settings(credentials="off", watermark="off", safety="video", blocked_words=tmp_path / "words")
    assert trust_summary(changed) == (
        "content credentials: off, invisible watermark: off, safety check: video (above 0.8), blocked words: 2"
    )


def test_server_does_not_start_without_package_or_file(monkeypatch, tmp_path):
    with pytest.raises(InvalidRequest, match=r"KINEMA_BLOCKED_WORDS: .*absent can't be read"):
        ServerState(Settings(data_dir=tmp_path, blocked_words=tmp_path / "absent"))
    monkeypatch.delenv("KINEMA_SAFETY", raising=False)
    with pytest.raises(InvalidRequest, match="do not read; set KINEMA_SAFETY in the environment"):
        ServerState(Settings(data_dir=tmp_path, safety="image", ray_address="head:6379"))
    monkeypatch.setattr("kinema.media.safety_check.PACKAGE", "kinema_absent_package")
    with pytest.raises(InvalidRequest, match=r"'\.\[safety\]'"):
        ServerState(Settings(data_dir=tmp_path, safety="image"))
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - also hidden files


@pytest.mark.slow
def test_server_refuses_images_and_prompts_and_stores_nothing(tmp_path, png):
    words = tmp_path / "words.txt"
    words.write_text("bomb\n")
    server = start(tmp_path / "data", safety="image", safety_threshold=ANY, blocked_words=words)
    try:
        with server.client() as client:
            files = {"input_reference": ("a.png", png)}
            url = "data:image/png;base64," + base64.b64encode(png).decode()
            refused = [
                (client.post("/v1/videos", data={"seed": "7"}, files=files), "input_reference"),
                (client.post("/v1/videos", json={"image": url}), "image"),
                (client.post("/generate", files={"image": ("a.png", png)}), "image"),
                (client.post("/v1/videos", json={"prompt": "a BOMB"}), "prompt"),
            ]
            assert [response.status_code for response, _ in refused] == [400] * 4
            errors = [response.json()["error"] for response, _ in refused]
            assert [(error["code"], error["param"]) for error in errors] == [
                ("content_refused", param) for _, param in refused
            ]
            page = client.post("/studio/images?language=ko", content=png)
            assert (page.status_code, page.json()["error"]["code"]) == (422, "content_refused")
            assert page.headers["content-language"] == "ko"
            video = client.post("/v1/videos", json={"prompt": "a boat", "motion_bucket_id": 1, "num_frames": 3}).json()
            assert wait_for(client, video["id"])["status"] == "completed"  # the work of the test checks nothing
            assert len(client.get("/v1/videos").json()["data"]) == 1
        assert list((server.data / "drafts").iterdir()) == []
        assert len(list((server.data / "images").iterdir())) == 1
        assert "safety check: image (above 1e-30), blocked words: 1" in server.log.read_text()
    finally:
        stop(server)

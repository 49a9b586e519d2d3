"""The /v1/videos API over a socket: requests, responses and errors."""

import base64
import io
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from heif_files import heic
from image_attacks import many_scans
from PIL import Image
from server_process import wait_for

from kinema.media.credentials.credential_check import check_credentials
from kinema.media.credentials.file_signer import FileSigner
from kinema.media.credentials.signing_keys import signing_keys
from kinema.media.video_writer import encode_video, read_frames, read_recipe
from kinema.recipe import FileEncoding
from kinema.serving.videos import make_app
from kinema.settings import Settings

QUICK = {"motion_bucket_id": "1", "num_frames": "3"}
SLOW = {"motion_bucket_id": "300", "num_inference_steps": "40"}


def create(client, png=None, **fields):
    files = None if png is None else {"input_reference": ("image.png", png, "image/png")}
    fields = QUICK | ({"prompt": "a rocket"} if png is None else {}) | fields
    return client.post("/v1/videos", data=fields, files=files)


def test_create_poll_and_download_video(client, png):
    asked = create(client, png, seed="42", prompt="on its pad", model="pocket")
    assert asked.status_code == 200
    video = asked.json()
    assert video["object"] == "video"
    assert (video["status"], video["seed"], video["size"], video["prompt"]) == ("queued", 42, "288x160", "on its pad")
    assert int(asked.headers["openai-poll-after-ms"]) > 0
    done = wait_for(client, video["id"])
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    assert done["expires_at"] > done["completed_at"] >= done["created_at"]
    content = client.get(f"/v1/videos/{video['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    assert (content.headers["x-kinema-seed"], content.headers["x-kinema-model"]) == ("42", "pocket")
    assert content.content[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("image", "fields", "size"),
    [((60, 80), {}, "160x288"), ((80, 80), {}, "224x224"), ((60, 80), {"size": "96x64"}, "96x64")],
)
def test_size_follows_the_image_unless_it_is_sent(client, image, fields, size):
    data = io.BytesIO()
    Image.new("RGB", image, "grey").save(data, "PNG")
    video = create(client, data.getvalue(), **fields).json()
    assert video["size"] == size
    assert wait_for(client, video["id"])["status"] == "completed"


def test_range_request_returns_part_of_video(client, png):
    video = wait_for(client, create(client, png).json()["id"])
    path = f"/v1/videos/{video['id']}/content"
    whole = client.get(path).content
    part = client.get(path, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert client.get(path, headers={"Range": f"bytes={len(whole) + 1}-"}).status_code == 416


@pytest.mark.parametrize(
    ("variant", "content_type", "size"), [("thumbnail", "WEBP", (64, 64)), ("spritesheet", "JPEG", (140, 140))]
)
def test_variants_are_images_of_the_video(client, png, variant, content_type, size):
    video = wait_for(client, create(client, png).json()["id"])
    response = client.get(f"/v1/videos/{video['id']}/content", params={"variant": variant})
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.size) == (content_type, size)


def test_download_with_crf_and_boomerang_is_another_file_of_the_same_video(client, png, tmp_path):
    url = f"/v1/videos/{wait_for(client, create(client, png).json()['id'])['id']}/content"
    plain = client.get(url).content
    response = client.get(url, params={"crf": 40, "boomerang": "true"})
    assert (response.status_code, response.headers["content-type"]) == (200, "video/mp4")
    (tmp_path / "a.mp4").write_bytes(response.content)
    assert read_recipe(tmp_path / "a.mp4").encoding == FileEncoding(crf=40, boomerang=True, from_stored=True)
    assert client.get(url).content == client.get(url, params={"crf": 18}).content == plain
    for params in ({"crf": 17}, {"crf": 52}, {"crf": 30, "variant": "thumbnail"}):
        assert client.get(url, params=params).json()["error"]["param"] == "crf"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/videos/{id}/content?crf=abc", "crf 'abc' is not an integer"),
        ("/v1/videos/{id}/content?crf=17", "crf 17 is too low; use at least 18"),
        ("/v1/videos/{id}/content?crf=52", "crf 52 is too high; use at most 51"),
        ("/v1/videos/{id}/content?boomerang=maybe", "boomerang 'maybe' is invalid; use true or false"),
        ("/v1/videos/{id}/content?variant=gif", "variant 'gif' is invalid; use 'video', 'thumbnail' or 'spritesheet'"),
        ("/v1/videos?order=up", "order 'up' is invalid; use 'asc' or 'desc'"),
    ],
)
def test_invalid_query_is_explained_in_plain_words(client, path, message):
    response = client.get(path.format(id=f"video_{0:032}"))
    assert (response.status_code, response.json()["error"]["message"]) == (400, message)


def test_data_url_and_file_upload_give_same_video(server, client, png):
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    asked = {"input_reference": {"image_url": url}, "seed": 5, "motion_bucket_id": 1, "num_frames": 3}
    by_json = wait_for(client, client.post("/v1/videos", json=asked).json()["id"])
    by_form = wait_for(client, create(client, png, seed="5").json()["id"])
    one, other = ((server.data / "jobs" / video["id"] / "video.mp4").read_bytes() for video in (by_json, by_form))
    assert one == other


def test_download_is_signed_and_the_stored_file_is_not(server, client, png, tmp_path):
    video = wait_for(client, create(client, png).json()["id"])["id"]
    stored = server.data / "jobs" / video / "video.mp4"
    before = stored.read_bytes()
    path = f"/v1/videos/{video}/content"
    with ThreadPoolExecutor(4) as pool:
        bodies = [response.content for response in pool.map(lambda _: client.get(path), range(4))]
    assert len(set(bodies)) == 1
    authority = httpx.get(f"{server.url}/.well-known/kinema-ca.pem", headers={"Host": "elsewhere.example"}).text
    check = check_credentials(bodies[0], None, authority)
    assert (check.state, check.title, len(check.ingredients)) == ("trusted", f"{video}.mp4", 1)
    assert check.recipe == read_recipe(stored).model_dump(mode="json")
    assert client.get(f"/studio/jobs/{video}/video.mp4", headers={"Range": "bytes=-9"}).content == bodies[0][-9:]
    again = client.get(path, params={"crf": 40}).content
    assert check_credentials(again, None, authority).recipe["encoding"]["crf"] == 40
    assert stored.read_bytes() == before
    (tmp_path / "signed.mp4").write_bytes(bodies[0])
    assert np.array_equal(read_frames(tmp_path / "signed.mp4")[0], read_frames(stored)[0])
    found = client.post("/v1/verify", files={"file": bodies[0]}).json()
    assert (found["verdict"], found["job"], found["job_exists"]) == ("authentic", video, True)
    client.delete(f"/v1/videos/{video}")
    assert not stored.parent.exists()
    assert client.post("/v1/verify", files={"file": bodies[0]}).json()["job_exists"] is False
    changed = bytearray(bodies[0])
    changed[-9] ^= 1
    found = client.post("/v1/verify", files={"file": bytes(changed)}).json()
    assert (found["verdict"], found["job"]) == ("tampered", None)


def test_job_is_named_only_if_the_server_itself_signed(server, client, png, tmp_path):
    video = wait_for(client, create(client, png).json()["id"])["id"]
    client.get(f"/v1/videos/{video}/content")
    shutil.copytree(server.data / "credentials", tmp_path / "credentials")
    (tmp_path / "credentials" / "signer.pem").unlink()
    keys = signing_keys(Settings(data_dir=tmp_path))  # another certificate of the same CA
    signed = FileSigner(keys).sign((server.data / "jobs" / video / "video.mp4").read_bytes(), None, f"{video}.mp4")
    found = client.post("/v1/verify", files={"file": signed.content}).json()
    assert (found["verdict"], found["job"], found["job_exists"]) == ("authentic", None, None)


def test_files_that_cannot_be_verified_are_rejected(client, png):
    for files, param in (({"file": b"no video"}, "file"), ({"image": png}, "image"), ({"sidecar": png}, "file")):
        error = client.post("/v1/verify", files=files).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_request", param)
        assert "kinema-verify" not in error["message"]
    error = client.post("/v1/verify", files={"foo": b"\xff"}).json()["error"]
    assert error["message"] == "foo must be text; only file and sidecar can be files"
    half = encode_video(np.zeros((2, 64, 64, 3), np.uint8), ".mp4", 7)[:900]
    error = client.post("/v1/verify", files={"file": half}).json()["error"]
    assert error["message"].startswith("the file can't be read as a video: it is incomplete or damaged")
    large = client.post("/v1/verify", files={"file": bytes(20_000_001)})
    assert large.status_code == 413
    assert (
        "KINEMA_MAX_BODY_MB); check the file with the command: kinema verify FILE" in large.json()["error"]["message"]
    )
    assert client.post("/v1/verify", json={"file": "a"}).status_code == 415
    assert client.post("/v1/verify", files={"file": png}).json()["verdict"] == "unknown"


def test_page_for_verification_is_in_both_languages(client):
    for language, word in (("en", "Verify a video"), ("ko", "영상 검증")):
        page = client.get("/studio/verify", headers={"Accept-Language": language})
        assert (page.status_code, f"<h1>{word}</h1>" in page.text) == (200, True)
        assert "default-src 'self'" in page.headers["content-security-policy"]


def test_aliases_set_parameters(client):
    fields = {"steps": "3", "cfg_scale": "2.5", "cond_aug": "0.1", "decoding_t": "2", "size": "320x192", "seconds": "2"}
    fields = {"prompt": "a rocket", "motion_scale": "0.004", "fps": "6", **fields}
    parameters = client.post("/v1/videos", data=fields).json()["parameters"]
    assert (parameters["num_inference_steps"], parameters["max_guidance_scale"]) == (3, 2.5)
    assert (parameters["noise_aug_strength"], parameters["decode_chunk_size"]) == (0.1, 2)
    assert (parameters["width"], parameters["height"], parameters["num_frames"]) == (320, 192, 12)
    assert parameters["motion_bucket_id"] == 1


def test_null_and_empty_values_use_model_defaults(client, png):
    parameters = create(client, png, seed="null", decode_chunk_size="", num_frames="null").json()["parameters"]
    assert (parameters["num_frames"], parameters["decode_chunk_size"]) == (14, 1)
    assert 0 <= parameters["seed"] < 2**32


def test_prompt_runs_text_to_image_stage(client):
    done = wait_for(client, create(client, prompt="a red balloon").json()["id"])
    assert done["status"] == "completed"
    assert "text_to_image" in done["stage_durations"]
    assert done["parameters"]["image_model"] == "pocket-t2i"


def test_title_overrides_prompt_as_title_but_is_no_prompt(client, png):
    assert create(client, png, title="Lift-off").json()["prompt"] == "Lift-off"
    generated = create(client, prompt="a red balloon", title="Lift-off").json()
    assert (generated["prompt"], generated["parameters"]["prompt"]) == ("Lift-off", "a red balloon")
    alone = client.post("/v1/videos", data={"title": "Lift-off"})
    assert (alone.status_code, alone.json()["error"]["param"]) == (400, "prompt")


def test_list_is_paged_in_both_orders(client):
    ids = [create(client).json()["id"] for _ in range(3)]
    newest = client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in newest["data"]] == ids[:0:-1]
    assert (newest["object"], newest["has_more"], newest["last_id"]) == ("list", True, ids[1])
    older = client.get("/v1/videos", params={"limit": 1, "after": ids[1]}).json()
    assert older["first_id"] == ids[0]
    oldest = client.get("/v1/videos", params={"order": "asc", "limit": 100, "after": ids[0]}).json()
    assert [video["id"] for video in oldest["data"]][:2] == ids[1:]


def test_cancelled_video_has_status_failed_and_code_cancelled(client, png):
    video = create(client, png, **SLOW).json()
    cancelled = client.post(f"/v1/videos/{video['id']}/cancel").json()
    assert (cancelled["status"], cancelled["error"]["code"]) == ("failed", "cancelled")
    assert client.post(f"/v1/videos/{video['id']}/cancel").json()["status"] == "failed"
    assert client.get(f"/v1/videos/{video['id']}/content").status_code == 409


def test_delete_removes_video_and_files(server, client, png):
    video = wait_for(client, create(client, png).json()["id"])
    folder = server.data / "jobs" / video["id"]
    assert folder.is_dir()
    deleted = client.delete(f"/v1/videos/{video['id']}").json()
    assert deleted == {"id": video["id"], "deleted": True, "object": "video.deleted"}
    assert client.get(f"/v1/videos/{video['id']}").status_code == 404
    assert not folder.exists()


def test_update_title_and_pin_by_form_or_json(client, png):
    video = wait_for(client, create(client, png, title="one").json()["id"])
    path = f"/v1/videos/{video['id']}"
    pinned = client.post(path, json={"pinned": True, "title": "other"}).json()
    assert pinned == video | {"pinned": True, "prompt": "other", "expires_at": None}
    start = int(time.time())
    unpinned = client.post(path, data={"pinned": "false"}).json()
    assert unpinned == client.get(path).json() == pinned | {"pinned": False, "expires_at": unpinned["expires_at"]}
    assert 0 <= unpinned["expires_at"] - start - 30 * 86_400 < 60


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "pinned", "title or pinned is required"),
        ({"title": " "}, "pinned", "title or pinned is required"),
        ({"pinned": "maybe"}, "pinned", "must be true or false"),
        ({"title": 5}, "title", "must be text"),
        ({"title": "a\0b"}, "title", "invalid character"),
        ({"title": "x" * 10_001}, "title", "10001 characters"),
        ({"pinned": True, "seed": 3}, "seed", "can't be changed; only title and pinned can"),
    ],
)
def test_invalid_update_is_rejected(client, fields, param, message):
    video = create(client).json()
    response = client.post(f"/v1/videos/{video['id']}", json=fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], message in error["message"]) == (400, param, True), error
    assert client.get(f"/v1/videos/{video['id']}").json()["pinned"] is False


def test_update_of_unknown_video_or_with_xml_is_rejected(client):
    assert client.post(f"/v1/videos/video_{'0' * 32}", json={"pinned": True}).status_code == 404
    path = f"/v1/videos/{create(client).json()['id']}"
    response = client.post(path, content=b"<a/>", headers={"Content-Type": "application/xml"})
    assert (response.status_code, list(response.json())) == (415, ["error"])


def test_idempotency_key_returns_same_video_and_rejects_other_request(client, png):
    key = {"Idempotency-Key": f"key-{time.time_ns()}"}
    files = {"input_reference": ("a.png", png)}
    first, second = (client.post("/v1/videos", data=QUICK, files=files, headers=key).json() for _ in range(2))
    assert first["id"] == second["id"]
    other = client.post("/v1/videos", data=QUICK | {"steps": "7"}, files=files, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


def test_events_stream_from_queued_to_done(client, png):
    video = create(client, png, motion_bucket_id="60", num_inference_steps="40").json()
    received = []
    with client.stream("GET", f"/v1/videos/{video['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                received.append([line[7:]])
            elif line.startswith("data: "):
                received[-1].append(line[6:])
    states = [json.loads(data) for name, data in received if name == "video"]
    assert states[-1]["status"] == "completed"
    assert {"encode", "denoise", "decode"} <= {state["stage"] for state in states}
    assert [state["progress"] for state in states] == sorted(state["progress"] for state in states)
    assert any(name == "preview" and data.startswith("data:image/jpeg;base64,") for name, data in received)
    assert received[-1][0] == "done"


def test_sync_returns_video_file(client, png):
    response = client.post("/v1/videos/sync", data=QUICK | {"seed": "3"}, files={"image": ("a.png", png)})
    assert (response.status_code, response.headers["x-kinema-seed"]) == (200, "3")
    assert response.content == client.get(f"/v1/videos/{response.headers['x-kinema-job']}/content").content


def test_content_has_the_time_of_the_video_and_not_of_a_copy(server, client, png):
    video = wait_for(client, create(client, png).json()["id"])
    for file in (server.data / "jobs" / video["id"]).iterdir():
        os.utime(file, (1e9, 1e9))
    for variant in ("video", "thumbnail"):
        response = client.get(f"/v1/videos/{video['id']}/content", params={"variant": variant})
        assert parsedate_to_datetime(response.headers["last-modified"]).timestamp() == video["completed_at"]


@pytest.mark.parametrize(("keep", "ends"), [("false", "failed"), ("true", "completed")])
def test_disconnect_cancels_job_unless_keep(client, png, keep, ends):
    fields = {"motion_bucket_id": "100", "num_inference_steps": "15", "num_frames": "3", "title": f"left {keep}"}

    def leave():
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{client.base_url}/v1/videos/sync", data=fields | {"keep": keep}, files={"image": ("a.png", png)},
                timeout=httpx.Timeout(10, read=0.5),
            )  # fmt: skip

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    listed = client.get("/v1/videos").json()["data"]
    video = next(video for video in listed if video["prompt"] == f"left {keep}")
    done = wait_for(client, video["id"])
    assert (done["status"], (done["error"] or {}).get("code")) == (ends, "cancelled" if ends == "failed" else None)


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("memory", 507, "insufficient_memory"),
        ("defect", 500, "internal_error"),
        ("killed", 500, "worker_died"),
        ("weights", 503, "hub_unreachable"),
        ("damaged", 500, "model_corrupt"),
    ],
)
@pytest.mark.parametrize("path", [pytest.param("/v1/videos/sync", marks=pytest.mark.slow), "/generate"])
def test_failed_job_returns_code_and_retry_after(client, png, path, model, status, code):
    response = client.post(path, data=QUICK | {"model": model}, files={"image": ("a.png", png)})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    # Waiting helps neither against a lack of memory nor against a damaged model.
    assert response.headers.get("retry-after") == ("5" if status == 503 else None)
    assert response.headers["x-kinema-model"] == model


def test_models_lists_offered_models(client):
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert {"pocket", "svd", "svd-xt", "svd-xt-1.1", "pocket-t2i"} <= models.keys()
    assert models["pocket"]["default"]
    assert models["svd-xt"]["licence"] == "Stability AI Community License"


def test_models_lists_owner_and_kind_of_added_models(tmp_path):
    app = make_app()
    svd, sd = tmp_path / "svd", tmp_path / "sd"
    for folder, pipeline in ((svd, "StableVideoDiffusionPipeline"), (sd, "StableDiffusionPipeline")):
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, "scheduler": ["diffusers", "X"]}))
    models = f"{svd},{sd},someone/theirs@v2"
    app.state.server = SimpleNamespace(settings=Settings(data_dir=tmp_path, model="owner/own", models=models))
    entries = {entry["id"]: entry for entry in TestClient(app).get("/v1/models").json()["data"]}
    facts = {name: (entry["owned_by"], entry["kind"]) for name, entry in entries.items()}
    expected = {
        "pocket": ("kinema", "video"),
        "pocket-t2i": ("kinema", "image_model"),
        "svd": ("stabilityai", "video"),
        "owner/own": ("owner", "video"),
        "someone/theirs@v2": ("someone", None),
        str(svd): ("local", "video"),
        str(sd): ("local", "image_model"),
    }
    assert {name: facts.get(name) for name in expected} == expected


INVALID = [
    ({}, "prompt", "an image or a prompt is required"),
    ({"prompt": "x", "width": "1001"}, "width", "use 1000 or 1008"),
    ({"prompt": "x", "seed": "abc"}, "seed", "seed 'abc' is not an integer"),
    ({"prompt": "x", "size": "big"}, "size", "such as 1024x576"),
    ({"prompt": "x", "size": "100000x100000"}, "size", None),
    ({"prompt": "x", "seconds": "999"}, "seconds", "128 frames"),
    ({"prompt": "x", "num_frames": "0"}, "num_frames", "1 to 128"),
    ({"prompt": "x", "bogus": "1"}, "bogus", "unknown parameter"),
    ({"prompt": "x", "steps": "2", "num_inference_steps": "3"}, "num_inference_steps", "remove one"),
    ({"prompt": "x", "model": "../../etc"}, "model", "not offered by this server"),
    ({"prompt": "x", "image_model": "/etc"}, "image_model", "not offered by this server"),
    ({"prompt": "x", "pinned": "maybe"}, "pinned", "must be true or false"),
    ({"prompt": "x", "priority": "5000"}, "priority", "-1000 to 1000"),
    ({"prompt": "x" * 10_001}, "prompt", "10001 characters"),
    ({"prompt": "a\0b"}, "prompt", "invalid character"),
    ({"prompt": "x", "width": "2048", "height": "2048", "num_frames": "128"}, "num_frames", "KINEMA_MAX_WORK"),
    ({"input_reference": "http://localhost:1/a.png"}, "input_reference", "the server fetches no URLs"),
    ({"input_reference": "file:///etc/passwd"}, "input_reference", "not an image"),
    ({"input_reference": "data:image/png;base64,@@"}, "input_reference", "not valid base64"),
]


@pytest.mark.parametrize(("fields", "param", "message"), INVALID)
def test_invalid_field_is_named_with_remedy(client, fields, param, message):
    response = client.post("/v1/videos", data=fields)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    if message is not None:
        assert (error["param"], message in error["message"]) == (param, True), error


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b'{"prompt": {"a": 1}}', "application/json", 400),
        (b'{"prompt": "x", "seed": true}', "application/json", 400),
        (b'{"prompt": "x", "seconds": NaN}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"<a/>", "application/xml", 415),
        (b"junk", "multipart/form-data", 400),
        (b"junk", "multipart/form-data; boundary=x", 400),
        (b"", "application/json", 400),
    ],
)
def test_malformed_body_is_rejected(client, body, content_type, status):
    response = client.post("/v1/videos", content=body, headers={"Content-Type": content_type})
    assert (response.status_code, list(response.json())) == (status, ["error"]), response.text


@pytest.mark.parametrize("data", [b"not an image", b"GIF89a" + b"x" * 50, b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_invalid_image_bytes_are_rejected(client, data):
    response = create(client, data)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_image")


def test_video_of_a_heic_photo_is_made_and_its_crop_shown(client):
    photo = heic(size=(190, 100), tiles=(3, 2), exif=b"Exif")
    created = create(client, photo)
    assert created.status_code == 200, created.text
    draft = client.post("/studio/images", content=photo).json()["image"]
    crop = client.get(f"/studio/images/{draft}", params={"width": 128, "height": 64})
    assert Image.open(io.BytesIO(crop.content)).size == (128, 64)
    assert wait_for(client, created.json()["id"])["status"] == "completed"


def test_decompression_bomb_is_rejected_by_header(client):
    data = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(data, "PNG")
    start = time.monotonic()
    response = create(client, data.getvalue())
    assert (response.status_code, "megapixels" in response.json()["error"]["message"]) == (400, True)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "video_id",
    ["nope", "video_", "..%2f..%2fetc%2fpasswd", "video_" + "0" * 32, "%00", "%0aa", "'; drop table kinema_jobs"],
)
@pytest.mark.parametrize("what", ["", "/content", "/events", "/preview"])
def test_unknown_id_returns_404(client, video_id, what):
    response = client.get(f"/v1/videos/{video_id}{what}")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")


def test_invalid_query_and_method_return_standard_error(client):
    for path in (
        "/v1/videos?limit=0",
        "/v1/videos?limit=x",
        "/v1/videos?order=up",
        "/v1/videos/video_x/content?variant=gif",
    ):
        response = client.get(path)
        assert (response.status_code, list(response.json())) == (400, ["error"])
    assert client.put("/v1/videos").status_code == 405


def test_body_over_limit_is_rejected_with_and_without_content_length(server, client):
    declared = client.post("/v1/videos", content=b"x" * 20_000_001, headers={"Content-Type": "application/json"})
    assert (declared.status_code, declared.json()["error"]["code"]) == (413, "request_too_large")

    def pieces():
        for _ in range(21):
            yield b"x" * 1_000_000

    for path in ("/v1/videos", "/generate"):
        undeclared = client.post(path, content=pieces(), headers={"Content-Type": "application/json"})
        assert undeclared.status_code == 413, path


def test_unknown_host_name_is_rejected(client):
    response = client.get("/v1/videos", headers={"Host": "evil.example"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "host_not_allowed")


def test_large_body_is_rejected_on_paths_without_image(client):
    body = b'{"title": "' + b"x" * 200_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    for path in (f"/v1/videos/video_{'0' * 32}", "/studio/en/gradio_api/queue/join", "/studio/en/"):
        rejected = client.post(path, content=body, headers=headers)
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (413, "request_too_large")
    assert "128 KB" in rejected.json()["error"]["message"]


def test_invalid_page_call_is_not_echoed(client):
    call = b'{"data": 7, "fn_index": [' + b"[]," * 1000 + b"[]]}"
    rejected = client.post(
        "/studio/en/gradio_api/queue/join", content=call, headers={"Content-Type": "application/json"}
    )
    assert rejected.status_code == 422
    assert len(rejected.content) < 500


def test_slow_progressive_jpeg_is_rejected_before_decoding(client):
    rejected = client.post("/v1/videos", files={"image": ("a.jpg", many_scans(100, 64, 64))})
    assert (rejected.status_code, rejected.json()["error"]["code"]) == (400, "invalid_image")
    assert "more than 32 JPEG scans" in rejected.json()["error"]["message"]


def test_workers_are_listed_with_what_they_do(client, png):
    def worker_once(status):
        deadline = time.monotonic() + 30
        while (worker := client.get("/v1/workers").json()["data"][0])["status"] != status:
            assert time.monotonic() < deadline, worker
            time.sleep(0.02)
        return worker

    idle = worker_once("idle")
    assert (idle["object"], idle["place"], idle["jobs"], idle["problem"]) == ("worker", "cpu", [], None)
    video = create(client, png, **SLOW).json()
    busy = worker_once("busy")
    assert (busy["jobs"], busy["model"]) == ([video["id"]], video["model"])
    client.delete(f"/v1/videos/{video['id']}")
    worker_once("idle")

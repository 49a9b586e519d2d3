"""Common clients: the unmodified openai package, BentoML's client and curl."""

import json
import re
import shutil
import subprocess
import sys

import httpx
import openai
import pytest

# OpenAI's hosted video API is deprecated, and the package warns at each call.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")

QUICK = {"motion_bucket_id": 1, "num_frames": 3}


@pytest.fixture
def videos(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        yield client.videos


def test_openai_client_creates_polls_lists_downloads_and_deletes(videos, png):
    video = videos.create_and_poll(
        prompt="a rocket", model="pocket", seconds="1", size="288x160", input_reference=("a.png", png, "image/png"),
        extra_body={"seed": 42, "motion_bucket_id": 1},
    )  # fmt: skip
    assert (video.status, video.progress, video.seconds, video.size) == ("completed", 100, "1", "288x160")
    assert video.seed == 42
    assert videos.retrieve(video.id).status == "completed"
    assert video.id in [listed.id for listed in videos.list(limit=5)][:5]
    for variant, magic in (("video", b"ftyp"), ("thumbnail", b"WEBP"), ("spritesheet", b"\xff\xd8")):
        data = videos.download_content(video.id, variant=variant).read()
        assert magic in data[:16]
    assert videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no job"):
        videos.retrieve(video.id)


def test_openai_client_raises_server_message(videos):
    with pytest.raises(openai.BadRequestError, match="not offered by this server") as caught:
        videos.create(prompt="x", model="no such model")
    assert caught.value.param == "model"


def test_bentoml_client_generates_video(server, png, tmp_path):
    (tmp_path / "girl-image.png").write_bytes(png)
    script = f"""
import bentoml
from pathlib import Path

with bentoml.SyncHTTPClient("{server.url}") as client:
    result = client.generate(
        decode_chunk_size=2,
        image=Path("girl-image.png"),
        seed=0,
    )
print(result.read_bytes()[4:8])
"""  # in its own process, because importing bentoml.client emits many warnings
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=True
    )
    assert completed.stdout.strip() == "b'ftyp'"


def test_tutorial_curl_command_generates_video(server, png, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (tmp_path / "girl-image.png").write_bytes(png)
    curl = f"""curl -sS -X 'POST' '{server.url}/generate' -H 'accept: video/*' \
        -H 'Content-Type: multipart/form-data' -F 'image=@girl-image.png;type=image/png' -o generated.mp4 \
        -F 'decode_chunk_size=2' -F 'seed=null' -D headers"""
    subprocess.run(curl, shell=True, check=True, cwd=tmp_path, timeout=60)
    assert (tmp_path / "generated.mp4").read_bytes()[4:8] == b"ftyp"
    assert "x-kinema-seed" in (tmp_path / "headers").read_text()


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"seed": "x"}, "seed", "seed 'x' is not an integer"),
        ({"width": "1001"}, "width", "use 1000 or 1008"),
        ({"image": "http://localhost:1/x.png"}, "image", "the server fetches no URLs"),
        ({"image": "data:image/png;base64,@@"}, "image", "not valid base64"),
        ({"image": "data:image/png,hello"}, "image", "not a supported image"),
        ({"image": "null"}, "image", "image is required"),
    ],
)
def test_generate_rejects_invalid_field_with_message(server, png, fields, param, message):
    files = {} if "image" in fields else {"image": ("a.png", png)}
    response = httpx.post(f"{server.url}/generate", data=fields, files=files or None)
    error = response.json()["error"]
    assert (response.status_code, error["param"], message in error["message"]) == (400, param, True)


def test_document_and_swagger_load_nothing_from_other_servers(server):
    page = httpx.get(f"{server.url}/")
    assert page.status_code == 200
    text = httpx.get(f"{server.url}/docs.json").text
    assert not re.search("https?://", page.text + text)
    document = json.loads(text)
    errors = document["paths"]["/generate"]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
    assert errors == {"$ref": "#/components/schemas/ErrorResponse"}
    assert {"/generate", "/v1/videos", "/readyz"} <= document["paths"].keys()
    parameters = document["components"]["schemas"]["generate__Input"]["properties"]
    assert {"image", "decode_chunk_size", "seed", "motion_bucket_id", "prompt", "keep"} <= parameters.keys()


def test_metrics_count_finished_jobs(server, png):
    httpx.post(f"{server.url}/v1/videos/sync", data=QUICK, files={"image": ("a.png", png)}, timeout=30)
    text = httpx.get(f"{server.url}/metrics").text
    for name in (
        "kinema_jobs_waiting",
        "kinema_unfinished_batches",
        "kinema_undelivered_webhooks",
        "kinema_jobs_total",
        "kinema_wait_seconds_bucket",
        "kinema_stage_seconds_sum",
        "kinema_resident_bytes",
    ):
        assert name in text

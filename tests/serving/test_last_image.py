"""`last_image` over HTTP: a file, data: URL or {image_url}, checked like the image, in single requests and batches."""

import base64
import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from image_attacks import many_scans
from PIL import Image
from server_process import child_processes, start, stop, wait_for

from kinema.media.video_reader import each_frame, read_recipe

QUICK = {"motion_bucket_id": "1", "num_frames": "3", "seed": "7"}


@pytest.fixture(scope="module")
def last():
    """An image of 200 KB, so that JSON with it is parsed without it."""
    data = io.BytesIO()
    Image.effect_noise((256, 256), 80).convert("RGB").save(data, "PNG", compress_level=0)
    return data.getvalue()


def data_url(image):
    return "data:image/png;base64," + base64.b64encode(image).decode()


def send(client, image, last_image, **fields):
    files = {"image": ("a.png", image), "last_image": ("b.png", last_image)}
    return client.post("/v1/videos", data=QUICK | fields, files=files)


def stored(server, video):
    """Return the video as it was made, before it is signed."""
    return (server.data / "jobs" / video["id"] / "video.mp4").read_bytes()


def frames_of(client, video_id, folder):
    path = folder / "video.mp4"
    path.write_bytes(client.get(f"/v1/videos/{video_id}/content").content)
    return list(each_frame(path))


def test_form_json_and_url_give_the_same_video_that_depends_on_the_last_image(server, client, png, last):
    references = [{"image_url": data_url(last)}, data_url(last), {"image_url": {"url": data_url(last)}}]
    bodies = [QUICK | {"input_reference": {"image_url": data_url(png)}, "last_image": each} for each in references]
    responses = [send(client, png, last), *(client.post("/v1/videos", json=body) for body in bodies)]
    responses.append(client.post("/v1/videos", json=QUICK | {"image": data_url(last), "last_image": data_url(last)}))
    responses.append(client.post("/v1/videos", data=QUICK, files={"image": ("a.png", png)}))
    videos = [wait_for(client, response.json()["id"]) for response in responses]
    assert {video["status"] for video in videos} == {"completed"}
    contents = [stored(server, video) for video in videos]
    assert contents[:3] == contents[:1] * 3
    assert len(set(contents)) == 3
    assert [video["last_image_sha256"] is None for video in videos] == [False] * 5 + [True]
    assert len({video["last_image_sha256"] for video in videos[:5]}) == 1


@pytest.mark.parametrize(
    ("last_image", "fields", "param", "message"),
    [
        (b"hello", {}, "last_image", "last image: "),
        (many_scans(100, 64, 64), {}, "last_image", "last image: the image data has more than 32 JPEG scans"),
        (None, {"last_image": "http://localhost:1/x.png"}, "last_image", "the server fetches no URLs"),
        (None, {"last_image": "data:image/png;base64,@@"}, "last_image", "not valid base64"),
        (None, {"last_image": "a.png"}, "last_image", "is not an image"),
        (..., {"loop": "true"}, "last_image", "a loop ends at its first image"),
        (..., {"num_frames": "1"}, "num_frames", "num_frames 1 has no last frame"),
        (..., {"num_frames": "15"}, "num_frames", "use at most 14, which pocket makes at once"),
        (..., {"seconds": "9", "num_frames": ""}, "seconds", "too many for a video with a last image"),
        (..., {"width": "2048", "height": "2048", "num_frames": "14", "num_inference_steps": "20"}, "num_frames",
         "28 predicted frames × 20 steps is 2,348.81 million"),
    ],
)  # fmt: skip
def test_invalid_last_image_is_rejected_by_name(client, png, last_image, fields, param, message):
    files = {"image": ("a.png", png)}
    if last_image is not None:
        files["last_image"] = ("b.png", png if last_image is ... else last_image)
    response = client.post("/v1/videos", data=QUICK | fields, files=files)
    error = response.json()["error"]
    assert (response.status_code, error["param"], message in error["message"]) == (400, param, True), error


def test_warning_about_the_last_image_names_it(client, png, last):
    warnings = send(client, png, last).json()["warnings"]
    assert any(warning.startswith("last image: ") for warning in warnings)


def test_last_image_is_deleted_with_its_job(server, client, png, last):
    unique = png + b"deleted with its job"
    video = wait_for(client, send(client, png, unique).json()["id"])
    stored = server.data / "images" / video["last_image_sha256"]
    assert stored.read_bytes() == unique
    client.delete(f"/v1/videos/{video['id']}")
    assert not stored.exists()


def test_batch_lines_may_have_seconds_and_a_last_image(client, png, last):
    images = {"input_reference": data_url(png), "last_image": {"image_url": data_url(last)}}
    bodies = [QUICK | images, {"prompt": "a fox", "seconds": 1, "motion_bucket_id": 0}, QUICK | images | {"loop": True}]
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/videos", "body": body} for i, body in enumerate(bodies)
    ]

    def run(some):
        content = "\n".join(map(json.dumps, some))
        file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", content)}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/videos", "completion_window": "24h"}
        batch = client.post("/v1/batches", json=asked).json()
        deadline = time.monotonic() + 60
        while batch["status"] not in ("completed", "failed") and time.monotonic() < deadline:
            time.sleep(0.05)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
        return batch

    rejected = run(lines)["errors"]["data"]
    assert [(error["line"], error["param"]) for error in rejected] == [(3, "last_image")]
    output = client.get(f"/v1/files/{run(lines[:2])['output_file_id']}/content").text.splitlines()
    videos = {each["custom_id"]: each["response"]["body"] for each in map(json.loads, output)}
    single = send(client, png, last).json()
    assert videos["0"]["last_image_sha256"] == single["last_image_sha256"]
    assert (videos["1"]["parameters"]["num_frames"], videos["1"]["last_image_sha256"]) == (7, None)


def test_bentoml_client_sends_a_last_image(server, png, last, tmp_path):
    (tmp_path / "first.png").write_bytes(png)
    (tmp_path / "last.png").write_bytes(last)
    script = f"""
import bentoml
from pathlib import Path

with bentoml.SyncHTTPClient("{server.url}") as client:
    for images in ({{"last_image": Path("last.png")}}, {{}}):
        client.generate(image=Path("first.png"), seed=7, seconds=0.5, motion_bucket_id=1, **images)
"""
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    with server.client() as client:
        newest = client.get("/v1/videos?limit=2").json()["data"]
        expected = send(client, png, last).json()["last_image_sha256"]
    assert [video["last_image_sha256"] for video in newest] == [None, expected]
    assert {video["parameters"]["num_frames"] for video in newest} == {4}


@pytest.mark.slow
def test_pocket_ends_a_video_at_a_given_image_also_when_its_worker_is_killed(tmp_path):
    """One run is undisturbed; the other loses its worker while denoising, and gives the same bytes."""
    first, last_image = (pattern(phase) for phase in (0, 30))
    server = start(tmp_path / "data", work=None)
    try:
        with server.client() as client:
            videos = []
            for killed in (False, True):
                asked = send(client, first, last_image, motion_bucket_id="40", num_frames="14")
                if killed:
                    kill_while_denoising(server, client, asked.json()["id"])
                videos.append(wait_for(client, asked.json()["id"]))
            whole, again = (stored(server, video) for video in videos)
            frames = frames_of(client, videos[1]["id"], tmp_path)
    finally:
        stop(server)
    assert [video["status"] for video in videos] == ["completed"] * 2
    assert whole == again
    recipe = read_recipe(tmp_path / "video.mp4")
    assert recipe.last_image_sha256 not in (None, recipe.image_sha256)
    target = Image.open(io.BytesIO(last_image)).convert("RGB")
    distances = [difference(Image.fromarray(frame), target) for frame in (frames[0], frames[-1])]
    assert distances[1] < distances[0] / 2, distances


def kill_while_denoising(server, client, video_id):
    deadline = time.monotonic() + 120
    while (video := client.get(f"/v1/videos/{video_id}").json())["stage"] != "denoise":
        assert time.monotonic() < deadline, video
        time.sleep(0.02)
    for worker in child_processes("kinema.jobs.worker_process", of=server.api_process().pid):
        worker.kill()


def pattern(shift):
    """Return a picture whose content is moved to the right by `shift` pixels."""
    image = Image.new("RGB", (288, 160), (90, 140, 200))
    image.paste((230, 180, 60), (90 + shift, 40, 150 + shift, 120))
    image.paste((40, 90, 50), (0, 120, 288, 160))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def difference(a, b):
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean()

"""A disk that is full: jobs fail cleanly, the server lives, and goes on when there is room."""

import os
import subprocess
import time

import pytest
from server_process import start, stop, wait_for

FIELDS = {"motion_bucket_id": "30", "num_inference_steps": "10", "num_frames": "3"}
LONG = FIELDS | {"num_inference_steps": "200"}  # it is still at work once the disk is full


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 96 MB of our own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", folder], check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder):
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return filler


def test_a_full_disk_fails_jobs_and_not_the_server(small_disk, tmp_path, png):
    server = start(small_disk / "data", logs=tmp_path)
    try:
        with server.client() as client:
            ask = {"data": FIELDS, "files": {"image": ("a.png", png)}}
            running = client.post("/v1/videos", **ask | {"data": LONG}).json()
            while client.get(f"/v1/videos/{running['id']}").json()["stage"] != "denoise":
                time.sleep(0.01)
            filler = fill(small_disk)
            refused = client.post("/v1/videos", **ask)
            assert refused.status_code in (503, 507), refused.text
            assert refused.json()["error"]["message"]
            assert client.get("/livez").status_code == 200
            time.sleep(1.5)
            filler.unlink()
            ended = wait_for(client, running["id"])
            assert ended["status"] == "completed" or ended["error"]["code"] == "insufficient_disk"
            again = wait_for(client, client.post("/v1/videos", **ask).json()["id"])
            assert again["status"] == "completed", again["error"]
        assert not list((server.data / "jobs").glob("*/.part-*"))
    finally:
        stop(server)


def test_less_than_the_reserve_refuses_before_anything_is_written(tmp_path, png):
    server = start(tmp_path / "data", min_free_gb="1000000")
    try:
        with server.client() as client:
            refused = client.post("/v1/videos", data=FIELDS, files={"image": ("a.png", png)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "insufficient_disk")
        assert not list((server.data / "images").iterdir())
    finally:
        stop(server)


def delete(client, ids):
    for video_id in ids:
        answer = client.delete(f"/v1/videos/{video_id}")
        assert answer.status_code == 200, answer.text


def test_videos_can_be_deleted_on_a_full_disk_also_after_a_start_on_it(small_disk, tmp_path, png):
    server = start(small_disk / "data", logs=tmp_path, queue_size=100)
    try:
        with server.client() as client:
            ask = {"data": FIELDS | {"num_inference_steps": "1", "motion_bucket_id": "1"}}
            image = {"files": {"image": ("a.png", png)}}
            done = [wait_for(client, client.post("/v1/videos", **ask, **image).json()["id"])["id"] for _ in range(3)]
            slow = {"data": FIELDS | {"num_inference_steps": "100", "motion_bucket_id": "250"}}
            slow = [client.post("/v1/videos", **slow, **image).json()["id"] for _ in range(30)]
            fill(small_disk)
            # Those without files first: nothing but the reserve makes room for their deletion.
            delete(client, slow[::-1])
        stop(server)
        fill(small_disk)
        server = start(small_disk / "data", logs=tmp_path)
        with server.client() as client:
            delete(client, done)
            assert client.get("/v1/videos").json()["data"] == []
            assert not any((server.data / "images").iterdir())
            deadline = time.monotonic() + 10
            while any((server.data / "jobs").iterdir()):
                assert time.monotonic() < deadline, "files are left"
                time.sleep(0.1)
    finally:
        stop(server)

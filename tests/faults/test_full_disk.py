"""Full disk: jobs fail with an error, the server stays up, and recovers when space is freed."""

import os
import subprocess
import time

import pytest
from server_process import start, stop, wait_for

FIELDS = {"motion_bucket_id": "30", "num_inference_steps": "10", "num_frames": "3"}
LONG = FIELDS | {"num_inference_steps": "200"}  # still running when the disk is full


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 96 MB, if one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", folder], check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("mounting a file system needs root")
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


@pytest.mark.slow
def test_full_disk_fails_jobs_but_not_the_server(small_disk, tmp_path, png):
    server = start(small_disk / "data", logs=tmp_path)
    try:
        with server.client() as client:
            submission = {"data": FIELDS, "files": {"image": ("a.png", png)}}
            running = client.post("/v1/videos", **submission | {"data": LONG}).json()
            while client.get(f"/v1/videos/{running['id']}").json()["stage"] != "denoise":
                time.sleep(0.01)
            filler = fill(small_disk)
            rejected = client.post("/v1/videos", **submission)
            assert rejected.status_code in (503, 507), rejected.text
            assert rejected.json()["error"]["message"]
            assert client.get("/livez").status_code == 200
            time.sleep(1.5)
            filler.unlink()
            finished = wait_for(client, running["id"])
            assert finished["status"] == "completed" or finished["error"]["code"] == "insufficient_disk"
            again = wait_for(client, client.post("/v1/videos", **submission).json()["id"])
            assert again["status"] == "completed", again["error"]
        assert not list((server.data / "jobs").glob("*/.part-*"))
    finally:
        stop(server)


@pytest.mark.slow
def test_submit_below_free_space_reserve_is_rejected_before_writing(tmp_path, png):
    server = start(tmp_path / "data", min_free_gb="1000000")
    try:
        with server.client() as client:
            rejected = client.post("/v1/videos", data=FIELDS, files={"image": ("a.png", png)})
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (507, "insufficient_disk")
        assert not list((server.data / "images").iterdir())
    finally:
        stop(server)


def delete(client, ids):
    for video_id in ids:
        response = client.delete(f"/v1/videos/{video_id}")
        assert response.status_code == 200, response.text


@pytest.mark.slow
def test_delete_works_on_full_disk_and_after_a_start_on_it(small_disk, tmp_path, png):
    server = start(small_disk / "data", logs=tmp_path, queue_size=100)
    try:
        with server.client() as client:
            submission = {"data": FIELDS | {"num_inference_steps": "1", "motion_bucket_id": "1"}}
            image = {"files": {"image": ("a.png", png)}}
            done = [
                wait_for(client, client.post("/v1/videos", **submission, **image).json()["id"])["id"] for _ in range(3)
            ]
            slow = {"data": FIELDS | {"num_inference_steps": "100", "motion_bucket_id": "250"}}
            slow = [client.post("/v1/videos", **slow, **image).json()["id"] for _ in range(30)]
            fill(small_disk)
            # Jobs without files first: only the reserve gives space for their deletion.
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
                assert time.monotonic() < deadline, "files of deleted jobs still exist"
                time.sleep(0.1)
    finally:
        stop(server)

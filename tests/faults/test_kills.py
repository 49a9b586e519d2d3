"""kill -9 of workers, the API process or all processes: each job completes once, with the expected bytes.

The full tests, 30 kills during 30 jobs and 50 cancels: .venv/bin/pytest tests/faults -m slow
"""

import os
import random
import signal
import time

import httpx
import pytest
from server_process import child_processes, start, stop, wait_for, wait_ready
from server_work import make_frames, make_recipe

from kinema.media.video import Video
from kinema.values import VideoRequest

FIELDS = {"motion_bucket_id": "25", "num_inference_steps": "16", "num_frames": "3"}


def expected_video(parameters, png, folder):
    request = VideoRequest.checked(**parameters)
    video = Video(make_frames(request, png, request.num_frames), request.frame_rate, make_recipe(request))
    return video.save(folder / f"{request.seed}.mp4").read_bytes()


def wait_for_running_job(server, interrupted):
    """Return the id of a running job that was not interrupted yet, or None if none is left."""
    while True:
        try:
            videos = httpx.get(f"{server.url}/v1/videos?limit=100", timeout=60).json()["data"]
        except (httpx.HTTPError, ValueError):
            time.sleep(0.1)
            continue
        unfinished = [
            video for video in videos if video["status"] in ("queued", "in_progress") and video["id"] not in interrupted
        ]
        if not unfinished:
            return None
        running = [video["id"] for video in unfinished if video["status"] == "in_progress"]
        if running:
            return running[0]
        time.sleep(0.02)


def kill(server, target):
    """Kill a part of the server; return the server once it is ready again."""
    api = server.api_process()
    if target == "worker":
        for worker in api.children():
            worker.kill()
        return server
    if target == "api":
        os.kill(api.pid, signal.SIGKILL)
        wait_ready(server)
        return server
    stop(server)
    return start(server.data, credentials="off")


def run_with_kills(tmp_path, png, targets, rng, steps=16):
    server = start(tmp_path / "data", credentials="off")  # downloads are the stored bytes
    try:
        with server.client() as client:
            ids = []
            for seed in range(len(targets)):
                fields = FIELDS | {"seed": str(seed), "num_inference_steps": str(steps)}
                response = client.post("/v1/videos", data=fields, files={"image": ("a.png", png)})
                ids.append(response.json()["id"])
        interrupted = set()
        for target in targets:
            job = wait_for_running_job(server, interrupted)
            if job is None:
                break
            interrupted.add(job)
            time.sleep(rng.uniform(0, 0.5))
            server = kill(server, target)
        with server.client() as client:
            for video_id in ids:
                video = wait_for(client, video_id)
                assert (video["status"], video["error"]) == ("completed", None)
                content = client.get(f"/v1/videos/{video_id}/content").content
                assert content == expected_video(video["parameters"], png, tmp_path)
            assert client.get("/v1/videos?limit=100").json()["data"][-1]["id"] == ids[0]
        files = {path.name for folder in (server.data / "jobs").iterdir() for path in folder.iterdir()}
        assert files == {"video.mp4"}
        return len(interrupted)
    finally:
        stop(server)


@pytest.mark.slow
def test_jobs_complete_after_kills_of_workers_and_of_all_processes(tmp_path, png):
    # Jobs run long enough to be interrupted, even on a busy machine.
    assert run_with_kills(tmp_path, png, ["worker", "all", "worker"], random.Random(1), steps=120) == 3


@pytest.mark.slow
def test_thirty_jobs_complete_after_thirty_kills(tmp_path, png):
    rng = random.Random(2)
    targets = ["worker"] * 10 + ["api"] * 10 + ["all"] * 10
    rng.shuffle(targets)
    assert run_with_kills(tmp_path, png, targets, rng) >= 25


def cancel_at_random_times(tmp_path, png, count):
    rng = random.Random(3)
    server = start(tmp_path / "data")
    try:
        with server.client() as client:
            fields = FIELDS | {"num_inference_steps": "100"}
            (worker,) = child_processes("kinema.jobs.worker_process", of=server.api_process().pid)
            before = None
            for i in range(count):
                response = client.post("/v1/videos", data=fields | {"seed": str(i)}, files={"image": ("a.png", png)})
                video_id = response.json()["id"]
                time.sleep(rng.uniform(0, 0.6))
                started = time.monotonic()
                cancelled = client.post(f"/v1/videos/{video_id}/cancel").json()
                assert (cancelled["status"], cancelled["error"]["code"]) == ("failed", "cancelled")
                while "kinema_jobs_running 0.0" not in client.get("/metrics").text:
                    assert time.monotonic() - started < 120, "the worker is still busy"
                    time.sleep(0.01)
                if i == count // 2:
                    before = server.api_process().memory_info().rss
            assert worker.is_running()
            assert server.api_process().memory_info().rss < before * 1.2 + 20_000_000
            last = client.post("/v1/videos", data=FIELDS, files={"image": ("a.png", png)}).json()
            assert wait_for(client, last["id"])["status"] == "completed"
    finally:
        stop(server)


@pytest.mark.slow
def test_cancel_at_random_times_frees_worker(tmp_path, png):
    cancel_at_random_times(tmp_path, png, 8)


@pytest.mark.slow
def test_fifty_cancels_at_random_times_free_worker(tmp_path, png):
    cancel_at_random_times(tmp_path, png, 50)

"""kill -9 of a worker, of the API process, of everything: each job is completed once, with an undisturbed run's bytes.

The full runs, 30 kills over 30 jobs and 50 cancels: .venv/bin/pytest tests/faults -m slow
"""

import os
import random
import signal
import time

import httpx
import pytest
from server_process import start, stop, wait_for, wait_ready
from server_work import make_frames, make_recipe

from kinema.media.video import Video
from kinema.values import VideoRequest

FIELDS = {"motion_bucket_id": "25", "num_inference_steps": "16", "num_frames": "3"}


def undisturbed(settings, png, folder):
    request = VideoRequest.checked(**settings)
    video = Video(make_frames(request, png, request.num_frames), request.frame_rate, make_recipe(request))
    return video.save(folder / f"{request.seed}.mp4").read_bytes()


def a_running_job(server, hit):
    """One that was not hit yet, once it runs; None when none is left."""
    while True:
        try:
            videos = httpx.get(f"{server.url}/v1/videos?limit=100", timeout=60).json()["data"]
        except (httpx.HTTPError, ValueError):
            time.sleep(0.1)
            continue
        left = [video for video in videos if video["status"] in ("queued", "in_progress") and video["id"] not in hit]
        if not left:
            return None
        running = [video["id"] for video in left if video["status"] == "in_progress"]
        if running:
            return running[0]
        time.sleep(0.02)


def strike(server, what):
    """Kill it, and see that there is a server again."""
    api = server.api_process()
    if what == "worker":
        for worker in api.children():
            worker.kill()
        return server
    if what == "api":
        os.kill(api.pid, signal.SIGKILL)
        wait_ready(server)
        return server
    stop(server)
    return start(server.data)


def survive(tmp_path, png, kills, dice, steps=16):
    server = start(tmp_path / "data")
    try:
        with server.client() as client:
            ids = []
            for seed in range(len(kills)):
                fields = FIELDS | {"seed": str(seed), "num_inference_steps": str(steps)}
                answer = client.post("/v1/videos", data=fields, files={"image": ("a.png", png)})
                ids.append(answer.json()["id"])
        hit = set()
        for what in kills:
            job = a_running_job(server, hit)
            if job is None:
                break
            hit.add(job)
            time.sleep(dice.uniform(0, 0.5))
            server = strike(server, what)
        with server.client() as client:
            for video_id in ids:
                video = wait_for(client, video_id)
                assert (video["status"], video["error"]) == ("completed", None)
                made = client.get(f"/v1/videos/{video_id}/content").content
                assert made == undisturbed(video["settings"], png, tmp_path)
            assert client.get("/v1/videos?limit=100").json()["data"][-1]["id"] == ids[0]
        files = {path.name for folder in (server.data / "jobs").iterdir() for path in folder.iterdir()}
        assert files == {"video.mp4"}
        return len(hit)
    finally:
        stop(server)


def test_jobs_survive_kills_of_workers_and_of_everything(tmp_path, png):
    # Each job is long enough to be found at work, also on a busy machine.
    assert survive(tmp_path, png, ["worker", "all", "worker"], random.Random(1), steps=120) == 3


@pytest.mark.slow
def test_thirty_jobs_survive_thirty_kills(tmp_path, png):
    dice = random.Random(2)
    kills = ["worker"] * 10 + ["api"] * 10 + ["all"] * 10
    dice.shuffle(kills)
    assert survive(tmp_path, png, kills, dice) >= 25


def cancel_at_random(tmp_path, png, count):
    dice = random.Random(3)
    server = start(tmp_path / "data")
    try:
        with server.client() as client:
            fields = FIELDS | {"num_inference_steps": "100"}
            worker = server.api_process().children()[0]
            before = None
            for i in range(count):
                answer = client.post("/v1/videos", data=fields | {"seed": str(i)}, files={"image": ("a.png", png)})
                video_id = answer.json()["id"]
                time.sleep(dice.uniform(0, 0.6))
                began = time.monotonic()
                cancelled = client.post(f"/v1/videos/{video_id}/cancel").json()
                assert (cancelled["status"], cancelled["error"]["code"]) == ("failed", "cancelled")
                while "kinema_running_jobs 0.0" not in client.get("/metrics").text:
                    assert time.monotonic() - began < 120, "the worker is not free again"
                    time.sleep(0.01)
                if i == count // 2:
                    before = server.api_process().memory_info().rss
            assert worker.is_running()
            assert server.api_process().memory_info().rss < before * 1.2 + 20_000_000
            last = client.post("/v1/videos", data=FIELDS, files={"image": ("a.png", png)}).json()
            assert wait_for(client, last["id"])["status"] == "completed"
    finally:
        stop(server)


def test_cancels_at_random_moments_free_the_worker(tmp_path, png):
    cancel_at_random(tmp_path, png, 8)


@pytest.mark.slow
def test_fifty_cancels_at_random_moments_free_the_worker(tmp_path, png):
    cancel_at_random(tmp_path, png, 50)

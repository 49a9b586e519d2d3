"""Small images and bodies that are expensive to process, sent to a real server by many clients.

In every case the list of videos responds within a second, and the server and its decode process stay below 1 GB.
"""

import asyncio
import contextlib
import io
import json
import random
import threading
import time

import httpx
import numpy as np
import psutil
import pytest
from figures import record
from heif_files import heic, large_heic
from image_attacks import cut_jpeg, jpeg, large_avif, large_webp, many_chunks, many_scans, many_segments
from PIL import Image
from server_process import child_processes, start, stop, wait_for
from server_work import make_recipe

pytestmark = pytest.mark.slow

GIGABYTE = 1_000_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = start(tmp_path_factory.mktemp("hostile") / "data", queue_size=10_000, max_work=100_000)
    yield running
    stop(running)


class Monitor:
    """Measures, within its context, the slowest list and the peak memory of the server and its decode process."""

    def __init__(self, server):
        self._server, self._api = server, server.api_process()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._measure_list, self._measure_memory)]
        self.durations, self.memory = [], 0

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _measure_list(self):
        with httpx.Client(base_url=self._server.url, timeout=120) as client:
            while not self._done.wait(0.05):
                for path in ("/v1/videos", "/livez"):
                    started = time.monotonic()
                    assert client.get(path).status_code == 200
                    self.durations.append(time.monotonic() - started)

    def _measure_memory(self):
        while not self._done.wait(0.02):
            total = self._api.memory_info().rss
            for child in child_processes("kinema.serving.decode_process", of=self._api.pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += child.memory_info().rss
            self.memory = max(self.memory, total)

    def record(self, what):
        record(f"slowest list while {what}", max(self.durations), bar=1, unit="s")
        record(f"memory while {what}", self.memory / GIGABYTE, bar=1, unit="GB")


def send(server, requests, abort_after=None, max_parallel=16):
    """Send requests in parallel and return their statuses; None for those aborted after `abort_after` seconds."""

    async def main():
        semaphore = asyncio.Semaphore(max_parallel)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=200)
        ) as http:

            async def send_one(make_request):
                async with semaphore:
                    try:
                        async with asyncio.timeout(abort_after):
                            return (await make_request(http)).status_code
                    except TimeoutError:
                        return None

            return await asyncio.gather(*(send_one(make_request) for make_request in requests))

    return asyncio.run(main())


def image_request(image, path="/v1/videos"):
    return lambda http: http.post(path, files={"image": ("a", image)}, data={"motion_bucket_id": "0"})


def json_request(body, path="/v1/videos"):
    return lambda http: http.post(path, content=body, headers={"Content-Type": "application/json"})


def large_png():
    pixels = np.zeros((5000, 8000, 4), np.uint8)
    pixels[::7] = 99
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def large_progressive():
    """Return a progressive JPEG of 20 MB, 40 megapixels without chroma subsampling."""
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2000, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((8000, 5000)).save(buffer, "JPEG", progressive=True, subsampling=0, quality=60)
    return buffer.getvalue()


def test_images_that_are_slow_or_large_to_decode_are_bounded(server):
    invalid = [
        many_scans(),
        many_chunks(1_000_000),
        many_segments(),
        cut_jpeg(0.0005, width=6000, height=6000, flat=True),
        heic(size=(32_000, 32_000)),
        heic(size=(40_000, 1600), tiles=(25, 40)),
    ]
    valid = [large_webp(), large_png(), large_progressive(), many_scans(20), large_heic(), large_avif()]
    assert all(len(image) < 20_000_000 for image in invalid + valid)
    # Different bytes each time, since results are cached.
    requests = [image_request(image + b"%d" % i) for i in range(3) for image in [*invalid, *valid]]
    random.Random(0).shuffle(requests)
    with Monitor(server) as monitor:
        statuses = send(server, requests, max_parallel=24)
    assert statuses.count(400) == 3 * len(invalid)
    assert statuses.count(200) + statuses.count(503) == 3 * len(valid)
    assert statuses.count(200) >= 4
    monitor.record("hostile images are posted")


def test_disconnected_clients_stop_decoding_of_their_images(server):
    image = large_progressive()
    with Monitor(server) as monitor:
        assert set(
            send(server, [image_request(image + b"%d" % i) for i in range(12)], abort_after=1.5, max_parallel=12)
        ) <= {
            None,
            200,
            503,
        }
        started = time.monotonic()
        assert send(server, [image_request(jpeg())]) == [200]
        freed = time.monotonic() - started
    record("an honest image after clients that left", freed, bar=10, unit="s")
    monitor.record("clients leave")


def test_resized_drafts_are_bounded(server):
    with server.client() as client:
        draft = client.post("/studio/images", content=large_png(), headers={"Content-Type": "image/png"}).json()[
            "image"
        ]
    reads = [
        lambda http, side=side: http.get(f"/studio/images/{draft}", params={"width": side, "height": 640})
        for side in range(640, 640 + 8 * 8, 8)
    ]
    with Monitor(server) as monitor:
        assert set(send(server, reads, max_parallel=8)) == {200}
    monitor.record("fitted drafts are read")


def test_large_json_bodies_are_rejected(server):
    large = [
        b'{"prompt": "' + b"x" * 19_000_000 + b'"}',
        b'{"a": ' + b"[" * 9_000_000 + b"]" * 9_000_000 + b"}",
        b"[" + b"{}," * 6_000_000 + b"{}]",
        json.dumps({"image": {"image_url": "data:image/png;base64," + "A" * 19_000_000}}).encode(),
        b'{"image": "data:;base64,' + b"\\u0041" * 3_100_000 + b'"}',
        b'{"image": "data:,' + b"%41" * 6_000_000 + b'"}',
        b'{"a": [' + b"[]," * 40_000 + b"[]]}",
    ]
    with Monitor(server) as monitor:
        statuses = send(server, [json_request(body) for body in large * 4], max_parallel=8)
        calls = [json_request(large[-1], "/studio/en/gradio_api/queue/join")] * 12
        assert set(send(server, calls)) == {422}
    assert set(statuses) <= {400, 413, 503}
    with server.client() as client:  # Gradio's own routes parse any body
        status = client.post(
            "/studio/en/gradio_api/queue/join", content=large[2], headers={"Content-Type": "application/json"}
        )
    assert status.status_code == 413
    monitor.record("JSON of 20 MB is posted")


def test_contact_sheet_of_128_large_frames_is_bounded(server, png, tmp_path):
    from kinema.media.video import Video
    from kinema.values import VideoRequest

    with server.client() as client:
        job = wait_for(client, client.post("/v1/videos", files={"image": ("a.png", png)}).json()["id"])
        frames = np.zeros((128, 1024, 1024, 3), np.uint8)
        frames[:] = np.arange(128, dtype=np.uint8)[:, None, None, None]
        Video(frames, 7, make_recipe(VideoRequest(model="pocket", seed=1))).save(
            server.data / "jobs" / job["id"] / "large.mp4"
        ).replace(server.data / "jobs" / job["id"] / "video.mp4")
        with Monitor(server) as monitor:
            sheet = client.get(f"/v1/videos/{job['id']}/content", params={"variant": "spritesheet"}, timeout=120)
    assert sheet.status_code == 200
    assert Image.open(io.BytesIO(sheet.content)).width <= 2048
    monitor.record("a sheet of 128 frames of 1024×1024 is made")


def test_memory_is_released_afterwards(server):
    time.sleep(2)
    api = server.api_process()
    children = child_processes("kinema.serving.decode_process", of=api.pid)
    memory = api.memory_info().rss + sum(child.memory_info().rss for child in children)
    record("memory after hostile images", memory / GIGABYTE, bar=0.6, unit="GB")

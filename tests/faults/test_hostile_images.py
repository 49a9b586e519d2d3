"""Images and bodies made to cost much more than they weigh, sent to a real server from many clients at once.

Whatever is sent: lists are answered within a second, and the server with what decodes for it stays under 1 GB.
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
from image_attacks import cut_jpeg, jpeg, large_webp, many_chunks, many_scans, many_segments
from PIL import Image
from server_process import start, stop, wait_for
from server_work import make_recipe

pytestmark = pytest.mark.slow

GIGABYTE = 1_000_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = start(tmp_path_factory.mktemp("hostile") / "data", queue_size=10_000, max_work=100_000)
    yield running
    stop(running)


class Meter:
    """While it is entered: the slowest list, and the largest sum of the server's memory and its decode process's."""

    def __init__(self, server):
        self._server, self._api = server, server.api_process()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._list, self._weigh)]
        self.spans, self.memory = [], 0

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _list(self):
        with httpx.Client(base_url=self._server.url, timeout=120) as client:
            while not self._done.wait(0.05):
                for path in ("/v1/videos", "/livez"):
                    began = time.monotonic()
                    assert client.get(path).status_code == 200
                    self.spans.append(time.monotonic() - began)

    def _weigh(self):
        while not self._done.wait(0.02):
            total = self._api.memory_info().rss
            for child in self._api.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "kinema.serving.decode_process" in child.cmdline():
                        total += child.memory_info().rss
            self.memory = max(self.memory, total)

    def record(self, what):
        record(f"slowest list while {what}", max(self.spans), bar=1, unit="s")
        record(f"memory while {what}", self.memory / GIGABYTE, bar=1, unit="GB")


def send(server, requests, leave_after=None, at_once=16):
    """The statuses of all requests, some at a time; None for those that were left before their answer."""

    async def main():
        room = asyncio.Semaphore(at_once)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=200)
        ) as http:

            async def one(make):
                async with room:
                    try:
                        async with asyncio.timeout(leave_after):
                            return (await make(http)).status_code
                    except TimeoutError:
                        return None

            return await asyncio.gather(*(one(make) for make in requests))

    return asyncio.run(main())


def posted(image, path="/v1/videos"):
    return lambda http: http.post(path, files={"image": ("a", image)}, data={"motion_bucket_id": "0"})


def as_json(body, path="/v1/videos"):
    return lambda http: http.post(path, content=body, headers={"Content-Type": "application/json"})


def large_png():
    pixels = np.zeros((5000, 8000, 4), np.uint8)
    pixels[::7] = 99
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def large_progressive():
    """20 MB of progressive JPEG, 40 megapixels in full colour resolution."""
    noise = np.random.default_rng(0).integers(0, 256, (2500, 2000, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((8000, 5000)).save(buffer, "JPEG", progressive=True, subsampling=0, quality=60)
    return buffer.getvalue()


def test_images_that_are_slow_or_large_to_decode(server):
    refused = [
        many_scans(),
        many_chunks(1_000_000),
        many_segments(),
        cut_jpeg(0.0005, width=6000, height=6000, flat=True),
    ]
    taken = [large_webp(), large_png(), large_progressive(), many_scans(20)]
    assert all(len(image) < 20_000_000 for image in refused + taken)
    # Never the same bytes: what was found of an image is remembered.
    requests = [posted(image + b"%d" % i) for i in range(3) for image in [*refused, *taken]]
    random.Random(0).shuffle(requests)
    with Meter(server) as meter:
        statuses = send(server, requests, at_once=24)
    assert statuses.count(400) == 12
    assert statuses.count(200) + statuses.count(503) == 12
    assert statuses.count(200) >= 4
    meter.record("hostile images are posted")


def test_clients_that_leave_take_their_images_along(server):
    image = large_progressive()
    with Meter(server) as meter:
        assert set(send(server, [posted(image + b"%d" % i) for i in range(12)], leave_after=1.5, at_once=12)) <= {
            None,
            200,
            503,
        }
        began = time.monotonic()
        assert send(server, [posted(jpeg())]) == [200]
        freed = time.monotonic() - began
    record("an honest image after clients that left", freed, bar=10, unit="s")
    meter.record("clients leave")


def test_fitted_drafts(server):
    with server.client() as client:
        draft = client.post("/studio/images", content=large_png(), headers={"Content-Type": "image/png"}).json()[
            "image"
        ]
    reads = [
        lambda http, side=side: http.get(f"/studio/images/{draft}", params={"width": side, "height": 640})
        for side in range(640, 640 + 8 * 8, 8)
    ]
    with Meter(server) as meter:
        assert set(send(server, reads, at_once=8)) == {200}
    meter.record("fitted drafts are read")


def test_bodies_of_json(server):
    large = [
        b'{"prompt": "' + b"x" * 19_000_000 + b'"}',
        b'{"a": ' + b"[" * 9_000_000 + b"]" * 9_000_000 + b"}",
        b"[" + b"{}," * 6_000_000 + b"{}]",
        json.dumps({"image": {"image_url": "data:image/png;base64," + "A" * 19_000_000}}).encode(),
        b'{"image": "data:;base64,' + b"\\u0041" * 3_100_000 + b'"}',
        b'{"image": "data:,' + b"%41" * 6_000_000 + b'"}',
        b'{"a": [' + b"[]," * 40_000 + b"[]]}",
    ]
    with Meter(server) as meter:
        statuses = send(server, [as_json(body) for body in large * 4], at_once=8)
        calls = [as_json(large[-1], "/studio/en/gradio_api/queue/join")] * 12
        assert set(send(server, calls)) == {422}
    assert set(statuses) <= {400, 413, 503}
    with server.client() as client:  # Gradio's own routes parse what comes
        status = client.post(
            "/studio/en/gradio_api/queue/join", content=large[2], headers={"Content-Type": "application/json"}
        )
    assert status.status_code == 413
    meter.record("JSON of 20 MB is posted")


def test_a_contact_sheet_of_128_large_frames(server, png, tmp_path):
    from kinema.media.video import Video
    from kinema.values import VideoRequest

    with server.client() as client:
        made = wait_for(client, client.post("/v1/videos", files={"image": ("a.png", png)}).json()["id"])
        frames = np.zeros((128, 1024, 1024, 3), np.uint8)
        frames[:] = np.arange(128, dtype=np.uint8)[:, None, None, None]
        Video(frames, 7, make_recipe(VideoRequest(model="pocket", seed=1))).save(
            server.data / "jobs" / made["id"] / "large.mp4"
        ).replace(server.data / "jobs" / made["id"] / "video.mp4")
        with Meter(server) as meter:
            sheet = client.get(f"/v1/videos/{made['id']}/content", params={"variant": "spritesheet"}, timeout=120)
    assert sheet.status_code == 200
    assert Image.open(io.BytesIO(sheet.content)).width <= 2048
    meter.record("a sheet of 128 frames of 1024×1024 is made")


def test_its_memory_is_given_back_in_the_end(server):
    time.sleep(2)
    api = server.api_process()
    held = api.memory_info().rss + sum(
        child.memory_info().rss for child in api.children() if "kinema.serving.decode_process" in child.cmdline()
    )
    record("memory after hostile images", held / GIGABYTE, bar=0.6, unit="GB")

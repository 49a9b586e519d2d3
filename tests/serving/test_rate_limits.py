"""Rate limits of wrong keys per address, and of pins and uploads per caller."""

import asyncio
import base64
import time
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from kinema.errors import QuotaExceeded
from kinema.jobs.job import Job
from kinema.serving import rate_limits, schemas, videos
from kinema.serving.body_quota import BodyQuota
from kinema.serving.image_service import ImageService
from kinema.serving.metrics import Metrics
from kinema.serving.middleware import _Guard
from kinema.serving.page.page_routes import Drafts, routes
from kinema.serving.rate_limits import CALLER, FREE_KEYS, MAX_WAITING, DraftQuota, PinQuota, WrongKeys
from kinema.settings import Settings
from kinema.values import VideoRequest

KEY = "schlüssel-Ключ"


async def app(_, __, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})


async def request_status(guard, *, address="192.0.2.1", path="/", headers=()):
    """Return the status of the response."""
    scope = {"type": "http", "method": "GET", "path": path, "client": (address, 5), "query_string": b""}
    scope["headers"] = [(b"host", b"video.example"), *headers]
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    await guard(scope, receive, send)
    return sent[0]["status"]


def guard(tmp_path, key=KEY):
    return _Guard(app, Settings(data_dir=tmp_path, api_keys=(key,)), [])


def wrong(number=0):
    return [(b"x-api-key", b"guess %d" % number)]


RIGHT = [(b"x-api-key", KEY.encode())]


@pytest.mark.parametrize(
    ("key", "header"),
    [
        (KEY, (b"x-api-key", KEY.encode())),
        (KEY, (b"authorization", b"Bearer " + KEY.encode())),
        (KEY, (b"authorization", b"Basic " + base64.b64encode(f"anyone:{KEY}".encode()))),
        ("schlüssel", (b"x-api-key", "schlüssel".encode("latin-1"))),
    ],
)
def test_non_ascii_key_is_accepted_in_utf8_and_latin1(tmp_path, key, header):
    assert asyncio.run(request_status(guard(tmp_path, key), headers=[header])) == 200
    assert asyncio.run(request_status(guard(tmp_path, key), headers=[(header[0], header[1][:-1])])) == 401


def test_keys_of_guessing_address_are_checked_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 0.1)

    async def guess():
        guarded = guard(tmp_path)
        for number in range(FREE_KEYS + 1):
            assert await request_status(guarded, headers=wrong(number)) == 401
        start = time.monotonic()
        more = range(FREE_KEYS + 1, FREE_KEYS + MAX_WAITING + 31)
        statuses = await asyncio.gather(*(request_status(guarded, headers=wrong(number)) for number in more))
        assert sorted(statuses) == [401] * MAX_WAITING + [429] * 30
        assert time.monotonic() - start >= 0.1 * MAX_WAITING - 0.01
        # The right key from this address waits too, so that its response does not reveal it at once.
        start = time.monotonic()
        assert await request_status(guarded, headers=RIGHT) == 200
        assert time.monotonic() - start >= 0.09

    asyncio.run(guess())


def test_other_addresses_are_not_throttled(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 1000.0)

    async def guess():
        guarded = guard(tmp_path)
        for number in range(FREE_KEYS + 1):
            await request_status(guarded, headers=wrong(number))
        assert await request_status(guarded, address="192.0.2.2", headers=RIGHT) == 200
        assert await request_status(guarded) == 401  # a request without a key is not a guess
        assert await request_status(guarded, path="/livez", headers=wrong()) == 200

    asyncio.run(asyncio.wait_for(guess(), 60))


def test_repeated_wrong_key_throttles_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 0.1)

    async def repeat():
        guarded = guard(tmp_path)
        for _ in range(FREE_KEYS + 1):
            assert await request_status(guarded, headers=wrong()) == 401
        statuses = await asyncio.gather(*(request_status(guarded, headers=wrong()) for _ in range(MAX_WAITING + 30)))
        assert sorted(statuses) == [401] * MAX_WAITING + [429] * 30
        monkeypatch.setattr(rate_limits, "TURN_SECONDS", 1000.0)
        assert await request_status(guarded, headers=RIGHT) == 200

    asyncio.run(asyncio.wait_for(repeat(), 60))


def test_accepted_key_is_not_throttled_by_guesses_from_same_address(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 1000.0)

    async def guess():
        guarded = guard(tmp_path)
        assert await request_status(guarded, headers=RIGHT) == 200
        for number in range(FREE_KEYS + 1):
            await request_status(guarded, headers=wrong(number))
        waiting = [asyncio.ensure_future(request_status(guarded, headers=wrong(99))) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        assert await request_status(guarded, headers=wrong(100)) == 429
        assert await request_status(guarded, headers=RIGHT) == 200
        for request in waiting:
            request.cancel()

    asyncio.run(asyncio.wait_for(guess(), 60))


def test_wrong_keys_expire_and_memory_is_limited(monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 1000.0)
    monkeypatch.setattr(rate_limits, "MAX_NAMES", 50)
    wrong_keys = WrongKeys()
    for number in range(FREE_KEYS + 1):
        wrong_keys.add("2001:db8::1", b"%d" % number)
    monkeypatch.setattr(rate_limits, "FORGET_SECONDS", 0.001)
    time.sleep(0.05)
    assert asyncio.run(wrong_keys.turn("2001:db8::1", b"another"))
    for number in range(100):
        wrong_keys.add(f"2001:db8:0:{number:x}::1", b"guess")
        wrong_keys.add(f"2001:db8:0:{number:x}::2", b"guess")  # in the same network
    assert len(wrong_keys) == 100  # 50 networks, and 50 keys


def scope_of(key):
    return {CALLER: key}


def test_quota_is_per_caller_and_refills_over_a_day(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(rate_limits.time, "monotonic", lambda: now[0])
    pins = PinQuota(2)
    pins.check(scope_of("key 1"))
    pins.check(scope_of("key 1"))
    with pytest.raises(
        QuotaExceeded, match="each caller can pin 2 videos per day; try again in 43200 seconds"
    ) as caught:
        pins.check(scope_of("key 1"))
    assert schemas.error_response(caught.value)[0] == 429
    assert schemas.error_response(caught.value)[2] == {"Retry-After": "43200"}
    pins.check(scope_of("key 2"))
    now[0] += 43_201
    pins.check(scope_of("key 1"))


def test_pins_are_limited_per_key(tmp_path):
    request = VideoRequest(model="pocket", seed=1)
    job = Job(
        id=f"video_{'0' * 32}", status="queued", request=request, created_at=0, title=None, image=None, priority=0
    )
    queue = SimpleNamespace(get=lambda _: job, pin=lambda *_, **__: None)
    app = videos.make_app()
    app.state.server = SimpleNamespace(queue=queue, pins=PinQuota(3), bodies=BodyQuota(20, 0))
    settings = Settings(data_dir=tmp_path, api_keys=("one", "two"))
    app.add_middleware(lambda inner: _Guard(inner, settings, app.routes))
    client = TestClient(app)

    def pin(key, pinned):
        return client.post(f"/v1/videos/{job.id}", json={"pinned": pinned}, headers={"X-API-Key": key}).status_code

    assert [pin("one", True) for _ in range(4)] == [200, 200, 200, 429]
    assert [pin("one", False), pin("two", True)] == [200, 200]


def test_page_uploads_are_limited_per_caller(tmp_path, png):
    images = ImageService()
    try:
        drafts = Drafts(tmp_path, 0, images)
        drafts.bytes = DraftQuota(2.5 * len(png))
        app = FastAPI()
        app.include_router(routes(None, drafts, BodyQuota(20, 0), lambda: False))
        responses = [TestClient(app).post("/studio/images?language=ko", content=png) for _ in range(3)]
        assert [response.status_code for response in responses] == [200, 200, 429]
        assert int(responses[2].headers["retry-after"]) > 0
        assert responses[2].json()["error"]["message"].startswith("사용자마다 하루에 이미지를")
    finally:
        images.close()


def test_metrics_text_is_cached():
    calls = []
    queue = SimpleNamespace(
        waiting=lambda: calls.append(1) or 0, running=lambda: 0, ready_workers=0, worker_pids=(), unknown_files=0,
        cluster_ready=None,
        batches=SimpleNamespace(unfinished=list), webhooks=SimpleNamespace(count=lambda: 0),
    )  # fmt: skip
    metrics = Metrics()
    assert len({metrics.text(queue) for _ in range(50)}) == 1
    assert len(calls) <= 2


def test_requests_per_key_and_minute_are_limited_but_not_those_of_the_page(tmp_path):
    settings = Settings(data_dir=tmp_path, api_keys=(KEY, "another"), key_requests_per_minute=3)

    async def statuses():
        limited = _Guard(app, settings, [])
        api = [await request_status(limited, headers=RIGHT) for _ in range(5)]
        others = [
            await request_status(limited, path="/studio/en/", headers=RIGHT),
            await request_status(limited, path="/livez"),
            await request_status(limited, headers=[(b"x-api-key", b"another")]),
        ]
        return api, others

    assert asyncio.run(statuses()) == ([200, 200, 200, 429, 429], [200, 200, 200])


def test_caller_is_named_by_its_key_and_not_by_the_place_of_the_key(tmp_path):
    async def names():
        found = []
        for keys in ((KEY, "another"), ("another", KEY), ("another",)):
            seen = []

            async def noting(scope, receive, send, seen=seen):
                seen.append(scope[CALLER])
                await app(scope, receive, send)

            key = KEY if KEY in keys else "another"
            await request_status(
                _Guard(noting, Settings(data_dir=tmp_path, api_keys=keys), []), headers=[(b"x-api-key", key.encode())]
            )
            found += seen
        return found

    first, moved, other = asyncio.run(names())
    assert first == moved != other
    assert KEY not in first

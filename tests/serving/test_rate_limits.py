"""Who guesses keys is slowed down, by address, and others are not."""

import asyncio
import base64
import time
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from kinema.errors import AllowanceUsedUp
from kinema.jobs.job import Job
from kinema.serving import rate_limits, schemas, videos
from kinema.serving.body_quota import BodyQuota
from kinema.serving.image_service import ImageService
from kinema.serving.metrics import Metrics
from kinema.serving.middleware import _Guard
from kinema.serving.page.page_routes import Drafts, routes
from kinema.serving.rate_limits import CALLER, FREE_KEYS, MAX_WAITING, DraftBytes, Pins, WrongKeys
from kinema.settings import Settings
from kinema.values import VideoRequest

KEY = "schlüssel-Ключ"


async def app(_, __, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})


async def ask(guard, *, address="192.0.2.1", path="/", headers=()):
    """The status that a request gets."""
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
def test_a_key_beyond_ascii_is_known_as_clients_send_it(tmp_path, key, header):
    assert asyncio.run(ask(guard(tmp_path, key), headers=[header])) == 200
    assert asyncio.run(ask(guard(tmp_path, key), headers=[(header[0], header[1][:-1])])) == 401


def test_keys_from_an_address_that_guesses_are_looked_at_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 0.1)

    async def guess():
        guarded = guard(tmp_path)
        for number in range(FREE_KEYS + 1):
            assert await ask(guarded, headers=wrong(number)) == 401
        began = time.monotonic()
        more = range(FREE_KEYS + 1, FREE_KEYS + MAX_WAITING + 31)
        statuses = await asyncio.gather(*(ask(guarded, headers=wrong(number)) for number in more))
        assert sorted(statuses) == [401] * MAX_WAITING + [429] * 30
        assert time.monotonic() - began >= 0.1 * MAX_WAITING - 0.01
        # A right key from there takes its turn too, so that guessing does not tell at once.
        began = time.monotonic()
        assert await ask(guarded, headers=RIGHT) == 200
        assert time.monotonic() - began >= 0.09

    asyncio.run(guess())


def test_others_are_not_slowed(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 1000.0)

    async def guess():
        guarded = guard(tmp_path)
        for number in range(FREE_KEYS + 1):
            await ask(guarded, headers=wrong(number))
        assert await ask(guarded, address="192.0.2.2", headers=RIGHT) == 200
        assert await ask(guarded) == 401  # who brings no key guesses none
        assert await ask(guarded, path="/livez", headers=wrong()) == 200

    asyncio.run(asyncio.wait_for(guess(), 60))


def test_a_client_that_was_set_up_wrongly_slows_down_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 0.1)

    async def repeat():
        guarded = guard(tmp_path)
        for _ in range(FREE_KEYS + 1):
            assert await ask(guarded, headers=wrong()) == 401
        statuses = await asyncio.gather(*(ask(guarded, headers=wrong()) for _ in range(MAX_WAITING + 30)))
        assert sorted(statuses) == [401] * MAX_WAITING + [429] * 30
        monkeypatch.setattr(rate_limits, "TURN_SECONDS", 1000.0)
        assert await ask(guarded, headers=RIGHT) == 200

    asyncio.run(asyncio.wait_for(repeat(), 60))


def test_a_guesser_does_not_lock_out_a_key_that_was_right_at_the_same_address_before(tmp_path, monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 1000.0)

    async def guess():
        guarded = guard(tmp_path)
        assert await ask(guarded, headers=RIGHT) == 200
        for number in range(FREE_KEYS + 1):
            await ask(guarded, headers=wrong(number))
        waiting = [asyncio.ensure_future(ask(guarded, headers=wrong(99))) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        assert await ask(guarded, headers=wrong(100)) == 429
        assert await ask(guarded, headers=RIGHT) == 200
        for each in waiting:
            each.cancel()

    asyncio.run(asyncio.wait_for(guess(), 60))


def test_wrong_keys_are_forgotten_and_take_no_memory_for_ever(monkeypatch):
    monkeypatch.setattr(rate_limits, "TURN_SECONDS", 1000.0)
    monkeypatch.setattr(rate_limits, "MAX_NAMES", 50)
    known = WrongKeys()
    for number in range(FREE_KEYS + 1):
        known.add("2001:db8::1", b"%d" % number)
    monkeypatch.setattr(rate_limits, "FORGET_SECONDS", 0.001)
    time.sleep(0.05)
    assert asyncio.run(known.turn("2001:db8::1", b"another"))
    for number in range(100):
        known.add(f"2001:db8:0:{number:x}::1", b"guess")
        known.add(f"2001:db8:0:{number:x}::2", b"guess")  # of the same network
    assert len(known) == 100  # 50 networks, and 50 keys


def scope_of(key):
    return {CALLER: key}


def test_an_allowance_is_each_callers_own_and_comes_back_over_a_day(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(rate_limits.time, "monotonic", lambda: now[0])
    pins = Pins(2)
    pins.check(scope_of("key 1"))
    pins.check(scope_of("key 1"))
    with pytest.raises(AllowanceUsedUp, match="may pin 2 videos a day; try again in 43200 seconds") as refused:
        pins.check(scope_of("key 1"))
    assert schemas.refusal(refused.value)[0] == 429
    assert schemas.refusal(refused.value)[2] == {"Retry-After": "43200"}
    pins.check(scope_of("key 2"))
    now[0] += 43_201
    pins.check(scope_of("key 1"))


def test_pinning_is_bounded_for_each_key(tmp_path):
    request = VideoRequest(model="pocket", seed=1)
    job = Job(
        id=f"video_{'0' * 32}", status="queued", request=request, created_at=0, title=None, image=None, priority=0
    )
    queue = SimpleNamespace(get=lambda _: job, pin=lambda *_, **__: None)
    app = videos.make_app()
    app.state.host = SimpleNamespace(queue=queue, pins=Pins(3), bodies=BodyQuota(20, 0))
    settings = Settings(data_dir=tmp_path, api_keys=("one", "two"))
    app.add_middleware(lambda inner: _Guard(inner, settings, app.routes))
    client = TestClient(app)

    def pin(key, pinned):
        return client.post(f"/v1/videos/{job.id}", json={"pinned": pinned}, headers={"X-API-Key": key}).status_code

    assert [pin("one", True) for _ in range(4)] == [200, 200, 200, 429]
    assert [pin("one", False), pin("two", True)] == [200, 200]


def test_images_given_to_the_page_are_bounded_for_each_caller(tmp_path, png):
    images = ImageService()
    try:
        drafts = Drafts(tmp_path, 0, images)
        drafts.bytes = DraftBytes(2.5 * len(png))
        app = FastAPI()
        app.include_router(routes(None, drafts, BodyQuota(20, 0), lambda: False))
        answers = [TestClient(app).post("/studio/images?language=ko", content=png) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert int(answers[2].headers["retry-after"]) > 0
        assert answers[2].json()["error"]["message"].startswith("하루에 이미지를")
    finally:
        images.close()


def test_asking_for_figures_often_costs_no_more():
    asked = []
    queue = SimpleNamespace(waiting=lambda: asked.append(1) or 0, running=lambda: 0, workers=(), unknown_files=0)
    metrics = Metrics()
    assert len({metrics.text(queue) for _ in range(50)}) == 1
    assert len(asked) <= 2

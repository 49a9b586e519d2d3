"""/readyz checks the database within a time limit."""

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from certificate_files import own_certificate
from kinema.errors import CredentialsError, QueueUnavailable
from kinema.media.credentials.certificates import make_ca
from kinema.media.credentials.signing_keys import signing_keys
from kinema.serving import lifespan
from kinema.serving.lifespan import ServerState
from kinema.settings import Settings


class FakeQueue:
    """A fake queue with ready workers."""

    ready, workers_ready, problems = True, True, ()
    batches = file_table = batch_files = webhooks = None

    def __init__(self, check):
        self.check_database = check

    def check_store(self):
        pass


@pytest.fixture
def make_state(monkeypatch, tmp_path):
    def make(check, settings=None):
        monkeypatch.setattr(lifespan, "Queue", lambda *_, **__: FakeQueue(check))
        return ServerState(settings or Settings(data_dir=tmp_path / "data"))

    return make


async def check_ready(state, times):
    return await asyncio.gather(*(state.ready() for _ in range(times)))


def test_server_with_working_database_is_ready(make_state):
    assert asyncio.run(check_ready(make_state(lambda: None), 1)) == [True]


def test_unavailable_database_is_logged_once_and_not_ready(make_state, caplog):
    def fail():
        raise QueueUnavailable("the database is unavailable")

    state = make_state(fail)
    assert [asyncio.run(check_ready(state, 1)) for _ in range(3)] == [[False]] * 3
    assert caplog.text.count("not ready: the database is unavailable") == 1


def test_hanging_database_is_not_ready_and_blocks_one_thread(make_state, monkeypatch):
    monkeypatch.setattr(lifespan, "PROBE_SECONDS", 0.1)
    released, checks = threading.Event(), []

    def hang():
        checks.append(1)
        released.wait(30)

    async def check_and_release():
        results = await check_ready(make_state(hang), 20)
        released.set()
        return results

    start_time = time.monotonic()
    assert asyncio.run(check_and_release()) == [False] * 20
    assert time.monotonic() - start_time < 10
    assert len(checks) == 1


def test_server_whose_certificate_expires_is_not_ready_until_it_is_renewed(make_state, tmp_path, caplog):
    ca, folder = make_ca(), tmp_path / "own"
    settings = own_certificate(folder, ca=ca)
    state = make_state(lambda: None, settings)
    assert (asyncio.run(check_ready(state, 1)), state.problems) == ([True], [])
    own_certificate(folder, ca=ca, days=-1)
    expired = {"chain": (folder / "cert.pem").read_text(), "key": (folder / "key.pem").read_text()}
    state.signed.keys = replace(state.signed.keys, **expired)
    assert [asyncio.run(check_ready(state, 1)) for _ in range(3)] == [[False]] * 3
    assert caplog.text.count("cert.pem expired on") == 1
    [problem] = state.problems
    assert problem.startswith("videos can't be signed with content credentials, so none can be downloaded")
    own_certificate(folder, ca=ca, days=60)
    assert (asyncio.run(check_ready(state, 1)), state.problems) == ([True], [])


def test_server_logs_at_the_start_that_its_certificate_expires_soon(make_state, tmp_path, caplog):
    settings = own_certificate(tmp_path / "own", days=20.5)
    make_state(lambda: None, settings)
    end = signing_keys(settings).certificate.not_valid_after_utc
    assert f"the certificate in {settings.c2pa_cert} expires on {end:%Y-%m-%d}, in 20 days" in caplog.text
    caplog.clear()
    make_state(lambda: None, own_certificate(tmp_path / "own", days=31))
    assert "expires on" not in caplog.text


def test_server_does_not_start_with_a_file_of_trusted_certificates_that_has_none(make_state, tmp_path):
    (tmp_path / "junk.pem").write_text("junk")
    settings = Settings(data_dir=tmp_path / "data", c2pa_trust=tmp_path / "junk.pem")
    with pytest.raises(CredentialsError, match=r"junk\.pem has no valid certificate .* for KINEMA_C2PA_TRUST"):
        make_state(lambda: None, settings)

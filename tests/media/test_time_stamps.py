"""Content credentials with the time stamp of an authority, which is real, wrong, or does not answer."""

import datetime
import io
import json
import time

import c2pa
import numpy as np
import pytest
from time_stamp_authority import TimeStampAuthority

from kinema.errors import CredentialsError
from kinema.media.credentials.c2pa_library import context
from kinema.media.credentials.credential_check import check_credentials
from kinema.media.credentials.signing_keys import trust_anchors
from kinema.media.video import Video
from kinema.settings import Settings, read_settings

FRAMES = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    authority = TimeStampAuthority(tmp_path_factory.mktemp("authority"))
    yield authority
    authority.close()


@pytest.fixture
def authority(running, monkeypatch, tmp_path):
    """An authority that answers correctly, and that the settings name."""
    running.reply = running.answer
    monkeypatch.setenv("KINEMA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("KINEMA_C2PA_TIMESTAMP_URL", running.url)
    return running


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_signed_file_has_the_time_that_a_trusted_authority_saw(authority, recipe, tmp_path, suffix):
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    path = Video(FRAMES, 7, recipe).save(tmp_path / f"a{suffix}", credentials=True)
    after = datetime.datetime.now(datetime.UTC)
    sidecar = (tmp_path / "a.c2pa").read_bytes() if suffix == ".webm" else None
    content, own = path.read_bytes(), trust_anchors(Settings(data_dir=tmp_path / "data"))
    check = check_credentials(content, sidecar, own + authority.ca.read_text())
    assert (check.state, check.problems) == ("trusted", ())
    assert before <= datetime.datetime.fromisoformat(check.signed_at) <= after
    unknown = check_credentials(content, sidecar, own)
    assert (unknown.state, unknown.signed_at) == ("trusted", None)
    assert FRAMES[0].tobytes() not in authority.queries[-1]
    assert len(authority.queries[-1]) < 100  # a hash
    if sidecar is None:
        store = json.loads(c2pa.Reader("video/mp4", io.BytesIO(content), context=context(own)).json())
        results = store["validation_results"]["activeManifest"]
        assert "timeStamp.validated" in {item["code"] for item in results["success"]}
        assert "timeStamp.untrusted" in {item["code"] for item in results["informational"]}


def garbage(authority, handler, _query):
    authority.send(handler, b"<html>no time stamp</html>")


def nothing(authority, handler, _query):
    authority.send(handler, b"")


def failure(authority, handler, _query):
    authority.send(handler, b"", status=500)


def another(authority, handler, query):
    """Answer a query that was not asked: with another hash."""
    position = query.index(bytes.fromhex("0420")) + 2  # the hash, an octet string of 32 bytes
    authority.answer(handler, query[:position] + bytes(32) + query[position + 32 :])


def rejection(authority, handler, query):
    authority.answer(handler, query, digests="sha1")


@pytest.mark.parametrize("reply", [garbage, nothing, failure, another, rejection], ids=lambda reply: reply.__name__)
def test_nothing_is_written_with_a_wrong_time_stamp(authority, recipe, tmp_path, reply):
    authority.reply = lambda handler, query: reply(authority, handler, query)
    with pytest.raises(CredentialsError) as raised:
        Video(FRAMES, 7, recipe).save(tmp_path / "a.mp4", credentials=True)
    message = str(raised.value)
    assert "the time-stamp authority http://127.0.0.1:" in message
    assert "/tsa gave no valid time stamp (" in message
    assert message.endswith("); try again later, or remove KINEMA_C2PA_TIMESTAMP_URL")
    assert "hidden" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_nothing_is_written_if_the_authority_is_away(authority, recipe, tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("KINEMA_C2PA_TIMESTAMP_URL", "http://user:hidden@127.0.0.1:9/")
    with pytest.raises(CredentialsError) as raised:
        Video(FRAMES, 7, recipe).save(tmp_path / f"a{suffix}", credentials=True)
    assert "the time-stamp authority http://127.0.0.1:9/ gave no valid time stamp (error sending" in str(raised.value)
    assert "hidden" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.slow
def test_authority_that_never_answers_is_given_up_after_30_seconds(authority, recipe, tmp_path):
    authority.reply = lambda _handler, _query: authority.closed.wait()
    began = time.monotonic()
    with pytest.raises(CredentialsError, match="gave no valid time stamp"):
        Video(FRAMES, 7, recipe).save(tmp_path / "a.mp4", credentials=True)
    assert time.monotonic() - began < 40
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_url_is_not_shown(authority):
    assert "hidden" not in repr(read_settings())
    assert "hidden" not in json.dumps(read_settings().model_dump(mode="json"))

"""Parsing of form and JSON bodies, their images and the limits on their size."""

import asyncio
import base64
import gc
import json
import shutil
import tempfile
from contextlib import closing
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from kinema.errors import InsufficientDisk, InvalidImage, InvalidRequest, RequestTooLarge, ServerBusy
from kinema.serving import body_quota, request_parsing
from kinema.serving.body_quota import BodyQuota
from kinema.serving.rate_limits import CALLER
from kinema.values import VideoRequest

QUOTA = BodyQuota(20, 0)
PNG = b"\x89PNG\r\n\x1a\n\0\xff picture"


def parse(body, content_type):
    """Parse a body that arrives in small pieces."""
    pieces = [body[i : i + 7] for i in range(0, len(body), 7)] or [b""]

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}
    with closing(asyncio.run(request_parsing.receive(Request(scope, receive), QUOTA))) as received:
        return received.parse()


def form(*parts, end=b"--x--\r\n"):
    """Parse a multipart body; each part is a Content-Disposition, a Content-Type or None, and data."""
    body = b""
    for disposition, kind, data in parts:
        body += f"--x\r\nContent-Disposition: form-data; {disposition}\r\n".encode()
        body += b"" if kind is None else f"Content-Type: {kind}\r\n".encode()
        body += b"\r\n" + data + b"\r\n"
    return parse(body + end, "multipart/form-data; boundary=x")


def value(name, data, kind="application/json"):
    """Return a part as Swagger UI sends a value: a file with JSON."""
    return f'name="{name}"; filename="blob"', kind, data


def image_url(url):
    return parse(json.dumps({"image": {"image_url": url}}).encode(), "application/json")


def test_json_blobs_in_form_are_parsed_as_values():
    many = [value(f"setting_{i}", b"null") for i in range(30)]
    parsed = form(*many, value("seed", b"7"), value("prompt", b'"a \\"red\\" balloon"'), value("model", b"pocket"))
    assert parsed.fields == {"seed": "7", "prompt": 'a "red" balloon', "model": "pocket"}
    assert form(value("keep", b"true"), value("title", "열기구".encode(), "text/plain")).keep


@pytest.mark.parametrize("sent", [b"true", b'"true"', b"1"])
def test_loop_is_parsed_as_a_boolean(sent):
    fields = form(value("loop", sent)).fields | parse(b'{"loop": %s}' % sent, "application/json").fields
    assert VideoRequest.checked(**fields).loop


@pytest.mark.parametrize(
    ("disposition", "kind"),
    [
        ('name="image"; filename="a.png"', "image/png"),
        ('name="image"', "image/png"),
        ('name="image"', None),
        ('name="image"; filename="blob"', "application/json"),
        ("name=image; filename=a.png", "application/octet-stream"),
    ],
)
def test_part_named_image_is_the_image(disposition, kind):
    assert (form((disposition, kind, PNG)).image, form((disposition, kind, PNG)).image_field) == (PNG, "image")


def test_form_image_can_be_data_url_or_json_object():
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    for text in (url, json.dumps({"image_url": url}), json.dumps({"image_url": {"url": url}})):
        assert form(('name="input_reference"', None, text.encode())).image == PNG
        assert form(value("input_reference", text.encode())).image == PNG


@pytest.mark.parametrize(
    ("parts", "param", "message"),
    [
        ([('name="picture"; filename="a.png"', "image/png", PNG)], "picture", "must be text; only"),
        ([('name="seed"; filename="a.txt"', "text/plain", b"1" * 131_073)], "seed", "must be text; only"),
        ([('name="seed"', None, b"1")] * 2, "seed", "sent twice"),
        ([("filename=a", None, b"1")], None, "has no name"),
        ([(f'name="s{i}"', None, b"1") for i in range(101)], None, "more than 100 parts"),
    ],
)
def test_invalid_part_is_named_in_error(parts, param, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        form(*parts)
    assert caught.value.param == param


def test_truncated_form_is_rejected_and_empty_form_is_not():
    with pytest.raises(InvalidRequest, match="its last boundary is missing"):
        form(('name="seed"', None, b"1"), end=b"")
    assert form().fields == {}


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "data:image/png;charset=utf-8;base64,",
        "data:image/png;name=a.png;base64,",
        "DATA:Image/PNG;BASE64,",
        "data:application/octet-stream;base64,",
        "data:;base64,",
        " data:image/png; base64 ,",
    ],
)
def test_data_url_variants_of_browsers_are_decoded(head):
    text = base64.b64encode(PNG).decode()
    for written in (text, text.rstrip("="), text.replace("+", "%2B").replace("=", "%3D"), f"{text[:9]}\n {text[9:]}"):
        assert image_url(head + written).image == PNG


def test_percent_encoded_data_url_is_decoded():
    assert image_url("data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)).image == PNG


@pytest.mark.parametrize("url", ["data:image/png;base64,@@", "data:;base64,AAAAA", "data:image/png;base64,ÄÖ"])
def test_invalid_base64_error_names_field(url):
    with pytest.raises(InvalidImage, match="in image is not valid base64") as caught:
        image_url(url)
    assert caught.value.param == "image"


def test_url_scheme_is_case_insensitive():
    assert image_url("HTTPS://example.org/A.png").image == "HTTPS://example.org/A.png"


def as_json(fields):
    return parse(json.dumps(fields).encode(), "application/json")


@pytest.mark.parametrize(
    "place", [lambda url: url, lambda url: {"image_url": url}, lambda url: {"image_url": {"url": url}}]
)
@pytest.mark.parametrize("escape", [False, True])
def test_large_json_with_image_is_parsed(place, escape):
    image = PNG + bytes(1_500_000)
    text = json.dumps({"seed": 7, "image": place("Data:image/png;base64," + base64.b64encode(image).decode())})
    body = (text.replace("/", r"\/") if escape else text).encode()
    with closing(asyncio.run(request_parsing.receive_any(FakeRequest(body), QUOTA, "application/json"))) as received:
        parsed = received.parse()
    assert (parsed.image, parsed.fields) == (image, {"seed": 7})


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"prompt": "' + b"x" * 1_100_000 + b'"}', "application/json"),
        (b"[" + b"[]," * 400_000 + b"[]]", "application/json"),
        (b'{"prompt": "data:' + b"x" * 1_100_000 + b'"}', "application/json"),
        (b'{"image": "data:,a", "prompt": "' + b"x" * 1_100_000 + b'"}', "application/json"),
        (b'"data:' + b'\\"' * 600_000, "application/json"),
        (b'{"a":[' + b"[]," * 50_000 + b"[]]}", "application/json"),
        (b"prompt=" + b"x" * 1_100_000, "application/x-www-form-urlencoded"),
        (b'{"image": "http://host/a.png", "prompt": "' + b"x" * 200_000 + b'"}', "application/json"),
    ],
)
def test_large_body_without_image_is_rejected(body, kind):
    with (
        closing(asyncio.run(request_parsing.receive_any(FakeRequest(body), QUOTA, kind))) as received,
        pytest.raises(RequestTooLarge),
    ):
        received.parse()


@pytest.mark.parametrize(
    ("payload", "error"),
    [(b";base64," + rb"\u0041" * 100_000, RequestTooLarge), (b"," + b"%41" * 100_000, InvalidImage)],
)
def test_large_data_url_must_be_plain_base64(payload, error):
    body = b'{"image": "data:image/png' + payload + b'"}'
    received = asyncio.run(request_parsing.receive_any(FakeRequest(body), QUOTA, "application/json"))
    with closing(received), pytest.raises(error, match="plain base64"):
        received.parse()


def test_form_with_200_fields_is_rejected():
    with pytest.raises(InvalidRequest, match="form can't be parsed"):
        parse(b"&".join(b"a%d=1" % i for i in range(200)), "application/x-www-form-urlencoded")


def test_large_body_is_stored_in_file():
    with closing(asyncio.run(request_parsing.receive_any(FakeRequest(bytes(5_000_000)), QUOTA))) as received:
        assert not received.small
        assert received.file.fileno() >= 0  # a temporary file
    with pytest.raises(RequestTooLarge):
        asyncio.run(request_parsing.receive_any(FakeRequest(bytes(2000)), QUOTA, max_bytes=1000))


def test_body_quota_limits_total_and_each_caller(monkeypatch):
    monkeypatch.setattr(body_quota, "QUOTA_MB", 4)
    quota = BodyQuota(1, 0)

    def receive(size, caller):
        return asyncio.run(request_parsing.receive_any(FakeRequest(bytes(size), caller), quota))

    with closing(receive(1_900_000, "one")) as first, closing(receive(1_900_000, "other")):
        for size, caller in ((200_000, "one"), (500_000, "third")):
            with pytest.raises(ServerBusy, match="upload quota of 4 MB"):
                receive(size, caller)
        receive(100_000, "one").close()  # in memory
        assert quota.used == 3_800_000  # rejected bodies take nothing
        first.close()
        receive(1_900_000, "third").close()
    assert quota.used == 0
    with pytest.raises(RequestTooLarge):
        asyncio.run(request_parsing.receive_any(FakeRequest(bytes(2_000_000)), quota, max_bytes=1_000_000))
    assert quota.used == 0
    unclosed = receive(1_000_000, "one")
    unclosed.file.close()
    del unclosed
    gc.collect()
    assert quota.used == 0


def test_body_quota_is_at_least_two_maximum_bodies():
    assert BodyQuota(1000, 0).max_bytes == 2_000_000_000
    assert BodyQuota(20, 0).max_bytes == 1_000_000_000


def test_body_is_rejected_if_disk_reserve_would_be_used(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    free = {str(tmp_path): 1_500_000_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[str(path)]))
    quota = BodyQuota(20, 1)
    asyncio.run(request_parsing.receive_any(FakeRequest(bytes(1_000_000)), quota)).close()
    free[str(tmp_path)] = 1_000_050_000
    with pytest.raises(InsufficientDisk, match=r"1\.0 GB is free .*TMPDIR.*KINEMA_MIN_FREE_GB"):
        asyncio.run(request_parsing.receive_any(FakeRequest(bytes(1_000_000)), quota))
    asyncio.run(request_parsing.receive_any(FakeRequest(bytes(100_000)), quota)).close()  # in memory
    assert quota.used == 0


class FakeRequest:
    """A request whose body arrives in pieces."""

    def __init__(self, body, caller=""):
        self._body = body
        self.scope = {CALLER: caller}

    async def stream(self):
        for start in range(0, len(self._body), 65536):
            yield self._body[start : start + 65536]

"""A body as fields and an image: whatever a client calls its parts, and however it writes a data URL."""

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

ROOM = BodyQuota(20, 0)
PNG = b"\x89PNG\r\n\x1a\n\0\xff picture"


def asked(body, content_type):
    """What is read of a body that arrives in small pieces."""
    pieces = [body[i : i + 7] for i in range(0, len(body), 7)] or [b""]

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}
    with closing(asyncio.run(request_parsing.receive(Request(scope, receive), ROOM))) as came:
        return came.asked()


def form(*parts, end=b"--x--\r\n"):
    """A multipart body of parts, each a Content-Disposition, a Content-Type or None, and data."""
    body = b""
    for disposition, kind, data in parts:
        body += f"--x\r\nContent-Disposition: form-data; {disposition}\r\n".encode()
        body += b"" if kind is None else f"Content-Type: {kind}\r\n".encode()
        body += b"\r\n" + data + b"\r\n"
    return asked(body + end, "multipart/form-data; boundary=x")


def value(name, data, kind="application/json"):
    """A part as Swagger UI sends a value from a browser: a file of JSON."""
    return f'name="{name}"; filename="blob"', kind, data


def image_url(url):
    return asked(json.dumps({"image": {"image_url": url}}).encode(), "application/json")


def test_values_that_a_browser_sends_as_files_of_json_are_values():
    many = [value(f"setting_{i}", b"null") for i in range(30)]
    given = form(*many, value("seed", b"7"), value("prompt", b'"a \\"red\\" balloon"'), value("model", b"pocket"))
    assert given.fields == {"seed": "7", "prompt": 'a "red" balloon', "model": "pocket"}
    assert form(value("keep", b"true"), value("title", "열기구".encode(), "text/plain")).keep


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
def test_a_part_with_the_images_name_is_the_image(disposition, kind):
    assert (form((disposition, kind, PNG)).image, form((disposition, kind, PNG)).image_field) == (PNG, "image")


def test_an_image_in_a_form_may_be_a_data_url_or_an_object():
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    for text in (url, json.dumps({"image_url": url}), json.dumps({"image_url": {"url": url}})):
        assert form(('name="input_reference"', None, text.encode())).image == PNG
        assert form(value("input_reference", text.encode())).image == PNG


@pytest.mark.parametrize(
    ("parts", "param", "words"),
    [
        ([('name="picture"; filename="a.png"', "image/png", PNG)], "image", "is a file, and only"),
        ([('name="seed"; filename="a.txt"', "text/plain", b"1" * 131_073)], "seed", "is a file, and only"),
        ([('name="seed"', None, b"1")] * 2, "seed", "given twice"),
        ([("filename=a", None, b"1")], None, "has no name"),
        ([(f'name="s{i}"', None, b"1") for i in range(101)], None, "more than 100 parts"),
    ],
)
def test_a_part_that_is_no_value_is_named(parts, param, words):
    with pytest.raises(InvalidRequest, match=words) as fault:
        form(*parts)
    assert fault.value.param == param


def test_a_form_that_was_cut_off_is_refused_and_an_empty_one_is_not():
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
def test_a_data_url_is_read_as_browsers_do(head):
    text = base64.b64encode(PNG).decode()
    for written in (text, text.rstrip("="), text.replace("+", "%2B").replace("=", "%3D"), f"{text[:9]}\n {text[9:]}"):
        assert image_url(head + written).image == PNG


def test_a_data_url_may_do_without_base64():
    assert image_url("data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)).image == PNG


@pytest.mark.parametrize("url", ["data:image/png;base64,@@", "data:;base64,AAAAA", "data:image/png;base64,ÄÖ"])
def test_what_is_not_base64_is_refused_by_the_fields_name(url):
    with pytest.raises(InvalidImage, match="in image is not valid base64") as fault:
        image_url(url)
    assert fault.value.param == "image"


def test_an_address_may_be_written_in_capitals():
    assert image_url("HTTPS://example.org/A.png").image == "HTTPS://example.org/A.png"


def as_json(fields):
    return asked(json.dumps(fields).encode(), "application/json")


@pytest.mark.parametrize(
    "place", [lambda url: url, lambda url: {"image_url": url}, lambda url: {"image_url": {"url": url}}]
)
@pytest.mark.parametrize("escape", [False, True])
def test_json_may_be_large_for_its_image(place, escape):
    image = PNG + bytes(1_500_000)
    text = json.dumps({"seed": 7, "image": place("Data:image/png;base64," + base64.b64encode(image).decode())})
    body = (text.replace("/", r"\/") if escape else text).encode()
    with closing(asyncio.run(request_parsing.receive_any(Whole(body), ROOM, "application/json"))) as came:
        given = came.asked()
    assert (given.image, given.fields) == (image, {"seed": 7})


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
def test_bodies_without_an_image_have_a_bound_of_their_own(body, kind):
    with (
        closing(asyncio.run(request_parsing.receive_any(Whole(body), ROOM, kind))) as came,
        pytest.raises(RequestTooLarge),
    ):
        came.asked()


@pytest.mark.parametrize(
    ("payload", "error"),
    [(b";base64," + rb"\u0041" * 100_000, RequestTooLarge), (b"," + b"%41" * 100_000, InvalidImage)],
)
def test_a_large_data_url_is_plain_base64(payload, error):
    body = b'{"image": "data:image/png' + payload + b'"}'
    came = asyncio.run(request_parsing.receive_any(Whole(body), ROOM, "application/json"))
    with closing(came), pytest.raises(error, match="plain base64"):
        came.asked()


def test_a_form_has_few_fields():
    with pytest.raises(InvalidRequest, match="form can't be read"):
        asked(b"&".join(b"a%d=1" % i for i in range(200)), "application/x-www-form-urlencoded")


def test_a_large_body_is_not_in_memory_until_it_is_read():
    with closing(asyncio.run(request_parsing.receive_any(Whole(bytes(5_000_000)), ROOM))) as came:
        assert not came.small
        assert came.file.fileno() >= 0  # a file on the disk
    with pytest.raises(RequestTooLarge):
        asyncio.run(request_parsing.receive_any(Whole(bytes(2000)), ROOM, max_bytes=1000))


def test_what_waits_on_the_disk_is_bounded_for_all_callers_and_for_each(monkeypatch):
    monkeypatch.setattr(body_quota, "MOST_MB", 4)
    room = BodyQuota(1, 0)

    def come(size, caller):
        return asyncio.run(request_parsing.receive_any(Whole(bytes(size), caller), room))

    with closing(come(1_900_000, "one")) as first, closing(come(1_900_000, "other")):
        for size, caller in ((200_000, "one"), (500_000, "third")):
            with pytest.raises(ServerBusy, match="as many uploads as it can, 4 MB"):
                come(size, caller)
        come(100_000, "one").close()  # in memory
        assert room.used == 3_800_000  # what was refused takes nothing
        first.close()
        come(1_900_000, "third").close()
    assert room.used == 0
    with pytest.raises(RequestTooLarge):
        asyncio.run(request_parsing.receive_any(Whole(bytes(2_000_000)), room, max_bytes=1_000_000))
    lost = come(1_000_000, "one")
    lost.file.close()
    del lost
    gc.collect()
    assert room.used == 0


def test_two_of_the_largest_bodies_have_room():
    assert BodyQuota(1000, 0).max_bytes == 2_000_000_000
    assert BodyQuota(20, 0).max_bytes == 1_000_000_000


def test_a_body_leaves_the_reserve_free_on_the_disk_for_temporary_files(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    free = {str(tmp_path): 1_500_000_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[str(path)]))
    room = BodyQuota(20, 1)
    asyncio.run(request_parsing.receive_any(Whole(bytes(1_000_000)), room)).close()
    free[str(tmp_path)] = 1_000_050_000
    with pytest.raises(InsufficientDisk, match=r"1\.0 GB are free .*TMPDIR.*KINEMA_MIN_FREE_GB"):
        asyncio.run(request_parsing.receive_any(Whole(bytes(1_000_000)), room))
    asyncio.run(request_parsing.receive_any(Whole(bytes(100_000)), room)).close()  # in memory
    assert room.used == 0


class Whole:
    """A request whose body comes in pieces as a server reads them."""

    def __init__(self, body, caller=""):
        self._body = body
        self.scope = {CALLER: caller}

    async def stream(self):
        for start in range(0, len(self._body), 65536):
            yield self._body[start : start + 65536]

"""Which addresses are fetched, how long that may take, and what is said of those that are none."""

import socket
import threading
import time

import pytest

from kinema.errors import InvalidImage, InvalidRequest
from kinema.media.fetch import Unwanted, fetch
from kinema.settings import read_settings


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def deaf():
    """The port of a host that accepts, and never answers; and the connections that it has."""
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept():
            while True:
                try:
                    accepted.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listening.getsockname()[1], accepted
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in accepted:
        connection.close()


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("http://127.0.0.1:22/", ["127.0.0.1"]),
        ("http://127.0.0.1:8080/", ["127.0.0.1"]),
        ("http://127.0.0.1/", ["127.0.0.1:8080"]),
        ("https://127.0.0.1/", ["127.0.0.1:80"]),
        ("http://localhost:2/", ["localhost:1"]),
        ("http://127.0.0.1.example/", ["127.0.0.1"]),
        ("http://[::1]:5432/", ["[::1]"]),
    ],
)
def test_other_places_than_those_named_are_not_fetched(url, hosts):
    with pytest.raises(InvalidImage, match=f"is not fetched: only {hosts[0].replace('[', '.')[:5]}"):
        fetch(url, hosts)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("http://127.0.0.1:1/", ["example.org", "127.0.0.1:1"]),
        ("http://LOCALHOST:1/", ["localhost:1"]),
        ("http://localhost:1/", ["LocalHost:1"]),
        ("https://[::1]:1/", ["[::1]:1"]),
    ],
)
def test_places_that_are_named_are_asked_however_they_are_written(url, hosts):
    with pytest.raises(InvalidImage, match="can't be reached"):  # there is nothing at port 1
        fetch(url, hosts)


@pytest.mark.parametrize(
    "url",
    [
        "http://xn--/",
        "http://xn--a/x.png",
        "http://localhost:99999/",
        "http://localhost:-1/",
        "http://localhost:0/",
        "http://[::1/",
        "http://a..b/",
        f"http://{'a' * 70}.example/",
    ],
)
def test_an_address_that_can_be_none_says_so(url):
    with pytest.raises(InvalidImage, match=r"no usable address|can't be reached"):
        fetch(url)


def test_a_redirect_to_what_can_be_no_address_says_so():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://xn--/\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(InvalidImage, match=r"no usable address|can't be reached"):
            fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        thread.join()


def test_a_fetch_that_nobody_waits_for_is_given_up(deaf):
    port, accepted = deaf
    began = time.monotonic()
    with pytest.raises(Unwanted):
        fetch(f"http://127.0.0.1:{port}/", gone=lambda: bool(accepted))
    assert time.monotonic() - began < 10
    accepted[0].settimeout(10)
    while accepted[0].recv(10_000):  # its connection ends too
        pass


@pytest.mark.parametrize(
    "wrong", ["http://host", "host/path", "host:99999", "host:0", "me@host", ":80", "a:b", "é.org"]
)
def test_a_setting_that_names_no_place_is_refused(wrong):
    with pytest.raises(InvalidRequest, match="image_hosts can't be"):
        read_settings(image_hosts=wrong)
    assert read_settings(image_hosts="a.example,[::1]:8080").image_hosts == ("a.example", "[::1]:8080")

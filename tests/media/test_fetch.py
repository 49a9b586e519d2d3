"""Allowed URLs, cancellation and errors of the download."""

import socket
import threading
import time

import pytest

from kinema.errors import InvalidImage, InvalidRequest
from kinema.media.fetch import FetchCancelled, fetch
from kinema.settings import read_settings


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def unresponsive_host():
    """The port of a host that accepts connections but never responds, and its connections."""
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
        ("http://127.0.0.1.example/", ["127.0.0.1"]),
        ("http://localhost/", ["127.0.0.1", "other.example"]),
    ],
)
def test_url_of_other_host_is_rejected_with_allowed_hosts(url, hosts):
    with pytest.raises(InvalidImage, match=f"is not allowed: the server fetches only from {', '.join(hosts)};"):
        fetch(url, hosts)


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("http://127.0.0.1:22/", ["127.0.0.1"], "80 or 443"),
        ("http://127.0.0.1:8080/", ["127.0.0.1"], "80 or 443"),
        ("http://127.0.0.1/", ["127.0.0.1:8080"], "8080"),
        ("https://127.0.0.1/", ["127.0.0.1:80"], "80"),
        ("http://localhost:2/", ["example.org", "localhost:1"], "1"),
        ("http://[::1]:5432/", ["[::1]"], "80 or 443"),
    ],
)
def test_url_with_other_port_is_rejected_with_allowed_ports(url, hosts, ports):
    with pytest.raises(InvalidImage, match=f"is not allowed: the server fetches only from port {ports} of this host;"):
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
def test_url_of_allowed_host_is_requested_in_any_spelling(url, hosts):
    with pytest.raises(InvalidImage, match="can't be reached"):  # nothing listens on port 1
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
def test_invalid_url_is_rejected(url):
    with pytest.raises(InvalidImage, match=r"not a valid URL|can't be reached"):
        fetch(url)


def test_redirect_to_invalid_url_is_rejected():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def respond():
            connection, _ = listening.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://xn--/\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=respond)
        thread.start()
        with pytest.raises(InvalidImage, match=r"not a valid URL|can't be reached"):
            fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        thread.join()


def test_cancelled_fetch_closes_connection(unresponsive_host):
    port, accepted = unresponsive_host
    began = time.monotonic()
    with pytest.raises(FetchCancelled):
        fetch(f"http://127.0.0.1:{port}/", is_cancelled=lambda: bool(accepted))
    assert time.monotonic() - began < 10
    accepted[0].settimeout(10)
    while accepted[0].recv(10_000):  # until the connection is closed
        pass


@pytest.mark.parametrize(
    "value", ["http://host", "host/path", "host:99999", "host:0", "me@host", ":80", "a:b", "é.org"]
)
def test_invalid_image_hosts_setting_is_rejected(value):
    with pytest.raises(InvalidRequest, match=r"image_hosts .* is invalid; expected comma-separated hosts"):
        read_settings(image_hosts=value)
    assert read_settings(image_hosts="a.example,[::1]:8080").image_hosts == ("a.example", "[::1]:8080")

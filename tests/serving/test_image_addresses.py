"""Addresses of images: what is no address, and hosts that never answer."""

import socket
import threading
import time

import httpx
import pytest
from server_process import start, stop


@pytest.fixture(scope="module")
def deaf():
    """A host that accepts, and never answers; and the connections that are open to it."""
    opened = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept():
            while True:
                try:
                    opened.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", opened
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in opened:
        connection.close()


@pytest.fixture(scope="module")
def fetching(deaf, tmp_path_factory):
    running = start(tmp_path_factory.mktemp("fetching") / "data", image_hosts=f"{deaf[0]},LOCALHOST,xn--")
    yield running
    stop(running)


@pytest.mark.parametrize("url", ["http://xn--/", "http://localhost:99999/", "http://localhost:22/", "http://[::1/"])
@pytest.mark.parametrize("path", ["/generate", "/v1/videos", "/v1/videos/sync"])
def test_invalid_image_url_returns_400(fetching, path, url):
    answer = httpx.post(f"{fetching.url}{path}", json={"image": {"image_url": url}})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith(("'http", "http"))


def test_disconnect_cancels_image_fetch(fetching, deaf):
    place, opened = deaf
    body = b'{"image": {"image_url": "http://%s/a.png"}}' % place.encode()
    address = ("127.0.0.1", int(fetching.url.rpartition(":")[2]))
    head = (
        b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    clients = [socket.create_connection(address) for _ in range(20)]
    for client in clients:
        client.sendall(head % len(body) + body)
    deadline = time.monotonic() + 30
    while not opened:
        assert time.monotonic() < deadline, "nothing was fetched"
        time.sleep(0.02)
    began = time.monotonic()
    assert httpx.get(f"{fetching.url}/v1/videos", timeout=30).status_code == 200
    assert time.monotonic() - began < 10
    assert len(opened) < 20  # the rest waits for its turn
    for client in clients:
        client.close()
    # All are given up, long before their time is over.
    for connection in list(opened):
        connection.settimeout(15)
        while connection.recv(10_000):
            pass
    with fetching.client() as client:
        assert client.get("/v1/videos").json()["data"] == []

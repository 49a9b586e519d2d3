"""URLs of images: invalid URLs, and hosts that never respond."""

import socket
import threading
import time

import httpx
import pytest
from server_process import start, stop


@pytest.fixture(scope="module")
def silent_host():
    """A host that accepts connections and never responds, and its open connections."""
    opened = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            while True:
                try:
                    opened.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", opened
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in opened:
        connection.close()


@pytest.fixture(scope="module")
def fetching_server(silent_host, tmp_path_factory):
    running = start(tmp_path_factory.mktemp("fetching_server") / "data", image_hosts=f"{silent_host[0]},LOCALHOST,xn--")
    yield running
    stop(running)


@pytest.mark.parametrize("url", ["http://xn--/", "http://localhost:99999/", "http://localhost:22/", "http://[::1/"])
@pytest.mark.parametrize("path", ["/generate", "/v1/videos", "/v1/videos/sync"])
def test_invalid_image_url_returns_400(fetching_server, path, url):
    response = httpx.post(f"{fetching_server.url}{path}", json={"image": {"image_url": url}})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"].startswith(("'http", "http"))


def test_disconnect_cancels_image_fetch(fetching_server, silent_host):
    host, opened = silent_host
    body = b'{"image": {"image_url": "http://%s/a.png"}}' % host.encode()
    address = ("127.0.0.1", int(fetching_server.url.rpartition(":")[2]))
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
    start_time = time.monotonic()
    assert httpx.get(f"{fetching_server.url}/v1/videos", timeout=30).status_code == 200
    assert time.monotonic() - start_time < 10
    assert len(opened) < 20  # the others wait for a thread
    for client in clients:
        client.close()
    # All fetches are cancelled long before their time-out.
    for connection in list(opened):
        connection.settimeout(15)
        while connection.recv(10_000):
            pass
    with fetching_server.client() as client:
        assert client.get("/v1/videos").json()["data"] == []

"""Limits on connections: silent, slow and many clients, and shutdown of the server."""

import contextlib
import resource
import socket
import threading
import time

import pytest
import uvicorn

from kinema.serving import connections
from kinema.serving.connections import Connection, Limits

HALF_A_HEADER = b"GET / HTTP/1.1\r\nHost: local"
HALF_A_BODY = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhalf"
LARGE = 50_000_000


async def app(scope, receive, send):
    """Read the body; send a small or large response, or none (/never)."""
    if scope["type"] != "http":
        return
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message["more_body"]:
            break
    if scope["path"] == "/never":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    body = bytes(LARGE) if scope["path"] == "/large" else b"hello"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def run_server(**limits):
    """Run a server in this process with these limits; yield it and its port."""

    class Limited(Connection):
        pass

    Limited.limits = Limits(**limits)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=Limited, ws="none", lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def connect(port, sent=b""):
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(sent)
    return connection


def read_all(connection):
    """Return everything received until the server closes the connection."""
    received = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 20):
            received += piece
    return received


def send_get(port, path="/"):
    return connect(port, b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path.encode())


@pytest.mark.parametrize("sent", [b"", HALF_A_HEADER, HALF_A_BODY])
def test_incomplete_request_times_out(sent):
    with run_server(header=0.4, body=0.4) as (_, port):
        response = read_all(connect(port, sent))
        assert response.startswith(b"HTTP/1.1 408")
        assert b'"code": "request_timeout"' in response
        assert read_all(send_get(port)).endswith(b"hello")


def test_slow_body_times_out_and_steady_body_is_read():
    with run_server(body=4, body_rate=100) as (_, port):
        slow, steady = connect(port, HALF_A_BODY), connect(port, HALF_A_BODY)
        for _ in range(20):
            with contextlib.suppress(OSError):
                slow.sendall(b"x")
            steady.sendall(b"x" * 49)
            time.sleep(0.1)
        steady.sendall(b"x" * (1000 - 4 - 20 * 49))
        assert read_all(slow).startswith(b"HTTP/1.1 408")
        steady.settimeout(10)
        assert steady.recv(1000).startswith(b"HTTP/1.1 200")
        steady.close()


@pytest.mark.parametrize("trickle", [b"", b"x"])
def test_fast_start_of_body_does_not_extend_its_timeout(trickle):
    with run_server(body=0.5, body_rate=20) as (server, port), connect(port, HALF_A_BODY) as client:
        wait_until(lambda: any(connection.awaits_body for connection in server.server_state.connections))
        client.sendall(b"x" * 900)  # takes 45 seconds at the minimum rate
        client.settimeout(0.1)
        while True:
            try:
                client.sendall(trickle)
                response = client.recv(1000)
                break
            except TimeoutError:
                continue
            except ConnectionError:  # the byte arrived after the close, so the response is lost
                assert trickle
                return
        assert response.startswith(b"HTTP/1.1 408")
        if not trickle:
            client.settimeout(30)
            assert b"slower than 20 bytes per second for 0.5 seconds" in response + read_all(client)


def test_unread_response_times_out_and_slow_handler_does_not():
    limits = {"header": 0.3, "body": 0.3, "response": 0.4}
    with run_server(**limits) as (server, port), send_get(port, "/never"), send_get(port, "/large") as unread:
        wait_until(lambda: len(server.server_state.connections) == 2)
        wait_until(lambda: len(server.server_state.connections) == 1)
        assert len(read_all(unread)) < LARGE


def test_silent_connections_are_dropped_for_new_ones():
    with run_server(connections=5) as (server, port), contextlib.ExitStack() as opened:

        def count_busy():
            return sum(not (c.awaits_header or c.awaits_body) for c in server.server_state.connections)

        for _ in range(3):
            opened.enter_context(send_get(port, "/never"))
        body = opened.enter_context(connect(port, HALF_A_BODY))
        wait_until(lambda: count_busy() == 3)
        silent = [connect(port, HALF_A_HEADER) for _ in range(20)]
        assert read_all(send_get(port)).endswith(b"hello")
        assert len(server.server_state.connections) <= 6
        assert all(read_all(connection) == b"" for connection in silent)
        # A client that sends a body is dropped last; one that waits for its response is never dropped.
        body.sendall(b"x" * 996)
        assert body.recv(1000).startswith(b"HTTP/1.1 200")
        for _ in range(2):
            opened.enter_context(send_get(port, "/never"))
        wait_until(lambda: count_busy() == 5)
        assert read_all(send_get(port)).startswith(b"HTTP/1.1 503")


def test_shutdown_closes_all_connections():
    with run_server(shutdown=1) as (server, port):
        clients = [connect(port, sent) for sent in (b"", HALF_A_HEADER, HALF_A_BODY)]
        clients += [send_get(port, "/never"), send_get(port, "/large")]
        wait_until(lambda: len(server.server_state.connections) == len(clients))
        time.sleep(0.1)
        server.should_exit = True
        assert b'"code": "queue_unavailable"' in read_all(clients[2])
        wait_until(lambda: not server.server_state.connections)
        for client in clients:
            client.close()


def test_limits_reserve_file_descriptors(monkeypatch):
    set_limits = []
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, limits: set_limits.append(limits))
    for soft, hard, expected in ((1024, 1024, 384), (1024, 4096, 1000), (10_000, 20_000, 1000)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, limits=(soft, hard): limits)
        assert Limits.within_descriptors(1000).connections == expected
    assert set_limits == [(1024, 1024), (4096, 4096)]
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    assert Limits.within_descriptors(1000).connections == 1000

"""The server logs the URL of its page with both start commands."""

import socket
import sys

import pytest
from server_process import free_port, start, stop

from kinema.serving.listen_address import own_url


def test_own_url_is_that_of_socket_argument():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number, port = str(listener.fileno()), listener.getsockname()[1]
        assert own_url(["service.py", "--fd", number, "--timeout", "5"]) == f"http://localhost:{port}"
        assert own_url(["--fd", number, "--ssl-certfile", "a.pem"]) == f"https://localhost:{port}"
        listener.listen()  # the socket is still open


def test_own_url_without_valid_socket_is_none():
    with socket.socket(socket.AF_UNIX) as local:
        for arguments in ([], ["--fd"], ["--fd", "x"], ["--fd", "99999"], ["--fd", str(local.fileno())]):
            assert own_url(arguments) is None


@pytest.mark.slow
@pytest.mark.parametrize("command", ["kinema", pytest.param("bentoml", marks=pytest.mark.slow)])
def test_start_logs_page_url_once(tmp_path, command):
    port = free_port()
    service = ["kinema.serving.service:StableDiffusionVideo"] if command == "bentoml" else []
    server = start(
        tmp_path / "data", port=port, command=[sys.executable, "-m", command, "serve", *service, "--port", str(port)]
    )
    try:
        assert server.log.read_text().count(f"web page: http://localhost:{port}/studio") == 1
    finally:
        stop(server)

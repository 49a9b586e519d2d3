"""The server says where its page is, however it was started."""

import socket
import sys

import pytest
from server_process import free_port, start, stop

from kinema.serving.listen_address import own_url


def test_the_address_is_that_of_the_socket_which_the_process_was_given():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        number, port = str(listening.fileno()), listening.getsockname()[1]
        assert own_url(["service.py", "--fd", number, "--timeout", "5"]) == f"http://localhost:{port}"
        assert own_url(["--fd", number, "--ssl-certfile", "a.pem"]) == f"https://localhost:{port}"
        listening.listen()  # it was looked at, not taken


def test_a_process_that_was_given_none_says_nothing():
    with socket.socket(socket.AF_UNIX) as local:
        for arguments in ([], ["--fd"], ["--fd", "x"], ["--fd", "99999"], ["--fd", str(local.fileno())]):
            assert own_url(arguments) is None


@pytest.mark.parametrize("command", ["kinema", "bentoml"])
def test_both_commands_print_the_pages_address(tmp_path, command):
    port = free_port()
    service = ["kinema.serving.service:StableDiffusionVideo"] if command == "bentoml" else []
    server = start(
        tmp_path / "data", port=port, command=[sys.executable, "-m", command, "serve", *service, "--port", str(port)]
    )
    try:
        assert server.log.read_text().count(f"the page is at http://localhost:{port}/studio") == 1
    finally:
        stop(server)

"""`kinema serve`: what it refuses before anything starts."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kinema.errors import InvalidRequest
from kinema.serving.bentoml_arbiter import check_port


@pytest.fixture
def busy():
    """A port that another program listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    def execve(*_):
        raise AssertionError("the server was started")

    monkeypatch.setattr("os.execve", execve)


def test_a_port_in_use_is_named_with_what_to_do(kinema, busy, tmp_path):
    ran = kinema("serve", "--port", busy, "--data-dir", tmp_path)
    assert ran.code == 2
    assert ran.err.strip().endswith(
        f"port {busy} is in use by another program; stop it, or choose another port with --port"
    )
    assert "http://" not in ran.out + ran.err  # no address is announced
    assert "Traceback" not in ran.err


def test_an_address_of_another_machine_is_refused(kinema, tmp_path):
    ran = kinema("serve", "--host", "192.0.2.7", "--key", "k", "--data-dir", tmp_path)
    assert ran.code == 2
    assert "host 192.0.2.7 is not an address of this machine" in ran.err


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_is_judged_as_the_server_will_take_it(busy, host):
    with pytest.raises(InvalidRequest, match=f"port {busy} is in use") as refused:
        check_port(host, busy)
    assert refused.value.param == "port"
    with socket.create_server((host, 0)) as closed:
        port = closed.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), closed.accept()[0]:
            pass  # it leaves the port in TIME_WAIT, which is no hindrance
    check_port(host, port)


@pytest.mark.slow
def test_bentoml_serve_names_a_port_in_use_too(busy, tmp_path):
    command = [sys.executable, "-m", "bentoml", "serve", "service:StableDiffusionVideo", "--port", str(busy)]
    root = Path(__file__).parents[2]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=root)
    assert ran.returncode == 2
    assert f"kinema: port {busy} is in use by another program" in ran.stderr
    assert "Traceback" not in ran.stderr

"""`kinema serve`: checks before the server starts."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kinema.errors import InvalidRequest
from kinema.serving.bentoml_arbiter import check_port


@pytest.fixture
def used_port():
    """Return a port on which another socket listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture(autouse=True)
def no_server_start(monkeypatch):
    def execve(*_):
        raise AssertionError("the server was started")

    monkeypatch.setattr("os.execve", execve)


def test_serve_on_used_port_is_rejected(kinema, used_port, tmp_path):
    result = kinema("serve", "--port", used_port, "--data-dir", tmp_path)
    assert result.code == 2
    assert result.err.strip().endswith(
        f"port {used_port} is in use by another program; stop it, or choose another port with --port"
    )
    assert "http://" not in result.out + result.err  # the server's URL is not printed
    assert "Traceback" not in result.err


def test_serve_on_foreign_address_is_rejected(kinema, tmp_path):
    result = kinema("serve", "--host", "192.0.2.7", "--key", "k", "--data-dir", tmp_path)
    assert result.code == 2
    assert "host 192.0.2.7 is not an address of this machine" in result.err


def test_serve_with_unusable_model_folder_is_rejected(kinema, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("KINEMA_MODELS", str(tmp_path / "mine"))
    result = kinema("serve", "--data-dir", tmp_path / "data")
    assert result.code == 3
    assert f"{tmp_path / 'mine'} has no model_index.json" in result.err


def test_serve_warns_of_misspelt_variable(kinema, used_port, tmp_path, monkeypatch):
    monkeypatch.setenv("KINEMA_HOST", "kinema.example")
    result = kinema("serve", "--port", used_port, "--data-dir", tmp_path)
    assert "warning: KINEMA_HOST is not a setting; did you mean KINEMA_HOSTS?" in result.err


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_check_port_rejects_used_port_and_accepts_time_wait(used_port, host):
    with pytest.raises(InvalidRequest, match=f"port {used_port} is in use") as error:
        check_port(host, used_port)
    assert error.value.param == "port"
    with socket.create_server((host, 0)) as closed:
        port = closed.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), closed.accept()[0]:
            pass  # leaves the port in TIME_WAIT
    check_port(host, port)


@pytest.mark.slow
def test_bentoml_serve_on_used_port_is_rejected(used_port, tmp_path):
    command = [sys.executable, "-m", "bentoml", "serve", "service:StableDiffusionVideo", "--port", str(used_port)]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=root)
    assert result.returncode == 2
    assert f"kinema: port {used_port} is in use by another program" in result.stderr
    assert "Traceback" not in result.stderr

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
    monkeypatch.setattr("kinema.cli.serve.check_port", lambda *_: None)
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("KINEMA_MODELS", str(tmp_path / "mine"))
    result = kinema("serve", "--data-dir", tmp_path / "data")
    assert result.code == 3
    assert f"{tmp_path / 'mine'} has no model_index.json" in result.err


def test_serve_with_unusable_data_folder_is_rejected(kinema, tmp_path, monkeypatch):
    monkeypatch.setattr("kinema.cli.serve.check_port", lambda *_: None)
    (tmp_path / "file").touch()
    result = kinema("serve", "--data-dir", tmp_path / "file" / "data")
    assert result.code != 0
    assert f"the data folder {tmp_path / 'file' / 'data'} can't be used (Not a directory)" in result.err


def test_serve_waits_for_its_database_and_says_why(kinema, tmp_path, monkeypatch):
    def sleep(_):
        waits.append(len(waits))
        assert len(waits) < 9, "the database can be opened"
        if len(waits) == 3:
            (tmp_path / "later").mkdir()

    def execve(*_):
        raise InvalidRequest("the server would start now")

    waits = []
    monkeypatch.setattr("kinema.cli.serve.time.sleep", sleep)
    monkeypatch.setattr("kinema.cli.serve.check_port", lambda *_: None)
    monkeypatch.setattr("os.execve", execve)
    monkeypatch.setenv("KINEMA_DATABASE_URL", f"sqlite:///{tmp_path}/later/queue.db")
    result = kinema("serve", "--data-dir", tmp_path / "data")
    assert "the server would start now" in result.err
    assert len(waits) == 3
    assert result.err.count("No such file or directory") == 1
    assert "Trying again every 2 seconds" in result.err
    assert (tmp_path / "later" / "queue.db").exists()


def test_serve_warns_of_misspelt_variable(kinema, used_port, tmp_path, monkeypatch):
    monkeypatch.setenv("KINEMA_HOST", "kinema.example")
    monkeypatch.setenv("KINEMA_DATA", "elsewhere")
    result = kinema("serve", "--port", used_port, "--data-dir", tmp_path)
    assert "warning: KINEMA_HOST is not a setting; did you mean KINEMA_HOSTS?" in result.err
    assert "warning: KINEMA_DATA is not a setting; did you mean KINEMA_DATA_DIR?" in result.err


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


def test_serve_names_keys_hosts_and_models(kinema, used_port, tmp_path, tiny_svd, monkeypatch):
    data = "--data-dir", tmp_path / "data"
    monkeypatch.setattr("kinema.cli.serve.check_port", lambda *_: None)
    monkeypatch.setattr("os.execve", lambda *_: None)
    local = kinema("serve", *data).err
    assert "API keys: none; only clients on this machine may use the server, and no proxies" in local
    unauthenticated = kinema("serve", "--allow-unauthenticated", *data).err
    assert "API keys: none; every client that can connect may use the server" in unauthenticated
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
    monkeypatch.setenv("KINEMA_HOSTS", "kinema.example")
    monkeypatch.setenv("KINEMA_MODELS", f"{tiny_svd},owner/name@v2")
    lines = kinema("serve", "--key", "secret-1", *data).err.splitlines()
    assert "API keys: 1" in lines
    assert "trusted proxies (FORWARDED_ALLOW_IPS): 127.0.0.1" in lines
    assert "host names, in addition to localhost: kinema.example" in lines
    assert f"models, in addition to the catalog: {tiny_svd}, owner/name@v2" in lines
    assert "secret-1" not in "".join(lines)


def start_bentoml(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `bentoml serve` until it ends."""
    command = [sys.executable, "-m", "bentoml", "serve", "service:StableDiffusionVideo", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=root)


@pytest.mark.slow
def test_bentoml_serve_with_unusable_model_folder_is_rejected(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("KINEMA_MODELS", str(tmp_path / "mine"))
    monkeypatch.setenv("KINEMA_DATA_DIR", str(tmp_path / "data"))
    result = start_bentoml("--port", "0")
    assert result.returncode == 2
    assert f"kinema: {tmp_path / 'mine'} has no model_index.json" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_bentoml_serve_with_missing_signing_key_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setenv("KINEMA_DATA_DIR", str(tmp_path / "data"))
    for name in ("CERT", "KEY"):
        monkeypatch.setenv(f"KINEMA_C2PA_{name}", str(tmp_path / "absent.pem"))
    result = start_bentoml("--port", "0")
    assert result.returncode == 2
    reason = "absent.pem can't be read (No such file or directory); check KINEMA_C2PA_CERT"
    assert f"kinema: {tmp_path}/{reason}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_bentoml_serve_on_used_port_is_rejected(used_port):
    result = start_bentoml("--port", str(used_port))
    assert result.returncode == 2
    assert f"kinema: port {used_port} is in use by another program" in result.stderr
    assert "Traceback" not in result.stderr

"""The server opens one port, and no other socket that another local user can access."""

import os
import stat
import sys
from pathlib import Path

import psutil
import pytest
from server_process import free_port, start, stop

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("command_name", [pytest.param("bentoml serve", marks=pytest.mark.slow), "kinema serve"])
def test_only_http_port_is_open_and_unix_sockets_are_private(tmp_path, command_name):
    port = free_port()
    # The command of the tutorial, run in the repository, and our own command.
    command = {
        "bentoml serve": ["-m", "bentoml", "serve", "service:StableDiffusionVideo", "--port", str(port)],
        "kinema serve": ["-m", "kinema", "serve", "--port", str(port)],
    }[command_name]
    running = start(tmp_path / "data", port=port, command=[sys.executable, *command], cwd=ROOT)
    try:
        server = psutil.Process(running.process.pid)
        processes = [server, *server.children(recursive=True)]
        assert len(processes) > 1
        listening = [c for process in processes for c in process.net_connections("inet") if not c.raddr]
        assert {connection.laddr.port for connection in listening} == {port}
        paths = {Path(c.laddr) for p in processes for c in p.net_connections("unix") if c.laddr.startswith("/")}
        assert paths
        for path in paths:
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path
            assert path.parent.stat().st_uid == os.getuid()
        assert f"web page: http://localhost:{port}/studio," in running.log.read_text()
        running.end()
        assert not [path for path in paths if path.parent.exists()]
    finally:
        stop(running)

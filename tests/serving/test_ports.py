"""The server opens one port, HTTP's, and nothing else that another user of the machine could reach."""

import os
import stat
import sys
from pathlib import Path

import psutil
import pytest
from server_process import free_port, start, stop

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("way", ["bentoml serve", "kinema serve"])
def test_no_port_is_open_but_https_and_every_socket_is_in_a_private_folder(tmp_path, way):
    port = free_port()
    # As the tutorial starts it, from the repository, and as the command does.
    command = {
        "bentoml serve": ["-m", "bentoml", "serve", "service:StableDiffusionVideo", "--port", str(port)],
        "kinema serve": ["-m", "kinema", "serve", "--port", str(port)],
    }[way]
    running = start(tmp_path / "data", port=port, command=[sys.executable, *command], cwd=ROOT)
    try:
        server = psutil.Process(running.process.pid)
        processes = [server, *server.children(recursive=True)]
        assert len(processes) > 1
        opened = [c for process in processes for c in process.net_connections("inet") if not c.raddr]
        assert {connection.laddr.port for connection in opened} == {port}
        paths = {Path(c.laddr) for p in processes for c in p.net_connections("unix") if c.laddr.startswith("/")}
        assert paths
        for path in paths:
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path
            assert path.parent.stat().st_uid == os.getuid()
        assert f"the page is at http://localhost:{port}/studio," in running.log.read_text()
        running.end()
        assert not [path for path in paths if path.parent.exists()]
    finally:
        stop(running)

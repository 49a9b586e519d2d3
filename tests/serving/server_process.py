"""Start and stop a server process on localhost."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

HERE = Path(__file__).parent
SERVICE = "kinema.serving.service:StableDiffusionVideo"


@dataclass
class Server:
    process: subprocess.Popen
    url: str
    data: Path
    log: Path

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def end(self, number=signal.SIGTERM, seconds=40):
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def api_process(self):
        """Return the process with the queue; its parent is the arbiter that restarts it."""
        return child_processes("_bentoml_impl.worker", of=self.process.pid)[0]


def child_processes(part, of=None):
    """Return the descendants of a process (default: this one) with `part` in their command line.

    Those that end meanwhile are left out: the command line of a zombie can't be read.
    """
    found = []
    for process in psutil.Process(of).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if part in " ".join(process.cmdline()):
                found.append(process)
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(data, *, work="server_work:Work", port=None, command=None, wait=True, cwd=None, logs=None, **environment):
    port = port or free_port()
    data.mkdir(parents=True, exist_ok=True)
    log = (logs or data.parent) / f"server-{port}.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KINEMA_")}
    env = inherited | {
        "KINEMA_DATA_DIR": str(data),
        "KINEMA_MIN_FREE_GB": "0",
        "KINEMA_MODEL": "pocket",
        "KINEMA_DEVICE": "cpu",
        "BENTOML_HOME": str(data.parent / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": os.pathsep.join([str(HERE), inherited.get("PYTHONPATH", "")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]]),
    }
    if work is not None:
        env |= {"KINEMA_WORK": work}
    env |= {f"KINEMA_{name.upper()}": str(value) for name, value in environment.items()}
    command = command or [sys.executable, "-m", "bentoml", "serve", SERVICE, "--port", str(port)]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=env, stdout=file, stderr=file, cwd=cwd or tempfile.gettempdir(), start_new_session=True
        )
    server = Server(process, f"http://127.0.0.1:{port}", data, log)
    if wait:
        wait_ready(server)
    return server


def wait_ready(server, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    stop(server)
    raise AssertionError(f"the server did not become ready:\n{server.log.read_text()[-4000:]}")


def stop(server):
    """Kill the server and check that its child processes end with it."""
    children = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    server.process.wait(60)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, f"outlived the server: {alive}"


def wait_for(client, video_id, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        video = client.get(f"/v1/videos/{video_id}").json()
        if video["status"] in ("completed", "failed"):
            return video
        time.sleep(0.03)
    raise AssertionError(f"{video_id} did not finish: {video}")

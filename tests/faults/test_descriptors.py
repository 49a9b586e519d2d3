"""Incomplete requests that use all file descriptors: a killed worker restarts, and its job completes."""

import contextlib
import socket
import sys
import time

import pytest
from server_process import SERVICE, child_processes, free_port, start, stop, wait_for, wait_ready

LIMIT = 400
FIELDS = {"motion_bucket_id": "200", "num_inference_steps": "30", "num_frames": "3"}
INCOMPLETE = (
    b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n{"
)


@pytest.mark.slow
def test_worker_killed_while_connections_use_all_descriptors_restarts(tmp_path, png):
    port = free_port()
    serve = f"ulimit -n {LIMIT} && exec {sys.executable} -m bentoml serve {SERVICE} --port {port}"
    server = start(tmp_path / "data", port=port, command=["bash", "-c", serve])
    connections = []
    try:
        api = server.api_process()
        with server.client() as client:
            job = client.post("/v1/videos", data=FIELDS, files={"image": ("a.png", png)}).json()
            while client.get(f"/v1/videos/{job['id']}").json()["stage"] != "denoise":
                time.sleep(0.05)
        for _ in range(LIMIT):
            connection = socket.create_connection(("127.0.0.1", port), timeout=5)
            connections.append(connection)
            with contextlib.suppress(OSError):
                connection.sendall(INCOMPLETE)
        time.sleep(3)  # the server accepts as many as it can
        (worker,) = child_processes("kinema.jobs.worker_process", of=api.pid)
        worker.kill()
        time.sleep(5)
        while connections:
            connections.pop().close()
        wait_ready(server)
        with server.client() as client:
            assert wait_for(client, job["id"])["status"] == "completed"
            assert client.get("/readyz").status_code == 200
    finally:
        for connection in connections:
            connection.close()
        stop(server)

"""Jobs on a Ray cluster of this machine, with stub work: same results as on local workers, whatever ends."""

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="ray is not installed")
sys.path.append(str(Path(__file__).parents[1] / "jobs"))
sys.path.append(str(Path(__file__).parents[1] / "serving"))  # for server_process

import ray
from otlp_receiver import attributes, receiving
from queue_helpers import IMAGE, request, stored_files, wait_finished, wait_until
from queue_work import expected_video
from ray.cluster_utils import Cluster
from server_process import child_processes

from kinema.cli.service_checks import check_services, service_rows
from kinema.errors import InvalidRequest
from kinema.jobs import NewJob, Queue
from kinema.jobs.cluster import BRIDGE
from kinema.models.catalog import request_for
from kinema.scale.cluster_check import explain
from kinema.serving.metrics import Metrics
from kinema.settings import Settings

LONG = {"num_inference_steps": 60, "motion_bucket_id": 50}  # 3 seconds
READY_SECONDS = 60


@pytest.fixture(scope="module")
def task_log(tmp_path_factory):
    return tmp_path_factory.mktemp("task-log")


@pytest.fixture(scope="module")
def cluster(task_log):
    """A head without GPUs and one node with one."""
    before = dict(os.environ)
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1] / "jobs"),
        "STUB_TASK_LOG": str(task_log),
    }
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        cluster.add_node(num_cpus=1, num_gpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def receiver():
    """A receiver of the queue's traces."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def queue(cluster, receiver, tmp_path_factory):
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), min_free_gb=0, ray_address=cluster.address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        queue = Queue(settings, "queue_work:Work")
    with queue:
        wait_for_workers(queue, 1)
        yield queue


def wait_for_workers(queue, count, seconds=READY_SECONDS):
    deadline = time.monotonic() + seconds
    while queue.ready_workers != count:
        assert time.monotonic() < deadline, (queue.ready_workers, queue.problems)
        time.sleep(0.05)


def assert_completed(queue, job, attempts=None):
    job = wait_finished(queue, job)
    assert (job.status, job.error) == ("completed", None)
    assert attempts is None or job.attempts == attempts
    assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)


def start_of(queue, **settings):
    """Submit a job and wait until it denoises."""
    job = queue.submit(NewJob(request(**LONG | settings), image=IMAGE))
    wait_until(lambda: queue.get(job.id).step > 2)
    return job


def test_jobs_give_the_results_of_local_workers(queue, cluster):
    jobs = [queue.submit(NewJob(request(seed=seed), image=IMAGE)) for seed in range(5)]
    two_ends = queue.submit(NewJob(request(), image=IMAGE, last_image=b"another"))
    jobs.append(queue.submit(NewJob(request(prompt="a boat", image_model="m"), image=None)))
    for job in jobs[:-1]:
        assert_completed(queue, job, attempts=0)
    assert wait_finished(queue, two_ends).status == "completed"
    assert queue.result(two_ends.id).read_bytes() == expected_video(request(), IMAGE + b"another")
    assert wait_finished(queue, jobs[-1]).status == "completed"
    assert queue.workers_ready
    assert queue.problems == ()
    assert "kinema_cluster_ready 1.0" in Metrics().text(queue)
    (worker,) = queue.workers
    assert (worker.place, worker.status, worker.problem) == (socket.gethostname(), "idle", None)
    (node,) = cluster.worker_nodes
    assert (worker.node_id, worker.gpus, worker.model) == (node.node_id, 1, "a")


def test_parts_on_a_node_are_in_the_trace_of_their_job(queue, receiver):
    job = queue.submit(NewJob(request(seed=6), image=IMAGE))
    assert_completed(queue, job)
    wait_until(lambda: [span for span in receiver.named("finished") if attributes(span)["kinema.job"] == job.id])
    spans = [span for span in receiver.spans if attributes(span)["kinema.job"] == job.id]
    assert sorted(span.name for span in spans) == ["finished", "latents", "queue", "submit", "video"]
    places = {attributes(span)["kinema.worker"] for span in spans if span.name in ("latents", "video")}
    assert places == {socket.gethostname()}
    assert len({span.trace_id for span in spans}) == 1


def test_failure_and_cancel_are_those_of_local_workers(queue):
    failed = wait_finished(queue, queue.submit(NewJob(request(model="memory"), image=IMAGE)))
    assert failed.error.code == "insufficient_memory"
    job = start_of(queue)
    queue.cancel(job.id)
    assert wait_finished(queue, job).error.code == "cancelled"
    assert_completed(queue, queue.submit(NewJob(request(seed=9), image=IMAGE)))


def test_doctor_shows_versions_nodes_and_workers_of_the_cluster(cluster):
    facts = check_services(Settings(ray_address=cluster.address, workers=8))["cluster"]
    assert (facts["problem"], facts["workers"]) == (None, 1)
    assert facts["ray"] == facts["cluster_ray"] == ray.__version__
    (node,) = cluster.worker_nodes
    nodes = {cluster.head_node.node_id: 0, node.node_id: 1}
    assert {node["node_id"]: node["gpus"] for node in facts["nodes"]} == nodes
    (row,) = service_rows({"cluster": facts}).values()
    assert row.startswith(f"{cluster.address}: 1 workers; Ray {ray.__version__}, here {ray.__version__}; nodes: ")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            "Version mismatch: cluster:\n  Ray: 2.1.0\n  Python: 3.9.1\nprocess:\n  Ray: 2.60.0\n  Python: 3.11.2\n",
            "has Ray 2.1.0 with Python 3.9.1, and this machine Ray",
        ),
        ("Can't find a node to connect to", "run on it: ray start --address head:6379 --num-cpus 0 --num-gpus 0"),
        ("Invalid token", r"can't be used (Invalid token); check KINEMA_RAY_ADDRESS and RAY_AUTH_TOKEN"),
    ],
    ids=["versions", "no-node", "token"],
)
def test_failed_connection_is_explained_with_a_remedy(error, expected):
    assert expected in explain(RuntimeError(error), "head:6379")


def worker_processes(task_log):
    """Return the worker processes of this module's nodes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_worker = "kinema.jobs.worker_process" in process.cmdline()
            if is_worker and process.environ().get("STUB_TASK_LOG") == str(task_log):
                found.append(process)
    return found


@pytest.mark.slow
def test_job_of_a_killed_worker_process_runs_again(queue, task_log):
    job = start_of(queue)
    (worker,) = worker_processes(task_log)
    worker.kill()
    assert_completed(queue, job, attempts=1)


def test_bridge_ignores_a_stop_signal_so_that_the_server_can_finish_its_jobs(queue):
    job = start_of(queue, seed=12)
    (bridge,) = child_processes(BRIDGE)
    bridge.terminate()
    assert_completed(queue, job, attempts=0)
    assert bridge.is_running()
    assert child_processes(BRIDGE) == [bridge]


@pytest.mark.slow
def test_job_survives_the_end_of_the_bridge(queue):
    job = start_of(queue, seed=11)
    (bridge,) = child_processes(BRIDGE)
    bridge.kill()
    wait_until(lambda: any("ended: killed by SIGKILL" in problem for problem in queue.problems))
    assert not queue.cluster_ready
    assert_completed(queue, job, attempts=0)  # the job is not to blame
    assert queue.cluster_ready


@pytest.mark.slow
def test_new_node_gets_jobs_and_job_of_a_lost_node_runs_on_another(queue, cluster):
    node = cluster.add_node(num_cpus=1, num_gpus=1)
    wait_for_workers(queue, 2)
    jobs = [start_of(queue, seed=seed) for seed in (21, 22)]
    cluster.remove_node(node, allow_graceful=False)
    for job in jobs:
        assert_completed(queue, job)
    assert [queue.get(job.id).attempts for job in jobs] == [0, 0]
    wait_for_workers(queue, 1)


@pytest.mark.slow
def test_frozen_node_is_lost_within_15_seconds(queue, cluster):
    node = cluster.add_node(num_cpus=1, num_gpus=1)
    wait_for_workers(queue, 2)
    jobs = [start_of(queue, seed=seed, num_inference_steps=25, motion_bucket_id=250) for seed in (31, 32)]
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    frozen = [raylet, *raylet.children(recursive=True)]
    for process in frozen:
        process.suspend()
    frozen_at = time.monotonic()
    wait_until(lambda: sum(job.id in worker.jobs for worker in queue.workers for job in jobs) < 2)
    assert time.monotonic() - frozen_at < 15
    for job in jobs:
        assert_completed(queue, job)
    for process in frozen:
        process.send_signal(signal.SIGCONT)
    cluster.remove_node(node, allow_graceful=False)


def test_missing_ray_is_refused_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("kinema.jobs.cluster.find_spec", lambda _: None)
    with pytest.raises(InvalidRequest, match=r"KINEMA_RAY_ADDRESS needs ray; run in your clone .*'\.\[scale\]'"):
        Queue(Settings(data_dir=tmp_path, ray_address="127.0.0.1:1"), "queue_work:Work")


def test_jobs_wait_for_a_cluster_that_cannot_be_reached(tmp_path):
    settings = Settings(data_dir=tmp_path, min_free_gb=0, ray_address="127.0.0.1:1")
    with Queue(settings, "queue_work:Work") as queue:
        job = queue.submit(NewJob(request(), image=IMAGE))
        problem = "the Ray cluster at 127.0.0.1:1 can't be reached ([Errno 111] Connection refused)"
        wait_until(lambda: queue.problems == (problem,))
        assert not queue.workers_ready
        assert queue.get(job.id).status == "queued"


@pytest.mark.slow
def test_running_job_completes_and_server_waits_while_the_head_is_gone(queue, cluster):
    job = start_of(queue, seed=41, num_inference_steps=100, motion_bucket_id=200)
    gcs = psutil.Process(cluster.head_node.all_processes["gcs_server"][0].process.pid)
    gcs.suspend()
    try:
        wait_until(lambda: any("does not respond; running jobs continue" in problem for problem in queue.problems))
        assert not queue.workers_ready
        assert "kinema_cluster_ready 0.0" in Metrics().text(queue)
        assert_completed(queue, job, attempts=0)
    finally:
        gcs.resume()
    wait_until(lambda: queue.workers_ready)
    assert_completed(queue, queue.submit(NewJob(request(seed=42), image=IMAGE)))


@pytest.mark.slow
def test_engine_gives_the_bytes_of_a_local_worker(cluster, tmp_path, monkeypatch):
    for name, value in {"DEVICE": "cpu", "DTYPE": "float32", "MODEL": "pocket"}.items():
        monkeypatch.setenv(f"KINEMA_{name}", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the same on the nodes: the order of sums depends on it
    small = {"width": 96, "height": 64, "num_frames": 4, "num_inference_steps": 2, "seed": 3}
    image = (Path(__file__).parents[2] / "examples" / "rocket.jpg").read_bytes()
    videos = []
    for address in (cluster.address, None):
        settings = Settings(data_dir=tmp_path / str(address), min_free_gb=0, ray_address=address)
        with Queue(settings, "kinema.serving.engine_work:EngineWork") as queue:
            job = wait_finished(queue, queue.submit(NewJob(request_for(model="pocket", **small), image=image)))
            assert job.error is None
            videos.append(queue.result(job.id).read_bytes())
    assert videos[0] == videos[1]


@pytest.mark.slow
def test_video_is_refused_on_a_node(cluster, tmp_path, monkeypatch):
    checked = {"SAFETY": "video", "SAFETY_THRESHOLD": "1e-30"}  # every score is above it
    for name, value in {"DEVICE": "cpu", "MODEL": "pocket", **checked}.items():
        monkeypatch.setenv(f"KINEMA_{name}", value)
    small = {"width": 96, "height": 64, "num_frames": 2, "num_inference_steps": 1, "seed": 3}
    image = (Path(__file__).parents[2] / "examples" / "rocket.jpg").read_bytes()
    settings = Settings(data_dir=tmp_path / "data", min_free_gb=0, ray_address=cluster.address)
    with Queue(settings, "kinema.serving.engine_work:ServerWork") as queue:
        job = wait_finished(queue, queue.submit(NewJob(request_for(model="pocket", **small), image=image)))
        assert (job.status, job.error.code, job.image) == ("failed", "content_refused", None)
        wait_until(lambda: stored_files(settings.data_dir) == [])

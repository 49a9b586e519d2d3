"""Traces of jobs, as a receiver of OTLP gets them."""

import socket
import subprocess
import sys

import pytest
from otlp_receiver import attributes, receiving
from queue_helpers import BLOCKED, IMAGE, request, wait_finished, wait_until

from kinema.errors import QueueFull
from kinema.jobs import NewJob, Queue

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "a secret prompt"


@pytest.fixture
def receiver(monkeypatch):
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        yield receiver


def test_a_job_is_one_trace_with_its_parts_also_after_a_restart(settings, receiver):
    with Queue(settings) as queue:  # submits only
        job = queue.submit(NewJob(request(prompt=SECRET, image_model="m"), title="a title", traceparent=PARENT))
    with Queue(settings, "queue_work:Work") as queue:
        finished = wait_finished(queue, job)
    spans = {span.name: span for span in receiver.spans}
    assert sorted(span.name for span in receiver.spans) == ["finished", "image", "latents", "queue", "submit", "video"]
    assert {span.trace_id.hex() for span in receiver.spans} == {PARENT.split("-")[1]}
    submit = spans.pop("submit")
    assert submit.parent_span_id.hex() == PARENT.split("-")[2]
    assert {span.parent_span_id for span in spans.values()} == {submit.span_id}
    assert attributes(submit) == {
        "kinema.job": job.id, "kinema.model": "a", "kinema.width": 1024, "kinema.height": 576,
        "kinema.frames": 25, "kinema.steps": 5,
    }  # fmt: skip
    starts = [spans[name].start_time_unix_nano for name in ("queue", "image", "latents", "video", "finished")]
    assert starts == sorted(starts)
    assert spans["queue"].end_time_unix_nano == int(finished.started_at * 1e9)
    assert attributes(spans["latents"])["kinema.worker"] == "auto"
    assert attributes(spans["finished"])["kinema.status"] == "completed"
    assert attributes(spans["finished"])["kinema.denoise_seconds"] > 0
    assert not any(text in body for body in receiver.bodies for text in (SECRET.encode(), b"a title", IMAGE))


def test_failures_are_marked_with_their_code(settings, receiver):
    settings = settings.model_copy(update={"queue_size": 1})
    with Queue(settings, "queue_work:Work") as queue:
        killed = queue.submit(NewJob(request(model="killed once"), image=IMAGE))
        assert wait_finished(queue, killed).status == "completed"
        failed = queue.submit(NewJob(request(model="memory"), image=IMAGE))
        wait_finished(queue, failed)
        running = queue.submit(NewJob(request(**BLOCKED), image=IMAGE))
        wait_until(lambda: queue.get(running.id).stage == "denoise")
        waiting = queue.submit(NewJob(request(), image=IMAGE))
        with pytest.raises(QueueFull):
            queue.submit(NewJob(request(), image=IMAGE))
        queue.cancel(waiting.id)
        queue.cancel(running.id)
        wait_until(lambda: not queue.running())
    found = [
        (attributes(span)["kinema.job"], span.name, attributes(span)["error.type"])
        for span in receiver.spans
        if span.status.code == span.status.STATUS_CODE_ERROR
    ]
    full = [name for job, name, code in found if code == "queue_full"]
    assert full == ["submit"]
    assert sorted(each for each in found if each[2] != "queue_full") == sorted([
        (killed.id, "video", "worker_died"),
        (failed.id, "latents", "insufficient_memory"),
        (failed.id, "finished", "insufficient_memory"),
        (waiting.id, "finished", "cancelled"),
        (running.id, "latents", "cancelled"),
        (running.id, "finished", "cancelled"),
    ])  # fmt: skip


def test_a_receiver_that_does_not_answer_blocks_nothing(settings, receiver, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setattr("kinema.jobs.job_traces.CLOSE_SECONDS", 0.1)
    receiver.gate.clear()
    with Queue(settings, "queue_work:Work") as queue:
        first = queue.submit(NewJob(request(), image=IMAGE))
        assert receiver.requested.wait(60)  # from now on, the export hangs
        jobs = [queue.submit(NewJob(request(seed=seed), image=IMAGE)) for seed in range(3)]
        assert [wait_finished(queue, job).status for job in [first, *jobs]] == ["completed"] * 4
    assert receiver.spans == []


def test_a_receiver_that_is_down_blocks_nothing(settings, monkeypatch, caplog):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr("kinema.jobs.job_traces.CLOSE_SECONDS", 0.1)
        with Queue(settings, "queue_work:Work") as queue:
            assert wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE))).status == "completed"


def test_another_protocol_is_reported(settings, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with Queue(settings) as queue:
        assert queue.submit(NewJob(request(), image=IMAGE)).traceparent is None
    assert "'grpc'; only http/protobuf is supported" in caplog.text


def test_without_an_endpoint_opentelemetry_is_not_imported(settings):
    code = (
        "import sys; from pathlib import Path; from kinema.jobs import Queue; from kinema.settings import Settings\n"
        "with Queue(Settings(data_dir=Path(sys.argv[1]), min_free_gb=0)): pass\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code, str(settings.data_dir)], check=True, env={"PATH": ""})

"""Traces of requests to a server: the trace of a job is a part of its client's."""

import sys
from pathlib import Path

import pytest
from server_process import start, stop, wait_for

from kinema.serving.trace_parent import trace_parent

sys.path.append(str(Path(__file__).parents[1] / "jobs"))  # for otlp_receiver

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
FAST = {"motion_bucket_id": "1", "num_inference_steps": "1", "num_frames": "2"}
NAMES = ["finished", "latents", "queue", "submit", "video"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of BentoML's dependencies
def test_the_parent_is_the_span_of_the_client():
    assert trace_parent(PARENT) == PARENT["traceparent"]
    assert trace_parent({}) is None


@pytest.mark.slow
def test_job_is_part_of_the_trace_of_its_request(tmp_path, png, monkeypatch):
    from otlp_receiver import receiving
    from queue_helpers import wait_until

    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        bentoml = {
            "exporter_type": "otlp", "sample_rate": "1.0",
            "otlp.protocol": "http", "otlp.endpoint": f"{receiver.url}/v1/traces",
        }  # fmt: skip
        options = [f"services.StableDiffusionVideo.tracing.{name}={value}" for name, value in bentoml.items()]
        monkeypatch.setenv("BENTOML_CONFIG_OPTIONS", " ".join(options))
        server = start(tmp_path / "data", api_keys="a-secret-key")
        try:
            with server.client(headers={"X-API-Key": "a-secret-key"}) as client:
                sent = {
                    "data": FAST | {"prompt": "a secret title"},
                    "files": {"image": ("a.png", png)},
                    "headers": PARENT,
                }
                wait_for(client, client.post("/v1/videos", **sent).json()["id"])
                client.post("/generate", data=FAST, files={"image": ("a.png", png)}).raise_for_status()
            wait_until(lambda: any(span.name == "POST /generate" for span in receiver.spans))
            server.end()
        finally:
            stop(server)
    first = [span for span in receiver.spans if span.trace_id.hex() == TRACE]
    (of_bentoml,) = [span for span in receiver.spans if span.name == "POST /generate"]
    second = [span for span in receiver.spans if span.trace_id == of_bentoml.trace_id and span.name in NAMES]
    assert sorted(span.name for span in first) == sorted(span.name for span in second) == NAMES
    assert {span.parent_span_id.hex() for span in first if span.name == "submit"} == {SPAN}
    assert {span.parent_span_id for span in second if span.name == "submit"} == {of_bentoml.span_id}
    assert not any(b"secret" in body for body in receiver.bodies)

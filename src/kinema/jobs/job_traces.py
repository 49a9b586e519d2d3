"""Traces of jobs by OpenTelemetry: one trace per job, exported by OTLP over HTTP if the standard variables ask for it.

    submit                       from the request to its row in the database
    ├─ queue                     from the submission to a worker, once for each time that the job is assigned to one
    ├─ image · latents · video   one part on a worker, local or on a cluster, as the scheduler sees it
    └─ finished                  the end: status, code, attempts and the duration of each stage

The identity of `submit` is stored with the job, so spans of other processes, also after a restart, join the trace.
Spans are sent in the background and dropped if that fails. No span contains a prompt, a title or a key.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kinema.errors import KinemaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from kinema.jobs.job import Failure, Job, Part
    from kinema.values import VideoRequest

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# How long the last spans may take at the end of the process.
CLOSE_SECONDS = 2.0
_NANOSECONDS = 1_000_000_000


class JobTraces:
    """The traces of a queue's jobs. Without an endpoint nothing is imported, and every method returns at once."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        if not any(environment.get(name) for name in ENDPOINTS):
            return
        protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "http/protobuf")
        if protocol != "http/protobuf":
            log.warning("there are no traces: %s is %r; only http/protobuf is supported", PROTOCOLS[1], protocol)
            return
        try:
            self._provider = _make_provider()
        except Exception as error:  # noqa: BLE001 - traces are an extra: whatever is wrong with them, jobs run
            log.warning("there are no traces: %s: %s", type(error).__name__, error)
            return
        self._tracer = self._provider.get_tracer("kinema")

    def close(self) -> None:
        """Send the remaining spans within CLOSE_SECONDS; drop those that are left."""
        from threading import Thread

        if self._provider is not None:
            thread = Thread(target=self._provider.shutdown, name="kinema-traces", daemon=True)
            thread.start()
            thread.join(CLOSE_SECONDS)

    @contextmanager
    def submit(self, job_id: str, request: VideoRequest, parent: str | None) -> Iterator[str | None]:
        """Trace a submission; yield the traceparent to store with the job, or None without a trace.

        Args:
            job_id: The job.
            request: Its parameters.
            parent: The traceparent of the HTTP request (W3C Trace Context), if there is one.
        """
        if self._tracer is None:
            yield None
            return
        from opentelemetry.trace import SpanKind

        attributes = {"kinema.job": job_id, **_attributes(request)}
        with self._tracer.start_as_current_span(
            "submit",
            _context(parent),
            SpanKind.PRODUCER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _traceparent(span)
            except KinemaError as error:
                _set_failed(span, error.code)
                raise

    def queued(self, job: Job) -> None:
        """Record that a job has left the queue for a worker."""
        if self._tracer is not None and job.started_at is not None:
            self._record(job, "queue", job.created_at, job.started_at, {"kinema.priority": job.priority})

    def part(self, job: Job, part: Part, began: float, place: str, failure: str | None = None) -> None:
        """Record that a part ended now.

        Args:
            job: The job.
            part: The part.
            began: When the worker began with it, in seconds since 1970.
            place: Device or node of the worker.
            failure: Why the part did not succeed, as a code.
        """
        if self._tracer is not None:
            attributes = {"kinema.worker": place, "kinema.attempt": job.attempts + 1, **_attributes(job.request)}
            self._record(job, part, began, time.time(), attributes, failure)

    def finished(self, job: Job, failure: Failure | None = None) -> None:
        """Record the end of a job."""
        if self._tracer is not None:
            failure = job.error if failure is None else failure
            end = time.time() if job.completed_at is None else job.completed_at
            stages = {f"kinema.{stage}_seconds": seconds for stage, seconds in job.stage_durations.items()}
            status = job.status if failure is None else "failed"
            attributes = {"kinema.status": status, "kinema.attempts": job.attempts, **stages}
            self._record(job, "finished", end, end, attributes, None if failure is None else failure.code)

    def _record(
        self, job: Job, name: str, start: float, end: float, attributes: Mapping[str, Any], failure: str | None = None
    ) -> None:
        """Record a span of a job's trace; a job without a trace, from before it was configured, has none."""
        if self._tracer is None or job.traceparent is None:
            return
        span = self._tracer.start_span(
            name,
            _context(job.traceparent),
            attributes={"kinema.job": job.id, **attributes},
            start_time=int(start * _NANOSECONDS),
        )
        if failure is not None:
            _set_failed(span, failure)
        span.end(int(max(start, end) * _NANOSECONDS))


def _make_provider() -> TracerProvider:
    """Return a provider that exports to the endpoint of the environment, with the environment's other OTEL settings."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from kinema.version import own_version

    own = Resource.create({"service.name": "kinema", "service.version": own_version()})
    provider = TracerProvider(resource=own.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _attributes(request: VideoRequest) -> dict[str, Any]:
    """Return the parameters that determine how long a job takes."""
    return {
        "kinema.model": request.model,
        "kinema.width": request.width,
        "kinema.height": request.height,
        "kinema.frames": request.num_frames,
        "kinema.steps": request.num_inference_steps,
    }


def _context(traceparent: str | None) -> Context:
    """Return the context of a traceparent; without a valid one, that of a new trace."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _traceparent(span: Span) -> str | None:
    """Return the traceparent of a span, or None if the sampler left it out."""
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if not span.is_recording():
        return None
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier.get("traceparent")


def _set_failed(span: Span, code: str) -> None:
    """Mark a span as failed. Only the code: a message may quote what a client sent."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", code)
    span.set_status(Status(StatusCode.ERROR, code))

"""The span of an HTTP request, of which the trace of its job is a part."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def trace_parent(headers: Mapping[str, str]) -> str | None:
    """Return the traceparent (W3C Trace Context) for a request's job: of BentoML's span, else of the client's header.

    BentoML's configuration decides whether it exports its spans; one that nobody would see is no parent.
    """
    from bentoml._internal.configuration.containers import BentoMLContainer
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    if BentoMLContainer.tracing.exporter_type.get() is not None:
        TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent") or headers.get("traceparent")

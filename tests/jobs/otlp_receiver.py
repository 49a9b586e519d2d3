"""A receiver of OTLP over HTTP, which keeps the spans that it gets."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Receiver:
    """`url` is its endpoint; `gate` makes it answer only while it is set."""

    url: str
    spans: list = field(default_factory=list)
    bodies: list = field(default_factory=list)
    requested: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def named(self, name):
        return [span for span in self.spans if span.name == name]


def attributes(span):
    """Return a span's attributes, each as a plain value."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@contextmanager
def receiving():
    """Run a receiver, which answers at once."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requested.set()
            receiver.gate.wait()
            message = ExportTraceServiceRequest.FromString(body)
            receiver.bodies.append(body)
            receiver.spans += [
                span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans
            ]
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
    receiver.gate.set()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()

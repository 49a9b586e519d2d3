"""A receiver of webhooks on localhost, which verifies signatures with the library of Standard Webhooks."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Receiver:
    """`received` has the id and the verified message of each request; `statuses` the next responses, then 204."""

    port: int = 0
    received: list = field(default_factory=list)
    statuses: list = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    @property
    def url(self):
        return f"http://{self.host}/hook?token=1"

    def wait(self, count, seconds=60):
        """Wait until so many requests are received, and return them."""
        deadline = time.monotonic() + seconds
        while len(self.received) < count:
            assert time.monotonic() < deadline, self.received
            time.sleep(0.02)
        return list(self.received)


@contextmanager
def receiving(*statuses):
    """Run a receiver; the status "hang" does not answer until `released` is set."""
    receiver = Receiver(statuses=list(statuses))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            message = Webhook(SECRET).verify(body, dict(self.headers))
            receiver.received.append((self.headers["webhook-id"], message))
            status = receiver.statuses.pop(0) if receiver.statuses else 204
            if status == "hang":
                receiver.released.wait(60)
                status = 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.released.set()
            server.shutdown()
            thread.join()

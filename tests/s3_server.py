"""An S3-compatible server for tests: moto's, in a process of its own, which can be told to fail.

Run as a script, it prints its port, and serves until its standard input ends. A request to /fault/NAME selects what
happens to later ones: "none", "away" (503), "denied" (403) or "stalled" (the second part of an upload never ends).
"""

import contextlib
import subprocess
import sys
import threading
from dataclasses import dataclass

import httpx

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "kinema", "AWS_SECRET_ACCESS_KEY": "do-not-log-this", "AWS_REGION": "us-east-1"}


@dataclass
class S3Server:
    url: str

    @property
    def environment(self):
        return ENVIRONMENT | {"AWS_ENDPOINT_URL": self.url}

    def new_bucket(self, name):
        httpx.put(f"{self.url}/{name}").raise_for_status()
        return f"s3://{name}/videos"

    def keys(self, bucket):
        """Return the keys of all objects of a bucket, sorted."""
        return sorted(part.split("</Key>")[0] for part in httpx.get(f"{self.url}/{bucket}").text.split("<Key>")[1:])

    def has_open_uploads(self, bucket):
        return "<UploadId>" in httpx.get(f"{self.url}/{bucket}?uploads").text

    @contextlib.contextmanager
    def fault(self, name):
        httpx.get(f"{self.url}/fault/{name}").raise_for_status()
        try:
            yield
        finally:
            httpx.get(f"{self.url}/fault/none").raise_for_status()


@contextlib.contextmanager
def running():
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield S3Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.communicate()


def main():
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    moto = DomainDispatcherApplication(create_backend_app)
    state = {"fault": "none"}
    ended = threading.Event()

    class Quiet(WSGIRequestHandler):
        def log(self, *_):
            pass

    def app(environ, start_response):
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        if path.startswith("/fault/"):
            state["fault"] = path.rpartition("/")[2]
            start_response("200 OK", [])
            return [b""]
        if state["fault"] == "away":
            start_response("503 Slow Down", [])
            return [b"<Error><Code>SlowDown</Code></Error>"]
        if state["fault"] == "denied":
            start_response("403 Forbidden", [])
            return [b"<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>kinema</AWSAccessKeyId></Error>"]
        if state["fault"] == "stalled" and "partNumber=2" in query:
            ended.wait()
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()

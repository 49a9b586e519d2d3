"""A fake Hugging Face hub with one repository on localhost: the part of its HTTP API that a download uses."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `folder` as `repository`. With `error`, such as ("GatedRepo", 403), files fail; with 500, everything."""

    def __init__(self, folder: Path, repository: str) -> None:
        self.folder, self.repository = folder, repository
        self.error: tuple[str | None, int] | None = None
        self.downloaded: list[str] = []
        self.tokens: set[str | None] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def listing(self) -> bytes:
        paths = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": p.relative_to(self.folder).as_posix(), "size": p.stat().st_size} for p in paths]
        return json.dumps({"id": self.repository, "sha": COMMIT, "siblings": siblings}).encode()

    def __enter__(self) -> FakeHub:
        self.thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.hub.tokens.add(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path)
        api, files = f"/api/models/{self.hub.repository}/revision/", f"/{self.hub.repository}/resolve/"
        if path.startswith(files) and self.hub.error is None:
            self.send_file(path.removeprefix(files).partition("/")[2])
        elif self.hub.error is not None and (path.startswith(files) or self.hub.error[1] == 500):
            code, status = self.hub.error
            self.reply(status, b"", {"X-Error-Code": code} if code else {})
        elif path.startswith(api) and path.removeprefix(api) in ("main", COMMIT):
            self.reply(200, self.hub.listing(), {"Content-Type": "application/json"})
        else:
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound" if path.startswith(api) else "RepoNotFound"})

    def send_file(self, name):
        content = (self.hub.folder / name).read_bytes()
        if self.command == "GET":
            self.hub.downloaded.append(name)
        self.reply(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def reply(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_args):
        pass

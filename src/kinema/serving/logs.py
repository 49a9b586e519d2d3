"""The server's log: one line for each event of a job, as text or as JSON; no keys, and no prompts unless asked."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class AsJson(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as JSON."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def announce(data_dir: Path) -> None:
    """Log where the server is reached, now that it is; BentoML names the socket on the command line of its process."""
    with socket.socket(fileno=os.dup(int(sys.argv[sys.argv.index("--fd") + 1]))) as listening:
        host, port = listening.getsockname()[:2]
    scheme = "https" if "--ssl-certfile" in sys.argv else "http"
    name = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::", "::1") else host  # noqa: S104 - compared, not bound
    address = f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"
    log = logging.getLogger(__name__)
    log.info("the page:        %s/studio", address)
    log.info("Swagger:         %s/", address)
    log.info("the API:         %s/v1/videos (its document: %s/v1/openapi.json)", address, address)
    log.info("jobs and videos: %s", data_dir.expanduser())


def set_up(log_format: str) -> None:
    """Have Kinema's own log on stderr, whatever the HTTP server does with its own."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    handler.setFormatter(AsJson() if log_format == "json" else text)
    logger = logging.getLogger("kinema")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False

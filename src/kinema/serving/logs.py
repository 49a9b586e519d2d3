"""The server's log: one line per event, as text or JSON; without keys, and by default without prompts."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import OrderedDict
from datetime import UTC, datetime

REPEAT_SECONDS = 60.0
MAX_KINDS = 1000


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class RepeatFilter(logging.Filter):
    """Passes a kind of warning at most once a minute; the next one has the number of those that were left out.

    Warnings are of one kind if their texts are equal. Those with `extra={"repeats": True}` are of one kind whatever
    their values: an id, or the seconds until the next attempt.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._latest: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()  # time, number left out since

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged."""
        if record.levelno != logging.WARNING:
            return True
        kind = (record.name, str(record.msg) if getattr(record, "repeats", False) else record.getMessage())
        with self._lock:
            then, left_out = self._latest.get(kind, (float("-inf"), 0))
            if 0 <= record.created - then < REPEAT_SECONDS:
                self._latest[kind] = (then, left_out + 1)
                return False
            self._latest[kind] = (record.created, 0)
            self._latest.move_to_end(kind)
            if len(self._latest) > MAX_KINDS:
                self._latest.popitem(last=False)
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more since the last time)", ()
        return True


def set_up(log_format: str) -> None:
    """Write Kinema's log to stderr, independently of the HTTP server's log."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    handler.setFormatter(JsonFormatter() if log_format == "json" else text)
    handler.addFilter(RepeatFilter())
    logger = logging.getLogger("kinema")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False

"""Warnings that repeat are logged once a minute, with the number of those that were left out."""

import logging

import pytest

from kinema.errors import QueueUnavailable
from kinema.jobs.file_store import FolderStore
from kinema.jobs.shared_files import SharedFiles
from kinema.serving import logs

LOGGER = logging.getLogger("kinema.tests")


@pytest.fixture
def log_at():
    """Log a warning at a time, in seconds; return its line, or None if it is left out."""
    repeats = logs.RepeatFilter()

    def log_at(seconds, message, *args, level=logging.WARNING, extra=None):
        record = LOGGER.makeRecord(LOGGER.name, level, "", 0, message, args, None, extra=extra)
        record.created = seconds
        return record.getMessage() if repeats.filter(record) else None

    return log_at


def test_equal_warnings_are_logged_once_a_minute_with_a_count(log_at):
    lines = [log_at(second, "the store: %s", "away") for second in (0, 1, 59.9, 60, 61, 130)]
    assert lines == [
        "the store: away", None, None, "the store: away (2 more since the last time)", None,
        "the store: away (1 more since the last time)",
    ]  # fmt: skip


def test_warnings_about_different_jobs_are_all_logged(log_at):
    assert [log_at(0, "job %s failed", number) for number in range(3)] == [
        f"job {number} failed" for number in range(3)
    ]


def test_warnings_that_repeat_with_other_values_are_of_one_kind(log_at):
    repeats = {"repeats": True}
    lines = [log_at(second, "next attempt in %.1f s", second / 10, extra=repeats) for second in (0, 5, 65)]
    assert lines == ["next attempt in 0.0 s", None, "next attempt in 6.5 s (1 more since the last time)"]
    assert log_at(66, "another %s", 1, extra=repeats) == "another 1"


def test_errors_and_information_are_never_left_out(log_at):
    for level in (logging.INFO, logging.ERROR):
        assert [log_at(0, "again", level=level) for _ in range(2)] == ["again", "again"]


def test_clock_that_is_set_back_silences_nothing(log_at):
    assert [log_at(second, "again") for second in (1000, 10)] == ["again", "again"]


def test_number_of_kinds_is_bounded(log_at, monkeypatch):
    monkeypatch.setattr(logs, "MAX_KINDS", 2)
    assert [log_at(0, "kind %d", number) for number in (1, 2, 3, 3, 1)] == [
        "kind 1",
        "kind 2",
        "kind 3",
        None,
        "kind 1",
    ]


def test_store_that_is_away_fills_no_log(tmp_path, capfd, monkeypatch):
    logger = logging.getLogger("kinema")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(logger, name, getattr(logger, name))
    monkeypatch.setattr(logger, "handlers", [])
    files = SharedFiles(tmp_path / "data", FolderStore(tmp_path / "store"))
    files.make_private()
    files.set_store_id("a")
    files.expect_store_id("a")
    logs.set_up("text")
    (tmp_path / "store").rename(tmp_path / "moved")
    for number in range(20):
        assert not files.delete_job(f"video_{number:032}")
        with pytest.raises(QueueUnavailable):
            files.check_store()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) <= 3, lines
    assert "can't be deleted now" in lines[-1]
    files.close()

"""The tables of batches, files and webhooks on SQLite and PostgreSQL."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from kinema.errors import FileInUse, FileNotFound, IdempotencyKeyReused, QueueFull
from kinema.jobs import batch_table
from kinema.jobs.batch_schema import BatchLine, LineError
from kinema.jobs.batch_table import BatchTable
from kinema.jobs.file_table import FileTable, new_file_id
from kinema.jobs.job_inserts import JobInserts, KeyTaken
from kinema.jobs.job_schema import JOBS
from kinema.jobs.job_table import JobTable
from kinema.jobs.owner_limits import NO_LIMITS
from kinema.jobs.queue_database import QueueDatabase
from kinema.jobs.webhook_table import WebhookTable


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    url = f"sqlite:///{tmp_path}/a.sqlite3"
    database = QueueDatabase(request.getfixturevalue("postgresql_url") if request.param == "postgresql" else url)
    yield database
    database.close()


@pytest.fixture
def files(database):
    return FileTable(database, keep_seconds=60)


@pytest.fixture
def batches(database):
    return BatchTable(database, keep_seconds=60)


@pytest.fixture
def batch(files, batches):
    """A batch in progress with three lines."""
    batch = batches.add(files.add(new_file_id(), "a.jsonl", "batch", 3).id, labels={"a": "b"}, owner="key 1")
    assert batches.add_lines(batch.id, [BatchLine(number, str(number), 10 * number) for number in (1, 2, 3)])
    assert batches.start(batch.id, 3)
    return batches.get(batch.id)


def add_job(database, job_id, webhook_url=None, **values):
    row = {
        "id": job_id,
        "owner": "",
        "model": "m",
        "priority": 0,
        "request": '{"model": "m"}',
        "created_at": 1.0,
        **values,
    }
    JobInserts(database).add(row, 100, NO_LIMITS, webhook_url)


def set_status(database, job_id, status):
    with database.write() as connection:
        connection.execute(JOBS.update().where(JOBS.c.id == job_id).values(status=status))


def test_batch_goes_through_its_states_once(database, files, batches, batch):
    assert (batch.status, batch.total, batch.labels, batch.owner) == ("in_progress", 3, {"a": "b"}, "key 1")
    assert not batches.start(batch.id, 3)
    assert not batches.add_lines(batch.id, [BatchLine(4, "4", 0)])
    for number, name in ((1, "video_1"), (2, "video_2")):
        add_job(database, name)
        batches.set_job(batch.id, number, name)
    set_status(database, "video_1", "completed")
    assert [line.number for line in batches.pending(batch.id, 10)] == [3]
    assert batches.count_submitted() == 2
    assert [line.job for line in batches.ended(batch.id)] == ["video_1"]
    for _ in range(2):  # only the first call counts
        batches.finish_lines(batch.id, [(1, True, "one"), (3, False, "three")])
    assert [line.number for line in batches.submitted(batch.id)] == [2]
    JobTable(database).remove("video_2")
    assert [line.number for line in batches.ended(batch.id)] == [2]
    batches.finish_lines(batch.id, [(2, True, "two")])
    batch = batches.get(batch.id)
    assert (batch.completed, batch.failed, batch.has_unfinished_lines) == (2, 1, False)
    assert batches.begin_end(batch.id)
    assert not batches.stop(batch.id, "cancelled")
    assert [line.result for line in batches.results(batch.id)] == ["one", "two", "three"]
    output = new_file_id()
    assert batches.end(batches.get(batch.id), (output, 7), None)
    assert not batches.end(batches.get(batch.id), (new_file_id(), 7), None)
    batch = batches.get(batch.id)
    assert (batch.status, batch.output_file, batch.error_file) == ("completed", output, None)
    assert list(batch.times) == ["completed", "finalizing", "in_progress"]
    assert files.get(output).name == f"{batch.id}_output.jsonl"
    assert list(batches.results(batch.id)) == []


def test_cancelled_batch_drops_its_pending_lines_and_takes_no_more(batches, files):
    batch = batches.add(files.add(new_file_id(), "a", "batch", 1).id)
    assert batches.add_lines(batch.id, [BatchLine(1, "1", 0)])
    assert batches.stop(batch.id, "cancelled")
    assert not batches.add_lines(batch.id, [BatchLine(2, "2", 0)])
    assert not batches.start(batch.id, 1)
    assert not batches.fail(batch.id, [LineError("a", "b", None, 1)])
    batches.drop_pending(batch.id)
    assert [line.state for line in batches.results(batch.id)] == ["dropped"]
    assert batches.begin_end(batch.id)
    assert batches.end(batches.get(batch.id), None, None)
    assert batches.get(batch.id).status == "cancelled"


def test_key_gives_the_same_batch_to_its_owner_only(files, batches):
    file = files.add(new_file_id(), "a.jsonl", "batch", 3).id
    first = batches.add(file, owner="a", idempotency_key="k", fingerprint="f", webhook_url="https://example.org/")
    assert batches.by_key("a", "k", "f") == first
    assert batches.by_key("a", "other", "f") is None
    with pytest.raises(IdempotencyKeyReused, match="'k' was used with another request"):
        batches.by_key("a", "k", "other")
    assert batches.by_key("b", "k", "f") is None
    assert batches.add(file, owner="b", idempotency_key="k", fingerprint="other").id != first.id
    assert batches.add(file, owner="a").id != batches.add(file, owner="a").id


def test_calls_with_one_key_at_the_same_time_add_one_batch(files, batches, database):
    file = files.add(new_file_id(), "a.jsonl", "batch", 3).id

    def add(fingerprint):
        url = "https://example.org/"
        return batches.add(file, owner="a", idempotency_key="k", fingerprint=fingerprint, webhook_url=url).id

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(add, ["f"] * 8))) == 1
    assert WebhookTable(database).count() == 1
    with pytest.raises(IdempotencyKeyReused):
        add("other")


def test_file_of_an_unfinished_batch_can_not_be_deleted_and_does_not_expire(files, batches, batch):
    late = FileTable(files._database, keep_seconds=-1)
    other = late.add(new_file_id(), "b", "batch", 1)
    with pytest.raises(FileInUse, match="cancel the batch first"):
        files.remove(batch.input_file, delete=pytest.fail)
    used = batches.add(late.add(new_file_id(), "c", "batch", 1).id)
    assert files.expired() == [other.id]
    batches.fail(used.id, [])
    assert set(files.expired()) == {other.id, used.input_file}
    deleted = []
    files.remove(other.id, deleted.append)
    assert deleted == [other.id]
    with pytest.raises(FileNotFound, match=other.id):
        files.get(other.id)
    assert files.ids() == {batch.input_file, used.input_file}


def test_ended_batches_expire(batches, files, batch):
    short = BatchTable(batches._database, keep_seconds=-1)
    failed = short.add(files.add(new_file_id(), "b", "batch", 1).id)
    assert short.fail(failed.id, [LineError("code", "message", "param", 7)])
    assert short.get(failed.id).errors == (LineError("code", "message", "param", 7),)
    short.remove_expired()
    assert [found.id for found in short.list_batches(None, 10)[0]] == [batch.id]


def test_number_of_unfinished_batches_is_limited(batches, batch, monkeypatch):
    monkeypatch.setattr(batch_table, "MAX_UNFINISHED", 1)
    with pytest.raises(QueueFull, match="1 batches are not finished"):
        batches.add(batch.input_file)


def test_webhooks_are_due_when_their_job_or_batch_has_ended(database, batches, files):
    webhooks = WebhookTable(database)
    for number in range(3):
        add_job(database, f"video_{number}", webhook_url=f"https://a.example/{number}")
    add_job(database, "video_b", webhook_url="https://b.example:8080/")
    batch = batches.add(files.add(new_file_id(), "a", "batch", 1).id, webhook_url="https://c.example/")
    assert webhooks.due(10, 10) == []
    for name in ("video_0", "video_1", "video_2", "video_b"):
        set_status(database, name, "completed")
    batches.fail(batch.id, [])
    found = webhooks.due(2, 10)
    assert [webhook.host for webhook in found].count("a.example") == 2
    assert {webhook.owner for webhook in found} >= {"video_b", batch.id}
    assert {webhook.host for webhook in found} == {"a.example", "b.example:8080", "c.example"}
    first = next(webhook for webhook in found if webhook.owner == "video_b")
    webhooks.postpone(first.id, 0.01)
    time.sleep(0.02)
    assert [webhook.attempts for webhook in webhooks.due(3, 10) if webhook.id == first.id] == [1]
    webhooks.postpone(first.id, 60)
    webhooks.remove(next(webhook.id for webhook in found if webhook.owner == batch.id))
    assert {webhook.host for webhook in webhooks.due(3, 10)} == {"a.example"}


def test_job_that_can_not_be_stored_has_no_webhook(database):
    add_job(database, "video_1", webhook_url="https://a.example/")
    add_job(database, "video_2", idempotency_key="k")
    with pytest.raises(KeyTaken):
        add_job(database, "video_3", webhook_url="https://a.example/", idempotency_key="k")
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT owner FROM kinema_webhooks")).scalars().all() == ["video_1"]

"""The feeder of batches in this process, with a queue of stand-in work."""

import json
import time

import pytest

from kinema.errors import QueueFull, QueueUnavailable, QuotaExceeded
from kinema.jobs import NewJob, Queue, batch_table
from kinema.jobs.file_table import new_file_id
from kinema.media.fetch import FetchCancelled
from kinema.messages import Message
from kinema.serving import batch_feeder, batch_validator, line_submitter
from kinema.serving.batch_feeder import BatchFeeder
from kinema.serving.image_service import ImageService
from kinema.settings import Settings
from kinema.values import VideoRequest

BODY = {"prompt": "a", "num_frames": 1, "num_inference_steps": 1, "motion_bucket_id": 0}


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data", min_free_gb=0, model="pocket", device="cpu", queue_size=8)


@pytest.fixture
def queue(settings):
    feeders = []
    with Queue(settings, "server_work:NoWork", devices=("cpu",), on_finished=lambda _: feeders[0].wake()) as queue:
        images = ImageService()
        feeders.append(BatchFeeder(settings, queue, images))
        feeders[0].start()
        yield queue
        feeders[0].close()
        images.close()


def upload(queue, bodies):
    file_id = new_file_id()
    with queue.batch_files.create(file_id) as file:
        for number, body in enumerate(bodies):
            line = {"custom_id": str(number), "method": "POST", "url": "/v1/videos", "body": BODY | body}
            file.write(json.dumps(line).encode() + b"\n")
    return queue.file_table.add(file_id, "a.jsonl", "batch", 1)


def wait_ended(queue, batch):
    deadline = time.monotonic() + 30
    while not (batch := queue.batches.get(batch.id)).finished:
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)
    return batch


def results(queue, file_id):
    with queue.batch_files.open(file_id) as file:
        return [json.loads(line) for line in file]


def test_batch_that_another_process_created_is_run(queue, settings):
    with Queue(settings) as front:
        batch = front.batches.add(upload(front, [{"seed": number} for number in range(20)]).id)
        batch = wait_ended(front, batch)
        assert (batch.status, batch.completed) == ("completed", 20)
        seeds = [result["response"]["body"]["seed"] for result in results(front, batch.output_file)]
        assert seeds == list(range(20))


def test_batch_expires_after_a_day_with_the_results_so_far(queue, monkeypatch):
    monkeypatch.setattr(batch_table, "COMPLETION_SECONDS", 3.0)
    batch = wait_ended(queue, queue.batches.add(upload(queue, [{}] * 1000).id))
    assert batch.status == "expired"
    assert batch.completed > 0
    assert batch.completed + batch.failed == 1000
    errors = results(queue, batch.error_file)
    assert {error["error"]["code"] for error in errors} == {"batch_expired"}
    assert len(errors) == batch.failed


def test_cancel_also_stops_a_job_that_was_submitted_just_before_a_crash(queue, settings):
    with Queue(settings) as front:
        batch = front.batches.add(upload(front, [{}] * 200).id)
        job = front.submit(
            NewJob(
                VideoRequest(prompt="a", model="pocket", motion_bucket_id=255),
                priority=-1000,
                idempotency_key=batch.key(200),
            )
        )
        front.batches.stop(batch.id, "cancelled")
        assert wait_ended(front, batch).status == "cancelled"
        assert front.get(job.id).error.code == "cancelled"


def test_batch_whose_file_is_missing_fails(queue):
    batch = wait_ended(queue, queue.batches.add(queue.file_table.add(new_file_id(), "a", "batch", 1).id))
    assert batch.status == "failed"
    assert "was deleted" in batch.errors[0].message


def test_internal_error_in_a_line_is_its_result(queue, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(line_submitter, "prepare", fail)
    batch = wait_ended(queue, queue.batches.add(upload(queue, [{}]).id))
    assert (batch.status, batch.failed) == ("completed", 1)
    (result,) = results(queue, batch.error_file)
    assert result["response"]["status_code"] == 500
    assert "ZeroDivision" not in json.dumps(result)


def test_expired_files_are_deleted(queue, settings, monkeypatch):
    monkeypatch.setattr(batch_feeder, "HOUSEKEEPING_SECONDS", 0)
    kept = upload(queue, [{}])
    monkeypatch.setattr(queue.file_table, "_keep_seconds", -1)
    expired = upload(queue, [{}])
    deadline = time.monotonic() + 60
    while queue.file_table.ids() != {kept.id}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not queue.batch_files.find(expired.id).exists()
    assert queue.batch_files.find(kept.id).exists()


def test_lines_fail_if_the_file_is_lost_after_its_validation(queue, settings):
    with Queue(settings) as front:
        batch = front.batches.add(upload(front, [{"motion_bucket_id": 100}] * 100).id)
        while front.batches.get(batch.id).completed < 1:
            time.sleep(0.01)
        front.batch_files.delete(batch.input_file)
        batch = wait_ended(front, batch)
        assert batch.completed + batch.failed == 100
        assert {result["response"]["status_code"] for result in results(front, batch.error_file)} == {404}


def test_file_is_kept_if_its_content_cannot_be_deleted(queue):
    file = upload(queue, [{}])

    def fail(_):
        raise QueueUnavailable("no store")

    with pytest.raises(QueueUnavailable):
        queue.file_table.remove(file.id, fail)
    assert queue.file_table.get(file.id) == file
    assert queue.batch_files.find(file.id).exists()


def test_invalid_lines_are_not_repeated_in_the_log(queue, caplog):
    batch = wait_ended(queue, queue.batches.add(upload(queue, [{"a secret": 1}, {"size": "secret"}]).id))
    assert "secret" in batch.errors[0].message
    assert f"batch {batch.id} failed: 2 errors, the first in line 1" in caplog.text
    assert "secret" not in caplog.text


def test_slow_image_hosts_of_one_owner_do_not_delay_others(queue, settings, monkeypatch):
    def wait(_, request, is_gone):
        while request.image and not is_gone():
            time.sleep(0.01)
        if request.image:
            raise FetchCancelled
        return None, None

    monkeypatch.setattr(line_submitter, "fetch_images", wait)
    slow_body = {"prompt": None, "input_reference": {"image_url": "https://slow.example/a.png"}}
    slow = [queue.batches.add(upload(queue, [slow_body] * 20).id, owner="a") for _ in range(6)]
    while not all(queue.batches.get(batch.id).status == "in_progress" for batch in slow):
        time.sleep(0.02)
    assert wait_ended(queue, queue.batches.add(upload(queue, [{}] * 3).id, owner="b")).completed == 3
    queue.batches.stop(slow[0].id, "cancelled")
    assert wait_ended(queue, slow[0]).status == "cancelled"


def test_line_that_exceeds_the_quota_for_now_does_not_hide_smaller_ones(queue, monkeypatch):
    def reject_first(*arguments, idempotency_key, **options):
        if idempotency_key.endswith(("-1", "-2")):
            raise QuotaExceeded(Message("too_much_waiting", "wait"), 1)
        return submit(*arguments, idempotency_key=idempotency_key, **options)

    submit = line_submitter.submit
    monkeypatch.setattr(line_submitter, "submit", reject_first)
    batch = queue.batches.add(upload(queue, [{}] * 9).id)
    deadline = time.monotonic() + 60
    while queue.batches.get(batch.id).completed < 7:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    monkeypatch.setattr(line_submitter, "submit", submit)
    assert wait_ended(queue, batch).completed == 9


def test_batches_are_limited_per_owner(queue, monkeypatch):
    monkeypatch.setattr(batch_table, "MAX_OWN_UNFINISHED", 1)
    file = upload(queue, [{"motion_bucket_id": 255}])
    queue.batches.add(file.id, owner="a")
    with pytest.raises(QueueFull, match="1 of your batches are not finished"):
        queue.batches.add(file.id, owner="a")
    queue.batches.add(file.id, owner="b")


def test_small_file_is_validated_while_large_ones_are(queue, monkeypatch):
    monkeypatch.setattr(batch_validator, "TURN_SECONDS", 0.01)
    large = [queue.batches.add(upload(queue, [{}] * 2000).id, owner="a") for _ in range(6)]
    small = queue.batches.add(upload(queue, [{}]).id, owner="b")
    while queue.batches.get(small.id).status == "validating":
        time.sleep(0.01)
    assert {queue.batches.get(batch.id).status for batch in large} == {"validating"}
    for batch in large:
        queue.batches.stop(batch.id, "cancelled")
    assert [wait_ended(queue, batch).status for batch in large] == ["cancelled"] * 6

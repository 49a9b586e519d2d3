"""Owners of jobs (API keys): their turns within a priority, positions in the queue, and limits."""

import pytest
from queue_helpers import IMAGE, request

from kinema.errors import QuotaExceeded
from kinema.jobs import NewJob, Queue
from kinema.jobs.owner_limits import OwnerLimits
from kinema.settings import Settings


@pytest.fixture(params=["sqlite", "postgresql"])
def queue(request, tmp_path):
    """A queue that runs no jobs; tests claim them."""
    url = request.getfixturevalue("postgresql_url") if request.param == "postgresql" else None
    with Queue(Settings(data_dir=tmp_path / "data", database_url=url, min_free_gb=0)) as queue:
        yield queue


def submit(queue, owner, count=1, **arguments):
    return [queue.submit(NewJob(request(), title=owner, owner=owner, image=IMAGE, **arguments)) for _ in range(count)]


def queued(queue):
    """Return the owners of the queued jobs by position."""
    jobs = [job for job in queue.list(limit=100).jobs if job.status == "queued"]
    assert sorted(job.queue_position for job in jobs) == list(range(1, len(jobs) + 1))
    assert all(queue.get(job.id).queue_position == job.queue_position for job in jobs)  # which is counted
    return "".join(job.title for job in sorted(jobs, key=lambda job: job.queue_position))


def claim(queue, count):
    """Start the next jobs; return their owners."""
    return "".join(queue.get(queue._table.claim([None])[0]).title for _ in range(count))


def test_owners_take_turns_and_a_new_owner_does_not_wait_for_a_long_queue(queue):
    submit(queue, "a", 6)
    assert queued(queue) == "aaaaaa"
    assert [job.queue_position for job in submit(queue, "b", 2)] == [2, 4]
    assert queued(queue) == "ababaaaa"
    assert claim(queue, 3) == "aba"
    assert submit(queue, "c")[0].queue_position == 2
    assert queued(queue) == "bcaaaa"
    submit(queue, "c", 2)
    submit(queue, "b")
    assert queued(queue) == claim(queue, 9) == "bcacbacaa"


def test_jobs_of_one_owner_start_in_order_of_submission_and_priority(queue):
    low = submit(queue, "a", 3)
    (urgent,) = submit(queue, "a", priority=1)
    assert urgent.queue_position == 1
    order = [queue._table.claim([None])[0] for _ in range(4)]
    assert order == [urgent.id, *(job.id for job in low)]


def test_job_with_higher_priority_precedes_the_turns_of_others(queue):
    submit(queue, "a", 2)
    submit(queue, "b", 2, priority=2)
    submit(queue, "c", priority=2)
    assert queued(queue) == claim(queue, 5) == "bcbaa"


def test_waiting_jobs_of_an_owner_are_limited(queue):
    limits = OwnerLimits(jobs=2)
    submit(queue, "a", 2, limits=limits)
    with pytest.raises(QuotaExceeded, match=r"its limit of waiting jobs \(2, KINEMA_KEY_WAITING_JOBS\).* 30 seconds"):
        submit(queue, "a", limits=limits)
    submit(queue, "b", limits=limits)
    claim(queue, 1)
    submit(queue, "a", limits=limits)
    assert queue.waiting() == 3


def test_work_of_unfinished_jobs_of_an_owner_is_limited(queue):
    limits = OwnerLimits(work=2.5 * request().work)
    submit(queue, "a", 2, limits=limits)
    claim(queue, 1)
    with pytest.raises(QuotaExceeded, match="KINEMA_KEY_WORK"):
        submit(queue, "a", limits=limits)
    submit(queue, "b", limits=limits)
    queue.cancel(queue.list(newest_first=False).jobs[0].id)
    submit(queue, "a", limits=limits)


def test_rejected_job_leaves_no_image(queue):
    with pytest.raises(QuotaExceeded):
        queue.submit(NewJob(request(), image=b"never stored", owner="a", limits=OwnerLimits(work=0.1)))
    assert not list(queue._files.images.iterdir())

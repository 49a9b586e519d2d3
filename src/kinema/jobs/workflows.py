"""DBOS workflows: one per job. DBOS stores which parts of a job are done and resumes jobs after a crash."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from kinema.errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# How often DBOS may restart a job after the server died.
MAX_RECOVERIES = 50
# Raise this when the order or meaning of a job's parts changes. DBOS does not resume workflows of another version;
# their jobs start again.
WORKFLOW_VERSION = "1"


class Workflows:
    """The workflows in DBOS's database. Its methods need `launch`, except `status`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._workflow: Callable[[str], None] | None = None

    def launch(self, run_job: Callable[[str], None]) -> Callable[[], None]:
        """Start DBOS, which resumes the workflows that were running when its last process ended.

        Args:
            run_job: Called with each job id, in a thread of its own.

        Returns:
            A function that stops DBOS.

        Raises:
            QueueUnavailable: DBOS's database can't be opened.
        """
        from dbos import DBOS

        def kinema_job(job_id: str) -> None:
            run_job(job_id)

        DBOS(
            config={
                "name": "kinema",
                "system_database_url": self._url,
                # Constant: DBOS's defaults depend on code and process, and it would not resume workflows of another.
                "executor_id": "kinema",
                "application_version": WORKFLOW_VERSION,
                "enable_otlp": False,
                "log_level": "ERROR",
                "use_listen_notify": False,
                # DBOS stops only after such a pause. It polls memory, for messages to workflows, which have none.
                "notification_listener_polling_interval_sec": 0.1,
            }
        )
        self._workflow = DBOS.workflow(name="kinema_job", max_recovery_attempts=MAX_RECOVERIES)(kinema_job)
        try:
            DBOS.launch()
        except Exception as error:  # noqa: BLE001 - DBOS raises errors of its own, of SQLAlchemy and of the driver
            DBOS.destroy(destroy_registry=True)
            raise QueueUnavailable(f"the database of the queue's workflows can't be opened: {error}") from None
        return functools.partial(DBOS.destroy, destroy_registry=True)

    def start(self, job_id: str) -> None:
        """Start the workflow of a job.

        An ended workflow of the job is deleted first, since DBOS would not start it again. There is one if the table of
        jobs was restored from a backup and DBOS's database was not.
        """
        from dbos import DBOS, SetWorkflowID

        assert self._workflow is not None, "start needs launch"
        status = self.status(job_id)
        if status is not None and status.status in ("SUCCESS", "ERROR"):
            DBOS.delete_workflow(job_id)
        with SetWorkflowID(job_id):
            DBOS.start_workflow(self._workflow, job_id)

    def status(self, job_id: str) -> Any:
        """Return DBOS's WorkflowStatus of a job, or None if it does not know the job."""
        from dbos import DBOS

        return DBOS.get_workflow_status(job_id)

    def delete(self, job_id: str) -> None:
        """Cancel and delete the workflow of a job, if it exists, so that it can start anew."""
        from dbos import DBOS

        if self.status(job_id) is not None:
            DBOS.cancel_workflow(job_id)
            DBOS.delete_workflow(job_id)

    def ended(self) -> list[str]:
        """Return the job ids of up to 1000 ended workflows."""
        from dbos import DBOS

        workflows = DBOS.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
            load_input=False,
            load_output=False,
            limit=1000,
        )
        return [workflow.workflow_id for workflow in workflows]

    def delete_ended(self, job_ids: Sequence[str]) -> None:
        """Delete ended workflows."""
        from dbos import DBOS

        if job_ids:
            DBOS.delete_workflows(list(job_ids))


def run_step(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function as a step of the current workflow; return the stored result if the step was done before."""
    from dbos import DBOS

    return DBOS.run_step({"name": name}, function, *arguments)

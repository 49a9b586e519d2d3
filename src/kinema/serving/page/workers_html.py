"""HTML of the server's workers: a line that opens to a table, and why no worker can be started. Pure functions."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING

from kinema.serving.page.form_html import english_html, message_html

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kinema.jobs.worker_state import PoolState, WorkerState
    from kinema.serving.page.translations.labels import Labels

NODE_ID_LENGTH = 6  # characters shown of Ray's id of a node
UNKNOWN = "–"


def workers(state: PoolState, titles: Mapping[str, str | None], labels: Labels) -> str:
    """Return the line with the number of workers by status, the table that it opens, and the problems.

    `titles` are those of the workers' jobs by id; a job without one was deleted, or is untitled.
    """
    counts = Counter[str](worker.status for worker in state.workers)
    texts = [
        labels.worker_count.format(counts[each], text) for each, text in labels.worker_states.items() if counts[each]
    ]
    summary = f"<summary>{escape(labels.workers)}: {escape(', '.join(texts) or labels.no_workers)}</summary>"
    rows = "".join(_row(worker, titles, labels) for worker in state.workers)
    table = ""
    if rows:
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in labels.worker_columns.values())
        table = (
            f'<div class="k-scroll" role="region" aria-label="{escape(labels.workers)}" tabindex="0">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
    details = f'<details class="k-facts">{summary}{table}</details>'
    return f'<div class="k-workers"><div>{_problems(state, labels)}</div>{details}</div>'


def _problems(state: PoolState, labels: Labels) -> str:
    """Return why jobs have to wait; a problem of all workers in place of the failures of each."""
    texts = state.problems or [worker.problem for worker in state.workers if worker.failed and worker.problem]
    general = escape(labels.server_problem)
    return "".join(
        f'<p class="k-error" role="status"><strong>{general}</strong> {_problem_html(text, labels)}</p>'
        for text in dict.fromkeys(texts)
    )


def _problem_html(text: str, labels: Labels) -> str:
    """Return a problem as a sentence, in English and marked as English unless it has a translation."""
    if labels.language != "en" and labels.translate(text) is not None:
        return message_html(text, labels)
    return english_html(f"{text[:1].upper()}{text[1:]}.", labels)


def _row(worker: WorkerState, titles: Mapping[str, str | None], labels: Labels) -> str:
    problem = ""
    if worker.problem:
        problem = f'<tr><td colspan="4" class="k-hint">{_problem_html(worker.problem, labels)}</td></tr>'
    jobs = " ".join(
        f'<button type="button" class="k-worker-job" data-act="open" data-job="{escape(job)}">'
        f"{escape(titles.get(job) or labels.untitled)}</button>"
        for job in worker.jobs
    )
    return (
        f'<tr><th scope="row">{escape(_place(worker, labels))}</th>'
        f"<td>{escape(labels.worker_states[worker.status])}</td>"
        f"<td>{escape(worker.model or UNKNOWN)}</td><td>{jobs or UNKNOWN}</td></tr>{problem}"
    )


def _place(worker: WorkerState, labels: Labels) -> str:
    """Return the device, or the host name with the start of the node's id, and the number of GPUs if it has several."""
    parts = [worker.place or UNKNOWN]
    if worker.node_id:
        parts.append(worker.node_id[:NODE_ID_LENGTH])
    if (worker.gpus or 0) > 1:
        parts.append(labels.gpus.format(worker.gpus).replace(" ", "\N{NO-BREAK SPACE}"))
    return " · ".join(parts)

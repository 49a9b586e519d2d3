"""The HTML of the server's workers, without a browser."""

import html

import pytest
from test_job_html import ID, text

from kinema.jobs.worker_state import PoolState, WorkerState
from kinema.messages import Message
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN
from kinema.serving.page.translations.languages import LANGUAGES
from kinema.serving.page.workers_html import workers

IDLE = WorkerState("cpu", "idle", "pocket", (), None, gpus=0)
BUSY = WorkerState("gpu-host", "busy", "svd-xt", (ID,), None, "9f3ac1" + "0" * 50, 4)
STARTING = WorkerState(None, "starting", None, (), "the worker is loading svd")
HEAD_LOST = "the head of the Ray cluster at head:6379 does not respond; running jobs continue"
FAILED = WorkerState(None, "starting", None, (), "the worker on a node can't be started: no memory", failed=True)


def test_line_counts_workers_and_opens_to_place_status_model_and_video():
    shown = text(workers(PoolState((IDLE, BUSY, STARTING)), {ID: "Lift-off"}, ENGLISH))
    assert "Workers: 1 busy, 1 idle, 1 starting" in shown
    for cell in (
        "cpu",
        "gpu-host · 9f3ac1 · 4\N{NO-BREAK SPACE}GPUs",
        "svd-xt",
        "Lift-off",
        "The worker is loading svd.",
    ):
        assert f" {cell} " in shown
    assert "작업 프로세스(워커): 작업 중 1개, 대기 중 1개" in text(workers(PoolState((IDLE, BUSY)), {}, KOREAN))


def test_server_without_workers_says_so():
    for labels in LANGUAGES.values():
        assert f"{labels.workers}: {labels.no_workers}" in text(workers(PoolState(), {}, labels))


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (PoolState((BUSY,), (HEAD_LOST,)), "The head of the Ray cluster at head:6379 does not respond; running jobs"),
        (PoolState((FAILED, FAILED)), "The worker on a node can't be started: no memory."),
        (PoolState((FAILED,), (HEAD_LOST,)), "The head of the Ray cluster"),
    ],
)
def test_reason_why_jobs_wait_is_shown_once_outside_of_the_table(state, problem):
    outside = workers(state, {}, ENGLISH).partition("<details")[0]
    assert outside.count("<p ") == 1
    assert f"{ENGLISH.server_problem}  {problem}" in text(outside)
    korean = workers(state, {}, KOREAN).partition("<details")[0]
    assert f'{KOREAN.server_problem}</strong> <span lang="en">{problem}' in html.unescape(korean)


def test_worker_that_only_starts_is_no_problem():
    assert workers(PoolState((STARTING,)), {}, ENGLISH).startswith('<div class="k-workers"><div></div><details')


def test_problem_with_a_translation_is_shown_in_the_language_of_the_page():
    problem = Message("worker_starting", "{label} is {message}", label="the worker", message="loading svd")
    assert "The worker is loading svd." in workers(PoolState(problems=(problem,)), {}, ENGLISH)
    shown = workers(PoolState(problems=(problem,)), {}, KOREAN)
    assert 'lang="en"' not in shown
    assert KOREAN.messages["worker_starting"] in shown


def test_texts_of_others_are_escaped():
    hostile = "<script>alert(1)</script>"
    state = WorkerState(hostile, "busy", hostile, (ID,), hostile, failed=True)
    assert "<script" not in workers(PoolState((state,), (hostile,)), {ID: hostile}, ENGLISH)


def test_state_of_another_version_is_read():
    assert PoolState.from_json("[]") == PoolState()
    newer = PoolState((BUSY,), ("x",)).to_json().replace('"gpus"', '"mood": "good", "gpus"')
    assert PoolState.from_json(newer) == PoolState((BUSY,), ("x",))

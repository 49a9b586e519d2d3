"""Percent and time left of a running job, by a clock that the test moves."""

from types import SimpleNamespace

import pytest
from queue_helpers import request

from kinema.jobs.eta import JobEta, StageSpeeds

PAST = {"encode": 1.0, "denoise": 10.0, "decode": 4.0}


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("kinema.jobs.eta.time", clock)
    return clock


@pytest.fixture
def speeds():
    """Those of a machine that has made one video, in 15 seconds."""
    speeds = StageSpeeds()
    speeds.learn(SimpleNamespace(request=request(), stage_durations=PAST))
    return speeds


def test_before_the_first_step_the_time_left_is_that_of_the_jobs_before(clock, speeds):
    assert JobEta(request(), speeds, {}, text_to_image=False).eta() == pytest.approx(15)


def test_where_no_job_was_seen_the_time_left_is_unknown(clock):
    assert JobEta(request(), StageSpeeds(), {}, text_to_image=False).eta() is None


def test_the_time_left_follows_the_steps_of_this_job_without_the_first(clock, speeds):
    meter = JobEta(request(), speeds, {}, text_to_image=False)
    for step, seconds in enumerate((30, 3, 3), 1):  # the first loads the model
        clock.now += seconds
        meter.tell("denoise", step, 5)
    assert meter.eta() == pytest.approx(2 * 3 + 4)
    clock.now += 2
    assert meter.eta() == pytest.approx(2 * 3 + 4 - 2)
    assert meter.durations["denoise"] == 36


def test_percent_follow_the_stages_shares_and_reach_100_only_when_a_job_is_completed(clock, speeds):
    meter = JobEta(request(), speeds, {}, text_to_image=False)
    told = []
    for stage, total in (("encode", 1), ("denoise", 2), ("decode", 1)):
        for step in range(1, total + 1):
            clock.now += 1
            meter.tell(stage, step, total)
            told.append(meter.percent)
    assert told == [100 // 15, 600 // 15, 1100 // 15, 99]

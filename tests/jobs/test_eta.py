"""Progress and ETA of a running job, with a fake clock."""

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
    """Speeds after one completed job of 15 seconds."""
    speeds = StageSpeeds()
    speeds.learn(SimpleNamespace(request=request(), stage_durations=PAST))
    return speeds


def test_eta_before_first_step_is_duration_of_earlier_jobs(clock, speeds):
    assert JobEta(request(), speeds, {}, text_to_image=False).eta() == pytest.approx(15)


def test_eta_without_completed_jobs_is_unknown(clock):
    assert JobEta(request(), StageSpeeds(), {}, text_to_image=False).eta() is None


def test_eta_extrapolates_own_steps_without_the_first(clock, speeds):
    eta = JobEta(request(), speeds, {}, text_to_image=False)
    for step, seconds in enumerate((30, 3, 3), 1):  # the first loads the model
        clock.now += seconds
        eta.record_step("denoise", step, 5)
    assert eta.eta() == pytest.approx(2 * 3 + 4)
    clock.now += 2
    assert eta.eta() == pytest.approx(2 * 3 + 4 - 2)
    assert eta.durations["denoise"] == 36


def test_percent_follows_stage_shares_and_stops_at_99(clock, speeds):
    eta = JobEta(request(), speeds, {}, text_to_image=False)
    percents = []
    for stage, total in (("encode", 1), ("denoise", 2), ("decode", 1)):
        for step in range(1, total + 1):
            clock.now += 1
            eta.record_step(stage, step, total)
            percents.append(eta.percent)
    assert percents == [100 // 15, 600 // 15, 1100 // 15, 99]

"""Progress and ETA of a running job, with a fake clock."""

from types import SimpleNamespace

import pytest
from queue_helpers import request

from kinema.jobs.eta import JobEta, JobSize, StageSpeeds
from kinema.values import Workload

SIZE = JobSize(request(), Workload(request().work))
PAST = {"encode": 1.0, "denoise": 10.0, "decode": 4.0}


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("kinema.jobs.eta.time", clock)
    return clock


def finished(size=SIZE, durations=PAST):
    last_image = "0" * 64 if size.has_last_image else None
    return SimpleNamespace(
        request=size.request, workload=size.workload, last_image=last_image, stage_durations=durations
    )


@pytest.fixture
def speeds():
    """Speeds after one completed job of 15 seconds."""
    speeds = StageSpeeds()
    speeds.learn(finished())
    return speeds


def test_eta_before_first_step_is_duration_of_earlier_jobs(clock, speeds):
    assert JobEta(SIZE, speeds, {}).eta() == pytest.approx(15)


def test_first_job_with_finishing_expects_it_to_take_as_long_as_its_operations_in_denoising(clock, speeds):
    finished_frames = request().changed(interpolate=2, upscale=2)
    work = request().work
    eta = JobEta(JobSize(finished_frames, Workload(work, {"interpolate": work / 5, "upscale": work})), speeds, {}).eta()
    assert eta == pytest.approx(15 + 2.5 * 5 / 5 + 1.3 * 5)  # one pass of denoising, without guidance, took 5 s


def test_finishing_of_earlier_jobs_is_learned_by_its_work(clock, speeds):
    large = JobSize(request().changed(upscale=2), Workload(request().work, {"upscale": 3.0}))
    speeds.learn(finished(large, PAST | {"upscale": 6.0}))
    larger = JobSize(request().changed(upscale=2), Workload(request().work, {"upscale": 5.0}))
    assert speeds.estimate_job(larger) == pytest.approx(15 + 10)


def test_eta_without_completed_jobs_is_unknown(clock):
    assert JobEta(SIZE, StageSpeeds(), {}).eta() is None


def test_eta_extrapolates_own_steps_without_the_first(clock, speeds):
    eta = JobEta(SIZE, speeds, {})
    for step, seconds in enumerate((30, 3, 3), 1):  # the first loads the model
        clock.now += seconds
        eta.record_step("denoise", step, 5)
    assert eta.eta() == pytest.approx(2 * 3 + 4)
    clock.now += 2
    assert eta.eta() == pytest.approx(2 * 3 + 4 - 2)
    assert eta.durations["denoise"] == 36


def test_percent_follows_stage_shares_and_stops_at_99(clock, speeds):
    eta = JobEta(SIZE, speeds, {})
    percents = []
    for stage, total in (("encode", 1), ("denoise", 2), ("decode", 1)):
        for step in range(1, total + 1):
            clock.now += 1
            eta.record_step(stage, step, total)
            percents.append(eta.percent)
    assert percents == [100 // 15, 600 // 15, 1100 // 15, 99]


def test_estimate_counts_predicted_frames_and_a_last_image(speeds):
    double = JobSize(SIZE.request, Workload(2 * request().work), has_last_image=True)
    assert speeds.estimate_job(double) == pytest.approx(2 * 1 + 2 * 10 + 4)


def test_estimate_of_an_extension_counts_no_more_decoded_frames_than_predicted_ones(speeds):
    longer = request().changed(num_frames=3 * request().num_frames)
    extension = JobSize(longer, Workload(request().work))  # one window, with as many frames as the first video
    assert speeds.estimate_stage("decode", extension) == pytest.approx(4)


def test_frames_of_an_extension_are_learned_as_those_that_were_decoded(clock):
    speeds = StageSpeeds()
    longer = request().changed(num_frames=3 * request().num_frames)
    speeds.learn(finished(JobSize(longer, Workload(request().work))))
    assert speeds.estimate_stage("decode", SIZE) == pytest.approx(4)


def test_job_that_was_stored_before_its_work_was_counted_teaches_no_denoising(clock):
    speeds = StageSpeeds()
    speeds.learn(finished(JobSize(SIZE.request, Workload(0.0))))
    assert speeds.estimate_stage("denoise", SIZE) is None
    assert speeds.estimate_stage("decode", SIZE) == pytest.approx(4)

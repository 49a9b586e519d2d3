"""Loose fields become a checked request, in one place for all faces."""

import logging

import pytest

from kinema.errors import InvalidImage, InvalidRequest
from kinema.jobs import Queue
from kinema.serving.submission import estimate, prepare, submit, work_of
from kinema.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, model="pocket", device="cpu")


def test_the_models_own_defaults_lie_beneath(settings, png):
    request = prepare(settings, {"seed": "7"}, png).request
    assert (request.model, request.seed, request.width, request.num_inference_steps) == ("pocket", 7, 288, 8)


def test_without_a_gpu_and_a_named_model_the_pocket_is_taken(tmp_path, png):
    assert prepare(Settings(data_dir=tmp_path, device="cpu"), {}, png).request.model == "pocket"


def test_with_a_still_the_prompt_is_the_title_alone(settings, png):
    submission = prepare(settings, {"prompt": "on its pad"}, png)
    assert (submission.title, submission.request.prompt) == ("on its pad", None)
    drawn = prepare(settings, {"prompt": "on its pad"})
    assert (drawn.title, drawn.request.prompt, drawn.request.image_model) == (
        "on its pad",
        "on its pad",
        "pocket-t2i",
    )


def test_cautions_tell_what_may_not_come_out_as_hoped(settings, png):
    told = prepare(settings, {"motion_bucket_id": 300}, png).warnings
    assert any("above 255" in warning for warning in told)
    assert any("enlarged" in warning for warning in told)


def test_guidance_scale_means_the_model_that_the_prompt_or_the_still_is_for(settings, png):
    drawn = prepare(settings, {"prompt": "a boat", "guidance_scale": "4.5"}).request
    assert (drawn.image_guidance_scale, drawn.max_guidance_scale) == (4.5, 1.0)
    for fields in ({}, {"prompt": "only a title"}):
        request = prepare(settings, {**fields, "guidance_scale": "2.5"}, png).request
        assert (request.image_guidance_scale, request.max_guidance_scale) == (None, 2.5)
    with pytest.raises(InvalidRequest, match="another name for image_guidance_scale, and both are given"):
        prepare(settings, {"prompt": "a boat", "guidance_scale": 4, "image_guidance_scale": 4})


@pytest.mark.parametrize("seed", ["-1", -1])
def test_minus_one_draws_a_seed(settings, png, seed):
    seeds = {prepare(settings, {"seed": seed}, png).request.seed for _ in range(3)}
    assert len(seeds) > 1
    assert min(seeds) >= 0


def test_words_that_draw_nothing_are_named_before_the_work(settings):
    assert prepare(settings, {"prompt": "an old horse in Paris"}).warnings == (
        "pocket-t2i does not know 'old', 'Paris'",
    )


def test_what_was_asked_is_told_apart_whatever_seed_was_drawn(settings, png):
    one, same, other = (prepare(settings, fields, png) for fields in ({}, {"seed": "null"}, {"fps": 8}))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.request.seed != same.request.seed


@pytest.mark.parametrize(
    ("given", "length"), [("14_frames_with_svd", (14, "svd")), ("25_frames_with_svd_xt", (25, "svd-xt"))]
)
def test_a_video_length_names_frames_and_model(settings, png, given, length):
    request = prepare(settings, {"video_length": given}, png).request
    assert (request.num_frames, request.model) == length


def test_seconds_count_at_the_rate_of_playback(settings, png):
    assert prepare(settings, {"seconds": "2"}, png).request.num_frames == 14
    assert prepare(settings, {"seconds": "2", "playback_fps": "10"}, png).request.num_frames == 20


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "288x160", "width": 288}, "size"),
        ({"seconds": 1, "num_frames": 7}, "seconds"),
        ({"seconds": 1, "video_length": "14_frames_with_svd"}, "seconds"),
        ({"motion_scale": 0.5, "motion_bucket_id": 3}, "motion_scale"),
        ({"motion_scale": 1.5}, "motion_scale"),
        ({"video_length": "forever"}, "video_length"),
        ({"negative_prompt": "rain"}, "negative_prompt"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, png, fields, param):
    with pytest.raises(InvalidRequest) as fault:
        prepare(settings, fields, png)
    assert fault.value.param == param


def test_more_work_than_a_request_may_ask_for_is_refused_before_it_is_queued(tmp_path, png):
    tight = Settings(data_dir=tmp_path, model="pocket", device="cpu", max_work=1)
    with pytest.raises(InvalidRequest, match=r"5 million, and one request may ask for 1 \(KINEMA_MAX_WORK\)"):
        prepare(tight, {}, png)
    assert work_of(prepare(tight, {"num_inference_steps": 1}, png).request) < 1


def test_a_still_is_judged_before_it_is_queued(settings):
    with pytest.raises(InvalidImage):
        prepare(settings, {}, b"no picture")


def test_only_offered_models_may_be_named(settings, png, tmp_path):
    with pytest.raises(InvalidRequest, match="not offered here"):
        prepare(settings, {"model": str(tmp_path)}, png)
    offered = Settings(data_dir=tmp_path, model="pocket", device="cpu", models="someone/theirs, other")
    assert prepare(offered, {"model": "someone/theirs"}, png).request.model == "someone/theirs"


def test_a_job_is_estimated_by_those_before_it(settings, png):
    class Known:
        def estimate(self, request):
            return float(request.num_frames)

    assert estimate(Known(), prepare(settings, {}, png)) == 14.0


@pytest.mark.parametrize(
    "given",
    [{"seconds": "1e308"}, {"seconds": "2", "fps": "1" + "0" * 400}, {"\ud800": "1"}, {"prompt": "x" * 10_001}],
)
def test_what_no_machine_could_count_or_keep_is_refused(settings, png, given):
    with pytest.raises(InvalidRequest):
        prepare(settings, {"model": "pocket"} | given, png)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_log_has_a_line_for_each_job_and_words_where_they_are_wanted(tmp_path, caplog, wanted):
    settings = Settings(data_dir=tmp_path, model="pocket", device="cpu", log_prompts=wanted, min_free_gb=0)
    queue = Queue(settings)
    caplog.set_level(logging.INFO, "kinema")
    job = submit(queue, settings, prepare(settings, {"prompt": "secret words"}))
    queue.close()
    (line,) = [record.getMessage() for record in caplog.records if job.id in record.getMessage()]
    assert "is queued, 14 frames of 288×160 by pocket" in line
    assert ("secret words" in line) is wanted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guidance_scale": "99"}, "guidance_scale"),
        ({"steps": "0"}, "steps"),
        ({"size": "1001x576"}, "size"),
        ({"fps": "0", "steps": "5"}, "fps"),
    ],
)
def test_an_error_names_the_field_as_it_was_sent(settings, png, fields, param):
    with pytest.raises(InvalidRequest) as refused:
        prepare(settings, fields, png)
    assert refused.value.param == param

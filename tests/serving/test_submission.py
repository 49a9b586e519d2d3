"""`prepare` turns fields and an image into a validated submission; `submit` puts it in the queue."""

import io
import logging

import pytest
from PIL import Image

from kinema.errors import InvalidImage, InvalidRequest
from kinema.jobs import Queue
from kinema.serving.submission import estimate, prepare, submit
from kinema.settings import Settings


def png_bytes(size):
    buffer = io.BytesIO()
    Image.new("RGB", size, "grey").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, model="pocket", device="cpu")


def test_prepare_fills_in_model_defaults(settings, png):
    request = prepare(settings, {"seed": "7"}, png).request
    assert (request.model, request.seed, request.width, request.num_inference_steps) == ("pocket", 7, 288, 8)


def test_default_model_without_gpu_is_pocket(tmp_path, png):
    assert prepare(Settings(data_dir=tmp_path, device="cpu"), {}, png).request.model == "pocket"


def test_prompt_with_image_is_only_the_title(settings, png):
    submission = prepare(settings, {"prompt": "on its pad"}, png)
    assert (submission.title, submission.request.prompt) == ("on its pad", None)
    generated = prepare(settings, {"prompt": "on its pad"})
    assert (generated.title, generated.request.prompt, generated.request.image_model) == (
        "on its pad",
        "on its pad",
        "pocket-t2i",
    )


def test_warnings_name_problematic_parameters(settings, png):
    warnings = prepare(settings, {"motion_bucket_id": 300}, png).warnings
    assert any("above 255" in warning for warning in warnings)
    assert any("enlarged" in warning for warning in warnings)


def test_guidance_scale_alias_depends_on_prompt_or_image(settings, png):
    generated = prepare(settings, {"prompt": "a boat", "guidance_scale": "4.5"}).request
    assert (generated.image_guidance_scale, generated.max_guidance_scale) == (4.5, 1.0)
    for fields in ({}, {"prompt": "only a title"}):
        request = prepare(settings, {**fields, "guidance_scale": "2.5"}, png).request
        assert (request.image_guidance_scale, request.max_guidance_scale) == (None, 2.5)
    with pytest.raises(InvalidRequest, match="alias of image_guidance_scale, and both are sent"):
        prepare(settings, {"prompt": "a boat", "guidance_scale": 4, "image_guidance_scale": 4})


@pytest.mark.parametrize("seed", ["-1", -1])
def test_seed_minus_one_is_random(settings, png, seed):
    seeds = {prepare(settings, {"seed": seed}, png).request.seed for _ in range(3)}
    assert len(seeds) > 1
    assert min(seeds) >= 0


def test_unknown_words_of_prompt_give_warning(settings):
    assert prepare(settings, {"prompt": "an old horse in Paris"}).warnings == (
        "pocket-t2i does not know 'old', 'Paris'",
    )


def test_fingerprint_ignores_random_seed(settings, png):
    one, same, other = (prepare(settings, fields, png) for fields in ({}, {"seed": "null"}, {"fps": 8}))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.request.seed != same.request.seed


@pytest.mark.parametrize(
    ("value", "length"), [("14_frames_with_svd", (14, "svd")), ("25_frames_with_svd_xt", (25, "svd-xt"))]
)
def test_video_length_sets_frames_and_model(settings, png, value, length):
    request = prepare(settings, {"video_length": value}, png).request
    assert (request.num_frames, request.model) == length


def test_seconds_use_playback_frame_rate(settings, png):
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
def test_conflicting_or_unknown_fields_are_rejected(settings, png, fields, param):
    with pytest.raises(InvalidRequest) as caught:
        prepare(settings, fields, png)
    assert caught.value.param == param


def test_request_over_max_work_is_rejected(tmp_path, png):
    tight = Settings(data_dir=tmp_path, model="pocket", device="cpu", max_work=1)
    with pytest.raises(InvalidRequest, match=r"5\.16096 million; the maximum per request is 1 \(KINEMA_MAX_WORK\)"):
        prepare(tight, {}, png)
    assert prepare(tight, {"num_inference_steps": 1}, png).request.work < 1


def test_limit_applies_to_the_size_that_follows_the_image(tmp_path):
    tight = Settings(data_dir=tmp_path, model="pocket", device="cpu", max_work=5.3)
    upright = prepare(tight, {}, png_bytes((60, 100))).request
    assert (upright.width, upright.height) == (160, 288)
    given = prepare(tight, {"size": "96x64"}, png_bytes((60, 100))).request
    assert (given.width, given.height) == (96, 64)
    with pytest.raises(InvalidRequest, match="224×224 pixels × 14 frames"):
        prepare(tight, {}, png_bytes((100, 100)))


def test_request_that_exceeds_the_limit_of_a_key_alone_is_rejected(tmp_path, png):
    settings = Settings(data_dir=tmp_path, model="pocket", device="cpu", key_work=0.5)
    with pytest.raises(InvalidRequest, match=r"of an API key is 0\.5 \(KINEMA_KEY_WORK\)"):
        prepare(settings, {}, png)


def test_work_of_interpolation_and_upscaling_is_limited(tmp_path, png, monkeypatch):
    monkeypatch.setattr("kinema.models.catalog.upscaler_file", lambda: None)
    settings = Settings(data_dir=tmp_path, model="pocket", device="cpu", max_work=12)  # without them: 5.2
    assert prepare(settings, {"interpolate": 4}, png).workload.total == pytest.approx(5.16 + 1.19, rel=0.01)
    with pytest.raises(InvalidRequest, match=r"^with upscale 2, .* are 21\.\d+ million; .* use upscale 1, or") as error:
        prepare(settings, {"interpolate": 4, "upscale": 2}, png)
    assert error.value.param == "upscale"
    most = settings.model_copy(update={"max_work": 6.2})
    with pytest.raises(InvalidRequest, match=r"^with interpolate 4, .* are 6\.3\d* million; the maximum .* is 6\.2 "):
        prepare(most, {"interpolate": 4}, png)
    of_key = settings.model_copy(update={"max_work": 100, "key_work": 12})
    with pytest.raises(
        InvalidRequest,
        match=r"^with upscale 2, this request is 21\.\d+ million .* API key is 12 \(KINEMA_KEY_WORK\): use upscale 1",
    ) as error:
        prepare(of_key, {"interpolate": 4, "upscale": 2}, png)
    assert error.value.param == "upscale"


def test_invalid_image_is_rejected_before_submission(settings):
    with pytest.raises(InvalidImage):
        prepare(settings, {}, b"not an image")


def test_model_that_is_not_offered_is_rejected(settings, png, tmp_path):
    with pytest.raises(InvalidRequest, match="not offered by this server"):
        prepare(settings, {"model": str(tmp_path)}, png)
    offered = Settings(data_dir=tmp_path, model="pocket", device="cpu", models="someone/theirs, other")
    assert prepare(offered, {"model": "someone/theirs"}, png).request.model == "someone/theirs"


def test_estimate_uses_queue_estimate(settings, png):
    class FakeQueue:
        def estimate(self, request, *, workload, has_last_image):
            return workload.denoise / request.work, has_last_image

    assert estimate(FakeQueue(), prepare(settings, {}, png)) == (1, False)
    assert estimate(FakeQueue(), prepare(settings, {"num_frames": 15}, png)) == (28 / 15, False)  # two windows
    assert estimate(FakeQueue(), prepare(settings, {}, png, last_image=png)) == (2, True)


@pytest.mark.parametrize(
    "fields",
    [{"seconds": "1e308"}, {"seconds": "2", "fps": "1" + "0" * 400}, {"\ud800": "1"}, {"prompt": "x" * 10_001}],
)
def test_extreme_values_are_rejected(settings, png, fields):
    with pytest.raises(InvalidRequest):
        prepare(settings, {"model": "pocket"} | fields, png)


@pytest.mark.parametrize("log_prompts", [False, True])
def test_submit_logs_prompt_only_if_enabled(tmp_path, caplog, log_prompts):
    settings = Settings(data_dir=tmp_path, model="pocket", device="cpu", log_prompts=log_prompts, min_free_gb=0)
    queue = Queue(settings)
    caplog.set_level(logging.INFO, "kinema")
    job = submit(queue, settings, prepare(settings, {"prompt": "secret words"}))
    queue.close()
    (line,) = [record.getMessage() for record in caplog.records if job.id in record.getMessage()]
    assert "is queued, 14 frames, 288×160, pocket" in line
    assert ("secret words" in line) is log_prompts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guidance_scale": "99"}, "guidance_scale"),
        ({"steps": "0"}, "steps"),
        ({"size": "1001x576"}, "size"),
        ({"fps": "0", "steps": "5"}, "fps"),
    ],
)
def test_error_names_alias_that_was_sent(settings, png, fields, param):
    with pytest.raises(InvalidRequest) as caught:
        prepare(settings, fields, png)
    assert caught.value.param == param

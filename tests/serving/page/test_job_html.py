"""The HTML of jobs and of the form, without a browser."""

import dataclasses
import html
import re
import string
from html.parser import HTMLParser

import pytest

from kinema.jobs import Failure, Job
from kinema.serving.page import form_html, job_html
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN
from kinema.serving.page.translations.languages import LANGUAGES
from kinema.values import VideoRequest

ID = "video_" + "0" * 32
IMAGE = "a" * 64


def job(status="in_progress", prompt=None, **changes):
    request = VideoRequest(model="pocket", seed=7, width=288, height=160, num_frames=14, prompt=prompt)
    fields = {"id": ID, "status": status, "request": request, "title": None, "image": IMAGE, "priority": 0}
    return Job(**{**fields, "created_at": 1000.0, **changes})


def text(markup):
    return html.unescape(re.sub(r"<[^>]+>", " ", markup))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (job("queued", queue_position=1), "Queued: next to start"),
        (job("queued", queue_position=3), "Queued: position 3"),
        (job(), "Starting"),
        (job(stage="denoise", step=3, total=25, eta=20.0), "Denoising, step 3 of 25"),
        (job(stage="decode", step=1, total=4, eta=400.0), "about 7 min left"),
        (job(stage="denoise", step=1, total=25), "estimating the time left"),
        (job("completed", stage_durations={"denoise": 30.0, "decode": 11.6}, completed_at=2000.0), "generated in 42 s"),
        (job("failed", error=Failure("cancelled", "it was cancelled")), "Cancelled"),
        (job("failed", error=Failure("worker_hung", "three workers hung")), "Three workers hung. Your parameters are"),
    ],
)
def test_panel_shows_the_state_of_the_job(state, expected):
    assert expected in text(job_html.panel(state, ENGLISH))


def test_only_a_prompt_has_the_stage_text_to_image():
    assert "Generating the image" not in job_html.panel(job(stage="denoise"), ENGLISH)
    assert "Generating the image" in job_html.panel(job(prompt="a boat", stage="text_to_image"), ENGLISH)


def test_running_job_has_cancel_and_finished_job_has_delete():
    assert 'data-act="cancel"' in job_html.panel(job(), ENGLISH)
    assert 'data-act="delete"' not in job_html.panel(job(), ENGLISH)
    assert 'data-act="delete"' in job_html.panel(job("completed"), ENGLISH)
    assert 'data-act="cancel"' not in job_html.panel(job("completed"), ENGLISH)


def test_video_is_marked_as_ai_generated_in_each_language():
    for labels in LANGUAGES.values():
        assert labels.ai_generated in job_html.panel(job("completed"), labels)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '" onmouseover="alert(1)', "'><img src=x>"])
def test_user_text_is_escaped(hostile):
    failed = job("failed", title=hostile, prompt=hostile, error=Failure("defect", hostile))
    shown = [job_html.panel(dataclasses.replace(failed, status=status), ENGLISH) for status in ("failed", "completed")]
    shown += [job_html.gallery([failed], ENGLISH, more=False), form_html.submit_error(hostile, ENGLISH)]
    shown += [
        form_html.empty_image_frame(ENGLISH, hostile),
        form_html.estimate_html(failed.request, 1.0, 0, [hostile], ENGLISH),
    ]
    for markup in shown:
        elements = Elements(markup)
        assert "script" not in elements.names
        assert not {"onerror", "onmouseover"} & elements.attributes
        assert "x" not in elements.sources


class Elements(HTMLParser):
    """The element names, attributes and src values of some markup."""

    def __init__(self, markup):
        super().__init__()
        self.names, self.attributes, self.sources = set(), set(), set()
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources |= {value for name, value in attrs if name == "src"}


def test_note_shows_length_estimate_queue_and_warnings():
    note = text(form_html.estimate_html(job().request, 65.0, 2, ["it is small"], ENGLISH))
    for text_part in ("14 frames, 2.0 s", "about 65 s", "ahead in the queue: 2", "it is small"):
        assert text_part in note


def test_crop_is_described_and_outlined():
    frame = form_html.image_frame(IMAGE, (1000, 1000), job().request, ENGLISH)
    assert "56% of your image is kept" in frame
    assert "left: 0.00%; top: 22.20%; right: 0.00%; bottom: 22.20%" in frame
    assert "k-whole" not in form_html.image_frame(IMAGE, (288, 160), job().request, ENGLISH)


def test_crop_can_be_moved_and_a_moved_crop_is_shown_where_it_is_used():
    moved = job().request.changed(crop_position=0.25)
    frame = form_html.image_frame(IMAGE, (1000, 1000), moved, ENGLISH)
    for part in ('role="slider"', 'aria-valuenow="25"', 'data-axis="y"', 'data-kept="0.5560"', "Drag the image"):
        assert part in frame
    assert "top: 11.10%; right: 0.00%; bottom: 33.30%" in frame
    source = f"../images/{IMAGE}?width=288&amp;height=160&amp;fit=crop&amp;crop_position=0.25"
    assert source in frame
    assert source in job_html.panel(dataclasses.replace(job("queued"), request=moved), ENGLISH)
    assert "slider" not in form_html.image_frame(IMAGE, (288, 160), moved, ENGLISH)


def test_loop_is_named_and_last_frame_is_offered_for_a_finished_video():
    loop = dataclasses.replace(job("completed"), request=job().request.changed(loop=True))
    assert "14 frames, 2.0 s · Loop" in text(job_html.gallery([loop], ENGLISH, more=False))
    assert "14 frames, 2.0 s · Loop" in text(job_html.panel(loop, ENGLISH))
    assert 'data-act="last"' in job_html.panel(loop, ENGLISH)
    assert 'data-act="last"' not in job_html.panel(job("failed"), ENGLISH)
    assert 'data-act="extend"' not in job_html.panel(loop, ENGLISH)
    assert 'data-act="extend"' in job_html.panel(job("completed", last_image=IMAGE, extend=ID), ENGLISH)


def test_touch_screen_has_its_own_words():
    frame = form_html.empty_image_frame(ENGLISH)
    assert '<p class="k-drop k-touch">Add an image</p>' in frame
    assert 'k-touch" data-camera>Take a photo' in frame


def test_gallery_marks_the_shown_job_and_offers_more():
    markup = job_html.gallery([job("completed"), job()], ENGLISH, more=True, shown=ID)
    assert markup.count("k-card") >= 2
    assert 'aria-current="true"' in markup
    assert 'data-act="more"' in markup
    assert 'data-act="more"' not in job_html.gallery([job()], ENGLISH, more=False)


def test_both_languages_have_the_same_placeholders():
    def count_placeholders(value):
        return len([p for p in string.Formatter().parse(value) if p[1] is not None])

    for field in dataclasses.fields(ENGLISH):
        english, korean = getattr(ENGLISH, field.name), getattr(KOREAN, field.name)
        if isinstance(english, str):
            assert count_placeholders(english) == count_placeholders(korean), field.name
        elif field.name not in ("messages", "errors"):  # see test_korean.py
            assert english.keys() == korean.keys(), field.name


def test_every_parameter_has_a_label_and_help_in_both_languages():
    for labels in LANGUAGES.values():
        assert labels.parameter_names.keys() == labels.parameter_help.keys() == VideoRequest.model_fields.keys()


@pytest.mark.parametrize(("seconds", "expected"), [(0.2, "1 s"), (42.4, "42 s"), (600, "10 min"), (7200, "2.0 h")])
def test_duration_is_rounded_by_its_size(seconds, expected):
    assert ENGLISH.duration(seconds) == expected

"""What the page shows of a job, without a browser."""

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
    usual = {"id": ID, "status": status, "request": request, "title": None, "image": IMAGE, "priority": 0}
    return Job(**{**usual, "created_at": 1000.0, **changes})


def text(markup):
    return html.unescape(re.sub(r"<[^>]+>", " ", markup))


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (job("queued", queue_position=1), "Waiting: next in the queue"),
        (job("queued", queue_position=3), "Waiting: place 3 in the queue"),
        (job(), "Starting"),
        (job(stage="denoise", step=3, total=25, eta=20.0), "Imagining the motion, step 3 of 25"),
        (job(stage="decode", step=1, total=4, eta=400.0), "about 7 min left"),
        (job(stage="denoise", step=1, total=25), "time left is not known yet"),
        (job("completed", stage_durations={"denoise": 30.0, "decode": 11.6}, completed_at=2000.0), "made in 42 s"),
        (job("failed", error=Failure("cancelled", "it was cancelled")), "Cancelled"),
        (job("failed", error=Failure("worker_hung", "three workers hung")), "Three workers hung. Your settings are"),
    ],
)
def test_a_job_is_told_as_it_is(state, told):
    assert told in text(job_html.panel(state, ENGLISH))


def test_only_a_sentence_has_its_still_drawn():
    assert "Drawing the still" not in job_html.panel(job(stage="denoise"), ENGLISH)
    assert "Drawing the still" in job_html.panel(job(prompt="a boat", stage="text_to_image"), ENGLISH)


def test_a_running_job_can_be_cancelled_and_a_finished_one_deleted():
    assert 'data-act="cancel"' in job_html.panel(job(), ENGLISH)
    assert 'data-act="delete"' not in job_html.panel(job(), ENGLISH)
    assert 'data-act="delete"' in job_html.panel(job("completed"), ENGLISH)
    assert 'data-act="cancel"' not in job_html.panel(job("completed"), ENGLISH)


def test_a_video_is_marked_as_made_by_ai_in_each_language():
    for words in LANGUAGES.values():
        assert words.ai_made in job_html.panel(job("completed"), words)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '" onmouseover="alert(1)', "'><img src=x>"])
def test_what_people_write_is_text(hostile):
    failed = job("failed", title=hostile, prompt=hostile, error=Failure("defect", hostile))
    shown = [job_html.panel(dataclasses.replace(failed, status=status), ENGLISH) for status in ("failed", "completed")]
    shown += [job_html.gallery([failed], ENGLISH, more=False), form_html.refusal(hostile, ENGLISH)]
    shown += [form_html.empty_frame(ENGLISH, hostile), form_html.note(failed.request, 1.0, 0, [hostile], ENGLISH)]
    for markup in shown:
        found = Elements(markup)
        assert "script" not in found.names
        assert not {"onerror", "onmouseover"} & found.attributes
        assert "x" not in found.sources


class Elements(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, markup):
        super().__init__()
        self.names, self.attributes, self.sources = set(), set(), set()
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.sources |= {value for name, value in attrs if name == "src"}


def test_the_note_tells_length_time_and_turn():
    note = text(form_html.note(job().request, 65.0, 2, ["it is small"], ENGLISH))
    for said in ("14 frames, 2.0 s", "about 65 s", "2 waiting", "it is small"):
        assert said in note


def test_the_crop_is_told_and_outlined():
    frame = form_html.frame(IMAGE, (1000, 1000), job().request, ENGLISH)
    assert "56% of your picture is kept" in frame
    assert "left: 0.00%; top: 22.20%; right: 0.00%; bottom: 22.20%" in frame
    assert "k-whole" not in form_html.frame(IMAGE, (288, 160), job().request, ENGLISH)


def test_a_gallery_shows_which_is_open_and_whether_there_are_more():
    markup = job_html.gallery([job("completed"), job()], ENGLISH, more=True, shown=ID)
    assert markup.count("k-card") >= 2
    assert 'aria-current="true"' in markup
    assert 'data-act="more"' in markup
    assert 'data-act="more"' not in job_html.gallery([job()], ENGLISH, more=False)


def test_both_languages_fill_in_the_same():
    def places(value):
        return [len([p for p in string.Formatter().parse(value) if p[1] is not None])]

    for field in dataclasses.fields(ENGLISH):
        english, korean = getattr(ENGLISH, field.name), getattr(KOREAN, field.name)
        if isinstance(english, str):
            assert places(english) == places(korean), field.name
        elif field.name not in ("messages", "faults"):  # the library's own are English: see test_korean.py
            assert english.keys() == korean.keys(), field.name


def test_every_setting_is_named_and_explained_in_both_languages():
    for words in LANGUAGES.values():
        assert words.labels.keys() == words.explained.keys() == VideoRequest.model_fields.keys()


@pytest.mark.parametrize(("seconds", "told"), [(0.2, "1 s"), (42.4, "42 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_are_told_as_people_say_them(seconds, told):
    assert ENGLISH.duration(seconds) == told

"""Handlers and components of the page."""

import asyncio
import gc
import logging
import warnings
from types import SimpleNamespace

import pytest

from kinema.errors import QueueUnavailable
from kinema.jobs import NewJob, Queue
from kinema.models import upscaler_weights
from kinema.serving.image_service import ImageService
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN
from kinema.settings import Settings
from kinema.values import VideoRequest


@pytest.mark.parametrize("labels", [ENGLISH, KOREAN], ids=["en", "ko"])
@pytest.mark.parametrize("error", [QueueUnavailable("SELECT * FROM /srv"), RuntimeError("/srv/secret")], ids=type)
def test_handler_error_is_shown_in_the_page_language(labels, error, caplog):
    import gradio as gr  # here, because processes that only collect this file do not need it: it takes 4 seconds

    from kinema.serving.page.blocks import StudioPage

    page = StudioPage.__new__(StudioPage)
    page._labels = labels

    def handler(value):
        raise error

    caplog.set_level(logging.ERROR)
    with pytest.raises(gr.Error) as shown:
        page._with_errors_shown(handler)(1)
    assert shown.value.title == labels.error
    general = (
        labels.internal_error
        if isinstance(error, RuntimeError)
        else labels.errors.get("queue_unavailable", "the queue is not")
    )
    assert general in shown.value.message
    assert "/srv" not in shown.value.message
    assert ("/srv/secret" in caplog.text) is isinstance(error, RuntimeError)


def test_component_passes_values_on_unchanged():
    from kinema.serving.page.form import Dropdown, Number, Radio, Slider

    for component in (Slider(0, 255, value=1), Number(1), Dropdown(["a"], value="a"), Radio(["a"], value="a")):
        assert component.get_block_name() == type(component).__base__.__name__.lower()
        for value in (7.5, 300, None, "b"):
            assert component.preprocess(value) is value


@pytest.fixture
def page(tmp_path):
    from kinema.serving.page.blocks import StudioPage
    from kinema.serving.page.page_routes import Drafts

    settings = Settings(data_dir=tmp_path, model="pocket", device="cpu", min_free_gb=0)
    queue = Queue(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # Gradio leaves event loops open
        page = StudioPage(queue, settings, Drafts(tmp_path, 0, ImageService(), queue.find_image), ENGLISH)
        asyncio.set_event_loop(None)  # the last of them is the current one
        gc.collect()
    yield page
    queue.close()


def video_request(**parameters):
    return VideoRequest(**{"model": "pocket", "seed": 7, "width": 288, "height": 160, "num_frames": 14} | parameters)


def values_of(updates):
    return {
        component: update["value"] if isinstance(update, dict) else update
        for component, update in updates.items()
        if not isinstance(update, dict) or "value" in update
    }


def test_parameters_of_an_extended_video_are_those_of_its_first_part_at_the_whole_length(page):
    queue = page._queue
    first = queue.submit(NewJob(video_request(prompt="a red boat", scheduler="euler")))
    again = queue.submit(NewJob(video_request(num_frames=21, decode_chunk_size=7), image=b"image", extend=first.id))
    job = queue.submit(NewJob(video_request(num_frames=28, decode_chunk_size=7), image=b"image", extend=again.id))
    form, values = page._form, values_of(page._reuse(job))
    named = {name: values[component] for name, component in form.parameters.items()}
    assert values[form.source] == "prompt"
    assert named["prompt"] == "a red boat"
    assert (named["scheduler"], named["seed"], named["decode_chunk_size"]) == ("euler", 7, "")
    assert (values[form.seconds], named["num_frames"]) == (4.0, "")
    assert page._lost_parameters(job) == [ENGLISH.extension_lost]
    assert page._lost_parameters(first) == []


def test_extended_video_whose_first_part_is_gone_gives_its_image_and_parameters(page):
    queue = page._queue
    first = queue.submit(NewJob(video_request(prompt="a red boat")))
    job = queue.submit(NewJob(video_request(num_frames=28), image=b"image", extend=first.id))
    queue.cancel(first.id)
    queue.delete(first.id)
    form, values = page._form, values_of(page._reuse(job))
    assert (values[form.source], values[form.image], values[form.seconds]) == ("image", job.image, 4.0)
    assert page._lost_parameters(job) == [ENGLISH.first_part_lost]


@pytest.mark.parametrize("is_installed", [False, True])
def test_enlargement_is_hidden_and_off_if_it_is_not_installed(tmp_path, monkeypatch, request, is_installed):
    monkeypatch.setattr(upscaler_weights, "find_spec", lambda _: SimpleNamespace(origin="x") if is_installed else None)
    page = request.getfixturevalue("page")
    job = page._queue.submit(NewJob(video_request(upscale=2), image=b"image"))
    enlargement = page._form.parameters["upscale"]
    assert enlargement.visible is is_installed
    assert values_of(page._reuse(job))[enlargement] == (2 if is_installed else 1)
    assert page._lost_parameters(job) == ([] if is_installed else [ENGLISH.upscale_lost])

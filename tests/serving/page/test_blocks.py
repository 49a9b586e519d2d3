"""Handlers and components of the page."""

import logging

import pytest

from kinema.errors import QueueUnavailable
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN


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

"""What goes wrong in a handler of the page is shown in the page's words."""

import logging

import gradio as gr
import pytest

from kinema.errors import QueueUnavailable
from kinema.serving.page.blocks import StudioPage
from kinema.serving.page.form import Dropdown, Number, Radio, Slider
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN


@pytest.mark.parametrize("words", [ENGLISH, KOREAN], ids=["en", "ko"])
@pytest.mark.parametrize("fault", [QueueUnavailable("SELECT * FROM /srv"), RuntimeError("/srv/secret")], ids=type)
def test_a_handler_that_fails_says_so_in_the_pages_language(words, fault, caplog):
    page = StudioPage.__new__(StudioPage)
    page._words = words

    def handler(value):
        raise fault

    caplog.set_level(logging.ERROR)
    with pytest.raises(gr.Error) as shown:
        page._answering(handler)(1)
    assert shown.value.title == words.failed
    general = (
        words.defect if isinstance(fault, RuntimeError) else words.faults.get("queue_unavailable", "the queue is not")
    )
    assert general in shown.value.message
    assert "/srv" not in shown.value.message
    assert ("/srv/secret" in caplog.text) is isinstance(fault, RuntimeError)


def test_a_component_hands_over_what_was_typed_or_chosen():
    for component in (Slider(0, 255, value=1), Number(1), Dropdown(["a"], value="a"), Radio(["a"], value="a")):
        assert component.get_block_name() == type(component).__base__.__name__.lower()
        for typed in (7.5, 300, None, "b"):
            assert component.preprocess(typed) is typed

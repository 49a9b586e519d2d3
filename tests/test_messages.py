"""A sentence is a string like any other, and knows what it was made of."""

import pickle

from kinema.errors import InvalidRequest
from kinema.messages import Message


def test_a_sentence_is_read_as_text_and_keeps_what_it_was_made_of():
    said = Message("too_wide", "{name} {value!r} is too wide", name="width", value="{9}")
    assert said == "width '{9}' is too wide"
    assert (said.code, said.values) == ("too_wide", {"name": "width", "value": "{9}"})


def test_an_error_brings_its_sentence_from_another_process():
    inner = Message("range", "{low} to {high}", low=1, high=2)
    error = pickle.loads(pickle.dumps(InvalidRequest(Message("out", "not in {range}", range=inner), "fps")))
    assert (str(error), error.args[0].code, error.args[0].values["range"].code) == ("not in 1 to 2", "out", "range")
    assert error.param == "fps"

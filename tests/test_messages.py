"""A message is a string with a code and values."""

import pickle

from kinema.errors import InvalidRequest
from kinema.messages import Message


def test_message_is_text_with_code_and_values():
    message = Message("too_wide", "{name} {value!r} is too wide", name="width", value="{9}")
    assert message == "width '{9}' is too wide"
    assert (message.code, message.values) == ("too_wide", {"name": "width", "value": "{9}"})


def test_message_of_error_survives_pickle():
    inner = Message("range", "{low} to {high}", low=1, high=2)
    error = pickle.loads(pickle.dumps(InvalidRequest(Message("out", "not in {range}", range=inner), "fps")))
    assert (str(error), error.args[0].code, error.args[0].values["range"].code) == ("not in 1 to 2", "out", "range")
    assert error.param == "fps"

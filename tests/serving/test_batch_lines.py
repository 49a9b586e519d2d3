"""What is stored and logged of the invalid lines of a batch."""

import io
import json

import pytest

from kinema.serving.batch_lines import MAX_ERROR_CHARACTERS, LineReader
from kinema.serving.short_messages import MAX_MESSAGE, shorten
from kinema.settings import Settings


def errors(lines, **settings):
    data = "\n".join(json.dumps(line) for line in lines).encode()
    return list(LineReader(Settings(model="pocket", device="cpu", **settings), io.BytesIO(data)).check_all())


def line(number, **body):
    return {"custom_id": str(number), "method": "POST", "url": "/v1/videos", "body": {"prompt": "a"} | body}


@pytest.mark.parametrize("body", [{"size": "9" * 100_000}, {"x" * 100_000: 1}, {"seed": "a b " * 25_000}])
def test_long_values_are_cut_in_errors(body):
    found = errors([line(number, **body) for number in range(50)])
    assert all(len(error.message) < MAX_MESSAGE + 50 and len(error.param) <= 80 for error in found)
    assert sum(len(error.message) for error in found) < MAX_ERROR_CHARACTERS + 2 * MAX_MESSAGE


def test_long_message_keeps_its_remedy():
    message = shorten("a value " + "is wrong, " * 200 + "use another")
    assert message.startswith("a value is wrong")
    assert message.endswith("use another")
    assert len(message) < MAX_MESSAGE + 5


def test_line_with_more_work_than_its_key_may_have_is_invalid():
    (error,) = errors([line(1)], key_work=0.01)
    assert "KINEMA_KEY_WORK" in error.message

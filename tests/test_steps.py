"""`drive` returns a generator's result, tells steps from restarts, and closes the generator if a function raises."""

import pytest

from kinema.steps import Restart, Step, drive


def events(closed):
    try:
        yield Step("decode", 1, 2)
        yield Restart("decode", "NaN")
        yield Step("decode", 2, 2)
    finally:
        closed.append(True)
    return "the video"


def test_drive_returns_result_and_calls_the_function_of_each_event():
    steps, restarts, closed = [], [], []
    assert drive(events(closed), steps.append, restarts.append) == "the video"
    assert [step.step for step in steps] == [1, 2]
    assert restarts == [Restart("decode", "NaN")]


def test_drive_closes_generator_if_a_function_raises():
    closed = []

    def fail(_step):
        raise KeyError("stop")

    generator = events(closed)
    with pytest.raises(KeyError, match="stop"):
        drive(generator, fail)
    assert closed == [True]
    assert generator.gi_frame is None

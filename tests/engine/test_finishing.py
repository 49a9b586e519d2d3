"""The chain of stages after decoding, with stages of the test's own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import kinema
from kinema.engine import image_to_video
from kinema.engine.finishing import CHUNK, finish
from kinema.steps import Step

FRAMES = np.arange((CHUNK + 2) * 4 * 4 * 3, dtype=np.uint8).reshape(CHUNK + 2, 4, 4, 3)


class Twice:
    """Shows each frame twice."""

    name = "decode"

    def count(self, num_frames):
        return 2 * num_frames

    def run(self, chunks):
        for chunk in chunks:
            yield chunk.repeat(2, 0)


class Larger:
    """Doubles width and height."""

    name = "decode"

    def count(self, num_frames):
        return num_frames

    def run(self, chunks):
        for chunk in chunks:
            yield chunk.repeat(2, 1).repeat(2, 2)


def steps_and_frames(stages):
    events, steps = finish(FRAMES, stages), []
    while True:
        try:
            steps.append(next(events))
        except StopIteration as end:
            return steps, end.value


def test_no_stage_returns_the_same_array_without_a_step():
    steps, frames = steps_and_frames(())
    assert frames is FRAMES
    assert steps == []


def test_two_stages_run_in_order_and_only_the_last_ones_steps_have_frames():
    steps, frames = steps_and_frames((Twice(), Larger()))
    np.testing.assert_array_equal(frames, FRAMES.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    totals = [(step.step, step.total) for step in steps]
    assert totals == [(16, 20), (20, 20), (8, 20), (16, 20), (20, 20)]
    assert [step.frames is None for step in steps] == [True] * 2 + [False] * 3
    np.testing.assert_array_equal(np.concatenate([step.frames for step in steps[2:]]), frames)


def test_stage_that_makes_another_number_of_frames_than_it_said_is_an_error():
    class Short(Twice):
        def run(self, chunks):
            yield next(chunks)

    with pytest.raises(AssertionError, match=f"made {CHUNK} frames, not {2 * len(FRAMES)}"):
        steps_and_frames((Short(),))


def test_frames_of_a_video_with_a_stage_are_those_of_its_steps(tiny_svd, monkeypatch):
    pipeline = kinema.load(tiny_svd, device="cpu", dtype="float32")
    size = {"width": 64, "height": 64, "num_frames": 3, "num_inference_steps": 1}
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    plain = kinema.generate(image, model=pipeline, seed=1, **size)
    monkeypatch.setattr(image_to_video, "finishing_stages", lambda *_: (Twice(),))
    *steps, video = kinema.stream(image, model=pipeline, seed=1, **size)
    np.testing.assert_array_equal(video.frames, plain.frames.repeat(2, 0))
    frames = [step.frames for step in steps if isinstance(step, Step) and step.frames is not None]
    np.testing.assert_array_equal(np.concatenate(frames), video.frames)

"""Finishing: what a request asks of the decoded frames, as a chain of stages from frames to frames.

`finishing_stages` has the stages in the order in which they run; `VideoRequest.finishing` has their names, for those
who import no engine. Most requests have none, and then nothing is done or copied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from kinema.engine.held_frames import fitted_frames
from kinema.engine.interpolation import Interpolation
from kinema.engine.upscaling import upscaling_stage
from kinema.steps import Step, replaced

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import torch

    from kinema.media.source_video import SourceVideo
    from kinema.media.video_writer import Frames
    from kinema.steps import Stage
    from kinema.values import VideoRequest

CHUNK = 8  # frames that a stage gets together


class FinishingStage(Protocol):
    """One stage. It may keep frames between chunks, and return chunks of other sizes, lengths and numbers."""

    @property
    def name(self) -> Stage:
        """The stage's name in steps."""

    def count(self, num_frames: int) -> int:
        """Return the number of frames that `run` makes of so many."""

    def run(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        """Yield frames, uint8 [n, height, width, 3], in chunks; all have one size, which may differ from the input's.

        Args:
            chunks: The frames, uint8 [n, height, width, 3], each chunk with at least one.
        """


def finishing_stages(request: VideoRequest, device: torch.device) -> tuple[FinishingStage, ...]:
    """Return the stages of a request in order; none by default.

    Args:
        request: The parameters of the video.
        device: Where the model runs.
    """
    stages: list[FinishingStage] = []
    if request.interpolate > 1:
        stages.append(Interpolation(request.interpolate, device, loop=request.loop))
    if request.upscale > 1:
        stages.append(upscaling_stage(device))
    return tuple(stages)


def finish(frames: Frames, stages: Sequence[FinishingStage]) -> Generator[Step, None, Frames]:
    """Run the stages one after the other: yield a `Step` per chunk, in the last stage with its frames; return all.

    Args:
        frames: The decoded frames, uint8 [n, height, width, 3].
        stages: From `finishing_stages`. Without any, `frames` is returned.
    """
    for stage in stages:
        total = stage.count(len(frames))
        finished: Frames | None = None
        done = 0
        for chunk in stage.run(_chunks(frames)):
            if finished is None:
                finished = np.empty((total, *chunk.shape[1:]), np.uint8)
            finished[done : done + len(chunk)] = chunk
            done += len(chunk)
            yield Step(stage.name, done, total, frames=chunk if stage is stages[-1] else None)
        assert finished is not None, "a video has at least one frame"
        assert done == total, f"{stage.name} made {done} frames, not {total}"
        frames = finished
    return frames


def finish_extended(
    decoded: Frames, stages: Sequence[FinishingStage], source: SourceVideo, request: VideoRequest
) -> Generator[Step, None, Frames]:
    """Put new frames after those of the video that is extended: yield steps, the last with all frames; return all.

    Stages see the last frame of that video too, for what they make between it and the first new one.

    Args:
        decoded: The frames that were denoised: first some that the video to extend already has, then the new ones.
        stages: From `finishing_stages`.
        source: The video to extend.
        request: The request of the whole video.
    """
    new = decoded[len(decoded) - (request.num_frames - source.lengths[-1]) :]
    name: Stage = "decode"
    if stages:
        name = stages[-1].name
        with_last = np.concatenate([fitted_frames(source, request)[-1:], new])
        new = (yield from replaced(finish(with_last, stages), lambda step: replace(step, frames=None)))[1:]
    frames = np.concatenate([source.frames, new])
    yield Step(name, len(frames), len(frames), frames=frames)
    return frames


def _chunks(frames: Frames) -> Iterator[Frames]:
    for start in range(0, len(frames), CHUNK):
        yield frames[start : start + CHUNK]

"""The engine's events, and `drive`, which runs a generator of events to its result.

Every generator of the engine yields a `Step` after each unit of work, a `Restart` if a stage begins again, and returns
its result. The caller owns progress and cancelling: to cancel, close the generator or stop iterating.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import numpy as np
    import torch

Stage = Literal["text_to_image", "encode", "denoise", "decode", "interpolate", "upscale"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Progress: `step` of `total` in `stage` is done.

    Attributes:
        stage: "text_to_image" (only with a prompt), "encode", "denoise", "decode", "interpolate" and "upscale" (only
            if the request says so), in this order.
        step: The number of units done in this stage, from 1 to `total`: denoising steps; frames from "decode" on; in
            "encode" CLIP embedding and VAE latents of each image (`total` 2, or 4 with a last image), then the
            latents of each held frame of a video that is extended. A model that can't encode frames denoises the
            video that is extended again: these steps come first in "denoise", without latents.
        total: The number of units of the stage.
        latents: In stage "denoise", [1, frames, channels, height/f, width/f] with f the VAE's factor (8 in every
            published SVD); a loop and a video in windows have more frames than they keep. In stage "text_to_image",
            those of one frame, if the model has such latents.
        clean: In stage "denoise", the model's estimate of the noise-free latents, same shape.
        frames: In the last stage, the video's frames just made: uint8 [n, height, width, 3] in sRGB.
    """

    stage: Stage
    step: int
    total: int
    latents: torch.Tensor | None = None
    clean: torch.Tensor | None = None
    frames: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def __repr__(self) -> str:
        arrays = {"latents": self.latents, "clean": self.clean, "frames": self.frames}
        shapes = "".join(f", {name} {list(array.shape)}" for name, array in arrays.items() if array is not None)
        return f"<Step {self.stage} {self.step}/{self.total}{shapes}>"


@dataclass(frozen=True, slots=True)
class Restart:
    """`stage` begins again at step 1, because of `reason`; its earlier steps, latents and frames are void."""

    stage: Stage
    reason: str


Event = Step | Restart
Result = TypeVar("Result")


def _ignore(_event: object) -> None:
    pass


def drive(
    events: Generator[Event, None, Result],
    on_step: Callable[[Step], object] = _ignore,
    on_restart: Callable[[Restart], object] = _ignore,
) -> Result:
    """Run the generator to its end, call one of the functions with each event, and return the generator's result.

    If a function raises, the generator is closed, which frees the device, and the exception propagates.
    """
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                result: Result = end.value
                return result
            if isinstance(event, Restart):
                on_restart(event)
            else:
                on_step(event)


def replaced(
    steps: Generator[Step, None, Result], replacement: Callable[[Step], Step]
) -> Generator[Step, None, Result]:
    """Yield the replacement of each step; return the generator's result."""
    with closing(steps):
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            yield replacement(step)

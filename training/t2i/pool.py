"""A pool of drawn and captioned scenes, from which training takes its batches."""

import random
from collections.abc import Callable

import torch

from training.t2i.drawing import draw_with_things
from training.t2i.networks import HEIGHT, WIDTH
from training.t2i.scenes import Scene, training_scene
from training.t2i.words import END, MAX_TOKENS, UNKNOWN, caption, token_ids, vocabulary

CAPTIONS_PER_SCENE = 4
TOKENS = vocabulary()


def pad(ids: list[int]) -> list[int]:
    """Pad or truncate token ids to MAX_TOKENS, as the pipeline does."""
    if len(ids) > MAX_TOKENS:
        ids = [*ids[: MAX_TOKENS - 1], TOKENS[END]]
    return ids + [TOKENS[END]] * (MAX_TOKENS - len(ids))


def caption_tokens(rng: random.Random, text: str) -> list[int]:
    """Return a caption's padded token ids, with runs of the unknown token inserted at random."""
    ids = token_ids(text, TOKENS)
    while rng.random() < 0.08:
        at = rng.randrange(1, len(ids))
        ids[at:at] = [TOKENS[UNKNOWN]] * rng.randint(2, 9)
    return pad(ids)


def scene_captions(rng: random.Random, scene: Scene) -> list[list[int]]:
    """Return the token ids of CAPTIONS_PER_SCENE random captions of a scene."""
    return [caption_tokens(rng, caption(scene, rng)) for _ in range(CAPTIONS_PER_SCENE)]


class ScenePool:
    """A pool of drawn scenes on the device; `refresh` replaces the oldest by new ones.

    `encode` maps images, [n, 3, h, w] in 0…1, and the coverage of things, [n, 1, h, w], to the data to store. `label`
    returns one or more labels of a scene, as lists of integers of equal length.
    """

    def __init__(
        self,
        size: int,
        drawn: int,
        device: str,
        *,
        encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        label: Callable[[random.Random, Scene], list[list[int]]] = scene_captions,
    ) -> None:
        self.size, self.drawn, self.device, self._encode, self._label = size, min(drawn, size), device, encode, label
        seed = torch.initial_seed()
        self._rng = random.Random(seed)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._next = 0
        data, labels = self._draw()
        self.data = torch.zeros(size, *data.shape[1:], dtype=data.dtype, device=device)
        self.labels = torch.zeros(size, *labels.shape[1:], dtype=torch.long, device=device)
        for _ in range(-(-size // self.drawn)):
            self.refresh()

    def refresh(self) -> None:
        """Replace the oldest scenes by newly drawn ones."""
        data, labels = self._draw()
        rows = torch.arange(self._next, self._next + self.drawn, device=self.device) % self.size
        self.data[rows], self.labels[rows] = data, labels
        self._next = (self._next + self.drawn) % self.size

    def sample(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the data of random scenes, [n, …], each with one of its labels at random, [n, length]."""
        rows = torch.randint(self.size, (number,), device=self.device)
        column = torch.randint(self.labels.shape[1], (number,), device=self.device)
        return self.data[rows], self.labels[rows, column]

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = [training_scene(self._rng) for _ in range(self.drawn)]
        labels = torch.tensor([self._label(self._rng, s) for s in scenes])
        pixels, covered = draw_with_things(scenes, self._generator, self.device, HEIGHT, WIDTH)
        return self._encode(pixels, covered), labels.to(self.device)


def as_bytes(pixels: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
    """Convert pixels in 0…1 to uint8."""
    return (pixels * 255).round().to(torch.uint8)

"""Steps from one noise level to the next: from the first image, between two images, or on from known frames.

A sampler is a function (latents, σ, next σ) → (latents at the next σ, estimate of the clean latents).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kinema.engine.sampling import euler_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Predict = Callable[[Tensor, Tensor], Tensor]  # (latents [1, f, c, h, w], σ) → clean latents
    Sampler = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def from_first(predict: Predict) -> Sampler:
    """Return a sampler of Euler steps for a video that begins at an image."""

    def step(latents: Tensor, sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        clean = predict(latents, sigma)
        return euler_step(latents, clean, sigma, following), clean

    return step


def between(forward: Predict, backward: Predict, generator: torch.Generator) -> Sampler:
    """Return a sampler for a video between two images, which costs two predictions per step.

    Bidirectional sampling (Yang et al. 2024, "ViBiDSampler", arXiv:2410.05651): a step forward in time from the first
    image, noise again up to the level before, then a step backward in time from the last image. So neither step leaves
    the noise level for which the model was trained, as an average of both predictions would. The last step does average
    them, each frame by its distance to the two images, as time-reversal fusion does in every step (Feng et al. 2024,
    arXiv:2403.14611): otherwise the last prediction, which does not know the first image, would change the first frame.

    Args:
        forward: Predicts from the first image.
        backward: Predicts the reversed video, from the last image.
        generator: On the CPU; draws the noise of each step.
    """

    def step(latents: Tensor, sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        clean = forward(latents, sigma)
        if following == 0:
            share = torch.linspace(0, 1, latents.shape[1], device=latents.device).view(1, -1, 1, 1, 1)
            clean = torch.lerp(clean, backward(latents.flip(1), sigma).flip(1), share)
            return euler_step(latents, clean, sigma, following), clean
        latents = euler_step(latents, clean, sigma, following)
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32, device="cpu")
        latents = latents + (sigma**2 - following**2).sqrt() * noise.to(latents.device)
        reverse = latents.flip(1)
        clean = backward(reverse, sigma)
        return euler_step(reverse, clean, sigma, following).flip(1), clean.flip(1)

    return step


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Clean latents of the first frames, and the noise that is added to them up to each level; both [1, f, c, h, w]."""

    latents: Tensor
    noise: Tensor


def continuing(sampler: Sampler, known: Known) -> Sampler:
    """Return a sampler for a window whose first frames are known.

    Before each step the known frames get the noise of its level, so that the others follow from them, as for the known
    pixels in RePaint (Lugmayr et al. 2022, arXiv:2201.09865).
    """
    frames = known.latents.shape[1]

    def step(latents: Tensor, sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        noisy = torch.cat([known.latents + sigma * known.noise, latents[:, frames:]], 1)
        latents, clean = sampler(noisy, sigma, following)
        return latents, torch.cat([known.latents, clean[:, frames:]], 1)

    return step

"""Steps from one noise level to the next: from the first image, or between a first and a last image.

A sampler is a function (latents, σ, next σ) → (latents at the next σ, estimate of the clean latents).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from kinema.engine.sampling import euler_step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from kinema.models.windows import Window

    Predict = Callable[[Tensor, Tensor], Tensor]  # (latents [1, f, c, h, w], σ) → clean latents
    Sampler = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


LEAST_CORRECTED = 0.3  # noise level below which `holding` corrects no frame
EASE = 0.5  # share of the motion at the ends of a loop that `fused` takes away (bench/two_ends.py)
BLENDED = 0.4  # share of an overlap of windows in which their weights change (training/README.md)


def from_first(predict: Predict) -> Sampler:
    """Return a sampler of Euler steps for a video that begins at an image."""

    def step(latents: Tensor, sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        clean = predict(latents, sigma)
        return euler_step(latents, clean, sigma, following), clean

    return step


def fused(forward: Predict, backward: Predict, *, eases: bool = False) -> Sampler:
    """Return a sampler for a loop, or a video between two images, which costs two predictions per step.

    Time-reversal fusion (Feng et al. 2024, arXiv:2403.14611), without its repeated noise: the weighted mean of a
    prediction forward in time from the first image and one backward from the last. Loops move more with it than with
    `between`, and their seam is smaller (bench/two_ends.py). The share of the second grows slowly at both ends: if it
    grew evenly, content that moves evenly in both predictions would move twice as fast at the ends as on average.

    Args:
        forward: Predicts from the first image.
        backward: Predicts the reversed video, from the last image.
        eases: For a loop of a model whose latents contain positions. Both predictions leave the image evenly, so that
            the positions of their mean follow a parabola: fastest at the image, where they turn. The last step moves
            the frames near it towards it. Latents that contain moved content would become double images.
    """

    def step(latents: Tensor, sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        time = torch.linspace(0, 1, latents.shape[1], device=latents.device).view(1, -1, 1, 1, 1)
        clean = torch.lerp(forward(latents, sigma), backward(latents.flip(1), sigma).flip(1), _smooth(time))
        if eases and following == 0:
            clean = torch.lerp(clean, clean[:, :1], EASE * (1 - 2 * time) ** 2)
        return euler_step(latents, clean, sigma, following), clean

    return step


def between(forward: Predict, backward: Predict, generator: torch.Generator) -> Sampler:
    """Return a sampler for a video between two images, which costs two predictions per step.

    Bidirectional sampling (Yang et al. 2024, "ViBiDSampler", arXiv:2410.05651): a step forward in time from the first
    image, noise again up to the level before, then a step backward in time from the last image. So neither step leaves
    the noise level for which the model was trained, as the mean of both predictions would. The last step is that of
    `fused`: otherwise the last prediction, which does not know the first image, would change the first frame.

    Args:
        forward: Predicts from the first image.
        backward: Predicts the reversed video, from the last image.
        generator: On the CPU; draws the noise of each step.
    """
    last_step = fused(forward, backward)

    def step(latents: Tensor, sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        if following == 0:
            return last_step(latents, sigma, following)
        latents = euler_step(latents, forward(latents, sigma), sigma, following)
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32, device="cpu")
        latents = latents + (sigma**2 - following**2).sqrt() * noise.to(latents.device)
        reverse = latents.flip(1)
        clean = backward(reverse, sigma)
        return euler_step(reverse, clean, sigma, following).flip(1), clean.flip(1)

    return step


def in_windows(predict: Predict, windows: Sequence[Window]) -> Predict:
    """Return a prediction of a longer video than the model predicts at once: the mean of windows where they overlap.

    All windows are denoised together, so that they agree, as in MultiDiffusion (Bar-Tal et al. 2023, arXiv:2302.08113)
    and Gen-L-Video (Wang et al. 2023, arXiv:2305.18264). The weight of a window falls in the middle of its overlap with
    the next, where the content of both is equally far from the image. Anywhere else, the distance between them would
    be added to the motion.

    Args:
        predict: Predicts one window.
        windows: From `kinema.models.windows.windows`.
    """
    weights = [_weights(windows, i) for i in range(len(windows))]

    def predict_all(latents: Tensor, sigma: Tensor) -> Tensor:
        total = torch.zeros_like(latents)
        for window, weight in zip(windows, weights, strict=True):
            part = latents[:, window.start : window.end]
            clean = predict(part.flip(1), sigma).flip(1) if window.is_reversed else predict(part, sigma)
            total[:, window.start : window.end] += weight.to(latents.device) * clean
        return total

    return predict_all


def window_noise(noise: Tensor, windows: Sequence[Window]) -> Tensor:
    """Return noise with which the windows of a video move alike, and agree where they overlap.

    How much the content of a window moves depends on its noise: of independent ones, one is slow and the next fast. So
    noise is repeated, as in FreeNoise (Qiu et al. 2023, arXiv:2310.15169): the frames that only one window has take, in
    reverse order, the noise of those that only the window before has. So a window that returns to the image has the
    noise of the one that leaves it, with time reversed. Each time the video leaves the image, the sign of the noise
    changes, and with it the direction of motion.

    Args:
        noise: Of the first window, [1, f, c, h, w], from the image on.
        windows: Of f frames each, in order; the first begins at 0.

    Returns:
        The noise of all frames.
    """
    order = list(range(windows[0].end))
    if windows[0].is_reversed:
        order.reverse()
    signs = [_side(windows[0])] * windows[0].end
    for before, window in pairwise(windows):
        added = window.end - before.end
        order += reversed(order[before.start : before.start + added])
        signs += [_side(window)] * added
    return noise[:, order] * noise.new_tensor(signs).view(1, -1, 1, 1, 1)


def holding(predict: Predict, known: Tensor, reach: int) -> Predict:
    """Return a prediction whose first frames are known, as in inpainting (RePaint, Lugmayr et al. 2022).

    At every noise level the prediction of these frames is replaced by their latents; Euler steps then keep them at
    these latents plus noise of the level. As a model follows such frames only loosely, the error of the last known
    frame is also subtracted from the next frames, less and less; at low noise levels it would only blur them.

    Args:
        predict: Predicts all frames.
        known: Latents of the first frames, [1, f, c, h, w].
        reach: Number of following frames that are corrected.
    """
    count = known.shape[1]
    share = torch.linspace(1, 0, reach + 2, device=known.device)[1:-1].view(1, -1, 1, 1, 1)

    def predict_others(latents: Tensor, sigma: Tensor) -> Tensor:
        clean = predict(latents, sigma).clone()
        if sigma > LEAST_CORRECTED:
            following = clean[:, count : count + reach]
            following += share[:, : following.shape[1]] * (known[:, -1:] - clean[:, count - 1 : count])
        clean[:, :count] = known
        return clean

    return predict_others


def _side(window: Window) -> int:
    """Return the sign of a window's noise: the video leaves the image and returns with one, then with the other."""
    return -1 if window.number // 2 % 2 else 1


def _weights(windows: Sequence[Window], i: int) -> Tensor:
    """Return the weight of each frame of a window, [1, f, 1, 1, 1]; in each frame, those of all windows add up to 1."""
    window = windows[i]
    frames = torch.arange(window.start, window.end, dtype=torch.float32, device="cpu")
    weight = torch.ones_like(frames)
    if i > 0:
        overlap = windows[i - 1].end - window.start
        weight = weight.minimum((frames - window.start + 1) / (overlap + 1))
    if i + 1 < len(windows):
        overlap = window.end - windows[i + 1].start
        weight = weight.minimum((window.end - frames) / (overlap + 1))
    return _smooth(((weight - 0.5) / BLENDED + 0.5).clamp(0, 1)).view(1, -1, 1, 1, 1)


def _smooth(share: Tensor) -> Tensor:
    """Return shares that grow from 0 to 1 as the given ones do, but slowly at both ends (smoothstep)."""
    return share**2 * (3 - 2 * share)

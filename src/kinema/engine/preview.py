"""Latents seen without decoding them: a linear map from a latent's channels to a colour, good enough for a preview."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from kinema.models.offload import place, plan_for_stored_weights

if TYPE_CHECKING:
    from kinema.models.loading import VideoPipeline

_SIDE = 256  # pixels of the picture that the map is fitted to: 1,024 latents or more


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """Colour = latent · weights, with a constant one as the latent's last channel. weights: [channels + 1, 3]."""

    weights: np.ndarray[Any, np.dtype[np.float32]]
    factor: int
    """Pixels to one latent, a side."""

    @staticmethod
    @torch.no_grad()
    def fit(pipeline: VideoPipeline) -> Projection:
        """The map of this model's VAE, by least squares over one encoded picture of many colours.

        Not while a generator of this model is between two steps: the VAE may have to change places with what it uses.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        coarse = torch.rand((1, 3, _SIDE // 32, _SIDE // 32), generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, (_SIDE, _SIDE), mode="bicubic", align_corners=True).clamp(0, 1)
        dtype = torch.float32 if pipeline.force_upcast and pipeline.dtype == torch.float16 else pipeline.dtype
        with place(pipeline, plan_for_stored_weights(pipeline)) as placed, placed.on_device("vae", dtype) as vae:
            encoded = vae.encode((2 * pixels - 1).to(pipeline.device, dtype)).latent_dist.mode()
            latents = (encoded * vae.config.scaling_factor)[0].float().cpu()
        colours = torch.nn.functional.interpolate(pixels, latents.shape[1:], mode="area")[0]
        samples = _with_one(latents.flatten(1).T.numpy().astype(np.float32))
        weights, *_ = np.linalg.lstsq(samples, colours.flatten(1).T.numpy(), rcond=None)
        return Projection(weights.astype(np.float32), pipeline.shape.vae_factor)

    def image(self, latents: torch.Tensor) -> Image.Image:
        """The middle frame, a pixel for each latent. latents: [1, num_frames, channels, h/f, w/f], noisy or not."""
        frame = latents[0, latents.shape[1] // 2].float().cpu().numpy()  # [channels, h/f, w/f]
        frame = frame / max(1.0, float(frame.std()))  # early ones are nothing but loud noise
        height, width = frame.shape[1:]
        colours = _with_one(frame.reshape(len(frame), -1).T.astype(np.float32)) @ self.weights
        pixels = (colours.clip(0, 1) * 255).round().astype(np.uint8)
        return Image.fromarray(pixels.reshape(height, width, 3))


def _with_one(samples: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.concatenate([samples, np.ones((len(samples), 1), np.float32)], axis=1)

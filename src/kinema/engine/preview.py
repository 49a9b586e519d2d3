"""Previews of latents without decoding: a linear map from the latent channels to RGB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from kinema.models.offload import place, plan_for_stored_weights

if TYPE_CHECKING:
    from kinema.models.loading import VideoPipeline

_SIDE = 256  # pixels of the image that the map is fitted to: 1,024 latents or more


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """RGB = latent · weights, with a constant 1 appended to the latent. weights: [channels + 1, 3]."""

    weights: np.ndarray[Any, np.dtype[np.float32]]
    factor: int
    """Pixels per latent along one side."""

    @staticmethod
    @torch.no_grad()
    def fit(pipeline: VideoPipeline) -> Projection:
        """Fit the map for this model's VAE by least squares over one encoded image with many colours.

        Do not call it while a generator uses the model: it may move the VAE to the device.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        coarse = torch.rand((1, 3, _SIDE // 32, _SIDE // 32), generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, (_SIDE, _SIDE), mode="bicubic", align_corners=True).clamp(0, 1)
        dtype = torch.float32 if pipeline.force_upcast and pipeline.dtype == torch.float16 else pipeline.dtype
        with place(pipeline, plan_for_stored_weights(pipeline)) as placed, placed.on_device("vae", dtype) as vae:
            encoded = vae.encode((2 * pixels - 1).to(pipeline.device, dtype)).latent_dist.mode()
            latents = (encoded * vae.config.scaling_factor)[0].float().cpu()
        colours = torch.nn.functional.interpolate(pixels, latents.shape[1:], mode="area")[0]
        samples = _append_one(latents.flatten(1).T.numpy().astype(np.float32))
        weights, *_ = np.linalg.lstsq(samples, colours.flatten(1).T.numpy(), rcond=None)
        return Projection(weights.astype(np.float32), pipeline.shape.vae_factor)

    def image(self, latents: torch.Tensor) -> Image.Image:
        """Return the middle frame, one pixel per latent. latents: [1, num_frames, channels, h/f, w/f]."""
        frame = latents[0, latents.shape[1] // 2].float().cpu().numpy()  # [channels, h/f, w/f]
        frame = frame / max(1.0, float(frame.std()))  # early latents have a large variance
        height, width = frame.shape[1:]
        colours = _append_one(frame.reshape(len(frame), -1).T.astype(np.float32)) @ self.weights
        pixels = (colours.clip(0, 1) * 255).round().astype(np.uint8)
        return Image.fromarray(pixels.reshape(height, width, 3))


def _append_one(samples: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.concatenate([samples, np.ones((len(samples), 1), np.float32)], axis=1)

"""The UNet's conditions: the image's CLIP embedding, its noisy latents, and the time ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from kinema.steps import Step

if TYPE_CHECKING:
    from collections.abc import Generator

    from PIL import Image

    from kinema.models.loading import VideoPipeline
    from kinema.models.offload import Placed
    from kinema.values import VideoRequest

ENCODE_STEPS = 2  # of one image


@dataclass(frozen=True, slots=True)
class Conditions:
    """embedding: [n, 1, cross_attention_dim]; latents: [n, channels, h/f, w/f]; time_ids: [n, 3]; n is 1 or 2.

    In all shapes, f is the VAE's factor (`Shape.vae_factor`).
    """

    embedding: torch.Tensor
    latents: torch.Tensor
    time_ids: torch.Tensor

    def for_guidance(self) -> Conditions:
        """Return a batch of two: unconditional (zeros) and conditional."""
        return Conditions(
            torch.cat([torch.zeros_like(self.embedding), self.embedding]),
            torch.cat([torch.zeros_like(self.latents), self.latents]),
            torch.cat([self.time_ids, self.time_ids]),
        )

    def with_motion(self, factor: float) -> Conditions:
        """Return conditions with a larger motion bucket, by `factor` or to the largest in SVD's training."""
        fps, motion, noise = self.time_ids.unbind(1)
        most = motion.clamp(min=255)
        return replace(self, time_ids=torch.stack([fps, torch.minimum(factor * motion, most), noise], 1))

    def to(self, device: torch.device | str) -> Conditions:
        """Return a copy on a device."""
        return Conditions(self.embedding.to(device), self.latents.to(device), self.time_ids.to(device))

    def each(self) -> list[Conditions]:
        """Split the batch into conditions with n = 1."""
        parts = (torch.split(part, 1) for part in (self.embedding, self.latents, self.time_ids))
        return [Conditions(*part) for part in zip(*parts, strict=True)]


@dataclass(frozen=True, slots=True)
class EncoderInputs:
    """What the encoders read of one image, float32 on the CPU.

    clip: [1, 3, s, s] with s the image encoder's size, normalised; vae: [1, 3, height, width] in −1…1, with noise.
    """

    clip: torch.Tensor
    vae: torch.Tensor


def encoder_inputs(
    pipeline: VideoPipeline, image: Image.Image, request: VideoRequest, generator: torch.Generator
) -> EncoderInputs:
    """Return the inputs of one image.

    Args:
        pipeline: Gives CLIP's size and normalisation.
        image: RGB, of the request's width and height.
        request: Its `noise_aug_strength` scales the noise on the image.
        generator: On the CPU; draws that noise.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous().float() / 255  # [1, 3, h, w] in 0…1
    clip = clip_pixels(pixels, pipeline.image_size, pipeline.image_mean, pipeline.image_std)
    noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32, device="cpu")
    return EncoderInputs(clip, 2 * pixels - 1 + request.noise_aug_strength * noise)


def condition(
    pipeline: VideoPipeline,
    placed: Placed,
    inputs: EncoderInputs,
    request: VideoRequest,
    steps: tuple[int, int] = (0, ENCODE_STEPS),
) -> Generator[Step, None, Conditions]:
    """Yield a step after embedding the image and after encoding it, and return the conditions.

    Args:
        pipeline: Gives the device and the dtype.
        placed: Moves the image encoder and the VAE to the device.
        inputs: From `encoder_inputs`.
        request: Its `fps`, `motion_bucket_id` and `noise_aug_strength` become conditions.
        steps: Steps of the stage that are done, and their number.
    """
    done, total = steps
    with placed.on_device("image_encoder") as image_encoder:
        embedding = image_encoder(inputs.clip.to(pipeline.device, pipeline.dtype)).image_embeds[:, None]
    yield Step("encode", done + 1, total)
    # float16 overflows in the encoder of SVD's VAE.
    dtype = torch.float32 if pipeline.force_upcast and pipeline.dtype == torch.float16 else pipeline.dtype
    with placed.on_device("vae", dtype, of=("encoder", "quant_conv")) as vae:
        latents = vae.encode(inputs.vae.to(pipeline.device, dtype)).latent_dist.mode().to(pipeline.dtype)
    yield Step("encode", done + 2, total)
    # SVD was trained on fps − 1. Always float32, because bfloat16 can't represent 1023.
    ids = [request.fps - 1, request.motion_bucket_id, request.noise_aug_strength]
    return Conditions(embedding, latents, torch.tensor([ids], dtype=torch.float32, device=pipeline.device))


def clip_pixels(
    pixels: torch.Tensor, size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    """Prepare CLIP's input: [1, 3, h, w] in 0…1 → [1, 3, size, size], antialiased, resized and normalised."""
    normalised = (resize_antialiased(2 * pixels - 1, size) + 1) / 2
    return (normalised - normalised.new_tensor(mean).view(3, 1, 1)) / normalised.new_tensor(std).view(3, 1, 1)


def resize_antialiased(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Resize with a Gaussian blur and bicubic interpolation (align_corners), as in the training of SVD.

    σ = (scale factor − 1) / 2, and the window extends 2σ to each side.
    """
    for axis in (-1, -2):
        sigma = max((pixels.shape[axis] / size - 1) / 2, 0.001)
        pixels = _blur(pixels, axis, sigma, int(max(4 * sigma, 3)) | 1)
    return F.interpolate(pixels, (size, size), mode="bicubic", align_corners=True)


def _blur(pixels: torch.Tensor, axis: int, sigma: float, window: int) -> torch.Tensor:
    """Convolve one axis (−1: x, −2: y) with a Gaussian of an odd window and reflect padding."""
    reach, length = window // 2, pixels.shape[axis]
    x = torch.arange(-reach, reach + 1, dtype=pixels.dtype, device=pixels.device)
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    padded = F.pad(pixels, (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach), mode="reflect")
    blurred = torch.zeros_like(pixels)
    for i, weight in enumerate((weights / weights.sum()).tolist()):  # faster on a CPU than a convolution of 3 channels
        blurred.add_(padded.narrow(axis, i, length), alpha=weight)
    return blurred

"""Latents, conditioning and denoising of the pocket UNet, shared by training and evaluation."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder

from training.common.svd_config import IMAGE_MEAN, IMAGE_STD
from training.pocket.motion import Clips
from training.pocket.networks import COORDINATE_CHANNELS, WAVELENGTHS
from training.pocket.vae import sampling_grid, warp


def embed(encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return CLIP embeddings [batch, 1, 64] of images [batch, 3, h, w] in −1…1."""
    pixels = F.interpolate((images + 1) / 2, (224, 224), mode="bicubic", antialias=True)
    channels = [(pixels[:, i] - IMAGE_MEAN[i]) / IMAGE_STD[i] for i in range(3)]
    return encoder(pixel_values=torch.stack(channels, 1)).image_embeds[:, None]


def denoise(
    unet: torch.nn.Module,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    condition: torch.Tensor,
    embedding: torch.Tensor,
    ids: torch.Tensor,
) -> torch.Tensor:
    """Return EDM's D(x, σ), shaped as `noisy`.

    noisy [batch, frames, c, h, w], sigma [batch, 1, 1, 1, 1], condition [batch, c, h, w], embedding [batch, 1, 64],
    ids [batch, 3].
    """
    image_latents = condition[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
    sample = torch.cat([noisy / (sigma**2 + 1).sqrt(), image_latents], 2)
    v = unet(sample, 0.25 * sigma.flatten().log(), embedding, ids, return_dict=False)[0].float()
    return noisy / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()


def denoise_guided(
    unet: torch.nn.Module,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    condition: torch.Tensor,
    embedding: torch.Tensor,
    ids: torch.Tensor,
    guidance: torch.Tensor,
) -> torch.Tensor:
    """Return D(x, σ) with classifier-free guidance [frames], in one batch of twice the size; shapes as in `denoise`."""
    unconditional, conditional = denoise(
        unet,
        torch.cat([noisy, noisy]),
        torch.cat([sigma, sigma]),
        torch.cat([torch.zeros_like(condition), condition]),
        torch.cat([torch.zeros_like(embedding), embedding]),
        torch.cat([ids, ids]),
    ).chunk(2)
    return unconditional + guidance.view(1, -1, 1, 1, 1) * (conditional - unconditional)


def added_time_ids(clips: Clips, noise_aug: torch.Tensor) -> torch.Tensor:
    """Return SVD's added time ids [batch, 3]: fps − 1, motion bucket id and noise strength."""
    return torch.stack([clips.fps - 1, clips.motion_bucket_id, noise_aug], 1)


def coordinate_channels(positions: torch.Tensor) -> torch.Tensor:
    """Return sine and cosine of positions [..., 2, h, w], in pixels from the centre, [..., COORDINATE_CHANNELS, h, w].

    As latents they tell where the content of each latent comes from. Attention finds that place, since the dot product
    of two such vectors is largest for equal positions.
    """
    phases = torch.cat([positions * (2 * math.pi / wavelength) for wavelength in WAVELENGTHS], -3)
    return torch.cat([phases.sin(), phases.cos()], -3)


def append_coordinates(
    latents: torch.Tensor, condition: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append coordinates to latents [batch, frames, c, h, w], and zeros to the image latents [batch, c, h, w]."""
    zeros = torch.zeros_like(condition[:, :1]).repeat(1, COORDINATE_CHANNELS, 1, 1)
    return torch.cat([latents, coordinate_channels(positions)], 2), torch.cat([condition, zeros], 1)


def carried_latents(latents: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the latents [batch, frames, c, h, w] with those of frame 0 moved to where its content is seen.

    The VAE's decoder decodes moved latents well, and they follow from the image and the motion. The encoder's latents
    of a moved frame differ from them by details that can't be predicted: their expectation is blurred.

    Args:
        latents: Of a clip's frames.
        positions: [batch, frames, 2, h, w], where the content of each latent comes from; `Clips.positions`.
    """
    grid, _ = sampling_grid(positions.flatten(0, 1))
    moved = warp(latents[:, :1].expand_as(latents).flatten(0, 1), grid).view_as(latents)
    inside = (grid.abs().amax(-1) <= 1).view(*latents.shape[:2], 1, *latents.shape[3:])
    return torch.where(inside, moved, latents)


def draw_noise_aug(batch: int, device: str) -> torch.Tensor:
    """Draw noise strengths for the images, [batch]: log-normal around 0.03, and 0 for 15% of the clips."""
    strength = torch.exp(torch.randn(batch, device=device) * 0.7 - 3.5)
    return strength * (torch.rand(batch, device=device) > 0.15)


class Encoder:
    """The trained VAE's encoder; bfloat16 on CUDA, float32 on a CPU."""

    def __init__(self, folder: Path, device: str, *, compiled: bool, channels: int) -> None:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.scaling_factor = vae.config.scaling_factor
        self.coordinates = channels > vae.config.latent_channels
        network = torch.nn.Sequential(vae.encoder, vae.quant_conv).requires_grad_(False)
        network = network.to(device, self.dtype, memory_format=torch.channels_last)
        self._network = torch.compile(network, dynamic=False) if compiled else network

    @torch.no_grad()
    def __call__(self, clips: Clips, noise_aug: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scaled latents of all frames, carried from the first, and unscaled ones of the image with noise."""
        image = clips.frames[:, 0]
        image = image + noise_aug.view(-1, 1, 1, 1) * torch.randn_like(image)
        batch, num_frames = clips.frames.shape[:2]
        pixels = torch.cat([clips.frames.flatten(0, 1), image])
        moments = self._network(pixels.to(self.dtype, memory_format=torch.channels_last))
        mean = moments.chunk(2, 1)[0].float()  # the mode of the posterior
        latents, condition = mean[:-batch].unflatten(0, (batch, num_frames)) * self.scaling_factor, mean[-batch:]
        latents = carried_latents(latents, clips.positions)
        return append_coordinates(latents, condition, clips.positions) if self.coordinates else (latents, condition)

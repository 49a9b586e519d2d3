"""Latents, conditioning and denoising of the pocket UNet, shared by training and evaluation."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder

from training.common.svd_config import IMAGE_MEAN, IMAGE_STD
from training.pocket.motion import Clips
from training.pocket.networks import IMAGE_CHANNELS, LATENT_CHANNELS, WAVELENGTHS


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


def position_channels(positions: torch.Tensor) -> torch.Tensor:
    """Return sine and cosine of positions [..., 2, h, w], in pixels from the centre, [..., POSITION_CHANNELS, h, w].

    The dot product of two such vectors is largest for equal positions, so attention can find a place by them.
    """
    phases = torch.cat([positions * (2 * math.pi / wavelength) for wavelength in WAVELENGTHS], -3)
    return torch.cat([phases.sin(), phases.cos()], -3)


def compose_latents(image: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the latents of clips, [batch, frames, LATENT_CHANNELS, h, w].

    Args:
        image: Scaled latents of frame 0, [batch, IMAGE_CHANNELS, h, w]; every frame contains them unmoved.
        positions: Where in frame 0 the content of each latent is, [batch, frames, 2, h, w]; `Clips.positions`, whose
            frame 0 is each latent's own position.
    """
    frames = positions.shape[1]
    own = position_channels(positions[:, :1]).expand(-1, frames, -1, -1, -1)
    return torch.cat([image[:, None].expand(-1, frames, -1, -1, -1), position_channels(positions), own], 2)


def draw_noise_aug(batch: int, device: str) -> torch.Tensor:
    """Draw noise strengths for the images, [batch]: log-normal around 0.03, and 0 for 15% of the clips."""
    strength = torch.exp(torch.randn(batch, device=device) * 0.7 - 3.5)
    return strength * (torch.rand(batch, device=device) > 0.15)


class Encoder:
    """The trained VAE's encoder; bfloat16 on CUDA, float32 on a CPU."""

    def __init__(self, folder: Path, device: str) -> None:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.scaling_factor = vae.config.scaling_factor
        network = torch.nn.Sequential(vae.encoder, vae.quant_conv).requires_grad_(False)
        self._network = network.to(device, self.dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return unscaled latents, [n, IMAGE_CHANNELS, h/4, w/4], of images [n, 3, h, w] in −1…1."""
        moments = self._network(images.to(self.dtype, memory_format=torch.channels_last))
        return moments.chunk(2, 1)[0][:, :IMAGE_CHANNELS].float()  # the mode of the posterior

    def __call__(self, clips: Clips, noise_aug: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scaled latents of all frames, and unscaled ones of the image with noise, [batch, LATENT_CHANNELS, …].

        The image's own position channels are 0.
        """
        image = clips.frames[:, 0]
        noisy = image + noise_aug.view(-1, 1, 1, 1) * torch.randn_like(image)
        latents, condition = self.encode(torch.cat([image, noisy])).chunk(2)
        zeros = condition.new_zeros(len(condition), LATENT_CHANNELS - IMAGE_CHANNELS, *condition.shape[2:])
        return compose_latents(latents * self.scaling_factor, clips.positions), torch.cat([condition, zeros], 1)

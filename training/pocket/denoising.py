"""Latents and conditions as the UNet meets them, in training and in every measurement."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder

from training.pocket.motion import Clips
from training.pocket.networks import FLOW_CHANNELS, IMAGE_MEAN, IMAGE_STD, VAE_FACTOR

FLOW_UNIT = 2.0  # pixels to one unit of the flow channels: the motion is then decided at higher σ than the picture


def embed(encoder: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """CLIP embeddings [batch, 1, 64] of images [batch, 3, h, w] in −1…1."""
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
    """EDM's D(x, σ): noisy [batch, frames, c, h, w], sigma [batch, 1, 1, 1, 1], condition [batch, c, h, w]."""
    image_latents = condition[:, None].expand(-1, noisy.shape[1], -1, -1, -1)
    sample = torch.cat([noisy / (sigma**2 + 1).sqrt(), image_latents], 2)
    v = unet(sample, 0.25 * sigma.flatten().log(), embedding, ids, return_dict=False)[0].float()
    return noisy / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()


def flow_channels(positions: torch.Tensor) -> torch.Tensor:
    """How far the content of each latent was away in frame 0, [..., 2, h, w], in FLOW_UNITs."""
    height, width = positions.shape[-2:]
    y = (torch.arange(height, device=positions.device) + 0.5 - height / 2) * VAE_FACTOR
    x = (torch.arange(width, device=positions.device) + 0.5 - width / 2) * VAE_FACTOR
    home = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return (positions - home) / FLOW_UNIT


def with_flow(
    latents: torch.Tensor, condition: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add the flow channels to latents [batch, frames, c, h, w], and to the image's [batch, c, h, w], where it is 0."""
    nothing = torch.zeros_like(condition[:, :FLOW_CHANNELS])
    return torch.cat([latents, flow_channels(positions)], 2), torch.cat([condition, nothing], 1)


def draw_noise_aug(batch: int, device: str) -> torch.Tensor:
    """Strengths of the noise on the images, [batch]: a log-normal around 0.03, and none for 15% of the clips."""
    strength = torch.exp(torch.randn(batch, device=device) * 0.7 - 3.5)
    return strength * (torch.rand(batch, device=device) > 0.15)


class Encoder:
    """The trained VAE's half that makes latents, in bfloat16 where the device computes in it."""

    def __init__(self, folder: Path, device: str, *, compiled: bool, channels: int) -> None:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.scaling_factor = vae.config.scaling_factor
        self.flow = channels > vae.config.latent_channels
        network = torch.nn.Sequential(vae.encoder, vae.quant_conv).requires_grad_(False)
        network = network.to(device, self.dtype, memory_format=torch.channels_last)
        self._network = torch.compile(network, dynamic=False) if compiled else network

    @torch.no_grad()
    def __call__(self, clips: Clips, noise_aug: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled latents of all frames, and unscaled ones of the image with noise added, whose flow is 0."""
        image = clips.frames[:, 0]
        image = image + noise_aug.view(-1, 1, 1, 1) * torch.randn_like(image)
        batch, num_frames = clips.frames.shape[:2]
        pixels = torch.cat([clips.frames.flatten(0, 1), image])
        moments = self._network(pixels.to(self.dtype, memory_format=torch.channels_last))
        mean = moments.chunk(2, 1)[0].float()  # the mode of the posterior
        latents, condition = mean[:-batch].unflatten(0, (batch, num_frames)) * self.scaling_factor, mean[-batch:]
        return with_flow(latents, condition, clips.positions) if self.flow else (latents, condition)

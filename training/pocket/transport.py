r"""Measure how well a UNet copies the image and generates motion, on held-out clips with exactly known motion:

    python -m training.pocket.transport --photos training/data/photos.tar --vae training/runs/decoder/vae \
        --unet training/runs/unet --json training/runs/unet/transport.json

Noise of level σ is added to the latents of a true clip, and the UNet denoises them in one step, with and without the
image. The last frame is decoded and compared with the true one; only pixels that are visible in frame 0 count. Figures
without the image are only meaningful for UNets trained with image dropout.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection

from training.common.autoencoder import psnr
from training.pocket.denoising import Encoder, added_time_ids, denoise, embed
from training.pocket.motion import BUCKET_PER_PIXEL, REFERENCE_FPS, Clips, Mover, Photos
from training.pocket.networks import HEIGHT, IMAGE_CHANNELS, NUM_FRAMES, POSITION_CHANNELS, WAVELENGTHS, WIDTH
from training.pocket.vae import sampling_grid

SIGMAS = (0.3, 1.0, 3.0, 10.0)
SLOW_FLOW = (0.2, 0.7)  # range of the mean flow of the clips, pixels per frame
NOISE_AUG = 0.02
BATCH = 4


def slow_clips(mover: Mover, count: int, seed: int = 21) -> Clips:
    """Draw clips whose mean flow is in SLOW_FLOW, reproducibly for the same photographs, device and seed."""
    rng_states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    torch.manual_seed(seed)
    found: list[Clips] = []
    while sum(len(clips.fps) for clips in found) < count:
        clips = mover.draw(BATCH, NUM_FRAMES)
        flow = clips.motion_bucket_id / BUCKET_PER_PIXEL * REFERENCE_FPS / clips.fps
        is_slow = (flow >= SLOW_FLOW[0]) & (flow < SLOW_FLOW[1])
        found.append(Clips(*(value[is_slow] for value in vars(clips).values())))
    torch.set_rng_state(rng_states[0])
    if rng_states[1]:
        torch.cuda.set_rng_state_all(rng_states[1])
    return Clips(*(torch.cat(values)[:count] for values in zip(*(vars(c).values() for c in found), strict=True)))


@torch.no_grad()
def latent_errors(
    unet: UNetSpatioTemporalConditionModel,
    image_encoder: CLIPVisionModelWithProjection,
    encoder: Encoder,
    clips: Clips,
) -> dict[str, float]:
    """Return, for the last frame denoised in one step, the image's error as share of its variance, and that of motion.

    The error of motion is the median distance of the source positions, in pixels; a few are off by a whole wavelength.
    """
    rows: dict[str, list[torch.Tensor]] = {}
    for part, z, condition, ids, generator in _batches(encoder, clips):
        embedding = embed(image_encoder, part.frames[:, 0])
        for level in SIGMAS:
            sigma = torch.full((len(z), 1, 1, 1, 1), level, device=z.device)
            noise = torch.randn(z.shape, generator=generator).to(z.device)
            with torch.autocast(z.device.type, torch.bfloat16):
                denoised = denoise(unet, z + sigma * noise, sigma, condition, embedding, ids)[:, -1]
            true = z[:, -1, :IMAGE_CHANNELS]
            error = (denoised[:, :IMAGE_CHANNELS] - true).square().mean((1, 2, 3)) / true.var((1, 2, 3))
            rows.setdefault(f"image_error_at_{level:g}", []).append(error)
            places = decode_positions(denoised[:, IMAGE_CHANNELS : IMAGE_CHANNELS + POSITION_CHANNELS])
            distance = (places - part.positions[:, -1]).square().sum(1).sqrt()
            rows.setdefault(f"position_error_at_{level:g}", []).append(distance.flatten(1).median(1).values)
    means = {name: torch.cat(values).mean().item() for name, values in rows.items()}
    return {"clips": len(clips.fps)} | {name: round(value, 4) for name, value in means.items()}


def decode_positions(channels: torch.Tensor) -> torch.Tensor:
    """Return positions [n, 2, h, w] in pixels for their channels; each wavelength refines the longer ones."""
    sine, cosine = channels.unflatten(1, (2, len(WAVELENGTHS), 2)).unbind(1)
    phases = torch.atan2(sine, cosine) / (2 * math.pi)  # [n, wavelengths, 2, h, w], in turns
    position = phases[:, -1] * WAVELENGTHS[-1]
    for i in reversed(range(len(WAVELENGTHS) - 1)):
        turns = position / WAVELENGTHS[i]
        position = (phases[:, i] + (turns - phases[:, i]).round()) * WAVELENGTHS[i]
    return position


def _batches(
    encoder: Encoder, clips: Clips
) -> Iterator[tuple[Clips, torch.Tensor, torch.Tensor, torch.Tensor, torch.Generator]]:
    """Yield clips with latents, condition, time ids and a generator, BATCH clips at a time."""
    for start in range(0, len(clips.fps), BATCH):
        part = Clips(*(value[start : start + BATCH] for value in vars(clips).values()))
        noise_aug = torch.full_like(part.fps, NOISE_AUG)
        z, condition = encoder(part, noise_aug)
        # Noise is drawn on the CPU, so that it does not depend on the device.
        yield part, z, condition, added_time_ids(part, noise_aug), torch.Generator().manual_seed(start)


@torch.no_grad()
def transport(
    unet: UNetSpatioTemporalConditionModel,
    image_encoder: CLIPVisionModelWithProjection,
    vae: AutoencoderKLTemporalDecoder,
    encoder: Encoder,
    clips: Clips,
) -> dict[str, float]:
    """Return mean PSNRs of the last frame in dB: decoded from true latents, and denoised with and without the image."""
    rows: dict[str, list[torch.Tensor]] = {}
    for part, z, condition, ids, generator in _batches(encoder, clips):
        inside = sampling_grid(part.positions[:, -1])[1]

        def score(name: str, latents: torch.Tensor, part: Clips = part, inside: torch.Tensor = inside) -> None:
            decoded = vae.decode(latents / encoder.scaling_factor, num_frames=1).sample.float().clamp(-1, 1)
            rows.setdefault(name, []).append(psnr(decoded, part.frames[:, -1], inside))

        embedding = embed(image_encoder, part.frames[:, 0])
        with torch.autocast(z.device.type, torch.bfloat16):
            score("true_latents", z[:, -1])
            for level in SIGMAS:
                sigma = torch.full((len(z), 1, 1, 1, 1), level, device=z.device)
                noisy = z + sigma * torch.randn(z.shape, generator=generator).to(z.device)
                for name, keep in (("with", 1.0), ("without", 0.0)):
                    denoised = denoise(unet, noisy, sigma, condition * keep, embedding * keep, ids)
                    score(f"{name}_image_at_{level:g}", denoised[:, -1])
    means = {name: torch.cat(values).mean().item() for name, values in rows.items()}
    return {"clips": len(clips.fps)} | {name: round(value, 2) for name, value in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="photos.tar, written by collect.py")
    parser.add_argument("--vae", type=Path, required=True, help="folder with the trained VAE")
    parser.add_argument("--unet", type=Path, required=True, help="folder with unet/ and image_encoder/")
    parser.add_argument("--clips", type=int, default=24, help="number of clips")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="number of photographs to read, for a quick trial")
    args = parser.parse_args()
    load = {"torch_dtype": torch.float32}
    vae = AutoencoderKLTemporalDecoder.from_pretrained(args.vae, **load).to(args.device).eval()
    encoder = Encoder(args.vae, args.device)
    unet = UNetSpatioTemporalConditionModel.from_pretrained(args.unet / "unet", **load).to(args.device).eval()
    image_encoder = CLIPVisionModelWithProjection.from_pretrained(args.unet / "image_encoder", dtype=torch.float32)
    _, held_out = Photos.read(args.photos, args.device, limit=args.limit).split()
    clips = slow_clips(Mover(held_out, HEIGHT, WIDTH), args.clips)
    image_encoder = image_encoder.to(args.device).eval()
    figures = transport(unet, image_encoder, vae, encoder, clips)
    figures |= latent_errors(unet, image_encoder, encoder, clips)
    print(json.dumps(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

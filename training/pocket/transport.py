r"""Measure whether a UNet copies detail from the image, on held-out clips with exactly known motion:

    python -m training.pocket.transport --photos training/data/photos.tar --vae training/runs/vae/vae \
        --unet training/runs/unet --json training/runs/unet/transport.json

Noise of level σ is added to the latents of a true clip, and the UNet denoises them in one step, with and without the
image. The last frame's PSNR is compared with that of the image's latents warped by the true motion. Only pixels that
are visible in frame 0 count. Figures without the image are only meaningful for UNets trained with image dropout. With
coordinate channels, the image is also denoised beside coordinates without noise: whether the UNet could copy if it knew
the motion.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection

from training.pocket.denoising import added_time_ids, append_coordinates, carried_latents, denoise, embed
from training.pocket.motion import BUCKET_PER_PIXEL, REFERENCE_FPS, Clips, Mover, Photos
from training.pocket.networks import HEIGHT, NUM_FRAMES, WIDTH
from training.pocket.vae import psnr, sampling_grid, warp

SIGMAS = (1.0, 3.0)
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
def transport(
    unet: UNetSpatioTemporalConditionModel,
    image_encoder: CLIPVisionModelWithProjection,
    vae: AutoencoderKLTemporalDecoder,
    clips: Clips,
) -> dict[str, float]:
    """Return mean PSNRs of the last frame in dB: decoded, warped, denoised with and without the image."""
    rows = []
    for start in range(0, len(clips.fps), BATCH):
        part = Clips(*(value[start : start + BATCH] for value in vars(clips).values()))
        with torch.autocast(part.frames.device.type, torch.bfloat16):
            rows.append(_psnrs(unet, image_encoder, vae, part, seed=start))
    means = {name: torch.cat([row[name] for row in rows]).mean().item() for name in rows[0]}
    for sigma in SIGMAS:
        means[f"below_moved_at_{sigma:g}"] = means["moved_latents"] - means[f"with_image_at_{sigma:g}"]
    return {"clips": len(clips.fps)} | {name: round(value, 2) for name, value in means.items()}


def _psnrs(
    unet: UNetSpatioTemporalConditionModel,
    image_encoder: CLIPVisionModelWithProjection,
    vae: AutoencoderKLTemporalDecoder,
    clips: Clips,
    seed: int,
) -> dict[str, torch.Tensor]:
    """Return the PSNRs of each clip, [batch], by name."""
    channels, scale = vae.config.latent_channels, vae.config.scaling_factor

    def encode(frames: torch.Tensor) -> torch.Tensor:
        return vae.encode(frames).latent_dist.mode().float()

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents[:, :channels] / scale, num_frames=1).sample.float().clamp(-1, 1)

    batch, frames = clips.frames.shape[:2]
    # Draw the noise on the CPU, so that it does not depend on the device.
    generator = torch.Generator().manual_seed(seed)
    noise = lambda like: torch.randn(like.shape, generator=generator).to(like.device)  # noqa: E731
    first, last = clips.frames[:, 0], clips.frames[:, -1]
    z = encode(clips.frames.flatten(0, 1)).unflatten(0, (batch, frames)) * scale
    condition = encode(first + NOISE_AUG * noise(first))
    grid, inside = sampling_grid(clips.positions[:, -1])
    rows = {
        "vae": psnr(decode(z[:, -1]), last, inside),
        "moved_latents": psnr(decode(warp(z[:, 0], grid)), last, inside),
    }
    z = carried_latents(z, clips.positions)
    if unet.config.out_channels > channels:
        z, condition = append_coordinates(z, condition, clips.positions)
    ids = added_time_ids(clips, torch.full_like(clips.fps, NOISE_AUG))
    embedding = embed(image_encoder, first)
    for level in SIGMAS:
        sigma = torch.full((batch, 1, 1, 1, 1), level, device=z.device)
        noisy = z + sigma * noise(z)
        for name, keep in (("with", 1.0), ("without", 0.0)):
            denoised = denoise(unet, noisy, sigma, condition * keep, embedding * keep, ids)
            rows[f"{name}_image_at_{level:g}"] = psnr(decode(denoised[:, -1]), last, inside)
        if unet.config.out_channels > channels:
            known = torch.cat([noisy[:, :, :channels], z[:, :, channels:]], 2)
            denoised = denoise(unet, known, sigma, condition, embedding, ids)
            rows[f"with_known_motion_at_{level:g}"] = psnr(decode(denoised[:, -1]), last, inside)
    return rows


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
    unet = UNetSpatioTemporalConditionModel.from_pretrained(args.unet / "unet", **load).to(args.device).eval()
    image_encoder = CLIPVisionModelWithProjection.from_pretrained(args.unet / "image_encoder", dtype=torch.float32)
    _, held_out = Photos.read(args.photos, args.device, limit=args.limit).split()
    clips = slow_clips(Mover(held_out, HEIGHT, WIDTH), args.clips)
    figures = transport(unet, image_encoder.to(args.device).eval(), vae, clips)
    print(json.dumps(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

r"""Measure whether a UNet fetches detail from the image, on held-out clips whose motion is known exactly:

    python -m training.pocket.transport --photos training/data/photos.tar --vae training/runs/vae/vae \
        --unet training/runs/unet --json training/runs/unet/transport.json

Noise of σ is added to the latents of a true clip, and the UNet denoises them in one step, with the image and without
it. The last frame's PSNR is compared with that of the image's own latents moved by the true motion. Only what frame 0
shows is counted. A network that is to be judged without the image has to be trained with image dropout.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection

from training.pocket.denoising import denoise, embed, with_flow
from training.pocket.motion import BUCKET_PER_PIXEL, REFERENCE_FPS, Clips, Mover, Photos
from training.pocket.networks import HEIGHT, NUM_FRAMES, WIDTH
from training.pocket.vae import grid_of, move, psnr

SIGMAS = (1.0, 3.0)
CALM = (0.2, 0.7)  # pixels a frame
NOISE_AUG = 0.02
BATCH = 4


def calm_clips(mover: Mover, count: int, seed: int = 21) -> Clips:
    """Draw held-out clips whose mean flow is within CALM; the same for the same photographs, device and seed."""
    chance = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    torch.manual_seed(seed)
    found: list[Clips] = []
    while sum(len(clips.fps) for clips in found) < count:
        clips = mover.draw(BATCH, NUM_FRAMES)
        flow = clips.motion_bucket_id / BUCKET_PER_PIXEL * REFERENCE_FPS / clips.fps
        calm = (flow >= CALM[0]) & (flow < CALM[1])
        found.append(Clips(*(value[calm] for value in vars(clips).values())))
    torch.set_rng_state(chance[0])
    if chance[1]:
        torch.cuda.set_rng_state_all(chance[1])
    return Clips(*(torch.cat(values)[:count] for values in zip(*(vars(c).values() for c in found), strict=True)))


@torch.no_grad()
def transport(
    unet: UNetSpatioTemporalConditionModel,
    image_encoder: CLIPVisionModelWithProjection,
    vae: AutoencoderKLTemporalDecoder,
    clips: Clips,
) -> dict[str, float]:
    """Return mean PSNRs of the last frame in dB: decoded, moved, and denoised with and without the image."""
    rows = []
    for start in range(0, len(clips.fps), BATCH):
        part = Clips(*(value[start : start + BATCH] for value in vars(clips).values()))
        with torch.autocast(part.frames.device.type, torch.bfloat16):
            rows.append(_rows(unet, image_encoder, vae, part, seed=start))
    means = {name: torch.cat([row[name] for row in rows]).mean().item() for name in rows[0]}
    for sigma in SIGMAS:
        means[f"below_moved_at_{sigma:g}"] = means["moved_latents"] - means[f"with_image_at_{sigma:g}"]
    return {"clips": len(clips.fps)} | {name: round(value, 2) for name, value in means.items()}


def _rows(
    unet: UNetSpatioTemporalConditionModel,
    image_encoder: CLIPVisionModelWithProjection,
    vae: AutoencoderKLTemporalDecoder,
    clips: Clips,
    seed: int,
) -> dict[str, torch.Tensor]:
    channels, scale = vae.config.latent_channels, vae.config.scaling_factor

    def encode(frames: torch.Tensor) -> torch.Tensor:
        return vae.encode(frames).latent_dist.mode().float()

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return vae.decode(latents[:, :channels] / scale, num_frames=1).sample.float().clamp(-1, 1)

    batch, frames = clips.frames.shape[:2]
    # The noise is drawn on the CPU, so that it is the same wherever this runs.
    chance = torch.Generator().manual_seed(seed)
    noise = lambda like: torch.randn(like.shape, generator=chance).to(like.device)  # noqa: E731
    first, last = clips.frames[:, 0], clips.frames[:, -1]
    z = encode(clips.frames.flatten(0, 1)).unflatten(0, (batch, frames)) * scale
    condition = encode(first + NOISE_AUG * noise(first))
    grid, inside = grid_of(clips.positions[:, -1])
    rows = {
        "vae": psnr(decode(z[:, -1]), last, inside),
        "moved_latents": psnr(decode(move(z[:, 0], grid)), last, inside),
    }
    if unet.config.out_channels > channels:
        z, condition = with_flow(z, condition, clips.positions)
    ids = torch.stack([clips.fps - 1, clips.motion_bucket_id, torch.full_like(clips.fps, NOISE_AUG)], 1)
    embedding = embed(image_encoder, first)
    for level in SIGMAS:
        sigma = torch.full((batch, 1, 1, 1, 1), level, device=z.device)
        noisy = z + sigma * noise(z)
        for name, keep in (("with", 1.0), ("without", 0.0)):
            made = denoise(unet, noisy, sigma, condition * keep, embedding * keep, ids)
            rows[f"{name}_image_at_{level:g}"] = psnr(decode(made[:, -1]), last, inside)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--unet", type=Path, required=True, help="folder that holds unet/ and image_encoder/")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="photographs to read, for a quick trial")
    args = parser.parse_args()
    load = {"torch_dtype": torch.float32}
    vae = AutoencoderKLTemporalDecoder.from_pretrained(args.vae, **load).to(args.device).eval()
    unet = UNetSpatioTemporalConditionModel.from_pretrained(args.unet / "unet", **load).to(args.device).eval()
    image_encoder = CLIPVisionModelWithProjection.from_pretrained(args.unet / "image_encoder", dtype=torch.float32)
    _, held_out = Photos.read(args.photos, args.device, limit=args.limit).split()
    clips = calm_clips(Mover(held_out, HEIGHT, WIDTH), args.clips)
    figures = transport(unet, image_encoder.to(args.device).eval(), vae, clips)
    print(json.dumps(figures))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

r"""Train the VAE's decoder to add texture that the latents do not contain, on one GPU:

    python -m training.pocket.decoder --photos training/data/photos.tar --vae training/runs/vae/vae \
        --unet training/runs/distilled --out training/runs/decoder --minutes 9

The first part of the schedule uses squared and absolute errors only. Then a discriminator is added, weighted by the
ratio of the gradients (Esser et al. 2021), and the distance of its features. The encoder is not trained, so an existing
UNet still matches the latents.

For half of the clips, the latents are the encoder's with noise added and removed again by the UNet in one step: the
decoder learns to undo the blur of sampling, with the true frame as its target. Every batch also has whole photographs,
which are sharper. Each frame is decoded separately: the temporal convolutions keep only their middle tap.

Afterwards `--sharpen 0.45`, which needs no GPU, solves for an output convolution that sharpens the decoder's output.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import nn
from transformers import CLIPVisionModelWithProjection

from training.common.parallel import ProcessGroup
from training.pocket.denoising import added_time_ids, append_coordinates, denoise, draw_noise_aug, embed
from training.pocket.discriminator import Discriminator, adversarial_loss, gradient_ratio, train_discriminator
from training.pocket.metrics import chroma_error, psnr, sharpness
from training.pocket.motion import Clips, Mover, Photos
from training.pocket.networks import HEIGHT, NUM_FRAMES, WIDTH
from training.pocket.vae import reconstruction_loss, whole_photographs

LEARNING_RATE = 4e-4
DISCRIMINATOR_RATE = 3e-4
CHUNK = 7  # frames decoded together, as the engine does
BLUR_MEAN, BLUR_STD = 0.3, 0.8  # of ln σ of the noise that the UNet removes


def keep_middle_taps(vae: AutoencoderKLTemporalDecoder) -> None:
    """Set all but the middle tap of the temporal convolutions to 0, so that frames are decoded independently."""
    with torch.no_grad():
        for layer in vae.decoder.modules():
            if isinstance(layer, nn.Conv3d):
                layer.weight[:, :, 0::2] = 0


class Latents:
    """Computes latents of clips: as encoded, and as denoised by the UNet."""

    def __init__(self, folder: Path, vae: AutoencoderKLTemporalDecoder, device: str) -> None:
        self.vae = vae
        unet = UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        self.unet = unet.to(device).eval().requires_grad_(False)
        image_encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32)
        self.image_encoder = image_encoder.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Return unscaled latents [n, c, h/4, w/4] of frames [n, 3, h, w]."""
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.device.type == "cuda"):
            return self.vae.encode(frames).latent_dist.mean.float()

    @torch.no_grad()
    def __call__(self, clips: Clips) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unscaled latents [batch, frames, c, h, w] twice: as encoded, and denoised by the UNet in one step."""
        batch, device = len(clips.frames), clips.frames.device
        channels, scale = self.vae.config.latent_channels, self.vae.config.scaling_factor
        noise_aug = draw_noise_aug(batch, str(device))
        image = clips.frames[:, 0]
        noisy_image = image + noise_aug.view(-1, 1, 1, 1) * torch.randn_like(image)
        mean = self.encode(torch.cat([clips.frames.flatten(0, 1), noisy_image]))
        encoded, condition = mean[:-batch].unflatten(0, (batch, -1)), mean[-batch:]
        z = encoded * scale
        if self.unet.config.out_channels > channels:
            z, condition = append_coordinates(z, condition, clips.positions)
        sigma = torch.exp(torch.randn(batch, 1, 1, 1, 1, device=device) * BLUR_STD + BLUR_MEAN).clamp(0.05, 10)
        noisy = z + sigma * torch.randn_like(z)
        ids = added_time_ids(clips, noise_aug)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            denoised = denoise(self.unet, noisy, sigma, condition, embed(self.image_encoder, image), ids)
        return encoded, denoised[:, :, :channels] / scale


def pick_chunks(clips: Clips, latents: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents [n·CHUNK, …] and frames of one random chunk per clip.

    The first half of the clips uses the encoded latents, the second half the denoised ones.
    """
    batch = len(clips.frames)
    starts = torch.randint(NUM_FRAMES - CHUNK + 1, (batch,)).tolist()
    parts = [latents[2 * i >= batch][i, s : s + CHUNK] for i, s in enumerate(starts)]
    return torch.cat(parts), torch.cat([clips.frames[i, s : s + CHUNK] for i, s in enumerate(starts)])


def decode(vae: AutoencoderKLTemporalDecoder, latents: torch.Tensor, num_frames: int = CHUNK) -> torch.Tensor:
    """Return frames [n, 3, h, w] of unscaled latents, decoding `num_frames` of each clip together."""
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.device.type == "cuda"):
        return vae.decode(latents, num_frames=num_frames).sample.float()


@torch.no_grad()
def validate(vae: AutoencoderKLTemporalDecoder, clips: torch.Tensor, latents: torch.Tensor) -> dict[str, float]:
    """Return mean metrics of last frames decoded from encoded latents, and their sharpness from denoised latents."""
    rows = []
    encoded, denoised = (decode(vae, part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in latents)
    for clip, from_encoded, from_denoised in zip(clips, encoded, denoised, strict=True):
        frame, reconstructed, sampled = (
            ((v[-1].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
            for v in (clip, from_encoded, from_denoised)
        )
        sharp = max(1.0, sharpness(frame))
        rows.append(
            (
                psnr(reconstructed, frame),
                chroma_error(reconstructed, frame),
                sharpness(reconstructed) / sharp,
                sharpness(sampled) / sharp,
            )
        )
    means = torch.tensor(rows).mean(0).tolist()
    names = ("psnr", "chroma", "sharpness", "sharpness_blurred")
    return {name: round(v, 3) for name, v in zip(names, means, strict=True)}


def save(vae: AutoencoderKLTemporalDecoder, decoder: nn.Module, folder: Path) -> None:
    """Write the VAE with the averaged decoder, keeping only the middle taps of its temporal convolutions."""
    averaged = copy.deepcopy(vae)
    averaged.decoder.load_state_dict(decoder.state_dict())
    keep_middle_taps(averaged)
    averaged.save_pretrained(folder)


@torch.no_grad()
def sharpen(vae: AutoencoderKLTemporalDecoder, frames: torch.Tensor, amount: float) -> None:
    """Replace the output convolution by the least-squares fit to its own output after unsharp masking by `amount`.

    This compensates for the softness that the error terms of the loss cause. frames [n, 3, h, w] in −1…1 provide the
    features to fit on.
    """
    convolution, captured = vae.decoder.conv_out, {}
    hook = convolution.register_forward_pre_hook(lambda _, inputs: captured.update(features=inputs[0]))
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(taps, taps).expand(3, 1, 3, 3)
    squares, products = 0.0, 0.0
    for frame in frames:
        vae.decode(vae.encode(frame[None]).latent_dist.mode(), num_frames=1)
        image = F.conv2d(captured["features"], convolution.weight, convolution.bias, padding=1)
        blurred = F.conv2d(F.pad(image, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)
        target = (image + amount * (image - blurred)).flatten(2)[0].T
        pick = torch.randperm(len(target))[:5000]
        rows = F.unfold(captured["features"], 3, padding=1)[0].T[pick]
        rows = torch.cat([rows, torch.ones(len(pick), 1)], 1).double()
        squares, products = squares + rows.T @ rows, products + rows.T @ target[pick].double()
    hook.remove()
    before = torch.cat([convolution.weight.flatten(1).T, convolution.bias[None]]).double()
    ridge = 1e-4 * squares.diagonal().mean() * torch.eye(len(squares), dtype=torch.float64)
    solved = torch.linalg.solve(squares + ridge, products + ridge @ before).float()
    convolution.weight.copy_(solved[:-1].T.reshape_as(convolution.weight))
    convolution.bias.copy_(solved[-1])


def write_sharpened(args: argparse.Namespace) -> None:
    """Write OUT/sharpened from OUT/vae, on a CPU."""
    vae = AutoencoderKLTemporalDecoder.from_pretrained(args.out / "vae", torch_dtype=torch.float32).eval()
    train, _ = Photos.read(args.photos, "cpu", limit=args.limit).split()
    torch.manual_seed(0)
    sharpen(vae, whole_photographs(train, 40, (HEIGHT, WIDTH)), args.sharpen)
    vae.save_pretrained(args.out / "sharpened")


def train(args: argparse.Namespace) -> None:
    """Train the decoder for `args.minutes` and write it to OUT/vae."""
    device = args.device
    processes = ProcessGroup.join(device)
    vae = AutoencoderKLTemporalDecoder.from_pretrained(args.vae, torch_dtype=torch.float32).to(device)
    vae.requires_grad_(False).decoder.requires_grad_(True)
    keep_middle_taps(vae)
    latents_of = Latents(args.unet, vae, device)
    photos, held_out = Photos.read(args.photos, device, limit=args.limit).split()
    mover = Mover(photos, HEIGHT, WIDTH)
    torch.manual_seed(0)
    discriminator = Discriminator().to(device)
    validation_clips = Mover(held_out, HEIGHT, WIDTH).draw(args.watched, NUM_FRAMES)
    validation_latents = torch.stack(latents_of(validation_clips))[:, :, -CHUNK:]
    weights, last = list(vae.decoder.parameters()), vae.decoder.conv_out.weight
    ema = copy.deepcopy(vae.decoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0, fused=True)
    adversary = torch.optim.AdamW(
        discriminator.parameters(), DISCRIMINATOR_RATE, betas=(0.5, 0.9), weight_decay=0, fused=True
    )
    log = [{"step": 0, **validate(vae, validation_clips.frames, validation_latents)}]
    processes.print(json.dumps(log[0]))
    processes.start()

    step, elapsed, is_adversarial = 0, 0.0, False
    while (progress := elapsed / args.minutes) < 1:
        if not is_adversarial and progress >= args.errors_share:
            is_adversarial = True
            log.append({"step": step, "errors": True, **validate_ema(vae, ema, validation_clips, validation_latents)})
            processes.print(json.dumps(log[-1]))
        rate = LEARNING_RATE * min(1, (step + 1) / 100) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        clips = mover.draw(args.clips, NUM_FRAMES)
        latents, frames = pick_chunks(clips, latents_of(clips))
        images = whole_photographs(photos, args.whole_images, (HEIGHT, WIDTH))
        decoded = torch.cat([decode(vae, latents), decode(vae, latents_of.encode(images), num_frames=1)])
        frames = torch.cat([frames, images])
        loss = reconstruction_loss(decoded - frames)
        if is_adversarial:
            adversarial, distance = adversarial_loss(discriminator, decoded, frames)
            loss = loss + args.features * distance
            loss = loss + args.texture * gradient_ratio(loss, adversarial, last) * adversarial
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        keep_middle_taps(vae)
        if is_adversarial:
            train_discriminator(discriminator, adversary, decoded.detach(), frames)
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), weights, 1 - min(0.998, (step + 1) / (step + 10)))
        if step % 10 == 0 or device == "cpu":
            elapsed = processes.elapsed_minutes()
        if step % 250 == 0:
            metrics = validate_ema(vae, ema, validation_clips, validation_latents)
            log.append({"step": step, "minutes": round(elapsed, 2), "loss": loss.item(), **metrics})
            processes.print(json.dumps(log[-1]))
    save(vae, ema, args.out / "vae")
    log.append({"step": step, **validate_ema(vae, ema, validation_clips, validation_latents)})
    processes.print(json.dumps(log[-1]))
    (args.out / "log.json").write_text(json.dumps(log, indent=1))


def validate_ema(
    vae: AutoencoderKLTemporalDecoder, ema: nn.Module, validation_clips: Clips, latents: torch.Tensor
) -> dict[str, float]:
    """Return `validate` of the VAE with the averaged decoder."""
    trained, vae.decoder = vae.decoder, ema
    try:
        return validate(vae, validation_clips.frames, latents)
    finally:
        vae.decoder = trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="photos.tar, written by collect.py")
    parser.add_argument("--vae", type=Path, help="folder with the trained VAE")
    parser.add_argument("--unet", type=Path, help="folder with unet/ and image_encoder/")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and log")
    parser.add_argument("--minutes", type=float, default=9, help="minutes to train in this run")
    parser.add_argument(
        "--errors-share", type=float, default=0.4, help="share of the schedule before the discriminator is added"
    )
    parser.add_argument(
        "--texture", type=float, default=0.5, help="weight of the adversarial loss relative to the errors"
    )
    parser.add_argument(
        "--features", type=float, default=0.5, help="weight of the distance of the discriminator's features"
    )
    parser.add_argument("--clips", type=int, default=2, help="clips per step; one chunk of each is decoded")
    parser.add_argument("--whole-images", type=int, default=6, help="whole photographs per step")
    parser.add_argument("--watched", type=int, default=16, help="held-out clips to validate on")
    parser.add_argument("--sharpen", type=float, help="do not train; write OUT/sharpened from OUT/vae, on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="number of photographs to read, for a quick trial")
    args = parser.parse_args()
    if args.sharpen is not None:
        write_sharpened(args)
    elif args.vae is None or args.unet is None:
        parser.error("--vae and --unet are required for training")
    else:
        train(args)


if __name__ == "__main__":
    main()

r"""Train the VAE's decoder to give texture where the latents hold none, on one GPU:

    python -m training.pocket.decoder --photos training/data/photos.tar --vae training/runs/vae/vae \
        --unet training/runs/distilled --out training/runs/decoder --minutes 9

First by squared and absolute errors alone, then with a discriminator beside them (Esser et al. 2021: its weight follows
the gradients, so that neither side drowns the other) and the distance of the discriminator's own features. Encoder
and latents stay as they are, so that a UNet goes on fitting.

Of the clips half have latents that are not the encoder's but what the UNet makes of them once noise was added: the blur
that sampling leaves behind is there to be undone, and what the frame was is known. Beside them are whole photographs,
which are sharper. Frames are decoded each by itself: the temporal convolutions keep their middle tap alone.

`--sharpen 0.45` afterwards, without a GPU, makes the output convolution sharpen what it gave before.
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

from training.common.parallel import Fleet
from training.pocket.denoising import denoise, draw_noise_aug, embed, with_flow
from training.pocket.discriminator import Discriminator, adversarial_loss, gradient_ratio, train_discriminator
from training.pocket.metrics import chroma_error, psnr, sharpness
from training.pocket.motion import Clips, Mover, Photos
from training.pocket.networks import HEIGHT, NUM_FRAMES, WIDTH
from training.pocket.vae import error_of, whole_photographs

LEARNING_RATE = 4e-4
DISCRIMINATOR_RATE = 3e-4
CHUNK = 7  # frames decoded together, as the pocket does
BLUR_MEAN, BLUR_STD = 0.3, 0.8  # of ln σ, of the noise that the UNet takes away again


def keep_middle_taps(vae: AutoencoderKLTemporalDecoder) -> None:
    """Let each frame be decoded by itself."""
    with torch.no_grad():
        for layer in vae.decoder.modules():
            if isinstance(layer, nn.Conv3d):
                layer.weight[:, :, 0::2] = 0


class Latents:
    """Makes latents of clips, as the encoder gives them and as the UNet leaves them."""

    def __init__(self, folder: Path, vae: AutoencoderKLTemporalDecoder, device: str) -> None:
        self.vae = vae
        read = UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
        self.unet = read.to(device).eval().requires_grad_(False)
        read = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32)
        self.image_encoder = read.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Unscaled latents [n, c, h/4, w/4] of frames [n, 3, h, w]."""
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.device.type == "cuda"):
            return self.vae.encode(frames).latent_dist.mean.float()

    @torch.no_grad()
    def __call__(self, clips: Clips) -> tuple[torch.Tensor, torch.Tensor]:
        """Unscaled latents [batch, frames, c, h, w] twice: whole, and blurred as sampled ones are."""
        batch, device = len(clips.frames), clips.frames.device
        channels, scale = self.vae.config.latent_channels, self.vae.config.scaling_factor
        noise_aug = draw_noise_aug(batch, str(device))
        image = clips.frames[:, 0]
        noisy_image = image + noise_aug.view(-1, 1, 1, 1) * torch.randn_like(image)
        mean = self.encode(torch.cat([clips.frames.flatten(0, 1), noisy_image]))
        whole, condition = mean[:-batch].unflatten(0, (batch, -1)), mean[-batch:]
        z = whole * scale
        if self.unet.config.out_channels > channels:
            z, condition = with_flow(z, condition, clips.positions)
        sigma = torch.exp(torch.randn(batch, 1, 1, 1, 1, device=device) * BLUR_STD + BLUR_MEAN).clamp(0.05, 10)
        noisy = z + sigma * torch.randn_like(z)
        ids = torch.stack([clips.fps - 1, clips.motion_bucket_id, noise_aug], 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            denoised = denoise(self.unet, noisy, sigma, condition, embed(self.image_encoder, image), ids)
        return whole, denoised[:, :, :channels] / scale


def pick_chunks(clips: Clips, latents: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """One chunk of each clip, the first from whole and the last from blurred latents: [n·CHUNK, …] and the frames."""
    batch = len(clips.frames)
    starts = torch.randint(NUM_FRAMES - CHUNK + 1, (batch,)).tolist()
    parts = [latents[2 * i >= batch][i, s : s + CHUNK] for i, s in enumerate(starts)]
    return torch.cat(parts), torch.cat([clips.frames[i, s : s + CHUNK] for i, s in enumerate(starts)])


def decode(vae: AutoencoderKLTemporalDecoder, latents: torch.Tensor, num_frames: int = CHUNK) -> torch.Tensor:
    """Frames [n, 3, h, w] of unscaled latents, `num_frames` of each clip together."""
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.device.type == "cuda"):
        return vae.decode(latents, num_frames=num_frames).sample.float()


@torch.no_grad()
def validate(vae: AutoencoderKLTemporalDecoder, stills: torch.Tensor, latents: torch.Tensor) -> dict[str, float]:
    """Means over held-out frames from whole latents, and the sharpness of those from blurred ones."""
    rows = []
    whole, blurred = (decode(vae, part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in latents)
    for still, one, other in zip(stills, whole, blurred, strict=True):
        frame, made, sampled = (
            ((v[-1].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
            for v in (still, one, other)
        )
        sharp = max(1.0, sharpness(frame))
        rows.append((psnr(made, frame), chroma_error(made, frame), sharpness(made) / sharp, sharpness(sampled) / sharp))
    means = torch.tensor(rows).mean(0).tolist()
    names = ("psnr", "chroma", "sharpness", "sharpness_blurred")
    return {name: round(v, 3) for name, v in zip(names, means, strict=True)}


def save(vae: AutoencoderKLTemporalDecoder, decoder: nn.Module, folder: Path) -> None:
    """Write the VAE with an averaged decoder, its temporal convolutions as they are used."""
    whole = copy.deepcopy(vae)
    whole.decoder.load_state_dict(decoder.state_dict())
    keep_middle_taps(whole)
    whole.save_pretrained(folder)


@torch.no_grad()
def sharpen(vae: AutoencoderKLTemporalDecoder, frames: torch.Tensor, amount: float) -> None:
    """Solve for the output convolution that gives its own pictures sharpened, by unsharp masking of that amount.

    A discriminator asks for texture as strong as a photograph's, and the errors hold it back; this is what was held
    back. frames: [n, 3, h, w], from which what the convolution sees is taken.
    """
    convolution, seen = vae.decoder.conv_out, {}
    hook = convolution.register_forward_pre_hook(lambda _, given: seen.update(features=given[0]))
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(taps, taps).expand(3, 1, 3, 3)
    squares, products = 0.0, 0.0
    for frame in frames:
        vae.decode(vae.encode(frame[None]).latent_dist.mode(), num_frames=1)
        picture = F.conv2d(seen["features"], convolution.weight, convolution.bias, padding=1)
        soft = F.conv2d(F.pad(picture, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)
        wanted = (picture + amount * (picture - soft)).flatten(2)[0].T
        pick = torch.randperm(len(wanted))[:5000]
        rows = F.unfold(seen["features"], 3, padding=1)[0].T[pick]
        rows = torch.cat([rows, torch.ones(len(pick), 1)], 1).double()
        squares, products = squares + rows.T @ rows, products + rows.T @ wanted[pick].double()
    hook.remove()
    before = torch.cat([convolution.weight.flatten(1).T, convolution.bias[None]]).double()
    ridge = 1e-4 * squares.diagonal().mean() * torch.eye(len(squares), dtype=torch.float64)
    solved = torch.linalg.solve(squares + ridge, products + ridge @ before).float()
    convolution.weight.copy_(solved[:-1].T.reshape_as(convolution.weight))
    convolution.bias.copy_(solved[-1])


def finish(args: argparse.Namespace) -> None:
    """Write OUT/sharpened from OUT/vae; a CPU is enough."""
    vae = AutoencoderKLTemporalDecoder.from_pretrained(args.out / "vae", torch_dtype=torch.float32).eval()
    train, _ = Photos.read(args.photos, "cpu", limit=args.limit).split()
    torch.manual_seed(0)
    sharpen(vae, whole_photographs(train, 40, (HEIGHT, WIDTH)), args.sharpen)
    vae.save_pretrained(args.out / "sharpened")


def train(args: argparse.Namespace) -> None:
    device = args.device
    fleet = Fleet.join(device)
    vae = AutoencoderKLTemporalDecoder.from_pretrained(args.vae, torch_dtype=torch.float32).to(device)
    vae.requires_grad_(False).decoder.requires_grad_(True)
    keep_middle_taps(vae)
    latents_of = Latents(args.unet, vae, device)
    stack, held_out = Photos.read(args.photos, device, limit=args.limit).split()
    mover = Mover(stack, HEIGHT, WIDTH)
    torch.manual_seed(0)
    discriminator = Discriminator().to(device)
    watched = Mover(held_out, HEIGHT, WIDTH).draw(args.watched, NUM_FRAMES)
    watched_latents = torch.stack(latents_of(watched))[:, :, -CHUNK:]
    weights, last = list(vae.decoder.parameters()), vae.decoder.conv_out.weight
    ema = copy.deepcopy(vae.decoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0, fused=True)
    adversary = torch.optim.AdamW(
        discriminator.parameters(), DISCRIMINATOR_RATE, betas=(0.5, 0.9), weight_decay=0, fused=True
    )
    log = [{"step": 0, **validate(vae, watched.frames, watched_latents)}]
    fleet.say(json.dumps(log[0]))
    fleet.begin()

    step, elapsed, adversarial = 0, 0.0, False
    while (progress := elapsed / args.minutes) < 1:
        if not adversarial and progress >= args.errors_share:
            adversarial = True
            log.append({"step": step, "errors": True, **validate_ema(vae, ema, watched, watched_latents)})
            fleet.say(json.dumps(log[-1]))
        rate = LEARNING_RATE * min(1, (step + 1) / 100) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        clips = mover.draw(args.clips, NUM_FRAMES)
        latents, frames = pick_chunks(clips, latents_of(clips))
        stills = whole_photographs(stack, args.stills, (HEIGHT, WIDTH))
        made = torch.cat([decode(vae, latents), decode(vae, latents_of.encode(stills), num_frames=1)])
        frames = torch.cat([frames, stills])
        loss = error_of(made - frames)
        if adversarial:
            against, distance = adversarial_loss(discriminator, made, frames)
            loss = loss + args.features * distance
            loss = loss + args.texture * gradient_ratio(loss, against, last) * against
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        keep_middle_taps(vae)
        if adversarial:
            train_discriminator(discriminator, adversary, made.detach(), frames)
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), weights, 1 - min(0.998, (step + 1) / (step + 10)))
        if step % 10 == 0 or device == "cpu":
            elapsed = fleet.minutes()
        if step % 250 == 0:
            found = validate_ema(vae, ema, watched, watched_latents)
            log.append({"step": step, "minutes": round(elapsed, 2), "loss": loss.item(), **found})
            fleet.say(json.dumps(log[-1]))
    save(vae, ema, args.out / "vae")
    log.append({"step": step, **validate_ema(vae, ema, watched, watched_latents)})
    fleet.say(json.dumps(log[-1]))
    (args.out / "log.json").write_text(json.dumps(log, indent=1))


def validate_ema(
    vae: AutoencoderKLTemporalDecoder, ema: nn.Module, watched: Clips, latents: torch.Tensor
) -> dict[str, float]:
    trained, vae.decoder = vae.decoder, ema
    try:
        return validate(vae, watched.frames, latents)
    finally:
        vae.decoder = trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, help="folder with the trained VAE")
    parser.add_argument("--unet", type=Path, help="folder that holds unet/ and image_encoder/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--errors-share", type=float, default=0.4, help="share of the time before the discriminator")
    parser.add_argument("--texture", type=float, default=0.5, help="the discriminator's pull over that of the errors")
    parser.add_argument("--features", type=float, default=0.5, help="weight of the distance of its features")
    parser.add_argument("--clips", type=int, default=2, help="clips a step; one chunk of each is decoded")
    parser.add_argument("--stills", type=int, default=6, help="whole photographs a step")
    parser.add_argument("--watched", type=int, default=16, help="held-out clips to validate on")
    parser.add_argument("--sharpen", type=float, help="train nothing: make OUT/sharpened of OUT/vae, on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="photographs to read, for a quick trial")
    args = parser.parse_args()
    if args.sharpen is not None:
        finish(args)
    elif args.vae is None or args.unet is None:
        parser.error("training needs --vae and --unet")
    else:
        train(args)


if __name__ == "__main__":
    main()

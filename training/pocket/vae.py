r"""Train the pocket VAE on synthesised clips, on one or more GPUs of a machine:

    torchrun --nproc-per-node 2 -m training.pocket.vae --photos training/data/photos.tar --out training/runs/vae \
        --minutes 9 --total-minutes 18

Almost half of every batch is decoded from another frame's latents, warped by the true motion. This makes the latents
equivariant: a shift of the image becomes a shift of the latents (similar to EQ-VAE, Kouzelis et al. 2025). In the
second half of the schedule a discriminator is added to the errors, for texture (Esser et al. 2021). Each frame is
decoded separately: only the middle taps of the decoder's temporal convolutions are trained, as two-dimensional
convolutions; the outer taps are zero.

The learning rate schedule lasts `--total-minutes`. A run ends after `--minutes`; the next run with the same `--out`
resumes.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn

from training.common.autoencoder import AutoencoderTraining, add_training_arguments, image_metrics, psnr
from training.common.parallel import ProcessGroup
from training.pocket.motion import Clips, Mover, Photos
from training.pocket.networks import HEIGHT, VAE_FACTOR, WIDTH, count_parameters, make_vae

LEARNING_RATE = 8e-4
KL_WEIGHT = 1e-4
NUM_FRAMES = 4  # per clip; only the first and the last are used
# Sizes of ten consecutive steps. A norm group has two channels: with one training size, colours fail at other sizes.
SIZES = [(HEIGHT, WIDTH)] * 8 + [(WIDTH, HEIGHT), (224, 224)]


class MiddleTap(nn.Module):
    """A (3, 1, 1) convolution reduced to its middle tap; x: [b, c, t, h, w]."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight[:, :, 1].clone()), conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, frames, height, width = x.shape
        y = F.conv2d(x.transpose(1, 2).reshape(-1, channels, height, width), self.weight, self.bias)
        return y.view(batch, frames, -1, height, width).transpose(1, 2)


def use_middle_taps(vae: AutoencoderKLTemporalDecoder) -> AutoencoderKLTemporalDecoder:
    """Replace the decoder's temporal convolutions by their middle taps, in place, and return the VAE."""
    for module in list(vae.decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv3d):
                setattr(module, name, MiddleTap(child))
    return vae


def full_state(vae: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a VAE from `use_middle_taps` in diffusers' format."""
    taps = {f"{name}.weight" for name, module in vae.named_modules() if isinstance(module, MiddleTap)}
    state = {}
    for key, value in vae.state_dict().items():
        if key in taps:
            kernel = value.new_zeros(*value.shape[:2], 3, 1, 1)
            kernel[:, :, 1] = value
            state[key] = kernel
        else:
            state[key] = value.clone()
    return state


def encode(vae: nn.Module, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and log-variance, float32 [n, c, h/4, w/4], of frames [n, 3, h, w]."""
    mean, log_variance = vae.quant_conv(vae.encoder(frames)).float().chunk(2, 1)
    return mean, log_variance.clamp(-30, 20)


def decode_features(decoder: nn.Module, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input of the decoder's last convolution, and that of its attention.

    latents [n, c, h/4, w/4] give [n, 64, h, w] and [n, 128, h/4, w/4].
    """
    indicator = latents.new_zeros(len(latents), 1)
    middle = decoder.mid_block
    attended = hidden_states = middle.resnets[0](decoder.conv_in(latents), image_only_indicator=indicator)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=False):
        hidden_states = resnet(attention(hidden_states), image_only_indicator=indicator)
    for block in decoder.up_blocks:
        hidden_states = block(hidden_states, image_only_indicator=indicator)
    return decoder.conv_act(decoder.conv_norm_out(hidden_states)), attended


def decode_output(decoder: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return frames, float32 [n, 3, h, w], from the features of `decode_features`."""
    return decoder.time_conv_out(decoder.conv_out(features)[:, :, None])[:, :, 0].float()


@torch.no_grad()
def decode(decoder: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Return frames in −1…1, float32 [n, 3, h, w], for latents [n, c, h/4, w/4]."""
    parts = [decode_output(decoder, decode_features(decoder, part)[0]) for part in latents.split(16)]
    return torch.cat(parts).clamp(-1, 1)


def warp(latents: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample latents [n, c, h, w] at `grid` [n, h, w, 2]."""
    return F.grid_sample(latents, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def sampling_grid(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sampling grid [b, h/4, w/4, 2] of positions [b, 2, h/4, w/4], and its inside mask [b, 1, h, w]."""
    half = positions.new_tensor([positions.shape[-1], positions.shape[-2]]).view(1, 2, 1, 1) * VAE_FACTOR / 2
    grid = (positions / half).permute(0, 2, 3, 1)
    inside = (grid.abs().amax(-1) <= 1).float()[:, None]
    return grid, F.interpolate(inside, scale_factor=VAE_FACTOR)


class Autoencoder(nn.Module):
    """Encodes frames, warps the latents of the last len(grid) frames, and decodes up to the last convolution."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, frames: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features [n, 64, h, w] and the weighted KL divergence."""
        with torch.autocast(frames.device.type, torch.bfloat16):
            mean, log_variance = encode(self.vae, frames)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            z = torch.cat([z[: -len(grid)], warp(z[-len(grid) :], grid)])
            features, _ = decode_features(self.vae.decoder, z)
        return features, KL_WEIGHT * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def whole_photographs(photos: Photos, count: int, size: tuple[int, int], *, first: bool = False) -> torch.Tensor:
    """Return photographs cropped and downscaled to `size`, [count, 3, h, w] in −1…1.

    `first` takes the first `count`; otherwise they are random, and half of them mirrored.
    """
    device = photos.pixels.device
    index = torch.arange(count, device=device) if first else torch.randint(len(photos.pixels), (count,), device=device)
    height, width = size
    crop_width = photos.pixels.shape[-2] * width // height
    pixels = photos.pixels[index].float() / 127.5 - 1
    if crop_width < pixels.shape[-1]:
        left = (pixels.shape[-1] - crop_width) // 2
        pixels = pixels[..., left : left + crop_width]
    if not first:
        pixels[::2] = pixels[::2].flip(-1)
    return F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)


@torch.no_grad()
def validate(vae: nn.Module, images: torch.Tensor, clips: Clips) -> dict[str, float]:
    """Return metrics of reconstructed photographs and of last frames decoded from warped latents of first frames."""
    with torch.autocast(images.device.type, torch.bfloat16):
        latents = encode(vae, images)[0]
        decoded = decode(vae.decoder, latents)
        grid, inside = sampling_grid(clips.positions[:, -1])
        warped = decode(vae.decoder, warp(encode(vae, clips.frames[:, 0])[0], grid))
    return image_metrics(decoded, images) | {
        "psnr_moved": psnr(warped, clips.frames[:, -1], inside).mean().item(),
        "scaling_factor": 1 / latents.std().item(),
    }


def draw(
    mover: Mover, size: tuple[int, int], *, plain: int, photographs: int, moved: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the frames to encode, the grid for the last `moved` of them, the targets and the mask of valid pixels."""
    clips = mover.draw(plain + moved, NUM_FRAMES)
    unwarped = torch.cat([clips.frames[:plain, -1], whole_photographs(mover.photos, photographs, size)])
    grid, inside = sampling_grid(clips.positions[plain:, -1])
    frames = torch.cat([unwarped, clips.frames[plain:, 0]]).contiguous(memory_format=torch.channels_last)
    return (
        frames,
        grid,
        torch.cat([unwarped, clips.frames[plain:, -1]]),
        torch.cat([torch.ones_like(unwarped[:, :1]), inside]),
    )


def make_training(args: argparse.Namespace, vae: AutoencoderKLTemporalDecoder, rate: float) -> AutoencoderTraining:
    """Return the training of a VAE that decodes each frame separately."""
    return AutoencoderTraining(args, use_middle_taps(vae), rate, decode_output=decode_output, full_state=full_state)


def train(args: argparse.Namespace) -> None:
    """Train for `args.minutes`, validating every 500 steps, and save."""
    args.out.mkdir(parents=True, exist_ok=True)
    processes = ProcessGroup.join(args.device)
    photos, held_out = Photos.read(args.photos, args.device, limit=args.limit).split()
    movers = {size: Mover(photos, *size) for size in dict.fromkeys(SIZES)}
    torch.manual_seed(1)
    images = whole_photographs(held_out, len(held_out.pixels), (HEIGHT, WIDTH), first=True)
    clips = Mover(held_out, HEIGHT, WIDTH).draw(2 if args.limit else 32, NUM_FRAMES)
    torch.manual_seed(0)
    vae = make_vae()
    if args.begin_from:
        vae = type(vae).from_pretrained(args.begin_from, torch_dtype=torch.float32)
    training = make_training(args, vae, LEARNING_RATE)
    processes.print(
        f"{len(photos.pixels)} photographs, VAE {count_parameters(training.vae) / 1e6:.2f} M parameters, "
        f"starting at step {training.step}"
    )
    counts = {"plain": args.plain, "photographs": args.photographs, "moved": args.moved}
    metrics = training.run(
        processes,
        Autoencoder(training.vae),
        lambda size: draw(movers[size], size, **counts),
        lambda: validate(training.ema, images, clips),
        SIZES,
    )
    if processes.rank == 0:
        training.save(metrics["scaling_factor"])
    processes.leave()


def add_photo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of trainings of a VAE on photographs."""
    parser.add_argument("--photos", type=Path, required=True, help="photos.tar, written by collect.py")
    add_training_arguments(parser)
    parser.add_argument("--photographs", type=int, default=4, help="whole photographs per GPU and step")
    parser.add_argument("--limit", type=int, help="number of photographs to read, for a quick trial")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_photo_arguments(parser)
    parser.add_argument("--begin-from", type=Path, help="folder with a trained VAE to start a new schedule from")
    parser.add_argument(
        "--plain", type=int, default=14, help="clip frames decoded from their own latents, per GPU and step"
    )
    parser.add_argument("--moved", type=int, default=14, help="frames decoded from warped latents, per GPU and step")
    train(parser.parse_args())


if __name__ == "__main__":
    main()

r"""Train the text-to-image model's VAE on program-drawn scenes, on one or more GPUs of a machine:

    torchrun --nproc-per-node 2 -m training.t2i.vae --out training/runs/t2i --minutes 8

It is trained as the pocket model's VAE is, with a discriminator in the second half of the schedule, for texture (Esser
et al. 2021). It is validated on newly drawn scenes, always the same, which training never draws again.

The learning rate schedule lasts `--total-minutes`. A run ends after `--minutes`; the next run with the same `--out`
resumes.
"""

import argparse
import itertools
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from training.common.autoencoder import AutoencoderTraining, add_training_arguments, image_metrics
from training.common.parallel import ProcessGroup
from training.t2i.drawing import draw
from training.t2i.networks import HEIGHT, WIDTH, count_parameters, make_vae
from training.t2i.pool import ScenePool, as_bytes
from training.t2i.scenes import training_scene

LEARNING_RATE = 8e-4
KL_WEIGHT = 2e-4
# Sizes of ten consecutive steps; with one training size, colours can fail at other sizes.
SIZES = [(HEIGHT, WIDTH)] * 8 + [(WIDTH, HEIGHT), (HEIGHT, HEIGHT)]


def decode_features(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Return the input of the decoder's last convolution, [n, c, h, w], for latents [n, c, h/4, w/4]."""
    decoder = vae.decoder
    hidden_states = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents)))
    for block in decoder.up_blocks:
        hidden_states = block(hidden_states)
    return decoder.conv_act(decoder.conv_norm_out(hidden_states))


def decode_output(decoder: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return images, float32 [n, 3, h, w], from the features of `decode_features`."""
    return decoder.conv_out(features).float()


class Autoencoder(nn.Module):
    """Encodes images and decodes them up to the last convolution."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features [n, c, h, w] of images [n, 3, h, w], and the weighted KL divergence."""
        with torch.autocast(images.device.type, torch.bfloat16):
            mean, log_variance = self.vae.quant_conv(self.vae.encoder(images)).float().chunk(2, 1)
            log_variance = log_variance.clamp(-30, 20)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            features = decode_features(self.vae, z)
        return features, KL_WEIGHT * 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def as_batch(pixels: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images in −1…1 of a size as input and target, and that all pixels count.

    pixels: uint8 [n, 3, 160, 288]. They are cropped at random for the square size and transposed for the portrait one.
    """
    if size == (WIDTH, HEIGHT):
        pixels = pixels.transpose(2, 3)
    elif size[1] < WIDTH:
        left = int(torch.randint(WIDTH - size[1] + 1, ()))
        pixels = pixels[..., left : left + size[1]]
    images = (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    return images, images, images.new_ones(1)


def new_images(number: int, device: str, seed: int) -> torch.Tensor:
    """Draw scenes that no training draws, [number, 3, h, w] in −1…1: their seeds are small, those of training large."""
    rng = random.Random(seed)
    scenes = [training_scene(rng) for _ in range(number)]
    pixels = draw(scenes, torch.Generator(device).manual_seed(seed), device, HEIGHT, WIDTH)
    return as_bytes(pixels).float() / 127.5 - 1


@torch.no_grad()
def validate(vae: AutoencoderKL, images: torch.Tensor) -> dict[str, float]:
    """Return metrics of reconstructed images [n, 3, h, w] in −1…1, and the scaling factor of their latents."""
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(16)])
    decoded = torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents.split(16)])
    return image_metrics(decoded, images) | {"scaling_factor": 1 / latents.std().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--begin-from", type=Path, help="folder with a trained VAE to start a new schedule from")
    parser.add_argument("--batch", type=int, default=40, help="images per GPU and step")
    parser.add_argument("--pool", type=int, default=8192, help="scenes in the pool of each device")
    parser.add_argument("--drawn", type=int, default=1024, help="scenes drawn per batch, as for the UNet")
    parser.add_argument("--refresh", type=int, default=32, help="number of steps between refreshes of the pool")
    parser.add_argument("--judged", type=int, default=256, help="number of newly drawn scenes to validate on")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    processes = ProcessGroup.join(args.device)
    torch.manual_seed(0)
    vae = make_vae()
    if args.begin_from:
        vae = AutoencoderKL.from_pretrained(args.begin_from, torch_dtype=torch.float32)
    training = AutoencoderTraining(args, vae, LEARNING_RATE, decode_output=decode_output)
    processes.print(f"VAE {count_parameters(vae) / 1e6:.2f} M parameters, starting at step {training.step}")
    images = new_images(args.judged, args.device, seed=1)
    processes.start()  # seeds each process differently
    scenes = ScenePool(args.pool, args.drawn, args.device, encode=as_bytes)
    processes.print(f"{scenes.size} scenes drawn per device after {processes.elapsed_minutes():.2f} minutes")
    steps = itertools.count(1)

    def draw_batch(size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        if next(steps) % args.refresh == 0:
            scenes.refresh()
        return as_batch(scenes.sample(args.batch)[0], size)

    metrics = training.run(
        processes, Autoencoder(training.vae), draw_batch, lambda: validate(training.ema, images), SIZES
    )
    if processes.rank == 0:
        training.save(metrics["scaling_factor"])
    processes.leave()


if __name__ == "__main__":
    main()

r"""Train the decoder to move the image: its attention looks up the content at the positions in the latents.

    torchrun --nproc-per-node 2 -m training.pocket.decoder --photos training/data/photos.tar \
        --vae training/runs/vae/vae --out training/runs/decoder --minutes 9 --total-minutes 18

It begins from the VAE of one image: extended to LATENT_CHANNELS and to two layers per block, which gives the decoder
self-attention (`extend`). The encoder is not trained. A frame's latents are those of its clip's first frame, unmoved,
and the positions of the motion (`compose_latents`), both with a little noise, as a UNet leaves it; the target is the
moved frame. Slow and fast clips are equally frequent, so that frames far from the image are, too. An auxiliary loss
trains the attention to point at the source position. For texture, the error of texture energies is part of the loss,
and in the second half of the schedule a discriminator is added (Esser et al. 2021).

The learning rate schedule lasts `--total-minutes`. A run ends after `--minutes`; the next run with the same `--out`
resumes.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn

from training.common.autoencoder import image_metrics, psnr, texture_energies
from training.common.parallel import ProcessGroup
from training.pocket.denoising import Encoder, compose_latents
from training.pocket.motion import FASTEST, Clips, Mover, Photos
from training.pocket.networks import (
    HEIGHT,
    IMAGE_CHANNELS,
    LATENT_CHANNELS,
    NUM_FRAMES,
    WIDTH,
    count_parameters,
    make_vae,
)
from training.pocket.pointing import pointing_loss
from training.pocket.transport import slow_clips
from training.pocket.vae import (
    SIZES,
    add_photo_arguments,
    decode,
    decode_features,
    make_training,
    sampling_grid,
    whole_photographs,
)

LEARNING_RATE = 8e-4
POINTING_WEIGHT = 0.05
IMAGE_NOISE = 0.15  # maximum strength of the noise on the image's latents, whose variance is 1
POSITION_NOISE = 0.1  # maximum strength of the noise on sine and cosine of positions
FAR_FLOW = 1.0  # pixels per frame of clips for validation: their last frames are 13 pixels from the image


def extend(vae: AutoencoderKLTemporalDecoder) -> AutoencoderKLTemporalDecoder:
    """Return a VAE with LATENT_CHANNELS and two layers per block that encodes and decodes like `vae`.

    New layers are the identity, except for the attention, whose output is small, and the decoder's input of the new
    channels. The encoder sets the new channels to 0.
    """
    extended = make_vae(LATENT_CHANNELS, layers=2)
    extended.register_to_config(scaling_factor=vae.config.scaling_factor)
    state, old = extended.state_dict(), vae.state_dict()
    for name, value in state.items():
        is_new = name not in old
        if is_new and "conv2." in name:
            value.zero_()  # a residual block without residual
        elif name.startswith(("encoder.conv_out.", "quant_conv.")):
            _widen(value, old[name])
        elif name == "decoder.conv_in.weight":
            value[:, :IMAGE_CHANNELS] = old[name]
        elif ".attentions.0.to_out.0." in name and name.startswith("decoder."):
            value.mul_(0.1)
        elif not is_new and name.split(".mid_block.attentions")[0] != "decoder":
            value.copy_(old[name])
    extended.load_state_dict(state)
    return extended


def _widen(tensor: torch.Tensor, old: torch.Tensor) -> None:
    """Copy a layer's means and log-variances, and its inputs if they are means and log-variances too; zero the rest."""
    tensor.zero_()
    rows = [*range(IMAGE_CHANNELS), *range(LATENT_CHANNELS, LATENT_CHANNELS + IMAGE_CHANNELS)]
    if tensor.ndim > 1 and tensor.shape[1] == 2 * LATENT_CHANNELS:
        for row, values in zip(rows, old, strict=True):
            tensor[row, rows] = values
    else:
        tensor[rows] = old


class Decoder(nn.Module):
    """The VAE's decoder up to its last convolution, with the loss of its attention."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features [n, 64, h, w] of scaled latents [n, c, h/4, w/4], and the weighted loss of pointing."""
        with torch.autocast(latents.device.type, torch.bfloat16):
            unscaled = latents / self.vae.config.scaling_factor
            features, attended = decode_features(self.vae.decoder, unscaled)
            attention = self.vae.decoder.mid_block.attentions[0]
            return features, POINTING_WEIGHT * pointing_loss(attention, attended, positions)


def disturb(latents: torch.Tensor) -> torch.Tensor:
    """Return latents [n, c, h, w] with noise of random strength on the image and on the positions."""
    strength = torch.rand(2, len(latents), 1, 1, 1, device=latents.device)
    noise = torch.randn_like(latents)
    image = latents[:, :IMAGE_CHANNELS] + IMAGE_NOISE * strength[0] * noise[:, :IMAGE_CHANNELS]
    places = latents[:, IMAGE_CHANNELS:] + POSITION_NOISE * strength[1] * noise[:, IMAGE_CHANNELS:]
    return torch.cat([image, places], 1)


def draw(
    mover: Mover, encoder: Encoder, size: tuple[int, int], clips_count: int, photographs: int
) -> tuple[torch.Tensor, ...]:
    """Return latents, true positions, frames, and where they count, of clips' frames and of whole photographs."""
    later = (torch.randperm(NUM_FRAMES - 1)[:2] + 1).tolist()
    shown = (0, *later)
    flow = FASTEST * torch.rand(clips_count, device=mover.device)
    clips = mover.draw(clips_count, NUM_FRAMES, rendered=shown, flow=flow)
    images = whole_photographs(mover.photos, photographs, size)
    encoded = encoder.encode(torch.cat([clips.frames[:, 0], images])) * encoder.scaling_factor
    positions = clips.positions[:, list(shown)]
    own = clips.positions[:1, :1].expand(photographs, -1, -1, -1, -1)
    latents = torch.cat(
        [
            compose_latents(encoded[:clips_count], positions).flatten(0, 1),
            compose_latents(encoded[clips_count:], own).flatten(0, 1),
        ]
    )
    target = torch.cat([clips.frames.flatten(0, 1), images]).contiguous(memory_format=torch.channels_last)
    flat = torch.cat([positions.flatten(0, 1), own.flatten(0, 1)])
    # What was not in view in frame 0 can't be known exactly, but something plausible must be there.
    inside = 0.25 + 0.75 * sampling_grid(flat)[1]
    return disturb(latents), flat, target, inside


def last_frames(vae: AutoencoderKLTemporalDecoder, encoder: Encoder, clips: Clips) -> dict[str, float]:
    """Return metrics of the last frames of clips, decoded from the first frames' latents and the true positions.

    `fine` is the texture energy at periods of two to three pixels relative to that of the true frames: above 1, there
    is a mesh that the image does not have.
    """
    first = encoder.encode(clips.frames[:, 0]) * encoder.scaling_factor
    moved = compose_latents(first, torch.cat([clips.positions[:, :1], clips.positions[:, -1:]], 1))[:, 1]
    with torch.autocast(moved.device.type, torch.bfloat16):
        frames = decode(vae.decoder, moved / encoder.scaling_factor)
    inside = sampling_grid(clips.positions[:, -1])[1]
    true = clips.frames[:, -1]
    scores = psnr(frames, true, inside)
    fine = [texture_energies(v * inside)[:, 3:].mean() for v in (frames, true)]
    return {
        "psnr": scores.mean().item(),
        "psnr_worst": scores.min().item(),
        "sharpness": image_metrics(frames, true)["sharpness"],
        "fine": (fine[0] / fine[1]).item(),
    }


@torch.no_grad()
def validate(
    vae: AutoencoderKLTemporalDecoder, encoder: Encoder, images: torch.Tensor, clips: dict[str, Clips]
) -> dict[str, float]:
    """Return metrics of photographs with no motion, and of last frames of clips, whose names end in the key."""
    own = next(iter(clips.values())).positions[:1, :1]
    still = compose_latents(encoder.encode(images) * encoder.scaling_factor, own.expand(len(images), -1, -1, -1, -1))
    with torch.autocast(images.device.type, torch.bfloat16):
        decoded = decode(vae.decoder, still[:, 0] / encoder.scaling_factor)
    figures = image_metrics(decoded, images)
    for key, some in clips.items():
        figures |= {f"{name}_{key}": value for name, value in last_frames(vae, encoder, some).items()}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_photo_arguments(parser)
    parser.add_argument("--vae", type=Path, required=True, help="folder with the VAE of one image, or with this one")
    parser.set_defaults(energy=10.0, texture=0.2)
    parser.add_argument("--clips", type=int, default=8, help="clips per GPU and step; three frames of each are decoded")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    processes = ProcessGroup.join(args.device)
    photos, held_out = Photos.read(args.photos, args.device, limit=args.limit).split()
    movers = {size: Mover(photos, *size) for size in dict.fromkeys(SIZES)}
    images = whole_photographs(held_out, len(held_out.pixels), (HEIGHT, WIDTH), first=True)
    count, mover = 2 if args.limit else 24, Mover(held_out, HEIGHT, WIDTH)
    torch.manual_seed(22)
    far = mover.draw(count, NUM_FRAMES, flow=torch.full((count,), FAR_FLOW, device=mover.device))
    clips = {"moved": slow_clips(mover, count), "far": far}
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder.from_pretrained(args.vae, torch_dtype=torch.float32)
    if vae.config.latent_channels != LATENT_CHANNELS:
        vae = extend(vae)
    vae.requires_grad_(False).decoder.requires_grad_(True)
    encoder = Encoder(args.vae, args.device)
    training = make_training(args, vae, LEARNING_RATE)
    processes.print(
        f"{len(photos.pixels)} photographs, decoder {count_parameters(vae.decoder) / 1e6:.2f} M parameters, "
        f"starting at step {training.step}"
    )
    training.run(
        processes,
        Decoder(training.vae),
        lambda size: draw(movers[size], encoder, size, args.clips, args.photographs),
        lambda: validate(training.ema, encoder, images, clips),
        SIZES,
    )
    if processes.rank == 0:
        training.save(encoder.scaling_factor)
    processes.leave()


if __name__ == "__main__":
    main()

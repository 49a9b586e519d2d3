r"""Train the VAE decoder's last layers at the pocket's own size; a CPU is enough:

    python training/tail.py --photos training/data/photos.tar --vae training/runs/decoder/vae \
        --out training/runs/tail --minutes 30

After training at many sizes the decoder's features hold colour, but its output does not: with two channels to a norm
group, what a feature's level means depends on the size of the picture. So the output convolution is solved for anew
(ridge regression from its features to the photographs), then the last block is trained. Encoder and latents stay as
they are, so that a UNet goes on fitting.

What both aim at is the photograph sharpened, by squared error alone. The mean of what a latent may have been is soft,
and a sharpened mean is the mean of the sharpened. A loss that asks for texture instead is answered by a chequerboard
of single pixels, which is the cheapest texture there is.

Before that, the temporal convolutions are cut down to their middle tap. A decoder that was trained on clips of three
frames knows no frame that is far from both ends, and in clips of fourteen it let the second and the last but one flash.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder

from metrics import chroma_error, psnr, sharpness
from motion import Mover, Photos
from shapes import HEIGHT, WIDTH

LEARNING_RATE = 6e-4
BATCH = 2
KEPT = 300  # features of so many frames are held, and each new one replaces an old one
SHARPENING = 4.0  # a small network reaches about half of it
STEPS_A_DRAW = 2  # going through the frozen layers costs as much as training the last ones


class Front(Exception):
    """The decoder has come to its last block."""


@torch.no_grad()
def drop_neighbours(vae: AutoencoderKLTemporalDecoder) -> None:
    """Let each frame be decoded by itself: only the middle of the temporal convolutions' three taps stays."""
    for layer in vae.decoder.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.weight[:, :, 0] = 0
            layer.weight[:, :, 2] = 0


def features_of(vae: AutoencoderKLTemporalDecoder, frames: torch.Tensor) -> torch.Tensor:
    """What the decoder's last resnet gets, [frames, 64, h, w], for frames [frames, 3, h, w] in −1…1."""
    found = {}

    def leave(_module: object, given: tuple[torch.Tensor, ...]) -> None:
        found["features"] = given[0]
        raise Front

    hook = vae.decoder.up_blocks[-1].resnets[-1].register_forward_pre_hook(leave)
    try:
        vae.decode(vae.encode(frames).latent_dist.mode(), num_frames=1)
    except Front:
        return found["features"]
    finally:
        hook.remove()
    raise AssertionError("the decoder has a last resnet")


def crisp(frames: torch.Tensor) -> torch.Tensor:
    """Frames [n, 3, h, w] without what changes sign from pixel to pixel both ways, and sharpened (unsharp masking)."""
    calm = frames - _filtered(frames, (-1, 2, -1))
    return calm + SHARPENING * (calm - _filtered(calm, (1, 2, 1)))


def _filtered(frames: torch.Tensor, taps: tuple[int, int, int]) -> torch.Tensor:
    """Frames filtered by the taps over 4, along both axes."""
    kernel = torch.outer(row := torch.tensor(taps) / 4, row).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(frames, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)


@torch.no_grad()
def draw(vae: AutoencoderKLTemporalDecoder, source: Mover, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Half-precision features and frames: of a fresh clip, or whole photographs."""
    if random.random() < 0.5:
        frames = source.draw(count, 2).frames[:, 1]
    else:
        index = torch.randint(len(source.photos.pixels), (count,))
        photographs = source.photos.pixels[index].float() / 127.5 - 1
        frames = F.interpolate(photographs, (HEIGHT, WIDTH), mode="bicubic", antialias=True).clamp(-1, 1)
    return features_of(vae, frames).half(), frames


def before_output(vae: AutoencoderKLTemporalDecoder, features: torch.Tensor) -> torch.Tensor:
    """Through the last resnet and norm: what the output convolution sees."""
    decoder = vae.decoder
    alone = torch.zeros(len(features), 1)  # each a clip of one frame
    h = decoder.up_blocks[-1].resnets[-1](features, image_only_indicator=alone)
    return decoder.conv_act(decoder.conv_norm_out(h))


def picture(vae: AutoencoderKLTemporalDecoder, features: torch.Tensor) -> torch.Tensor:
    """Frames [frames, 3, h, w] from the last resnet's input."""
    frames = vae.decoder.conv_out(before_output(vae, features))
    return vae.decoder.time_conv_out(frames[:, :, None])[:, :, 0]


@torch.no_grad()
def solve_output(vae: AutoencoderKLTemporalDecoder, held: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Set the output convolution to the least-squares best for crisp frames, and its temporal follower to identity."""
    squares, products = 0.0, 0.0
    for features, frames in held:
        seen = F.unfold(before_output(vae, features.float()), 3, padding=1).transpose(1, 2).flatten(0, 1)
        pick = torch.randperm(len(seen))[:6000]
        rows = torch.cat([seen[pick], torch.ones(len(pick), 1)], 1).double()
        wanted = crisp(frames).flatten(2).transpose(1, 2).flatten(0, 1)[pick].double()
        squares, products = squares + rows.T @ rows, products + rows.T @ wanted
    ridge = 1e-3 * squares.diagonal().mean() * torch.eye(len(squares), dtype=torch.float64)
    solved = torch.linalg.solve(squares + ridge, products).float()
    convolution, follower = vae.decoder.conv_out, vae.decoder.time_conv_out
    convolution.weight.copy_(solved[:-1].T.reshape_as(convolution.weight))
    convolution.bias.copy_(solved[-1])
    follower.weight.zero_()
    follower.bias.zero_()
    for channel in range(3):
        follower.weight[channel, channel, 1] = 1


@torch.no_grad()
def validate(vae: AutoencoderKLTemporalDecoder, stills: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """Means over held-out stills, as evaluate.py counts them."""
    rows = []
    for features, frames in stills:
        made, still = (
            ((v[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            for v in (picture(vae, features.float()), frames)
        )
        rows.append((psnr(made, still), chroma_error(made, still), sharpness(made) / max(1.0, sharpness(still))))
    means = torch.tensor(rows).mean(0)
    return {name: round(v.item(), 2) for name, v in zip(("psnr", "chroma", "sharpness"), means, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--limit", type=int, help="photographs to read, for a quick trial")
    args = parser.parse_args()
    vae = AutoencoderKLTemporalDecoder.from_pretrained(args.vae, torch_dtype=torch.float32).eval().requires_grad_(False)
    for layer in vae.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
    train, held_out = Photos.read(args.photos, "cpu", limit=args.limit).split()
    mover, watched = Mover(train, HEIGHT, WIDTH), Mover(held_out, HEIGHT, WIDTH)

    drop_neighbours(vae)
    torch.manual_seed(0)
    random.seed(0)
    stills = [draw(vae, watched, 1) for _ in range(10)]
    held = [draw(vae, mover, BATCH) for _ in range(24)]
    log = [{"step": 0, **validate(vae, stills)}]
    solve_output(vae, held)
    log.append({"step": 0, "solved": True, **validate(vae, stills)})
    print(json.dumps(log), flush=True)

    decoder = vae.decoder
    parts = (decoder.up_blocks[-1].resnets[-1], decoder.conv_norm_out, decoder.conv_out, decoder.time_conv_out)
    weights = [p.requires_grad_() for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0)
    started, step = time.monotonic(), 0
    while (progress := (time.monotonic() - started) / 60 / args.minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 50) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
        if step % STEPS_A_DRAW == 0:
            features, frames = draw(vae, mover, BATCH)
            if len(held) * BATCH < KEPT:
                held.append((features, frames))
            else:
                held[random.randrange(len(held))] = features, frames
        else:
            features, frames = random.choice(held)
        made = picture(vae, features.float())
        loss = 50 * (made - crisp(frames)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            log.append({"step": step, "minutes": round(progress * args.minutes, 1), **validate(vae, stills)})
            print(json.dumps(log[-1]), flush=True)
            vae.save_pretrained(args.out / "vae", safe_serialization=True)
    log.append({"step": step, **validate(vae, stills)})
    print(json.dumps(log[-1]), flush=True)
    vae.save_pretrained(args.out / "vae", safe_serialization=True)
    (args.out / "log.json").write_text(json.dumps(log, indent=1))


if __name__ == "__main__":
    main()

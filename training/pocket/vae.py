r"""Train the pocket VAE on moving photographs, on one GPU or several of a machine:

    torchrun --nproc-per-node 2 -m training.pocket.vae --photos training/data/photos.tar --out training/runs/vae \
        --minutes 9 --total-minutes 18

Its latents are to be easy to move: almost half of every batch is decoded from the latents of another frame, moved by
the true motion, so that a shift of the picture becomes a shift of the latents (equivariance regularisation, in the
spirit of EQ-VAE, Kouzelis et al. 2025). In the schedule's second half a discriminator asks for texture beside the
errors (Esser et al. 2021). Frames are decoded each by itself: of the decoder's temporal convolutions the middle tap
alone is trained, as a two-dimensional convolution, and the outer taps are zero.

A run is a schedule of `--total-minutes`; a piece of it ends after `--minutes` and the next one resumes from `--out`.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn

from training.common.parallel import Fleet
from training.pocket.discriminator import Discriminator, adversarial_loss, gradient_ratio, train_discriminator
from training.pocket.motion import Clips, Mover, Photos
from training.pocket.networks import HEIGHT, VAE_FACTOR, WIDTH, make_vae, parameters

LEARNING_RATE = 8e-4
DISCRIMINATOR_RATE = 3e-4
KL_WEIGHT = 1e-4
EMA = 0.999
NUM_FRAMES = 4  # of a clip, of which the first and the last are used
# Sizes of ten steps. Two channels to a norm group: a decoder that sees one size learns colours that hold at it alone.
SIZES = [(HEIGHT, WIDTH)] * 8 + [(WIDTH, HEIGHT), (224, 224)]


class MiddleTap(nn.Module):
    """The middle tap of a (3, 1, 1) convolution; x: [b, c, t, h, w]."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight[:, :, 1].clone()), conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, frames, height, width = x.shape
        y = F.conv2d(x.transpose(1, 2).reshape(-1, channels, height, width), self.weight, self.bias)
        return y.view(batch, frames, -1, height, width).transpose(1, 2)


def by_single_frames(vae: AutoencoderKLTemporalDecoder) -> AutoencoderKLTemporalDecoder:
    """Replace the decoder's temporal convolutions by their middle taps."""
    for module in list(vae.decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv3d):
                setattr(module, name, MiddleTap(child))
    return vae


def full_state(vae: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of `by_single_frames(vae)` as diffusers' class has it."""
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


def decode_features(decoder: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Return what the decoder's last convolution is given, for latents [n, c, h/4, w/4]."""
    indicator = latents.new_zeros(len(latents), 1)
    hidden_states = decoder.mid_block(decoder.conv_in(latents), image_only_indicator=indicator)
    for block in decoder.up_blocks:
        hidden_states = block(hidden_states, image_only_indicator=indicator)
    return decoder.conv_act(decoder.conv_norm_out(hidden_states))


def decode_output(decoder: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Return frames [n, 3, h, w] in float32."""
    return decoder.time_conv_out(decoder.conv_out(features)[:, :, None])[:, :, 0].float()


def move(latents: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(latents, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def grid_of(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sampling grid [b, h/4, w/4, 2] of positions [b, 2, h/4, w/4], and where it is inside, [b, 1, h, w]."""
    half = positions.new_tensor([positions.shape[-1], positions.shape[-2]]).view(1, 2, 1, 1) * VAE_FACTOR / 2
    grid = (positions / half).permute(0, 2, 3, 1)
    inside = (grid.abs().amax(-1) <= 1).float()[:, None]
    return grid, F.interpolate(inside, scale_factor=VAE_FACTOR)


class Autoencoder(nn.Module):
    """Encodes frames, moves the latents of the last ones by `grid`, and decodes up to the last convolution."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, frames: torch.Tensor, grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features [n, 64, h, w] and the KL divergence."""
        with torch.autocast(frames.device.type, torch.bfloat16):
            mean, log_variance = encode(self.vae, frames)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            z = torch.cat([z[: -len(grid)], move(z[-len(grid) :], grid)])
            features = decode_features(self.vae.decoder, z)
        return features, 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def error_of(error: torch.Tensor) -> torch.Tensor:
    """Squared and absolute errors, and those of the gradients at three scales."""
    loss = error.abs().mean() + 4 * error.square().mean()
    for scale in (1, 2, 4):
        e = F.avg_pool2d(error, scale) if scale > 1 else error
        loss = loss + 0.4 * ((e[..., 1:, :] - e[..., :-1, :]).abs().mean() + (e[..., 1:] - e[..., :-1]).abs().mean())
    return loss


def whole_photographs(photos: Photos, count: int, size: tuple[int, int], *, first: bool = False) -> torch.Tensor:
    """Photographs brought down to `size`, [count, 3, h, w] in −1…1: the first ones, or any, half of them mirrored."""
    device = photos.pixels.device
    chosen = torch.arange(count, device=device) if first else torch.randint(len(photos.pixels), (count,), device=device)
    height, width = size
    room = photos.pixels.shape[-2] * width // height
    pixels = photos.pixels[chosen].float() / 127.5 - 1
    if room < pixels.shape[-1]:
        left = (pixels.shape[-1] - room) // 2
        pixels = pixels[..., left : left + room]
    if not first:
        pixels[::2] = pixels[::2].flip(-1)
    return F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)


def luminance_laplacian(x: torch.Tensor) -> torch.Tensor:
    """[n, 3, h, w] → [n, 1, h−2, w−2]."""
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(x.mean(1, keepdim=True), kernel)


def psnr(made: torch.Tensor, frames: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
    """PSNR in dB, [n], of frames [n, 3, h, w] in −1…1, where `inside` [n, 1, h, w] is 1."""
    error = ((made - frames) / 2).square()
    if inside is None:
        return -10 * error.mean((1, 2, 3)).log10()
    return -10 * ((error * inside).sum((1, 2, 3)) / 3 / inside.sum((1, 2, 3))).log10()


@torch.no_grad()
def validate(vae: nn.Module, images: torch.Tensor, clips: Clips) -> dict[str, float]:
    """Judge reconstructions of held-out photographs, and the last frames of clips decoded from moved latents."""

    def decode(latents: torch.Tensor) -> torch.Tensor:
        parts = [decode_output(vae.decoder, decode_features(vae.decoder, part)) for part in latents.split(16)]
        return torch.cat(parts).clamp(-1, 1)

    with torch.autocast(images.device.type, torch.bfloat16):
        latents = encode(vae, images)[0]
        made = decode(latents)
        grid, inside = grid_of(clips.positions[:, -1])
        moved = decode(move(encode(vae, clips.frames[:, 0])[0], grid))
    sharp = [luminance_laplacian(v).var((1, 2, 3)) for v in (made, images)]
    chroma = [v - v.mean(1, keepdim=True) for v in (made, images)]
    scores = psnr(made, images)
    return {
        "psnr": scores.mean().item(),
        "psnr_worst": scores.min().item(),
        "psnr_moved": psnr(moved, clips.frames[:, -1], inside).mean().item(),
        "sharpness": (sharp[0] / sharp[1]).mean().item(),
        "chroma": (chroma[0] - chroma[1]).abs().mean().item() * 127.5,
        "scaling_factor": 1 / latents.std().item(),
    }


def draw(
    mover: Mover, size: tuple[int, int], *, plain: int, photographs: int, moved: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the frames to encode, the grid by which the last ones move, what is to come out, and where it is known."""
    clips = mover.draw(plain + moved, NUM_FRAMES)
    still = torch.cat([clips.frames[:plain, -1], whole_photographs(mover.photos, photographs, size)])
    grid, inside = grid_of(clips.positions[plain:, -1])
    frames = torch.cat([still, clips.frames[plain:, 0]]).contiguous(memory_format=torch.channels_last)
    return (
        frames,
        grid,
        torch.cat([still, clips.frames[plain:, -1]]),
        torch.cat([torch.ones_like(still[:, :1]), inside]),
    )


class Training:
    """VAE, its moving average, discriminator and their optimizers, from where the last piece in `args.out` ended."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(0)
        vae = make_vae()
        if args.begin_from:
            vae = type(vae).from_pretrained(args.begin_from, torch_dtype=torch.float32)
        self.vae = by_single_frames(vae).to(args.device, memory_format=torch.channels_last).train()
        self.ema = copy.deepcopy(self.vae).requires_grad_(False)
        self.discriminator = Discriminator().to(args.device, memory_format=torch.channels_last)
        fused = args.device == "cuda"
        self.weights = list(self.vae.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0, fused=fused)
        self.adversary = torch.optim.AdamW(
            self.discriminator.parameters(), DISCRIMINATOR_RATE, betas=(0.5, 0.9), weight_decay=0, fused=fused
        )
        self.step, self.spent, self.log = 0, args.spent, []
        if (args.out / "state.pt").exists():
            state = torch.load(args.out / "state.pt", map_location=args.device, weights_only=True)
            for name in ("vae", "ema", "discriminator", "optimizer", "adversary"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.spent, self.log = state["step"], state["spent"], state["log"]

    def update(self, model: nn.Module, fleet: Fleet, batch: tuple[torch.Tensor, ...], *, adversarial: bool) -> float:
        """Take one step, and return the loss of the errors."""
        frames, grid, target, inside = batch
        features, kl = model(frames, grid)
        decoder = self.vae.decoder
        kept = features.detach().requires_grad_()  # everything beyond it is cheap to differentiate several times
        with torch.autocast(frames.device.type, torch.bfloat16):
            made = decode_output(decoder, kept)
        made = made * inside + target * (1 - inside)
        error = error_of(made - target)
        loss = error
        if adversarial:
            against, distance = adversarial_loss(self.discriminator, made, target)
            loss = loss + self.args.features * distance
            loss = loss + self.args.texture * gradient_ratio(loss, against, decoder.conv_out.weight) * against
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.autograd.backward([features, kl], [kept.grad, kl.new_tensor(KL_WEIGHT)])
        fleet.average_gradients(self.weights)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        if adversarial:
            train_discriminator(self.discriminator, self.adversary, made.detach(), target)
            if fleet.world > 1:
                for weight in self.discriminator.parameters():
                    fleet.average(weight.data)
        self.step += 1
        with torch.no_grad():
            keep = min(EMA, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(list(self.ema.parameters()), self.weights, 1 - keep)
        return error.detach()

    def save(self, found: dict[str, float]) -> None:
        """Write the averaged weights with the scale of their latents, the raw ones, and what the next piece resumes."""
        out = self.args.out
        for folder, module in (("vae", self.ema), ("vae-raw", self.vae)):
            whole = make_vae()
            whole.load_state_dict(full_state(module))
            whole.register_to_config(scaling_factor=found["scaling_factor"])
            whole.save_pretrained(out / folder)
        names = ("vae", "ema", "discriminator", "optimizer", "adversary")
        state = {name: getattr(self, name).state_dict() for name in names}
        torch.save(state | {"step": self.step, "spent": self.spent, "log": self.log}, out / "state.pt")
        (out / "log.json").write_text(json.dumps(self.log, indent=1) + "\n")


def train(args: argparse.Namespace) -> None:
    total = args.total_minutes or args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    fleet = Fleet.join(args.device)
    photos, held_out = Photos.read(args.photos, args.device, limit=args.limit).split()
    movers = {size: Mover(photos, *size) for size in dict.fromkeys(SIZES)}
    torch.manual_seed(1)
    images = whole_photographs(held_out, len(held_out.pixels), (HEIGHT, WIDTH), first=True)
    clips = Mover(held_out, HEIGHT, WIDTH).draw(2 if args.limit else 32, NUM_FRAMES)
    training = Training(args)
    model = Autoencoder(training.vae)
    compiled = torch.compile(model, dynamic=False) if args.device == "cuda" else model
    fleet.say(f"{len(photos.pixels)} photographs, {parameters(training.vae) / 1e6:.2f} M, from step {training.step}")
    fleet.begin()
    first, begun, elapsed = training.step, training.spent, 0.0
    while elapsed < args.minutes and not (args.steps and training.step - first >= args.steps):
        progress = min(1.0, (begun + elapsed) / total)
        rate = min(1, (training.step - first + 1) / 150) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in training.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        size = SIZES[training.step % len(SIZES)]
        with torch.no_grad():
            batch = draw(movers[size], size, plain=args.plain, photographs=args.photographs, moved=args.moved)
        # Only the pocket's own size is worth compiling for.
        chosen = compiled if size == SIZES[0] else model
        loss = training.update(chosen, fleet, batch, adversarial=progress >= args.errors_share)
        if training.step % 10 == 0 or args.device == "cpu":
            elapsed = fleet.minutes()
        if training.step % 500 == 0 and fleet.rank == 0:
            found = validate(training.ema, images, clips)
            training.log.append({"step": training.step, "minutes": begun + elapsed, "loss": loss.item()} | found)
            fleet.say(json.dumps({name: round(value, 3) for name, value in training.log[-1].items()}))
    training.spent = begun + elapsed
    if fleet.rank == 0:
        found = validate(training.ema, images, clips)
        training.log.append({"step": training.step, "minutes": training.spent} | found)
        training.save(found)
        fleet.say(json.dumps({name: round(value, 3) for name, value in training.log[-1].items()}))
        fleet.say(f"{elapsed * 60 / max(1, training.step - first):.3f} s a step")
    fleet.leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--total-minutes", type=float)
    parser.add_argument("--begin-from", type=Path, help="folder of a trained VAE")
    parser.add_argument("--spent", type=float, default=0.0, help="minutes of the schedule already behind --begin-from")
    parser.add_argument("--plain", type=int, default=14, help="frames of clips a GPU and step")
    parser.add_argument("--photographs", type=int, default=4, help="whole photographs a GPU and step")
    parser.add_argument("--moved", type=int, default=14, help="frames decoded from moved latents a GPU and step")
    parser.add_argument("--errors-share", type=float, default=0.5, help="share of it before the discriminator")
    parser.add_argument("--texture", type=float, default=0.4, help="the discriminator's pull over that of the errors")
    parser.add_argument("--features", type=float, default=0.5, help="weight of the distance of its features")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="photographs to read, for a quick trial")
    parser.add_argument("--steps", type=int, help="steps at most, for a quick trial")
    train(parser.parse_args())


if __name__ == "__main__":
    main()

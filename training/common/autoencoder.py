"""Training of a VAE with a discriminator on its decoder, and metrics of the images it reconstructs."""

import argparse
import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from training.common.discriminator import Discriminator, adversarial_loss, gradient_ratio, train_discriminator
from training.common.parallel import ProcessGroup

DISCRIMINATOR_RATE = 3e-4
EMA_DECAY = 0.999


def reconstruction_loss(error: torch.Tensor) -> torch.Tensor:
    """Return L1 plus L2 loss, plus L1 loss of the image gradients at three scales, of an error [n, 3, h, w]."""
    loss = error.abs().mean() + 4 * error.square().mean()
    for scale in (1, 2, 4):
        e = F.avg_pool2d(error, scale) if scale > 1 else error
        loss = loss + 0.4 * ((e[..., 1:, :] - e[..., :-1, :]).abs().mean() + (e[..., 1:] - e[..., :-1]).abs().mean())
    return loss


def texture_energies(x: torch.Tensor) -> torch.Tensor:
    """Return the texture energies after Laws (1980), [n, 8, h/8, w/8], of the luminance of frames [n, 3, h, w].

    A channel is the root mean square over 8 × 8 pixels of the response to a 3 × 3 mask, the product of two of level
    [1 2 1], edge [1 0 −1] and spot [1 −2 1] along y and x, without level · level. The last five respond to periods of
    two to three pixels.
    """
    level, edge, spot = (x.new_tensor(taps) for taps in ((0.25, 0.5, 0.25), (0.5, 0, -0.5), (0.25, -0.5, 0.25)))
    pairs = [(level, edge), (edge, level), (edge, edge)]
    pairs += [(level, spot), (spot, level), (edge, spot), (spot, edge), (spot, spot)]
    masks = torch.stack([torch.outer(y, x) for y, x in pairs])[:, None]
    response = F.conv2d(F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="reflect"), masks)
    return (F.avg_pool2d(response.square(), 8) + 1e-6).sqrt()


def luminance_laplacian(x: torch.Tensor) -> torch.Tensor:
    """Return the Laplacian of the luminance, [n, 1, h−2, w−2], of frames [n, 3, h, w]."""
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(x.mean(1, keepdim=True), kernel)


def psnr(decoded: torch.Tensor, frames: torch.Tensor, inside: torch.Tensor | None = None) -> torch.Tensor:
    """Return the PSNR in dB, [n], of frames [n, 3, h, w] in −1…1, over the pixels where `inside` [n, 1, h, w] is 1."""
    error = ((decoded - frames) / 2).square()
    if inside is None:
        return -10 * error.mean((1, 2, 3)).log10()
    return -10 * ((error * inside).sum((1, 2, 3)) / 3 / inside.sum((1, 2, 3))).log10()


def image_metrics(decoded: torch.Tensor, images: torch.Tensor) -> dict[str, float]:
    """Return PSNR in dB, mean and worst, relative sharpness, and chroma error in 1/255, of images [n, 3, h, w]."""
    sharp = [luminance_laplacian(v).var((1, 2, 3)) for v in (decoded, images)]
    chroma = [v - v.mean(1, keepdim=True) for v in (decoded, images)]
    scores = psnr(decoded, images)
    return {
        "psnr": scores.mean().item(),
        "psnr_worst": scores.min().item(),
        "sharpness": (sharp[0] / sharp[1]).mean().item(),
        "chroma": (chroma[0] - chroma[1]).abs().mean().item() * 127.5,
    }


class AutoencoderTraining:
    """VAE, moving average, discriminator and optimizers; resumes from `args.out`/state.pt if it exists.

    Args:
        args: Values of `add_training_arguments`.
        vae: A VAE of diffusers; only the weights that require gradients are trained.
        rate: Maximum learning rate.
        decode_output: Returns images, float32 [n, 3, h, w], for the decoder and the input of its last convolution.
        full_state: Returns the state dict of `vae` in diffusers' format.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        vae: nn.Module,
        rate: float,
        *,
        decode_output: Callable[[nn.Module, torch.Tensor], torch.Tensor],
        full_state: Callable[[nn.Module], dict[str, torch.Tensor]] = nn.Module.state_dict,
    ) -> None:
        self.args, self.rate, self.decode_output, self.full_state = args, rate, decode_output, full_state
        self.vae = vae.to(args.device, memory_format=torch.channels_last).train()
        self.ema = copy.deepcopy(self.vae).requires_grad_(False)
        self.discriminator = Discriminator().to(args.device, memory_format=torch.channels_last)
        fused = args.device == "cuda"
        self.weights = [weight for weight in self.vae.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, rate, betas=(0.9, 0.95), weight_decay=0, fused=fused)
        self.adversary = torch.optim.AdamW(
            self.discriminator.parameters(), DISCRIMINATOR_RATE, betas=(0.5, 0.9), weight_decay=0, fused=fused
        )
        self.step, self.spent, self.log = 0, args.spent, []
        if (args.out / "state.pt").exists():
            state = torch.load(args.out / "state.pt", map_location=args.device, weights_only=True)
            for name in ("vae", "ema", "discriminator", "optimizer", "adversary"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.spent, self.log = state["step"], state["spent"], state["log"]

    def update(
        self, model: nn.Module, processes: ProcessGroup, batch: tuple[torch.Tensor, ...], *, adversarial: bool
    ) -> torch.Tensor:
        """Take one optimizer step and return the reconstruction loss.

        `model` returns the decoder's features and a further loss for the first tensors of `batch`; the last two are the
        frames to decode, and where they count.
        """
        *inputs, target, inside = batch
        features, further = model(*inputs)
        decoder = self.vae.decoder
        # The layers after the features are cheap, so several backward passes through them cost little.
        leaf = features.detach().requires_grad_()
        with torch.autocast(target.device.type, torch.bfloat16):
            decoded = self.decode_output(decoder, leaf)
        decoded = decoded * inside + target * (1 - inside)
        error = reconstruction_loss(decoded - target)
        loss = error
        if self.args.energy:
            energies, target_energies = texture_energies(decoded), texture_energies(target)
            loss = loss + self.args.energy * (energies - target_energies).abs().mean()
        if adversarial:
            texture, distance = adversarial_loss(self.discriminator, decoded, target)
            loss = loss + self.args.features * distance
            loss = loss + self.args.texture * gradient_ratio(loss, texture, decoder.conv_out.weight) * texture
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.autograd.backward([features, further], [leaf.grad, torch.ones_like(further)])
        processes.average_gradients(self.weights)
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        if adversarial:
            train_discriminator(self.discriminator, self.adversary, decoded.detach(), target)
            if processes.world > 1:
                for weight in self.discriminator.parameters():
                    processes.average(weight.data)
        self.step += 1
        with torch.no_grad():
            decay = min(EMA_DECAY, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.vae.parameters()), 1 - decay)
        return error.detach()

    def save(self, scaling_factor: float) -> None:
        """Write the averaged and the raw weights with their scaling factor, the log, and state.pt for the next run."""
        out = self.args.out
        for folder, module in (("vae", self.ema), ("vae-raw", self.vae)):
            saved = type(module).from_config(module.config)
            saved.load_state_dict(self.full_state(module))
            saved.register_to_config(scaling_factor=scaling_factor)
            saved.save_pretrained(out / folder)
        names = ("vae", "ema", "discriminator", "optimizer", "adversary")
        state = {name: getattr(self, name).state_dict() for name in names}
        torch.save(state | {"step": self.step, "spent": self.spent, "log": self.log}, out / "state.pt")
        (out / "log.json").write_text(json.dumps(self.log, indent=1) + "\n")

    def run(
        self,
        processes: ProcessGroup,
        model: nn.Module,
        draw: Callable[[tuple[int, int]], tuple[torch.Tensor, ...]],
        validate: Callable[[], dict[str, float]],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, float]:
        """Train for `args.minutes`, validating every 500 steps; return the last metrics.

        Args:
            processes: All processes of the training.
            model: See `update`.
            draw: Returns a batch for a size, height and width; see `update`.
            validate: Returns metrics of the averaged weights.
            sizes: Heights and widths of consecutive steps, repeated; the first one is the most frequent.
        """
        args = self.args
        total = args.total_minutes or args.minutes
        compiled = torch.compile(model, dynamic=False) if args.device == "cuda" else model
        processes.start()
        first, spent_before, elapsed = self.step, self.spent, 0.0
        while elapsed < args.minutes and not (args.steps and self.step - first >= args.steps):
            progress = min(1.0, (spent_before + elapsed) / total)
            factor = min(1, (self.step - first + 1) / 150) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * factor
            size = sizes[self.step % len(sizes)]
            with torch.no_grad():
                batch = draw(size)
            # Compiling pays off only for the most frequent size.
            forward = compiled if size == sizes[0] else model
            loss = self.update(forward, processes, batch, adversarial=progress >= args.errors_share)
            if self.step % 10 == 0 or args.device == "cpu":
                elapsed = processes.elapsed_minutes()
            if self.step % 500 == 0 and processes.rank == 0:
                self._note(processes, spent_before + elapsed, {"loss": loss.item()} | validate())
        self.spent = spent_before + elapsed
        metrics = validate() if processes.rank == 0 else {}
        self._note(processes, self.spent, metrics)
        processes.print(f"{elapsed * 60 / max(1, self.step - first):.3f} s per step")
        return metrics

    def _note(self, processes: ProcessGroup, minutes: float, metrics: dict[str, float]) -> None:
        self.log.append({"step": self.step, "minutes": minutes} | metrics)
        processes.print(json.dumps({name: round(value, 3) for name, value in self.log[-1].items()}))


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all trainings of a VAE share."""
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, log and state")
    parser.add_argument("--minutes", type=float, default=9, help="minutes to train in this run")
    parser.add_argument("--total-minutes", type=float, help="length of the schedule (default: --minutes)")
    parser.add_argument(
        "--spent", type=float, default=0.0, help="minutes of the schedule that these weights were already trained for"
    )
    parser.add_argument(
        "--errors-share", type=float, default=0.5, help="share of the schedule before the discriminator is added"
    )
    parser.add_argument(
        "--texture", type=float, default=0.4, help="weight of the adversarial loss relative to the errors"
    )
    parser.add_argument(
        "--features", type=float, default=0.5, help="weight of the distance of the discriminator's features"
    )
    parser.add_argument(
        "--energy", type=float, default=0.0, help="weight of the error of texture energies, against a fine mesh"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, help="maximum number of steps, for a quick trial")

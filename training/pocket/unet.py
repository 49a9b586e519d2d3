r"""Train the pocket UNet and image encoder on synthesised clips, on one or more GPUs of a machine:

    torchrun --nproc-per-node 2 -m training.pocket.unet --photos training/data/photos.tar \
        --vae training/runs/vae/vae --out training/runs/unet --minutes 9 --total-minutes 30

The preconditioning is EDM's (Karras et al. 2022) in the form that SVD's scheduler expects: v-prediction, time
0.25·ln σ, loss weight (σ²+1)/σ². Conditions are those of SVD (Blattmann et al. 2023): the latents of the image
with noise added, its CLIP embedding, and the ids fps − 1, motion bucket and noise strength.

The latents of a frame are those of the unmoved image and the position that each of them moves to (`compose_latents`):
the UNet copies the image in place and generates motion, and the decoder moves the image.

The learning rate schedule lasts `--total-minutes`. A run ends after `--minutes`; the next run with the same `--out`
resumes.
"""

import argparse
import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.common.parallel import ProcessGroup
from training.pocket.denoising import Encoder, added_time_ids, denoise, draw_noise_aug, embed
from training.pocket.motion import FASTEST, Clips, Mover, Photos
from training.pocket.networks import (
    HEIGHT,
    IMAGE_CHANNELS,
    NUM_FRAMES,
    VAE_FACTOR,
    WIDTH,
    count_parameters,
    make_image_encoder,
    make_unet,
)
from training.pocket.transport import latent_errors, slow_clips
from training.pocket.vae import SIZES

LEARNING_RATE = 7e-4
SIGMA_MEAN, SIGMA_STD = 1.0, 1.6  # of ln σ; motion is determined at high σ, where little of a clip is visible
DRAWS = 2  # noise levels drawn per clip, since encoding a clip takes as long as a training step on it
IMAGE_DROPOUT = 0.1
INITIAL_FASTEST = 0.5  # maximum flow at the start of the schedule, pixels per frame
POSITION_WEIGHT = 1.0
MAX_POSITION_WEIGHT = 25.0  # of (σ²+1)/σ²: at low σ the positions are smooth enough


class Loss:
    """The denoising loss at DRAWS noise levels per clip."""

    def __init__(self, unet: Callable[..., Any], encoder: torch.nn.Module) -> None:
        self.unet, self.encoder = unet, encoder

    def __call__(
        self, latents: torch.Tensor, condition: torch.Tensor, clips: Clips, noise_aug: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss for latents [batch, frames, c, h, w] and condition [batch, c, h, w]."""
        z, condition = latents.repeat(DRAWS, 1, 1, 1, 1), condition.repeat(DRAWS, 1, 1, 1)
        batch, device = len(z), z.device
        # Stratified over the batch, which is less noisy than independent draws.
        u = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
        normal = torch.erfinv((2 * u - 1).clamp(-0.9999, 0.9999)) * math.sqrt(2)
        sigma = torch.exp(normal * SIGMA_STD + SIGMA_MEAN).clamp(0.01, 300).view(-1, 1, 1, 1, 1)
        # Drop both conditions together for guidance, and in 2% of the draws only the embedding.
        drop = torch.rand(batch, device=device)
        keep_image = (drop > IMAGE_DROPOUT).float().view(-1, 1, 1, 1)
        keep_embedding = ((drop > IMAGE_DROPOUT) & (drop < 0.98)).float().view(-1, 1, 1)
        ids = added_time_ids(clips, noise_aug).repeat(DRAWS, 1)
        noisy = z + sigma * torch.randn_like(z)
        embedding = embed(self.encoder, clips.frames[:, 0]).repeat(DRAWS, 1, 1) * keep_embedding
        denoised = denoise(self.unet, noisy, sigma, condition * keep_image, embedding, ids)
        error, weight = (denoised - z) ** 2, (sigma**2 + 1) / sigma**2
        position_error = error[:, :, IMAGE_CHANNELS:] * weight.clamp(max=MAX_POSITION_WEIGHT)
        return (error[:, :, :IMAGE_CHANNELS] * weight).mean() + POSITION_WEIGHT * position_error.mean()


@dataclass(frozen=True)
class Recording:
    """A CUDA graph with its inputs and its output."""

    graph: torch.cuda.CUDAGraph
    clips: Clips
    noise_aug: torch.Tensor
    loss: torch.Tensor


class Gradients:
    """Encodes a batch of clips and writes the gradients of their loss to `flat`; on CUDA in a graph per size of clips.

    A step launches thousands of small kernels; without a graph, launching them takes longer than running them. `loss`
    is called with (latents, condition, clips, noise_aug).
    """

    def __init__(
        self, encoder: Encoder, weights: list[torch.nn.Parameter], loss: Callable[..., torch.Tensor], device: str
    ) -> None:
        self.encoder, self.loss, self.device = encoder, loss, device
        self.flat = torch.zeros(sum(p.numel() for p in weights), device=device)
        for p, part in zip(weights, self.flat.split([p.numel() for p in weights]), strict=True):
            p.grad = part.view_as(p)
        self._recordings: dict[torch.Size, Recording] = {}

    def __call__(self, clips: Clips, noise_aug: torch.Tensor) -> torch.Tensor:
        """Compute the gradients and return the loss."""
        if self.device != "cuda":
            return self._compute(clips, noise_aug)
        if clips.frames.shape not in self._recordings:
            self.record(clips, noise_aug)
        recording = self._recordings[clips.frames.shape]
        static = (*vars(recording.clips).values(), recording.noise_aug)
        for target, value in zip(static, (*vars(clips).values(), noise_aug), strict=True):
            target.copy_(value)
        recording.graph.replay()
        return recording.loss.clone()

    def record(self, clips: Clips, noise_aug: torch.Tensor) -> None:
        """Record the graph for batches shaped like this one."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._compute(clips, noise_aug)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._compute(clips, noise_aug)
        self._recordings[clips.frames.shape] = Recording(graph, clips, noise_aug, loss)

    def _compute(self, clips: Clips, noise_aug: torch.Tensor) -> torch.Tensor:
        self.flat.zero_()
        latents, condition = self.encoder(clips, noise_aug)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.loss(latents, condition, clips, noise_aug)
        loss.backward()
        return loss.detach()


class Training:
    """Modules in training, their moving average and optimizer; resumes from `args.out`/state.pt if it exists."""

    def __init__(
        self,
        args: argparse.Namespace,
        processes: ProcessGroup,
        modules: torch.nn.ModuleDict,
        *,
        rate: float,
        weight_decay: float,
        ema_decay: float,
    ) -> None:
        self.args, self.processes, self.rate, self.ema_decay = args, processes, rate, ema_decay
        self.modules = modules.train()
        self.ema = copy.deepcopy(modules).requires_grad_(False).eval()
        self.weights = list(modules.parameters())
        fused = args.device == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.weights, rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=fused
        )
        self.step, self.spent, self.log = 0, 0.0, []
        if (args.out / "state.pt").exists():
            state = torch.load(args.out / "state.pt", map_location=args.device, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent, self.log = state["step"], state["spent"], state["log"]

    def run(self, gradients: Gradients, draw: Callable[[float, int], Clips]) -> None:
        """Train for `args.minutes` on clips from `draw(progress, step)`; progress in the schedule is from 0 to 1."""
        args, processes = self.args, self.processes
        total = args.total_minutes or args.minutes
        first, recent, elapsed = self.step, [], 0.0
        while elapsed < args.minutes and not (args.steps and self.step - first >= args.steps):
            progress = min(1, (self.spent + elapsed) / total)
            warm_up = min(1, (self.step - first + 1) / 200)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * warm_up * max(0.005, 0.5 * (1 + math.cos(math.pi * progress)))
            recent.append(gradients(draw(progress, self.step), draw_noise_aug(args.clips, args.device)))
            processes.average(gradients.flat)
            gradients.flat.mul_((1.0 / gradients.flat.norm()).clamp(max=1.0))
            self.optimizer.step()
            self.step += 1
            with torch.no_grad():
                decay = min(self.ema_decay, (self.step + 1) / (self.step + 10))
                torch._foreach_lerp_(list(self.ema.parameters()), self.weights, 1 - decay)
            if self.step % 10 == 0 or args.device == "cpu":  # reading the clock synchronises with the GPU
                elapsed = processes.elapsed_minutes()
            if self.step % 200 == 0 or self.step - first == 10:
                loss = torch.stack(recent).mean().item()
                self.log.append({"step": self.step, "minutes": round(self.spent + elapsed, 2), "loss": loss})
                recent = []
                processes.print(json.dumps(self.log[-1]))
            if self.step % 500 == 0:
                self.export()
        self.spent += elapsed
        self.export()
        if processes.rank == 0:
            state = {"modules": self.modules.state_dict(), "ema": self.ema.state_dict()}
            state |= {"optimizer": self.optimizer.state_dict(), "step": self.step, "spent": self.spent, "log": self.log}
            torch.save(state, args.out / "state.pt")
        processes.print(f"step {self.step}, {elapsed * 60 / max(1, self.step - first):.3f} s per step")

    def export(self) -> None:
        """Write the averaged weights with `save_pretrained`, and the log."""
        if self.processes.rank == 0:
            for name, module in self.ema.items():
                if hasattr(module, "save_pretrained"):  # not what only training uses
                    module.save_pretrained(self.args.out / name)
            (self.args.out / "log.json").write_text(json.dumps(self.log, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="photos.tar, written by collect.py")
    parser.add_argument("--vae", type=Path, required=True, help="folder with the trained VAE")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, log and state")
    parser.add_argument(
        "--begin-from", type=Path, help="folder with unet/ and image_encoder/ to start a new schedule from"
    )
    parser.add_argument("--minutes", type=float, default=9, help="minutes to train in this run")
    parser.add_argument("--total-minutes", type=float, help="length of the schedule (default: --minutes)")
    parser.add_argument(
        "--spent", type=float, default=0.0, help="minutes of the schedule that --begin-from was already trained for"
    )
    parser.add_argument("--clips", type=int, default=8, help="clips per GPU and step")
    parser.add_argument(
        "--fastest", type=float, default=FASTEST, help="maximum mean flow of the clips, pixels per frame"
    )
    parser.add_argument(
        "--landscape", type=int, default=8, help="steps at 288×160 for each step at 160×288 and at 224×224"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the UNet; takes minutes, then steps are faster")
    parser.add_argument("--judged", type=int, default=24, help="number of held-out clips to measure at the end")
    parser.add_argument("--limit", type=int, help="number of photographs to read, for a quick trial")
    parser.add_argument("--steps", type=int, help="maximum number of steps, for a quick trial")
    args = parser.parse_args()
    processes = ProcessGroup.join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    encoder = Encoder(args.vae, args.device)
    unet, image_encoder = make_unet().to(args.device), make_image_encoder().to(args.device)
    if args.begin_from:
        unet = type(unet).from_pretrained(args.begin_from / "unet", torch_dtype=torch.float32).to(args.device)
        image_encoder = type(image_encoder).from_pretrained(args.begin_from / "image_encoder", dtype=torch.float32)
        image_encoder.to(args.device)
    photos, held_out = Photos.read(args.photos, args.device, limit=args.limit).split()
    sizes = list(dict.fromkeys(SIZES))
    movers = {size: Mover(photos, *size) for size in sizes}
    order = sizes[:1] * args.landscape + sizes[1:]
    modules = torch.nn.ModuleDict({"unet": unet, "image_encoder": image_encoder})
    training = Training(args, processes, modules, rate=LEARNING_RATE, weight_decay=0.01, ema_decay=0.9993)
    training.spent = training.spent or args.spent
    compiled = torch.compile(unet, dynamic=False) if args.compile else unet

    def forward(sample: torch.Tensor, *inputs: torch.Tensor, **options: Any) -> Any:
        """Use the compiled UNet for the most frequent size only, since compiling takes minutes per size."""
        is_frequent = sample.shape[-2:] == (HEIGHT // VAE_FACTOR, WIDTH // VAE_FACTOR)
        return (compiled if is_frequent else unet)(sample, *inputs, **options)

    def draw(progress: float, step: int) -> Clips:
        # The maximum flow grows over the first half of the schedule.
        fastest = INITIAL_FASTEST + (args.fastest - INITIAL_FASTEST) * min(1, 2 * progress)
        return movers[order[step % len(order)]].draw(args.clips, NUM_FRAMES, fastest, rendered=(0,))

    processes.print(
        f"{len(photos.pixels)} photographs, UNet {count_parameters(unet) / 1e6:.2f} M parameters, "
        f"{processes.world} processes, starting at step {training.step}"
    )
    processes.start()
    training.run(Gradients(encoder, training.weights, Loss(forward, image_encoder), args.device), draw)
    if processes.rank == 0:
        figures = {}
        for height, width in sizes:
            clips = slow_clips(Mover(held_out, height, width), args.judged)
            errors = latent_errors(training.ema["unet"], training.ema["image_encoder"], encoder, clips)
            figures[f"{width}×{height}"] = errors
        (args.out / "latent_errors.json").write_text(json.dumps(figures, indent=1) + "\n")
        processes.print(json.dumps(figures))
    processes.leave()


if __name__ == "__main__":
    main()

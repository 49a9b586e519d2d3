r"""Train the pocket UNet and image encoder on moving photographs, on one GPU or several of a machine:

    torchrun --nproc-per-node 4 training/unet.py --photos training/data/photos.tar \
        --vae training/runs/vae/vae --out training/runs/unet --minutes 9

The preconditioning is EDM's (Karras et al. 2022) in the form that SVD's scheduler expects: v-prediction, time
0.25·ln σ, loss weight (σ²+1)/σ². Conditions are those of SVD (Blattmann et al. 2023): the latents of the still
with noise added, its CLIP embedding, and the ids fps − 1, motion bucket and noise strength.

A run is a schedule of `--total-minutes`; a piece of it ends after `--minutes` and the next one resumes from `--out`.
"""

import argparse
import copy
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLTemporalDecoder

from motion import Clips, Mover, Photos
from parallel import Fleet
from shapes import HEIGHT, IMAGE_MEAN, IMAGE_STD, NUM_FRAMES, WIDTH, make_image_encoder, make_unet, parameters

LEARNING_RATE = 7e-4
SIGMA_MEAN, SIGMA_STD = 0.7, 1.6  # of ln σ: where a clip of many like frames is nearly lost, its motion is decided
DRAWS = 2  # noise levels for each clip: encoding a clip costs as much as a step on it


def embed(encoder: torch.nn.Module, stills: torch.Tensor) -> torch.Tensor:
    """CLIP embeddings [batch, 1, 64] of stills [batch, 3, h, w] in −1…1."""
    pixels = F.interpolate((stills + 1) / 2, (224, 224), mode="bicubic", antialias=True)
    channels = [(pixels[:, i] - IMAGE_MEAN[i]) / IMAGE_STD[i] for i in range(3)]
    return encoder(pixel_values=torch.stack(channels, 1)).image_embeds[:, None]


def loss_of(
    unet: torch.nn.Module,
    encoder: torch.nn.Module,
    latents: torch.Tensor,
    condition: torch.Tensor,
    clips: Clips,
    noise_aug: torch.Tensor,
) -> torch.Tensor:
    """Denoising loss at DRAWS levels a clip; latents [batch, frames, c, h, w], condition [batch, c, h, w]."""
    z, condition = latents.repeat(DRAWS, 1, 1, 1, 1), condition.repeat(DRAWS, 1, 1, 1)
    batch, device = len(z), z.device
    sigma = torch.exp(torch.randn(batch, device=device) * SIGMA_STD + SIGMA_MEAN).clamp(0.01, 200).view(-1, 1, 1, 1, 1)
    # Both conditions are dropped together for guidance, and each alone now and then.
    drop = torch.rand(batch, device=device)
    keep_still = (drop > 0.10).float().view(-1, 1, 1, 1)
    keep_embedding = ((drop > 0.08) & (drop < 0.98)).float().view(-1, 1, 1)
    ids = torch.stack([clips.fps - 1, clips.motion_bucket_id, noise_aug], 1).repeat(DRAWS, 1)
    noisy = z + sigma * torch.randn_like(z)
    embedding = embed(encoder, clips.frames[:, 0]).repeat(DRAWS, 1, 1) * keep_embedding
    held = (condition * keep_still)[:, None].expand(-1, z.shape[1], -1, -1, -1)
    sample = torch.cat([noisy / (sigma**2 + 1).sqrt(), held], 2)
    v = unet(sample, 0.25 * sigma.flatten().log(), embedding, ids, return_dict=False)[0].float()
    denoised = noisy / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()
    return ((denoised - z) ** 2 * (sigma**2 + 1) / sigma**2).mean()


class Encoder:
    """The trained VAE's half that makes latents, in bfloat16 where the device computes in it."""

    def __init__(self, folder: Path, device: str, *, compiled: bool) -> None:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.scaling_factor, self.channels = vae.config.scaling_factor, vae.config.latent_channels
        kept = torch.nn.Sequential(vae.encoder, vae.quant_conv).requires_grad_(False)
        kept = kept.to(device, self.dtype, memory_format=torch.channels_last)
        self._kept = torch.compile(kept) if compiled else kept

    @torch.no_grad()
    def __call__(self, clips: Clips, noise_aug: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled latents of all frames, and unscaled ones of the still with noise added."""
        still = clips.frames[:, 0]
        still = still + noise_aug.view(-1, 1, 1, 1) * torch.randn_like(still)
        batch, num_frames = clips.frames.shape[:2]
        pixels = torch.cat([clips.frames.flatten(0, 1), still])
        moments = self._kept(pixels.to(self.dtype, memory_format=torch.channels_last))
        mean = moments.chunk(2, 1)[0].float()  # the mode of the posterior
        return mean[:-batch].unflatten(0, (batch, num_frames)) * self.scaling_factor, mean[-batch:]


class Gradients:
    """Encodes a batch of clips and leaves the gradients of their loss in `flat`, by a CUDA graph where that works.

    A step launches thousands of small kernels, for which Python needs longer than the GPU does. `loss` is given
    (latents, condition, clips, noise_aug).
    """

    def __init__(
        self, encoder: Encoder, weights: list[torch.nn.Parameter], loss: Callable[..., torch.Tensor], device: str
    ) -> None:
        self.encoder, self.loss, self.device = encoder, loss, device
        self.flat = torch.zeros(sum(p.numel() for p in weights), device=device)
        for p, part in zip(weights, self.flat.split([p.numel() for p in weights]), strict=True):
            p.grad = part.view_as(p)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, clips: Clips, noise_aug: torch.Tensor) -> torch.Tensor:
        """The loss."""
        if self._graph is None:
            return self._compute(clips, noise_aug)
        for mine, theirs in zip(
            (*vars(self._clips).values(), self._noise_aug), (*vars(clips).values(), noise_aug), strict=True
        ):
            mine.copy_(theirs)
        self._graph.replay()
        return self._loss.clone()

    def record(self, clips: Clips, noise_aug: torch.Tensor) -> None:
        """Record the graph from a batch, whose shapes every later one must have."""
        self._clips, self._noise_aug = clips, noise_aug
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._compute(clips, noise_aug)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = self._compute(clips, noise_aug)
        self._graph = graph

    def _compute(self, clips: Clips, noise_aug: torch.Tensor) -> torch.Tensor:
        self.flat.zero_()
        latents, condition = self.encoder(clips, noise_aug)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self.loss(latents, condition, clips, noise_aug)
        loss.backward()
        return loss.detach()


def draw_noise_aug(batch: int, device: str) -> torch.Tensor:
    """Strengths of the noise on the stills, [batch]: a log-normal around 0.03, and none for 15% of the clips."""
    strength = torch.exp(torch.randn(batch, device=device) * 0.7 - 3.5)
    return strength * (torch.rand(batch, device=device) > 0.15)


class Training:
    """Modules that learn by the clock and their moving average, from where the last piece in `args.out` ended."""

    def __init__(
        self,
        args: argparse.Namespace,
        fleet: Fleet,
        modules: torch.nn.ModuleDict,
        *,
        rate: float,
        decay: float,
        keep: float,
    ) -> None:
        self.args, self.fleet, self.rate, self.keep = args, fleet, rate, keep
        self.modules = modules.train()
        self.ema = copy.deepcopy(modules).requires_grad_(False).eval()
        self.weights = list(modules.parameters())
        self.optimizer = torch.optim.AdamW(self.weights, rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)
        self.step, self.spent, self.log = 0, 0.0, []
        if (args.out / "state.pt").exists():
            state = torch.load(args.out / "state.pt", map_location=args.device, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent, self.log = state["step"], state["spent"], state["log"]

    def run(self, gradients: Gradients, mover: Mover) -> None:
        """One piece of the schedule."""
        args, fleet = self.args, self.fleet
        total = args.total_minutes or args.minutes
        if args.device == "cuda":
            gradients.record(mover.draw(args.clips, NUM_FRAMES), draw_noise_aug(args.clips, args.device))
            fleet.say(f"recorded after {fleet.minutes():.1f} minutes")
        first, recent, elapsed = self.step, [], 0.0
        while elapsed < args.minutes:
            progress = min(1, (self.spent + elapsed) / total)
            warmth = min(1, (self.step - first + 1) / 200)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * warmth * max(0.005, 0.5 * (1 + math.cos(math.pi * progress)))
            recent.append(gradients(mover.draw(args.clips, NUM_FRAMES), draw_noise_aug(args.clips, args.device)))
            fleet.average(gradients.flat)
            gradients.flat.mul_((1.0 / gradients.flat.norm()).clamp(max=1.0))
            self.optimizer.step()
            self.step += 1
            with torch.no_grad():
                keep = min(self.keep, (self.step + 1) / (self.step + 10))
                torch._foreach_lerp_(list(self.ema.parameters()), self.weights, 1 - keep)
            if self.step % 10 == 0 or args.device == "cpu":  # asking for the time makes Python wait for the GPU
                elapsed = fleet.minutes()
            if self.step % 200 == 0 or self.step - first == 5:
                loss = torch.stack(recent).mean().item()
                self.log.append({"step": self.step, "minutes": round(self.spent + elapsed, 2), "loss": loss})
                recent = []
                fleet.say(json.dumps(self.log[-1]))
            if self.step % 500 == 0:
                self.export()
        self.spent += elapsed
        self.export()
        if fleet.rank == 0:
            state = {"modules": self.modules.state_dict(), "ema": self.ema.state_dict()}
            state |= {"optimizer": self.optimizer.state_dict(), "step": self.step, "spent": self.spent, "log": self.log}
            torch.save(state, args.out / "state.pt")
        fleet.say(f"step {self.step}, {elapsed * 60 / max(1, self.step - first):.3f} s a step")

    def export(self) -> None:
        """Write the averaged weights as they will be loaded."""
        if self.fleet.rank == 0:
            for name, module in self.ema.items():
                module.save_pretrained(self.args.out / name)
            (self.args.out / "log.json").write_text(json.dumps(self.log, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="folder with the trained VAE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--begin-from", type=Path, help="folder of an exported unet and image_encoder")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--total-minutes", type=float)
    parser.add_argument("--spent", type=float, default=0.0, help="minutes of the schedule already behind --begin-from")
    parser.add_argument("--clips", type=int, default=10, help="clips a GPU and step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the UNet: minutes first, then quicker steps")
    parser.add_argument("--limit", type=int, help="photographs to read, for a quick trial")
    args = parser.parse_args()
    fleet = Fleet.join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)

    encoder = Encoder(args.vae, args.device, compiled=args.compile)
    torch.manual_seed(0)
    unet, image_encoder = make_unet(encoder.channels).to(args.device), make_image_encoder().to(args.device)
    if args.begin_from:
        unet = type(unet).from_pretrained(args.begin_from / "unet", torch_dtype=torch.float32).to(args.device)
        image_encoder = type(image_encoder).from_pretrained(args.begin_from / "image_encoder", dtype=torch.float32)
        image_encoder.to(args.device)
    train, _ = Photos.read(args.photos, args.device, limit=args.limit).split()
    mover = Mover(train, HEIGHT, WIDTH)
    modules = torch.nn.ModuleDict({"unet": unet, "image_encoder": image_encoder})
    training = Training(args, fleet, modules, rate=LEARNING_RATE, decay=0.01, keep=0.9993)
    training.spent = training.spent or args.spent
    fleet.say(
        f"{len(train.pixels)} photographs, UNet {parameters(unet) / 1e6:.2f} M, {fleet.world} devices, "
        f"from {training.step}"
    )
    fleet.begin()
    trained = torch.compile(unet) if args.compile else unet
    training.run(Gradients(encoder, training.weights, partial(loss_of, trained, image_encoder), args.device), mover)
    fleet.leave()


if __name__ == "__main__":
    main()

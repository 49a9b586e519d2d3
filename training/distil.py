r"""Teach the pocket UNet to take few large steps without guidance, on one GPU or several of a machine:

    torchrun --nproc-per-node 2 training/distil.py --photos training/data/photos.tar \
        --begin-from src/kinema/models/pocket --out training/runs/distilled --minutes 9

Progressive distillation (Salimans and Ho 2022): the teacher, the same network as it was, takes several guided steps
between two noise levels of the pocket's default schedule, and the student learns to land there in one. The image
encoder stays as it is. What is learnt belongs to that number of steps: with others the picture is sharpened too much
or too little.

A run is a schedule of `--total-minutes`; a piece of it ends after `--minutes` and the next one resumes from `--out`.
"""

import argparse
import copy
import json
import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection

from motion import Clips, Mover, Photos
from parallel import Fleet
from shapes import HEIGHT, NUM_FRAMES, SCHEDULER, STEPS, WIDTH
from unet import Encoder, Gradients, draw_noise_aug, embed, export

LEARNING_RATE = 2e-4
DRAWS = 2  # noise levels for each clip
SUBSTEPS = 2  # the teacher's, for one of the student's
RHO = 7


def levels(steps: int) -> torch.Tensor:
    """Karras et al. 2022, equation 5: `steps` noise levels and 0."""
    low, high = (SCHEDULER[name] ** (1 / RHO) for name in ("sigma_min", "sigma_max"))
    return torch.cat([torch.linspace(high, low, steps) ** RHO, torch.zeros(1)])


def sublevels() -> torch.Tensor:
    """The levels between which the teacher steps, [STEPS, SUBSTEPS + 1]: the ends are two of the student's."""
    ends = levels(STEPS) ** (1 / RHO)
    share = torch.linspace(0, 1, SUBSTEPS + 1)
    between = torch.lerp(ends[:-1, None], ends[1:, None], share) ** RHO
    # The last step ends at 0; halfway by powers of RHO would be next to nothing.
    between[-1, 1:-1] = ends[-2] ** RHO * (1 - share[1:-1]) ** 2
    return between


class Denoiser:
    """A UNet on one batch of conditions, as EDM's D(x, σ); with `guidance` [frames] also without the conditions."""

    def __init__(
        self,
        unet: torch.nn.Module,
        condition: torch.Tensor,
        embedding: torch.Tensor,
        ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> None:
        self.unet, self.guidance = unet, guidance
        self.held = condition[:, None].expand(-1, NUM_FRAMES, -1, -1, -1)
        self.embedding, self.ids = embedding, ids
        if guidance is not None:
            self.held = torch.cat([torch.zeros_like(self.held), self.held])
            self.embedding = torch.cat([torch.zeros_like(embedding), embedding])
            self.ids = torch.cat([ids, ids])

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """x: [batch, frames, c, h, w], sigma: [batch, 1, 1, 1, 1]."""
        scaled, time = x / (sigma**2 + 1).sqrt(), 0.25 * sigma.flatten().log()
        if self.guidance is not None:
            scaled, time = torch.cat([scaled, scaled]), torch.cat([time, time])
        sample = torch.cat([scaled, self.held], 2)
        v = self.unet(sample, time, self.embedding, self.ids, return_dict=False)[0].float()
        if self.guidance is not None:
            free, bound = v.chunk(2)
            v = free + self.guidance.view(1, -1, 1, 1, 1) * (bound - free)
        return x / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()


def loss_of(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    encoder: torch.nn.Module,
    between: torch.Tensor,
    guidance: torch.Tensor,
    latents: torch.Tensor,
    condition: torch.Tensor,
    clips: Clips,
    noise_aug: torch.Tensor,
) -> torch.Tensor:
    """How far one step of the student ends from the teacher's, in EDM's weighting; shapes as in unet.py."""
    z, condition = latents.repeat(DRAWS, 1, 1, 1, 1), condition.repeat(DRAWS, 1, 1, 1)
    step = torch.randint(STEPS, (len(z),), device=z.device)
    path = between[step].T.reshape(SUBSTEPS + 1, -1, 1, 1, 1, 1)
    first, last = path[0], path[-1]
    noisy = z + first * torch.randn_like(z)
    with torch.no_grad():
        embedding = embed(encoder, clips.frames[:, 0]).repeat(DRAWS, 1, 1)
        ids = torch.stack([clips.fps - 1, clips.motion_bucket_id, noise_aug], 1).repeat(DRAWS, 1)
        guided = Denoiser(teacher, condition, embedding, ids, guidance)
        x = noisy
        for sigma, following in pairwise(path):
            clean = guided(x, sigma)
            x = clean + (x - clean) * (following / sigma)
        target = noisy + (x - noisy) * (first / (first - last))  # from there one Euler step ends at x
    denoised = Denoiser(student, condition, embedding, ids)(noisy, first)
    return ((denoised - target) ** 2 * (first**2 + 1) / first**2).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--begin-from", type=Path, required=True, help="folder of vae, unet and image_encoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--total-minutes", type=float)
    parser.add_argument("--guidance", type=float, default=1.5, help="the teacher's at the last frame; 1 at the first")
    parser.add_argument("--clips", type=int, default=8, help="clips a GPU and step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="photographs to read, for a quick trial")
    args = parser.parse_args()
    total = args.total_minutes or args.minutes
    fleet = Fleet.join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)

    encoder = Encoder(args.begin_from / "vae", args.device, compiled=False)
    student = UNetSpatioTemporalConditionModel.from_pretrained(args.begin_from / "unet", torch_dtype=torch.float32)
    student = student.to(args.device).train()
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    folder = args.begin_from / "image_encoder"
    image_encoder = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32)
    image_encoder.to(args.device).requires_grad_(False).eval()
    train, _ = Photos.read(args.photos, args.device, limit=args.limit).split()
    mover = Mover(train, HEIGHT, WIDTH)
    ema = copy.deepcopy(student).requires_grad_(False).eval()
    weights = list(student.parameters())
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0, fused=True)
    step, spent, log = 0, 0.0, []
    if (args.out / "state.pt").exists():
        state = torch.load(args.out / "state.pt", map_location=args.device, weights_only=True)
        student.load_state_dict(state["student"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, log = state["step"], state["spent"], state["log"]
    averaged = torch.nn.ModuleDict({"unet": ema, "image_encoder": image_encoder})
    fleet.say(f"{len(train.pixels)} photographs, {fleet.world} devices, from step {step}")
    fleet.begin()
    guidance = torch.linspace(1, args.guidance, NUM_FRAMES, device=args.device)
    loss = partial(loss_of, student, teacher, image_encoder, sublevels().to(args.device), guidance)
    gradients = Gradients(encoder, weights, loss, args.device)
    if args.device == "cuda":
        gradients.record(mover.draw(args.clips, NUM_FRAMES), draw_noise_aug(args.clips, args.device))
        fleet.say(f"recorded after {fleet.minutes():.1f} minutes")

    first, recent, elapsed = step, [], 0.0
    while elapsed < args.minutes:
        progress = min(1, (spent + elapsed) / total)
        rate = LEARNING_RATE * min(1, (step - first + 1) / 100) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        recent.append(gradients(mover.draw(args.clips, NUM_FRAMES), draw_noise_aug(args.clips, args.device)))
        fleet.average(gradients.flat)
        gradients.flat.mul_((1.0 / gradients.flat.norm()).clamp(max=1.0))
        optimizer.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), weights, 1 - min(0.998, (step + 1) / (step + 10)))
        if step % 10 == 0 or args.device == "cpu":  # asking for the time makes Python wait for the GPU
            elapsed = fleet.minutes()
        if step % 100 == 0 or step - first == 5:
            log.append({"step": step, "minutes": round(spent + elapsed, 2), "loss": torch.stack(recent).mean().item()})
            recent = []
            fleet.say(json.dumps(log[-1]))
        if step % 500 == 0 and fleet.rank == 0:
            export(averaged, args.out, log)
    if fleet.rank == 0:
        export(averaged, args.out, log)
        state = {"student": student.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"step": step, "spent": spent + elapsed, "log": log}, args.out / "state.pt")
        fleet.say(f"step {step}, {elapsed * 60 / max(1, step - first):.3f} s a step")
    fleet.leave()


if __name__ == "__main__":
    main()

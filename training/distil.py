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
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection

from motion import Clips, Mover, Photos
from parallel import Fleet
from shapes import HEIGHT, NUM_FRAMES, SCHEDULER, STEPS, WIDTH
from unet import Encoder, Gradients, Training, embed

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
    fleet = Fleet.join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)

    encoder = Encoder(args.begin_from / "vae", args.device, compiled=False)
    student = UNetSpatioTemporalConditionModel.from_pretrained(args.begin_from / "unet", torch_dtype=torch.float32)
    student = student.to(args.device)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    folder = args.begin_from / "image_encoder"
    image_encoder = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32)
    image_encoder.to(args.device).requires_grad_(False).eval()
    train, _ = Photos.read(args.photos, args.device, limit=args.limit).split()
    mover = Mover(train, HEIGHT, WIDTH)
    training = Training(args, fleet, torch.nn.ModuleDict({"unet": student}), rate=LEARNING_RATE, decay=0, keep=0.998)
    fleet.say(f"{len(train.pixels)} photographs, {fleet.world} devices, from step {training.step}")
    fleet.begin()
    guidance = torch.linspace(1, args.guidance, NUM_FRAMES, device=args.device)
    loss = partial(loss_of, student, teacher, image_encoder, sublevels().to(args.device), guidance)
    training.run(Gradients(encoder, training.weights, loss, args.device), mover)
    if fleet.rank == 0:
        image_encoder.save_pretrained(args.out / "image_encoder")
    fleet.leave()


if __name__ == "__main__":
    main()

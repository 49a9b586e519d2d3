r"""Teach the pocket UNet to take few large steps without guidance, on one GPU or several of a machine:

    torchrun --nproc-per-node 2 -m training.pocket.distil --photos training/data/photos.tar \
        --vae training/runs/vae/vae --begin-from training/runs/unet --out training/runs/distilled --minutes 9

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

from training.common.parallel import Fleet
from training.pocket.denoising import Encoder, denoise, embed
from training.pocket.motion import Clips, Mover, Photos
from training.pocket.networks import HEIGHT, NUM_FRAMES, SCHEDULER, STEPS, WIDTH
from training.pocket.unet import Gradients, Training

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


def denoise_guided(
    unet: torch.nn.Module,
    noisy: torch.Tensor,
    sigma: torch.Tensor,
    condition: torch.Tensor,
    embedding: torch.Tensor,
    ids: torch.Tensor,
    guidance: torch.Tensor,
) -> torch.Tensor:
    """D(x, σ) under guidance [frames], with and without the conditions in one batch; shapes as in `denoise`."""
    free, bound = denoise(
        unet,
        torch.cat([noisy, noisy]),
        torch.cat([sigma, sigma]),
        torch.cat([torch.zeros_like(condition), condition]),
        torch.cat([torch.zeros_like(embedding), embedding]),
        torch.cat([ids, ids]),
    ).chunk(2)
    return free + guidance.view(1, -1, 1, 1, 1) * (bound - free)


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
        x = noisy
        for sigma, following in pairwise(path):
            clean = denoise_guided(teacher, x, sigma, condition, embedding, ids, guidance)
            x = clean + (x - clean) * (following / sigma)
        target = noisy + (x - noisy) * (first / (first - last))  # from there one Euler step ends at x
    denoised = denoise(student, noisy, first, condition, embedding, ids)
    return ((denoised - target) ** 2 * (first**2 + 1) / first**2).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="folder with the trained VAE")
    parser.add_argument("--begin-from", type=Path, required=True, help="folder of unet and image_encoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--total-minutes", type=float)
    parser.add_argument("--guidance", type=float, default=1.5, help="the teacher's at the last frame; 1 at the first")
    parser.add_argument("--clips", type=int, default=8, help="clips a GPU and step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="photographs to read, for a quick trial")
    parser.add_argument("--steps", type=int, help="steps at most, for a quick trial")
    args = parser.parse_args()
    fleet = Fleet.join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)

    student = UNetSpatioTemporalConditionModel.from_pretrained(args.begin_from / "unet", torch_dtype=torch.float32)
    student = student.to(args.device)
    encoder = Encoder(args.vae, args.device, compiled=False, channels=student.config.out_channels)
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
    training.run(Gradients(encoder, training.weights, loss, args.device), lambda _: mover.draw(args.clips, NUM_FRAMES))
    if fleet.rank == 0:
        image_encoder.save_pretrained(args.out / "image_encoder")
    fleet.leave()


if __name__ == "__main__":
    main()

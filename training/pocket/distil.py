r"""Distil the pocket UNet into few steps without guidance, on one or more GPUs of a machine:

    torchrun --nproc-per-node 2 -m training.pocket.distil --photos training/data/photos.tar \
        --vae training/runs/vae/vae --begin-from training/runs/unet --out training/runs/distilled --minutes 9

Progressive distillation (Salimans and Ho 2022): the teacher, a frozen copy of the initial network, takes several guided
steps between two noise levels of the pocket model's default schedule, and the student learns to take them in one. The
image encoder is not trained. The result is specific to that number of steps: with another number, images are
over-sharpened or too soft.

The learning rate schedule lasts `--total-minutes`. A run ends after `--minutes`; the next run with the same `--out`
resumes.
"""

import argparse
import copy
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection

from training.common.parallel import ProcessGroup
from training.pocket.denoising import Encoder, added_time_ids, denoise, denoise_guided, embed
from training.pocket.motion import FASTEST, Clips, Mover, Photos
from training.pocket.networks import NUM_FRAMES, SCHEDULER, STEPS
from training.pocket.unet import Gradients, Training
from training.pocket.vae import SIZES

LEARNING_RATE = 2e-4
DRAWS = 2  # noise levels drawn per clip
SUBSTEPS = 2  # teacher steps per student step
RHO = 7


def levels(steps: int) -> torch.Tensor:
    """Return `steps` noise levels followed by 0 (Karras et al. 2022, equation 5)."""
    low, high = (SCHEDULER[name] ** (1 / RHO) for name in ("sigma_min", "sigma_max"))
    return torch.cat([torch.linspace(high, low, steps) ** RHO, torch.zeros(1)])


def teacher_levels() -> torch.Tensor:
    """Return the teacher's noise levels, [STEPS, SUBSTEPS + 1]; first and last of a row are the student's levels."""
    ends = levels(STEPS) ** (1 / RHO)
    share = torch.linspace(0, 1, SUBSTEPS + 1)
    between = torch.lerp(ends[:-1, None], ends[1:, None], share) ** RHO
    # The last step ends at 0, where interpolating powers of RHO would give levels that are almost 0.
    between[-1, 1:-1] = ends[-2] ** RHO * (1 - share[1:-1]) ** 2
    return between


def distillation_loss(
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
    """Return the EDM-weighted squared error of one student step against the teacher's steps; shapes as in unet.py."""
    z, condition = latents.repeat(DRAWS, 1, 1, 1, 1), condition.repeat(DRAWS, 1, 1, 1)
    step = torch.randint(STEPS, (len(z),), device=z.device)
    path = between[step].T.reshape(SUBSTEPS + 1, -1, 1, 1, 1, 1)
    first, last = path[0], path[-1]
    noisy = z + first * torch.randn_like(z)
    with torch.no_grad():
        embedding = embed(encoder, clips.frames[:, 0]).repeat(DRAWS, 1, 1)
        ids = added_time_ids(clips, noise_aug).repeat(DRAWS, 1)
        x = noisy
        for sigma, next_sigma in pairwise(path):
            clean = denoise_guided(teacher, x, sigma, condition, embedding, ids, guidance)
            x = clean + (x - clean) * (next_sigma / sigma)
        target = noisy + (x - noisy) * (first / (first - last))  # one Euler step towards this target ends at x
    denoised = denoise(student, noisy, first, condition, embedding, ids)
    return ((denoised - target) ** 2 * (first**2 + 1) / first**2).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="photos.tar, written by collect.py")
    parser.add_argument("--vae", type=Path, required=True, help="folder with the trained VAE")
    parser.add_argument("--begin-from", type=Path, required=True, help="folder with unet/ and image_encoder/")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, log and state")
    parser.add_argument("--minutes", type=float, default=9, help="minutes to train in this run")
    parser.add_argument("--total-minutes", type=float, help="length of the schedule (default: --minutes)")
    parser.add_argument(
        "--guidance", type=float, default=1.5, help="the teacher's guidance at the last frame (1 at the first frame)"
    )
    parser.add_argument("--clips", type=int, default=8, help="clips per GPU and step")
    parser.add_argument(
        "--fastest", type=float, default=FASTEST, help="maximum mean flow of the clips, pixels per frame"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="number of photographs to read, for a quick trial")
    parser.add_argument("--steps", type=int, help="maximum number of steps, for a quick trial")
    args = parser.parse_args()
    processes = ProcessGroup.join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)

    student = UNetSpatioTemporalConditionModel.from_pretrained(args.begin_from / "unet", torch_dtype=torch.float32)
    student = student.to(args.device)
    encoder = Encoder(args.vae, args.device)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    folder = args.begin_from / "image_encoder"
    image_encoder = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32)
    image_encoder.to(args.device).requires_grad_(False).eval()
    train, _ = Photos.read(args.photos, args.device, limit=args.limit).split()
    movers = {size: Mover(train, *size) for size in dict.fromkeys(SIZES)}
    training = Training(
        args, processes, torch.nn.ModuleDict({"unet": student}), rate=LEARNING_RATE, weight_decay=0, ema_decay=0.998
    )
    processes.print(f"{len(train.pixels)} photographs, {processes.world} processes, starting at step {training.step}")
    processes.start()
    guidance = torch.linspace(1, args.guidance, NUM_FRAMES, device=args.device)
    loss = partial(distillation_loss, student, teacher, image_encoder, teacher_levels().to(args.device), guidance)
    gradients = Gradients(encoder, training.weights, loss, args.device)

    def draw(_: float, step: int) -> Clips:
        return movers[SIZES[step % len(SIZES)]].draw(args.clips, NUM_FRAMES, args.fastest, rendered=(0,))

    training.run(gradients, draw)
    if processes.rank == 0:
        image_encoder.save_pretrained(args.out / "image_encoder")
    processes.leave()


if __name__ == "__main__":
    main()

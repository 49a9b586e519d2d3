"""Train a small classifier of scenes, which evaluate.py uses to judge generated images.

    python -m training.t2i.judge --vae training/runs/t2i/vae --out training/runs/t2i/judge.safetensors --minutes 1.5

It is trained on drawn scenes without the held-out combinations; half of the images pass through the VAE. Its accuracy
on drawn scenes of held-out combinations is an upper bound for the figures of the text-to-image model.
"""

import argparse
import json
import math
import random
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from training.common.parallel import ProcessGroup
from training.t2i.drawing import draw
from training.t2i.pool import ScenePool, as_bytes
from training.t2i.scenes import COLOURS, GROUNDS, HOURS, THINGS, Scene, held_out_scenes

ANSWERS = {"thing": (*THINGS, None), "colour": COLOURS, "ground": GROUNDS, "hour": HOURS}
NO_COLOUR = -100  # ignored by the loss


class Judge(torch.nn.Module):
    """Classifies images [b, 3, 160, 288] in 0…1; returns the logits of each question in ANSWERS."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 96, 128, 160)
        layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, 32, 5, 2, 2), torch.nn.GroupNorm(8, 32), torch.nn.SiLU()]
        for a, b in pairwise(widths):
            for start, stride in ((a, 2), (b, 1)):
                layers += [torch.nn.Conv2d(start, b, 3, stride, 1), torch.nn.GroupNorm(8, b), torch.nn.SiLU()]
        self.body = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(2 * widths[-1], sum(len(a) for a in ANSWERS.values()))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(images * 2 - 1)
        logits = self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1))
        return dict(zip(ANSWERS, logits.split([len(a) for a in ANSWERS.values()], 1), strict=True))

    @torch.no_grad()
    def answers(self, images: torch.Tensor) -> list[dict[str, str | None]]:
        """Return the most likely answer to each question, for each image."""
        best = {question: logits.argmax(1).tolist() for question, logits in self(images).items()}
        return [{q: ANSWERS[q][best[q][i]] for q in ANSWERS} for i in range(len(images))]


def accuracy_by_question(scenes: list[Scene], answers: list[dict[str, str | None]]) -> dict[str, float]:
    """Return the share of correct answers to each question."""
    return {q: sum(getattr(s, q) == a[q] for s, a in zip(scenes, answers, strict=True)) / len(scenes) for q in ANSWERS}


def load_judge(file: Path) -> Judge:
    """Load weights saved by `main`, for inference in float32."""
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    return judge.eval()


def drawn_accuracy(judge: Judge, number: int = 200) -> dict[str, float]:
    """Return the accuracy on drawn scenes of held-out combinations, by question."""
    scenes = held_out_scenes(number, seed=5)
    device = str(next(judge.parameters()).device)
    generator = torch.Generator(device).manual_seed(5)
    parts = [scenes[i : i + 20] for i in range(0, number, 20)]
    return accuracy_by_question(scenes, [a for part in parts for a in judge.answers(draw(part, generator, device))])


def scene_labels(_: random.Random, scene: Scene) -> list[list[int]]:
    """Return the index of the correct answer to each question, as the only label of a scene."""
    return [
        [NO_COLOUR if q == "colour" and scene.thing is None else a.index(getattr(scene, q)) for q, a in ANSWERS.items()]
    ]


def augment(x: torch.Tensor) -> torch.Tensor:
    """Imitate generated images: blur, change contrast and brightness, and add noise."""
    uniform = lambda low, high: torch.rand(len(x), 1, 1, 1, device=x.device) * (high - low) + low  # noqa: E731
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, uniform(0, 1.2))
    x = (x - 0.5) * uniform(0.88, 1.15) + 0.5 + uniform(-0.05, 0.05)
    return x + torch.randn_like(x) * uniform(0, 0.04)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument(
        "--vae", type=Path, help="folder with the model's VAE, to encode and decode half of the images with"
    )
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--steps", type=int, default=10**9, help="maximum number of steps, for a quick trial")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--pool", type=int, default=16384, help="scenes in the pool")
    parser.add_argument("--drawn", type=int, default=1024, help="scenes drawn per batch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    processes = ProcessGroup.join(args.device)
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32) if args.vae else None
    if vae:
        vae.to(args.device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(pixels: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        """Pass the first half through the VAE, if there is one."""
        half = pixels[: len(pixels) // 2 if vae else 0]
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.device == "cuda"):
            decoded = [vae.decode(vae.encode(p * 2 - 1).latent_dist.mode()).sample.float() for p in half.split(32)]
        return as_bytes(torch.cat([*(p / 2 + 0.5 for p in decoded), pixels[len(half) :]]).clamp(0, 1))

    torch.manual_seed(0)
    judge = Judge().to(args.device).train()
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
    processes.start()
    scenes = ScenePool(args.pool, args.drawn, args.device, encode=encode, label=scene_labels)
    step, elapsed = 0, processes.elapsed_minutes()
    while elapsed < args.minutes and step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = (
                2e-3 * min(1, (step + 1) / 100) * max(0.01, 0.5 * (1 + math.cos(math.pi * elapsed / args.minutes)))
            )
        images, answers = scenes.sample(args.batch)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.device == "cuda"):
            logits = judge(augment(images.float() / 255))
        loss = sum(
            F.cross_entropy(question.float(), answers[:, i], ignore_index=NO_COLOUR)
            for i, question in enumerate(logits.values())
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 32 == 0:
            scenes.refresh()
        if step % 10 == 0 or args.device == "cpu":
            elapsed = processes.elapsed_minutes()
        if step % 200 == 0:
            processes.print(json.dumps({"step": step, "minutes": round(elapsed, 2), "loss": round(loss.item(), 4)}))
    judge.eval()
    accuracy = drawn_accuracy(judge, 200 if args.device == "cuda" else 20)
    processes.print(json.dumps({"step": step, "accuracy on held-out drawn scenes": accuracy}))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().to(torch.float16).contiguous() for k, v in judge.state_dict().items()}
    save_file(state, args.out, metadata={"steps": str(step)})


if __name__ == "__main__":
    main()

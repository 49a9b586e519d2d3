r"""Train the network that makes frames between frames, on scenes synthesised from photographs:

    python -m training.interpolation.train --photos training/data/photos.tar --out training/runs/interpolation

`model.safetensors` in `--out` has the averaged weights in float16, written every two minutes and at the end; `log.json`
the losses and the validation. A run begins from `--begin-from`, a weights file, or from nothing.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from kinema.models.frame_interpolator import FrameInterpolator
from training.common.parallel import ProcessGroup
from training.interpolation.artefacts import degraded
from training.interpolation.scenes import SceneMaker, Triplets
from training.pocket.motion import Photos

LEARNING_RATE = 6e-4
EMA_DECAY = 0.998
SAVE_MINUTES = 2.0
MOTION_WEIGHT = 0.1  # of the loss of motion, per pixel, at the beginning; it falls to a fiftieth


def image_loss(frames: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the Charbonnier loss, plus the L1 loss of a Laplacian pyramid."""
    loss = ((frames - targets).square() + 1e-6).sqrt().mean()
    difference = frames - targets
    for _ in range(4):
        smaller = F.avg_pool2d(difference, 2)
        band = difference - F.interpolate(smaller, scale_factor=2.0, mode="bilinear", align_corners=False)
        loss = loss + band.abs().mean()
        difference = smaller
    return loss + difference.abs().mean()


def motion_loss(motions: list[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Return the mean distance of the motion at each level to the true one; large distances count less."""
    total = target.new_zeros(())
    for motion in motions:
        smaller = F.adaptive_avg_pool2d(target, motion.shape[-2:])
        error = (motion - smaller).unflatten(1, (2, 2)).square().sum(2)
        total = total + ((error + 1e-4).sqrt() + 0.3).pow(0.7).mean()
    return total / len(motions)


def loss_of(network: nn.Module, scenes: Triplets, motion_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, and its part of the images, without gradient."""
    with torch.autocast(scenes.time.device.type, torch.bfloat16, enabled=scenes.time.is_cuda):
        frames, motions = network.stages(scenes.first, scenes.second, scenes.time)
    image = image_loss(frames.float(), scenes.between)
    return image + motion_weight * motion_loss(motions, scenes.motion), image.detach()


@torch.no_grad()
def validate(network: nn.Module, batches: list[Triplets]) -> dict[str, float]:
    """Return the mean PSNR in dB on held-out scenes, also of blending, and the mean error of the motion in pixels."""
    rows = []
    for scenes in batches:
        frames, motions = network.stages(scenes.first, scenes.second, scenes.time)
        t = scenes.time.view(-1, 1, 1, 1)
        blended = scenes.first * (1 - t) + scenes.second * t
        distance = (F.interpolate(motions[-1], scale_factor=2.0) - scenes.motion).unflatten(1, (2, 2)).norm(dim=2)
        rows.append([psnr(frames, scenes.between), psnr(blended, scenes.between), distance.mean((1, 2, 3))])
    model, blend, error = (torch.cat(column).mean().item() for column in zip(*rows, strict=True))
    return {"psnr": model, "psnr_of_blending": blend, "motion_error": error}


def psnr(frames: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the PSNR of each frame in dB, [n], at most 60."""
    return -10 * (frames - targets).square().mean((1, 2, 3)).clamp(min=1e-6).log10()


def flipped(scenes: Triplets) -> Triplets:
    """Return the scenes of which half are upside down or transposed, and half run backward."""
    first, between, second, motion = scenes.first, scenes.between, scenes.second, scenes.motion
    if torch.rand(()) < 0.5:
        first, between, second, motion = (x.flip(2) for x in (first, between, second, motion))
        motion = motion * motion.new_tensor([1, -1, 1, -1]).view(1, 4, 1, 1)
    if torch.rand(()) < 0.5:
        first, between, second, motion = (x.transpose(2, 3) for x in (first, between, second, motion))
        motion = motion[:, [1, 0, 3, 2]]
    if torch.rand(()) < 0.5:
        return Triplets(second, between, first, 1 - scenes.time, motion[:, [2, 3, 0, 1]])
    return Triplets(first, between, second, scenes.time, motion)


def save(network: nn.Module, out: Path, log: list[dict[str, float]]) -> None:
    """Write the weights in float16, and the log."""
    weights = {name: value.half().contiguous().cpu() for name, value in network.state_dict().items()}
    save_file(weights, out / "model.safetensors")
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")


def train(args: argparse.Namespace) -> None:
    """Train for `args.minutes` or `args.steps`."""
    args.out.mkdir(parents=True, exist_ok=True)
    processes = ProcessGroup.join(args.device)
    photos, held_out = Photos.read(args.photos, args.device, limit=args.limit).split()
    torch.manual_seed(1)
    maker = SceneMaker(held_out if len(held_out.pixels) else photos, args.size, args.size)
    validation = [degraded(maker.draw(args.batch)) for _ in range(1 if args.limit else 8)]
    torch.manual_seed(0)
    network = FrameInterpolator().to(args.device)
    if args.begin_from:
        network.load_state_dict({name: value.float() for name, value in load_file(args.begin_from).items()})
    if args.device == "cuda":
        network = network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).requires_grad_(False)
    weights = list(network.parameters())
    optimizer = torch.optim.AdamW(weights, args.rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=args.device == "cuda")
    maker = SceneMaker(photos, args.size, args.size)
    log: list[dict[str, float]] = []
    processes.print(f"{len(photos.pixels)} photographs, {sum(p.numel() for p in weights) / 1e6:.2f} M parameters")
    processes.start()
    step, elapsed, saved_at = 0, 0.0, 0.0
    while elapsed < args.minutes and not (args.steps and step >= args.steps):
        progress = step / args.steps if args.steps else elapsed / args.minutes
        rate = args.rate * min(1, (step + 1) / 300) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            if step % args.uses == 0:
                drawn = maker.draw(args.batch)
            scenes = flipped(degraded(drawn))
        loss, image = loss_of(network, scenes, MOTION_WEIGHT * max(0.02, (1 - progress) ** 2))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.average_gradients(weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), [w.detach() for w in weights], 1 - decay)
        if step % 10 == 0 or args.device == "cpu":
            elapsed = processes.elapsed_minutes()
        if step % args.every == 0 and processes.rank == 0:
            log.append({"step": step, "minutes": elapsed, "loss": image.item()} | validate(average, validation))
            processes.print(json.dumps({name: round(value, 4) for name, value in log[-1].items()}))
        if elapsed - saved_at >= SAVE_MINUTES and processes.rank == 0:
            saved_at = elapsed
            save(average, args.out, log)
    if processes.rank == 0:
        log.append({"step": step, "minutes": elapsed} | validate(average, validation))
        save(average, args.out, log)
        processes.print(json.dumps({name: round(value, 4) for name, value in log[-1].items()}))
        processes.print(f"{elapsed * 60 / max(1, step):.3f} s per step")
    processes.leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="photos.tar, written by training/pocket/collect.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=192, help="width and height of a scene")
    parser.add_argument("--uses", type=int, default=2, help="steps for which scenes are used, each with new artefacts")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--every", type=int, default=500, help="validate every so many steps")
    parser.add_argument("--begin-from", type=Path, help="model.safetensors of an earlier run")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=int, help="read so many photographs, for tests of the code")
    train(parser.parse_args())


if __name__ == "__main__":
    main()

"""Train the pocket VAE on moving photographs, on one GPU or several of a machine:

    torchrun --nproc-per-node 4 training/vae.py --photos training/data/photos.tar --out training/runs/vae --minutes 9

Its latents are to be easy to move: part of every batch is decoded from frame 0's latents, warped by the true
motion, so that a shift of the picture becomes a shift of the latents (equivariance regularisation, in the spirit
of EQ-VAE, Kouzelis et al. 2025). Besides L1 and gradients, the loss compares the local energy of the Laplacian,
so that texture which can't be kept exactly is at least kept as texture. Sizes change from step to step: with
two channels to a norm group, a decoder that sees one size only learns colours that hold at that size alone.

A run is a schedule of `--total-minutes`; a piece of it ends after `--minutes` and the next one resumes from `--out`.
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from motion import Mover, Photos
from parallel import Fleet
from shapes import HEIGHT, LATENT_CHANNELS, WIDTH, make_vae, parameters

LEARNING_RATE = 8e-4
NUM_FRAMES = 3
# (height, width) and clips a GPU and step; a third of the steps are of the pocket's own size.
SIZES = [
    ((HEIGHT, WIDTH), 5),
    ((HEIGHT, WIDTH), 5),
    ((128, 128), 12),
    ((96, 192), 12),
    ((192, 192), 6),
    ((256, 320), 3),
]


def luminance_laplacian(x: torch.Tensor) -> torch.Tensor:
    """[n, 3, h, w] → [n, 1, h−2, w−2]."""
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(x.mean(1, keepdim=True), kernel)


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """How far y is from x, [n, 3, h, w] in −1…1, where `valid` [n, 1, h, w] is 1."""
    error = (y - x) * valid
    loss = error.abs().mean() + 2 * error.square().mean()
    for scale in (1, 2, 4):
        e = F.avg_pool2d(error, scale) if scale > 1 else error
        loss = loss + 0.4 * ((e[..., 1:, :] - e[..., :-1, :]).abs().mean() + (e[..., 1:] - e[..., :-1]).abs().mean())
    texture = [F.avg_pool2d(luminance_laplacian(v * valid).abs(), 8, 4) for v in (y, x)]
    return loss + (texture[0] - texture[1]).abs().mean()


def warp(latents: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame 0's latents [b, c, h, w] moved as the picture moves, [b, frames, c, h, w], and where that is known."""
    batch, num_frames = positions.shape[:2]
    _, channels, h, w = latents.shape
    at = F.avg_pool2d(positions.flatten(0, 1), 2)  # from every 4th pixel to every 8th
    at = at / torch.tensor([w * 4, h * 4], device=at.device).view(1, 2, 1, 1)
    grid = at.permute(0, 2, 3, 1).reshape(batch, num_frames * h, w, 2)
    moved = F.grid_sample(latents, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    known = (grid.abs().amax(-1) <= 1).float().view(batch, num_frames, 1, h, w)
    return moved.view(batch, channels, num_frames, h, w).transpose(1, 2), known


@torch.no_grad()
def validate(vae: torch.nn.Module, mover: Mover) -> dict[str, float]:
    """PSNR and kept sharpness of whole held-out stills."""
    torch.manual_seed(1)
    x = torch.cat([mover.draw(8, 2).frames[:, 0] for _ in range(4)])
    y = vae.decode(vae.encode(x).latent_dist.mode(), num_frames=1).sample.clamp(-1, 1)
    mse = ((y - x) / 2).square().mean((1, 2, 3))
    sharp = [luminance_laplacian(v).var((1, 2, 3)) for v in (y, x)]
    return {
        "psnr": -10 * mse.log10().mean().item(),
        "psnr_worst": -10 * mse.log10().max().item(),
        "sharpness": (sharp[0] / sharp[1]).mean().item(),
        "chroma": ((y - y.mean(1, keepdim=True)) - (x - x.mean(1, keepdim=True))).abs().mean().item() * 127.5,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--total-minutes", type=float)
    parser.add_argument("--begin-from", type=Path, help="folder of a trained VAE")
    parser.add_argument("--warped", type=float, default=0.3, help="share of a batch decoded from warped latents")
    parser.add_argument("--decoder-only", action="store_true", help="keep the latents as they are")
    parser.add_argument("--latent-channels", type=int, default=LATENT_CHANNELS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, help="photographs to read, for a quick trial")
    args = parser.parse_args()
    total = args.total_minutes or args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    fleet = Fleet.join(args.device)

    train, held_out = Photos.read(args.photos, args.device, limit=args.limit).split()
    movers = {size: Mover(train, *size) for size, _ in SIZES}
    whole = Mover(held_out, HEIGHT, WIDTH)
    torch.manual_seed(0)
    vae = make_vae(args.latent_channels)
    if args.begin_from:
        vae = type(vae).from_pretrained(args.begin_from, torch_dtype=torch.float32)
    vae = vae.to(args.device).train()
    if args.decoder_only:
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)
    weights = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0, fused=True)
    step, spent, log = 0, 0.0, []
    if (args.out / "state.pt").exists():
        state = torch.load(args.out / "state.pt", map_location=args.device, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, log = state["step"], state["spent"], state["log"]
    fleet.say(f"{len(train.pixels)} photographs, {parameters(vae) / 1e6:.2f} M parameters, from step {step}")
    fleet.begin()

    first = step
    while (elapsed := fleet.minutes()) < args.minutes:
        progress = min(1, (spent + elapsed) / total)
        rate = LEARNING_RATE * min(1, (step - first + 1) / 200) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        size, batch = SIZES[step % len(SIZES)]
        with torch.no_grad():
            clips = movers[size].draw(batch, NUM_FRAMES)
        x = clips.frames
        plain = round(batch * (1 - args.warped))
        with torch.autocast(torch.device(args.device).type, torch.bfloat16):
            # The warped part needs frame 0 alone.
            posterior = vae.encode(torch.cat([x[:plain].flatten(0, 1), x[plain:, 0]])).latent_dist
            z = posterior.sample()
            moved, known = warp(z[plain * NUM_FRAMES :].float(), clips.positions[plain:])
            z = torch.cat([z[: plain * NUM_FRAMES], moved.flatten(0, 1)])
            y = vae.decode(z, num_frames=NUM_FRAMES).sample
        valid = torch.ones_like(x[:, :, :1])
        valid[plain:] = F.interpolate(known.flatten(0, 1), scale_factor=8).view_as(valid[plain:])
        y, flat = y.float(), x.flatten(0, 1)
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = reconstruction_loss(y, flat, valid.flatten(0, 1)) + 1e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        fleet.average_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        if step % 500 == 0 and fleet.rank == 0:
            log.append({"step": step, "minutes": round(spent + elapsed, 2), "loss": loss.item(), "kl": kl.item()})
            fleet.say(json.dumps(log[-1]))
    spent += elapsed
    if fleet.rank == 0:
        save(vae.eval(), optimizer, whole, args.out, {"step": step, "spent": spent, "log": log})
        fleet.say(f"{elapsed * 60 / max(1, step - first):.3f} s a step")
    fleet.leave()


def save(vae: torch.nn.Module, optimizer: torch.optim.Optimizer, whole: Mover, out: Path, state: dict) -> None:
    """Validate, then write the VAE with the scale of its latents, and what the next piece resumes from."""
    if vae.encoder.conv_in.weight.requires_grad:  # else its latents, and so their scale, are as they were
        with torch.no_grad():
            z = torch.cat([vae.encode(whole.draw(8, 2).frames[:, 1]).latent_dist.mode() for _ in range(8)])
        vae.register_to_config(scaling_factor=float(1 / z.std()))
    state["log"].append({"step": state["step"], "scaling_factor": vae.config.scaling_factor} | validate(vae, whole))
    print(json.dumps(state["log"][-1]), flush=True)
    torch.save({"vae": vae.state_dict(), "optimizer": optimizer.state_dict()} | state, out / "state.pt")
    vae.save_pretrained(out / "vae", safe_serialization=True)
    (out / "log.json").write_text(json.dumps(state["log"], indent=1))


if __name__ == "__main__":
    main()

r"""Train the text-to-image model's UNet and text encoder on program-drawn scenes, on one or more GPUs of a machine:

    torchrun --nproc-per-node 2 -m training.t2i.unet --compile --vae training/runs/t2i-vae/vae \
        --out training/runs/t2i-unet --minutes 8.5 --total-minutes 17

Both are trained on the VAE's latents: v-prediction with a noise schedule whose last level is pure noise (Lin et al.
2023), and a tenth of the captions dropped for guidance. Scenes are drawn and captioned during training, so images
rarely repeat; held-out combinations are never drawn.

The learning rate schedule lasts `--total-minutes`. A run ends after `--minutes`; the next run with the same `--out`
resumes.
"""

import argparse
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from safetensors.torch import load_file

from training.common.parallel import ProcessGroup
from training.t2i.networks import SCHEDULER, VAE_FACTOR, count_parameters, make_text_encoder, make_unet
from training.t2i.pool import TOKENS, ScenePool, pad
from training.t2i.words import token_ids

LEARNING_RATE = 8e-4
CAPTION_DROPOUT = 0.1
THING_WEIGHT = 5  # additional loss weight of things, at the noise levels that determine their shape
EXPORT_STEPS = 1000  # between exports of the averaged weights


class GradientStep:
    """Computes a loss and writes its gradients to `flat`, in a CUDA graph once recorded.

    A step launches thousands of small kernels; without a graph, launching them takes longer than running them.
    """

    def __init__(self, weights: list[torch.nn.Parameter], compute: Callable[..., torch.Tensor]) -> None:
        self.flat = torch.zeros(sum(p.numel() for p in weights), device=weights[0].device)
        for p, part in zip(weights, self.flat.split([p.numel() for p in weights]), strict=True):
            p.grad = part.view_as(p)
        self._compute, self._graph = compute, None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Compute the gradients and return the loss."""
        if self._graph is None:
            return self._run(*inputs)
        for static, value in zip(self._inputs, inputs, strict=True):
            static.copy_(value)
        self._graph.replay()
        return self._loss.clone()

    def record(self, *inputs: torch.Tensor) -> None:
        """Record the graph with these inputs; all later inputs must have the same shapes."""
        self._inputs = tuple(t.clone() for t in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._run(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = self._run(*self._inputs)
        self._graph = graph

    def _run(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.flat.zero_()
        with torch.autocast(self.flat.device.type, torch.bfloat16, enabled=self.flat.is_cuda):
            loss = self._compute(*inputs)
        loss.backward()
        return loss.detach()


def unet_loss(
    unet: torch.nn.Module,
    text_encoder: torch.nn.Module,
    alphas: torch.Tensor,
    empty_tokens: torch.Tensor,
    data: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Return the weighted mean squared error of v at random noise levels.

    Things cover a small part of an image, so their errors have a higher weight: highest at middle noise levels, where
    their shape is determined.

    Args:
        unet: diffusers UNet.
        text_encoder: transformers text encoder.
        alphas: Cumulative alphas, [1000].
        empty_tokens: Token ids of the empty caption, [1, MAX_TOKENS].
        data: Latents with the coverage of things as the last channel, [n, c + 1, h, w].
        tokens: Token ids, [n, MAX_TOKENS].
    """
    z, things = data.float().split([data.shape[1] - 1, 1], 1)
    t = torch.randint(len(alphas), (len(z),), device=z.device)
    signal, level = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
    noise = torch.randn_like(z)
    is_dropped = torch.rand(len(z), 1, device=z.device) < CAPTION_DROPOUT
    hidden_states = text_encoder(input_ids=torch.where(is_dropped, empty_tokens, tokens)).last_hidden_state
    v = unet(signal * z + level * noise, t, hidden_states, return_dict=False)[0]
    weight = 1 + THING_WEIGHT * things * (2 * signal * level).square()
    return (weight * (v.float() - (signal * noise - level * z)).square()).mean() / weight.mean()


def export(modules: torch.nn.ModuleDict, log: list[dict[str, float]], out: Path) -> None:
    """Write weights with `save_pretrained`, and the log."""
    for name, module in modules.items():
        module.save_pretrained(out / name)
    (out / "log.json").write_text(json.dumps(log, indent=1) + "\n")


def record_graph(step: GradientStep, inputs: tuple[torch.Tensor, ...], processes: ProcessGroup) -> None:
    """Record the CUDA graph of a step; without one, training is slower."""
    try:
        step.record(*inputs)
        processes.print(f"recorded the CUDA graph after {processes.elapsed_minutes():.2f} minutes")
    except RuntimeError as error:
        torch.cuda.synchronize()
        processes.print(f"no CUDA graph recorded, training without it: {error}")


def train(
    args: argparse.Namespace,
    processes: ProcessGroup,
    modules: torch.nn.ModuleDict,
    compute: Callable[..., torch.Tensor],
    make_scenes: Callable[[], ScenePool],
) -> None:
    """Train modules for `args.minutes`, and write the averaged weights; `compute` returns the loss of a sample."""
    total = args.total_minutes or args.minutes
    ema = copy.deepcopy(modules).requires_grad_(False).eval()
    weights = [p for p in modules.parameters() if p.requires_grad]
    fused = args.device == "cuda"
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=fused)
    step, spent, log = 0, args.spent, []
    if (args.out / "state.pt").exists():
        state = torch.load(args.out / "state.pt", map_location=args.device, weights_only=True)
        modules.load_state_dict(state["modules"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, log = state["step"], state["spent"], state["log"]
    sizes = ", ".join(f"{k} {count_parameters(m) / 1e6:.2f} M" for k, m in modules.items())
    processes.print(f"{sizes}; {processes.world} processes, starting at step {step}")
    processes.start()  # also seeds each process differently
    scenes = make_scenes()
    processes.print(f"{scenes.size} scenes drawn per device after {processes.elapsed_minutes():.2f} minutes")
    graphed_step = GradientStep(weights, compute)
    if args.device == "cuda" and not args.no_graph:
        record_graph(graphed_step, scenes.sample(args.batch), processes)

    first, recent, elapsed = step, [], processes.elapsed_minutes()
    while elapsed < args.minutes and step - first < args.steps:
        progress = min(1, (spent + elapsed) / total)
        factor = min(1, (step - first + 1) / 200) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        loss = graphed_step(*scenes.sample(args.batch))
        processes.average(graphed_step.flat)
        graphed_step.flat.mul_((1.0 / graphed_step.flat.norm()).clamp(max=1.0))
        optimizer.step()
        step += 1
        with torch.no_grad():
            ema_decay = min(0.9995, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(ema.parameters()), list(modules.parameters()), 1 - ema_decay)
        recent.append(loss)
        if step % args.refresh == 0:
            scenes.refresh()
        if step % 10 == 0 or args.device == "cpu":  # reading the clock synchronises with the GPU
            elapsed = processes.elapsed_minutes()
        if step % 200 == 0 or step - first == 5:
            log.append({"step": step, "minutes": round(spent + elapsed, 2), "loss": torch.stack(recent).mean().item()})
            recent = []
            processes.print(json.dumps(log[-1]))
        if step % EXPORT_STEPS == 0 and processes.rank == 0:
            export(ema, log, args.out)
    if processes.rank == 0:
        state = {"modules": modules.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"step": step, "spent": spent + elapsed, "log": log}
        export(ema, log, args.out)
        torch.save(state, args.out / "state.pt")
        processes.print(f"step {step}, {elapsed * 60 / max(1, step - first):.3f} s per step")
    processes.leave()


def scene_encoder(folder: Path, device: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the function that encodes scenes for `ScenePool` with the VAE in a folder, on CUDA in bfloat16."""
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    encoder = torch.nn.Sequential(vae.encoder, vae.quant_conv).to(device, dtype)

    @torch.no_grad()
    def encode(pixels: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
        """Return scaled latents, the mode of the posterior, and the coverage of things, dilated by one latent."""
        moments = torch.cat([encoder((p * 2 - 1).to(dtype)) for p in pixels.split(64)])
        latents = moments.chunk(2, 1)[0].float() * vae.config.scaling_factor
        things = F.max_pool2d(F.avg_pool2d(covered, VAE_FACTOR), 3, 1, 1)
        return torch.cat([latents, things], 1).to(dtype)

    return encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder with the trained VAE")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, log and state")
    parser.add_argument(
        "--begin-from", type=Path, help="folder with unet/ and text_encoder/ to start a new schedule from"
    )
    parser.add_argument("--text-encoder", type=Path, help="folder with a trained text encoder, for a new UNet")
    parser.add_argument("--minutes", type=float, default=9, help="minutes to train in this run")
    parser.add_argument("--total-minutes", type=float, help="length of the schedule (default: --minutes)")
    parser.add_argument(
        "--spent", type=float, default=0.0, help="minutes of the schedule that --begin-from was already trained for"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the UNet; takes one or two minutes before the first step"
    )
    parser.add_argument("--steps", type=int, default=10**9, help="maximum number of steps, for a quick trial")
    parser.add_argument("--batch", type=int, default=320, help="images per GPU and step")
    parser.add_argument("--pool", type=int, default=32768, help="scenes in the pool of each device")
    parser.add_argument(
        "--drawn",
        type=int,
        default=1024,
        help="scenes drawn per batch; a batch of any size launches about 20,000 small kernels",
    )
    parser.add_argument("--refresh", type=int, default=32, help="number of steps between refreshes of the pool")
    parser.add_argument("--no-graph", action="store_true", help="do not record a CUDA graph")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    processes = ProcessGroup.join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    modules = torch.nn.ModuleDict({"unet": make_unet(), "text_encoder": make_text_encoder()})
    folders = {"text_encoder": args.text_encoder} if args.text_encoder else {}
    if args.begin_from:
        folders = {name: args.begin_from / name for name in modules}
    for name, folder in folders.items():
        [file] = folder.glob("*.safetensors")
        modules[name].load_state_dict(load_file(file), strict=True)
    modules.to(args.device).train()
    forward = torch.compile(modules.unet) if args.compile else modules.unet
    alphas = EulerDiscreteScheduler.from_config(SCHEDULER).alphas_cumprod.to(args.device)
    empty_tokens = torch.tensor([pad(token_ids("", TOKENS))], device=args.device)
    train(
        args,
        processes,
        modules,
        lambda data, tokens: unet_loss(forward, modules.text_encoder, alphas, empty_tokens, data, tokens),
        lambda: ScenePool(args.pool, args.drawn, args.device, encode=scene_encoder(args.vae, args.device)),
    )


if __name__ == "__main__":
    main()

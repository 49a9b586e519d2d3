r"""Train the pocket text-to-image model on program-drawn scenes, on one or more GPUs of a machine:

    torchrun --nproc-per-node 4 -m training.t2i.train vae --out training/runs/t2i --minutes 2.5
    torchrun --nproc-per-node 4 -m training.t2i.train unet --out training/runs/t2i --minutes 9
    python -m training.t2i.train assemble --out training/runs/t2i --folder src/kinema/models/pocket_t2i

First train the VAE, then the UNet and text encoder on its latents: v-prediction with a noise schedule whose last level
is pure noise (Lin et al. 2023), and a tenth of the captions dropped for guidance. Scenes are drawn and captioned during
training, so images rarely repeat; held-out combinations are never drawn.

The learning rate schedule lasts `--total-minutes`. A run ends after `--minutes`; the next run with the same `--out`
resumes.
"""

import argparse
import copy
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from training.common.parallel import ProcessGroup
from training.t2i.drawing import draw, draw_with_things
from training.t2i.model_card import card
from training.t2i.networks import (
    HEIGHT,
    SCHEDULER,
    WIDTH,
    count_parameters,
    make_text_encoder,
    make_unet,
    make_vae,
)
from training.t2i.scenes import Scene, training_scene
from training.t2i.words import (
    END,
    MAX_TOKENS,
    UNKNOWN,
    caption,
    token_ids,
    vocabulary,
    write_effective_words,
    write_tokenizer,
)

VAE_RATE, UNET_RATE = 1e-3, 8e-4
CAPTIONS_PER_SCENE = 4
CAPTION_DROPOUT = 0.1
THING_WEIGHT = 5  # additional loss weight of things, at the noise levels that determine their shape
TOKENS = vocabulary()
WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}


def pad(ids: list[int]) -> list[int]:
    """Pad or truncate token ids to MAX_TOKENS, as the pipeline does."""
    if len(ids) > MAX_TOKENS:
        ids = [*ids[: MAX_TOKENS - 1], TOKENS[END]]
    return ids + [TOKENS[END]] * (MAX_TOKENS - len(ids))


def caption_tokens(rng: random.Random, text: str) -> list[int]:
    """Return a caption's padded token ids, with runs of the unknown token inserted at random."""
    ids = token_ids(text, TOKENS)
    while rng.random() < 0.08:
        at = rng.randrange(1, len(ids))
        ids[at:at] = [TOKENS[UNKNOWN]] * rng.randint(2, 9)
    return pad(ids)


def scene_captions(rng: random.Random, scene: Scene) -> list[list[int]]:
    """Return the token ids of CAPTIONS_PER_SCENE random captions of a scene."""
    return [caption_tokens(rng, caption(scene, rng)) for _ in range(CAPTIONS_PER_SCENE)]


class ScenePool:
    """A pool of drawn scenes on the device; `refresh` replaces the oldest by new ones.

    `encode` maps images, [n, 3, h, w] in 0…1, and the coverage of things, [n, 1, h, w], to the data to store. `label`
    returns one or more labels of a scene, as lists of integers of equal length.
    """

    def __init__(
        self,
        size: int,
        drawn: int,
        device: str,
        *,
        encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        label: Callable[[random.Random, Scene], list[list[int]]] = scene_captions,
    ) -> None:
        self.size, self.drawn, self.device, self._encode, self._label = size, min(drawn, size), device, encode, label
        seed = torch.initial_seed()
        self._rng = random.Random(seed)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._next = 0
        data, labels = self._draw()
        self.data = torch.zeros(size, *data.shape[1:], dtype=data.dtype, device=device)
        self.labels = torch.zeros(size, *labels.shape[1:], dtype=torch.long, device=device)
        for _ in range(-(-size // self.drawn)):
            self.refresh()

    def refresh(self) -> None:
        """Replace the oldest scenes by newly drawn ones."""
        data, labels = self._draw()
        rows = torch.arange(self._next, self._next + self.drawn, device=self.device) % self.size
        self.data[rows], self.labels[rows] = data, labels
        self._next = (self._next + self.drawn) % self.size

    def sample(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the data of random scenes, [n, …], each with one of its labels at random, [n, length]."""
        rows = torch.randint(self.size, (number,), device=self.device)
        column = torch.randint(self.labels.shape[1], (number,), device=self.device)
        return self.data[rows], self.labels[rows, column]

    def _draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = [training_scene(self._rng) for _ in range(self.drawn)]
        labels = torch.tensor([self._label(self._rng, s) for s in scenes])
        pixels, covered = draw_with_things(scenes, self._generator, self.device, HEIGHT, WIDTH)
        return self._encode(pixels, covered), labels.to(self.device)


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


def vae_loss(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Return L1 plus L2 loss, L1 loss of the image gradients at three scales, and KL; pixels are uint8 [b, 3, h, w]."""
    x = pixels.float() / 127.5 - 1
    posterior = vae.encode(x).latent_dist
    z = posterior.mean + torch.exp(0.5 * posterior.logvar) * torch.randn_like(posterior.mean)
    error = vae.decode(z).sample.float() - x
    loss = error.abs().mean() + 2 * error.square().mean()
    for scale in (1, 2, 4):
        e = F.avg_pool2d(error, scale) if scale > 1 else error
        loss = loss + 0.5 * ((e[..., 1:, :] - e[..., :-1, :]).abs().mean() + (e[..., 1:] - e[..., :-1]).abs().mean())
    mean, log = posterior.mean.float(), posterior.logvar.float()
    return loss + 2e-4 * 0.5 * (mean.square() + log.exp() - 1 - log).mean()


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


@torch.no_grad()
def validate_vae(vae: AutoencoderKL, device: str, number: int) -> dict[str, float]:
    """Return metrics of reconstructed, newly drawn scenes: mean and worst PSNR in dB, and chroma error in 1/255."""
    rng = random.Random(1)
    scenes = [training_scene(rng) for _ in range(number)]
    x = draw(scenes, torch.Generator(device).manual_seed(1), device, HEIGHT, WIDTH)
    x = (x * 255).round() / 127.5 - 1
    y = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) for part in x.split(8)])
    mse = ((y - x) / 2).square().mean((1, 2, 3))
    chroma = ((y - y.mean(1, keepdim=True)) - (x - x.mean(1, keepdim=True))).abs().mean() * 127.5
    return {
        "psnr": -10 * mse.log10().mean().item(),
        "psnr_worst": -10 * mse.log10().max().item(),
        "chroma": chroma.item(),
    }


def as_bytes(pixels: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
    """Convert pixels in 0…1 to uint8."""
    return (pixels * 255).round().to(torch.uint8)


def train(
    args: argparse.Namespace,
    modules: torch.nn.ModuleDict,
    rate: float,
    compute: Callable[..., torch.Tensor],
    make_scenes: Callable[[], ScenePool],
    finish: Callable[[torch.nn.ModuleDict, dict], None],
) -> None:
    """Train modules for `args.minutes`: `compute` returns the loss of a sample of the pool, `finish` writes weights."""
    processes, total, name = args.processes, args.total_minutes or args.minutes, f"{args.part}-state.pt"
    ema = copy.deepcopy(modules).requires_grad_(False).eval()
    weights = [p for p in modules.parameters() if p.requires_grad]
    fused = args.device == "cuda"
    optimizer = torch.optim.AdamW(weights, rate, betas=(0.9, 0.99), weight_decay=0.01, fused=fused)
    step, spent, log = 0, args.spent, []
    if (args.out / name).exists():
        state = torch.load(args.out / name, map_location=args.device, weights_only=True)
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
        try:
            graphed_step.record(*scenes.sample(args.batch))
            processes.print(f"recorded the CUDA graph after {processes.elapsed_minutes():.2f} minutes")
        except RuntimeError as error:
            torch.cuda.synchronize()
            processes.print(f"no CUDA graph recorded, training without it: {error}")

    first, recent, elapsed = step, [], processes.elapsed_minutes()
    while elapsed < args.minutes and step - first < args.steps:
        progress = min(1, (spent + elapsed) / total)
        current_rate = rate * min(1, (step - first + 1) / 200) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = current_rate
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
    if processes.rank == 0:
        state = {"modules": modules.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"step": step, "spent": spent + elapsed, "log": log}
        finish(ema, state)
        torch.save(state, args.out / name)
        (args.out / f"{args.part}-log.json").write_text(json.dumps(log, indent=1))
        processes.print(f"step {step}, {elapsed * 60 / max(1, step - first):.3f} s per step")
    processes.leave()


def train_vae(args: argparse.Namespace) -> None:
    """Train the VAE and write it to OUT/vae."""
    torch.manual_seed(0)
    vae = make_vae().to(args.device).train()
    if args.begin_from:
        vae.load_state_dict(load_file(args.begin_from / "vae" / f"{WEIGHTS['vae']}.safetensors"), strict=True)
    modules = torch.nn.ModuleDict({"vae": vae})

    def finish(ema: torch.nn.ModuleDict, state: dict) -> None:
        """Measure the scaling factor of the latents, validate and write the VAE."""
        scenes = ScenePool(64 if args.device == "cpu" else 1024, 32, args.device, encode=lambda p, _: p)
        with torch.no_grad():
            z = torch.cat([ema.vae.encode(p * 2 - 1).latent_dist.mode() for p in scenes.data.split(32)])
        ema.vae.register_to_config(scaling_factor=float(1 / z.std()))
        metrics = validate_vae(ema.vae, args.device, 8 if args.device == "cpu" else 256)
        state["log"].append({"step": state["step"], "scaling_factor": ema.vae.config.scaling_factor} | metrics)
        print(json.dumps(state["log"][-1]), flush=True)
        ema.vae.save_pretrained(args.out / "vae")

    train(
        args,
        modules,
        VAE_RATE,
        lambda pixels, _: vae_loss(vae, pixels),
        lambda: ScenePool(args.pool or 8192, args.drawn, args.device, encode=as_bytes),
        finish,
    )


def train_unet(args: argparse.Namespace) -> None:
    """Train UNet and text encoder on latents of OUT/vae and write them to OUT."""
    vae = AutoencoderKL.from_pretrained(args.out / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    encoder = torch.nn.Sequential(vae.encoder, vae.quant_conv).to(args.device, dtype)
    torch.manual_seed(0)
    unet, text_encoder = make_unet().to(args.device).train(), make_text_encoder().to(args.device).train()
    if args.begin_from:
        for name, module in (("unet", unet), ("text_encoder", text_encoder)):
            module.load_state_dict(load_file(args.begin_from / name / f"{WEIGHTS[name]}.safetensors"), strict=True)
    modules = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    forward = torch.compile(unet) if args.compile else unet
    alphas = EulerDiscreteScheduler.from_config(SCHEDULER).alphas_cumprod.to(args.device)
    empty_tokens = torch.tensor([pad(token_ids("", TOKENS))], device=args.device)

    @torch.no_grad()
    def encode(pixels: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
        """Return scaled latents, the mode of the posterior, and the coverage of things, dilated by one latent."""
        moments = torch.cat([encoder((p * 2 - 1).to(dtype)) for p in pixels.split(64)])
        latents = moments.chunk(2, 1)[0].float() * vae.config.scaling_factor
        things = F.max_pool2d(F.avg_pool2d(covered, 8), 3, 1, 1)
        return torch.cat([latents, things], 1).to(dtype)

    def finish(ema: torch.nn.ModuleDict, _: dict) -> None:
        ema.unet.save_pretrained(args.out / "unet")
        ema.text_encoder.save_pretrained(args.out / "text_encoder")

    train(
        args,
        modules,
        UNET_RATE,
        lambda data, tokens: unet_loss(forward, text_encoder, alphas, empty_tokens, data, tokens),
        lambda: ScenePool(args.pool or 32768, args.drawn, args.device, encode=encode),
        finish,
    )


def assemble(args: argparse.Namespace) -> None:
    """Write the trained networks as one model folder in Stable Diffusion's layout, with float16 weights."""
    for part, file in WEIGHTS.items():
        target = args.folder / part
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(args.out / part / "config.json", target / "config.json")
        tensors = load_file(args.out / part / f"{file}.safetensors")
        halves = {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in tensors.items()}
        if not all(v.isfinite().all() for v in halves.values()):
            raise SystemExit(f"{part} has weights outside the range of float16")
        save_file(halves, target / f"{file}.safetensors", metadata={"format": "pt"})
        (target / f"{file}.safetensors").chmod(0o644)  # safetensors creates files readable by the owner only
        print(f"{part}: {sum(v.numel() for v in halves.values()) / 1e6:.2f} M parameters")
    write_tokenizer(args.folder / "tokenizer")
    write_effective_words(args.folder)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (args.folder / "scheduler").mkdir(exist_ok=True)
    for path, value in {"model_index.json": index, "scheduler/scheduler_config.json": SCHEDULER}.items():
        (args.folder / path).write_text(json.dumps(value, indent=2) + "\n")
    record = json.loads(args.record.read_text()) if args.record else None
    (args.folder / "README.md").write_text(card(record), encoding="utf-8")
    size = sum(f.stat().st_size for f in args.folder.rglob("*") if f.is_file())
    print(f"{args.folder}: {size / 2**20:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("vae", "unet", "assemble"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the training run, the same for all parts")
    parser.add_argument(
        "--folder", type=Path, default=Path("src/kinema/models/pocket_t2i"), help="model folder that assemble writes"
    )
    parser.add_argument(
        "--record", type=Path, help="for assemble: JSON of evaluate.py with the figures for the model card"
    )
    parser.add_argument("--begin-from", type=Path, help="model folder to start a new schedule from")
    parser.add_argument("--minutes", type=float, default=9, help="minutes to train in this run")
    parser.add_argument("--total-minutes", type=float, help="length of the schedule (default: --minutes)")
    parser.add_argument(
        "--spent", type=float, default=0.0, help="minutes of the schedule that --begin-from was already trained for"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the UNet; takes one or two minutes before the first step"
    )
    parser.add_argument("--steps", type=int, default=10**9, help="maximum number of steps, for a quick trial")
    parser.add_argument("--batch", type=int, help="images per GPU and step (default: 48 for the VAE, 320 for the UNet)")
    parser.add_argument(
        "--pool", type=int, help="scenes in the pool of each device (default: 8192 for the VAE, 32768 for the UNet)"
    )
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
    args.batch = args.batch or {"vae": 48, "unet": 320}.get(args.part)
    if args.part == "assemble":
        assemble(args)
        return
    args.processes = ProcessGroup.join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    {"vae": train_vae, "unet": train_unet}[args.part](args)


if __name__ == "__main__":
    main()

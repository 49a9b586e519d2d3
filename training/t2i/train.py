r"""Train the pocket text-to-image model on scenes of its own drawing, on one GPU or several of a machine:

    torchrun --nproc-per-node 4 -m training.t2i.train vae --out training/runs/t2i --minutes 2.5
    torchrun --nproc-per-node 4 -m training.t2i.train unet --out training/runs/t2i --minutes 9
    python -m training.t2i.train assemble --out training/runs/t2i --folder src/kinema/models/pocket_t2i

First the VAE (pictures ↔ latents), then UNet and text encoder on its latents: v-prediction over a schedule whose last
level is pure noise (Lin et al. 2023), a tenth of the captions left out for guidance. Scenes are drawn and captioned
while training goes on, so that hardly a picture is seen often; held-out combinations are never drawn.

A run is a schedule of `--total-minutes`; a piece of it ends after `--minutes` and the next one resumes from `--out`.
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

from training.common.parallel import Fleet
from training.t2i.drawing import draw, draw_with_things
from training.t2i.model_card import card
from training.t2i.networks import (
    HEIGHT,
    SCHEDULER,
    WIDTH,
    make_text_encoder,
    make_unet,
    make_vae,
    parameters,
)
from training.t2i.scenes import Scene, training_scene
from training.t2i.words import (
    END,
    MAX_TOKENS,
    UNKNOWN,
    caption,
    token_numbers,
    vocabulary,
    write_drawn_words,
    write_tokenizer,
)

VAE_RATE, UNET_RATE = 1e-3, 8e-4
WORDINGS = 4  # captions kept with each picture
CAPTIONLESS = 0.1
THINGS_COUNT = 5  # how much more an error in a thing counts, at the levels at which its shape is decided
TOKENS = vocabulary()
WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}


def padded(numbers: list[int]) -> list[int]:
    """A caption's tokens at full length, as the pipeline pads and cuts them."""
    if len(numbers) > MAX_TOKENS:
        numbers = [*numbers[: MAX_TOKENS - 1], TOKENS[END]]
    return numbers + [TOKENS[END]] * (MAX_TOKENS - len(numbers))


def told(rng: random.Random, text: str) -> list[int]:
    """A caption's tokens; now and then a word that the model does not know stands in it, a token a letter."""
    numbers = token_numbers(text, TOKENS)
    while rng.random() < 0.08:
        at = rng.randrange(1, len(numbers))
        numbers[at:at] = [TOKENS[UNKNOWN]] * rng.randint(2, 9)
    return padded(numbers)


def tell(rng: random.Random, scene: Scene) -> list[list[int]]:
    """Some wordings of a scene in tokens."""
    return [told(rng, caption(scene, rng)) for _ in range(WORDINGS)]


class Scenes:
    """A pool of drawn scenes on the device, whose oldest are replaced by new ones as training goes on.

    `encode` makes of pictures, [n, 3, h, w] in 0…1, and of where things are in them, [n, 1, h, w], what is kept; `tell`
    gives one or more lists of numbers, all of one length, that say what a scene shows.
    """

    def __init__(
        self,
        size: int,
        drawn: int,
        device: str,
        *,
        encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        tell: Callable[[random.Random, Scene], list[list[int]]] = tell,
    ) -> None:
        self.size, self.drawn, self.device, self._encode, self._tell = size, min(drawn, size), device, encode, tell
        seed = torch.initial_seed()
        self._rng = random.Random(seed)
        self._generator = torch.Generator(device).manual_seed(seed)
        self._next = 0
        kept, told = self._new()
        self.kept = torch.zeros(size, *kept.shape[1:], dtype=kept.dtype, device=device)
        self.told = torch.zeros(size, *told.shape[1:], dtype=torch.long, device=device)
        for _ in range(-(-size // self.drawn)):
            self.refresh()

    def refresh(self) -> None:
        """Draw a batch of new scenes in the place of the oldest."""
        kept, told = self._new()
        rows = torch.arange(self._next, self._next + self.drawn, device=self.device) % self.size
        self.kept[rows], self.told[rows] = kept, told
        self._next = (self._next + self.drawn) % self.size

    def pick(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Some of the pool by lot, each with one of the ways it is told: [n, …] and [n, numbers]."""
        rows = torch.randint(self.size, (number,), device=self.device)
        wording = torch.randint(self.told.shape[1], (number,), device=self.device)
        return self.kept[rows], self.told[rows, wording]

    def _new(self) -> tuple[torch.Tensor, torch.Tensor]:
        scenes = [training_scene(self._rng) for _ in range(self.drawn)]
        numbers = torch.tensor([self._tell(self._rng, s) for s in scenes])
        pixels, covered = draw_with_things(scenes, self._generator, self.device, HEIGHT, WIDTH)
        return self._encode(pixels, covered), numbers.to(self.device)


class Step:
    """Runs `compute` on given tensors and leaves gradients in `flat`, from a CUDA graph where one could be recorded.

    A step launches thousands of small kernels, for which Python needs longer than the GPU does.
    """

    def __init__(self, weights: list[torch.nn.Parameter], compute: Callable[..., torch.Tensor]) -> None:
        self.flat = torch.zeros(sum(p.numel() for p in weights), device=weights[0].device)
        for p, part in zip(weights, self.flat.split([p.numel() for p in weights]), strict=True):
            p.grad = part.view_as(p)
        self._compute, self._graph = compute, None

    def __call__(self, *given: torch.Tensor) -> torch.Tensor:
        """The loss."""
        if self._graph is None:
            return self._run(*given)
        for mine, theirs in zip(self._given, given, strict=True):
            mine.copy_(theirs)
        self._graph.replay()
        return self._loss.clone()

    def record(self, *given: torch.Tensor) -> None:
        """Record the graph from tensors whose shapes all later ones must have."""
        self._given = tuple(t.clone() for t in given)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._run(*self._given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = self._run(*self._given)
        self._graph = graph

    def _run(self, *given: torch.Tensor) -> torch.Tensor:
        self.flat.zero_()
        with torch.autocast(self.flat.device.type, torch.bfloat16, enabled=self.flat.is_cuda):
            loss = self._compute(*given)
        loss.backward()
        return loss.detach()


def vae_loss(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """L1, L2 and gradients at three scales, with a little KL; pixels are uint8 [b, 3, h, w]."""
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
    nothing: torch.Tensor,
    kept: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of v at random levels.

    Things are a small part of a picture, so that errors in them count for more: most of all between pure noise, where
    nothing is decided, and the picture, where all is.

    Args:
        unet: Of diffusers.
        text_encoder: Of transformers.
        alphas: Cumulated, [1000].
        nothing: The empty caption's tokens, [1, tokens].
        kept: Latents and, as their last channel, where things are: [n, c + 1, h, w].
        tokens: [n, tokens].
    """
    z, things = kept.float().split([kept.shape[1] - 1, 1], 1)
    t = torch.randint(len(alphas), (len(z),), device=z.device)
    signal, level = alphas[t].sqrt().view(-1, 1, 1, 1), (1 - alphas[t]).sqrt().view(-1, 1, 1, 1)
    noise = torch.randn_like(z)
    left_out = torch.rand(len(z), 1, device=z.device) < CAPTIONLESS
    words = text_encoder(input_ids=torch.where(left_out, nothing, tokens)).last_hidden_state
    v = unet(signal * z + level * noise, t, words, return_dict=False)[0]
    weight = 1 + THINGS_COUNT * things * (2 * signal * level).square()
    return (weight * (v.float() - (signal * noise - level * z)).square()).mean() / weight.mean()


@torch.no_grad()
def validate_vae(vae: AutoencoderKL, device: str, number: int) -> dict[str, float]:
    """How well scenes are kept that were never trained on: mean and worst PSNR, and chroma error in 1/255."""
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
    return (pixels * 255).round().to(torch.uint8)


def train(
    args: argparse.Namespace,
    modules: torch.nn.ModuleDict,
    rate: float,
    compute: Callable[..., torch.Tensor],
    make_scenes: Callable[[], Scenes],
    finish: Callable[[torch.nn.ModuleDict, dict], None],
) -> None:
    """Train modules by the clock: `compute` gives the loss of a pick of scenes, `finish` writes averaged weights."""
    fleet, total, name = args.fleet, args.total_minutes or args.minutes, f"{args.part}-state.pt"
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
    sizes = ", ".join(f"{k} {parameters(m) / 1e6:.2f} M" for k, m in modules.items())
    fleet.say(f"{sizes}; {fleet.world} devices, from step {step}")
    fleet.begin()  # also a fresh seed for each process: no two draw the same scenes
    scenes = make_scenes()
    fleet.say(f"{scenes.size} scenes on each device after {fleet.minutes():.2f} minutes")
    work = Step(weights, compute)
    if args.device == "cuda" and not args.no_graph:
        try:
            work.record(*scenes.pick(args.batch))
            fleet.say(f"recorded after {fleet.minutes():.2f} minutes")
        except RuntimeError as error:
            torch.cuda.synchronize()
            fleet.say(f"not recorded, each step is launched: {error}")

    first, recent, elapsed = step, [], fleet.minutes()
    while elapsed < args.minutes and step - first < args.steps:
        progress = min(1, (spent + elapsed) / total)
        now = rate * min(1, (step - first + 1) / 200) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = now
        loss = work(*scenes.pick(args.batch))
        fleet.average(work.flat)
        work.flat.mul_((1.0 / work.flat.norm()).clamp(max=1.0))
        optimizer.step()
        step += 1
        with torch.no_grad():
            keep = min(0.9995, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(ema.parameters()), list(modules.parameters()), 1 - keep)
        recent.append(loss)
        if step % args.refresh == 0:
            scenes.refresh()
        if step % 10 == 0 or args.device == "cpu":  # asking for the time makes Python wait for the GPU
            elapsed = fleet.minutes()
        if step % 200 == 0 or step - first == 5:
            log.append({"step": step, "minutes": round(spent + elapsed, 2), "loss": torch.stack(recent).mean().item()})
            recent = []
            fleet.say(json.dumps(log[-1]))
    if fleet.rank == 0:
        state = {"modules": modules.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"step": step, "spent": spent + elapsed, "log": log}
        finish(ema, state)
        torch.save(state, args.out / name)
        (args.out / f"{args.part}-log.json").write_text(json.dumps(log, indent=1))
        fleet.say(f"step {step}, {elapsed * 60 / max(1, step - first):.3f} s a step")
    fleet.leave()


def train_vae(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    vae = make_vae().to(args.device).train()
    if args.begin_from:
        vae.load_state_dict(load_file(args.begin_from / "vae" / f"{WEIGHTS['vae']}.safetensors"), strict=True)
    modules = torch.nn.ModuleDict({"vae": vae})

    def finish(ema: torch.nn.ModuleDict, state: dict) -> None:
        """Write the VAE with the scale of its latents, which the UNet needs."""
        scenes = Scenes(64 if args.device == "cpu" else 1024, 32, args.device, encode=lambda p, _: p)
        with torch.no_grad():
            z = torch.cat([ema.vae.encode(p * 2 - 1).latent_dist.mode() for p in scenes.kept.split(32)])
        ema.vae.register_to_config(scaling_factor=float(1 / z.std()))
        found = validate_vae(ema.vae, args.device, 8 if args.device == "cpu" else 256)
        state["log"].append({"step": state["step"], "scaling_factor": ema.vae.config.scaling_factor} | found)
        print(json.dumps(state["log"][-1]), flush=True)
        ema.vae.save_pretrained(args.out / "vae")

    train(
        args,
        modules,
        VAE_RATE,
        lambda pixels, _: vae_loss(vae, pixels),
        lambda: Scenes(args.pool or 8192, args.drawn, args.device, encode=as_bytes),
        finish,
    )


def train_unet(args: argparse.Namespace) -> None:
    vae = AutoencoderKL.from_pretrained(args.out / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    encoder = torch.nn.Sequential(vae.encoder, vae.quant_conv).to(args.device, dtype)
    torch.manual_seed(0)
    unet, text_encoder = make_unet().to(args.device).train(), make_text_encoder().to(args.device).train()
    if args.begin_from:
        for name, module in (("unet", unet), ("text_encoder", text_encoder)):
            module.load_state_dict(load_file(args.begin_from / name / f"{WEIGHTS[name]}.safetensors"), strict=True)
    modules = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    seeing = torch.compile(unet) if args.compile else unet
    alphas = EulerDiscreteScheduler.from_config(SCHEDULER).alphas_cumprod.to(args.device)
    nothing = torch.tensor([padded(token_numbers("", TOKENS))], device=args.device)

    @torch.no_grad()
    def encode(pixels: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
        """Scaled latents, as they are sampled later: the mode of the posterior; and where a thing is in or beside."""
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
        lambda kept, tokens: unet_loss(seeing, text_encoder, alphas, nothing, kept, tokens),
        lambda: Scenes(args.pool or 32768, args.drawn, args.device, encode=encode),
        finish,
    )


def assemble(args: argparse.Namespace) -> None:
    """Put the parts together in Stable Diffusion's layout, weights in float16."""
    for part, file in WEIGHTS.items():
        target = args.folder / part
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(args.out / part / "config.json", target / "config.json")
        tensors = load_file(args.out / part / f"{file}.safetensors")
        halves = {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in tensors.items()}
        if not all(v.isfinite().all() for v in halves.values()):
            raise SystemExit(f"{part} has weights that float16 can't hold")
        save_file(halves, target / f"{file}.safetensors", metadata={"format": "pt"})
        (target / f"{file}.safetensors").chmod(0o644)  # safetensors writes for the owner alone
        print(f"{part}: {sum(v.numel() for v in halves.values()) / 1e6:.2f} M parameters")
    write_tokenizer(args.folder / "tokenizer")
    write_drawn_words(args.folder)
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
    parser.add_argument("--out", type=Path, required=True, help="folder of this training, the same for all parts")
    parser.add_argument("--folder", type=Path, default=Path("src/kinema/models/pocket_t2i"), help="for assemble")
    parser.add_argument("--record", type=Path, help="for assemble: evaluate.py's JSON, whose figures the card tells")
    parser.add_argument("--begin-from", type=Path, help="folder of a model whose weights to begin a new schedule from")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--total-minutes", type=float)
    parser.add_argument("--spent", type=float, default=0.0, help="minutes of the schedule that --begin-from has behind")
    parser.add_argument(
        "--compile", action="store_true", help="compile the UNet: a minute or two before the first step"
    )
    parser.add_argument("--steps", type=int, default=10**9, help="at most so many, for a quick trial")
    parser.add_argument("--batch", type=int, help="pictures a GPU and step: 48 for the VAE, 320 for the UNet")
    parser.add_argument("--pool", type=int, help="scenes kept on each device: 8192 for the VAE, 32768 for the UNet")
    parser.add_argument(
        "--drawn", type=int, default=1024, help="scenes drawn at a time: 20,000 small kernels, however many"
    )
    parser.add_argument("--refresh", type=int, default=32, help="steps between two such draws")
    parser.add_argument("--no-graph", action="store_true", help="record no CUDA graph")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.batch = args.batch or {"vae": 48, "unet": 320}.get(args.part)
    if args.part == "assemble":
        assemble(args)
        return
    args.fleet = Fleet.join(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    {"vae": train_vae, "unet": train_unet}[args.part](args)


if __name__ == "__main__":
    main()

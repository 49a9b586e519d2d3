"""Full-size SVD-XT with random weights, from a folder on disk to 25 frames: load time, time by stage, peak memory.

    python bench/svd_xt.py --folder /tmp/svd-xt --out bench/results/svd-xt-load-and-generate.json

The weights are random, written in the real layout from the public configuration: speed, memory and parity are real,
looks are not. The stock pipeline of diffusers runs beside it, in the same process, on the same weights and input.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}
EXTRACTOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}


def write_model(folder: Path) -> None:
    """A random SVD-XT in fp16, as the hub's fp16 variant lies on disk."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        parts = {
            "unet": UNetSpatioTemporalConditionModel(num_frames=25, sample_size=96),
            "vae": AutoencoderKLTemporalDecoder(
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                latent_channels=4,
                sample_size=768,
                down_block_types=("DownEncoderBlock2D",) * 4,
                scaling_factor=0.18215,
                force_upcast=True,
            ),
            "image_encoder": CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=1280,
                    intermediate_size=5120,
                    num_hidden_layers=32,
                    num_attention_heads=16,
                    image_size=224,
                    patch_size=14,
                    projection_dim=1024,
                    hidden_act="gelu",
                )
            ),
        }
    torch.set_default_dtype(before)
    for name, part in parts.items():
        part.save_pretrained(folder / name, variant="fp16", safe_serialization=True, max_shard_size="10GB")
    for path, value in {
        "model_index.json": INDEX,
        "scheduler/scheduler_config.json": SCHEDULER,
        "feature_extractor/preprocessor_config.json": EXTRACTOR,
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(value, indent=2))
    del parts
    torch.cuda.empty_cache()


@contextmanager
def timed(results: dict, name: str) -> Iterator[None]:
    """Note the seconds that the work inside takes on the GPU."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    yield
    torch.cuda.synchronize()
    results[name] = round(time.perf_counter() - started, 3)


def ours(models: object, still: object, settings: dict) -> tuple[dict, np.ndarray]:
    """One video by Kinema: seconds by stage, peak GiB, frames."""
    import kinema
    from kinema.engine import generate
    from kinema.models.catalog import request_for

    request = request_for(model="svd-xt", **settings)
    torch.cuda.reset_peak_memory_stats()
    stages: dict[str, float] = {}
    torch.cuda.synchronize()
    started = last = time.perf_counter()
    clip = None
    for step in generate(models, still, request):
        torch.cuda.synchronize()
        now = time.perf_counter()
        if isinstance(step, kinema.Step):
            stages[step.stage] = stages.get(step.stage, 0) + now - last
        else:
            clip = step
        last = now
    row = {f"{stage}_s": round(seconds, 3) for stage, seconds in stages.items()}
    row |= {
        "seconds": round(last - started, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "memory_plan": clip.recipe.memory_plan,
        "decode_chunk_size": clip.recipe.decode_chunk_size,
        "events": list(clip.recipe.events),
    }
    return row, clip.frames


def theirs(folder: Path, image: Image.Image, chunk: int) -> tuple[list[dict], np.ndarray]:
    """Videos by diffusers' pipeline: seconds, peak GiB, frames of the last."""
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16, variant="fp16")
    pipeline.to("cuda").set_progress_bar_config(disable=True)
    rows = []
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        row: dict = {"decode_chunk_size": chunk}
        with timed(row, "seconds"):
            frames = pipeline(
                image,
                height=576,
                width=1024,
                num_frames=25,
                decode_chunk_size=chunk,
                generator=torch.Generator("cpu").manual_seed(0),
                output_type="np",
            ).frames[0]
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        rows.append(row)
    return rows, (frames * 255).round().astype("uint8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", action="store_true", help="also run `kinema generate --model FOLDER`")
    args = parser.parse_args()
    from kinema.media.still import open_still
    from kinema.models.loading import load

    results: dict = {
        "what": "SVD-XT, full size, random weights, fp16; 1024×576, 25 frames, 25 steps, guidance 1 to 3",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"gpu": torch.cuda.get_device_name(), "python": platform.python_version()},
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "diffusers", "transformers", "accelerate")},
    }

    def keep() -> None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(results)[-600:], flush=True)

    if not (args.folder / "model_index.json").exists():
        with timed(results, "write_folder_s"):
            write_model(args.folder)
    results["folder_bytes"] = sum(f.stat().st_size for f in args.folder.rglob("*.safetensors"))
    with timed(results, "load_s"):
        models = load(args.folder, device="cuda", dtype="float16")
    results["loaded_gib"] = round(torch.cuda.memory_allocated() / 2**30, 2)
    with timed(results, "hash_s"):
        results["weights_sha256"] = models.identity.weights_sha256
    image = Image.fromarray((np.random.default_rng(0).random((576, 1024, 3)) * 255).astype("uint8"))
    still = open_still(image)
    keep()
    results["kinema_first"], _ = ours(models, still, {"seed": 0})
    keep()
    results["kinema"], frames = ours(models, still, {"seed": 0})
    results["kinema_chunk_8"], frames_8 = ours(models, still, {"seed": 0, "decode_chunk_size": 8})
    keep()
    models.release()
    del models
    torch.cuda.empty_cache()
    results["diffusers"], reference = theirs(args.folder, image, 8)
    difference = np.abs(frames_8.astype(int) - reference.astype(int))
    results["fp16_difference_in_255ths"] = {
        "note": "noise is drawn in float32 here, in float16 there, so frames may differ; parity is tested in fp32",
        "mean": round(float(difference.mean()), 3),
        "max": int(difference.max()),
    }
    results["chunk_effect_in_255ths"] = round(float(np.abs(frames.astype(int) - frames_8.astype(int)).mean()), 3)
    keep()
    if args.command:
        image.save(args.folder.with_suffix(".png"))
        video = args.folder.with_suffix(".mp4")
        command = [sys.executable, "-m", "kinema", "generate", str(args.folder.with_suffix(".png"))]
        with timed(results, "command_s"):
            done = subprocess.run(
                [*command, "-o", str(video), "--model", str(args.folder), "--seed", "0"],
                capture_output=True,
                text=True,
                check=False,
            )
        results["command"] = {"exit": done.returncode, "stdout": done.stdout[-200:], "stderr": done.stderr[-600:]}
        keep()


if __name__ == "__main__":
    main()

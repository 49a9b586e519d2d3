"""Measure `kinema generate --prompt`: full-size Stable Diffusion 2.1 base and SVD-XT with random weights.

    python bench/text_to_video.py --image-pipeline /tmp/sd-2.1-base --video /tmp/svd-xt --out results.json

Missing models are written in the hub's layout, from the published configurations. The results have seconds and peak
memory of each half, and the device memory in use after the text-to-image model. Speed and memory equal those of the
trained models; the videos are noise. `--tiny` tests the script on any machine, with the tests' tiny models.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

PROMPT = "a photograph of an astronaut riding a horse"
SD_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SD_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
VOCABULARY, MAX_TOKENS = 49408, 77
START, END = "<|startoftext|>", "<|endoftext|>"


def write_image_pipeline(folder: Path) -> None:
    """Write a Stable Diffusion 2.1 base with random weights in float16, in the layout of the hub's fp16 variant."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        parts = {
            "unet": UNet2DConditionModel(
                sample_size=64,
                block_out_channels=(320, 640, 1280, 1280),
                cross_attention_dim=1024,
                attention_head_dim=(5, 10, 20, 20),
                use_linear_projection=True,
            ),
            "vae": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=4,
                sample_size=768,
                scaling_factor=0.18215,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=1024,
                    intermediate_size=4096,
                    num_hidden_layers=23,
                    num_attention_heads=16,
                    max_position_embeddings=MAX_TOKENS,
                    hidden_act="gelu",
                    projection_dim=512,
                    bos_token_id=VOCABULARY - 2,
                    eos_token_id=VOCABULARY - 1,
                    pad_token_id=VOCABULARY - 1,
                )
            ),
        }
    torch.set_default_dtype(before)
    for name, part in parts.items():
        part.save_pretrained(folder / name, variant="fp16", safe_serialization=True, max_shard_size="10GB")
    del parts
    torch.cuda.empty_cache()
    for path, value in {"model_index.json": SD_INDEX, "scheduler/scheduler_config.json": SD_SCHEDULER}.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(value, indent=2))
    write_tokenizer(folder / "tokenizer")


def write_tokenizer(folder: Path) -> None:
    """Write a CLIPTokenizer without merges: one token per byte, and one per byte at the end of a word."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: i for i, token in enumerate(tokens)} | {START: VOCABULARY - 2, END: VOCABULARY - 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def write_models(image_pipeline: Path, video: Path, *, tiny: bool) -> None:
    """Write both models, unless their folders exist."""
    if tiny:
        sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]
        from tiny import make_tiny_sd as write_sd
        from tiny import make_tiny_svd as write_svd
    else:
        from svd_xt import write_model as write_svd

        write_sd = write_image_pipeline
    for folder, write in ((image_pipeline, write_sd), (video, write_svd)):
        if not (folder / "model_index.json").exists():
            write(folder)
    if tiny:
        write_tokenizer(image_pipeline / "byte-tokenizer")  # only a test: the tiny model has its own


class EventRecorder(io.StringIO):
    """Replaces stdout: records each JSON event with its time and the device's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict] = []
        self.started = time.perf_counter()

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                memory = {
                    "gib": round(torch.cuda.memory_allocated() / 2**30, 3),
                    "reserved_gib": round(torch.cuda.memory_reserved() / 2**30, 3),
                    "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
                }
            else:
                memory = {"gib": None, "reserved_gib": None, "peak_gib": None}
            event = json.loads(line)
            self.events.append({"at": time.perf_counter() - self.started, **event, **memory})
            if event["event"] in {"image_done", "load"} and torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        return len(text)


def run_command(arguments: list[str]) -> tuple[int, EventRecorder]:
    """Run the command in this process, to read the device's memory; return its exit code and its events."""
    from kinema.cli import main

    recorder = EventRecorder()
    with contextlib.redirect_stdout(recorder):
        code = main([*arguments, "--json"])
    return code, recorder


def summary(events: list[dict]) -> dict:
    """Return seconds and memory of both halves from the events of one run."""
    loads = [event for event in events if event["event"] == "load"]
    loaded = [event for event in events if event["event"] == "loaded"]
    first = {
        kind: next(event for event in events if event["event"] == kind)
        for kind in ("text_to_image", "image_done", "start")
    }
    done = events[-1]
    stages: dict[str, float] = {}
    last = first["start"]["at"]
    for event in events:
        if event["event"] == "step" and event["stage"] != "text_to_image":
            stages[event["stage"]] = stages.get(event["stage"], 0) + event["at"] - last
            last = event["at"]
    return {
        "image_model": {
            "load_s": round(loaded[0]["at"] - loads[0]["at"], 3),
            "generate_s": round(first["image_done"]["at"] - first["text_to_image"]["at"], 3),
            "peak_gib": first["image_done"]["peak_gib"],
        },
        "after_image_generation": {key: first["image_done"][key] for key in ("gib", "reserved_gib")},
        "before_the_video_model": {key: loads[1][key] for key in ("gib", "reserved_gib")},
        "video": {
            "load_s": round(loaded[1]["at"] - loads[1]["at"], 3),
            **{f"{stage}_s": round(seconds, 3) for stage, seconds in stages.items()},
            "write_s": round(done["at"] - last, 3),
            "peak_gib": max((event["peak_gib"] or 0 for event in events if event["at"] > loads[1]["at"]), default=0),
        },
        "seconds": round(done["at"], 3),
        "warnings": done["warnings"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--image-pipeline", type=Path, required=True, help="folder of the text-to-image model; written if missing"
    )
    parser.add_argument("--video", type=Path, required=True, help="folder of the video model; written if missing")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--tiny", action="store_true", help="use tiny models and sizes, on any machine")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("full-size models need a CUDA device; use --tiny to test the script without one")
    results: dict = {
        "what": "tiny models: a test of the script, not a measurement"
        if args.tiny
        else "SD 2.1 base and SVD-XT, full size, random weights, fp16; a prompt → an image of 1024×576 → 25 frames",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "python": platform.python_version(),
        },
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "diffusers", "transformers", "accelerate")},
    }
    write_models(args.image_pipeline, args.video, tiny=args.tiny)
    for name, folder in (("image_model", args.image_pipeline), ("video", args.video)):
        results[f"{name}_bytes"] = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    video, image = args.out.with_suffix(".mp4"), args.out.with_suffix(".png")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["generate", "--prompt", PROMPT, "--model", str(args.video), "--image-model", str(args.image_pipeline)]
    arguments += ["--seed", "0", "-o", str(video), "--save-image", str(image), "--force"]
    if args.tiny:
        arguments += ["--width=64", "--height=64", "--num-inference-steps=2", "--image-num-inference-steps=2"]

    def save() -> None:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(results)[-800:], flush=True)

    # Two runs: the first in a process includes loading and autotuning kernels.
    for name in ("first_run", "second_run"):
        code, recorder = run_command(arguments)
        if code:
            raise SystemExit(code)
        results[name] = summary(recorder.events)
        save()
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "kinema", *arguments], capture_output=True, text=True, check=False)
    results["command"] = {
        "seconds": round(time.perf_counter() - started, 3),
        "exit": done.returncode,
        "stdout": done.stdout[-200:],
        "stderr": done.stderr[-600:],
    }
    save()


if __name__ == "__main__":
    main()

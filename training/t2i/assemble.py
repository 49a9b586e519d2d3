r"""Assemble the parts of the text-to-image model in one model folder:

python -m training.t2i.assemble --vae training/runs/t2i-vae/vae --unet training/runs/t2i-unet --out out/t2i
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from training.t2i.model_card import card
from training.t2i.networks import SCHEDULER
from training.t2i.words import write_effective_words, write_tokenizer

WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}


def assemble(vae: Path, unet: Path, out: Path, record: dict[str, Any] | None = None) -> None:
    """Write the trained networks as one model folder in Stable Diffusion's layout, with float16 weights.

    Args:
        vae: Folder with the VAE.
        unet: Folder with unet/ and text_encoder/.
        out: Folder to write.
        record: Record of evaluate.py with the figures for the model card.
    """
    folders = {"vae": vae, "unet": unet / "unet", "text_encoder": unet / "text_encoder"}
    for part, file in WEIGHTS.items():
        target = out / part
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(folders[part] / "config.json", target / "config.json")
        tensors = load_file(folders[part] / f"{file}.safetensors")
        halves = {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in tensors.items()}
        if not all(v.isfinite().all() for v in halves.values()):
            raise SystemExit(f"{part} has weights outside the range of float16")
        save_file(halves, target / f"{file}.safetensors", metadata={"format": "pt"})
        (target / f"{file}.safetensors").chmod(0o644)  # safetensors creates files readable by the owner only
        print(f"{part}: {sum(v.numel() for v in halves.values()) / 1e6:.2f} M parameters")
    write_tokenizer(out / "tokenizer")
    write_effective_words(out)
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
    (out / "scheduler").mkdir(exist_ok=True)
    for path, value in {"model_index.json": index, "scheduler/scheduler_config.json": SCHEDULER}.items():
        (out / path).write_text(json.dumps(value, indent=2) + "\n")
    (out / "README.md").write_text(card(record), encoding="utf-8")
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder with the VAE")
    parser.add_argument("--unet", type=Path, required=True, help="folder with unet/ and text_encoder/")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--record", type=Path, help="JSON of evaluate.py with the figures for the model card")
    args = parser.parse_args()
    record = json.loads(args.record.read_text()) if args.record else None
    assemble(args.vae, args.unet, args.out, record)


if __name__ == "__main__":
    main()

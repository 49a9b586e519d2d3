r"""Write the trained networks as one model folder in SVD's layout, with float16 weights:

python -m training.pocket.assemble --vae training/runs/decoder/vae --unet training/runs/unet \
        --out src/kinema/models/pocket
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kinema.models.catalog import CATALOG, DEFAULTS_FILE
from training.common.svd_config import FEATURE_EXTRACTOR, MODEL_INDEX
from training.pocket.networks import SCHEDULER

WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "image_encoder": "model"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder with the trained VAE")
    parser.add_argument("--unet", type=Path, required=True, help="folder with unet/ and image_encoder/")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args = parser.parse_args()
    folders = {"vae": args.vae, "unet": args.unet / "unet", "image_encoder": args.unet / "image_encoder"}
    for part, folder in folders.items():
        target = args.out / part
        target.mkdir(parents=True, exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config.pop("_name_or_path", None)  # a path of the training machine
        name = f"{WEIGHTS[part]}.safetensors"
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {k: v.to(torch.float16).contiguous() for k, v in load_file(folder / name).items()}
        save_file(tensors, target / name, metadata={"format": "pt"})
        (target / name).chmod(0o644)  # safetensors creates files readable by the owner only
        print(f"{part}: {sum(v.numel() for v in tensors.values()) / 1e6:.2f} M parameters")
    for path, value in {
        "model_index.json": MODEL_INDEX,
        DEFAULTS_FILE: {"defaults": dict(CATALOG["pocket"].defaults)},
        "scheduler/scheduler_config.json": SCHEDULER,
        "feature_extractor/preprocessor_config.json": FEATURE_EXTRACTOR,
    }.items():
        target = args.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()

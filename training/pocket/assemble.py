"""Write the trained networks as one model folder in SVD's layout, with float16 weights:

python -m training.pocket.assemble --vae training/runs/vae/vae --unet training/runs/unet --out src/kinema/models/pocket

If the UNet also denoises coordinate channels, the VAE gets the same number of extra latent channels: the encoder sets
them to 0 and the decoder ignores them.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kinema.models.catalog import CATALOG, DEFAULTS_FILE
from training.common.svd_config import FEATURE_EXTRACTOR, MODEL_INDEX
from training.pocket.networks import COORDINATE_CHANNELS, SCHEDULER

WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "image_encoder": "model"}


def add_coordinate_channels(vae: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a VAE's tensors with COORDINATE_CHANNELS more latent channels: encoded as 0 and ignored by the decoder."""

    def widen(tensor: torch.Tensor, axis: int) -> torch.Tensor:
        """Insert zeros after the mean and after the log-variance along `axis`."""
        parts = []
        for part in tensor.chunk(2, axis):
            shape = [COORDINATE_CHANNELS if i == axis else size for i, size in enumerate(part.shape)]
            parts += [part, part.new_zeros(shape)]
        return torch.cat(parts, axis)

    widened = dict(vae)
    for name in ("encoder.conv_out", "quant_conv"):
        for leaf in ("weight", "bias"):
            widened[f"{name}.{leaf}"] = widen(widened[f"{name}.{leaf}"], 0)
    widened["quant_conv.weight"] = widen(widened["quant_conv.weight"], 1)
    first = widened["decoder.conv_in.weight"]
    added = first.new_zeros(len(first), COORDINATE_CHANNELS, *first.shape[2:])
    widened["decoder.conv_in.weight"] = torch.cat([first, added], 1)
    return widened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="folder with the trained VAE")
    parser.add_argument("--unet", type=Path, required=True, help="folder with unet/ and image_encoder/")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    args = parser.parse_args()
    channels = json.loads((args.unet / "unet/config.json").read_text())["out_channels"]
    folders = {"vae": args.vae, "unet": args.unet / "unet", "image_encoder": args.unet / "image_encoder"}
    for part, folder in folders.items():
        target = args.out / part
        target.mkdir(parents=True, exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config.pop("_name_or_path", None)  # a path of the training machine
        name = f"{WEIGHTS[part]}.safetensors"
        loaded = load_file(folder / name)
        if part == "vae" and channels > config["latent_channels"]:
            config["latent_channels"], loaded = channels, add_coordinate_channels(loaded)
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = {k: v.to(torch.float16).contiguous() for k, v in loaded.items()}
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

"""Write a full-size SVD-XT with random weights, for measurements on a GPU:

    python bench/svd_xt.py /tmp/svd-xt
    kinema bench --model /tmp/svd-xt --width 1024 --height 576 --num-frames 25 --note "random weights"

The folder has the hub's layout and the published configuration. Speed, memory and parity equal those of the trained
model; the videos are noise.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))

from training.common import svd_config


def write_model(folder: Path) -> None:
    """Write an SVD-XT with random weights in float16, in the layout of the hub's fp16 variant."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        parts = {
            "unet": UNetSpatioTemporalConditionModel(**svd_config.UNET),
            "vae": AutoencoderKLTemporalDecoder(**svd_config.VAE),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**svd_config.IMAGE_ENCODER)),
        }
    torch.set_default_dtype(before)
    for name, part in parts.items():
        part.save_pretrained(folder / name, variant="fp16", safe_serialization=True, max_shard_size="10GB")
    for path, value in {
        "model_index.json": svd_config.MODEL_INDEX,
        "scheduler/scheduler_config.json": svd_config.SCHEDULER,
        "feature_extractor/preprocessor_config.json": svd_config.FEATURE_EXTRACTOR,
    }.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(value, indent=2))
    del parts
    torch.cuda.empty_cache()


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))

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
    """Write an SVD-XT with random weights in float16, in the layout of the hub's fp16 variant."""
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


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))

"""Stable Video Diffusions so small that a test makes a video in well under a second, in the real layout on disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

# diffusers normalises SVD in groups of 32 channels, so no level may have fewer, and the heads share them evenly.
CHANNELS = 32
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}
FEATURE_EXTRACTOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
MODEL_INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "_diffusers_version": "0.24.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}


def make_tiny_svd(
    folder: Path,
    *,
    levels: int = 2,
    latent_channels: int = 4,
    layers: int = 1,
    num_frames: int = 4,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    max_shard_size: str = "10GB",
    force_upcast: bool = True,
    image_size: int = 224,
) -> Path:
    """Write a random SVD of a few hundred thousand parameters into `folder`, as `save_pretrained` would.

    Args:
        folder: Made if it is not there.
        levels: Resolutions of the UNet: 2 or 4. The VAE always shrinks 8 times, as the real one does.
        latent_channels: Channels of a latent; the UNet takes twice as many.
        layers: Layers per block, in the UNet and the VAE.
        num_frames: What the UNet's configuration says of its training.
        seed: Of the random weights.
        dtype: Of the weights, float32 when not given.
        variant: "fp16" puts `.fp16` into the names of the files.
        max_shard_size: Small values, as "200KB", make sharded weights with an index.
        force_upcast: What the VAE's configuration says of encoding in float32.
        image_size: Side of the square that CLIP sees.
    """
    import torch
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    attended = ("CrossAttnDownBlockSpatioTemporal",) * (levels - 1) + ("DownBlockSpatioTemporal",)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNetSpatioTemporalConditionModel(
            sample_size=8,
            in_channels=2 * latent_channels,
            out_channels=latent_channels,
            down_block_types=attended,
            up_block_types=tuple(name.replace("Down", "Up") for name in reversed(attended)),
            block_out_channels=(CHANNELS,) * levels,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            layers_per_block=layers,
            cross_attention_dim=16,
            num_attention_heads=2,
            num_frames=num_frames,
        )
        vae = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4,
            block_out_channels=(CHANNELS,) * 4,
            layers_per_block=layers,
            latent_channels=latent_channels,
            sample_size=64,
            force_upcast=force_upcast,
        )
        image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=image_size,
                patch_size=56,
                projection_dim=16,
                hidden_act="gelu",
            )
        )
    for part, model in (("unet", unet), ("vae", vae), ("image_encoder", image_encoder)):
        (model.to(dtype) if dtype else model).save_pretrained(
            folder / part, variant=variant, max_shard_size=max_shard_size, safe_serialization=True
        )
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "feature_extractor" / "preprocessor_config.json", FEATURE_EXTRACTOR)
    write_json(folder / "model_index.json", MODEL_INDEX)
    return folder


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

"""The networks of the pocket video model: small ones in the classes and layout of Stable Video Diffusion."""

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

HEIGHT, WIDTH, NUM_FRAMES = 160, 288, 14
VAE_FACTOR = 4  # pixels to one latent, a side
LATENT_CHANNELS = 8  # of the VAE
FLOW_CHANNELS = 2  # beside them, for a UNet that denoises its motion too (`Arm.flow`)
STEPS = 8  # the pocket's default, for which it is distilled
EMBEDDING = 64
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # those of CLIP
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 40.0,  # SVD's 700 spends its first steps where this small a latent holds nothing,
    "sigma_min": 0.05,  # and its 0.002 the last one where nothing is left to do
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def make_vae(latent_channels: int = LATENT_CHANNELS) -> AutoencoderKLTemporalDecoder:
    """4× smaller a side. 64 channels and more a level: with 32, its 32 norm groups would erase colour."""
    return AutoencoderKLTemporalDecoder(
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        latent_channels=latent_channels,
        sample_size=WIDTH,
        down_block_types=("DownEncoderBlock2D",) * 3,
        scaling_factor=1.0,
        force_upcast=False,
    )


def make_unet(
    latent_channels: int = LATENT_CHANNELS, *, attention_at_top: bool = False
) -> UNetSpatioTemporalConditionModel:
    """Four levels of 40×72, 20×36, 10×18 and 5×9 latents; on the way up the first may attend within a frame too."""
    attends = "CrossAttn{}BlockSpatioTemporal".format
    plain = "{}BlockSpatioTemporal".format
    return UNetSpatioTemporalConditionModel(
        sample_size=WIDTH // VAE_FACTOR,
        in_channels=2 * latent_channels,
        out_channels=latent_channels,
        num_frames=NUM_FRAMES,
        down_block_types=(plain("Down"), attends("Down"), attends("Down"), plain("Down")),
        up_block_types=(plain("Up"), attends("Up"), attends("Up"), (attends if attention_at_top else plain)("Up")),
        block_out_channels=(64, 96, 128, 160),
        addition_time_embed_dim=64,
        projection_class_embeddings_input_dim=192,
        layers_per_block=1,
        cross_attention_dim=EMBEDDING,
        transformer_layers_per_block=1,
        num_attention_heads=(2, 3, 4, 5),
    )


def make_image_encoder() -> CLIPVisionModelWithProjection:
    """A two-layer CLIP vision tower, trained together with the UNet."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=32,
            projection_dim=EMBEDDING,
        )
    )


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

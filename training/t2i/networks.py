"""The networks of the pocket text-to-image model: small instances of the classes that Stable Diffusion uses."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from training.t2i.words import BEGIN, END, MAX_TOKENS, vocabulary

HEIGHT, WIDTH = 160, 288
VAE_FACTOR = 4  # pixels per latent along each side
LATENT_CHANNELS = 6
EMBEDDING_DIM = 192

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    # The last level is pure noise (Lin et al. 2023), so that the prompt determines the mean brightness of an image.
    "rescale_betas_zero_snr": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


def make_vae() -> AutoencoderKL:
    """Return the untrained VAE, which downsamples 4× per side.

    It has 8 norm groups: many small groups would erase colour.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(64, 80, 112),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=WIDTH,
        scaling_factor=1.0,
        force_upcast=False,
    )


def make_unet() -> UNet2DConditionModel:
    """Return the untrained UNet with levels of 40×72, 20×36, 10×18 and 5×9 latents.

    It attends to the caption and within the image at 20×36, at 10×18 and in its middle. The largest level has few
    channels and no attention, since it has most of the latents.
    """
    channels = (64, 96, 128, 128)
    return UNet2DConditionModel(
        sample_size=(HEIGHT // VAE_FACTOR, WIDTH // VAE_FACTOR),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=EMBEDDING_DIM,
        attention_head_dim=tuple(width // 32 for width in channels),  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def make_text_encoder() -> CLIPTextModel:
    """Return an untrained four-layer CLIP text tower; it is trained together with the UNet."""
    tokens = vocabulary()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=EMBEDDING_DIM,
            intermediate_size=2 * EMBEDDING_DIM,
            num_hidden_layers=4,
            num_attention_heads=3,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=EMBEDDING_DIM,
            bos_token_id=tokens[BEGIN],
            eos_token_id=tokens[END],
            pad_token_id=tokens[END],
        )
    )


def count_parameters(module: torch.nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())

"""The networks of the pocket text-to-image model: small ones in the classes and layout of Stable Diffusion."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from training.t2i.words import BEGIN, END, MAX_TOKENS, vocabulary

HEIGHT, WIDTH = 160, 288
LATENT_CHANNELS = 8
EMBEDDING = 192

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    # The last level is pure noise (Lin et al. 2023): the brightness of a night or a snowfield comes from the words.
    "rescale_betas_zero_snr": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


def make_vae() -> AutoencoderKL:
    """8× smaller a side. 8 norm groups: with many channels to a group, colour survives the norms."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(48, 64, 80, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=WIDTH,
        scaling_factor=1.0,
        force_upcast=False,
    )


def make_unet() -> UNet2DConditionModel:
    """Three levels of 20×36, 10×18 and 5×9 latents, each of which looks at the words."""
    return UNet2DConditionModel(
        sample_size=(HEIGHT // 8, WIDTH // 8),
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        mid_block_type="UNetMidBlock2DCrossAttn",
        block_out_channels=(128, 128, 128),
        layers_per_block=1,
        cross_attention_dim=EMBEDDING,
        attention_head_dim=(4, 4, 4),  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def make_text_encoder() -> CLIPTextModel:
    """Four layers of a CLIP text tower, trained together with the UNet."""
    tokens = vocabulary()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=EMBEDDING,
            intermediate_size=2 * EMBEDDING,
            num_hidden_layers=4,
            num_attention_heads=3,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=EMBEDDING,
            bos_token_id=tokens[BEGIN],
            eos_token_id=tokens[END],
            pad_token_id=tokens[END],
        )
    )


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

"""The networks of the pocket model: small instances of the classes that Stable Video Diffusion uses."""

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from training.common import svd_config

HEIGHT, WIDTH, NUM_FRAMES = 160, 288, 14
VAE_FACTOR = 4  # pixels per latent along each side
IMAGE_CHANNELS = 8  # latent channels that contain the image, the same in every frame
# Latent channels with a position: sine and cosine of x and y at these wavelengths, in pixels. The longest is beyond
# every usual width, and the shortest is six latents.
WAVELENGTHS = (24.0, 120.0, 960.0)
POSITION_CHANNELS = 4 * len(WAVELENGTHS)
LATENT_CHANNELS = IMAGE_CHANNELS + 2 * POSITION_CHANNELS  # image, source position, own position
STEPS = 8  # the default number of steps
EMBEDDING_DIM = 64

# SVD's sigma_max of 700 spends its first steps where latents this small hold nothing, and its sigma_min of 0.002 the
# last step where nothing is left to do. From a sigma_max of 40, how much a video moves depends on its seed.
SCHEDULER = {**svd_config.SCHEDULER, "sigma_max": 120.0, "sigma_min": 0.05}


def make_vae(latent_channels: int = IMAGE_CHANNELS, layers: int = 1) -> AutoencoderKLTemporalDecoder:
    """Return the untrained VAE, which downsamples 4× per side.

    Every level has at least 64 channels: with 32, the class's 32 norm groups would erase colour. Only with two layers
    per block does the decoder have self-attention, between the two blocks of its middle.
    """
    return AutoencoderKLTemporalDecoder(
        block_out_channels=(64, 96, 128),
        layers_per_block=layers,
        latent_channels=latent_channels,
        sample_size=WIDTH,
        down_block_types=("DownEncoderBlock2D",) * 3,
        scaling_factor=1.0,
        force_upcast=False,
    )


def make_unet() -> UNetSpatioTemporalConditionModel:
    """Return the untrained UNet with levels of 40×72, 20×36, 10×18 and 5×9 latents."""
    channels = (64, 96, 128, 128)
    cross_attention = "CrossAttn{}BlockSpatioTemporal".format
    plain = "{}BlockSpatioTemporal".format
    return UNetSpatioTemporalConditionModel(
        sample_size=WIDTH // VAE_FACTOR,
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_frames=NUM_FRAMES,
        down_block_types=(plain("Down"), cross_attention("Down"), cross_attention("Down"), plain("Down")),
        up_block_types=(plain("Up"), cross_attention("Up"), cross_attention("Up"), plain("Up")),
        block_out_channels=channels,
        addition_time_embed_dim=64,
        projection_class_embeddings_input_dim=192,
        layers_per_block=1,
        cross_attention_dim=EMBEDDING_DIM,
        transformer_layers_per_block=1,
        num_attention_heads=tuple(width // 32 for width in channels),
    )


def make_image_encoder() -> CLIPVisionModelWithProjection:
    """Return an untrained two-layer CLIP vision tower; it is trained together with the UNet."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=32,
            projection_dim=EMBEDDING_DIM,
        )
    )


def count_parameters(module: torch.nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())

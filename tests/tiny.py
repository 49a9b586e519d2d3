"""Write tiny random models in diffusers' layout, with which a test generates a video in well under a second.

`make_tiny_svd` writes a Stable Video Diffusion, `make_tiny_sd` a Stable Diffusion.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from training.common.svd_config import FEATURE_EXTRACTOR, MODEL_INDEX, SCHEDULER

if TYPE_CHECKING:
    from pathlib import Path

    import torch

# Channels per level: at least 32, the number of groups of diffusers' GroupNorm, and divisible by the heads.
CHANNELS = 32


# First level without attention, different heads per level, VAE factor 4.
PLAIN_TOP = {
    "levels": 4,
    "channels": (32, 96, 64, 160),
    "heads": (1, 3, 2, 5),
    "down": "-aa-",
    "latent_channels": 8,
    "vae_levels": 3,
}
# The same with attention in the first level only on the way up, and other latent channels.
UP_ALONE = {**PLAIN_TOP, "up": "-aaa", "latent_channels": 10}


def make_tiny_svd(
    folder: Path,
    *,
    levels: int = 2,
    latent_channels: int = 4,
    encoded_channels: int | None = None,
    layers: int = 1,
    channels: tuple[int, ...] | None = None,
    heads: int | tuple[int, ...] = 2,
    down: str | None = None,
    up: str | None = None,
    vae_levels: int = 4,
    num_frames: int = 4,
    frames_at_once: int = 25,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    max_shard_size: str = "10GB",
    force_upcast: bool = True,
    image_size: int = 224,
) -> Path:
    """Write a random SVD of a few hundred thousand parameters into `folder`, as `save_pretrained` would.

    Args:
        folder: Created if missing.
        levels: Resolutions of the UNet: 2 or 4.
        latent_channels: Channels of a latent; the UNet takes twice as many.
        encoded_channels: Those that the VAE's encoder does not leave 0, by default all.
        layers: Layers per block, in the UNet and the VAE.
        channels: Channels of each level of the UNet, by default `CHANNELS`.
        heads: Attention heads of each level.
        down: Levels of the UNet with attention on the way down, e.g. "aa-" for all but the last of three, the default.
        up: The same on the way up; by default the same levels.
        vae_levels: Resolutions of the VAE: 4 give the factor 8 of the real one.
        num_frames: The default number of frames.
        frames_at_once: `num_frames` in the UNet's configuration: longer videos are made in windows of so many.
        seed: Seed of the random weights.
        dtype: Dtype of the weights, by default float32.
        variant: "fp16" adds `.fp16` to the file names.
        max_shard_size: Small values such as "200KB" give sharded weights with an index.
        force_upcast: `force_upcast` in the VAE's configuration.
        image_size: Side of CLIP's square input.
    """
    import torch
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    down = down or "a" * (levels - 1) + "-"
    up = up or down[::-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNetSpatioTemporalConditionModel(
            sample_size=8,
            in_channels=2 * latent_channels,
            out_channels=latent_channels,
            down_block_types=tuple(f"{'CrossAttn' * (a == 'a')}DownBlockSpatioTemporal" for a in down),
            up_block_types=tuple(f"{'CrossAttn' * (a == 'a')}UpBlockSpatioTemporal" for a in up),
            block_out_channels=channels or (CHANNELS,) * levels,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            layers_per_block=layers,
            cross_attention_dim=16,
            num_attention_heads=heads,
            num_frames=frames_at_once,
        )
        vae = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * vae_levels,
            block_out_channels=(CHANNELS,) * vae_levels,
            layers_per_block=layers,
            latent_channels=latent_channels,
            sample_size=64,
            force_upcast=force_upcast,
        )
        for values in vae.quant_conv.parameters():
            values.data[encoded_channels or latent_channels : latent_channels] = 0
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
    write_json(folder / "kinema.json", {"defaults": {"num_frames": num_frames}})
    return folder


# Words that are one token each for the tiny tokenizer. Words with a letter that none of these contains have unknown
# tokens.
WORDS = ("a", "red", "hot", "balloon", "over", "snowy", "mountain", "at", "sunset", "blue", "sea")
SD_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SD_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.24.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def make_tiny_sd(
    folder: Path,
    *,
    xl: bool = False,
    vae_levels: int = 4,
    words: tuple[str, ...] = WORDS,
    longest: int = 12,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    max_shard_size: str = "10GB",
) -> Path:
    """Write a random StableDiffusionPipeline of a few hundred thousand parameters into `folder`.

    Args:
        folder: Created if missing.
        xl: Write a StableDiffusionXLPipeline instead, with two text encoders.
        vae_levels: Levels of the VAE; it reduces width and height by 2 for each level after the first.
        words: Vocabulary of the tokenizer; a letter that is in none of them is an unknown token.
        longest: Maximum number of tokens, including start and end.
        seed: Seed of the random weights.
        dtype: Dtype of the weights, by default float32.
        variant: "fp16" adds `.fp16` to the file names.
        max_shard_size: As for `make_tiny_svd`.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = write_tokenizer(folder / "tokenizer", words, longest)
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=longest,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    conditions = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "unet": UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(CHANNELS,) * 2,
                layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=64 if xl else 32,
                attention_head_dim=8,
                **(conditions if xl else {}),
            ),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * vae_levels,
                up_block_types=("UpDecoderBlock2D",) * vae_levels,
                block_out_channels=(CHANNELS,) * vae_levels,
                layers_per_block=1,
                sample_size=64,
                force_upcast=xl,
            ),
            "text_encoder": CLIPTextModel(text),
        }
        if xl:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(text)
    for part, model in parts.items():
        (model.to(dtype) if dtype else model).save_pretrained(
            folder / part, variant=variant, max_shard_size=max_shard_size, safe_serialization=True
        )
    write_json(folder / "scheduler" / "scheduler_config.json", SD_SCHEDULER)
    write_json(folder / "feature_extractor" / "preprocessor_config.json", FEATURE_EXTRACTOR)
    index = SD_INDEX
    if xl:
        write_tokenizer(folder / "tokenizer_2", words, longest)
        index = {
            **{name: part for name, part in SD_INDEX.items() if "safety" not in name},
            "_class_name": "StableDiffusionXLPipeline",
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    write_json(folder / "model_index.json", index)
    return folder


def write_tokenizer(folder: Path, words: tuple[str, ...], longest: int) -> int:
    """Write a CLIPTokenizer with one token per word, and return the size of its vocabulary."""
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "<unk>": 2}
    merges: dict[str, None] = {}
    for word in words:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        for i, letter in enumerate(letters):
            vocabulary.setdefault(letter, len(vocabulary))
            before = "".join(letters[:i])
            if before:
                merges.setdefault(f"{before} {letter}")
            vocabulary.setdefault(before + letter, len(vocabulary))
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    special = ends | {"unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", special)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": longest, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", config | special)
    return len(vocabulary)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

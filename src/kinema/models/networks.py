"""The three networks of Stable Video Diffusion as torch modules, built without diffusers and transformers.

Submodules, parameters and shapes have the names of the published weights, which are those of diffusers'
UNetSpatioTemporalConditionModel and AutoencoderKLTemporalDecoder and of transformers' CLIPVisionModelWithProjection.
`kinema.engine.fast` computes the UNet and the VAE's decoder from their weights, so these two have no forward here. The
VAE's encoder and the image encoder have one, with the same torch operations as the originals: results are bit-equal.

Architectures: Blattmann et al. 2023, "Stable Video Diffusion" (arXiv:2311.15127), with the temporal layers of "Align
your Latents" (arXiv:2304.08818); Rombach et al. 2022, "Latent Diffusion Models" (arXiv:2112.10752) for the VAE; Radford
et al. 2021, "CLIP" (arXiv:2103.00020) for the image encoder. In all shapes, f is the VAE's factor.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kinema.models.memory_plan import Component

GROUPS = 32  # of every GroupNorm


def make_network(component: Component, config: Mapping[str, Any]) -> nn.Module:
    """Return a network without weights, on the meta device, from its `config.json`; unknown fields are ignored.

    Raises:
        ArithmeticError, LookupError, RuntimeError, TypeError, ValueError: if the configuration is invalid.
    """
    classes: dict[Component, tuple[type[Any], type[nn.Module]]] = {
        "unet": (UNetConfig, VideoUNet),
        "vae": (AutoencoderConfig, VideoAutoencoder),
        "image_encoder": (ImageEncoderConfig, ImageEncoder),
    }
    config_class, network_class = classes[component]
    names = {field.name for field in fields(config_class)}
    with torch.device("meta"):
        return network_class(config_class(**{name: value for name, value in config.items() if name in names}))


class Uninitialised(nn.Module):
    """A layer without initial values, for weights that are loaded; on the meta device, random values import sympy."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class EmptyLinear(Uninitialised, nn.Linear):
    """An uninitialised Linear."""


class EmptyConv2d(Uninitialised, nn.Conv2d):
    """An uninitialised Conv2d."""


class EmptyConv3d(Uninitialised, nn.Conv3d):
    """An uninitialised Conv3d."""


class EmptyEmbedding(Uninitialised, nn.Embedding):
    """An uninitialised Embedding."""


# Parts of the UNet and of the VAE


class AlphaBlender(nn.Module):
    """The learned weight of the blend of a spatial and a temporal half, before the sigmoid."""

    def __init__(self, *, temporal: bool) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.empty(1))
        self.switch_spatial_to_temporal_mix = temporal
        """Whether the weight is that of the temporal half."""


class ResnetBlock(nn.Module):
    """Norm, SiLU and convolution, twice, added to the input; spatial with a 3×3 kernel, temporal with 3×1×1."""

    def __init__(
        self, inputs: int, outputs: int, time_channels: int | None = None, *, eps: float, temporal: bool = False
    ) -> None:
        super().__init__()
        spatial_conv = partial(EmptyConv2d, kernel_size=3, padding=1)
        conv = partial(EmptyConv3d, kernel_size=(3, 1, 1), padding=(1, 0, 0)) if temporal else spatial_conv
        self.norm1 = nn.GroupNorm(GROUPS, inputs, eps)
        self.conv1 = conv(inputs, outputs)
        self.time_emb_proj = None if time_channels is None else EmptyLinear(time_channels, outputs)
        self.norm2 = nn.GroupNorm(GROUPS, outputs, eps)
        self.conv2 = conv(outputs, outputs)
        self.conv_shortcut = None if inputs == outputs else EmptyConv2d(inputs, outputs, 1)


class VideoBlock(nn.Module):
    """A spatial and a temporal ResnetBlock, blended."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        time_channels: int | None = None,
        *,
        eps: float,
        temporal_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.spatial_res_block = ResnetBlock(inputs, outputs, time_channels, eps=eps)
        self.temporal_res_block = ResnetBlock(outputs, outputs, time_channels, eps=temporal_eps or eps, temporal=True)
        self.time_mixer = AlphaBlender(temporal=time_channels is None)  # in the VAE, which has no time embedding


class Attention(nn.Module):
    """The projections of self-attention, or of cross-attention to a context."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = EmptyLinear(channels, channels, bias)
        self.to_k = EmptyLinear(context_channels or channels, channels, bias)
        self.to_v = EmptyLinear(context_channels or channels, channels, bias)
        self.to_out = nn.ModuleList([EmptyLinear(channels, channels)])


class PixelAttention(Attention):
    """Norm and self-attention of one head over the pixels of an image, in the middle of the VAE's two halves."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 1, bias=True)
        self.group_norm = nn.GroupNorm(GROUPS, channels, 1e-6)


class Resampling(nn.Module):
    """The convolution that halves the size, or the one after doubling it."""

    def __init__(self, channels: int, *, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = EmptyConv2d(channels, channels, 3, stride, padding)


class Level(nn.Module):
    """The layers of one resolution: blocks, the attention after each or none, and an optional change of resolution."""

    def __init__(
        self,
        resnets: Iterable[nn.Module],
        attentions: Iterable[nn.Module] = (),
        *,
        downsamplers: Iterable[nn.Module] = (),
        upsamplers: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList(downsamplers)
        self.upsamplers = nn.ModuleList(upsamplers)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float | None = None) -> Tensor:
    """Return the attention of tokens, [n, tokens, channels]; by default the scale is 1/√(channels per head)."""
    q, k, v = (each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


# The UNet


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Configuration of the UNet; the defaults are those of SVD and SVD-XT. A tuple has one entry per level."""

    in_channels: int = 8
    """Latent channels of the noise, then of the image."""
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlockSpatioTemporal",) * 3, "DownBlockSpatioTemporal")
    up_block_types: tuple[str, ...] = ("UpBlockSpatioTemporal", *("CrossAttnUpBlockSpatioTemporal",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    addition_time_embed_dim: int = 256
    """Sinusoids per time id (fps, motion bucket, noise augmentation)."""
    projection_class_embeddings_input_dim: int = 768
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int | tuple[int, ...] = 1024
    transformer_layers_per_block: int | tuple[int, ...] = 1
    num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20)


# Block types of a configuration: whether they have attention, and the eps of the norms in their blocks.
DOWN_BLOCKS = {"CrossAttnDownBlockSpatioTemporal": (True, 1e-6), "DownBlockSpatioTemporal": (False, 1e-5)}
UP_BLOCKS = {"CrossAttnUpBlockSpatioTemporal": (True, 1e-6), "UpBlockSpatioTemporal": (False, 1e-6)}


class Sinusoids(nn.Module):
    """The number of sinusoids of a time embedding."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels


class TimeEmbedding(nn.Module):
    """Two linear layers after sinusoids: [n, inputs] → [n, outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = EmptyLinear(inputs, hidden), EmptyLinear(hidden, outputs)

    def forward(self, sinusoids: Tensor) -> Tensor:
        """Return the embedding."""
        embedding: Tensor = self.linear_2(F.silu(self.linear_1(sinusoids)))
        return embedding


class GatedFeedForward(nn.Module):
    """A feed-forward of four times the channels with GEGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        values_and_gates = nn.Sequential(OrderedDict(proj=EmptyLinear(channels, 8 * channels)))
        self.net = nn.ModuleList([values_and_gates, nn.Identity(), EmptyLinear(4 * channels, channels)])


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward; along time another feed-forward precedes them."""

    def __init__(self, channels: int, heads: int, context_channels: int, *, temporal: bool) -> None:
        super().__init__()
        if temporal:
            self.norm_in, self.ff_in = nn.LayerNorm(channels), GatedFeedForward(channels)
        self.norm1, self.attn1 = nn.LayerNorm(channels), Attention(channels, heads)
        self.norm2, self.attn2 = nn.LayerNorm(channels), Attention(channels, heads, context_channels)
        self.norm3, self.ff = nn.LayerNorm(channels), GatedFeedForward(channels)


class VideoTransformer(nn.Module):
    """Spatial and temporal transformer blocks between two projections; the frame's index is embedded along time."""

    def __init__(self, channels: int, heads: int, context_channels: int, layers: int) -> None:
        super().__init__()
        self.in_channels = channels
        inner = channels // heads * heads
        self.norm, self.proj_in = nn.GroupNorm(GROUPS, channels, 1e-6), EmptyLinear(channels, inner)
        block = partial(TransformerBlock, inner, heads, context_channels)
        self.transformer_blocks = nn.ModuleList(block(temporal=False) for _ in range(layers))
        self.temporal_transformer_blocks = nn.ModuleList(block(temporal=True) for _ in range(layers))
        self.time_pos_embed = TimeEmbedding(channels, 4 * channels, channels)
        self.time_mixer = AlphaBlender(temporal=False)
        self.proj_out = EmptyLinear(inner, channels)


class VideoUNet(nn.Module):
    """The UNet: noise and image latents, [b, frames, in_channels, h/f, w/f] → v, [b, frames, out_channels, h/f, w/f].

    Each level on the way up has one block more than on the way down, and each of its blocks reads a skip connection.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.block_out_channels
        levels, time_channels = len(channels), 4 * channels[0]
        down_types, up_types, layers = (
            _per_level(each, levels)
            for each in (config.down_block_types, config.up_block_types, config.layers_per_block)
        )
        heads, context_channels, depths = (
            _per_level(each, levels)
            for each in (config.num_attention_heads, config.cross_attention_dim, config.transformer_layers_per_block)
        )

        def transformers(i: int, count: int) -> list[VideoTransformer]:
            return [VideoTransformer(channels[i], heads[i], context_channels[i], depths[i]) for _ in range(count)]

        self.conv_in = EmptyConv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_proj = Sinusoids(channels[0])
        self.time_embedding = TimeEmbedding(channels[0], time_channels, time_channels)
        self.add_time_proj = Sinusoids(config.addition_time_embed_dim)
        self.add_embedding = TimeEmbedding(config.projection_class_embeddings_input_dim, time_channels, time_channels)

        self.down_blocks = nn.ModuleList()
        for i, name in enumerate(down_types):
            attends, eps = DOWN_BLOCKS[name]
            sizes = [channels[max(i - 1, 0)], *[channels[i]] * layers[i]]
            blocks = [VideoBlock(*pair, time_channels, eps=eps) for pair in pairwise(sizes)]
            downsamplers = [Resampling(channels[i], stride=2)] * (i < levels - 1)
            self.down_blocks.append(Level(blocks, transformers(i, layers[i] * attends), downsamplers=downsamplers))
        last = channels[-1]
        self.mid_block = Level(
            [VideoBlock(last, last, time_channels, eps=1e-5) for _ in range(2)], transformers(levels - 1, 1)
        )
        self.up_blocks = nn.ModuleList()
        for i, name in zip(reversed(range(levels)), up_types, strict=True):
            attends, eps = UP_BLOCKS[name]
            hidden = [channels[min(i + 1, levels - 1)], *[channels[i]] * layers[i]]
            skips = [*[channels[i]] * layers[i], channels[max(i - 1, 0)]]
            inputs = [sum(pair) for pair in zip(hidden, skips, strict=True)]
            blocks = [VideoBlock(total, channels[i], time_channels, eps=eps) for total in inputs]
            upsamplers = [Resampling(channels[i])] * (i > 0)
            self.up_blocks.append(Level(blocks, transformers(i, len(blocks) * attends), upsamplers=upsamplers))
        self.conv_norm_out = nn.GroupNorm(GROUPS, channels[0], 1e-5)
        self.conv_out = EmptyConv2d(channels[0], config.out_channels, 3, padding=1)


def _per_level(value: Any, levels: int) -> list[Any]:
    """Return the value of each level; a single number is that of all levels."""
    values = [value] * levels if isinstance(value, int) else list(value)
    if len(values) != levels:
        raise ValueError(f"expected {levels} values, one per level, got {value}")
    return values


# The VAE


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Configuration of the VAE; each level but the last halves the size, so f is 8 with four levels."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    force_upcast: bool = True


class EncoderBlock(ResnetBlock):
    """A spatial ResnetBlock with its forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result: [n, inputs, h, w] → [n, outputs, h, w]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        result: Tensor = shortcut + hidden
        return result


class EncoderAttention(PixelAttention):
    """The attention of the encoder with its forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [n, c, h, w], plus its attention."""
        pixels = self.group_norm(x.flatten(2)).transpose(1, 2)
        change: Tensor = self.to_out[0](_attention(self.to_q(pixels), self.to_k(pixels), self.to_v(pixels), self.heads))
        return change.transpose(1, 2).reshape(x.shape) + x


class EncoderDownsampling(Resampling):
    """The convolution that halves the size, with its forward."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the size; zeros are padded at the right and below only."""
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return halved


class EncoderLevel(Level):
    """A level of the encoder with its forward."""

    def forward(self, x: Tensor) -> Tensor:
        """Run each block and the attention after it, then halve the size."""
        for block, attention in zip_longest(self.resnets, self.attentions):
            x = block(x)
            if attention is not None:
                x = attention(x)
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


class Encoder(nn.Module):
    """Encode images, [n, 3, h, w] in −1…1, to the moments of latents before `quant_conv`, [n, 2·channels, h/f, w/f]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels, layers = config.block_out_channels, config.layers_per_block
        if list(config.down_block_types) != ["DownEncoderBlock2D"] * len(channels):
            raise ValueError(f"expected {len(channels)} down_block_types DownEncoderBlock2D")
        self.conv_in = EmptyConv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.Sequential()
        for i, outputs in enumerate(channels):
            sizes = [channels[max(i - 1, 0)], *[outputs] * layers]
            blocks = [EncoderBlock(*pair, eps=1e-6) for pair in pairwise(sizes)]
            downsamplers = [EncoderDownsampling(outputs)] * (i < len(channels) - 1)
            self.down_blocks.append(EncoderLevel(blocks, downsamplers=downsamplers))
        last = channels[-1]
        self.mid_block = EncoderLevel([EncoderBlock(last, last, eps=1e-6) for _ in range(2)], [EncoderAttention(last)])
        self.conv_norm_out = nn.GroupNorm(GROUPS, last, 1e-6)
        self.conv_out = EmptyConv2d(last, 2 * config.latent_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the moments."""
        x = self.mid_block(self.down_blocks(self.conv_in(images)))
        moments: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return moments


class TemporalDecoder(nn.Module):
    """The decoder: unscaled latents of a group of frames, [frames, channels, h/f, w/f] → [frames, 3, h, w]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels, layers = config.block_out_channels, config.layers_per_block
        last = channels[-1]
        block = partial(VideoBlock, eps=1e-6, temporal_eps=1e-5)
        self.conv_in = EmptyConv2d(config.latent_channels, last, 3, padding=1)
        self.mid_block = Level([block(last, last) for _ in range(layers)], [PixelAttention(last)])
        self.up_blocks = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(pairwise([last, *reversed(channels)])):
            blocks = [block(*pair) for pair in pairwise([inputs, *[outputs] * (layers + 1)])]
            upsamplers = [Resampling(outputs)] * (i < len(channels) - 1)
            self.up_blocks.append(Level(blocks, upsamplers=upsamplers))
        self.conv_norm_out = nn.GroupNorm(GROUPS, channels[0], 1e-6)
        self.conv_out = EmptyConv2d(channels[0], config.out_channels, 3, padding=1)
        self.time_conv_out = EmptyConv3d(config.out_channels, config.out_channels, (3, 1, 1), padding=(1, 0, 0))


class Posterior(NamedTuple):
    """The distribution of the latents, of which SVD uses only the mode."""

    mean: Tensor

    def mode(self) -> Tensor:
        """Return the mode of a normal distribution, its mean."""
        return self.mean


class Encoded(NamedTuple):
    """The result of `VideoAutoencoder.encode`, in the form of diffusers'."""

    latent_dist: Posterior


class VideoAutoencoder(nn.Module):
    """The VAE: an encoder of single images and a decoder of videos."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), TemporalDecoder(config)
        self.quant_conv = EmptyConv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def encode(self, images: Tensor) -> Encoded:
        """Encode images, [n, 3, h, w] in −1…1, to unscaled latents, [n, latent_channels, h/f, w/f]."""
        return Encoded(Posterior(self.quant_conv(self.encoder(images)).chunk(2, 1)[0]))


# The image encoder


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """Configuration of CLIP's vision transformer; the defaults are those of ViT-B/32."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


class ClipAttention(nn.Module):
    """Self-attention of CLIP."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        if hidden_size % heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}")
        self.heads = heads
        self.q_proj, self.k_proj = EmptyLinear(hidden_size, hidden_size), EmptyLinear(hidden_size, hidden_size)
        self.v_proj, self.out_proj = EmptyLinear(hidden_size, hidden_size), EmptyLinear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention of tokens, [n, tokens, hidden_size]."""
        scale = (x.shape[-1] // self.heads) ** -0.5  # rounded as in transformers
        result: Tensor = self.out_proj(_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, scale))
        return result


class ClipMlp(nn.Module):
    """The feed-forward of CLIP."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = EmptyLinear(config.hidden_size, config.intermediate_size)
        self.fc2 = EmptyLinear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feed-forward of tokens, [n, tokens, hidden_size]."""
        result: Tensor = self.fc2(self.activation(self.fc1(x)))
        return result


class ClipLayer(nn.Module):
    """A layer of CLIP with its norms first."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, config.hidden_size, config.layer_norm_eps)
        self.layer_norm1, self.self_attn = norm(), ClipAttention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2, self.mlp = norm(), ClipMlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's result: tokens, [n, tokens, hidden_size]."""
        x = x + self.self_attn(self.layer_norm1(x))
        result: Tensor = x + self.mlp(self.layer_norm2(x))
        return result


class ClipEmbeddings(nn.Module):
    """Embeddings of a class token and of the patches, with their positions."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        hidden_size, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(hidden_size))
        self.patch_embedding = EmptyConv2d(config.num_channels, hidden_size, patch, stride=patch, bias=False)
        self.position_embedding = EmptyEmbedding((config.image_size // patch) ** 2 + 1, hidden_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images: [n, 3, image_size, image_size] → [n, tokens, hidden_size]."""
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], 1) + self.position_embedding.weight


class ClipTransformer(nn.Module):
    """CLIP's vision transformer."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        hidden_size, eps = config.hidden_size, config.layer_norm_eps
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(hidden_size, eps)  # spelled so in the published weights
        layers = (ClipLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.Sequential(OrderedDict(layers=nn.Sequential(*layers)))
        self.post_layernorm = nn.LayerNorm(hidden_size, eps)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class token of images, [n, 3, image_size, image_size] → [n, hidden_size]."""
        tokens = self.encoder(self.pre_layrnorm(self.embeddings(images)))
        token: Tensor = self.post_layernorm(tokens[:, 0])
        return token


class ImageEmbedding(NamedTuple):
    """The result of `ImageEncoder`, in the form of transformers'."""

    image_embeds: Tensor
    """[n, projection_dim]."""


class ImageEncoder(nn.Module):
    """CLIP's image encoder."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = ClipTransformer(config)
        self.visual_projection = EmptyLinear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, images: Tensor) -> ImageEmbedding:
        """Embed normalised images, [n, 3, image_size, image_size]."""
        return ImageEmbedding(self.visual_projection(self.vision_model(images)))

"""Auxiliary losses that train self-attention to look up content: to attend to its source, and to carry it."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel

from training.pocket.networks import LATENT_CHANNELS, VAE_FACTOR

QUERIES = 96  # query tokens per frame that the loss is computed on


class AttentionInputs:
    """The inputs of self-attentions in the last forward; no module, so that torch.compile accepts its hooks."""

    def __init__(self) -> None:
        self.hidden_states: dict[int, torch.Tensor] = {}

    def store(self, i: int, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Store the input of attention `i`."""
        self.hidden_states[i] = inputs[0]


class Pointing(torch.nn.Module):
    """Losses of one head of the up blocks' self-attentions, computed from the inputs of the last forward.

    Every frame's input includes the image latents, so content can be copied by attending to its position in the image
    within the same frame. The first loss is the cross-entropy between the attention and the bilinear interpolation
    weights at that position. The second concerns the attentions at the latents' own size: a head can attend to the
    right place and yet not carry what is there. It is the squared error of two linear maps, used in training only:
    from the head's output to the frame's latents (`carried`), and from its values to the image's latents (`kept`).
    """

    def __init__(self, unet: UNetSpatioTemporalConditionModel) -> None:
        super().__init__()
        blocks = [block for block in unet.up_blocks if hasattr(block, "attentions")]
        self.attentions = [layer.transformer_blocks[0].attn1 for block in blocks for layer in block.attentions]
        head_dims = [attention.to_v.weight.shape[0] // attention.heads for attention in self.attentions]
        self.carried = torch.nn.ModuleList(torch.nn.Linear(dim, LATENT_CHANNELS) for dim in head_dims)
        self.kept = torch.nn.ModuleList(torch.nn.Linear(dim, LATENT_CHANNELS) for dim in head_dims)
        self._inputs = AttentionInputs()
        for i, attention in enumerate(self.attentions):
            attention.register_forward_pre_hook(partial(self._inputs.store, i))

    def forward(
        self, positions: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor, keep_image: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of pointing and of carrying.

        positions [batch, frames, 2, h, w]; latents [batch, frames, c, h, w] without noise; sigma [batch, 1, 1, 1, 1],
        the noise level of the coordinates; keep_image [batch, 1, 1, 1], 0 where the image is dropped.
        """
        # At high noise levels the motion is not visible yet, so the weight falls with σ.
        weight = keep_image.flatten() / (1 + (sigma.flatten() / 5) ** 2)
        frames, latents = positions.shape[1], latents[:, :, :LATENT_CHANNELS]
        image = latents[:, :1].expand_as(latents).flatten(0, 1)
        weight, keep = (v.flatten().repeat_interleave(frames) for v in (weight, keep_image))
        positions, latents = positions.flatten(0, 1), latents.flatten(0, 1)
        losses = [self._losses(i, positions, latents, image, weight, keep) for i in range(len(self.attentions))]
        pointing, carrying = zip(*losses, strict=True)
        carrying = [loss for loss in carrying if loss is not None]
        return torch.stack(pointing).mean(), torch.stack(carrying).mean()

    def _losses(
        self,
        i: int,
        positions: torch.Tensor,
        latents: torch.Tensor,
        image: torch.Tensor,
        weight: torch.Tensor,
        keep: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention, hidden_states = self.attentions[i], self._inputs.hidden_states[i]
        tokens = hidden_states.shape[1]
        size = round(math.sqrt(positions.shape[-1] * positions.shape[-2] / tokens))  # latents per token along each side
        height, width = positions.shape[-2] // size, positions.shape[-1] // size
        x, y = (F.avg_pool2d(positions, size).flatten(2) / (VAE_FACTOR * size)).unbind(1)
        source = torch.stack([x + (width - 1) / 2, y + (height - 1) / 2], 1)
        queries = torch.randint(tokens, (min(QUERIES, tokens),), device=positions.device)
        source = source[:, :, queries]
        head_dim = attention.to_q.weight.shape[0] // attention.heads
        query = F.linear(hidden_states[:, queries], attention.to_q.weight[:head_dim])
        key = F.linear(hidden_states, attention.to_k.weight[:head_dim])
        log_attention = (query @ key.transpose(1, 2)).float().mul(head_dim**-0.5).log_softmax(-1)
        pointing = (bilinear_cross_entropy(log_attention, source, height, width) * weight[:, None]).mean()
        if size > 1:
            return pointing, None
        value = F.linear(hidden_states, attention.to_v.weight[:head_dim])
        carried = self.carried[i](log_attention.exp().to(value.dtype) @ value).float()
        error = ((carried - latents.flatten(2)[:, :, queries].transpose(1, 2)) ** 2).mean(-1)
        error = error * is_inside(source, height, width) * weight[:, None]
        kept = (self.kept[i](value).float() - image.flatten(2).transpose(1, 2)) ** 2
        return pointing, error.mean() + (kept.mean(-1) * keep[:, None]).mean()


def is_inside(source: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return which positions [n, 2, queries], x and y in tokens from 0, are inside the image, [n, queries]."""
    x, y = source.unbind(1)
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def bilinear_cross_entropy(log_attention: torch.Tensor, source: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the cross-entropy of attention with bilinear weights, [n, queries]; 0 where the source is outside.

    log_attention: [n, queries, height · width], log-probabilities; source: [n, 2, queries], x and y in tokens from 0.
    """
    corner = source.floor()
    fraction_x, fraction_y = (source - corner).unbind(1)
    loss = torch.zeros_like(fraction_x)
    for dy in (0, 1):
        for dx in (0, 1):
            column = (corner[:, 0] + dx).clamp(0, width - 1)
            row = (corner[:, 1] + dy).clamp(0, height - 1)
            weight = (fraction_x if dx else 1 - fraction_x) * (fraction_y if dy else 1 - fraction_y)
            index = (row * width + column).long()[..., None]
            loss = loss - weight * log_attention.gather(-1, index)[..., 0]
    return loss * is_inside(source, height, width)

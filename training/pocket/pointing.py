"""Teach self-attention where a token's content came from."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel

from training.pocket.networks import VAE_FACTOR

QUERIES = 96  # tokens a frame whose attention is compared


class Pointing:
    """Compares one head of the UNet's self-attentions with where the content of each token came from.

    A token of a frame holds the image's latents too, so that to fetch content is to attend to its old place in the
    same frame. The target is the weights of bilinear interpolation at that place, the loss their cross-entropy.
    """

    def __init__(self, unet: UNetSpatioTemporalConditionModel) -> None:
        blocks = [block for block in unet.up_blocks if hasattr(block, "attentions")]
        self.attentions = [layer.transformer_blocks[0].attn1 for block in blocks for layer in block.attentions]
        self._inputs: dict[int, torch.Tensor] = {}
        for i, attention in enumerate(self.attentions):
            attention.register_forward_pre_hook(partial(self._keep, i))

    def _keep(self, i: int, _: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        self._inputs[i] = given[0]

    def __call__(self, positions: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the loss of the last forward; positions [batch, frames, 2, h, w], sigma [batch, 1, 1, 1, 1]."""
        # Where noise hides the motion there is nothing to point at.
        weight = (1 / (1 + (sigma.flatten() / 5) ** 2)).repeat_interleave(positions.shape[1])
        losses = [self._loss(i, positions.flatten(0, 1), weight) for i in range(len(self.attentions))]
        return torch.stack(losses).mean()

    def _loss(self, i: int, positions: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        attention, hidden_states = self.attentions[i], self._inputs[i]
        tokens = hidden_states.shape[1]
        size = round(math.sqrt(positions.shape[-1] * positions.shape[-2] / tokens))  # latents to a token, a side
        height, width = positions.shape[-2] // size, positions.shape[-1] // size
        x, y = (F.avg_pool2d(positions, size).flatten(2) / (VAE_FACTOR * size)).unbind(1)
        source = torch.stack([x + (width - 1) / 2, y + (height - 1) / 2], 1)
        chosen = torch.randint(tokens, (min(QUERIES, tokens),), device=positions.device)
        source = source[:, :, chosen]
        head = attention.to_q.weight.shape[0] // attention.heads
        query = F.linear(hidden_states[:, chosen], attention.to_q.weight[:head])
        key = F.linear(hidden_states, attention.to_k.weight[:head])
        likelihood = (query @ key.transpose(1, 2)).float().mul(head**-0.5).log_softmax(-1)
        return (bilinear_cross_entropy(likelihood, source, height, width) * weight[:, None]).mean()


def bilinear_cross_entropy(likelihood: torch.Tensor, source: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Cross-entropy of attention with the bilinear weights at a place, [n, queries]; 0 where that is outside.

    likelihood: [n, queries, height · width], logarithms; source: [n, 2, queries], x and y in tokens, 0 the first.
    """
    corner = source.floor()
    part_x, part_y = (source - corner).unbind(1)
    loss = torch.zeros_like(part_x)
    for dy in (0, 1):
        for dx in (0, 1):
            column = (corner[:, 0] + dx).clamp(0, width - 1)
            row = (corner[:, 1] + dy).clamp(0, height - 1)
            share = (part_x if dx else 1 - part_x) * (part_y if dy else 1 - part_y)
            index = (row * width + column).long()[..., None]
            loss = loss - share * likelihood.gather(-1, index)[..., 0]
    x, y = source.unbind(1)
    return loss * ((x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5))

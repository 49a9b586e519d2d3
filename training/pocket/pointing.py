"""An auxiliary loss that trains self-attention to attend to the position a token's content came from."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel

from training.pocket.networks import VAE_FACTOR

QUERIES = 96  # query tokens per frame that the loss is computed on


class Pointing:
    """Cross-entropy between one head of the up blocks' self-attentions and the source position of each token.

    Every frame's input includes the image latents, so content can be copied by attending to its position in the image
    within the same frame. The target distribution is the bilinear interpolation weights at that position.
    """

    def __init__(self, unet: UNetSpatioTemporalConditionModel) -> None:
        blocks = [block for block in unet.up_blocks if hasattr(block, "attentions")]
        self.attentions = [layer.transformer_blocks[0].attn1 for block in blocks for layer in block.attentions]
        self._inputs: dict[int, torch.Tensor] = {}
        for i, attention in enumerate(self.attentions):
            attention.register_forward_pre_hook(partial(self._store_input, i))

    def _store_input(self, i: int, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._inputs[i] = inputs[0]

    def __call__(self, positions: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the loss for the last forward.

        positions [batch, frames, 2, h, w]; sigma [batch, 1, 1, 1, 1], the noise level of the coordinates.
        """
        # At high noise levels the motion is not visible yet, so the weight falls with σ.
        weight = (1 / (1 + (sigma.flatten() / 5) ** 2)).repeat_interleave(positions.shape[1])
        losses = [self._loss(i, positions.flatten(0, 1), weight) for i in range(len(self.attentions))]
        return torch.stack(losses).mean()

    def _loss(self, i: int, positions: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        attention, hidden_states = self.attentions[i], self._inputs[i]
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
        return (bilinear_cross_entropy(log_attention, source, height, width) * weight[:, None]).mean()


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
    x, y = source.unbind(1)
    return loss * ((x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5))

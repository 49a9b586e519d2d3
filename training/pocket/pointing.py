"""The loss that trains the decoder's attention to look up content at its source position."""

import torch
from diffusers.models.attention_processor import Attention

from training.pocket.networks import VAE_FACTOR

QUERIES = 128  # query tokens per frame that the loss is computed on


def pointing_loss(attention: Attention, hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy between attention and the bilinear weights of each token's source position.

    Args:
        attention: Self-attention with one head.
        hidden_states: Its input, [n, c, h, w].
        positions: Where the content of each token comes from, [n, 2, h, w] in pixels from the centre.
    """
    height, width = hidden_states.shape[-2:]
    tokens = attention.group_norm(hidden_states.flatten(2)).transpose(1, 2)
    chosen = torch.randint(height * width, (QUERIES,), device=tokens.device)
    query, key = attention.to_q(tokens[:, chosen]), attention.to_k(tokens)
    log_attention = (query @ key.transpose(1, 2)).float().mul(query.shape[-1] ** -0.5).log_softmax(-1)
    centre = positions.new_tensor([width - 1, height - 1]).view(1, 2, 1) / 2
    source = positions.flatten(2)[:, :, chosen] / VAE_FACTOR + centre
    return bilinear_cross_entropy(log_attention, source, height, width).mean()


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

"""A discriminator on patches, for a decoder that has to give texture where squared error gives its mean."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class Discriminator(nn.Module):
    """Scores frames [n, 3, h, w] in −1…1 patch by patch, at two sizes; higher for photographs."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(self._scale() for _ in range(2))

    @staticmethod
    def _scale() -> nn.ModuleList:
        norm = nn.utils.parametrizations.spectral_norm
        widths = (3, 48, 96, 192, 192)
        layers = [norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in pairwise(widths[:-1])]
        return nn.ModuleList([*layers, norm(nn.Conv2d(192, 192, 3, 1, 1)), nn.Conv2d(192, 1, 3, 1, 1)])

    def forward(self, frames: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the scores of each size, and the features of all layers."""
        scores, features = [], []
        for scale in self.scales:
            x = frames
            for layer in scale[:-1]:
                x = F.leaky_relu(layer(x), 0.2)
                features.append(x)
            scores.append(scale[-1](x))
            frames = F.avg_pool2d(frames, 2)
        return scores, features


def adversarial_loss(
    discriminator: Discriminator, made: torch.Tensor, frames: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the decoder's hinge loss, and the mean distance of the features, each relative to their own size."""
    scores, found = discriminator(made)
    with torch.no_grad():
        _, true = discriminator(frames)
    distances = [
        (a.float() - b.float()).abs().mean() / b.float().abs().mean() for a, b in zip(found, true, strict=True)
    ]
    return -sum(score.float().mean() for score in scores) / len(scores), torch.stack(distances).mean()


def gradient_ratio(error: torch.Tensor, against: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return the factor that gives both losses equal gradients at the decoder's last weights (Esser et al. 2021)."""
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, against)]
    return (norms[0] / (norms[1] + 1e-6)).clamp(0, 100).detach()


def train_discriminator(
    discriminator: Discriminator, optimizer: torch.optim.Optimizer, made: torch.Tensor, frames: torch.Tensor
) -> None:
    """Take one step by the hinge loss."""
    loss = made.new_zeros(())
    for score in discriminator(frames)[0]:
        loss = loss + F.relu(1 - score).mean()
    for score in discriminator(made)[0]:
        loss = loss + F.relu(1 + score).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()

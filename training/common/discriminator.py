"""A patch discriminator: it makes the decoder produce texture, which errors alone average out."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class Discriminator(nn.Module):
    """Scores patches of frames [n, 3, h, w] in −1…1 at two scales; higher means more like a photograph."""

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
        """Return the score maps of each scale, and the features of all layers."""
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
    discriminator: Discriminator, decoded: torch.Tensor, frames: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the decoder's hinge loss, and the mean relative L1 distance of the discriminator's features."""
    scores, features = discriminator(decoded)
    with torch.no_grad():
        _, target_features = discriminator(frames)
    distances = [
        (a.float() - b.float()).abs().mean() / b.float().abs().mean()
        for a, b in zip(features, target_features, strict=True)
    ]
    return -sum(score.float().mean() for score in scores) / len(scores), torch.stack(distances).mean()


def gradient_ratio(error: torch.Tensor, adversarial: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return the ratio of the losses' gradient norms at the weights `last`, at most 100 (Esser et al. 2021)."""
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, adversarial)]
    return (norms[0] / (norms[1] + 1e-6)).clamp(0, 100).detach()


def train_discriminator(
    discriminator: Discriminator, optimizer: torch.optim.Optimizer, decoded: torch.Tensor, frames: torch.Tensor
) -> None:
    """Take one optimizer step on the hinge loss."""
    loss = decoded.new_zeros(())
    for score in discriminator(frames)[0]:
        loss = loss + F.relu(1 - score).mean()
    for score in discriminator(decoded)[0]:
        loss = loss + F.relu(1 + score).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()

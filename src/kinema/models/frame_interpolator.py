"""`FrameInterpolator`: the network that makes frames between two frames.

It estimates the motion from the frame between to both given frames, from coarse to fine (intermediate flow, Huang et
al. 2022), from features of both (Kong et al. 2022) and their local correlation. Both frames are warped along that
motion and blended by a mask, and a residual adds what warping lost. `training/interpolation` trains it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS_FILE = Path(__file__).parent / "interpolation" / "model.safetensors"
LEVELS = (24, 36, 54, 72)  # channels of the features at 1/2, 1/4, 1/8 and 1/16 of the size
WIDTHS = (48, 64, 72, 80)  # channels of the decoder at the same sizes
REACHES = (0, 1, 2, 3)  # radius of the correlation at the same sizes
FUSION_WIDTH = 28
KURTOSIS = 6.0  # of features of frames with detail everywhere
MULTIPLE = 16  # sizes are padded to multiples of it


class FrameInterpolator(nn.Module):
    """Makes frames between two frames; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        channels = 3
        for i, (level, width, reach) in enumerate(zip(LEVELS, WIDTHS, REACHES, strict=True)):
            self.encoder.append(nn.Sequential(_conv(channels, level, stride=2), _conv(level, level)))
            carried = WIDTHS[i + 1] + 4 if i + 1 < len(LEVELS) else 0
            given = 2 * level + (2 * reach + 1) ** 2 * (reach > 0) + 1 + carried
            self.decoder.append(nn.Sequential(_conv(given, width), _conv(width, width), _conv(width, width)))
            channels = level
        self.motion = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for width in WIDTHS)
        self.spread = nn.Conv2d(WIDTHS[0], 4 * FUSION_WIDTH, 1)
        self.fusion = nn.Sequential(
            _conv(FUSION_WIDTH + 6 + 4, FUSION_WIDTH), _conv(FUSION_WIDTH, FUSION_WIDTH),
            nn.Conv2d(FUSION_WIDTH, 4, 3, padding=1),
        )  # fmt: skip
        for last in (*self.motion, self.fusion[-1]):  # begins as a blend of both frames
            nn.init.normal_(last.weight, std=3e-4)
            nn.init.zeros_(last.bias)

    def forward(self, first: Tensor, second: Tensor, time: Tensor) -> Tensor:
        """Return the frames between, float32 [n, 3, height, width].

        Args:
            first: RGB, float32 [n, 3, height, width] in 0…1.
            second: The same.
            time: Where the frame between is: [n], from 0 (first) to 1 (second).
        """
        return self.stages(first, second, time)[0]

    def stages(self, first: Tensor, second: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the frames between, and the motion at each level from coarse to fine, for training.

        Each motion is [n, 4, h, w]: where the frame between is in the first and in the second frame, as x, y, x, y in
        pixels of the full size.
        """
        height, width = first.shape[-2:]
        padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
        pair = F.pad(torch.cat([first, second]), padding, mode="replicate")
        first, second = pair.chunk(2)
        features = self._features(pair)
        t = time.view(-1, 1, 1, 1).float()
        # Both motions are as long as the time to their frame, so the network estimates them per unit of time.
        shares = torch.cat([t, t, 1 - t, 1 - t], 1)
        motion: Tensor | None = None
        hidden: Tensor | None = None
        motions = []
        for level in reversed(range(len(LEVELS))):
            a, b = features[level].chunk(2)
            if motion is not None:
                motion = _resized(motion)
                scale = 0.5 ** (level + 1)
                a, b = warp(a, motion[:, :2] * scale), warp(b, motion[:, 2:] * scale)
            given = [a, b, t.to(a.dtype).expand(-1, 1, *a.shape[-2:])]
            if reach := REACHES[level]:
                given.append(_correlation(a, b, reach))
            if hidden is not None and motion is not None:
                given += [_resized(hidden), (motion / 16).to(a.dtype)]
            hidden = self.decoder[level](torch.cat(given, 1))
            change = self.motion[level](hidden).float() * shares * 16
            motion = change if motion is None else motion + change
            motions.append(motion)
        assert hidden is not None
        assert motion is not None
        motion = _resized(motion)
        warped = [warp(first, motion[:, :2], "bicubic"), warp(second, motion[:, 2:], "bicubic")]
        detail = F.pixel_shuffle(self.spread(hidden), 2)
        centred = [(frame - 0.5).to(detail.dtype) for frame in warped]
        output = self.fusion(torch.cat([detail, *centred, (motion / 16).to(detail.dtype)], 1)).float()
        mask = torch.sigmoid(output[:, :1] + torch.log((1 - t) / t))  # undecided, it is a blend by the time
        frames = warped[0] * mask + warped[1] * (1 - mask) + output[:, 1:]
        return frames[..., :height, :width], motions

    def _features(self, pair: Tensor) -> list[Tensor]:
        """Return the features of both frames at each size, from fine to coarse."""
        x = ((pair - pair.mean((2, 3), keepdim=True)) * 2).to(self.spread.weight.dtype)
        features = []
        for block in self.encoder:
            x = block(x)
            features.append(x)
        return features


def _conv(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(channels, out_channels, 3, stride, 1)
    nn.init.kaiming_normal_(layer.weight, a=0.1)  # PyTorch's default halves the signal in each layer
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, nn.LeakyReLU(0.1, inplace=True))


def _resized(x: Tensor) -> Tensor:
    """Double width and height."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def warp(x: Tensor, motion: Tensor, mode: str = "bilinear") -> Tensor:
    """Return x, [n, c, h, w], sampled at each pixel's position plus its motion, [n, 2, h, w] in pixels (x, y)."""
    height, width = x.shape[-2:]
    columns = torch.arange(width, device=x.device) + 0.5
    rows = torch.arange(height, device=x.device) + 0.5
    grid = torch.stack(
        [(columns + motion[:, 0]) * (2 / width) - 1, (rows[:, None] + motion[:, 1]) * (2 / height) - 1], -1
    )
    # Half precision has too few digits for positions.
    return F.grid_sample(x.float(), grid, mode=mode, padding_mode="border", align_corners=False).to(x.dtype)


def _correlation(a: Tensor, b: Tensor, reach: int) -> Tensor:
    """Return the products of a with b, displaced by up to `reach` pixels: [n, (2·reach + 1)², h, w]."""
    n, c, h, w = a.shape
    side = 2 * reach + 1
    displaced = F.unfold(_normalized(b), side, padding=reach).view(n, c, side * side, h, w)
    return ((_normalized(a)[:, :, None] * displaced).sum(1) / math.sqrt(c)).to(a.dtype)


def _normalized(x: Tensor) -> Tensor:
    """Return features with mean 0 of each channel, and about variance 1 where there is something, in float32.

    Where most of a frame is empty, the variance of all of it would be small, and the rest would be far too large. The
    mean fourth power tells how concentrated the features are.
    """
    x = x.float()
    x = x - x.mean((2, 3), keepdim=True)
    second, fourth = (x.pow(power).mean((1, 2, 3), keepdim=True) for power in (2, 4))
    return x * (torch.maximum(fourth / (KURTOSIS * second + 1e-9), second) + 1e-4).rsqrt()


def load_frame_interpolator(device: torch.device, dtype: torch.dtype) -> FrameInterpolator:
    """Return the trained network on the device, in evaluation mode; its frames are float32 in every dtype."""
    from safetensors.torch import load_file

    network = FrameInterpolator()
    network.load_state_dict(load_file(WEIGHTS_FILE))
    return network.to(device, dtype).eval().requires_grad_(requires_grad=False)

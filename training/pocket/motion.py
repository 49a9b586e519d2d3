"""Synthesise training clips from photographs on the GPU, with exactly known camera motion and parallax.

A clip shows one photograph through a moving window. All motion is one displacement field in output pixels,
P(t, x): the position that pixel x of frame t comes from. It is the sum of

* camera motion: pan, zoom about a focus and roll; pan and zoom are stronger where the scene is near (parallax),
* sway: a region that oscillates, like leaves and water,
* drift: a region that moves at constant velocity, like clouds.

Depth and regions are smooth functions of the photograph's colours, so their borders follow the objects. They are
sampled at the source position (by a fixed-point iteration), so they move with the content.
"""

import json
import math
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

PHOTO_WIDTH, PHOTO_HEIGHT = 1152, 648
# SVD's default motion bucket, 127, is a mean flow of 0.8 pixels per frame at 7 fps; the scale is linear.
BUCKET_PER_PIXEL = 127 / 0.8
REFERENCE_FPS = 7.0
FASTEST = 2.5  # maximum flow in pixels per frame; without it, clips at low fps would leave the photograph
HELD_OUT = Path(__file__).parent / "held_out.json"


@dataclass(frozen=True)
class Photos:
    """Photographs as tensors on the device: pixels uint8 [n, 3, 648, 1152], thumbs float [n, 3, 54, 96] in −1…1."""

    names: tuple[str, ...]  # file names in the archive
    pixels: torch.Tensor
    thumbs: torch.Tensor
    detail: torch.Tensor  # [n]: original width / PHOTO_WIDTH, at most 1

    @classmethod
    def read(cls, tar: Path, device: torch.device | str, *, limit: int | None = None) -> "Photos":
        """Read the JPEGs of a tar archive written by collect.py."""
        with tarfile.open(tar) as archive:
            names = sorted(n for n in archive.getnames() if n.endswith(".jpg"))[:limit]
            blobs = [archive.extractfile(n).read() for n in names]

        def decode(blob: bytes) -> tuple[np.ndarray, float]:
            image = Image.open(BytesIO(blob)).convert("RGB")
            sized = image.resize((PHOTO_WIDTH, PHOTO_HEIGHT), Image.Resampling.LANCZOS)
            return np.asarray(sized), min(1.0, image.width / PHOTO_WIDTH)

        with ThreadPoolExecutor() as pool:
            decoded = list(pool.map(decode, blobs))
        pixels = torch.from_numpy(np.stack([d[0] for d in decoded])).permute(0, 3, 1, 2).contiguous().to(device)
        thumbs = torch.cat([F.adaptive_avg_pool2d(p[None].float() / 127.5 - 1, (54, 96)) for p in pixels])
        return cls(tuple(names), pixels, thumbs, torch.tensor([d[1] for d in decoded], device=device))

    def split(self) -> tuple["Photos", "Photos"]:
        """Return the training and the validation photographs, both without the other sets of held_out.json."""
        sets = {name: set(members) for name, members in json.loads(HELD_OUT.read_text()).items()}
        held_out = set().union(*sets.values())
        train = [name not in held_out for name in self.names]
        return self._select(train), self._select([name in sets["validation"] for name in self.names])

    def _select(self, selected: list[bool]) -> "Photos":
        mask = torch.tensor(selected, device=self.pixels.device)
        names = tuple(name for name, is_selected in zip(self.names, selected, strict=True) if is_selected)
        return Photos(names, self.pixels[mask], self.thumbs[mask], self.detail[mask])


@dataclass(frozen=True)
class Clips:
    """A batch of clips.

    frames: [batch, rendered, 3, height, width] in −1…1; motion_bucket_id and fps: [batch].
    positions: [batch, frames, 2, height/4, width/4], the position in frame 0 that every fourth pixel comes from
    (x, y in pixels from the centre).
    """

    frames: torch.Tensor
    motion_bucket_id: torch.Tensor
    fps: torch.Tensor
    positions: torch.Tensor


class Mover:
    """Draws random clips of `height` × `width` pixels from photographs."""

    def __init__(self, photos: Photos, height: int, width: int) -> None:
        self.photos, self.height, self.width = photos, height, width
        self.device = photos.pixels.device

    def draw(
        self,
        batch: int,
        num_frames: int,
        fastest: float = FASTEST,
        rendered: Sequence[int] | None = None,
        flow: torch.Tensor | None = None,
    ) -> Clips:
        """Draw a batch of clips with a mean flow of at most `fastest` pixels per frame; frame 0 is the image.

        Only the frames `rendered` are computed, by default all; positions are of all frames. With `flow`, [batch], the
        clips have these mean flows, in pixels per frame.
        """
        index = torch.randint(0, len(self.photos.pixels), (batch,), device=self.device)
        fps = self._fps(batch)
        # The exponent favours slow clips, which are harder to keep steady.
        bucket = 255 * self._uniform(batch) ** 1.2
        target = flow if flow is not None else (bucket / BUCKET_PER_PIXEL * REFERENCE_FPS / fps).clamp(max=fastest)
        pitch = self._pitch(index)
        scene = _Scene.draw(self, index, num_frames, pitch)
        coarse = _grid(self.height // 4, self.width // 4, 4.0, self.device)
        centre = self._centre(scene, pitch, coarse, target)
        unit = _flow(scene.positions(coarse, centre, torch.ones(batch, device=self.device)))
        amount = target / unit.clamp(min=1e-3)
        positions = scene.positions(coarse, centre, amount)
        shown = positions if rendered is None else positions[:, list(rendered)]
        frames = self._render(index, shown, centre, pitch)
        actual = _flow(positions) * BUCKET_PER_PIXEL * fps / REFERENCE_FPS
        return Clips(self._recolour(self._sharpen(frames)), actual.clamp(0, 255), fps, positions)

    def _uniform(self, batch: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(batch, device=self.device) * (high - low) + low

    def _fps(self, batch: int) -> torch.Tensor:
        """Draw frame rates: REFERENCE_FPS for half of the clips, log-uniform between 4 and 30 for the others."""
        other = torch.exp(self._uniform(batch, math.log(4), math.log(30))).round()
        return torch.where(self._uniform(batch) < 0.5, torch.full_like(other, REFERENCE_FPS), other)

    def _pitch(self, index: torch.Tensor) -> torch.Tensor:
        """Draw photograph pixels per output pixel: enough for sharp frames, few enough to leave room for motion."""
        finest = 1.5 / self.photos.detail[index]
        widest = min(0.85 * PHOTO_WIDTH / self.width, 0.85 * PHOTO_HEIGHT / self.height, 4.0)
        return (finest * torch.exp(self._uniform(len(index)) * torch.log(widest / finest).clamp(min=0))).clamp(
            max=widest
        )

    def _centre(self, scene: "_Scene", pitch: torch.Tensor, coarse: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Draw the window's initial centre, [batch, 2] photograph pixels; its path stays inside if possible."""
        batch = len(pitch)
        middle = torch.tensor([PHOTO_WIDTH / 2, PHOTO_HEIGHT / 2], device=self.device).expand(batch, 2)
        unit = scene.positions(coarse, middle, torch.ones(batch, device=self.device))
        amount = target / _flow(unit).clamp(min=1e-3)
        path = scene.positions(coarse, middle, amount).permute(0, 2, 1, 3, 4).flatten(2) * pitch[:, None, None]
        low = -path.amin(2)
        high = 2 * middle - path.amax(2)
        room = (high - low).clamp(min=0)
        return torch.where(high > low, low + room * torch.rand(batch, 2, device=self.device), (low + high) / 2)

    def _render(
        self, index: torch.Tensor, positions: torch.Tensor, centre: torch.Tensor, pitch: torch.Tensor
    ) -> torch.Tensor:
        """Sample the photographs at twice the size and downscale with an antialiasing filter."""
        batch, num_frames = positions.shape[:2]
        fine = (2 * self.height, 2 * self.width)
        # The displacement is smooth and can be interpolated; the identity is added exactly.
        coarse = _grid(self.height // 4, self.width // 4, 4.0, self.device)
        offset = F.interpolate((positions - coarse).flatten(0, 1), fine, mode="bilinear", align_corners=False)
        source = offset.view(batch, num_frames, 2, *fine) + _grid(*fine, 0.5, self.device)
        size = torch.tensor([PHOTO_WIDTH, PHOTO_HEIGHT], device=self.device).view(1, 1, 2, 1, 1)
        source = (source * pitch.view(-1, 1, 1, 1, 1) + centre[:, None, :, None, None]) / size * 2 - 1
        grid = source.permute(0, 1, 3, 4, 2).reshape(batch, num_frames * fine[0], fine[1], 2)
        photo = self.photos.pixels[index].float() / 127.5 - 1
        sampled = F.grid_sample(photo, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        sampled = sampled.view(batch, 3, num_frames, *fine).transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(sampled, (self.height, self.width), mode="bicubic", antialias=True)
        return frames.view(batch, num_frames, 3, self.height, self.width).clamp(-1, 1)

    def _sharpen(self, frames: torch.Tensor) -> torch.Tensor:
        """Apply unsharp masking by up to 1.2, since Lanczos-downscaled inputs are sharper than `_render`'s frames."""
        flat = frames.flatten(0, 1)
        blurred = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, 1).view_as(frames)
        amount = self._uniform(len(frames), 0, 1.2).view(-1, 1, 1, 1, 1)
        return (frames + amount * (frames - blurred)).clamp(-1, 1)

    def _recolour(self, frames: torch.Tensor) -> torch.Tensor:
        """Permute channels and change saturation, contrast and brightness, by the same amount in a whole clip."""
        batch = len(frames)
        shape = (batch, 1, 1, 1, 1)
        order = torch.rand(batch, 3, device=self.device).argsort(1)
        is_unpermuted = self._uniform(batch) < 0.75
        order = torch.where(is_unpermuted[:, None], torch.arange(3, device=self.device), order)
        frames = torch.gather(frames, 2, order.view(batch, 1, 3, 1, 1).expand_as(frames))
        grey = frames.mean(2, keepdim=True)
        saturation = torch.where(self._uniform(batch) < 0.05, 0.0, self._uniform(batch, 0.7, 1.3)).view(shape)
        frames = grey + (frames - grey) * saturation
        frames = frames * self._uniform(batch, 0.75, 1.15).view(shape) + self._uniform(batch, -0.12, 0.12).view(shape)
        return frames.clamp(-1, 1)


@dataclass(frozen=True)
class _Scene:
    """A batch of scene depths and motions, before they are scaled to a target flow."""

    fields: torch.Tensor  # [batch, 3, 54, 96]: depth (mean 0), sway mask, drift mask
    time: torch.Tensor  # [batch, frames]: progress 0…1
    pan: torch.Tensor  # [batch, 2]
    zoom: torch.Tensor  # [batch]
    roll: torch.Tensor  # [batch]
    focus: torch.Tensor  # [batch, 2] output pixels
    sway: torch.Tensor  # [batch, 6]: direction (2), cycles, phase, wave (2)
    drift: torch.Tensor  # [batch, 2]
    pitch: torch.Tensor
    reach: float  # half the window's diagonal, output pixels

    @classmethod
    def draw(cls, mover: Mover, index: torch.Tensor, num_frames: int, pitch: torch.Tensor) -> "_Scene":
        batch, device = len(index), mover.device
        uniform = mover._uniform  # noqa: SLF001 - same module
        direction = lambda: torch.stack(  # noqa: E731
            [torch.cos(a := uniform(batch, 0, 2 * math.pi)), torch.sin(a)], 1
        )
        sign = lambda: torch.where(uniform(batch) < 0.5, -1.0, 1.0)  # noqa: E731
        on = lambda probability: (uniform(batch) < probability).float()  # noqa: E731
        reach = math.hypot(mover.width, mover.height) / 2
        time = torch.linspace(0, 1, num_frames, device=device).expand(batch, -1)
        ease = uniform(batch, -0.35, 0.35)[:, None]
        # Pan only, zoom only, both, or a fixed camera with only local motion.
        kind = torch.rand(batch, device=device)
        panning = ((kind < 0.45) | ((kind > 0.75) & (kind < 0.95))).float()
        zooming = ((kind > 0.45) & (kind < 0.95)).float()
        local = (kind > 0.95).float()
        focus = torch.rand(batch, 2, device=device) - 0.5
        focus = focus * torch.tensor([mover.width, mover.height], device=device) * 0.6
        swaying, drifting = (on(0.3) + local).clamp(max=1), on(0.2)
        return cls(
            fields=_fields(mover.photos.thumbs[index]),
            time=time + ease * time * (1 - time),
            pan=direction()
            * torch.tensor([1.0, 0.6], device=device)
            * panning[:, None]
            * uniform(batch, 0.5, 1)[:, None],
            zoom=zooming * sign() * uniform(batch, 0.5, 1.2),
            roll=on(0.2) * (1 - local) * sign() * uniform(batch, 0.1, 0.5),
            focus=focus,
            sway=torch.cat(
                [
                    direction() * (swaying * uniform(batch, 0.05, 0.25))[:, None],
                    uniform(batch, 0.5, 1.6)[:, None],
                    uniform(batch, 0, 2 * math.pi)[:, None],
                    direction() * uniform(batch, 1, 6)[:, None] / reach,
                ],
                1,
            ),
            drift=direction()
            * torch.tensor([1.0, 0.3], device=device)
            * (drifting * uniform(batch, 0.2, 0.7))[:, None],
            pitch=pitch,
            reach=reach,
        )

    def positions(self, coarse: torch.Tensor, centre: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
        """Return P(t, x), [batch, frames, 2, h, w] output pixels from the centre, for motion scaled by `amount`."""
        batch, num_frames = self.time.shape
        wide = (batch, 1, 1, 1)
        identity = coarse.expand(batch, num_frames, -1, -1, -1)
        source = identity
        scale = amount.view(batch, 1, 1, 1, 1)
        time = self.time.view(batch, num_frames, 1, 1, 1)
        dx, dy, cycles, phase, kx, ky = (v.view(wide) for v in self.sway.unbind(1))
        from_focus = (identity - self.focus.view(batch, 1, 2, 1, 1)) / self.reach
        turn = torch.stack([-from_focus[:, :, 1], from_focus[:, :, 0]], 2)
        for _ in range(3):
            depth, sway_mask, drift_mask = self._sample_fields(source, centre).unbind(2)
            nearness = (1 + depth)[:, :, None]
            move = self.pan.view(batch, 1, 2, 1, 1) * nearness
            move = move + self.zoom.view(batch, 1, 1, 1, 1) * from_focus * nearness
            move = move + self.roll.view(batch, 1, 1, 1, 1) * turn
            move = move + self.drift.view(batch, 1, 2, 1, 1) * drift_mask[:, :, None]
            wave = phase + kx * source[:, :, 0] + ky * source[:, :, 1]
            swing = (
                torch.sin(2 * math.pi * cycles * self.time.view(batch, num_frames, 1, 1) + wave) - torch.sin(wave)
            ) * sway_mask
            source = identity + scale * (time * move + torch.stack([dx * swing, dy * swing], 2))
        return source

    def _sample_fields(self, source: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """Return the fields at output positions, [batch, frames, 3, h, w]."""
        batch, num_frames, _, h, w = source.shape
        size = torch.tensor([PHOTO_WIDTH, PHOTO_HEIGHT], device=source.device).view(1, 1, 2, 1, 1)
        normalised = (source * self.pitch.view(-1, 1, 1, 1, 1) + centre[:, None, :, None, None]) / size * 2 - 1
        grid = normalised.permute(0, 1, 3, 4, 2).reshape(batch, num_frames * h, w, 2)
        sampled = F.grid_sample(self.fields, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return sampled.view(batch, -1, num_frames, h, w).transpose(1, 2)


def _fields(thumbs: torch.Tensor) -> torch.Tensor:
    """Return depth, sway mask and drift mask, [batch, 3, 54, 96]: smooth functions of colour, height and noise."""
    batch, _, h, w = thumbs.shape
    device = thumbs.device
    colour = thumbs - thumbs.mean((2, 3), keepdim=True)
    colour = colour / colour.std((1, 2, 3), keepdim=True).clamp(min=0.05)
    height = torch.linspace(-1.5, 1.5, h, device=device).view(1, 1, h, 1).expand(batch, 1, h, w)
    noise = F.interpolate(torch.randn(batch, 3, 4, 6, device=device), (h, w), mode="bicubic")
    weights = torch.randn(batch, 3, 4, device=device) * torch.tensor([0.8, 0.8, 0.8, 1.0], device=device)
    weights[:, 0, 3] = weights[:, 0, 3].abs() * 0.6  # content lower in the image is usually nearer
    mixed = torch.einsum("bkc,bchw->bkhw", weights, torch.cat([colour, height], 1)) + noise
    masks = torch.sigmoid(2.0 * mixed)
    for _ in range(2):
        masks = F.avg_pool2d(F.pad(masks, (2, 2, 2, 2), mode="replicate"), 5, 1)
    strength = torch.rand(batch, 1, 1, device=device) * 1.2
    depth = (masks[:, 0] - masks[:, 0].mean((1, 2), keepdim=True)) * strength
    return torch.stack([depth, masks[:, 1], masks[:, 2]], 1)


def _grid(height: int, width: int, spacing: float, device: torch.device) -> torch.Tensor:
    """Return positions [1, 1, 2, height, width] (x, y) from the centre, `spacing` output pixels apart."""
    y = (torch.arange(height, device=device) + 0.5 - height / 2) * spacing
    x = (torch.arange(width, device=device) + 0.5 - width / 2) * spacing
    gy, gx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([gx, gy])[None, None]


def _flow(positions: torch.Tensor) -> torch.Tensor:
    """Return the mean flow between consecutive frames, [batch], in pixels per frame."""
    return (positions[:, 1:] - positions[:, :-1]).norm(dim=2).mean((1, 2, 3))

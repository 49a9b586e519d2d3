"""Synthesise three frames of a scene from photographs, with exactly known motion and occlusion.

A scene is a background with up to `OBJECTS` objects in front of each other. Each is a layer: a part of a photograph,
seen through its own moving affine map, and bent along the way. The objects are cut out by smooth or hard masks, from
discs to bars a few pixels wide. The camera stands still in a third of the scenes: then the background does not move.

Everything is drawn relative to the time t of the frame between. There a layer's texture coordinates are an affine map
of the position, so the motion from there to any other time has a closed form, and is exact where layers hide others.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from training.pocket.motion import PHOTO_HEIGHT, PHOTO_WIDTH, Photos

OBJECTS = 4
WINDOW = 400  # side of the part of a photograph that is a layer's texture
EMPTY = 0.25  # share of the scenes whose background has one colour
MAX_SHIFT = 26.0  # pixels between the two given frames, of the background; objects add as much
FINE = 2  # frames are rendered at this multiple of their size


@dataclass(frozen=True)
class Triplets:
    """A batch of scenes: first, between, second [n, 3, height, width] in 0…1; time [n], where `between` is.

    motion: [n, 4, height, width], where each pixel of `between` is in the first and in the second frame, x, y, x, y.
    """

    first: torch.Tensor
    between: torch.Tensor
    second: torch.Tensor
    time: torch.Tensor
    motion: torch.Tensor


class SceneMaker:
    """Draws random scenes of `height` × `width` pixels from photographs."""

    def __init__(self, photos: Photos, height: int, width: int) -> None:
        self.photos, self.height, self.width = photos, height, width
        self.device = photos.pixels.device

    def draw(self, batch: int) -> Triplets:
        """Draw a batch of scenes without artefacts."""
        t = torch.where(self._uniform(batch) < 0.6, 0.5, (self._uniform(batch) * 3).floor() * 0.25 + 0.25)
        layers = Layers.draw(self, batch)
        rendered = [self._render(layers, moment - t) for moment in (torch.zeros_like(t), t, torch.ones_like(t))]
        first, between, second = rendered
        return Triplets(first, between, second, t, self._motion(layers, t))

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(shape, device=self.device) * (high - low) + low

    def _render(self, layers: "Layers", delta: torch.Tensor) -> torch.Tensor:
        """Return the frames at `delta` [n] after the time between, composed from back to front."""
        height, width = FINE * self.height, FINE * self.width
        grid = _positions(height, width, 1 / FINE, self.device)
        place = layers.texture_positions(grid, delta)  # [n, layers, 2, h, w]
        colour = layers.sample(layers.textures, place).view(*place.shape[:2], 3, height, width)
        alpha = layers.alpha(place)
        frame = colour[:, 0]
        for layer in range(1, colour.shape[1]):
            frame = torch.lerp(frame, colour[:, layer], alpha[:, layer])
        return F.avg_pool2d(frame, FINE)

    def _motion(self, layers: "Layers", t: torch.Tensor) -> torch.Tensor:
        """Return the motion to both given frames, of the layer in front."""
        grid = _positions(self.height, self.width, 1.0, self.device)
        place = layers.texture_positions(grid, torch.zeros_like(t))
        alpha = layers.alpha(place)
        both = [layers.positions_later(place, delta) - grid for delta in (-t, 1 - t)]
        motion = torch.cat(both, 2)  # [n, layers, 4, h, w]
        front = motion[:, 0]
        for layer in range(1, motion.shape[1]):
            front = torch.where(alpha[:, layer] >= 0.5, motion[:, layer], front)
        return front


@dataclass(frozen=True)
class Layers:
    """The layers of a batch; every tensor begins with [n, layers]. Lengths are frame pixels, times from 0 to 1."""

    textures: torch.Tensor  # [n · layers, 3, WINDOW, WINDOW]
    noise: torch.Tensor  # [n · layers, 3, k, k]: how the layer bends (x, y) and how its mask deviates from an ellipse
    pitch: torch.Tensor  # texture pixels per frame pixel
    centre: torch.Tensor  # [n, layers, 2]: of the object, from the frame's centre, at the time between
    shift: torch.Tensor  # [n, layers, 2] per unit of time, as for the next three
    turn: torch.Tensor  # radians
    zoom: torch.Tensor  # logarithm
    bend: torch.Tensor  # largest bending
    ellipse: torch.Tensor  # [n, layers, 4]: radii, cosine and sine of the angle
    hardness: torch.Tensor
    ruggedness: torch.Tensor
    visible: torch.Tensor  # 0 or 1

    @classmethod
    def draw(cls, maker: SceneMaker, batch: int) -> "Layers":
        count = 1 + OBJECTS
        shape = (batch, count)
        uniform, device = maker._uniform, maker.device  # noqa: SLF001 - same module
        on = lambda probability, *size: (uniform(*size) < probability).float()  # noqa: E731
        angle = uniform(*shape, high=2 * math.pi)
        direction = torch.stack([torch.cos(angle), torch.sin(angle) * 0.7], -1)
        moving = on(0.65, batch, 1)  # the camera
        fast = uniform(batch, 1) ** 1.2  # how fast all of the scene is
        length = MAX_SHIFT * fast * uniform(*shape)
        shift = direction * length[..., None]
        camera = shift[:, :1] * moving[..., None]
        is_object = torch.arange(count, device=device) > 0
        shift = camera + torch.where(is_object[:, None], shift * on(0.85, *shape)[..., None], 0.0)
        amount = fast * torch.where(is_object, 1.0, moving)
        size = torch.tensor([maker.width, maker.height], device=device)
        radius = 0.4 * maker.height * torch.exp(-uniform(*shape, high=2.4))
        aspect = torch.exp(uniform(*shape, high=2.2))
        radii = torch.stack([radius, (radius / aspect).clamp(min=1.2)], -1)
        tilt = uniform(*shape, high=math.pi)
        resolution = 10
        return cls(
            textures=_textures(maker, torch.where(is_object, 0.06, EMPTY).expand(shape).flatten()),
            noise=F.interpolate(
                torch.randn(batch * count, 3, resolution, resolution, device=device), scale_factor=5.0, mode="bicubic"
            ),
            pitch=torch.exp(uniform(*shape, low=math.log(0.9), high=math.log(2.2))),
            centre=torch.where(is_object[:, None], (uniform(*shape, 2) - 0.5) * size, 0.0),
            shift=shift,
            turn=(uniform(*shape) - 0.5) * amount * torch.where(is_object, 0.6, 0.1),
            zoom=(uniform(*shape) - 0.5) * amount * torch.where(is_object, 0.3, 0.15),
            bend=uniform(*shape) ** 2 * amount * on(0.5, *shape) * 3,
            ellipse=torch.cat([radii, torch.cos(tilt)[..., None], torch.sin(tilt)[..., None]], -1),
            hardness=radii[..., 1] * torch.exp(uniform(*shape, low=-0.7, high=1.8)),
            ruggedness=uniform(*shape, high=0.7),
            visible=torch.where(is_object, on(0.6, *shape), 1.0),
        )

    def texture_positions(self, grid: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Return the texture coordinates, [n, layers, 2, h, w], of positions `grid` [1, 1, 2, h, w] at `delta` [n]."""
        delta = delta.view(-1, 1, 1, 1, 1)
        place = self._unmoved(grid, delta)
        for _ in range(2):
            place = self._unmoved(grid - delta * self._bending(place), delta)
        return place

    def positions_later(self, place: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Return the frame positions, at `delta` [n], of texture coordinates."""
        delta = delta.view(-1, 1, 1, 1, 1)
        cosine, sine = self._rotation(delta, 1)
        x, y = (place / self._wide(self.pitch)).unbind(2)
        turned = torch.stack([cosine * x - sine * y, sine * x + cosine * y], 2)
        return turned + self._centre(delta) + delta * self._bending(place)

    def _unmoved(self, position: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        x, y = (position - self._centre(delta)).unbind(2)
        cosine, sine = self._rotation(delta, -1)
        return torch.stack([cosine * x - sine * y, sine * x + cosine * y], 2) * self._wide(self.pitch)

    def _rotation(self, delta: torch.Tensor, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine of the turn at `delta`, times the zoom, [n, layers, 1, 1]; of the inverse for −1."""
        angle = sign * self.turn[..., None, None] * delta[:, :, 0]
        scale = torch.exp(sign * self.zoom[..., None, None] * delta[:, :, 0])
        return torch.cos(angle) * scale, torch.sin(angle) * scale

    def _centre(self, delta: torch.Tensor) -> torch.Tensor:
        return self.centre[..., None, None] + delta * self.shift[..., None, None]

    def _bending(self, place: torch.Tensor) -> torch.Tensor:
        noise = self.sample(self.noise[:, :2], place)
        return noise.view(place.shape) * self._wide(self.bend)

    def alpha(self, place: torch.Tensor) -> torch.Tensor:
        """Return how far each layer covers those behind it, [n, layers, 1, h, w]."""
        across, along, cosine, sine = (self._wide(v) for v in self.ellipse.unbind(-1))
        x, y = (place / self._wide(self.pitch)).unbind(2)
        x, y = x[:, :, None], y[:, :, None]
        distance = ((cosine * x + sine * y) / across).square() + ((cosine * y - sine * x) / along).square()
        noise = self.sample(self.noise[:, 2:], place).view(distance.shape)
        depth = 1 - distance + self._wide(self.ruggedness) * noise * (distance < 4)
        return torch.sigmoid(depth * self._wide(self.hardness)) * self._wide(self.visible)

    def sample(self, images: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Return images, [n · layers, c, …], at texture coordinates; they are mirrored at their borders."""
        grid = place.flatten(0, 1).permute(0, 2, 3, 1) * (2 / WINDOW)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _wide(self, value: torch.Tensor) -> torch.Tensor:
        return value[..., None, None, None]


def _textures(maker: SceneMaker, flatness: torch.Tensor) -> torch.Tensor:
    """Return windows of photographs, [n, 3, WINDOW, WINDOW] in 0…1, some mirrored, recoloured or of one colour.

    flatness: [n], how probable it is that each has one colour.
    """
    device, pixels, count = maker.device, maker.photos.pixels, len(flatness)
    index = torch.randint(0, len(pixels), (count,), device=device)
    top = (torch.rand(count, device=device) * (PHOTO_HEIGHT - WINDOW)).long()
    left = (torch.rand(count, device=device) * (PHOTO_WIDTH - WINDOW)).long()
    side = torch.arange(WINDOW, device=device)
    mirrored = torch.where(torch.rand(count, 1, device=device) < 0.5, side, side.flip(0))
    rows, columns = top[:, None] + side, left[:, None] + mirrored
    windows = pixels.permute(0, 2, 3, 1)[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    windows = windows.permute(0, 3, 1, 2).float() / 255
    shape = (count, 1, 1, 1)
    flat = (torch.rand(shape, device=device) < flatness.view(shape)).float()
    windows = torch.lerp(windows, windows.mean((2, 3), keepdim=True), flat)
    blurred = F.avg_pool2d(windows, 3, 1, 1, count_include_pad=False)
    windows = windows + (windows - blurred) * torch.rand(shape, device=device) * 1.2
    gain = 0.5 + torch.rand(shape, device=device) * 0.7
    offset = (torch.rand(count, 3, 1, 1, device=device) - 0.5) * 0.25
    return (windows * gain + offset).clamp(0, 1)


def _positions(height: int, width: int, spacing: float, device: torch.device) -> torch.Tensor:
    """Return positions [1, 1, 2, height, width] (x, y) from the centre, `spacing` frame pixels apart."""
    y = (torch.arange(height, device=device) + 0.5 - height / 2) * spacing
    x = (torch.arange(width, device=device) + 0.5 - width / 2) * spacing
    gy, gx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([gx, gy])[None, None]

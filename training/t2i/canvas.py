"""Drawing primitives for the scenes: a batch of images in one tensor, shapes as signed distances, and noise.

Coordinates are in units of the image's height: x from 0 to width/height, y from 0 (top) to 1. A distance is negative
inside a shape; edges are antialiased over one pixel, so no supersampling is needed. The formulas for segments and
polygons are the usual 2D distance functions (as collected by Quilez).
"""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


@dataclass
class Canvas:
    """A batch of images [b, 3, h, w] in 0…1 (sRGB values) and their lighting.

    Values per image are [b, 1, 1, 1], colours [b, 3, 1, 1].
    """

    pixels: Tensor
    covered: Tensor  # coverage of things, 0…1, [b, 1, h, w]
    x: Tensor  # [1, 1, 1, w]
    y: Tensor  # [1, 1, h, 1]
    generator: torch.Generator
    horizon: Tensor
    sun_x: Tensor
    sun_y: Tensor
    low: Tensor  # the sky's colour at the horizon, and of everything far away
    light: Tensor  # the colour of the sun or the moon
    ambient: Tensor  # factor for the colours of the ground
    ambient_things: Tensor  # factor for the colours of things; brighter at night, so that they stay recognisable
    night: Tensor  # 1 or 0, like snow, rain and fog
    snow: Tensor
    rain: Tensor
    fog: Tensor

    @property
    def pixel(self) -> float:
        """The size of a pixel."""
        return 1 / self.pixels.shape[2]

    def pick(self, rows: Tensor) -> "Canvas":
        """Return some of the images as a canvas of their own."""
        fixed = ("x", "y", "generator")
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in fixed})

    def over(self, alpha: Tensor, colour: Tensor) -> None:
        """Blend a colour [b, 3, h or 1, w or 1] over the images with alpha [b, 1, h, w]."""
        self.pixels = torch.lerp(self.pixels, colour.expand_as(self.pixels), alpha.expand_as(self.pixels[:, :1]))

    def rand(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Return a uniform random number per image, [b, 1, 1, 1]."""
        return self.random(1, 1, 1) * (high - low) + low

    def random(self, *shape: int) -> Tensor:
        """Return uniform random numbers in 0…1, [b, *shape]."""
        device = self.pixels.device
        return torch.rand(len(self.pixels), *shape, device=device, generator=self.generator)

    def noise(self, rows: int, columns: int, octaves: int = 4, gain: float = 0.5) -> Tensor:
        """Return smooth noise in 0…1, [b, 1, h, w], with `rows` × `columns` cells in the coarsest octave."""
        height, width = self.pixels.shape[2:]
        return self.texture(rows, columns, height, width, octaves, gain)

    def texture(self, rows: int, columns: int, height: int, width: int, octaves: int = 4, gain: float = 0.5) -> Tensor:
        """Return smooth noise as `noise` does, in another size."""
        total, weight = 0.0, 0.0
        for i in range(octaves):
            cells = self.random(1, min(rows << i, height) + 1, min(columns << i, width) + 1)
            smooth = F.interpolate(cells, (height, width), mode="bicubic", align_corners=True)
            total, weight = total + smooth * gain**i, weight + gain**i
        return total / weight

    def ridge(self, cells: int, octaves: int = 5, gain: float = 0.5) -> Tensor:
        """Return noise along x, [b, 1, 1, w], in −1…1."""
        width = self.pixels.shape[3]
        total, weight = 0.0, 0.0
        for i in range(octaves):
            values = self.random(1, min(cells << i, width) + 1)
            line = F.interpolate(values, width, mode="linear", align_corners=True)[:, :, None]
            total, weight = total + line * gain**i, weight + gain**i
        return total / weight * 2 - 1

    def cover(self, distance: Tensor, softness: float = 1.0) -> Tensor:
        """Return the coverage of each pixel, 0…1, by a shape's signed distance."""
        return (0.5 - distance / (self.pixel * softness)).clamp(0, 1)

    def hazed(self, colour: Tensor, depth: float) -> Tensor:
        """Return a colour seen through haze; depth 0 is the viewer and 1 the horizon."""
        share = (depth * 0.65 + self.fog * (0.12 + 0.72 * depth)).clamp(max=0.97)
        return torch.lerp(colour, self.low.expand_as(colour), share.expand_as(colour[:, :1]))


def colour(canvas: Canvas, *rgb: float) -> Tensor:
    """Return one colour for all images, [b, 3, 1, 1]."""
    return (
        torch.tensor(rgb, dtype=torch.float32, device=canvas.pixels.device)
        .view(1, 3, 1, 1)
        .expand(len(canvas.pixels), -1, -1, -1)
    )


def smoothstep(low: float | Tensor, high: float | Tensor, value: Tensor) -> Tensor:
    """Interpolate smoothly from 0 at `low` to 1 at `high`."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def look_up(texture: Tensor, u: Tensor, v: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample a texture [b, c, H, W] at u, v [b, 1, h, w]; beyond 0…1 it repeats mirrored."""
    u, v = torch.broadcast_tensors(u, v)
    fold = lambda t: 1 - ((t % 2) - 1).abs()  # noqa: E731  # 0…1…0
    grid = torch.cat([fold(u), fold(v)], 1).permute(0, 2, 3, 1) * 2 - 1
    grid = grid.expand(len(texture), -1, -1, -1)
    return F.grid_sample(texture, grid, mode=mode, padding_mode="border", align_corners=False)


def of_cell(table: Tensor, cell: Tensor) -> Tensor:
    """Look up a random table [b, n] by each pixel's cell number [b, 1, h or 1, w]."""
    index = cell.long().remainder(table.shape[1])
    index = index.expand(len(table), -1, -1, -1)
    return table.gather(1, index.flatten(1)).view(index.shape)


def circle(u: Tensor, v: Tensor, x: float, y: float, radius: float) -> Tensor:
    """Return the distance to a circle."""
    return ((u - x) ** 2 + (v - y) ** 2).sqrt() - radius


def ellipse(u: Tensor, v: Tensor, x: float, y: float, rx: float, ry: float) -> Tensor:
    """Return the approximate distance to an ellipse; exact on its edge."""
    p, q = (u - x) / rx, (v - y) / ry
    k = (p * p + q * q).sqrt()
    slope = ((p / rx) ** 2 + (q / ry) ** 2).sqrt().clamp(min=1e-6)
    return k * (k - 1) / slope


def box(u: Tensor, v: Tensor, x: float, y: float, half_x: float, half_y: float, rounded: float = 0.0) -> Tensor:
    """Return the distance to a box with corners of radius `rounded`."""
    p, q = (u - x).abs() - half_x + rounded, (v - y).abs() - half_y + rounded
    outside = (p.clamp(min=0) ** 2 + q.clamp(min=0) ** 2).sqrt()
    return outside + torch.maximum(p, q).clamp(max=0) - rounded


def limb(
    u: Tensor, v: Tensor, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float | None = None
) -> Tensor:
    """Return the distance to a segment with radius r0 at its start and r1 (default: r0) at its end."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    p, q = u - start[0], v - start[1]
    t = ((p * dx + q * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    radius = r0 if r1 is None else r0 + (r1 - r0) * t
    return ((p - t * dx) ** 2 + (q - t * dy) ** 2).sqrt() - radius


def polygon(u: Tensor, v: Tensor, *corners: tuple[float, float]) -> Tensor:
    """Return the distance to a polygon: to its nearest edge, negative inside (even-odd rule)."""
    nearest, inside = None, torch.zeros_like(u + v, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        edge = limb(u, v, (ax, ay), (bx, by), 0.0)
        nearest = edge if nearest is None else torch.minimum(nearest, edge)
        if ay != by:
            crosses = ((v < ay) != (v < by)) & (u < (bx - ax) * (v - ay) / (by - ay) + ax)
            inside = inside ^ crosses
    assert nearest is not None
    return torch.where(inside, -nearest, nearest)


def union(*shapes: Tensor) -> Tensor:
    """Return the distance to the union of shapes."""
    result = shapes[0]
    for shape in shapes[1:]:
        result = torch.minimum(result, shape)
    return result


def blend(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Return the distance to a union whose inner corners are rounded by about k."""
    h = (k - (a - b).abs()).clamp(min=0) / k
    return torch.minimum(a, b) - h * h * k / 4

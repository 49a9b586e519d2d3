"""What the scenes are painted with: a batch of pictures in one tensor, shapes by their signed distance, and noise.

Coordinates are in units of the picture's height: x from 0 to width/height, y from 0 (top) to 1. A distance is negative
inside a shape; the edge is softened over one pixel, so nothing needs to be drawn larger and shrunk. Distances to
segments and polygons are the usual ones of plane geometry, as in Quilez' collection of 2D distance functions.
"""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


@dataclass
class Sheet:
    """A batch of pictures [b, 3, h, w] in 0…1 (sRGB values), and the light they are seen in.

    What differs from picture to picture is [b, 1, 1, 1], colours are [b, 3, 1, 1].
    """

    pixels: Tensor
    covered: Tensor  # how much of each pixel is a thing, [b, 1, h, w]
    x: Tensor  # [1, 1, 1, w]
    y: Tensor  # [1, 1, h, 1]
    generator: torch.Generator
    horizon: Tensor
    sun_x: Tensor
    sun_y: Tensor
    low: Tensor  # the sky's colour at the horizon, and so that of all that is far
    light: Tensor  # the colour of the sun or the moon
    ambient: Tensor  # what the land's own colours are multiplied by
    ambient_things: Tensor  # the same for things, which stay recognisable at night
    night: Tensor  # 1 or 0, as are these three
    snow: Tensor
    rain: Tensor
    fog: Tensor

    @property
    def pixel(self) -> float:
        return 1 / self.pixels.shape[2]

    def pick(self, rows: Tensor) -> "Sheet":
        """Some of the pictures, as a sheet of their own."""
        fixed = ("x", "y", "generator")
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in fixed})

    def over(self, alpha: Tensor, colour: Tensor) -> None:
        """Lay a colour [b, 3, h or 1, w or 1] over the picture where alpha [b, 1, h, w] says."""
        self.pixels = torch.lerp(self.pixels, colour.expand_as(self.pixels), alpha.expand_as(self.pixels[:, :1]))

    def rand(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """A number for each picture, [b, 1, 1, 1]."""
        return self.random(1, 1, 1) * (high - low) + low

    def random(self, *shape: int) -> Tensor:
        device = self.pixels.device
        return torch.rand(len(self.pixels), *shape, device=device, generator=self.generator)

    def noise(self, rows: int, columns: int, octaves: int = 4, gain: float = 0.5) -> Tensor:
        """Smooth noise in 0…1, [b, 1, h, w], whose coarsest cells are `rows` × `columns` to a picture."""
        height, width = self.pixels.shape[2:]
        return self.texture(rows, columns, height, width, octaves, gain)

    def texture(self, rows: int, columns: int, height: int, width: int, octaves: int = 4, gain: float = 0.5) -> Tensor:
        total, weight = 0.0, 0.0
        for i in range(octaves):
            cells = self.random(1, min(rows << i, height) + 1, min(columns << i, width) + 1)
            smooth = F.interpolate(cells, (height, width), mode="bicubic", align_corners=True)
            total, weight = total + smooth * gain**i, weight + gain**i
        return total / weight

    def ridge(self, cells: int, octaves: int = 5, gain: float = 0.5) -> Tensor:
        """Noise along x alone, [b, 1, 1, w], in −1…1."""
        width = self.pixels.shape[3]
        total, weight = 0.0, 0.0
        for i in range(octaves):
            values = self.random(1, min(cells << i, width) + 1)
            line = F.interpolate(values, width, mode="linear", align_corners=True)[:, :, None]
            total, weight = total + line * gain**i, weight + gain**i
        return total / weight * 2 - 1

    def cover(self, distance: Tensor, softness: float = 1.0) -> Tensor:
        """How much of each pixel lies inside, by the distance in units of the picture's height."""
        return (0.5 - distance / (self.pixel * softness)).clamp(0, 1)

    def hazed(self, colour: Tensor, depth: float) -> Tensor:
        """A colour as it looks from afar; depth 0 is here and 1 the horizon."""
        share = (depth * 0.65 + self.fog * (0.12 + 0.72 * depth)).clamp(max=0.97)
        return torch.lerp(colour, self.low.expand_as(colour), share.expand_as(colour[:, :1]))


def colour(sheet: Sheet, *rgb: float) -> Tensor:
    """The same colour for each picture, [b, 3, 1, 1]."""
    return (
        torch.tensor(rgb, dtype=torch.float32, device=sheet.pixels.device)
        .view(1, 3, 1, 1)
        .expand(len(sheet.pixels), -1, -1, -1)
    )


def smoothstep(low: float | Tensor, high: float | Tensor, value: Tensor) -> Tensor:
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def look_up(texture: Tensor, u: Tensor, v: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of a texture [b, c, H, W] at u, v (repeating with period 1, mirrored), each [b, 1, h, w]."""
    u, v = torch.broadcast_tensors(u, v)
    fold = lambda t: 1 - ((t % 2) - 1).abs()  # noqa: E731  # 0…1…0
    grid = torch.cat([fold(u), fold(v)], 1).permute(0, 2, 3, 1) * 2 - 1
    grid = grid.expand(len(texture), -1, -1, -1)
    return F.grid_sample(texture, grid, mode=mode, padding_mode="border", align_corners=False)


def of_cell(table: Tensor, cell: Tensor) -> Tensor:
    """A random table's [b, n] value for each pixel's cell number [b, 1, h or 1, w]."""
    index = cell.long().remainder(table.shape[1])
    index = index.expand(len(table), -1, -1, -1)
    return table.gather(1, index.flatten(1)).view(index.shape)


def circle(u: Tensor, v: Tensor, x: float, y: float, radius: float) -> Tensor:
    return ((u - x) ** 2 + (v - y) ** 2).sqrt() - radius


def ellipse(u: Tensor, v: Tensor, x: float, y: float, rx: float, ry: float) -> Tensor:
    """Nearly a distance, exact on the edge."""
    p, q = (u - x) / rx, (v - y) / ry
    k = (p * p + q * q).sqrt()
    slope = ((p / rx) ** 2 + (q / ry) ** 2).sqrt().clamp(min=1e-6)
    return k * (k - 1) / slope


def box(u: Tensor, v: Tensor, x: float, y: float, half_x: float, half_y: float, rounded: float = 0.0) -> Tensor:
    p, q = (u - x).abs() - half_x + rounded, (v - y).abs() - half_y + rounded
    outside = (p.clamp(min=0) ** 2 + q.clamp(min=0) ** 2).sqrt()
    return outside + torch.maximum(p, q).clamp(max=0) - rounded


def limb(
    u: Tensor, v: Tensor, start: tuple[float, float], end: tuple[float, float], r0: float, r1: float | None = None
) -> Tensor:
    """A segment as thick as r0 at its start and r1 at its end."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    p, q = u - start[0], v - start[1]
    t = ((p * dx + q * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    radius = r0 if r1 is None else r0 + (r1 - r0) * t
    return ((p - t * dx) ** 2 + (q - t * dy) ** 2).sqrt() - radius


def polygon(u: Tensor, v: Tensor, *corners: tuple[float, float]) -> Tensor:
    """Distance to a polygon: that to the nearest edge, negative where an odd number of edges lies to one side."""
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
    result = shapes[0]
    for shape in shapes[1:]:
        result = torch.minimum(result, shape)
    return result


def blend(a: Tensor, b: Tensor, k: float) -> Tensor:
    """Union whose inner corner is rounded by about k."""
    h = (k - (a - b).abs()).clamp(min=0) / k
    return torch.minimum(a, b) - h * h * k / 4

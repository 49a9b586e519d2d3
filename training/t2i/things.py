"""Draw things: balloons, boats, rockets, houses, trees, lighthouses, birds, cars, horses and astronauts.

Each is drawn as a sticker with u to the right and v upwards, of height 1 and with its feet at v = 0. `drawing.py`
places the sticker on the canvas and draws its shadow and reflection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from training.t2i.canvas import Tensor, blend, box, circle, ellipse, limb, polygon, smoothstep, union

Corner = tuple[float, float]


@dataclass
class Sticker:
    """A thing on a transparent background: colours [b, 3, h, w] and alpha [b, 1, h, w]."""

    u: Tensor
    v: Tensor
    pixel: Tensor  # a pixel's size in u and v, [b, 1, 1, 1]
    hue: Tensor  # the thing's own colour [b, 3, 1, 1]
    other: Tensor  # the secondary colour: white, or dark if the thing is white
    sun: Tensor  # +1 if the light comes from the right, −1 from the left
    night: Tensor
    snow: Tensor
    chance: Tensor  # a random number in 0…1 per image
    rgb: Tensor
    alpha: Tensor
    glow: Tensor  # light emitted by the thing, [b, 3, h, w]

    def cover(self, distance: Tensor, softness: float = 1.0) -> Tensor:
        """Return the coverage of each pixel, 0…1, by a shape's signed distance."""
        return (0.5 - distance / (self.pixel * softness)).clamp(0, 1)

    def lay(self, distance: Tensor, fill: Tensor | tuple[float, float, float]) -> None:
        """Draw a shape in one colour or in colours [b, 3, h, w]."""
        self.blend(self.cover(distance), fill)

    def blend(self, cover: Tensor, fill: Tensor | tuple[float, float, float]) -> None:
        """Blend a colour over the sticker with the given coverage."""
        if isinstance(fill, tuple):
            fill = self.u.new_tensor(fill).view(1, 3, 1, 1)
        cover = cover.expand_as(self.alpha)
        self.rgb = torch.lerp(self.rgb, fill.expand_as(self.rgb), cover)
        self.alpha = self.alpha + cover * (1 - self.alpha)

    def shine(self, amount: Tensor, fill: tuple[float, float, float]) -> None:
        """Add emitted light of a colour, scaled by `amount` [b, 1, h, w]."""
        self.glow = self.glow + amount.clamp(0, 1) * self.u.new_tensor(fill).view(1, 3, 1, 1)

    def round(self, x: float, y: float, radius: float) -> Tensor:
        """Return the brightness of a ball at (x, y), lit from above on the sun's side."""
        nx, ny = (self.u - x) / radius * self.sun, (self.v - y) / radius
        nz = (1 - nx * nx - ny * ny).clamp(min=0).sqrt()
        return 0.62 + 0.46 * (0.45 * nx + 0.55 * ny + 0.62 * nz).clamp(-0.4, 1)

    def relief(self, distance: Tensor, depth: float) -> Tensor:
        """Return the brightness of a shape with rounded edges of width `depth`."""
        dy, dx = torch.gradient(-distance.expand_as(self.alpha), dim=(2, 3))
        length = (dx * dx + dy * dy).sqrt().clamp(min=1e-6)
        edge = (1 + distance / depth).clamp(0, 1)
        facing = (-dx / length * self.sun * 0.5 + dy / length * 0.75) * edge
        return 1.0 + 0.34 * facing - 0.10 * edge


def balloon(s: Sticker) -> None:
    """Draw a hot-air balloon with gores, some with stripes or a band, and a burner that glows in the dark."""
    u, v = s.u, s.v
    r = 0.36
    bag = blend(circle(u, v, 0, 0.64, r), limb(u, v, (0, 0.50), (0, 0.27), 0.255, 0.07), 0.10)
    bag = torch.maximum(bag, 0.235 - v)
    half = (r * r - (v - 0.64).clamp(min=-0.05) ** 2).clamp(min=1e-4).sqrt() * smoothstep(0.05, 0.50, v)
    gore = torch.asin((u / half.clamp(min=0.03)).clamp(-0.999, 0.999)) / 3.1416 * 8
    seam = smoothstep(0.10, 0.0, (gore - gore.round()).abs())
    fill = s.hue.expand_as(s.rgb)
    striped = s.chance < 0.35
    even = ((gore.floor() % 2) == 0) & striped & (v < 0.92)
    fill = torch.where(even, torch.lerp(s.hue, s.other, 0.30).expand_as(fill), fill)
    band = (s.chance > 0.7) & ((v - 0.62).abs() < 0.045)
    fill = torch.where(band, s.other.expand_as(fill), fill)
    fill = fill * (1 - 0.22 * seam) * s.round(0, 0.62, r * 1.02) * 1.04
    warm = s.night * torch.exp(-((u * 2.0) ** 2 + ((v - 0.36) * 2.0) ** 2) * 2.2)
    for side in (-0.062, 0.062):
        s.lay(limb(u, v, (side * 0.8, 0.10), (side, 0.26), 0.006), (0.25, 0.2, 0.16))
    s.lay(bag, fill)
    s.shine(s.cover(bag) * warm * 0.45, (1.0, 0.72, 0.35))
    s.lay(box(u, v, 0, 0.055, 0.062, 0.055, 0.015), (0.52, 0.34, 0.17))
    s.lay(box(u, v, 0, 0.105, 0.068, 0.014, 0.01), (0.36, 0.22, 0.10))
    flame = torch.exp(-((u / 0.022) ** 2 + ((v - 0.19) / 0.05) ** 2))
    s.blend(flame * (0.25 + 0.75 * s.night), (1.0, 0.80, 0.35))


def boat(s: Sticker) -> None:
    """Draw a sailing boat: coloured hull and mainsail, white jib."""
    u, v = s.u, s.v
    hull = polygon(u, v, (-0.44, 0.15), (0.48, 0.19), (0.33, -0.02), (-0.34, -0.02))
    main = polygon(u, v, (0.035, 0.24), (0.035, 1.0), (0.20, 0.60), (0.37, 0.26))
    jib = polygon(u, v, (-0.02, 0.92), (-0.02, 0.25), (-0.36, 0.24), (-0.22, 0.52))
    s.lay(limb(u, v, (0, 0.1), (0, 1.0), 0.012), (0.35, 0.24, 0.15))
    belly = 1.06 - 0.5 * (u - 0.05).abs() + 0.10 * torch.sin(v * 26)
    s.lay(main, torch.lerp(s.hue, s.u.new_ones(1, 3, 1, 1), 0.10) * belly)
    s.lay(jib, s.u.new_tensor((0.96, 0.95, 0.92)).view(1, 3, 1, 1) * (1.02 - 0.4 * (u + 0.03).abs()))
    s.lay(hull, s.hue * (0.72 + 1.7 * v.clamp(0, 0.2)))
    s.lay(torch.maximum(hull, (v - 0.135 - 0.04 * u).abs() - 0.013), s.other)
    s.shine(torch.exp(-((u + 0.2) ** 2 + (v - 0.24) ** 2) / 0.002) * s.night, (1.0, 0.85, 0.5))


def rocket(s: Sticker) -> None:
    """Draw a rocket with its flame; the hull has the main colour, nose and fins the secondary one."""
    u, v = s.u, s.v
    half = 0.125 * ((1 - v) / 0.62).clamp(0, 1) ** 0.55 * (1 - 0.25 * (0.42 - v).clamp(min=0) / 0.3)
    hull = torch.maximum(torch.maximum(u.abs() - half, 0.20 - v), v - 1) * 0.9
    flicker = 0.006 * torch.sin(v * 90)
    for size, tint in ((1.0, (1.0, 0.55, 0.12)), (0.62, (1.0, 0.85, 0.35)), (0.34, (1.0, 0.98, 0.85))):
        flame = limb(u, v, (0, 0.19), (0, 0.19 - 0.27 * size), 0.075 * size, 0.008) + flicker
        s.blend(s.cover(flame, 3.0) * 0.95, tint)
    s.shine(torch.exp(-((u / 0.16) ** 2 + ((v - 0.06) / 0.17) ** 2)) * (0.25 + 0.5 * s.night), (1.0, 0.55, 0.2))
    for side in (-1, 1):
        fin = polygon(u * side, v, (0.09, 0.44), (0.25, 0.20), (0.25, 0.10), (0.08, 0.23))
        s.lay(fin, s.other * (0.92 + 0.14 * side * s.sun))
    metal = 0.70 + 0.42 * torch.exp(-(((u * s.sun - 0.045) / 0.065) ** 2))
    s.lay(hull, s.hue * metal)
    s.lay(torch.maximum(hull, 0.80 - v), s.other * metal)
    s.lay(torch.maximum(hull, (v - 0.27).abs() - 0.014), s.other * metal)
    s.lay(circle(u, v, 0, 0.62, 0.060), (0.85, 0.87, 0.9))
    s.lay(circle(u, v, 0, 0.62, 0.043), (0.16, 0.34, 0.52))
    s.lay(circle(u, v, 0.013, 0.635, 0.014), (0.75, 0.88, 0.97))
    s.lay(polygon(u, v, (-0.06, 0.21), (0.06, 0.21), (0.085, 0.16), (-0.085, 0.16)), (0.25, 0.25, 0.28))


def house(s: Sticker) -> None:
    """Draw a cottage with coloured walls, a gable roof, and windows lit at night."""
    u, v = s.u, s.v
    s.lay(box(u, v, 0.26, 0.82, 0.055, 0.17), (0.48, 0.28, 0.24))
    wall = box(u, v, 0, 0.27, 0.50, 0.28)
    boards = 1 - 0.08 * smoothstep(0.25, 0.0, ((v * 15).frac() - 0.5).abs() * 2 - 0.6)
    s.lay(wall, s.hue * boards * (0.94 + 0.10 * s.sun * u * 2))
    roof = polygon(u, v, (-0.62, 0.52), (-0.40, 0.94), (0.40, 0.94), (0.62, 0.52))
    tiles = 0.9 + 0.12 * torch.sin(v * 85) * torch.sin(u * 60 + (v * 13.5).floor() * 1.5)
    slate = torch.lerp(s.u.new_tensor((0.30, 0.25, 0.27)), s.u.new_tensor((0.50, 0.26, 0.20)), s.chance.view(-1, 1))
    slate = torch.lerp(slate[..., None, None], s.u.new_ones(1, 3, 1, 1) * 0.96, s.snow * 0.9)
    s.lay(roof, slate * tiles)
    s.lay(box(u, v, 0, 0.515, 0.60, 0.02), slate * 0.7)
    s.lay(box(u, v, 0.0, 0.18, 0.085, 0.18, 0.01), (0.34, 0.20, 0.12))
    s.lay(circle(u, v, 0.05, 0.17, 0.012), (0.9, 0.8, 0.4))
    for x in (-0.29, 0.29):
        s.lay(box(u, v, x, 0.29, 0.115, 0.115, 0.01), (0.95, 0.94, 0.90))
        pane = box(u, v, x, 0.29, 0.095, 0.095)
        pane = torch.maximum(pane, 0.010 - torch.minimum((u - x).abs(), (v - 0.29).abs()))
        s.lay(pane, (0.42, 0.55, 0.66))
        s.shine(s.cover(pane) * s.night, (0.9, 0.62, 0.22))
        s.shine(torch.exp(-((u - x) ** 2 + (v - 0.29) ** 2) / 0.05) * 0.22 * s.night, (1.0, 0.7, 0.3))


def tree(s: Sticker) -> None:
    """Draw a broad tree: a trunk, and clumps of leaves lit from above."""
    u, v = s.u, s.v
    s.lay(limb(u, v, (0, 0), (0.01, 0.5), 0.055, 0.03), (0.36, 0.25, 0.16))
    s.lay(limb(u, v, (0, 0.30), (-0.18, 0.52), 0.025, 0.014), (0.36, 0.25, 0.16))
    s.lay(limb(u, v, (0, 0.34), (0.19, 0.55), 0.025, 0.014), (0.36, 0.25, 0.16))
    ragged = 0.018 * torch.sin(u * 47 + s.chance * 9) * torch.sin(v * 43) + 0.010 * torch.sin(u * 83 + v * 71)
    for x, y, r, tone in (
        (-0.25, 0.56, 0.17, 0.78),
        (0.25, 0.56, 0.17, 0.80),
        (0.0, 0.54, 0.20, 0.72),
        (-0.15, 0.72, 0.19, 0.93),
        (0.17, 0.73, 0.18, 0.95),
        (0.0, 0.82, 0.17, 1.04),
    ):
        dapple = 1 + 0.10 * torch.sin(u * 61 + 2.5 * torch.sin(v * 23 + y * 9)) * torch.sin(
            v * 57 + 2.5 * torch.sin(u * 19)
        )
        s.lay(circle(u, v, x, y, r) + ragged, s.hue * tone * dapple * s.round(x, y, r * 1.1) * 1.15)
    crown = s.snow * smoothstep(0.70, 0.86, v + ragged * 3)
    s.blend(s.cover(circle(u, v, 0.0, 0.72, 0.30) + ragged) * crown, (0.95, 0.97, 1.0))


def lighthouse(s: Sticker) -> None:
    """Draw a striped lighthouse on a rock, with its beam at night."""
    u, v = s.u, s.v
    rock = blend(ellipse(u, v, -0.05, 0.0, 0.34, 0.10), circle(u, v, 0.14, 0.0, 0.12), 0.08)
    rock = rock + 0.012 * torch.sin(u * 37) * torch.sin(v * 31 + 1)
    s.lay(rock, s.u.new_tensor((0.38, 0.36, 0.35)).view(1, 3, 1, 1) * s.relief(rock, 0.08))
    dark = s.night * 0.55
    for side in (-1, 1):
        along = u * side
        beam = smoothstep(1.0, 0.2, (v - 0.865).abs() / (0.02 + 0.10 * along.clamp(min=0))) * (along > 0)
        s.shine(beam * torch.exp(-along.clamp(min=0) * 1.2) * dark, (1.0, 0.94, 0.70))
    half = 0.125 - 0.060 * v / 0.78
    tower = torch.maximum(torch.maximum(u.abs() - half, v - 0.79), 0.03 - v)
    stripe = ((v / 0.158).floor() % 2 == 0).float()
    rounded = 0.78 + 0.30 * (1 - ((u / half - 0.35 * s.sun) / 1.35) ** 2)
    s.lay(tower, torch.lerp(s.other, s.hue, stripe) * rounded)
    s.lay(box(u, v, 0, 0.800, 0.105, 0.014), (0.20, 0.20, 0.22))
    s.lay(box(u, v, 0, 0.865, 0.052, 0.055), (0.80, 0.86, 0.88))
    s.shine(torch.exp(-(u * u + (v - 0.865) ** 2) / 0.003) * (0.25 + 0.75 * s.night), (1.0, 0.88, 0.5))
    s.lay(polygon(u, v, (-0.075, 0.915), (0.075, 0.915), (0.0, 1.0)), s.hue * 0.85)
    s.lay(box(u, v, 0.0, 0.14, 0.028, 0.05, 0.02), (0.25, 0.18, 0.14))


def bird(s: Sticker) -> None:
    """Draw a flying bird from the side, 1 high and 1.3 wide."""
    u, v = s.u, s.v
    far = polygon(u, v, (0.00, 0.42), (0.06, 0.78), (0.26, 0.98), (0.20, 0.62), (0.16, 0.40))
    s.lay(far, s.hue * 0.72)
    tail = polygon(u, v, (-0.28, 0.40), (-0.64, 0.42), (-0.57, 0.34), (-0.60, 0.27), (-0.26, 0.28))
    s.lay(tail, s.hue * 0.85)
    body = blend(ellipse(u, v, -0.02, 0.34, 0.34, 0.125), circle(u, v, 0.33, 0.44, 0.085), 0.12)
    s.lay(polygon(u, v, (0.39, 0.47), (0.53, 0.425), (0.39, 0.40)), (0.96, 0.66, 0.16))
    belly = torch.lerp(s.hue, s.u.new_ones(1, 3, 1, 1), 0.25 * smoothstep(0.36, 0.24, v))
    s.lay(body, belly * s.relief(body, 0.09))
    near = polygon(u, v, (0.14, 0.36), (0.06, 0.62), (-0.12, 0.96), (-0.20, 0.92), (-0.27, 0.70), (-0.22, 0.34))
    feather = 0.94 + 0.08 * torch.sin((u - 0.35 * v) * 60)
    s.lay(near, s.hue * feather * (0.82 + 0.25 * v))
    s.lay(circle(u, v, 0.355, 0.465, 0.018), (0.05, 0.05, 0.06))


def car(s: Sticker) -> None:
    """Draw a car from the side, 1 high and 2.4 wide."""
    u, v = s.u, s.v
    cabin = polygon(u, v, (-0.72, 0.55), (-0.46, 0.96), (0.28, 0.98), (0.62, 0.55)) - 0.03
    body = blend(box(u, v, 0, 0.42, 1.16, 0.24, 0.16), cabin, 0.06)
    gloss = 0.80 + 0.30 * smoothstep(0.2, 0.6, v) + 0.16 * torch.exp(-(((v - 0.56) / 0.035) ** 2))
    s.lay(body, s.hue * gloss * s.relief(body, 0.12))
    glass = polygon(u, v, (-0.58, 0.60), (-0.38, 0.88), (0.24, 0.89), (0.48, 0.60))
    glass = torch.maximum(glass, 0.030 - (u + 0.05).abs())
    pane = s.u.new_tensor((0.30, 0.42, 0.52)).view(1, 3, 1, 1) * (0.8 + 0.9 * (v - 0.6) + 0.25 * (u - v > -0.5))
    s.lay(glass, pane)
    s.lay(torch.maximum(body, (u - 0.04).abs() - 0.006) + 0.5 * (v > 0.6), s.hue * 0.55)
    for x in (-0.68, 0.68):
        s.lay(circle(u, v, x, 0.215, 0.245), s.hue * 0.35)
        s.lay(circle(u, v, x, 0.20, 0.205), (0.09, 0.09, 0.10))
        s.lay(circle(u, v, x, 0.20, 0.110), (0.72, 0.73, 0.76))
        s.lay(circle(u, v, x, 0.20, 0.035), (0.35, 0.35, 0.38))
    s.lay(ellipse(u, v, 1.09, 0.47, 0.06, 0.07), (1.0, 0.97, 0.82))
    s.lay(ellipse(u, v, -1.11, 0.48, 0.04, 0.07), (0.85, 0.10, 0.08))
    ahead = (u - 1.1).clamp(min=0)
    beam = smoothstep(1.0, 0.1, (v - 0.44 + 0.12 * ahead).abs() / (0.06 + 0.28 * ahead)) * torch.exp(-ahead * 1.1)
    s.shine(beam * (u > 1.08) * 0.6 * s.night, (1.0, 0.92, 0.65))
    s.shine(torch.exp(-((u + 1.12) ** 2 + (v - 0.48) ** 2) / 0.02) * 0.6 * s.night, (1.0, 0.12, 0.08))


def _bent(u: Tensor, v: Tensor, *joints: tuple[float, float, float]) -> Tensor:
    """Return the distance to a limb of several segments; each joint is (x, y, radius)."""
    parts = [limb(u, v, (x, y), (p, q), r, t) for (x, y, r), (p, q, t) in pairwise(joints)]
    return union(*parts)


def horse(s: Sticker) -> None:
    """Draw a trotting horse facing right."""
    u, v = s.u, s.v
    legs_far = union(
        _bent(u, v, (0.19, 0.46, 0.075), (0.34, 0.34, 0.042), (0.30, 0.17, 0.028), (0.33, 0.13, 0.030)),
        _bent(u, v, (-0.24, 0.47, 0.085), (-0.20, 0.27, 0.045), (-0.12, 0.14, 0.028), (-0.09, 0.03, 0.032)),
    )
    s.lay(legs_far, s.hue * 0.62)
    tail = _bent(u, v, (-0.37, 0.62, 0.030), (-0.47, 0.56, 0.050), (-0.53, 0.40, 0.045), (-0.50, 0.22, 0.012))
    dark = s.hue * 0.42
    s.lay(tail, torch.lerp(dark, s.other * 0.8, (s.hue.mean(1, keepdim=True) < 0.2).float()))
    body = blend(circle(u, v, -0.25, 0.555, 0.150), circle(u, v, 0.17, 0.535, 0.145), 0.08)
    body = blend(body, limb(u, v, (-0.22, 0.55), (0.14, 0.535), 0.135), 0.05)
    neck = _bent(u, v, (0.18, 0.60, 0.120), (0.30, 0.76, 0.088), (0.40, 0.88, 0.062))
    head = limb(u, v, (0.41, 0.895), (0.585, 0.775), 0.062, 0.036)
    legs = union(
        _bent(u, v, (0.17, 0.46, 0.080), (0.21, 0.27, 0.044), (0.20, 0.13, 0.028), (0.22, 0.03, 0.033)),
        _bent(u, v, (-0.28, 0.48, 0.095), (-0.37, 0.30, 0.048), (-0.33, 0.14, 0.028), (-0.36, 0.03, 0.033)),
    )
    ears = union(polygon(u, v, (0.355, 0.93), (0.375, 1.02), (0.415, 0.945)), circle(u, v, 0.39, 0.94, 0.02))
    whole = union(blend(blend(body, neck, 0.08), legs, 0.05), blend(head, neck, 0.03), ears)
    s.lay(whole, s.hue * s.relief(whole, 0.10) * 1.02)
    s.lay(torch.maximum(whole, v - 0.045), (0.12, 0.10, 0.09))
    mane = _bent(u, v, (0.11, 0.73, 0.035), (0.22, 0.86, 0.045), (0.345, 0.965, 0.030))
    s.lay(mane, torch.lerp(dark, s.other * 0.8, (s.hue.mean(1, keepdim=True) < 0.2).float()))
    s.lay(circle(u, v, 0.445, 0.885, 0.013), (0.03, 0.03, 0.03))


def astronaut(s: Sticker) -> None:
    """Draw a standing, waving astronaut: coloured suit, dark visor with a golden rim."""
    u, v = s.u, s.v
    s.lay(box(u, v, 0, 0.56, 0.20, 0.19, 0.06), s.other * 0.62)
    legs = union(
        limb(u, v, (-0.08, 0.40), (-0.11, 0.08), 0.085, 0.07), limb(u, v, (0.08, 0.40), (0.11, 0.08), 0.085, 0.07)
    )
    arms = union(
        _bent(u, v, (-0.15, 0.63, 0.07), (-0.26, 0.50, 0.062), (-0.24, 0.36, 0.052)),
        _bent(u, v, (0.15, 0.63, 0.07), (0.29, 0.66, 0.062), (0.33, 0.84, 0.052)),
    )
    torso = box(u, v, 0, 0.53, 0.155, 0.19, 0.09)
    suit = blend(blend(torso, legs, 0.04), arms, 0.04)
    s.lay(suit, s.hue * s.relief(suit, 0.07))
    for x, y, half_x, half_y in ((-0.115, 0.045, 0.095, 0.045), (0.115, 0.045, 0.095, 0.045)):
        s.lay(box(u, v, x, y, half_x, half_y, 0.035), s.other * 0.55)
    s.lay(union(circle(u, v, -0.24, 0.345, 0.055), circle(u, v, 0.33, 0.85, 0.055)), s.other * 0.75)
    s.lay(box(u, v, 0, 0.52, 0.085, 0.055, 0.02), s.other * 0.8)
    s.lay(circle(u, v, -0.035, 0.53, 0.016), (0.9, 0.2, 0.15))
    s.lay(circle(u, v, 0.030, 0.53, 0.016), (0.2, 0.5, 0.9))
    _helmet(s, u, v, 0.0, 0.83, 0.165)


def _helmet(s: Sticker, u: Tensor, v: Tensor, x: float, y: float, r: float) -> None:
    s.lay(circle(u, v, x, y, r), s.hue * s.round(x, y, r) * 1.05)
    face = ellipse(u, v, x + 0.10 * r, y, r * 0.78, r * 0.64)
    s.lay(face, (0.86, 0.66, 0.22))
    sky = s.u.new_tensor((0.10, 0.13, 0.22)).view(1, 3, 1, 1) + 0.45 * smoothstep(y - r, y + r, v)
    s.lay(face + 0.10 * r, sky * s.u.new_tensor((0.85, 0.85, 1.0)).view(1, 3, 1, 1))
    s.blend(s.cover(ellipse(u, v, x + 0.38 * r, y + 0.26 * r, r * 0.17, r * 0.10), 1.5), (0.95, 0.97, 1.0))


def rider(s: Sticker) -> None:
    """Draw an astronaut in white riding a horse of the thing's colour."""
    white = s.u.new_tensor((0.93, 0.94, 0.96)).view(1, 3, 1, 1).expand_as(s.hue)
    u, v, pixel, hue = s.u, s.v, s.pixel, s.hue
    shrink = 0.76
    s.u, s.v, s.pixel = u / shrink, v / shrink, pixel / shrink
    horse(s)
    s.u, s.v, s.pixel, s.hue = u, v, pixel, white
    pack = box(u, v, -0.205, 0.66, 0.055, 0.095, 0.03)
    s.lay(pack, (0.62, 0.65, 0.70))
    leg = _bent(u, v, (-0.08, 0.52, 0.062), (0.06, 0.42, 0.055), (0.02, 0.25, 0.045))
    body = limb(u, v, (-0.09, 0.54), (-0.07, 0.69), 0.085, 0.080)
    arm = _bent(u, v, (-0.06, 0.70, 0.045), (0.05, 0.60, 0.042), (0.17, 0.63, 0.036))
    suit = blend(blend(body, leg, 0.04), arm, 0.02)
    s.lay(suit, white * s.relief(suit, 0.05))
    s.lay(box(u, v, 0.035, 0.225, 0.055, 0.026, 0.02), (0.40, 0.42, 0.47))
    s.lay(limb(u, v, (0.17, 0.63), (0.36, 0.61), 0.007), (0.25, 0.16, 0.10))
    _helmet(s, u, v, -0.06, 0.855, 0.118)
    s.hue = hue


DRAW_THING: dict[str, Callable[[Sticker], None]] = {
    "balloon": balloon,
    "boat": boat,
    "rocket": rocket,
    "house": house,
    "tree": tree,
    "lighthouse": lighthouse,
    "bird": bird,
    "car": car,
    "horse": horse,
    "astronaut": astronaut,
    "rider": rider,
}

"""Draw batches of scenes on any device: sky, ground, things, weather and style.

pixels = draw(scenes, torch.Generator(device).manual_seed(1), device)  # [b, 3, 160, 288] in 0…1
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from training.t2i.canvas import Canvas, Tensor, colour, look_up, smoothstep
from training.t2i.grounds import DRAW_GROUND
from training.t2i.scenes import GROUNDS, STYLES, THINGS, Scene
from training.t2i.skies import draw_sky, draw_weather
from training.t2i.things import DRAW_THING, Sticker

HEIGHT, WIDTH = 160, 288
TINTS = {
    "red": (0.84, 0.10, 0.10),
    "orange": (0.97, 0.49, 0.06),
    "yellow": (0.98, 0.84, 0.14),
    "green": (0.14, 0.56, 0.20),
    "blue": (0.12, 0.33, 0.85),
    "purple": (0.48, 0.17, 0.68),
    "pink": (0.97, 0.52, 0.73),
    "white": (0.95, 0.95, 0.95),
    "black": (0.10, 0.10, 0.12),
    "brown": (0.44, 0.27, 0.15),
}
# Height of a large thing relative to the image; a small one is 0.58 of it.
HEIGHTS = {
    "balloon": 0.62,
    "boat": 0.46,
    "rocket": 0.66,
    "house": 0.32,
    "tree": 0.46,
    "lighthouse": 0.62,
    "bird": 0.30,
    "car": 0.19,
    "horse": 0.42,
    "astronaut": 0.46,
    "rider": 0.54,
}
# Range of the feet of standing things, between the horizon (0) and the lower edge (1).
FEET = {
    "mountains": (0.62, 0.80),
    "hills": (0.55, 0.80),
    "desert": (0.50, 0.80),
    "sea": (0.30, 0.62),
    "beach": (0.62, 0.82),
    "forest": (0.50, 0.85),
    "meadow": (0.45, 0.78),
    "lake": (0.25, 0.52),
    "city": (0.62, 0.82),
    "aerial": (0.5, 0.8),
}


@torch.no_grad()
def draw(
    scenes: Sequence[Scene], generator: torch.Generator, device: str = "cpu", height: int = HEIGHT, width: int = WIDTH
) -> Tensor:
    """Return images [b, 3, height, width] in 0…1; deterministic for the same scenes, generator state and device."""
    return draw_with_things(scenes, generator, device, height, width)[0]


@torch.no_grad()
def draw_with_things(
    scenes: Sequence[Scene], generator: torch.Generator, device: str = "cpu", height: int = HEIGHT, width: int = WIDTH
) -> tuple[Tensor, Tensor]:
    """Return images as `draw`, and the coverage of things, [b, 1, height, width] in 0…1."""
    canvas = draw_sky(scenes, height, width, device, generator)
    _draw_by_name(canvas, [s.ground for s in scenes], GROUNDS, lambda part, name, _: DRAW_GROUND[name](part))
    _draw_by_name(
        canvas,
        [s.thing for s in scenes],
        tuple(THINGS),
        lambda part, name, rows: _draw_things(part, name, [scenes[i] for i in rows]),
    )
    draw_weather(canvas, scenes)
    _draw_by_name(canvas, [s.style for s in scenes], STYLES, lambda part, name, _: APPLY_STYLE[name](part))
    return canvas.pixels.clamp(0, 1), canvas.covered


def _draw_by_name(
    canvas: Canvas,
    names: Sequence[str | None],
    order: Sequence[str],
    draw_rows: Callable[[Canvas, str, list[int]], None],
) -> None:
    """Draw all images with the same name as one batch, in the order of `order`."""
    for name in order:
        rows = [i for i, n in enumerate(names) if n == name]
        if rows:
            index = torch.tensor(rows, device=canvas.pixels.device)
            part = canvas.pick(index)
            draw_rows(part, name, rows)
            canvas.pixels[index], canvas.covered[index] = part.pixels, part.covered


def _draw_things(canvas: Canvas, name: str, scenes: Sequence[Scene]) -> None:
    """Draw all things of one name; the second and third of an image are beside the first, farther away."""
    most = max(s.count for s in scenes)
    mirrored = torch.where(canvas.rand() < 0.5, -1.0, 1.0)
    side = torch.where(canvas.rand() < 0.5, -1.0, 1.0)
    jitter = canvas.random(2, 1, 1) * 2 - 1
    for i in reversed(range(most)):
        rows = [j for j, s in enumerate(scenes) if s.count > i]
        index = torch.tensor(rows, device=canvas.pixels.device)
        part = canvas.pick(index)
        group = [scenes[j] for j in rows]
        _draw_thing(part, name, group, i, mirrored[index], side[index], jitter[index])
        canvas.pixels[index], canvas.covered[index] = part.pixels, part.covered


def _draw_thing(
    canvas: Canvas, name: str, scenes: Sequence[Scene], i: int, mirrored: Tensor, side: Tensor, jitter: Tensor
) -> None:
    """Draw the i-th thing of each scene."""
    device, (height, width) = canvas.pixels.device, canvas.pixels.shape[2:]
    ratio = width / height
    of = lambda values: torch.tensor(list(values), dtype=torch.float32, device=device).view(-1, 1, 1, 1)  # noqa: E731
    kind = THINGS[name]
    several = of(s.count > 1 for s in scenes)
    size = of(HEIGHTS[name] * (1.0 if s.large else 0.58) for s in scenes) * (1 + 0.08 * jitter[:, :1])
    size = size * (1 - 0.24 * several) * (1.0, 0.72, 0.55)[i]
    x = of({"left": 0.23, "middle": 0.5, "right": 0.77}[s.across] for s in scenes) + 0.04 * jitter[:, 1:]
    # The others are on the free side of the image.
    step = torch.where(x < 0.4, 1.0, torch.where(x > 0.6, -1.0, side))
    x = (x + step * (0.0, 0.26, -0.22)[i]) * ratio
    x = torch.where((x < 0.1 * ratio) | (x > 0.9 * ratio), x + step * 0.70 * ratio, x)
    if kind.flies:
        high = of(s.high for s in scenes)
        middle = torch.where(high > 0, 0.32, 0.56) + 0.04 * jitter[:, :1] + (0.0, -0.10, 0.08)[i]
        foot = (middle + size / 2).clamp(max=0.97)
        foot = torch.maximum(foot, size + 0.02)
    else:
        least, most = zip(*(FEET[s.ground] for s in scenes), strict=True)
        near = of(least) + (of(most) - of(least)) * of(s.large for s in scenes) - (0.0, 0.14, 0.22)[i]
        afloat = of(name == "boat" and s.ground == "beach" for s in scenes)
        foot = torch.where(afloat > 0, canvas.horizon + 0.10, canvas.horizon + (1 - canvas.horizon) * near)
        size = size * (1 - 0.35 * afloat)
        if name == "house":  # on the far shore of a lake
            far = of(s.ground == "lake" for s in scenes)
            foot, size = torch.where(far > 0, canvas.horizon + 0.01, foot), size * (1 - 0.2 * far)
        if name == "lighthouse":
            foot = torch.where(of(s.ground == "sea" for s in scenes) > 0, canvas.horizon + 0.13, foot)
    tints = torch.tensor([TINTS[s.colour or "white"] for s in scenes], device=device)[..., None, None]
    bright = tints.mean(1, keepdim=True) > 0.8
    other = torch.where(bright, colour(canvas, 0.34, 0.38, 0.46), colour(canvas, 0.95, 0.94, 0.92))
    tilt = 0.10 * jitter[:, :1] * float(name in {"rocket", "balloon"}) * (2.2 if name == "rocket" else 0.6)
    u0, v0 = (canvas.x - x) / size * mirrored, (foot - canvas.y) / size
    u = u0 * tilt.cos() - (v0 - 0.5) * tilt.sin()
    v = u0 * tilt.sin() + (v0 - 0.5) * tilt.cos() + 0.5
    blank = torch.zeros_like(canvas.pixels)
    sticker = Sticker(
        u=u,
        v=v,
        pixel=canvas.pixel / size,
        hue=tints,
        other=other,
        sun=torch.where(canvas.sun_x > x, 1.0, -1.0) * mirrored,
        night=canvas.night,
        snow=canvas.snow,
        chance=jitter[:, :1] * 0.5 + 0.5,
        rgb=blank,
        alpha=blank[:, :1],
        glow=blank,
    )
    DRAW_THING[name](sticker)
    if name in {"boat", "lighthouse", "house"} and any(s.ground in {"sea", "lake"} or name == "boat" for s in scenes):
        _draw_reflection(canvas, sticker, foot, [s.ground in {"sea", "lake"} or name == "boat" for s in scenes], of)
    elif not kind.flies:
        _draw_shadow(canvas, u0 * mirrored, v0, {"car": 1.15, "house": 0.55, "tree": 0.34}.get(name, 0.30))
    depth = of(0.0 if s.large else 0.12 for s in scenes) * 0.5
    lit = (sticker.rgb * canvas.ambient_things).clamp(0, 1)
    lit = torch.lerp(lit, canvas.low.expand_as(lit), (depth + 0.25 * canvas.fog).expand_as(lit[:, :1]))
    canvas.over(sticker.alpha, lit)
    canvas.covered = torch.maximum(canvas.covered, sticker.alpha)
    canvas.pixels = 1 - (1 - canvas.pixels.clamp(0, 1)) * (1 - sticker.glow.clamp(0, 1))


def _draw_shadow(canvas: Canvas, u: Tensor, v: Tensor, half: float) -> None:
    """Draw a soft shadow on the ground, away from the sun."""
    away = torch.where(canvas.sun_x > canvas.x.mean(), -0.12, 0.12)
    dark = torch.exp(-(((u - away) / half) ** 2) * 1.2 - ((v + 0.005) / 0.055) ** 2)
    canvas.over(dark * (0.42 - 0.18 * canvas.fog), colour(canvas, 0.07, 0.07, 0.12))


def _draw_reflection(
    canvas: Canvas, sticker: Sticker, foot: Tensor, on_water: list[bool], of: Callable[..., Tensor]
) -> None:
    """Draw the thing's reflection in the water, distorted by ripples."""
    height, width = canvas.pixels.shape[2:]
    below = (canvas.y - foot).clamp(min=0)
    wave = (canvas.texture(40, 6, 160, 64, octaves=2)) - 0.5
    wave = look_up(wave, canvas.x * 0.5, canvas.y)
    source_u = (canvas.x + wave * (0.02 + 0.25 * below)) * height / width
    source_v = (foot - below * 1.1 + wave * 0.02).clamp(0, 1)
    image = look_up(torch.cat([sticker.rgb, sticker.alpha], 1), source_u, source_v)
    fade = smoothstep(0.45, 0.0, below) * (below > 0) * of(on_water) * 0.62
    reflected = (image[:, :3] / image[:, 3:].clamp(min=0.05)).clamp(0, 1) * canvas.ambient_things * 0.8
    canvas.over(image[:, 3:] * fade, reflected.clamp(0, 1))


def photograph(canvas: Canvas) -> None:
    """Apply the photograph style: slight vignette, contrast and fine grain."""
    ratio = canvas.pixels.shape[3] / canvas.pixels.shape[2]
    corner = ((canvas.x / ratio - 0.5) ** 2 + (canvas.y - 0.5) ** 2) * 2
    image = canvas.pixels * (1.03 - 0.22 * corner)
    image = torch.lerp(image, smoothstep(0.0, 1.0, image), 0.25)
    height, width = canvas.pixels.shape[2:]
    canvas.pixels = image + 0.012 * (canvas.random(1, height, width) - 0.5)


def painting(canvas: Canvas) -> None:
    """Apply the oil painting style: three layers of short strokes, each in the colour at its centre.

    The last and finest layer only covers detailed regions.
    """
    source = canvas.pixels.clamp(0, 1)
    detail = _edges(source)
    result = source
    for long, wide, jitter, share in ((0.105, 0.034, 0.15, 1.0), (0.062, 0.020, 0.13, 0.85), (0.034, 0.011, 0.10, 0.0)):
        angle = canvas.rand(-0.7, 0.7)
        bent_x, bent_y = (t + 0.16 * canvas.noise(2, 3, 2) for t in (canvas.x, canvas.y))
        along = (bent_x * angle.cos() + bent_y * angle.sin()) / long
        across = (bent_y * angle.cos() - bent_x * angle.sin()) / wide
        row = across.floor()
        along = along + 0.37 * row
        da, dc = (along.frac() - 0.5) * long, (across.frac() - 0.5) * wide
        x = canvas.x - da * angle.cos() + dc * angle.sin()
        y = canvas.y - da * angle.sin() - dc * angle.cos()
        height, width = source.shape[2:]
        stroke = look_up(source, x * height / width, y)
        table = canvas.random(997)
        number = (along.floor() * 31 + row * 17).long().remainder(997)
        tone = table.gather(1, number.flatten(1)).view_as(number) - 0.5
        bristle = 0.03 * torch.sin(across * 25 + tone * 20)
        edge = smoothstep(0.5, 0.35, (across.frac() - 0.5).abs())
        stroke = stroke * (1 + jitter * tone + bristle) * (0.94 + 0.06 * edge)
        opacity = share or 0.9 * smoothstep(0.03, 0.10, detail)
        result = torch.lerp(result, stroke, opacity * torch.ones_like(detail))
        result = torch.lerp(result, source, (0.8 * smoothstep(0.10, 0.22, detail)) if share < 1 else 0 * detail)
    grey = result.mean(1, keepdim=True)
    canvas.pixels = (grey + (result - grey) * 1.15).clamp(0, 1)


def drawing(canvas: Canvas) -> None:
    """Apply the coloured pencil style: pale flat colours, hatching and dark outlines."""
    source = F.avg_pool2d(F.pad(canvas.pixels, (1, 1, 1, 1), mode="replicate"), 3, 1).clamp(0, 1)
    levels = 7
    flat = torch.lerp(source, ((source * levels).round() / levels), 0.6)
    paper = colour(canvas, 0.98, 0.96, 0.91)
    flat = torch.lerp(flat, paper.expand_as(flat), 0.20 * (1 - 0.5 * canvas.night))
    dark = 1 - flat.mean(1, keepdim=True)
    hatch = torch.sin((canvas.x + canvas.y * 0.8) * 165 + 5 * canvas.noise(3, 4, 2))
    flat = flat + 0.03 * hatch * smoothstep(0.15, 0.6, dark)
    line = smoothstep(0.045, 0.16, _edges(source))
    canvas.pixels = torch.lerp(flat, colour(canvas, 0.14, 0.12, 0.16).expand_as(flat), 0.75 * line)


def _edges(image: Tensor) -> Tensor:
    """Return the magnitude of the image's gradient, [b, 1, h, w]."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return (dx.abs() + dy.abs()).amax(1, keepdim=True) * 0.5


APPLY_STYLE = {"photograph": photograph, "painting": painting, "drawing": drawing}

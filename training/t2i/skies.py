"""Draw skies (light of the hour, sun or moon, stars, clouds) and the weather in the foreground."""

from collections.abc import Sequence

import torch

from training.t2i.canvas import Canvas, Tensor, colour, look_up, of_cell, smoothstep
from training.t2i.scenes import GROUNDS, HOURS, Scene

# For each hour: the sky's colour at the top, in the middle and at the horizon; the colour of sun or moon; the factors
# for the colours of the ground and of things.
SKIES = torch.tensor(
    [
        [[0.44, 0.56, 0.83], [0.90, 0.74, 0.83], [1.00, 0.87, 0.72]],  # dawn
        [[0.13, 0.40, 0.82], [0.40, 0.66, 0.94], [0.80, 0.91, 0.98]],  # day
        [[0.24, 0.19, 0.44], [0.84, 0.36, 0.36], [1.00, 0.66, 0.26]],  # sunset
        [[0.02, 0.03, 0.11], [0.05, 0.08, 0.22], [0.13, 0.19, 0.37]],  # night
    ]
)
LIGHTS = torch.tensor([[1.00, 0.95, 0.80], [1.00, 0.99, 0.92], [1.00, 0.80, 0.42], [0.93, 0.94, 0.88]])
AMBIENT = torch.tensor([[0.98, 0.88, 0.90], [1.02, 1.02, 1.00], [0.86, 0.64, 0.58], [0.29, 0.35, 0.53]])
AMBIENT_THINGS = torch.tensor([[1.0, 0.95, 0.95], [1.03, 1.03, 1.02], [1.0, 0.86, 0.78], [0.60, 0.63, 0.74]])
# Range of the horizon's position, from the top.
HORIZONS = {
    "mountains": (0.66, 0.74),
    "hills": (0.48, 0.58),
    "desert": (0.50, 0.60),
    "sea": (0.50, 0.62),
    "beach": (0.42, 0.50),
    "forest": (0.62, 0.68),
    "meadow": (0.50, 0.60),
    "lake": (0.52, 0.60),
    "city": (0.74, 0.80),
    "aerial": (0.05, 0.16),
}


def draw_sky(scenes: Sequence[Scene], height: int, width: int, device: str, generator: torch.Generator) -> Canvas:
    """Return a canvas with the lighting and the sky of each scene."""
    hours = torch.tensor([HOURS.index(s.hour) for s in scenes], device=device)
    of = lambda table: table.to(device)[hours]  # noqa: E731
    flag = lambda values: torch.tensor([float(v) for v in values], device=device).view(-1, 1, 1, 1)  # noqa: E731
    wide = lambda t: t[..., None, None]  # noqa: E731
    ranges = torch.tensor([HORIZONS[g] for g in GROUNDS], device=device)[
        torch.tensor([GROUNDS.index(s.ground) for s in scenes], device=device)
    ]
    zero = flag([0] * len(scenes))
    canvas = Canvas(
        pixels=torch.zeros(len(scenes), 3, height, width, device=device),
        covered=torch.zeros(len(scenes), 1, height, width, device=device),
        x=((torch.arange(width, device=device) + 0.5) / height).view(1, 1, 1, -1),
        y=((torch.arange(height, device=device) + 0.5) / height).view(1, 1, -1, 1),
        generator=generator,
        horizon=zero,
        sun_x=zero,
        sun_y=zero,
        low=wide(of(SKIES)[:, 2]),
        light=wide(of(LIGHTS)),
        ambient=wide(of(AMBIENT)),
        ambient_things=wide(of(AMBIENT_THINGS)),
        night=flag([s.hour == "night" for s in scenes]),
        snow=flag([s.weather == "snow" for s in scenes]),
        rain=flag([s.weather == "rain" for s in scenes]),
        fog=flag([s.weather == "fog" for s in scenes]),
    )
    cloudy = flag([s.weather in ("cloudy", "rain", "snow") for s in scenes])
    least, most = (ranges[:, i].view(-1, 1, 1, 1) for i in (0, 1))
    canvas.horizon = least + canvas.rand() * (most - least)
    # The sun is low at dawn and sunset and high by day; sun and moon are left or right of the centre.
    low_sun = flag([s.hour in ("dawn", "sunset") for s in scenes])
    side = torch.where(canvas.rand() < 0.5, -1.0, 1.0)
    canvas.sun_x = width / height * (0.5 + side * canvas.rand(0.12, 0.40))
    above = torch.where(low_sun > 0, canvas.rand(0.10, 0.32), canvas.rand(0.55, 0.85))
    canvas.sun_y = canvas.horizon * (1 - above)
    sky = of(SKIES) * (1 + 0.16 * (canvas.random(3, 3) - 0.5)) + 0.05 * (canvas.random(1, 3) - 0.5)
    _fill_sky(canvas, sky.clamp(0, 1), cloudy, low_sun)
    return canvas


def _fill_sky(canvas: Canvas, sky: Tensor, cloudy: Tensor, low_sun: Tensor) -> None:
    """Draw gradient, stars, sun or moon, clouds and fog; sky: colours from top to horizon, [b, 3, 3]."""
    top, middle, low = (sky[:, i, :, None, None] for i in range(3))
    # Bad weather desaturates the sky, but not completely, so that the hour stays recognisable.
    dull = 0.25 * cloudy + 0.40 * torch.maximum(canvas.rain, canvas.snow) + 0.55 * canvas.fog
    level = torch.where(canvas.night > 0, 0.10, torch.where(low_sun > 0, 0.66, 0.72))
    grey = torch.where(canvas.night > 0, colour(canvas, 0.8, 0.95, 1.35), colour(canvas, 0.98, 1.0, 1.03)) * level
    top, middle, low = (torch.lerp(c, grey, dull.expand_as(c)) for c in (top, middle, low))
    # Bad weather dims the ground.
    canvas.ambient = canvas.ambient * (1 - 0.22 * dull)
    canvas.low = low
    up = (canvas.y / canvas.horizon).clamp(0, 1)  # 0 at the top of the image, 1 at the horizon
    column = torch.where(up < 0.55, torch.lerp(top, middle, up / 0.55), torch.lerp(middle, low, (up - 0.55) / 0.45))
    canvas.pixels = column.expand_as(canvas.pixels).clone()

    clear = (1 - 0.85 * cloudy) * (1 - 0.8 * canvas.fog)
    away = ((canvas.x - canvas.sun_x) ** 2 + (canvas.y - canvas.sun_y) ** 2).sqrt()
    _stars(canvas, clear * canvas.night * (1 - smoothstep(0.75, 1.0, up)))
    glow = torch.exp(-away / (0.10 + 0.14 * low_sun)) * (0.55 + 0.35 * low_sun - 0.25 * canvas.night)
    canvas.over(glow * (0.35 + 0.65 * clear), canvas.light)
    # By day the sun is usually outside the image.
    is_visible = torch.maximum(torch.maximum(low_sun, canvas.night), (canvas.rand() < 0.35).float())
    radius = 0.045 + 0.022 * low_sun
    disc = canvas.cover(away - radius, 1.5) * is_visible * (0.25 + 0.75 * clear)
    moon = 0.9 - 0.22 * smoothstep(0.45, 0.62, canvas.noise(24, 40, 2)) * canvas.night
    canvas.over(
        disc, torch.lerp(canvas.light, colour(canvas, 1, 1, 1), 0.45) * torch.where(canvas.night > 0, moon, 1.0)
    )
    _clouds(canvas, up, cloudy, low_sun, away)
    fog_bank = canvas.fog * smoothstep(0.2, 1.0, up) * 0.8
    canvas.over(fog_bank, canvas.low)


def _stars(canvas: Canvas, strength: Tensor) -> None:
    """Draw one star in each cell of two grids, most of them faint."""
    for cells in (14, 26):
        rows, columns = cells, int(cells * 1.8)
        table = canvas.random(3, rows + 1, columns + 1)
        where = canvas.y * rows, canvas.x * rows
        cell = (where[0].floor().long().clamp(0, rows), where[1].floor().long().clamp(0, columns))
        star = table[:, :, cell[0], cell[1]].view(len(table), 3, *canvas.pixels.shape[2:])
        dy, dx = where[0].frac() - 0.1 - 0.8 * star[:, :1], where[1].frac() - 0.1 - 0.8 * star[:, 1:2]
        near = (dx * dx + dy * dy).sqrt() / rows
        bright = star[:, 2:] ** 6
        canvas.over((1.4 - near / canvas.pixel).clamp(0, 1) * bright * strength, colour(canvas, 0.96, 0.97, 1.0))


def _clouds(canvas: Canvas, up: Tensor, cloudy: Tensor, low_sun: Tensor, away: Tensor) -> None:
    """Draw clouds on a horizontal plane, lit from the sun's side."""
    near = 1 / (1.22 - up)  # perspective: the plane meets the horizon
    texture = canvas.texture(4, 4, 128, 128, octaves=5, gain=0.55)
    middle = canvas.x[..., canvas.x.shape[-1] // 2]
    u, v = (canvas.x - middle) * near * 0.16 + canvas.rand(0, 2), near * 0.17 + canvas.rand(0, 2)
    density = look_up(texture, u, v)
    towards = torch.where(canvas.sun_x > middle, 0.02, -0.02)
    shade = (density - look_up(texture, u + towards, v - 0.02)) * 6
    some = (canvas.rand() < 0.75).float() * canvas.rand(0.5, 1)
    threshold = torch.where(cloudy > 0, 0.42, 0.58)
    alpha = smoothstep(threshold, threshold + 0.16, density) * torch.maximum(cloudy * 0.95, some * 0.85)
    alpha = alpha * (1 - smoothstep(0.86, 1.0, up)) * (1 - 0.7 * canvas.fog)
    # White by day; at dawn and sunset bright near the sun and dark away from it; grey-blue at night.
    warm = torch.exp(-away * 1.6) * low_sun
    bad = torch.maximum(canvas.rain, canvas.snow) * 0.5 + 0.18 * cloudy
    lit = torch.lerp(colour(canvas, 1.0, 1.0, 1.0), canvas.light, (low_sun * 0.5 + warm * 0.4).clamp(max=1))
    dusk = torch.lerp(canvas.pixels, colour(canvas, 0.52, 0.40, 0.50), 0.55)
    white = torch.lerp(colour(canvas, 0.98, 0.98, 1.0), colour(canvas, 0.60, 0.64, 0.70), bad)
    body = torch.where(low_sun > 0, torch.lerp(dusk, lit, (0.30 + 0.6 * warm + shade).clamp(0, 1)), white)
    body = torch.where(canvas.night > 0, colour(canvas, 0.20, 0.24, 0.36) + 0.3 * torch.exp(-away * 5), body)
    canvas.over(alpha, (body * (0.93 + shade * 0.6).clamp(0.72, 1.08)).clamp(0, 1))


def draw_weather(canvas: Canvas, scenes: Sequence[Scene]) -> None:
    """Draw rain, snow and fog in front of everything."""
    for weather, draw_part in (("rain", _rain), ("snow", _flakes)):
        rows = [i for i, s in enumerate(scenes) if s.weather == weather]
        if rows:
            index = torch.tensor(rows, device=canvas.pixels.device)
            part = canvas.pick(index)
            draw_part(part)
            canvas.pixels[index] = part.pixels
    veil = canvas.fog * (0.12 + 0.25 * canvas.noise(2, 3, 3))
    canvas.over(veil, canvas.low)


def _rain(canvas: Canvas) -> None:
    """Draw slanting streaks of two sizes."""
    slant = canvas.rand(-0.25, 0.25)
    for cells, length, strength in ((60, 5.0, 0.30), (34, 3.2, 0.42)):
        across = (canvas.x + slant * canvas.y) * cells
        column = across.floor()
        table = canvas.random(256)
        along = canvas.y * length + of_cell(table, column) * 7
        drop = of_cell(table, column * 7 + along.floor() * 13)
        streak = smoothstep(0.5, 0.1, (across.frac() - 0.5).abs() * 2) * smoothstep(0.0, 0.5, along.frac())
        streak = streak * (along.frac() < 0.75) * (drop > 0.45)
        canvas.over(streak * strength, torch.lerp(canvas.low, colour(canvas, 0.9, 0.94, 1.0), 0.55))


def _flakes(canvas: Canvas) -> None:
    """Draw snowflakes of three sizes, few of them large."""
    for rows, size, share in ((26, 0.17, 0.30), (15, 0.16, 0.30), (8, 0.13, 0.25)):
        py, px = canvas.y * rows, canvas.x * rows + 0.35 * torch.sin(canvas.y * 5 + rows)
        row, column = py.floor(), px.floor()
        table = canvas.random(1024)
        cell = row * 61 + column
        dx = px.frac() - 0.3 - 0.4 * of_cell(table, cell)
        dy = py.frac() - 0.3 - 0.4 * of_cell(table, cell * 3 + 17)
        near = (dx * dx + dy * dy).sqrt() / rows
        flake = canvas.cover(near - size / rows * (0.5 + 0.5 * of_cell(table, cell * 5 + 5)), 2.0)
        flake = flake * (of_cell(table, cell * 11 + 3) < share)
        tone = torch.where(canvas.night > 0, 0.78, 0.99)
        canvas.over(flake * 0.9, colour(canvas, 0.98, 0.99, 1.0) * tone)

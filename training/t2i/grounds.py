"""Draw grounds: mountains, hills, desert, sea, beach, forest, meadow, lake, city, and a city from the air."""

import torch

from training.t2i.canvas import Canvas, Tensor, colour, look_up, of_cell, smoothstep


def mountains(canvas: Canvas) -> None:
    """Draw two ranges of snowy peaks, wooded foothills, and a snow slope in front."""
    _range(canvas, canvas.horizon, peaks=5, least=0.16, most=0.30, depth=0.62, snow_line=0.10)
    _range(canvas, canvas.horizon + 0.05, peaks=4, least=0.26, most=0.50, depth=0.16, snow_line=0.10)
    _pines(canvas, canvas.horizon + 0.075, height=0.055, spacing=0.020, depth=0.25, rise=0.03)
    _pines(canvas, canvas.horizon + 0.12, height=0.085, spacing=0.034, depth=0.08, rise=0.03)
    edge = canvas.horizon + 0.10 + 0.03 * canvas.ridge(2, 3)
    _snowfield(canvas, edge)


def hills(canvas: Canvas) -> None:
    """Draw rows of green hills."""
    for i in range(4):
        near = i / 3
        depth = (1 - near) ** 1.4
        edge = canvas.horizon + 0.10 * (i - 0.6) + (0.10 - 0.02 * i) * canvas.ridge(3, 2, 0.3)
        edge = edge + 0.004 * canvas.ridge(40, 2)
        green = torch.lerp(colour(canvas, 0.30, 0.52, 0.20), colour(canvas, 0.62, 0.72, 0.24), canvas.rand())
        below = (canvas.y - edge).clamp(min=0)
        stripes = canvas.noise(10 + 10 * i, 4, 3) - 0.5
        tone = 1.12 - 0.9 * below + 0.28 * stripes * (0.5 + near)
        _land(canvas, edge, green * tone, depth * 0.8)
        if i in (1, 2):
            _shrubs(canvas, edge, height=0.018 + 0.012 * i, depth=depth * 0.7)


def desert(canvas: Canvas) -> None:
    """Draw dunes, each with a sunlit and a shaded flank."""
    right = (canvas.sun_x > canvas.x.mean()).float()
    for i in range(4):
        near = i / 3
        # A long wave with a sharp crest plus a gentle one; the flanks are left and right of a crest.
        phase = canvas.x * canvas.rand(2.0, 3.6) / (0.7 + 0.5 * near) + 6.3 * canvas.rand()
        crest = torch.sin(phase).abs()
        edge = canvas.horizon + 0.125 * (i - 0.15) - (0.05 + 0.045 * near) * (1 - crest)
        edge = edge + 0.02 * torch.sin(canvas.x * 1.9 + 6.3 * canvas.rand()) + 0.004 * canvas.ridge(5, 2)
        below = (canvas.y - edge).clamp(min=0)
        wander = below * (1.4 + 1.2 * near) * torch.where(right > 0, 1.0, -1.0) + 0.25 * (canvas.noise(5, 2, 2) - 0.5)
        side = torch.sin(2 * (phase - wander)) * torch.where(right > 0, -1.0, 1.0)
        lit = smoothstep(-0.12, 0.30, side) * (1 - 0.4 * smoothstep(0.1, 0.3, below))
        sand = torch.lerp(colour(canvas, 0.66, 0.42, 0.25), colour(canvas, 0.97, 0.76, 0.46), 0.25 + 0.75 * lit)
        waves = torch.sin((canvas.y - edge) * (150 - 60 * near) + 9 * canvas.noise(2, 3, 3) + canvas.x * 8)
        tone = 1.03 + 0.035 * waves * smoothstep(0.02, 0.10, below) - 0.2 * below
        _land(canvas, edge, sand * tone, (1 - near) * 0.45)


def sea(canvas: Canvas) -> None:
    """Draw open sea."""
    _sea(canvas, canvas.horizon)


def beach(canvas: Canvas) -> None:
    """Draw the sea behind a slanting shore of wet and dry sand."""
    _sea(canvas, canvas.horizon)
    slope = canvas.rand(-0.10, 0.10)
    shore = canvas.horizon + 0.20 + slope * (canvas.x - 0.9) + 0.02 * torch.sin(canvas.x * 3 + 6 * canvas.rand())
    shore = shore + 0.010 * canvas.ridge(9, 3)
    sand = torch.lerp(colour(canvas, 0.93, 0.80, 0.58), colour(canvas, 0.98, 0.90, 0.74), canvas.rand())
    sand = sand * (0.97 + 0.10 * (canvas.noise(40, 60, 2) - 0.5) + 0.10 * (canvas.noise(6, 3, 3) - 0.5))
    wet = smoothstep(0.10, 0.02, canvas.y - shore)
    sand = sand * (1 - 0.30 * wet)
    _land(canvas, shore, sand, 0.05)
    mirror = canvas.low * wet * 0.25 * (canvas.y > shore)
    canvas.pixels = (canvas.pixels + mirror).clamp(max=1)
    for lift, wide, strength in ((0.0, 0.010, 0.95), (-0.035, 0.006, 0.75), (-0.075, 0.004, 0.5)):
        line = shore + lift * (1 + 0.3 * canvas.ridge(3, 3)) + 0.006 * canvas.ridge(14, 3)
        foam = (
            smoothstep(wide, wide * 0.3, (canvas.y - line).abs()) * strength * smoothstep(0.3, 0.5, canvas.noise(6, 9))
        )
        canvas.over(foam, colour(canvas, 0.97, 0.98, 1.0) * (0.35 + 0.65 * canvas.ambient))


def forest(canvas: Canvas) -> None:
    """Draw rows of firs fading into mist, and a clearing."""
    base = canvas.horizon
    for i in range(5):
        height, spacing = 0.34 + 0.05 * i, 0.060 + 0.026 * i
        _pines(canvas, base - 0.16 + 0.062 * i, height, spacing, depth=0.80 - 0.19 * i, rise=0.03)
    edge = base + 0.08 + 0.02 * canvas.ridge(3, 3)
    grass = torch.lerp(colour(canvas, 0.25, 0.40, 0.14), colour(canvas, 0.42, 0.50, 0.18), canvas.rand())
    grass = grass * (0.85 + 0.5 * (canvas.noise(30, 40, 3) - 0.3) + 0.5 * (canvas.y - edge))
    _land(canvas, edge, grass, 0.0)
    middle = 0.9 + 0.12 * torch.sin((canvas.y - edge) * 7 + 6 * canvas.rand())
    half = 0.05 + 0.42 * (canvas.y - edge).clamp(min=0)
    path = smoothstep(half + 0.03, half - 0.02, (canvas.x - middle).abs()) * (canvas.y > edge) * (1 - 0.7 * canvas.snow)
    earth = colour(canvas, 0.62, 0.50, 0.33) * (0.8 + 0.4 * canvas.noise(30, 30, 3)) * canvas.ambient
    canvas.over(path * 0.8, earth)


def meadow(canvas: Canvas) -> None:
    """Draw grass with flowers and a distant row of trees."""
    edge = canvas.horizon + 0.012 * canvas.ridge(2, 2)
    far = canvas.horizon - 0.015 - 0.035 * canvas.noise(1, 14, 3)
    _land(canvas, far, colour(canvas, 0.20, 0.40, 0.20), 0.55)
    below = (canvas.y - edge).clamp(min=0) / (1 - canvas.horizon)
    grass = torch.lerp(colour(canvas, 0.58, 0.72, 0.28), colour(canvas, 0.22, 0.48, 0.13), below)
    blades = canvas.noise(20, 110, 2) - 0.5
    _land(canvas, edge, grass * (1 + 0.55 * blades * below + 0.25 * (canvas.noise(8, 4, 2) - 0.5)), 0.05)
    tints = torch.tensor(
        [[0.90, 0.16, 0.14], [0.98, 0.83, 0.20], [0.97, 0.96, 0.95], [0.62, 0.30, 0.80]], device=canvas.pixels.device
    )
    one = (canvas.rand() * 4).long().view(-1).clamp(max=3)
    other = (canvas.rand() * 4).long().view(-1).clamp(max=3)
    for rows, start, size in ((46, 0.02, 0.30), (30, 0.10, 0.34), (17, 0.30, 0.36), (10, 0.55, 0.34)):
        py, px = canvas.y * rows * 1.6, canvas.x * rows
        table = canvas.random(1024)
        cell = px.floor() * 57 + py.floor()
        dx = px.frac() - 0.3 - 0.4 * of_cell(table, cell)
        dy = (py.frac() - 0.3 - 0.4 * of_cell(table, cell * 3 + 7)) / 1.3
        flower = canvas.cover(((dx * dx + dy * dy).sqrt() - size * (0.6 + 0.4 * of_cell(table, cell * 5))) / rows)
        flower = flower * (of_cell(table, cell * 7 + 1) < 0.42) * (below > start) * (1 - 0.75 * canvas.snow)
        which = (of_cell(table, cell * 11 + 2) < 0.75).float()
        tint = torch.lerp(tints[other][..., None, None], tints[one][..., None, None], which)
        core = smoothstep(0.16, 0.08, (dx * dx + dy * dy).sqrt())
        tint = torch.lerp(tint, colour(canvas, 0.95, 0.75, 0.15), core * (rows < 20))
        canvas.over(flower * 0.95, canvas.hazed(tint * canvas.ambient, 0.0))


def lake(canvas: Canvas) -> None:
    """Draw still water that reflects mountains."""
    _range(canvas, canvas.horizon, peaks=4, least=0.16, most=0.34, depth=0.42, snow_line=0.07)
    _land(canvas, canvas.horizon - 0.05 - 0.05 * canvas.ridge(2, 3), colour(canvas, 0.20, 0.34, 0.24), 0.35)
    _pines(canvas, canvas.horizon + 0.0, height=0.085, spacing=0.026, depth=0.22, rise=0.02)
    _water(canvas, canvas.horizon, calm=True, deep=colour(canvas, 0.06, 0.20, 0.27))
    bank = canvas.horizon + 0.36 + 0.05 * canvas.ridge(2, 3)
    stones = colour(canvas, 0.36, 0.42, 0.24) * (0.75 + 0.6 * (canvas.noise(24, 40, 3) - 0.2))
    _land(canvas, bank, stones, 0.0)


def city(canvas: Canvas) -> None:
    """Draw three rows of towers behind a street."""
    for i, (spacing, tallest, depth) in enumerate(((0.055, 0.52, 0.55), (0.085, 0.46, 0.28), (0.125, 0.36, 0.05))):
        _towers(canvas, canvas.horizon + 0.02 * i, spacing, tallest, depth)
    edge = canvas.horizon + 0.03
    pavement = colour(canvas, 0.60, 0.60, 0.62) * (0.9 + 0.2 * canvas.noise(10, 20, 3))
    _land(canvas, edge + 0 * canvas.x, pavement, 0.0)
    road = colour(canvas, 0.24, 0.25, 0.28) * (0.9 + 0.25 * canvas.noise(20, 50, 2))
    _land(canvas, edge + 0.05 + 0 * canvas.x, road, 0.0, snowy=0.35)
    # Wet asphalt: at night and in rain it reflects the image above, stretched downwards.
    mirrored = _mirror(canvas, edge + 0.03, ripple=0.006, stretch=1.5)
    canvas.over(smoothstep(0, 0.05, canvas.y - edge - 0.03) * (0.45 * canvas.night + 0.35 * canvas.rain), mirrored)
    lane = smoothstep(0.006, 0.003, (canvas.y - edge - 0.135).abs()) * ((canvas.x * 5).frac() < 0.5)
    canvas.over(lane * 0.8, colour(canvas, 0.93, 0.90, 0.78) * (0.4 + 0.6 * canvas.ambient))
    lamp = (canvas.x * 2.2 + canvas.rand()).frac() - 0.5
    post = canvas.cover((lamp.abs() - 0.008) / 2.2) * (canvas.y > edge - 0.13) * (canvas.y < edge + 0.02)
    canvas.over(post, colour(canvas, 0.12, 0.12, 0.14))
    away = ((lamp / 2.2) ** 2 + (canvas.y - edge + 0.135) ** 2).sqrt()
    dark = torch.maximum(canvas.night, 0.35 * canvas.fog)
    canvas.over((torch.exp(-away / 0.030) * 1.1 * dark).clamp(0, 1), colour(canvas, 1.0, 0.86, 0.55))


def aerial(canvas: Canvas) -> None:
    """Draw a city's blocks and avenues from above, in perspective."""
    depth = (canvas.y - canvas.horizon + 0.22).clamp(min=0.05)
    far = 1 / depth
    turn = canvas.rand(-0.6, 0.6)
    px, py = (canvas.x - 0.9) * far * 2.3, far * 3.4 + 3
    p = px * turn.cos() - py * turn.sin() + 50
    q = px * turn.sin() + py * turn.cos() + 50
    width = far * canvas.pixel * 2.3  # width of a pixel on the ground
    fine = smoothstep(1.1, 0.4, width)
    table = canvas.random(4096)
    block = p.floor() * 67 + q.floor()
    kind, tone = of_cell(table, block), of_cell(table, block * 5 + 11)
    to_street = torch.minimum(0.5 - (p.frac() - 0.5).abs(), 0.5 - (q.frac() - 0.5).abs())
    # Roofs: each block is divided into lots of different height, with a shadow at two sides.
    lot = (p * 3).floor() * 131 + (q * 3).floor() * 7
    roof, high = of_cell(table, lot), of_cell(table, lot * 3 + 5)
    warm = torch.lerp(colour(canvas, 0.60, 0.60, 0.63), colour(canvas, 0.78, 0.66, 0.55), tone)
    ground = torch.lerp(warm * 0.65, warm * 1.12, roof)
    inner = torch.minimum((p * 3).frac(), (q * 3).frac())
    ground = ground * (1 - 0.45 * smoothstep(0.30, 0.12, inner) * (0.4 + 0.6 * high) * fine)
    park = (kind < 0.13).float()
    trees = colour(canvas, 0.20, 0.42, 0.18) * (0.7 + 0.6 * canvas.noise(40, 70, 2))
    ground = torch.lerp(ground, trees, park)
    street = smoothstep(0.14, 0.08, to_street)
    ground = torch.lerp(ground, colour(canvas, 0.33, 0.34, 0.37), street)
    avenue_at = lambda t: ((t / 5).frac() - 0.1).abs() * 5  # noqa: E731
    avenue = torch.minimum(avenue_at(p - 0.0), avenue_at(q - 0.0))
    wide = smoothstep(0.34, 0.24, avenue)
    ground = torch.lerp(ground, colour(canvas, 0.40, 0.40, 0.43), wide)
    ground = torch.lerp(ground, colour(canvas, 0.93, 0.95, 0.98), canvas.snow * (0.65 - 0.45 * street))
    depth_haze = smoothstep(0.5, 4.0, far) * (0.45 + 0.25 * canvas.fog) + 0.35 * canvas.fog
    day = torch.lerp(ground * canvas.ambient, canvas.low.expand_as(ground), depth_haze.expand_as(ground[:, :1]))
    # At night: sodium light along the streets, streams of car lights along the avenues, and windows.
    dark = colour(canvas, 0.03, 0.035, 0.075) * (0.7 + 0.8 * tone * (1 - park))
    glow = torch.exp(-(to_street / 0.10)) * 0.50
    window = of_cell(table, (p * 7).floor() * 89 + (q * 7).floor() * 13 + 3)
    dot = smoothstep(0.36, 0.18, ((((p * 7).frac() - 0.5) ** 2 + ((q * 7).frac() - 0.5) ** 2).sqrt()))
    lit = (window > 0.62) * torch.lerp(torch.full_like(dot, 0.25), dot, fine) * (1 - park) * (1 - street)
    pale = torch.lerp(
        colour(canvas, 1.0, 0.78, 0.42), colour(canvas, 0.78, 0.90, 1.0), (of_cell(table, block * 7) > 0.72).float()
    )
    lane = torch.exp(-avenue / 0.16)
    stream = torch.lerp(
        colour(canvas, 1.0, 0.93, 0.72), colour(canvas, 1.0, 0.30, 0.16), ((p / 5).frac() < 0.1).float()
    )
    lights = dark + glow * colour(canvas, 1.0, 0.60, 0.22) + lit * pale * (0.5 + 0.5 * tone) + lane * stream * 0.95
    city_glow = smoothstep(0.4, 4.2, far)
    lights = torch.lerp(lights, colour(canvas, 0.62, 0.40, 0.22), city_glow * 0.75)
    lights = torch.lerp(lights, canvas.low.expand_as(lights), 0.55 * canvas.fog)
    dusk = (canvas.ambient[:, 1:2] < 0.75).float() * 0.35 * (1 - canvas.night)
    image = torch.lerp(day + dusk * (lit * pale * 0.8 + lane * stream * 0.6), lights, canvas.night)
    below = smoothstep(-0.004, 0.02, canvas.y - canvas.horizon - 0.01 * canvas.ridge(60, 1))
    canvas.over(below, image.clamp(0, 1))


def _land(canvas: Canvas, edge: Tensor, fill: Tensor, depth: float, snowy: float = 0.85) -> None:
    """Fill everything below an edge [b, 1, 1, w] with a colour, lit and seen through haze."""
    white = colour(canvas, 0.93, 0.95, 0.99)
    fill = torch.lerp(fill, white * (0.6 * fill.mean(1, keepdim=True) + 0.62).clamp(max=1.03), canvas.snow * snowy)
    canvas.over(canvas.cover(edge - canvas.y), canvas.hazed((fill * canvas.ambient).clamp(0, 1), depth))


def _snowfield(canvas: Canvas, edge: Tensor) -> None:
    """Fill everything below an edge with snow."""
    drift = canvas.noise(5, 2, 3) - 0.5
    fill = colour(canvas, 0.90, 0.93, 0.99) * (0.98 + 0.22 * drift) - colour(canvas, 0.10, 0.07, 0.02) * (
        canvas.y - edge
    )
    canvas.over(canvas.cover(edge - canvas.y), canvas.hazed((fill * (0.08 + 0.92 * canvas.ambient)).clamp(0, 1), 0.0))


def _range(canvas: Canvas, base: Tensor, peaks: int, least: float, most: float, depth: float, snow_line: float) -> None:
    """Draw a range of peaks, each with a lit and a shaded face separated by a wavy ridge."""
    width = canvas.pixels.shape[3] / canvas.pixels.shape[2]
    rough = 0.040 * canvas.ridge(8, 5, 0.55)
    crags = canvas.noise(7, 9, 4, 0.6) - 0.5
    sun = torch.where(canvas.sun_x > canvas.x.mean(), 1.0, -1.0)
    for i in (*range(0, peaks, 2), *range(1, peaks, 2)):  # every other peak is in front of its neighbours
        x = (i + canvas.rand(0.1, 0.9)) * width / peaks
        top, slope = canvas.rand(least, most) * (1 - 0.25 * (i % 2)), canvas.rand(0.75, 1.15)
        away = canvas.x - x
        edge = base - (top - away.abs() * slope * (1 + 0.10 * torch.sin(away * 23 + i)) + rough).clamp(min=-0.02)
        below = (canvas.y - edge).clamp(min=0)
        face = away * sun + 0.35 * crags * (0.1 + below * 2) + 0.05 * torch.sin(below * 40 + i * 2)
        lit = smoothstep(-0.014, 0.014, face)
        rock = torch.lerp(colour(canvas, 0.26, 0.28, 0.36), colour(canvas, 0.52, 0.48, 0.47), lit)
        snow = torch.lerp(colour(canvas, 0.60, 0.68, 0.84), colour(canvas, 0.99, 0.98, 0.98), lit)
        # Snow covers the upper part, and reaches lower in gullies.
        level = (base - canvas.y) / most + 0.85 * crags + 0.3 * canvas.snow
        fill = torch.lerp(rock, snow, smoothstep(snow_line + 0.12, snow_line + 0.24, level)) * (1 + 0.35 * crags)
        light = 0.05 + 0.95 * canvas.ambient
        canvas.over(canvas.cover(edge - canvas.y), canvas.hazed((fill * light).clamp(0, 1), depth))


def _pines(canvas: Canvas, base: Tensor, height: float, spacing: float, depth: float, rise: float) -> None:
    """Draw a row of firs on a wavy line, at most `height` tall."""
    foot = base + rise * canvas.ridge(3, 2)
    table = canvas.random(256)
    shift = canvas.rand()
    cover = torch.zeros_like(canvas.pixels[:, :1])
    tone = torch.zeros_like(cover)
    for offset in (-1, 0, 1):
        cell = (canvas.x / spacing + shift).floor() + offset
        middle = (cell + 0.25 + 0.5 * of_cell(table, cell) - shift) * spacing
        tall = height * (0.55 + 0.45 * of_cell(table, cell * 3 + 1))
        t = (canvas.y - (foot - tall)) / tall  # 0 at the tip, 1 at the foot
        boughs = 0.62 + 0.38 * (t * (4 + 2 * of_cell(table, cell * 7))).frac()
        half = tall * 0.25 * t.clamp(0, 1.05) * boughs
        tree = canvas.cover((canvas.x - middle).abs() - half) * (t > 0)
        shade = 0.75 + 0.35 * of_cell(table, cell * 5 + 2) - 0.9 * (canvas.x - middle) / spacing * 0.3
        tone = torch.where(tree > cover, shade, tone)
        cover = torch.maximum(cover, tree)
    cover = torch.maximum(cover, canvas.cover(foot - 0.004 - canvas.y))
    tone = torch.where(tone > 0, tone, torch.full_like(tone, 0.8))
    needles = torch.lerp(colour(canvas, 0.10, 0.24, 0.15), colour(canvas, 0.78, 0.83, 0.88), canvas.snow * 0.55)
    canvas.over(cover, canvas.hazed((needles * tone * 1.25 * canvas.ambient).clamp(0, 1), depth))


def _shrubs(canvas: Canvas, edge: Tensor, height: float, depth: float) -> None:
    """Draw round trees at random places along an edge."""
    spacing = height * 1.4
    table = canvas.random(256)
    cell = (canvas.x / spacing).floor()
    x = (canvas.x / spacing).frac() - 0.5
    is_present = of_cell(table, cell) < 0.35
    radius = height * (0.28 + 0.22 * of_cell(table, cell * 3 + 1))
    y = canvas.y - edge + radius * 0.7
    tree = canvas.cover(((x * spacing) ** 2 + y * y).sqrt() - radius) * is_present
    leaf = colour(canvas, 0.16, 0.36, 0.14) * (1.0 - 5 * y)
    canvas.over(tree, canvas.hazed((leaf * canvas.ambient).clamp(0, 1), depth))


def _mirror(canvas: Canvas, line: Tensor, ripple: float | Tensor, stretch: float = 1.0) -> Tensor:
    """Return the reflection of the image above a line, with ripples."""
    below = (canvas.y - line).clamp(min=0)
    texture = canvas.texture(24, 8, 96, 96, octaves=3)
    wave = look_up(texture, canvas.x * 1.2, (below + 0.03).log() * 1.1 + 5) - 0.5
    source_y = line - below * stretch * 0.9 + wave * ripple * 4
    source_x = canvas.x + wave * ripple
    height, width = canvas.pixels.shape[2:]
    return look_up(canvas.pixels, source_x * height / width, source_y.clamp(0.0, 1.0))


def _water(canvas: Canvas, line: Tensor, *, calm: bool, deep: Tensor) -> None:
    """Draw water below a line: reflection, water colour, waves that grow towards the viewer, and glitter."""
    below = (canvas.y - line).clamp(min=0)
    mirrored = _mirror(canvas, line, ripple=(0.012 if calm else 0.05))
    near = 1 / (below + 0.045)
    texture = canvas.texture(20, 14, 160, 160, octaves=4, gain=0.65)
    wave = look_up(texture, (canvas.x - 0.9) * near * 0.11 + 3, near * 0.30) - 0.5
    share = (0.25 if calm else 0.48) + 0.25 * below
    water = torch.lerp(mirrored, deep * (0.12 + 0.88 * canvas.ambient), share)
    water = torch.lerp(water, canvas.low.expand_as(water), smoothstep(0.08, 0.0, below) * 0.45)
    water = water * (1 + wave * (0.22 if calm else 0.75) * smoothstep(0.0, 0.1, below))
    if not calm:
        crest = smoothstep(0.17, 0.26, wave) * smoothstep(0.03, 0.2, below)
        water = torch.lerp(water, colour(canvas, 0.95, 0.98, 1.0) * (0.15 + 0.85 * canvas.ambient), crest * 0.55)
    path = torch.exp(-(((canvas.x - canvas.sun_x) / (0.05 + 0.25 * below)) ** 2))
    shining = torch.maximum(canvas.night * 0.8, (canvas.sun_y > line * 0.55).float())
    veiled = 1 - 0.6 * torch.maximum(torch.maximum(canvas.rain, canvas.snow), canvas.fog)
    glitter = path * smoothstep(-0.10, 0.15, wave) * shining * veiled
    water = torch.lerp(water, canvas.light.expand_as(water), glitter * 0.8)
    veil = 0.75 * canvas.fog * smoothstep(0.3, 0.0, below)
    water = torch.lerp(water, canvas.low.expand_as(water), veil)
    canvas.over(canvas.cover(line - canvas.y), water.clamp(0, 1))


def _sea(canvas: Canvas, line: Tensor) -> None:
    """Draw rough water of a random blue-green below a line."""
    tone = canvas.rand()
    deep = torch.lerp(colour(canvas, 0.03, 0.20, 0.42), colour(canvas, 0.04, 0.42, 0.50), tone)
    _water(canvas, line, calm=False, deep=deep)


def _towers(canvas: Canvas, base: Tensor, spacing: float, tallest: float, depth: float) -> None:
    """Draw a row of towers with windows, many of them lit in the dark."""
    table = canvas.random(512)
    at = canvas.x / spacing + canvas.rand()
    cell, inside = at.floor(), at.frac()
    tall = tallest * (0.35 + 0.65 * of_cell(table, cell) ** 1.6)
    margin = 0.02 + 0.10 * of_cell(table, cell * 3 + 1)
    half = 0.5 - margin
    # Some towers have a narrower top or a spire.
    top = base - tall
    step = (of_cell(table, cell * 13) < 0.45) * (canvas.y < top + tall * 0.18)
    half = half - 0.16 * step
    aside = (inside - 0.5).abs() - half
    body = torch.maximum(aside * spacing, top - canvas.y)
    spire = (of_cell(table, cell * 17 + 3) < 0.25) * (canvas.y > top - 0.07) * (canvas.y < top)
    body = torch.where(spire, (inside - 0.5).abs() * spacing - 0.0022, body)
    cover = canvas.cover(body) * (canvas.y < base + 0.05)
    hue, light = of_cell(table, cell * 5 + 2), of_cell(table, cell * 7 + 3)
    wall = torch.lerp(colour(canvas, 0.42, 0.50, 0.60), colour(canvas, 0.74, 0.64, 0.56), hue) * (0.65 + 0.5 * light)
    sun = torch.where(canvas.sun_x > canvas.x.mean(), 1.0, -1.0)
    wall = wall * (0.94 + 0.20 * (inside - 0.5) * sun * 2)
    canvas.over(cover, canvas.hazed((wall * canvas.ambient * (1 - 0.45 * canvas.night)).clamp(0, 1), depth))
    # Windows are cells of a grid.
    columns = (3 + 3 * of_cell(table, cell * 11)).floor()
    u = (inside - margin) / (1 - 2 * margin) * columns
    v = (canvas.y - top) / 0.021
    pane = (u.frac() > 0.22) & (u.frac() < 0.80) & (v.frac() > 0.28) & (v.frac() < 0.78) & (v > 0.6)
    number = of_cell(table, cell * 31 + u.floor() * 7 + v.floor() * 13)
    dusk = (canvas.ambient[:, 1:2] < 0.75).float() * 0.20
    lit = (number < 0.46 * canvas.night + dusk * (1 - canvas.night)) & (aside < -0.04)
    glass = cover * pane * (aside < -0.04)
    canvas.over(glass * 0.45 * (1 - canvas.night) * (1 - depth), canvas.low * 0.8)
    warm = torch.lerp(colour(canvas, 1.0, 0.80, 0.42), colour(canvas, 0.85, 0.93, 1.0), (number * 7).frac() ** 2)
    canvas.over(glass * lit * (1 - 0.45 * depth) * (1 - 0.5 * canvas.fog), warm)


DRAW_GROUND = {
    "mountains": mountains,
    "hills": hills,
    "desert": desert,
    "sea": sea,
    "beach": beach,
    "forest": forest,
    "meadow": meadow,
    "lake": lake,
    "city": city,
    "aerial": aerial,
}

"""Grounds: mountains, hills, desert, sea, beach, forest, meadow, lake, a city, and a city from the air."""

import torch

from training.t2i.canvas import Sheet, Tensor, colour, look_up, of_cell, smoothstep


def mountains(sheet: Sheet) -> None:
    """Two ranges of snowy peaks, wooded foothills, and a white slope in front."""
    _range(sheet, sheet.horizon, peaks=5, least=0.16, most=0.30, depth=0.62, snow_line=0.10)
    _range(sheet, sheet.horizon + 0.05, peaks=4, least=0.26, most=0.50, depth=0.16, snow_line=0.10)
    _pines(sheet, sheet.horizon + 0.075, height=0.055, spacing=0.020, depth=0.25, rise=0.03)
    _pines(sheet, sheet.horizon + 0.12, height=0.085, spacing=0.034, depth=0.08, rise=0.03)
    edge = sheet.horizon + 0.10 + 0.03 * sheet.ridge(2, 3)
    _snowfield(sheet, edge)


def hills(sheet: Sheet) -> None:
    """Green hills behind hills."""
    for i in range(4):
        near = i / 3
        depth = (1 - near) ** 1.4
        edge = sheet.horizon + 0.10 * (i - 0.6) + (0.10 - 0.02 * i) * sheet.ridge(3, 2, 0.3)
        edge = edge + 0.004 * sheet.ridge(40, 2)
        green = torch.lerp(colour(sheet, 0.30, 0.52, 0.20), colour(sheet, 0.62, 0.72, 0.24), sheet.rand())
        below = (sheet.y - edge).clamp(min=0)
        stripes = sheet.noise(10 + 10 * i, 4, 3) - 0.5
        tone = 1.12 - 0.9 * below + 0.28 * stripes * (0.5 + near)
        _land(sheet, edge, green * tone, depth * 0.8)
        if i in (1, 2):
            _shrubs(sheet, edge, height=0.018 + 0.012 * i, depth=depth * 0.7)


def desert(sheet: Sheet) -> None:
    """Dunes, each with a sunlit and a shaded flank."""
    right = (sheet.sun_x > sheet.x.mean()).float()
    for i in range(4):
        near = i / 3
        # A long wave with a sharp crest, and a gentle one; to the left and the right of a crest lie its flanks.
        phase = sheet.x * sheet.rand(2.0, 3.6) / (0.7 + 0.5 * near) + 6.3 * sheet.rand()
        crest = torch.sin(phase).abs()
        edge = sheet.horizon + 0.125 * (i - 0.15) - (0.05 + 0.045 * near) * (1 - crest)
        edge = edge + 0.02 * torch.sin(sheet.x * 1.9 + 6.3 * sheet.rand()) + 0.004 * sheet.ridge(5, 2)
        below = (sheet.y - edge).clamp(min=0)
        wander = below * (1.4 + 1.2 * near) * torch.where(right > 0, 1.0, -1.0) + 0.25 * (sheet.noise(5, 2, 2) - 0.5)
        side = torch.sin(2 * (phase - wander)) * torch.where(right > 0, -1.0, 1.0)
        lit = smoothstep(-0.12, 0.30, side) * (1 - 0.4 * smoothstep(0.1, 0.3, below))
        sand = torch.lerp(colour(sheet, 0.66, 0.42, 0.25), colour(sheet, 0.97, 0.76, 0.46), 0.25 + 0.75 * lit)
        waves = torch.sin((sheet.y - edge) * (150 - 60 * near) + 9 * sheet.noise(2, 3, 3) + sheet.x * 8)
        tone = 1.03 + 0.035 * waves * smoothstep(0.02, 0.10, below) - 0.2 * below
        _land(sheet, edge, sand * tone, (1 - near) * 0.45)


def sea(sheet: Sheet) -> None:
    _sea(sheet, sheet.horizon)


def beach(sheet: Sheet) -> None:
    """Sea behind a slanting shore of wet and dry sand."""
    _sea(sheet, sheet.horizon)
    slope = sheet.rand(-0.10, 0.10)
    shore = sheet.horizon + 0.20 + slope * (sheet.x - 0.9) + 0.02 * torch.sin(sheet.x * 3 + 6 * sheet.rand())
    shore = shore + 0.010 * sheet.ridge(9, 3)
    sand = torch.lerp(colour(sheet, 0.93, 0.80, 0.58), colour(sheet, 0.98, 0.90, 0.74), sheet.rand())
    sand = sand * (0.97 + 0.10 * (sheet.noise(40, 60, 2) - 0.5) + 0.10 * (sheet.noise(6, 3, 3) - 0.5))
    wet = smoothstep(0.10, 0.02, sheet.y - shore)
    sand = sand * (1 - 0.30 * wet)
    _land(sheet, shore, sand, 0.05)
    mirror = sheet.low * wet * 0.25 * (sheet.y > shore)
    sheet.pixels = (sheet.pixels + mirror).clamp(max=1)
    for lift, wide, strength in ((0.0, 0.010, 0.95), (-0.035, 0.006, 0.75), (-0.075, 0.004, 0.5)):
        line = shore + lift * (1 + 0.3 * sheet.ridge(3, 3)) + 0.006 * sheet.ridge(14, 3)
        foam = smoothstep(wide, wide * 0.3, (sheet.y - line).abs()) * strength * smoothstep(0.3, 0.5, sheet.noise(6, 9))
        sheet.over(foam, colour(sheet, 0.97, 0.98, 1.0) * (0.35 + 0.65 * sheet.ambient))


def forest(sheet: Sheet) -> None:
    """Rows of firs into the mist, and a clearing."""
    base = sheet.horizon
    for i in range(5):
        height, spacing = 0.34 + 0.05 * i, 0.060 + 0.026 * i
        _pines(sheet, base - 0.16 + 0.062 * i, height, spacing, depth=0.80 - 0.19 * i, rise=0.03)
    edge = base + 0.08 + 0.02 * sheet.ridge(3, 3)
    grass = torch.lerp(colour(sheet, 0.25, 0.40, 0.14), colour(sheet, 0.42, 0.50, 0.18), sheet.rand())
    grass = grass * (0.85 + 0.5 * (sheet.noise(30, 40, 3) - 0.3) + 0.5 * (sheet.y - edge))
    _land(sheet, edge, grass, 0.0)
    middle = 0.9 + 0.12 * torch.sin((sheet.y - edge) * 7 + 6 * sheet.rand())
    half = 0.05 + 0.42 * (sheet.y - edge).clamp(min=0)
    path = smoothstep(half + 0.03, half - 0.02, (sheet.x - middle).abs()) * (sheet.y > edge) * (1 - 0.7 * sheet.snow)
    earth = colour(sheet, 0.62, 0.50, 0.33) * (0.8 + 0.4 * sheet.noise(30, 30, 3)) * sheet.ambient
    sheet.over(path * 0.8, earth)


def meadow(sheet: Sheet) -> None:
    """Grass full of flowers under a far row of trees."""
    edge = sheet.horizon + 0.012 * sheet.ridge(2, 2)
    far = sheet.horizon - 0.015 - 0.035 * sheet.noise(1, 14, 3)
    _land(sheet, far, colour(sheet, 0.20, 0.40, 0.20), 0.55)
    below = (sheet.y - edge).clamp(min=0) / (1 - sheet.horizon)
    grass = torch.lerp(colour(sheet, 0.58, 0.72, 0.28), colour(sheet, 0.22, 0.48, 0.13), below)
    blades = sheet.noise(20, 110, 2) - 0.5
    _land(sheet, edge, grass * (1 + 0.55 * blades * below + 0.25 * (sheet.noise(8, 4, 2) - 0.5)), 0.05)
    tints = torch.tensor(
        [[0.90, 0.16, 0.14], [0.98, 0.83, 0.20], [0.97, 0.96, 0.95], [0.62, 0.30, 0.80]], device=sheet.pixels.device
    )
    one = (sheet.rand() * 4).long().view(-1).clamp(max=3)
    other = (sheet.rand() * 4).long().view(-1).clamp(max=3)
    for rows, start, size in ((46, 0.02, 0.30), (30, 0.10, 0.34), (17, 0.30, 0.36), (10, 0.55, 0.34)):
        py, px = sheet.y * rows * 1.6, sheet.x * rows
        table = sheet.random(1024)
        cell = px.floor() * 57 + py.floor()
        dx = px.frac() - 0.3 - 0.4 * of_cell(table, cell)
        dy = (py.frac() - 0.3 - 0.4 * of_cell(table, cell * 3 + 7)) / 1.3
        flower = sheet.cover(((dx * dx + dy * dy).sqrt() - size * (0.6 + 0.4 * of_cell(table, cell * 5))) / rows)
        flower = flower * (of_cell(table, cell * 7 + 1) < 0.42) * (below > start) * (1 - 0.75 * sheet.snow)
        which = (of_cell(table, cell * 11 + 2) < 0.75).float()
        tint = torch.lerp(tints[other][..., None, None], tints[one][..., None, None], which)
        core = smoothstep(0.16, 0.08, (dx * dx + dy * dy).sqrt())
        tint = torch.lerp(tint, colour(sheet, 0.95, 0.75, 0.15), core * (rows < 20))
        sheet.over(flower * 0.95, sheet.hazed(tint * sheet.ambient, 0.0))


def lake(sheet: Sheet) -> None:
    """Still water with mountains mirrored in it."""
    _range(sheet, sheet.horizon, peaks=4, least=0.16, most=0.34, depth=0.42, snow_line=0.07)
    _land(sheet, sheet.horizon - 0.05 - 0.05 * sheet.ridge(2, 3), colour(sheet, 0.20, 0.34, 0.24), 0.35)
    _pines(sheet, sheet.horizon + 0.0, height=0.085, spacing=0.026, depth=0.22, rise=0.02)
    _water(sheet, sheet.horizon, calm=True, deep=colour(sheet, 0.06, 0.20, 0.27))
    bank = sheet.horizon + 0.36 + 0.05 * sheet.ridge(2, 3)
    stones = colour(sheet, 0.36, 0.42, 0.24) * (0.75 + 0.6 * (sheet.noise(24, 40, 3) - 0.2))
    _land(sheet, bank, stones, 0.0)


def city(sheet: Sheet) -> None:
    """Three rows of towers behind a street."""
    for i, (spacing, tallest, depth) in enumerate(((0.055, 0.52, 0.55), (0.085, 0.46, 0.28), (0.125, 0.36, 0.05))):
        _towers(sheet, sheet.horizon + 0.02 * i, spacing, tallest, depth)
    edge = sheet.horizon + 0.03
    pavement = colour(sheet, 0.60, 0.60, 0.62) * (0.9 + 0.2 * sheet.noise(10, 20, 3))
    _land(sheet, edge + 0 * sheet.x, pavement, 0.0)
    road = colour(sheet, 0.24, 0.25, 0.28) * (0.9 + 0.25 * sheet.noise(20, 50, 2))
    _land(sheet, edge + 0.05 + 0 * sheet.x, road, 0.0, snowy=0.35)
    # Wet asphalt by night: what shines above is mirrored, drawn out downwards.
    mirrored = _mirror(sheet, edge + 0.03, ripple=0.006, stretch=1.5)
    sheet.over(smoothstep(0, 0.05, sheet.y - edge - 0.03) * (0.45 * sheet.night + 0.35 * sheet.rain), mirrored)
    lane = smoothstep(0.006, 0.003, (sheet.y - edge - 0.135).abs()) * ((sheet.x * 5).frac() < 0.5)
    sheet.over(lane * 0.8, colour(sheet, 0.93, 0.90, 0.78) * (0.4 + 0.6 * sheet.ambient))
    lamp = (sheet.x * 2.2 + sheet.rand()).frac() - 0.5
    post = sheet.cover((lamp.abs() - 0.008) / 2.2) * (sheet.y > edge - 0.13) * (sheet.y < edge + 0.02)
    sheet.over(post, colour(sheet, 0.12, 0.12, 0.14))
    away = ((lamp / 2.2) ** 2 + (sheet.y - edge + 0.135) ** 2).sqrt()
    dark = torch.maximum(sheet.night, 0.35 * sheet.fog)
    sheet.over((torch.exp(-away / 0.030) * 1.1 * dark).clamp(0, 1), colour(sheet, 1.0, 0.86, 0.55))


def aerial(sheet: Sheet) -> None:
    """A city's blocks and avenues seen from above, drawn towards the horizon."""
    depth = (sheet.y - sheet.horizon + 0.22).clamp(min=0.05)
    far = 1 / depth
    turn = sheet.rand(-0.6, 0.6)
    px, py = (sheet.x - 0.9) * far * 2.3, far * 3.4 + 3
    p = px * turn.cos() - py * turn.sin() + 50
    q = px * turn.sin() + py * turn.cos() + 50
    width = far * sheet.pixel * 2.3  # of a pixel on the ground
    fine = smoothstep(1.1, 0.4, width)
    table = sheet.random(4096)
    block = p.floor() * 67 + q.floor()
    kind, tone = of_cell(table, block), of_cell(table, block * 5 + 11)
    to_street = torch.minimum(0.5 - (p.frac() - 0.5).abs(), 0.5 - (q.frac() - 0.5).abs())
    # Roofs: each block is cut into lots of different height; the side away from the sun lies in shadow.
    lot = (p * 3).floor() * 131 + (q * 3).floor() * 7
    roof, high = of_cell(table, lot), of_cell(table, lot * 3 + 5)
    warm = torch.lerp(colour(sheet, 0.60, 0.60, 0.63), colour(sheet, 0.78, 0.66, 0.55), tone)
    ground = torch.lerp(warm * 0.65, warm * 1.12, roof)
    inner = torch.minimum((p * 3).frac(), (q * 3).frac())
    ground = ground * (1 - 0.45 * smoothstep(0.30, 0.12, inner) * (0.4 + 0.6 * high) * fine)
    park = (kind < 0.13).float()
    trees = colour(sheet, 0.20, 0.42, 0.18) * (0.7 + 0.6 * sheet.noise(40, 70, 2))
    ground = torch.lerp(ground, trees, park)
    street = smoothstep(0.14, 0.08, to_street)
    ground = torch.lerp(ground, colour(sheet, 0.33, 0.34, 0.37), street)
    avenue_at = lambda t: ((t / 5).frac() - 0.1).abs() * 5  # noqa: E731
    avenue = torch.minimum(avenue_at(p - 0.0), avenue_at(q - 0.0))
    wide = smoothstep(0.34, 0.24, avenue)
    ground = torch.lerp(ground, colour(sheet, 0.40, 0.40, 0.43), wide)
    ground = torch.lerp(ground, colour(sheet, 0.93, 0.95, 0.98), sheet.snow * (0.65 - 0.45 * street))
    depth_haze = smoothstep(0.5, 4.0, far) * (0.45 + 0.25 * sheet.fog) + 0.35 * sheet.fog
    day = torch.lerp(ground * sheet.ambient, sheet.low.expand_as(ground), depth_haze.expand_as(ground[:, :1]))
    # By night: sodium light along the streets, cars' light drawn out along the avenues, and windows.
    dark = colour(sheet, 0.03, 0.035, 0.075) * (0.7 + 0.8 * tone * (1 - park))
    glow = torch.exp(-(to_street / 0.10)) * 0.50
    window = of_cell(table, (p * 7).floor() * 89 + (q * 7).floor() * 13 + 3)
    dot = smoothstep(0.36, 0.18, ((((p * 7).frac() - 0.5) ** 2 + ((q * 7).frac() - 0.5) ** 2).sqrt()))
    lit = (window > 0.62) * torch.lerp(torch.full_like(dot, 0.25), dot, fine) * (1 - park) * (1 - street)
    pale = torch.lerp(
        colour(sheet, 1.0, 0.78, 0.42), colour(sheet, 0.78, 0.90, 1.0), (of_cell(table, block * 7) > 0.72).float()
    )
    lane = torch.exp(-avenue / 0.16)
    stream = torch.lerp(colour(sheet, 1.0, 0.93, 0.72), colour(sheet, 1.0, 0.30, 0.16), ((p / 5).frac() < 0.1).float())
    lights = dark + glow * colour(sheet, 1.0, 0.60, 0.22) + lit * pale * (0.5 + 0.5 * tone) + lane * stream * 0.95
    city_glow = smoothstep(0.4, 4.2, far)
    lights = torch.lerp(lights, colour(sheet, 0.62, 0.40, 0.22), city_glow * 0.75)
    lights = torch.lerp(lights, sheet.low.expand_as(lights), 0.55 * sheet.fog)
    dusk = (sheet.ambient[:, 1:2] < 0.75).float() * 0.35 * (1 - sheet.night)
    picture = torch.lerp(day + dusk * (lit * pale * 0.8 + lane * stream * 0.6), lights, sheet.night)
    below = smoothstep(-0.004, 0.02, sheet.y - sheet.horizon - 0.01 * sheet.ridge(60, 1))
    sheet.over(below, picture.clamp(0, 1))


def _land(sheet: Sheet, edge: Tensor, paint: Tensor, depth: float, snowy: float = 0.85) -> None:
    """Fill all below an edge [b, 1, 1, w] with the land's own colour, in this light and from afar."""
    white = colour(sheet, 0.93, 0.95, 0.99)
    paint = torch.lerp(paint, white * (0.6 * paint.mean(1, keepdim=True) + 0.62).clamp(max=1.03), sheet.snow * snowy)
    sheet.over(sheet.cover(edge - sheet.y), sheet.hazed((paint * sheet.ambient).clamp(0, 1), depth))


def _snowfield(sheet: Sheet, edge: Tensor) -> None:
    drift = sheet.noise(5, 2, 3) - 0.5
    paint = colour(sheet, 0.90, 0.93, 0.99) * (0.98 + 0.22 * drift) - colour(sheet, 0.10, 0.07, 0.02) * (sheet.y - edge)
    sheet.over(sheet.cover(edge - sheet.y), sheet.hazed((paint * (0.08 + 0.92 * sheet.ambient)).clamp(0, 1), 0.0))


def _range(sheet: Sheet, base: Tensor, peaks: int, least: float, most: float, depth: float, snow_line: float) -> None:
    """A range of peaks; each has a lit and a shaded face, parted by a ridge that wavers down from its top."""
    width = sheet.pixels.shape[3] / sheet.pixels.shape[2]
    rough = 0.040 * sheet.ridge(8, 5, 0.55)
    crags = sheet.noise(7, 9, 4, 0.6) - 0.5
    sun = torch.where(sheet.sun_x > sheet.x.mean(), 1.0, -1.0)
    for i in (*range(0, peaks, 2), *range(1, peaks, 2)):  # every other one stands in front of its neighbours
        x = (i + sheet.rand(0.1, 0.9)) * width / peaks
        top, slope = sheet.rand(least, most) * (1 - 0.25 * (i % 2)), sheet.rand(0.75, 1.15)
        away = sheet.x - x
        edge = base - (top - away.abs() * slope * (1 + 0.10 * torch.sin(away * 23 + i)) + rough).clamp(min=-0.02)
        below = (sheet.y - edge).clamp(min=0)
        face = away * sun + 0.35 * crags * (0.1 + below * 2) + 0.05 * torch.sin(below * 40 + i * 2)
        lit = smoothstep(-0.014, 0.014, face)
        rock = torch.lerp(colour(sheet, 0.26, 0.28, 0.36), colour(sheet, 0.52, 0.48, 0.47), lit)
        snow = torch.lerp(colour(sheet, 0.60, 0.68, 0.84), colour(sheet, 0.99, 0.98, 0.98), lit)
        # Snow lies high up, and farther down in the gullies.
        level = (base - sheet.y) / most + 0.85 * crags + 0.3 * sheet.snow
        paint = torch.lerp(rock, snow, smoothstep(snow_line + 0.12, snow_line + 0.24, level)) * (1 + 0.35 * crags)
        light = 0.05 + 0.95 * sheet.ambient
        sheet.over(sheet.cover(edge - sheet.y), sheet.hazed((paint * light).clamp(0, 1), depth))


def _pines(sheet: Sheet, base: Tensor, height: float, spacing: float, depth: float, rise: float) -> None:
    """A row of firs standing on a wavy line, as tall as `height`."""
    foot = base + rise * sheet.ridge(3, 2)
    table = sheet.random(256)
    shift = sheet.rand()
    cover = torch.zeros_like(sheet.pixels[:, :1])
    tone = torch.zeros_like(cover)
    for offset in (-1, 0, 1):
        cell = (sheet.x / spacing + shift).floor() + offset
        middle = (cell + 0.25 + 0.5 * of_cell(table, cell) - shift) * spacing
        tall = height * (0.55 + 0.45 * of_cell(table, cell * 3 + 1))
        t = (sheet.y - (foot - tall)) / tall  # 0 at the tip, 1 at the foot
        boughs = 0.62 + 0.38 * (t * (4 + 2 * of_cell(table, cell * 7))).frac()
        half = tall * 0.25 * t.clamp(0, 1.05) * boughs
        tree = sheet.cover((sheet.x - middle).abs() - half) * (t > 0)
        shade = 0.75 + 0.35 * of_cell(table, cell * 5 + 2) - 0.9 * (sheet.x - middle) / spacing * 0.3
        tone = torch.where(tree > cover, shade, tone)
        cover = torch.maximum(cover, tree)
    cover = torch.maximum(cover, sheet.cover(foot - 0.004 - sheet.y))
    tone = torch.where(tone > 0, tone, torch.full_like(tone, 0.8))
    needles = torch.lerp(colour(sheet, 0.10, 0.24, 0.15), colour(sheet, 0.78, 0.83, 0.88), sheet.snow * 0.55)
    sheet.over(cover, sheet.hazed((needles * tone * 1.25 * sheet.ambient).clamp(0, 1), depth))


def _shrubs(sheet: Sheet, edge: Tensor, height: float, depth: float) -> None:
    """Round trees here and there along an edge."""
    spacing = height * 1.4
    table = sheet.random(256)
    cell = (sheet.x / spacing).floor()
    x = (sheet.x / spacing).frac() - 0.5
    there = of_cell(table, cell) < 0.35
    radius = height * (0.28 + 0.22 * of_cell(table, cell * 3 + 1))
    y = sheet.y - edge + radius * 0.7
    tree = sheet.cover(((x * spacing) ** 2 + y * y).sqrt() - radius) * there
    leaf = colour(sheet, 0.16, 0.36, 0.14) * (1.0 - 5 * y)
    sheet.over(tree, sheet.hazed((leaf * sheet.ambient).clamp(0, 1), depth))


def _mirror(sheet: Sheet, line: Tensor, ripple: float | Tensor, stretch: float = 1.0) -> Tensor:
    """The picture above a line as still water below it shows it."""
    below = (sheet.y - line).clamp(min=0)
    texture = sheet.texture(24, 8, 96, 96, octaves=3)
    wave = look_up(texture, sheet.x * 1.2, (below + 0.03).log() * 1.1 + 5) - 0.5
    source_y = line - below * stretch * 0.9 + wave * ripple * 4
    source_x = sheet.x + wave * ripple
    height, width = sheet.pixels.shape[2:]
    return look_up(sheet.pixels, source_x * height / width, source_y.clamp(0.0, 1.0))


def _water(sheet: Sheet, line: Tensor, *, calm: bool, deep: Tensor) -> None:
    """Water below a line: the sky mirrored, its own colour, waves that grow towards us, and the light's glitter."""
    below = (sheet.y - line).clamp(min=0)
    mirrored = _mirror(sheet, line, ripple=(0.012 if calm else 0.05))
    near = 1 / (below + 0.045)
    texture = sheet.texture(20, 14, 160, 160, octaves=4, gain=0.65)
    wave = look_up(texture, (sheet.x - 0.9) * near * 0.11 + 3, near * 0.30) - 0.5
    share = (0.25 if calm else 0.48) + 0.25 * below
    water = torch.lerp(mirrored, deep * (0.12 + 0.88 * sheet.ambient), share)
    water = torch.lerp(water, sheet.low.expand_as(water), smoothstep(0.08, 0.0, below) * 0.45)
    water = water * (1 + wave * (0.22 if calm else 0.75) * smoothstep(0.0, 0.1, below))
    if not calm:
        crest = smoothstep(0.17, 0.26, wave) * smoothstep(0.03, 0.2, below)
        water = torch.lerp(water, colour(sheet, 0.95, 0.98, 1.0) * (0.15 + 0.85 * sheet.ambient), crest * 0.55)
    path = torch.exp(-(((sheet.x - sheet.sun_x) / (0.05 + 0.25 * below)) ** 2))
    shining = torch.maximum(sheet.night * 0.8, (sheet.sun_y > line * 0.55).float())
    veiled = 1 - 0.6 * torch.maximum(torch.maximum(sheet.rain, sheet.snow), sheet.fog)
    glitter = path * smoothstep(-0.10, 0.15, wave) * shining * veiled
    water = torch.lerp(water, sheet.light.expand_as(water), glitter * 0.8)
    veil = 0.75 * sheet.fog * smoothstep(0.3, 0.0, below)
    water = torch.lerp(water, sheet.low.expand_as(water), veil)
    sheet.over(sheet.cover(line - sheet.y), water.clamp(0, 1))


def _sea(sheet: Sheet, line: Tensor) -> None:
    tone = sheet.rand()
    deep = torch.lerp(colour(sheet, 0.03, 0.20, 0.42), colour(sheet, 0.04, 0.42, 0.50), tone)
    _water(sheet, line, calm=False, deep=deep)


def _towers(sheet: Sheet, base: Tensor, spacing: float, tallest: float, depth: float) -> None:
    """A row of towers with rows of windows, many of them lit when it is dark."""
    table = sheet.random(512)
    at = sheet.x / spacing + sheet.rand()
    cell, inside = at.floor(), at.frac()
    tall = tallest * (0.35 + 0.65 * of_cell(table, cell) ** 1.6)
    margin = 0.02 + 0.10 * of_cell(table, cell * 3 + 1)
    half = 0.5 - margin
    # Some towers have a narrower top or a spire.
    top = base - tall
    step = (of_cell(table, cell * 13) < 0.45) * (sheet.y < top + tall * 0.18)
    half = half - 0.16 * step
    aside = (inside - 0.5).abs() - half
    body = torch.maximum(aside * spacing, top - sheet.y)
    spire = (of_cell(table, cell * 17 + 3) < 0.25) * (sheet.y > top - 0.07) * (sheet.y < top)
    body = torch.where(spire, (inside - 0.5).abs() * spacing - 0.0022, body)
    cover = sheet.cover(body) * (sheet.y < base + 0.05)
    hue, light = of_cell(table, cell * 5 + 2), of_cell(table, cell * 7 + 3)
    wall = torch.lerp(colour(sheet, 0.42, 0.50, 0.60), colour(sheet, 0.74, 0.64, 0.56), hue) * (0.65 + 0.5 * light)
    sun = torch.where(sheet.sun_x > sheet.x.mean(), 1.0, -1.0)
    wall = wall * (0.94 + 0.20 * (inside - 0.5) * sun * 2)
    sheet.over(cover, sheet.hazed((wall * sheet.ambient * (1 - 0.45 * sheet.night)).clamp(0, 1), depth))
    # Windows: cells of a grid; where a pane is smaller than a pixel and a half the grid would shimmer.
    columns = (3 + 3 * of_cell(table, cell * 11)).floor()
    u = (inside - margin) / (1 - 2 * margin) * columns
    v = (sheet.y - top) / 0.021
    pane = (u.frac() > 0.22) & (u.frac() < 0.80) & (v.frac() > 0.28) & (v.frac() < 0.78) & (v > 0.6)
    number = of_cell(table, cell * 31 + u.floor() * 7 + v.floor() * 13)
    dusk = (sheet.ambient[:, 1:2] < 0.75).float() * 0.20
    lit = (number < 0.46 * sheet.night + dusk * (1 - sheet.night)) & (aside < -0.04)
    glass = cover * pane * (aside < -0.04)
    sheet.over(glass * 0.45 * (1 - sheet.night) * (1 - depth), sheet.low * 0.8)
    warm = torch.lerp(colour(sheet, 1.0, 0.80, 0.42), colour(sheet, 0.85, 0.93, 1.0), (number * 7).frac() ** 2)
    sheet.over(glass * lit * (1 - 0.45 * depth) * (1 - 0.5 * sheet.fog), warm)


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

"""Scenes drawn; small pictures, since each promise holds at any size."""

from dataclasses import replace

import pytest
import torch
from training.t2i.drawing import TINTS, draw, draw_with_things
from training.t2i.scenes import COLOURS, GROUNDS, HOURS, STYLES, THINGS, WEATHERS, Scene

HEIGHT, WIDTH = 80, 144


def paint(*scenes, seed=0):
    return draw(scenes, torch.Generator().manual_seed(seed), height=HEIGHT, width=WIDTH)


def changed(scene, other):
    """Where two scenes differ that are drawn alike but for that, [h, w], and the first one's picture."""
    a, b = paint(scene), paint(other)
    return (a - b).abs().sum(1)[0] > 0.15, a[0]


def test_every_ground_hour_weather_thing_and_style_gives_a_whole_picture():
    scenes = [Scene(g, HOURS[i % 4], WEATHERS[i % 5], style=STYLES[i % 3]) for i, g in enumerate(GROUNDS)]
    scenes += [Scene(k.grounds[0], thing=t, colour="red", count=k.most) for t, k in THINGS.items()]
    pictures = paint(*scenes)
    assert pictures.shape == (len(scenes), 3, HEIGHT, WIDTH)
    assert pictures.isfinite().all()
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert (pictures.flatten(2).std(2).amax(1) > 0.03).all()  # none is one even colour


def test_the_same_seed_draws_the_same_picture_and_another_seed_another():
    scene = Scene("sea", "dawn", thing="boat", colour="blue", style="painting")
    assert torch.equal(paint(scene, seed=3), paint(scene, seed=3))
    assert not torch.allclose(paint(scene, seed=3), paint(scene, seed=4), atol=0.1)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_balloon_has_its_colour(colour):
    scene = Scene("sea", thing="balloon", colour=colour)
    other = replace(scene, colour="white" if colour != "white" else "blue")
    where, picture = changed(scene, other)
    seen = picture[:, where].median(1).values
    nearest = min(TINTS, key=lambda c: (seen - torch.tensor(TINTS[c])).norm().item())
    assert nearest == colour


@pytest.mark.parametrize("across", ["left", "middle", "right"])
def test_a_thing_stands_where_it_was_asked_for(across):
    scene = Scene("meadow", thing="car", colour="red", across=across)
    where, _ = changed(scene, replace(scene, colour="blue"))
    middle = where.nonzero()[:, 1].float().mean().item() / WIDTH
    assert {"left": middle < 0.38, "middle": 0.38 < middle < 0.62, "right": middle > 0.62}[across]


def test_high_is_above_low_and_large_is_larger_than_small():
    scene = Scene("hills", thing="bird", colour="red", high=True)
    rows = {}
    for name, s in {"high": scene, "low": replace(scene, high=False), "small": replace(scene, large=False)}.items():
        where, _ = changed(s, replace(s, colour="blue"))
        rows[name] = where.nonzero()[:, 0].float().mean().item(), where.sum().item()
    assert rows["high"][0] < rows["low"][0] - 0.1 * HEIGHT
    assert rows["small"][1] < 0.6 * rows["high"][1]


@pytest.mark.parametrize("ground", GROUNDS)
def test_night_is_darker_than_day_and_sunset_is_redder(ground):
    day, sunset, night = paint(Scene(ground, "day"), Scene(ground, "sunset"), Scene(ground, "night"))
    assert night.mean() < 0.7 * day.mean()
    warmth = [(p[0] - p[2]).mean().item() for p in (day, sunset)]
    assert warmth[1] > warmth[0] + 0.03


def test_a_picture_has_as_many_boats_as_were_asked_for():
    areas = []
    for count in (1, 3):
        scene = Scene("sea", thing="boat", colour="red", count=count)
        where, _ = changed(scene, replace(scene, colour="black"))
        columns = where.sum(0) > 1
        areas.append(int((columns[1:] & ~columns[:-1]).sum()))
    assert areas[0] == 1
    assert areas[1] >= 3


def test_where_things_are_is_told_with_the_picture():
    with_boats, without = (
        Scene("sea", thing=thing, colour="red" if thing else None, count=2 if thing else 1) for thing in ("boat", None)
    )
    generator = torch.Generator().manual_seed(0)
    pictures, covered = draw_with_things([with_boats, without], generator, height=HEIGHT, width=WIDTH)
    assert torch.equal(pictures, paint(with_boats, without))
    assert covered.shape == (2, 1, HEIGHT, WIDTH)
    assert not covered[1].any()
    assert 0.01 < covered[0].mean() < 0.3
    red = pictures[0, 0] - pictures[0, 1]
    assert red[covered[0, 0] > 0.9].mean() > red[covered[0, 0] == 0].mean() + 0.1

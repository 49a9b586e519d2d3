"""Drawing of scenes, tested on small images."""

from dataclasses import replace

import pytest
import torch
from training.t2i.drawing import TINTS, draw, draw_with_things
from training.t2i.scenes import COLOURS, GROUNDS, HOURS, STYLES, THINGS, WEATHERS, Scene

HEIGHT, WIDTH = 80, 144


def draw_small(*scenes, seed=0):
    return draw(scenes, torch.Generator().manual_seed(seed), height=HEIGHT, width=WIDTH)


def changed_pixels(scene, other):
    """Return a mask [h, w] of the pixels that differ between two scenes with the same seed, and the first image."""
    a, b = draw_small(scene), draw_small(other)
    return (a - b).abs().sum(1)[0] > 0.15, a[0]


def test_every_ground_hour_weather_thing_and_style_gives_valid_image():
    scenes = [Scene(g, HOURS[i % 4], WEATHERS[i % 5], style=STYLES[i % 3]) for i, g in enumerate(GROUNDS)]
    scenes += [Scene(k.grounds[0], thing=t, colour="red", count=k.most) for t, k in THINGS.items()]
    images = draw_small(*scenes)
    assert images.shape == (len(scenes), 3, HEIGHT, WIDTH)
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.flatten(2).std(2).amax(1) > 0.03).all()  # no image is a single colour


def test_same_seed_same_image_other_seed_other_image():
    scene = Scene("sea", "dawn", thing="boat", colour="blue", style="painting")
    assert torch.equal(draw_small(scene, seed=3), draw_small(scene, seed=3))
    assert not torch.allclose(draw_small(scene, seed=3), draw_small(scene, seed=4), atol=0.1)


@pytest.mark.parametrize("colour", COLOURS)
def test_balloon_has_requested_colour(colour):
    scene = Scene("sea", thing="balloon", colour=colour)
    other = replace(scene, colour="white" if colour != "white" else "blue")
    mask, image = changed_pixels(scene, other)
    median = image[:, mask].median(1).values
    nearest = min(TINTS, key=lambda c: (median - torch.tensor(TINTS[c])).norm().item())
    assert nearest == colour


@pytest.mark.parametrize("across", ["left", "middle", "right"])
def test_thing_is_at_requested_horizontal_position(across):
    scene = Scene("meadow", thing="car", colour="red", across=across)
    mask, _ = changed_pixels(scene, replace(scene, colour="blue"))
    middle = mask.nonzero()[:, 1].float().mean().item() / WIDTH
    assert {"left": middle < 0.38, "middle": 0.38 < middle < 0.62, "right": middle > 0.62}[across]


def test_high_thing_is_above_low_and_large_covers_more_than_small():
    scene = Scene("hills", thing="bird", colour="red", high=True)
    rows = {}
    for name, s in {"high": scene, "low": replace(scene, high=False), "small": replace(scene, large=False)}.items():
        mask, _ = changed_pixels(s, replace(s, colour="blue"))
        rows[name] = mask.nonzero()[:, 0].float().mean().item(), mask.sum().item()
    assert rows["high"][0] < rows["low"][0] - 0.1 * HEIGHT
    assert rows["small"][1] < 0.6 * rows["high"][1]


@pytest.mark.parametrize("ground", GROUNDS)
def test_night_is_darker_than_day_and_sunset_is_redder(ground):
    day, sunset, night = draw_small(Scene(ground, "day"), Scene(ground, "sunset"), Scene(ground, "night"))
    assert night.mean() < 0.7 * day.mean()
    warmth = [(p[0] - p[2]).mean().item() for p in (day, sunset)]
    assert warmth[1] > warmth[0] + 0.03


def test_image_has_requested_number_of_boats():
    areas = []
    for count in (1, 3):
        scene = Scene("sea", thing="boat", colour="red", count=count)
        mask, _ = changed_pixels(scene, replace(scene, colour="black"))
        columns = mask.sum(0) > 1
        areas.append(int((columns[1:] & ~columns[:-1]).sum()))
    assert areas[0] == 1
    assert areas[1] >= 3


def test_draw_with_things_returns_coverage_of_things():
    with_boats, without = (
        Scene("sea", thing=thing, colour="red" if thing else None, count=2 if thing else 1) for thing in ("boat", None)
    )
    generator = torch.Generator().manual_seed(0)
    images, covered = draw_with_things([with_boats, without], generator, height=HEIGHT, width=WIDTH)
    assert torch.equal(images, draw_small(with_boats, without))
    assert covered.shape == (2, 1, HEIGHT, WIDTH)
    assert not covered[1].any()
    assert 0.01 < covered[0].mean() < 0.3
    red = images[0, 0] - images[0, 1]
    assert red[covered[0, 0] > 0.9].mean() > red[covered[0, 0] == 0].mean() + 0.1

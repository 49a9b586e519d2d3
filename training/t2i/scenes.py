"""The pocket text-to-image model's world: which scenes there are, and which of them training never sees."""

import hashlib
import random
from dataclasses import dataclass

STYLES = ("photograph", "painting", "drawing")
HOURS = ("dawn", "day", "sunset", "night")
WEATHERS = ("clear", "cloudy", "rain", "snow", "fog")
GROUNDS = ("mountains", "hills", "desert", "sea", "beach", "forest", "meadow", "lake", "city", "aerial")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown")
LAND = ("mountains", "hills", "desert", "beach", "forest", "meadow")


@dataclass(frozen=True)
class Kind:
    """What is true of every thing of one name."""

    grounds: tuple[str, ...]
    natural: tuple[str, ...] = ()
    """Colours that it has when none is told; any, where this is empty."""
    flies: bool = False
    most: int = 1
    """How many of it may be in one picture."""


THINGS = {
    "balloon": Kind(GROUNDS, flies=True, most=3),
    "boat": Kind(("sea", "lake", "beach"), most=3),
    "rocket": Kind(GROUNDS, flies=True),
    "house": Kind(("mountains", "hills", "desert", "beach", "forest", "meadow", "lake"), most=2),
    "tree": Kind(("mountains", "hills", "desert", "beach", "meadow"), ("green", "green", "orange", "yellow"), most=3),
    "lighthouse": Kind(("sea", "beach", "hills"), ("red", "white", "blue")),
    "bird": Kind(GROUNDS, ("white", "black", "brown"), flies=True, most=3),
    "car": Kind((*LAND, "city"), most=2),
    "horse": Kind((*LAND, "city"), ("brown", "white", "black"), most=2),
    "astronaut": Kind((*LAND, "city"), ("white", "white", "orange"), most=2),
    "rider": Kind((*LAND, "city"), ("brown", "white", "black")),  # an astronaut who rides a horse
}


@dataclass(frozen=True)
class Scene:
    """One picture's contents. Without a thing there is no colour, no place and no size."""

    ground: str
    hour: str = "day"
    weather: str = "clear"
    thing: str | None = None
    colour: str | None = None
    across: str = "middle"
    """left, middle or right"""
    high: bool = False
    """In the upper sky; only what flies."""
    large: bool = True
    count: int = 1
    style: str = "photograph"

    @property
    def held_out(self) -> bool:
        """Whether training never sees this thing in this colour on this ground at this hour: one in ten."""
        if self.thing is None:
            return False
        name = "|".join((self.thing, self.colour or "", self.ground, self.hour))
        return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def any_scene(rng: random.Random, *, with_thing: bool | None = None) -> Scene:
    """One scene by lot, held out or not."""
    hour = rng.choices(HOURS, (2, 3, 3, 3))[0]
    weather = rng.choices(WEATHERS, (5, 2, 1, 1, 1))[0]
    style = rng.choices(STYLES, (5, 3, 2))[0]
    if with_thing is None:
        with_thing = rng.random() < 0.8
    if not with_thing:
        ground = rng.choice(GROUNDS)
        return Scene(ground, hour, _possible(weather, ground), style=style)
    thing = rng.choice(tuple(THINGS))
    kind = THINGS[thing]
    ground = rng.choice(kind.grounds)
    natural = rng.random() < 0.3
    colour = rng.choice(kind.natural if natural and kind.natural else COLOURS)
    return Scene(
        ground,
        hour,
        _possible(weather, ground),
        thing,
        colour,
        across=rng.choice(("left", "middle", "right")),
        high=kind.flies and rng.random() < 0.5,
        large=rng.random() < 0.7,
        count=rng.choices((1, 2, 3), (8, 1, 1))[0] if kind.most == 3 else rng.choices((1, kind.most), (8, 1))[0],
        style=style,
    )


def training_scene(rng: random.Random) -> Scene:
    """One scene by lot that is not held out."""
    while (scene := any_scene(rng)).held_out:
        pass
    return scene


def held_out_scenes(number: int, seed: int = 0) -> list[Scene]:
    """Scenes of `number` different held-out combinations, in clear and cloudy weather, one thing each."""
    rng, found = random.Random(seed), {}
    while len(found) < number:
        scene = any_scene(rng, with_thing=True)
        if scene.held_out and scene.count == 1 and scene.weather in ("clear", "cloudy"):
            found.setdefault((scene.thing, scene.colour, scene.ground, scene.hour), scene)
    return list(found.values())


def _possible(weather: str, ground: str) -> str:
    """No snow falls on the desert."""
    return "clear" if weather == "snow" and ground == "desert" else weather

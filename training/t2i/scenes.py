"""The scenes that the pocket text-to-image model is trained on, and the combinations held out for evaluation."""

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
    """Properties of one kind of thing, the main object of a scene."""

    grounds: tuple[str, ...]
    natural: tuple[str, ...] = ()
    """Colours of 30% of its scenes, if not empty; otherwise and in the others, any colour."""
    flies: bool = False
    most: int = 1
    """Maximum number in one image."""


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
    "rider": Kind((*LAND, "city"), ("brown", "white", "black")),  # an astronaut riding a horse
}


@dataclass(frozen=True)
class Scene:
    """The contents of one image. Colour, position, size and count only apply if there is a thing."""

    ground: str
    hour: str = "day"
    weather: str = "clear"
    thing: str | None = None
    colour: str | None = None
    across: str = "middle"
    """Horizontal position: left, middle or right."""
    high: bool = False
    """In the upper sky; only for flying things."""
    large: bool = True
    count: int = 1
    style: str = "photograph"

    @property
    def held_out(self) -> bool:
        """Whether this combination of thing, colour, ground and hour is excluded from training; about one in ten is."""
        if self.thing is None:
            return False
        name = "|".join((self.thing, self.colour or "", self.ground, self.hour))
        return hashlib.sha256(name.encode()).digest()[0] % 10 == 0


def random_scene(rng: random.Random, *, with_thing: bool | None = None) -> Scene:
    """Return a random scene, held out or not."""
    hour = rng.choices(HOURS, (2, 3, 3, 3))[0]
    weather = rng.choices(WEATHERS, (5, 2, 1, 1, 1))[0]
    style = rng.choices(STYLES, (5, 3, 2))[0]
    if with_thing is None:
        with_thing = rng.random() < 0.8
    if not with_thing:
        ground = rng.choice(GROUNDS)
        return Scene(ground, hour, _possible_weather(weather, ground), style=style)
    thing = rng.choice(tuple(THINGS))
    kind = THINGS[thing]
    ground = rng.choice(kind.grounds)
    natural = rng.random() < 0.3
    colour = rng.choice(kind.natural if natural and kind.natural else COLOURS)
    return Scene(
        ground,
        hour,
        _possible_weather(weather, ground),
        thing,
        colour,
        across=rng.choice(("left", "middle", "right")),
        high=kind.flies and rng.random() < 0.5,
        large=rng.random() < 0.7,
        count=rng.choices((1, 2, 3), (8, 1, 1))[0] if kind.most == 3 else rng.choices((1, kind.most), (8, 1))[0],
        style=style,
    )


def training_scene(rng: random.Random) -> Scene:
    """Return a random scene that is not held out."""
    while (scene := random_scene(rng)).held_out:
        pass
    return scene


def held_out_scenes(number: int, seed: int = 0) -> list[Scene]:
    """Return scenes of `number` different held-out combinations, in clear or cloudy weather, with one thing each."""
    rng, found = random.Random(seed), {}
    while len(found) < number:
        scene = random_scene(rng, with_thing=True)
        if scene.held_out and scene.count == 1 and scene.weather in ("clear", "cloudy"):
            found.setdefault((scene.thing, scene.colour, scene.ground, scene.hour), scene)
    return list(found.values())


def _possible_weather(weather: str, ground: str) -> str:
    """Return `weather`, or "clear" for snow in the desert."""
    return "clear" if weather == "snow" and ground == "desert" else weather

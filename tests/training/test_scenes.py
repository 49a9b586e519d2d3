"""The scenes that the text-to-image model is trained on."""

import random

from training.t2i.scenes import THINGS, Scene, any_scene, held_out_scenes, training_scene


def test_training_never_sees_a_held_out_combination():
    rng = random.Random(1)
    seen = {(s.thing, s.colour, s.ground, s.hour) for s in (training_scene(rng) for _ in range(4000))}
    held_out = {(s.thing, s.colour, s.ground, s.hour) for s in held_out_scenes(150)}
    assert len(held_out) == 150
    assert not seen & held_out


def test_what_is_held_out_is_about_a_tenth_and_never_changes():
    rng = random.Random(2)
    scenes = [any_scene(rng, with_thing=True) for _ in range(4000)]
    assert 0.07 < sum(s.held_out for s in scenes) / 4000 < 0.13
    # By name: were these to change, the figures of a model trained before would mean nothing.
    combinations = [(g, c) for g in THINGS["balloon"].grounds for c in ("red", "blue")]
    found = [f"{c} {g}" for g, c in combinations if Scene(g, "night", thing="balloon", colour=c).held_out]
    assert found == ["red hills", "blue forest", "blue city"]


def test_what_a_colour_weather_or_style_is_does_not_move_a_combination_into_training():
    scene = held_out_scenes(1)[0]
    same = Scene(scene.ground, scene.hour, "fog", scene.thing, scene.colour, across="left", count=2, style="drawing")
    assert same.held_out


def test_things_stand_only_where_they_can_be():
    rng = random.Random(3)
    for scene in (any_scene(rng) for _ in range(2000)):
        if scene.thing is None:
            assert scene.colour is None
            assert not scene.held_out
        else:
            assert scene.ground in THINGS[scene.thing].grounds
            assert scene.count <= THINGS[scene.thing].most
            assert THINGS[scene.thing].flies or not scene.high
        assert (scene.ground, scene.weather) != ("desert", "snow")

"""The scenes that the text-to-image model is trained on."""

import random

from training.t2i.scenes import THINGS, Scene, held_out_scenes, random_scene, training_scene


def test_training_scenes_exclude_held_out_combinations():
    rng = random.Random(1)
    trained = {(s.thing, s.colour, s.ground, s.hour) for s in (training_scene(rng) for _ in range(4000))}
    held_out = {(s.thing, s.colour, s.ground, s.hour) for s in held_out_scenes(150)}
    assert len(held_out) == 150
    assert not trained & held_out


def test_held_out_share_is_a_tenth_and_known_combinations_stay_held_out():
    rng = random.Random(2)
    scenes = [random_scene(rng, with_thing=True) for _ in range(4000)]
    assert 0.07 < sum(s.held_out for s in scenes) / 4000 < 0.13
    # If these changed, the figures of models trained before would be invalid.
    combinations = [(g, c) for g in THINGS["balloon"].grounds for c in ("red", "blue")]
    held_out = [f"{c} {g}" for g, c in combinations if Scene(g, "night", thing="balloon", colour=c).held_out]
    assert held_out == ["red hills", "blue forest", "blue city"]


def test_weather_position_count_and_style_do_not_affect_held_out():
    scene = held_out_scenes(1)[0]
    same = Scene(scene.ground, scene.hour, "fog", scene.thing, scene.colour, across="left", count=2, style="drawing")
    assert same.held_out


def test_random_scenes_have_valid_grounds_counts_and_weather():
    rng = random.Random(3)
    for scene in (random_scene(rng) for _ in range(2000)):
        if scene.thing is None:
            assert scene.colour is None
            assert not scene.held_out
        else:
            assert scene.ground in THINGS[scene.thing].grounds
            assert scene.count <= THINGS[scene.thing].most
            assert THINGS[scene.thing].flies or not scene.high
        assert (scene.ground, scene.weather) != ("desert", "snow")

"""The size of a video: as text, and by the shape of the image."""

import re

import pytest

from kinema.errors import InvalidRequest
from kinema.models.catalog import CATALOG, request_for
from kinema.models.video_size import expand_size, fitting_size, follow_image, parse_size

SVD, POCKET = (1024, 576), (288, 160)


@pytest.mark.parametrize(
    ("image", "svd", "pocket"),
    [
        ((4000, 2250), (1024, 576), (288, 160)),
        ((4000, 3000), (1024, 576), (288, 160)),
        ((1251, 1000), (1024, 576), (288, 160)),
        ((1250, 1000), (768, 768), (224, 224)),
        ((1000, 1000), (768, 768), (224, 224)),
        ((1000, 1250), (768, 768), (224, 224)),
        ((1000, 1251), (576, 1024), (160, 288)),
        ((3000, 4000), (576, 1024), (160, 288)),
        ((32, 9000), (576, 1024), (160, 288)),
    ],
)
def test_size_follows_the_shape_of_the_image(image, svd, pocket):
    assert fitting_size(image, SVD) == svd
    assert fitting_size(image, POCKET) == pocket


@pytest.mark.parametrize("image", [(16, 9), (9, 16), (1, 1)])
def test_model_of_another_shape_is_turned_and_a_square_one_is_not(image):
    upright = {(16, 9): (1024, 576), (9, 16): (576, 1024), (1, 1): (768, 768)}
    assert fitting_size(image, (576, 1024)) == upright[image]
    assert fitting_size(image, (512, 512)) == (512, 512)
    assert fitting_size(image, (640, 512)) == (640, 512)


@pytest.mark.parametrize("model", [(320, 192), (640, 480), (1280, 720), (512, 320), (2048, 64), (88, 64)])
def test_square_has_about_as_many_pixels_and_divides_as_the_model(model):
    side, other = fitting_size((1, 1), model)
    assert side == other
    assert 64 <= side <= 2048
    for unit in (8, 16, 32, 64):
        if model[0] % unit == model[1] % unit == 0:
            assert side % unit == 0
    assert 0.75 < side * side / (model[0] * model[1]) < 1.25


@pytest.mark.parametrize(
    ("value", "size"),
    [("576x1024", (576, 1024)), (" 288 × 160 ", (288, 160)), ("64X72", (64, 72)), ((64, 72), (64, 72))],
)
def test_size_is_text_or_a_pair(value, size):
    assert parse_size(value) == size
    assert expand_size({"size": value, "width": None, "fps": 7}) == {"width": size[0], "height": size[1], "fps": 7}


@pytest.mark.parametrize("value", ["576", "576*1024", "x", "", "-1x64", "64x64x64", "64.5x64", 64, (64,), (64, "72")])
def test_other_size_is_rejected_with_an_example(value):
    with pytest.raises(
        InvalidRequest, match=re.escape(f"size {value!r} is invalid; expected width x height")
    ) as caught:
        expand_size({"size": value})
    assert caught.value.param == "size"


@pytest.mark.parametrize("side", ["width", "height"])
def test_size_beside_a_side_is_rejected(side):
    with pytest.raises(InvalidRequest, match=rf"size '64x72' and {side} 64 are both set; remove one") as caught:
        expand_size({"size": "64x72", side: 64})
    assert caught.value.param == "size"


def test_given_side_is_kept_and_the_other_follows():
    portrait = (3000, 4000)
    request = request_for(model="pocket", seed=1, width=96)
    sized = follow_image(request, portrait, {"width": 96})
    assert (sized.width, sized.height) == (96, 288)
    assert follow_image(sized, portrait, {"width": 96, "height": 288}) is sized
    assert sized == request.changed(height=288)


def test_defaults_of_a_loaded_model_are_used():
    request = request_for(model="theirs", defaults={"width": 320, "height": 192}, seed=1)
    sized = follow_image(request, (1, 1), {"width": None}, {"width": 320, "height": 192})
    assert (sized.width, sized.height) == (256, 256)


@pytest.mark.parametrize("name", CATALOG)
def test_default_size_of_a_model_is_its_training_size(name):
    request = request_for(model=name)
    assert (request.width, request.height) == CATALOG[name].native_size

"""HEIC and AVIF: codec by content, orientation, colours, alpha, 10 bits, grids, sequences, damaged files."""

import io
import struct
import sys

import numpy as np
import pytest
from heif_files import BLUE, GREEN, RED, WHITE, heic, icc_box, mirror_box, nclx_box, rotation_box, size_box
from PIL import Image

from kinema.errors import InvalidImage
from kinema.media.colour_spaces import nclx_profile
from kinema.media.heif_structure import Nclx, heif_colours, heif_format
from kinema.media.image import ImageFacts, inspect_image, open_image


def avif(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "AVIF", **{"quality": 95, "speed": 10, **options})
    return buffer.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def quadrants(data):
    """Return the colours in the middle of the quadrants, in reading order."""
    image = open_image(data).rgb
    width, height = image.size
    return [image.getpixel((x, y)) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]


def assert_close(found, expected, most=6):
    assert np.abs(np.array(found, int) - np.array(expected, int)).max() <= most, found


@pytest.mark.parametrize("ten_bits", [False, True])
def test_heic_has_its_colours_in_8_and_10_bits(ten_bits):
    assert_close(quadrants(heic(ten_bits=ten_bits)), [RED, GREEN, BLUE, WHITE])
    assert inspect_image(heic(ten_bits=ten_bits)) == ImageFacts((64, 64))


def test_heic_is_opened_from_any_source_under_any_name(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(heic())
    hashes = {open_image(source).sha256 for source in (path, heic(), io.BytesIO(heic()), open_image(path).rgb)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ([rotation_box(1)], [GREEN, WHITE, RED, BLUE]),
        ([rotation_box(2)], [WHITE, BLUE, GREEN, RED]),
        ([mirror_box(0)], [BLUE, WHITE, RED, GREEN]),
        ([mirror_box(1)], [GREEN, RED, WHITE, BLUE]),
        ([rotation_box(1), mirror_box(1)], [WHITE, GREEN, BLUE, RED]),
    ],
)
def test_heic_orientation_is_applied_once(properties, expected):
    assert_close(quadrants(heic(*properties)), expected)
    # Phones repeat it in EXIF, which must not be applied again.
    assert_close(quadrants(heic(*properties, exif=exif(6).tobytes()[6:])), expected)


def test_heic_rotation_swaps_sides():
    assert inspect_image(heic(rotation_box(1), size=(128, 64), tiles=(2, 1))).size == (64, 128)


def test_heic_grid_is_cropped_to_its_size():
    opened = open_image(heic(size=(190, 100), tiles=(3, 2)))
    assert opened.rgb.size == (190, 100)
    assert_close([opened.rgb.getpixel(at) for at in ((16, 16), (144, 16), (16, 80), (176, 16))], [RED, RED, RED, GREEN])


def test_heic_alpha_is_composited_over_white():
    assert_close(quadrants(heic(alpha=True)), [WHITE, GREEN, WHITE, WHITE])


@pytest.mark.parametrize("colour", [nclx_box(6, 6), icc_box(nclx_profile(Nclx(6, 6)))])
def test_heic_colour_space_is_converted_to_srgb(colour):
    # The red of BT.601 is not that of sRGB.
    assert_close(quadrants(heic(colour))[0], (247, 36, 0), 8)
    assert_close(quadrants(heic(colour))[3], WHITE)


def test_avif_colour_space_without_a_profile_is_converted_to_srgb():
    plain = avif(Image.new("RGB", (64, 64), (200, 100, 50)))
    assert_close(open_image(plain).rgb.getpixel((9, 9)), (200, 100, 50))
    at = plain.index(b"nclx") + 4
    display_p3 = plain[:at] + struct.pack(">HH", 12, 13) + plain[at + 4 :]
    assert heif_colours(display_p3) == Nclx(12, 13)
    assert_close(open_image(display_p3).rgb.getpixel((9, 9)), (215, 93, 31))


def test_hdr_is_mapped_to_sdr_without_cutting_highlights():
    """1000 nits stay brighter than diffuse white of 203 nits, which is nearly white."""
    grey = avif(Image.fromarray(np.repeat(np.repeat(np.uint8([[20, 148, 191]]), 64, 0), 32, 1)).convert("RGB"))
    at = grey.index(b"nclx") + 4
    pq = open_image(grey[:at] + struct.pack(">HH", 9, 16) + grey[at + 4 :]).rgb
    dark, white, bright = (pq.getpixel((x, 32))[1] for x in (16, 48, 80))
    assert dark < 20
    assert 230 < white < bright


@pytest.mark.parametrize(
    ("nclx", "changed"), [((1, 13), False), ((2, 2), False), ((1, 1), False), ((12, 13), True), ((99, 13), False)]
)
def test_profile_is_made_only_where_colours_change(nclx, changed):
    assert (nclx_profile(Nclx(*nclx)) is not None) == changed


def test_avif_orientation_alpha_and_first_frame():
    image = Image.new("RGB", (64, 64), GREEN)
    image.paste(RED, (0, 0, 32, 32))
    assert_close(quadrants(avif(image, exif=exif(6))), [GREEN, RED, GREEN, GREEN])
    clear = image.copy()
    clear.putalpha(0)
    assert_close(quadrants(avif(clear)), [WHITE] * 4)
    animated = open_image(avif(image, save_all=True, append_images=[Image.new("RGB", (64, 64), BLUE)]))
    assert animated.warnings == ("the image data is animated; its first frame is used",)
    assert_close(animated.rgb.getpixel((8, 8)), RED)


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        ((b"heic", b"mif1"), "HEIF"),
        ((b"mif1", b"heix"), "HEIF"),
        ((b"mif1", b"miaf", b"avif"), "AVIF"),
        ((b"mif1",), "HEIF"),
        ((b"isom", b"avc1"), None),
        ((b"qt  ",), None),
    ],
)
def test_format_is_recognised_by_brands(brands, expected):
    assert heif_format(heic(brands=brands)) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (heic(brands=(b"avif", b"mif1")), "damaged or truncated"),
        (avif(Image.new("RGB", (64, 64))).replace(b"ftypavif", b"ftypheic"), "damaged or truncated"),
        (heic(brands=(b"isom", b"avc1")), "seems to be a video"),
        (heic(size=(48, 48)), "damaged or truncated"),  # smaller than its pixels
        (heic(size=(8, 8)), "minimum is 32×32"),
        (heic(size=(9000, 9000)), "81.0 megapixels; the maximum is 65; shrink it"),
        (heic(size=(32_000, 32_000)), "1024.0 megapixels"),
        (heic(size=(65_535, 65_535)), "megapixels"),
        (heic(size=(5000, 5000), tiles=(2, 2)), "damaged or truncated"),
        (b"\0\0\0\x18ftypheic", "damaged or truncated"),
        (heic().replace(b"hvc1", b"av01"), "damaged or truncated"),
    ],
)
def test_wrong_brands_sizes_and_codecs_are_rejected(data, message):
    with pytest.raises(InvalidImage, match=message):
        open_image(data)


def test_avif_over_40_megapixels_is_rejected_by_header():
    data = avif(Image.new("RGB", (64, 64)))
    large = data.replace(size_box(64, 64), size_box(9216, 6912))
    assert large != data
    with pytest.raises(InvalidImage, match=r"63\.7 megapixels; the maximum is 40 for AVIF \(other formats: 65\)"):
        open_image(large)


@pytest.mark.parametrize("data", [heic(alpha=True), heic(tiles=(2, 1), size=(128, 64)), avif(Image.new("L", (40, 40)))])
def test_every_truncation_is_rejected(data):
    for length in range(1, len(data), 7):
        with pytest.raises(InvalidImage):
            open_image(data[:length])


@pytest.mark.parametrize("data", [heic(nclx_box(9, 16), alpha=True), avif(Image.new("RGB", (64, 64)))])
def test_changed_bytes_give_an_image_or_invalid_image(data):
    random = np.random.default_rng(0)
    rejected = 0
    for _ in range(300):
        changed = bytearray(data)
        for at in random.integers(0, len(data), 3):
            changed[at] = random.integers(256)
        try:
            open_image(bytes(changed))
        except InvalidImage:
            rejected += 1
    assert rejected > 50


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pi_heif.as_plugin", None)
    with pytest.raises(InvalidImage, match=r"needs the package pi-heif; install it .*or export the photo as JPEG"):
        open_image(heic())
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    with pytest.raises(InvalidImage, match=r"Pillow was built without AVIF; .*or save the image as JPEG"):
        open_image(avif(Image.new("RGB", (64, 64))))


def test_opening_leaves_pillow_as_it_is():
    open_image(heic())
    assert "HEIF" not in Image.OPEN

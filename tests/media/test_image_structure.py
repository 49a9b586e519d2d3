"""What is refused by a file's structure, before its pixels cost anything."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from image_attacks import cut_jpeg, jpeg, large_webp, many_chunks, many_scans, many_segments, png, scans
from PIL import Image

from kinema.errors import InvalidImage
from kinema.media import image as still_module
from kinema.media.image import fit_encoded, fit_image, inspect_image, open_image


@pytest.fixture
def undecoded(monkeypatch):
    """Fails the test where pixels are decoded."""
    monkeypatch.setattr(still_module, "_loaded", lambda _: pytest.fail("the image was decoded"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(lambda: many_scans(100, 64, 64), "32 JPEG scans.*PNG", id="scans"),
        pytest.param(lambda: many_segments(2000), "1000 JPEG segments.*PNG", id="segments"),
        pytest.param(lambda: many_chunks(60_000), "50000 PNG chunks.*PNG", id="chunks"),
    ],
)
def test_more_parts_than_any_camera_writes_are_refused_undecoded(data, reason, undecoded):
    with pytest.raises(InvalidImage, match=reason):
        open_image(data())


def test_jpeg_of_691_bytes_that_claims_36_megapixels_is_refused_undecoded(undecoded):
    for options in ({}, {"progressive": True}):
        data = cut_jpeg(0.0005, width=6000, height=6000, flat=True, **options)
        assert len(data) < 1000
        with pytest.raises(InvalidImage, match=r"damaged or cut short.*pixels are missing"):
            open_image(data)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 2}], ids=str)
def test_jpeg_with_missing_pixels_before_its_end_marker_is_refused(kept, options):
    with pytest.raises(InvalidImage, match="damaged or cut short"):
        open_image(cut_jpeg(kept, **options))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_whole_jpegs_are_decoded_to_the_same_pixels_as_by_pillow_alone(progressive, subsampling):
    sizes, qualities = [(33, 47), (64, 48), (255, 257)], [5, 75, 95]
    for (width, height), quality, restart in itertools.product(sizes, qualities, [0, 3]):
        for flat in (False, True):
            data = jpeg(
                width, height, flat=flat, quality=quality, progressive=progressive, subsampling=subsampling,
                restart_marker_blocks=restart,
            )  # fmt: skip
            alone = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert np.array_equal(np.asarray(open_image(data).rgb), alone), (width, height, quality, restart, flat)


def test_what_follows_the_end_of_a_jpeg_is_ignored():
    data = jpeg()
    assert open_image(data + b"a trailer \xff\xda\xff\xd9 of a phone").sha256 == open_image(data).sha256


def test_progressive_jpegs_as_editors_write_them_have_room_to_spare():
    assert len(scans(jpeg(progressive=True))[1]) == 10


def test_png_with_fewer_rows_than_it_claims_is_refused():
    row = bytes(64 * 3)
    assert open_image(png(64, 64, [row] * 64)).rgb.size == (64, 64)
    with pytest.raises(InvalidImage, match="last rows are missing"):
        open_image(png(64, 64, [row] * 63))


def test_inspecting_gives_what_opening_would_know():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(900, 600, exif=exif)
    facts = inspect_image(data)
    assert facts.size == open_image(data).rgb.size == (600, 900)
    assert inspect_image(jpeg(900, 600, icc_profile=b"none")).warnings == (
        open_image(jpeg(900, 600, icc_profile=b"none")).warnings
    )
    for spoiled in (jpeg()[:900], b"", b"GIF89a"):
        with pytest.raises(InvalidImage):
            inspect_image(spoiled)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fitting_encoded_bytes_shows_what_the_engine_fits(fit):
    y, x = np.mgrid[0:800, 0:1200]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x * 255 // 1199, y * 255 // 799, (x + y) * 255 // 1998], -1).astype(np.uint8)).save(
        buffer, "JPEG", quality=95
    )
    seen = np.asarray(fit_encoded(buffer.getvalue(), 192, 128, fit)).astype(int)
    fitted = np.asarray(fit_image(open_image(buffer.getvalue()), 192, 128, fit)).astype(int)
    assert seen.shape == fitted.shape
    assert np.abs(seen - fitted).mean() < 2


def test_forty_megapixels_take_little_more_memory_than_their_pixels(tmp_path):
    (tmp_path / "a.webp").write_bytes(large_webp())
    script = (
        "import resource, sys; from kinema.media.image import open_image; open_image(sys.argv[1]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    # By way of a small process: a child's peak begins at its parent's size.
    run = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}, sys.argv[1]])",
    ]
    peak = int(subprocess.run([*run, tmp_path / "a.webp"], capture_output=True, text=True, check=True).stdout)
    assert peak < 600_000  # kilobytes; the decoder alone has three copies of 160 MB

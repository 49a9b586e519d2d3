"""Images that are rejected by their structure before their pixels are decoded."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from image_attacks import cut_jpeg, jpeg, large_webp, many_chunks, many_scans, many_segments, png, scans
from PIL import Image

from kinema.errors import InvalidImage
from kinema.media import image as image_module
from kinema.media.image import fit_encoded, fit_image, inspect_image, open_image


@pytest.fixture
def no_decoding(monkeypatch):
    """Fail the test if pixels are decoded."""
    monkeypatch.setattr(image_module, "_load_pixels", lambda _: pytest.fail("the image was decoded"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(lambda: many_scans(100, 64, 64), "32 JPEG scans.*PNG", id="scans"),
        pytest.param(lambda: many_segments(2000), "1000 JPEG segments.*PNG", id="segments"),
        pytest.param(lambda: many_chunks(60_000), "50000 PNG chunks.*PNG", id="chunks"),
    ],
)
def test_too_many_scans_segments_or_chunks_are_rejected_before_decoding(data, reason, no_decoding):
    with pytest.raises(InvalidImage, match=reason):
        open_image(data())


def test_jpeg_of_691_bytes_with_36_megapixels_is_rejected_before_decoding(no_decoding):
    for options in ({}, {"progressive": True}):
        data = cut_jpeg(0.0005, width=6000, height=6000, flat=True, **options)
        assert len(data) < 1000
        with pytest.raises(InvalidImage, match=r"damaged or truncated.*pixels are missing"):
            open_image(data)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 2}], ids=str)
def test_jpeg_with_missing_pixels_before_end_marker_is_rejected(fraction, options):
    with pytest.raises(InvalidImage, match="damaged or truncated"):
        open_image(cut_jpeg(fraction, **options))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_complete_jpeg_gives_same_pixels_as_pillow(progressive, subsampling):
    sizes, qualities = [(33, 47), (64, 48), (255, 257)], [5, 75, 95]
    for (width, height), quality, restart in itertools.product(sizes, qualities, [0, 3]):
        for flat in (False, True):
            data = jpeg(
                width, height, flat=flat, quality=quality, progressive=progressive, subsampling=subsampling,
                restart_marker_blocks=restart,
            )  # fmt: skip
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert np.array_equal(np.asarray(open_image(data).rgb), expected), (width, height, quality, restart, flat)


def test_data_after_end_of_jpeg_are_ignored():
    data = jpeg()
    assert open_image(data + b"a trailer \xff\xda\xff\xd9 of a phone").sha256 == open_image(data).sha256


def test_usual_progressive_jpeg_has_ten_scans():
    assert len(scans(jpeg(progressive=True))[1]) == 10


def test_png_with_missing_rows_is_rejected():
    row = bytes(64 * 3)
    assert open_image(png(64, 64, [row] * 64)).rgb.size == (64, 64)
    with pytest.raises(InvalidImage, match="last rows are missing"):
        open_image(png(64, 64, [row] * 63))


def test_inspect_image_gives_same_facts_as_open_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(900, 600, exif=exif)
    facts = inspect_image(data)
    assert facts.size == open_image(data).rgb.size == (600, 900)
    assert inspect_image(jpeg(900, 600, icc_profile=b"none")).warnings == (
        open_image(jpeg(900, 600, icc_profile=b"none")).warnings
    )
    for damaged in (jpeg()[:900], b"", b"GIF89a"):
        with pytest.raises(InvalidImage):
            inspect_image(damaged)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fit_encoded_is_close_to_fit_image(fit):
    y, x = np.mgrid[0:800, 0:1200]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x * 255 // 1199, y * 255 // 799, (x + y) * 255 // 1998], -1).astype(np.uint8)).save(
        buffer, "JPEG", quality=95
    )
    preview = np.asarray(fit_encoded(buffer.getvalue(), 192, 128, fit)).astype(int)
    fitted = np.asarray(fit_image(open_image(buffer.getvalue()), 192, 128, fit)).astype(int)
    assert preview.shape == fitted.shape
    assert np.abs(preview - fitted).mean() < 2


def test_forty_megapixel_webp_is_decoded_within_600_mb(tmp_path):
    (tmp_path / "a.webp").write_bytes(large_webp())
    script = (
        "import resource, sys; from kinema.media.image import open_image; open_image(sys.argv[1]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    # Through a small process: the peak of a child starts at the size of its parent.
    run = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}, sys.argv[1]])",
    ]
    peak = int(subprocess.run([*run, tmp_path / "a.webp"], capture_output=True, text=True, check=True).stdout)
    assert peak < 600_000  # kilobytes; the decoder alone needs three copies of 160 MB

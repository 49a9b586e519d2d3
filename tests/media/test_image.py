import hashlib
import io
import struct
import threading
import time
import warnings
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from kinema.errors import InvalidImage, InvalidRequest
from kinema.media import fetch
from kinema.media.image import EncodedImage, crop_box, fit_image, fit_warnings, inspect_image, open_image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def gradient(width=64, height=48):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) % 256], axis=-1).astype(np.uint8)


def png(width, height, *, depth=8, kind=2, rows=(b"",)):
    """Return a PNG that Pillow can't write."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Supported images


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_format_is_detected_by_content_and_name_is_file_stem(tmp_path, kind, extension):
    path = tmp_path / f"rocket.{extension}.txt"
    path.write_bytes(encoded(Image.fromarray(gradient()), kind, quality=95))
    image = open_image(path)
    assert (image.rgb.mode, image.rgb.size, image.name, image.warnings) == ("RGB", (64, 48), f"rocket.{extension}", ())
    assert np.abs(np.asarray(image.rgb).astype(int) - gradient()).mean() < 6


def test_path_bytes_image_and_array_give_same_hash(tmp_path):
    data = encoded(Image.fromarray(gradient()))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    sources = [path, str(path), data, bytearray(data), memoryview(data), Image.fromarray(gradient()), gradient()]
    assert len({open_image(source).sha256 for source in sources}) == 1


def test_hash_covers_size_and_pixels():
    pixels = gradient()
    assert open_image(pixels).sha256 == hashlib.sha256(b"64x48:" + pixels.tobytes()).hexdigest()


def test_later_change_of_source_image_has_no_effect():
    source = Image.fromarray(gradient())
    image = open_image(source)
    source.paste("red", (0, 0, 64, 48))
    assert np.array_equal(np.asarray(image.rgb), gradient())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = Image.new("RGB", (64, 48), "black")
    upright.paste("white", (0, 0, 32, 24))  # the white corner is at the top left
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(encoded(stored, kind, exif=exif, quality=95))
    assert image.rgb.size == (64, 48)
    corners = [image.rgb.getpixel(at)[0] > 128 for at in [(5, 5), (58, 5), (5, 42), (58, 42)]]
    assert corners == [True, False, False, False]


def test_exif_is_removed():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    image = open_image(encoded(Image.fromarray(gradient()), "JPEG", exif=exif))
    assert open_image(image.rgb).sha256 == image.sha256
    assert not Image.open(io.BytesIO(encoded(image.rgb))).getexif()


def test_damaged_exif_gives_warning():
    image = open_image(encoded(Image.fromarray(gradient()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"))
    assert image.rgb.size == (64, 48)
    assert "EXIF" in image.warnings[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_white(mode):
    image = Image.new(mode, (40, 40), (0,) * len(mode))
    assert open_image(encoded(image)).rgb.getpixel((20, 20)) == (255, 255, 255)
    half = Image.new(mode, (40, 40), (*(0,) * (len(mode) - 1), 128))
    assert open_image(encoded(half)).rgb.getpixel((20, 20)) == pytest.approx((127,) * 3, abs=1)


def test_palette_transparency_is_composited_over_white():
    image = Image.new("P", (40, 40), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 20, 40))
    image = open_image(encoded(image, transparency=0))
    assert image.rgb.getpixel((5, 5)) == (200, 100, 50)
    assert image.rgb.getpixel((35, 5)) == (255, 255, 255)


def test_transparent_rgb_colour_is_composited_over_white():
    image = open_image(encoded(Image.new("RGB", (40, 40), (1, 2, 3)), transparency=(1, 2, 3)))
    assert image.rgb.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_converted_to_rgb(mode):
    red = Image.new("RGB", (40, 40), "white").convert(mode)
    assert open_image(red).rgb.getpixel((9, 9)) == (255, 255, 255)


def test_cmyk_jpeg_is_converted_to_rgb():
    cyan = Image.new("CMYK", (40, 40), (255, 0, 0, 0))
    assert open_image(encoded(cyan, "JPEG", quality=95)).rgb.getpixel((9, 9)) == pytest.approx((0, 255, 255), abs=3)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64).astype(">u2")
    image = open_image(png(64, 40, depth=16, kind=0, rows=[ramp.tobytes()] * 40))
    assert np.array_equal(np.asarray(image.rgb)[0, :, 0], np.round(ramp / 257).astype(np.uint8))


def test_sixteen_bit_colour_is_scaled():
    pixel = struct.pack(">HHH", 65535, 32896, 0)
    image = open_image(png(40, 40, depth=16, rows=[pixel * 40] * 40))
    assert image.rgb.getpixel((3, 3)) == (255, 128, 0)


def test_colour_profile_is_applied():
    """A renamed sRGB profile with red and blue swapped: red pixels become blue."""
    profile = bytearray(
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"s\0R\0G\0B", b"x\0R\0G\0B")
    )
    entries = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(profile[131])}
    profile = profile.replace(b"sRGB", b"xRGB")
    red, blue = (slice(entries[name] + 4, entries[name] + 12) for name in (b"rXYZ", b"bXYZ"))
    profile[red], profile[blue] = profile[blue], profile[red]
    image = open_image(encoded(Image.new("RGB", (40, 40), (255, 0, 0)), icc_profile=bytes(profile)))
    assert image.rgb.getpixel((9, 9)) == pytest.approx((0, 0, 255), abs=2)


def test_srgb_profile_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = open_image(encoded(Image.fromarray(gradient()), icc_profile=profile))
    assert np.array_equal(np.asarray(image.rgb), gradient())


def test_damaged_profile_is_ignored_with_a_warning():
    image = open_image(encoded(Image.fromarray(gradient()), icc_profile=b"no profile"))
    assert np.array_equal(np.asarray(image.rgb), gradient())
    assert "profile" in image.warnings[0]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animation_gives_first_frame_and_warning(kind):
    first, second = Image.new("RGB", (40, 40), "white"), Image.new("RGB", (40, 40), "black")
    image = open_image(encoded(first, kind, save_all=True, append_images=[second], duration=100))
    assert image.rgb.getpixel((9, 9)) == (255, 255, 255)
    assert "first frame" in image.warnings[0]


def test_second_image_in_phone_jpeg_gives_no_warning():
    photo, depth = Image.fromarray(gradient()), Image.new("RGB", (64, 48), "black")
    image = open_image(encoded(photo, "MPO", save_all=True, append_images=[depth]))
    assert image.warnings == ()
    assert np.abs(np.asarray(image.rgb).astype(int) - gradient()).mean() < 20


@pytest.mark.parametrize(("shape", "alpha"), [((40, 50), None), ((40, 50, 3), None), ((40, 50, 4), 255)])
def test_grey_rgb_and_rgba_arrays_are_supported(shape, alpha):
    array = np.full(shape, 90, np.uint8)
    if alpha:
        array[..., 3] = alpha
    image = open_image(array)
    assert (image.rgb.size, image.rgb.getpixel((9, 9)), image.name) == ((50, 40), (90, 90, 90), None)


# Rejected images


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.zeros((40, 40, 3), np.float32), "255"),
        (np.zeros((40, 40, 3), np.uint16), "257"),
        (np.zeros((40, 40, 3), bool), "uint8"),
        (np.zeros((3, 40, 40), np.uint8), "transpose"),
        (np.zeros((1, 40, 40, 3), np.uint8), r"array\[0\]"),
        (np.zeros((40, 40, 1), np.uint8), r"array\[:, :, 0\]"),
        (np.zeros((40, 40, 7), np.uint8), "3 or 4"),
        (np.zeros((0, 40, 3), np.uint8), "no pixels"),
        (np.zeros(40, np.uint8), "height, width"),
    ],
)
def test_unsupported_array_is_rejected_with_expression_to_use(array, remedy):
    with pytest.raises(InvalidImage, match=remedy):
        open_image(array)


@pytest.mark.parametrize("source", [None, 7, {"a.png"}, object()])
def test_unsupported_type_is_rejected(source):
    with pytest.raises(InvalidImage, match="use a path"):
        open_image(source)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encoded(Image.new("RGB", (40, 40)), "GIF"), "GIF.*PNG"),
        (encoded(Image.new("RGB", (40, 40)), "BMP"), "BMP.*PNG"),
        (encoded(Image.new("RGB", (40, 40)), "TIFF"), "TIFF.*PNG"),
        (encoded(Image.new("RGB", (40, 40)), "PDF"), "PDF.*PNG"),
        (encoded(Image.new("RGB", (40, 40)), "JPEG2000"), "JPEG 2000.*PNG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(64), "video.*PNG"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG.*PNG"),
        (b"\n<!DOCTYPE html><title>Rocket</title>", "web page"),
        (b"just some text", "JPEG, PNG, WebP, HEIC or AVIF"),
    ],
)
def test_unsupported_format_is_named_with_remedy(tmp_path, data, kind):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(InvalidImage, match=rf"photo\.jpg.*{kind}"):
        open_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.9])
def test_truncated_file_is_rejected(tmp_path, kind, fraction):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "cut.png"
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(InvalidImage, match=r"cut\.png is damaged or truncated.*again"):
        open_image(path)


def test_damaged_png_is_rejected():
    data = bytearray(encoded(Image.fromarray(gradient())))
    data[len(data) // 2] ^= 0x55
    with pytest.raises(InvalidImage, match="damaged"):
        open_image(bytes(data))


def test_missing_file_folder_and_empty_file_have_different_errors(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    for path, message in [
        (tmp_path / "none.png", "not found"),
        (tmp_path, "folder"),
        (empty, "empty"),
        (tmp_path / ("x" * 300), "can't be read"),
        (tmp_path / "a\0b.png", "not found"),
        ("/dev/null", "regular file"),
    ]:
        with pytest.raises(InvalidImage, match=message):
            open_image(path)
    with pytest.raises(InvalidImage, match="empty"):
        open_image(b"")


@pytest.mark.parametrize("size", [(10_000, 6501), (20_000, 20_000), (60_000, 60_000)])
def test_more_than_65_megapixels_are_rejected_by_header(size):
    bomb = png(*size)  # only the header has the size, there are no pixels
    with pytest.raises(InvalidImage, match=r"megapixels.*shrink"):
        open_image(bomb)


def test_40_megapixels_are_opened_at_full_size():
    assert open_image(Image.new("L", (8000, 5000))).rgb.size == (8000, 5000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", None])
def test_more_than_40_megapixels_are_opened_at_half_size(kind):
    image = Image.new("L", (7001, 5801), 90)
    image.paste(200, (0, 0, 3500, 2900))
    opened = open_image(image if kind is None else encoded(image, kind))
    assert opened.rgb.size == (3501, 2901)
    for at, grey in (((900, 700), 200), ((2600, 2100), 90), ((3500, 2900), 90)):
        assert all(abs(value - grey) <= 1 for value in opened.rgb.getpixel(at))


def test_photo_of_a_64_megapixel_camera_is_accepted():
    photo = encoded(Image.new("L", (9248, 6944), 90), "JPEG")
    assert inspect_image(photo).size == (9248, 6944)
    assert open_image(photo).rgb.size == (4624, 3472)


def test_webp_over_40_megapixels_is_rejected_by_header():
    # A lossless WebP's header: width and height less one, in 14 bits each.
    frame = b"\x2f" + struct.pack("<I", 9999 | 5999 << 14) + bytes(11)
    riff = b"WEBPVP8L" + struct.pack("<I", len(frame)) + frame
    with pytest.raises(InvalidImage, match=r"60\.0 megapixels; the maximum is 40 for WebP \(other formats: 65\)"):
        open_image(b"RIFF" + struct.pack("<I", len(riff)) + riff)


def test_file_over_100_mb_is_rejected(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(100_000_001)
    with pytest.raises(InvalidImage, match=r"MB.*shrink"):
        open_image(path)


@pytest.mark.parametrize("size", [(31, 400), (400, 31)])
def test_side_under_32_pixels_is_rejected(size):
    with pytest.raises(InvalidImage, match="minimum is 32×32"):
        open_image(encoded(Image.new("RGB", size)))


def test_floating_point_image_is_rejected():
    with pytest.raises(InvalidImage, match="0–255"):
        open_image(Image.new("F", (40, 40)))


# URLs


PHOTO = encoded(Image.fromarray(gradient()))


class Host(BaseHTTPRequestHandler):
    """A host with a photo and several invalid responses."""

    RESPONSES: ClassVar = {
        "/a%20photo.png": (200, PHOTO, {}),
        "/hop": (302, b"", {"Location": "/a%20photo.png?token=secret"}),
        "/loop": (302, b"", {"Location": "/loop"}),
        "/to-file": (302, b"", {"Location": "file:///etc/passwd"}),
        "/page": (200, b"<!doctype html><p>a page about the photo", {}),
        "/private": (403, b"", {}),
        "/large": (200, b"", {"Content-Length": "20000001"}),
        "/cut": (200, PHOTO[:100], {"Content-Length": str(len(PHOTO))}),
    }
    STREAMS: ClassVar = {"/endless": (bytes(1_000_000), 25, 0), "/drip": (b"x", 100, 0.05)}  # chunk, count, pause

    def do_GET(self):
        page = self.path.partition("?")[0]
        if page in self.STREAMS:
            chunk, count, pause = self.STREAMS[page]
            self.send_response(200)
            self.end_headers()
            for _ in range(count):
                self.wfile.write(chunk)
                time.sleep(pause)
        else:
            status, body, headers = self.RESPONSES.get(page, (404, b"", {}))
            self.respond(status, body, headers)

    def respond(self, status, body, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the client closed the connection
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("page", ["/a%20photo.png", "/hop"])
def test_url_is_downloaded(host, page):
    image = open_image(host + page)
    assert np.array_equal(np.asarray(image.rgb), gradient())


def test_name_of_downloaded_image_is_safe(host):
    assert open_image(host + "/a%20photo.png").name == "a-photo"


def test_url_is_downloaded_inside_running_event_loop(host):
    import asyncio

    async def cell():
        return open_image(host + "/a%20photo.png")

    assert asyncio.run(cell()).rgb.size == (64, 48)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("/none", "404.*check the URL"),
        ("/private", "403.*browser"),
        ("/loop", "redirects more than 5 times"),
        ("/to-file", "only http"),
        ("/page", "web page; download the image itself, or use its URL"),
        ("/large", "larger than 20 MB"),
        ("/endless", "larger than 20 MB"),
        ("/cut", "can't be reached"),
    ],
)
def test_failed_download_gives_reason(host, page, message):
    with pytest.raises(InvalidImage, match=message) as error:
        open_image(host + page)
    assert ("can't be reached" in str(error.value)) == (page == "/cut")


def test_slow_response_ends_at_timeout(host, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(InvalidImage, match=r"within 0\.2 seconds"):
        open_image(host + "/drip")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("url", ["ftp://host/a.png", "file:///etc/passwd", "data:image/png;base64,AAAA", "http://"])
def test_other_url_schemes_are_rejected(url):
    with pytest.raises(InvalidImage, match=r"only http:// and https://"):
        open_image(url)


def test_unreachable_host_is_reported():
    with pytest.raises(InvalidImage, match="can't be reached"):
        open_image("http://127.0.0.1:1/a.png")


def test_error_message_has_no_secrets_of_url(host):
    url = host.replace("http://", "http://name:word@") + "/none?token=secret"
    with pytest.raises(InvalidImage) as error:
        open_image(url)
    assert not any(secret in str(error.value) for secret in ["name", "word", "secret"])


def test_url_is_rejected_without_allow_urls(host):
    with pytest.raises(InvalidImage, match="URLs are not allowed"):
        open_image(host + "/a%20photo.png", allow_urls=False)


# Fitting


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        ((100, 100), (64, 64), (0, 0, 100, 100)),
        ((200, 100), (64, 64), (50, 0, 150, 100)),
        ((100, 200), (64, 64), (0, 50, 100, 150)),
        ((1000, 1000), (1024, 576), (0, 219, 1000, 781)),
        ((10000, 32), (64, 2048), (4999, 0, 5000, 32)),
    ],
)
def test_crop_box_is_largest_centred_box(size, target, box):
    assert crop_box(size, *target) == box


def test_crop_box_moves_from_one_end_to_the_other():
    boxes = [crop_box((201, 100), 64, 64, position) for position in (0, 0.25, 1)]
    assert boxes == [(0, 0, 100, 100), (25, 0, 125, 100), (101, 0, 201, 100)]
    assert crop_box((100, 200), 64, 64, 1) == (0, 100, 100, 200)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(64, 48), (300, 40), (40, 300), (96, 64)])
def test_fit_gives_exact_size_in_rgb(fit, size):
    fitted = fit_image(open_image(gradient(*size)), 96, 64, fit)
    assert (fitted.size, fitted.mode) == ((96, 64), "RGB")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fit_of_same_size_changes_no_pixel(fit):
    assert np.array_equal(np.asarray(fit_image(open_image(gradient(96, 64)), 96, 64, fit)), gradient(96, 64))


def test_image_is_fitted_once_for_the_same_arguments():
    image = open_image(gradient(300, 40))
    first = fit_image(image, 96, 64)
    assert fit_image(image, 96, 64) is first
    assert fit_image(image, 96, 64, "pad") is not first
    assert fit_image(image, 96, 64) is not first  # only the latest is kept


def test_fit_crops_pads_or_stretches():
    squares = np.zeros((64, 192, 3), np.uint8)  # red, green and blue squares side by side
    squares[:, :64, 0] = squares[:, 64:128, 1] = squares[:, 128:, 2] = 255
    image = open_image(squares)
    cropped, padded, stretched = (np.asarray(fit_image(image, 96, 96, fit)) for fit in ("crop", "pad", "stretch"))
    assert (cropped[:, 8:-8] == (0, 255, 0)).all()
    assert (np.asarray(fit_image(image, 96, 96, "crop", 1))[:, 8:] == (0, 0, 255)).all()
    assert (padded[:31] == 0).all()
    assert (padded[65:] == 0).all()
    assert tuple(padded[48, 4]) == (255, 0, 0)
    assert tuple(stretched[2, 4]) == (255, 0, 0)
    assert tuple(stretched[-3, -4]) == (0, 0, 255)


def test_unknown_fit_is_rejected():
    with pytest.raises(InvalidRequest, match="crop, pad or stretch"):
        fit_image(open_image(gradient()), 64, 64, "zoom")


def test_fit_warnings_for_enlarged_and_heavily_cropped_images():
    assert fit_warnings((96, 64), 96, 64) == []
    (enlarged,) = fit_warnings((96, 64), 192, 128)
    assert "enlarged 2 times" in enlarged
    (cut,) = fit_warnings((100, 300), 96, 64)
    assert "22%" in cut
    assert fit_warnings((100, 300), 96, 64, "pad") == []


def test_open_image_does_not_change_warning_filters():
    before = list(warnings.filters)
    open_image(encoded(Image.fromarray(gradient())))
    assert warnings.filters == before


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_size_of_the_header_is_that_of_the_decoded_image(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.new("RGB", (64, 40)).save(file, kind, exif=exif)
    encoded = EncodedImage(file.getvalue(), "a file", None)
    assert encoded.read_size() == encoded.decode().rgb.size


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\0\0\0\x18ftypheic"])
def test_invalid_header_has_no_size(data):
    with pytest.raises(InvalidImage):
        EncodedImage(data, "a file", None).read_size()

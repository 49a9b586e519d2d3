"""Image files that are expensive to decode for their size, or contain fewer pixels than they claim."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageFile

ImageFile.MAXBLOCK = 1 << 22  # Pillow needs this much to write noise as a progressive JPEG


def jpeg(width=96, height=64, *, flat=False, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.new("RGB", (width, height), (120, 90, 60)) if flat else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def scans(data):
    """Return a JPEG's data before its scans, and the scans."""
    starts, at = [], 2
    while data[at + 1] != 0xD9:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            end = at + length
            while data[end] != 0xFF or data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
                end += 1
            starts.append((at, end))
            length = end - at
        at += length
    return data[: starts[0][0]], [data[start:end] for start, end in starts]


def many_scans(count=1500, width=6000, height=6000):
    """Return a progressive JPEG of about 100 KB with many scans, each over all 36 megapixels."""
    plain = jpeg(width, height, flat=True, progressive=True)
    _, found = scans(plain)
    return plain[:-2] + found[-1] * count + b"\xff\xd9"


def cut_jpeg(fraction, *, width=96, height=64, **options):
    """Return a JPEG with only a part of its pixels, but with an end marker."""
    data = jpeg(width, height, **options)
    head, found = scans(data)
    start = len(head) + 2 + int.from_bytes(found[0][2:4], "big")
    return data[: start + int((len(data) - start) * fraction)].rstrip(b"\xff") + b"\xff\xd9"


def png(width, height, rows, *, between=b""):
    """Return a PNG of `rows` with any size in its header."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(name, body=b""):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def many_chunks(count=1_400_000):
    """Return a PNG of 64×64 pixels with 17 MB of empty chunks."""
    return png(64, 64, [bytes(64 * 3)] * 64, between=chunk(b"abCd") * count)


def many_segments(count=4_000_000):
    """Return a JPEG of 96×64 pixels with 16 MB of empty comments."""
    plain = jpeg()
    return plain[:2] + b"\xff\xfe\0\2" * count + plain[2:]


def large_webp(width=16000, height=2500):
    """Return a WebP of 1.6 KB with 40 megapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 20, 30)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def large_avif(width=8000, height=5000):
    """Return an AVIF of 40 megapixels with alpha."""
    buffer = io.BytesIO()
    Image.new("RGBA", (width, height), (10, 20, 30, 128)).save(buffer, "AVIF", speed=10)
    return buffer.getvalue()


def large_png(width=9248, height=6936):
    """Return a PNG of 64 megapixels with alpha."""
    buffer = io.BytesIO()
    Image.new("RGBA", (width, height), (10, 20, 30, 128)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def large_cmyk_jpeg(width=9248, height=6936):
    """Return a progressive JPEG of 64 megapixels in CMYK, the one that takes most memory."""
    buffer = io.BytesIO()
    Image.new("CMYK", (width, height), (10, 20, 30, 40)).save(buffer, "JPEG", progressive=True, subsampling=0)
    return buffer.getvalue()

"""Structure checks of JPEG and PNG files without decoding: find files that take very long, and truncated files."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from kinema.errors import InvalidImage
from kinema.messages import Message

# Pillow itself writes 10 scans, or 18 in CMYK. Each scan can touch every block of the image with only a few bytes.
MAX_SCANS = 32
# Segments before a JPEG's pixels; a colour profile of 16 MB has 255.
MAX_SEGMENTS = 1000
# A PNG of 100 MB in chunks of the usual 8 KB has 12,500.
MAX_CHUNKS = 50_000

_SCANS = Message("jpeg_scans", "JPEG scans")
_SEGMENTS = Message("jpeg_segments", "JPEG segments")
_CHUNKS = Message("png_chunks", "PNG chunks")

_SOF_SEQUENTIAL, _SOF_PROGRESSIVE = (0xC0, 0xC1), 0xC2
_SOF_ARITHMETIC = (0xC9, 0xCA)
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_BARE = frozenset([0x01, *range(0xD0, 0xD9)])  # markers without a length: TEM, RST0 to RST7, SOI
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_AFTER_SCAN = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
# Valid padding after any Huffman code. Without it, libjpeg waits for more bits than the last code has.
_PADDING = b"\xff\x00" * 8


@dataclass(frozen=True, slots=True)
class _FrameHeader:
    """A JPEG's frame header: marker, size, and (horizontal, vertical) sampling factors by component id."""

    marker: int
    width: int
    height: int
    sampling: dict[int, tuple[int, int]]


def check_jpeg(data: bytes, label: str) -> bytes:
    """Check a JPEG, and return the bytes to decode, changed so that the decoder detects missing pixels.

    libjpeg fills missing pixels before an end marker with grey, and Pillow ignores its warning. For a single scan, the
    end marker is therefore removed: the decoder then requests more data, and Pillow rejects a truncated file.

    Raises:
        InvalidImage: if it has too many scans or segments.
        ValueError: if data are missing; says which.
    """
    frame, scans, at = None, 0, 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            break
        marker, at = found[1][0], found.end()
        if marker == _EOI:
            single = frame is not None and frame.marker in _SOF_SEQUENTIAL and scans == 1
            return data[: found.start()] + _PADDING if single else data
        if marker in _BARE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        segment, at = data[at + 2 : at + length], at + max(length, 2)
        if marker in (*_SOF_SEQUENTIAL, _SOF_PROGRESSIVE, *_SOF_ARITHMETIC):
            frame = _parse_frame_header(marker, segment)
        elif marker == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise InvalidImage(_too_complex(label, _SCANS, MAX_SCANS))
            end = _AFTER_SCAN.search(data, at)
            stop = len(data) if end is None else end.start()
            if frame is not None and (stop - at) * 8 < _least_bits(frame, segment):
                raise ValueError("most of its pixels are missing")
            at = stop
    else:
        raise InvalidImage(_too_complex(label, _SEGMENTS, MAX_SEGMENTS))
    raise ValueError("its end is missing")


@dataclass(frozen=True, slots=True)
class PngStructure:
    """A PNG's header (IHDR), and the (start, stop) offsets of its compressed rows (IDAT)."""

    header: bytes
    pieces: tuple[tuple[int, int], ...]


def png_structure(data: bytes, label: str) -> PngStructure:
    """Read the chunk structure of a PNG.

    Raises:
        InvalidImage: if it has more than 50,000 chunks.
    """
    at, header = 8, b""
    pieces: list[tuple[int, int]] = []
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return PngStructure(header, tuple(pieces))
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            header = data[at + 8 : at + 21]
        elif kind == b"IDAT":
            pieces.append((at + 8, at + 8 + size))
        at += 12 + size
    raise InvalidImage(_too_complex(label, _CHUNKS, MAX_CHUNKS))


def check_png_rows(data: bytes, structure: PngStructure) -> None:
    """Check that a PNG has all rows of its header; Pillow leaves missing rows black.

    Raises:
        ValueError: if rows are missing.
    """
    if len(structure.header) == 13 and not _inflates_to(
        memoryview(data), structure.pieces, _png_bytes(structure.header)
    ):
        raise ValueError("its last rows are missing")


def _png_bytes(header: bytes) -> int:
    """Return the number of bytes of all rows of a PNG, each including its filter byte."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(kind, 1)
    passes = [(8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)] if interlaced else [(1, 1)]
    starts = [(0, 0), (4, 0), (0, 4), (2, 0), (0, 2), (1, 0), (0, 1)] if interlaced else [(0, 0)]
    total = 0
    for (across, down), (left, top) in zip(passes, starts, strict=True):
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _inflates_to(data: memoryview, pieces: tuple[tuple[int, int], ...], wanted: int) -> bool:
    """Return whether the compressed pieces contain at least `wanted` bytes; True if the stream is invalid."""
    inflate = zlib.decompressobj()
    try:
        for start, stop in pieces:
            rest: bytes | memoryview = data[start:stop]
            while rest and not inflate.eof and wanted > 0:
                wanted -= len(inflate.decompress(rest, 1 << 20))
                rest = inflate.unconsumed_tail
    except zlib.error:
        return True
    return wanted <= 0 or len(inflate.flush()) >= wanted


def _parse_frame_header(marker: int, segment: bytes) -> _FrameHeader:
    """Parse a frame header."""
    try:
        _, height, width, count = struct.unpack_from(">BHHB", segment)
        parts = [struct.unpack_from("BB", segment, 6 + 3 * i) for i in range(count)]
    except struct.error:
        raise ValueError("its frame header is truncated") from None
    if not parts:
        raise ValueError("its frame header has no components")
    return _FrameHeader(marker, width, height, {part: (max(1, s >> 4), max(1, s & 15)) for part, s in parts})


def _least_bits(frame: _FrameHeader, scan: bytes) -> int:
    """Return the minimum number of bits of a scan: one per Huffman code that every block needs."""
    if not scan or frame.marker in _SOF_ARITHMETIC:
        return 0
    parts = [frame.sampling.get(scan[1 + 2 * i], (1, 1)) for i in range(scan[0]) if 1 + 2 * i < len(scan)]
    first = scan[1 + 2 * scan[0]] if len(scan) > 1 + 2 * scan[0] else 0
    if frame.marker == _SOF_PROGRESSIVE and first > 0:  # AC coefficients: runs of blocks can have no codes
        return 0
    most_h = max(h for h, _ in frame.sampling.values())
    most_v = max(v for _, v in frame.sampling.values())
    if len(parts) == 1:
        h, v = parts[0]
        blocks = -(-frame.width * h // (8 * most_h)) * -(-frame.height * v // (8 * most_v))
    else:
        units = -(-frame.width // (8 * most_h)) * -(-frame.height // (8 * most_v))
        blocks = units * sum(h * v for h, v in parts)
    return blocks * (1 if frame.marker == _SOF_PROGRESSIVE else 2)


def _too_complex(label: str, parts: Message, most: int) -> Message:
    return Message(
        "image_too_complex",
        "{label} has more than {most} {parts}, so decoding could take very long; save the image again as PNG",
        label=label,
        most=most,
        parts=parts,
    )

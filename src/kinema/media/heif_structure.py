"""The structure of HEIC and AVIF files without decoding: format by content, completeness, coded colour space."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

# Brands of ISO/IEC 23008-12 (images in HEVC) and of the AV1 Image File Format.
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
# Any codec; the files of phones have one of the brands above beside it.
_HEIF_BRANDS = frozenset((b"mif1", b"msf1", b"mif2", b"msf2"))
MAX_BRANDS = 64
MAX_BOXES = 10_000


@dataclass(frozen=True, slots=True)
class Nclx:
    """A colour space by the code points of ITU-T H.273: colour primaries and transfer characteristics."""

    primaries: int
    transfer: int


def heif_format(data: bytes) -> Literal["HEIF", "AVIF"] | None:
    """Return Pillow's name of the format by the brands of the file; None if it is no HEIF image.

    The major brand comes first; if it names no codec, the first compatible brand that does.
    """
    if data[4:8] != b"ftyp":
        return None
    stop = min(struct.unpack_from(">I", data)[0], len(data), 16 + 4 * MAX_BRANDS)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, stop - 3, 4))]
    for brand in brands:
        if brand in _HEIC_BRANDS:
            return "HEIF"
        if brand in _AVIF_BRANDS:
            return "AVIF"
    return "HEIF" if _HEIF_BRANDS.intersection(brands) else None


def check_heif(data: bytes) -> None:
    """Check that the coded data (mdat) are complete; the decoder of HEIC ignores missing tiles.

    What follows them is not checked: some phones append data of their own.

    Raises:
        ValueError: if a part is missing.
    """
    at = 0
    for _ in range(MAX_BOXES):
        if at + 16 > len(data):
            return
        size, kind, large = struct.unpack_from(">I4sQ", data, at)
        size = large if size == 1 else size
        if kind == b"mdat" and at + size > len(data):
            raise ValueError("its end is missing")
        if size < 8:  # 0: up to the end of the file; others are damaged
            return
        at += size


def heif_colours(data: bytes) -> Nclx | None:
    """Return the coded colour space of a file's primary image; None if it has none or the structure is damaged."""
    try:
        view = memoryview(data)
        meta = next((body[4:] for kind, body in _boxes(view) if kind == b"meta"), None)
        if meta is None:
            return None
        for kind, body in _properties(meta):
            if kind == b"colr" and bytes(body[:4]) == b"nclx":
                return Nclx(*struct.unpack_from(">HH", body, 4))
    except (struct.error, IndexError):
        pass
    return None


def _properties(meta: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the properties of the primary item."""
    boxes = dict(_boxes(meta))
    if not boxes.keys() >= {b"pitm", b"iprp"}:
        return
    pitm = boxes[b"pitm"]
    primary = struct.unpack_from(">H" if pitm[0] == 0 else ">I", pitm, 4)[0]
    containers = list(_boxes(boxes[b"iprp"]))
    shared = [box for kind, body in containers if kind == b"ipco" for box in _boxes(body)]
    for kind, body in containers:
        if kind == b"ipma":
            for index in _associated(body, primary):
                if 1 <= index <= len(shared):
                    yield shared[index - 1]


def _associated(ipma: memoryview, item: int) -> list[int]:
    """Return the indices, from 1, of an item's properties."""
    version, wide = ipma[0], ipma[3] & 1
    (count,) = struct.unpack_from(">I", ipma, 4)
    at = 8
    for _ in range(min(count, MAX_BOXES)):
        (identifier,) = struct.unpack_from(">H" if version == 0 else ">I", ipma, at)
        at += 2 if version == 0 else 4
        entries, at = ipma[at], at + 1
        step = 2 if wide else 1
        if identifier == item:
            found = struct.unpack_from(f">{entries}{'H' if wide else 'B'}", ipma, at)
            return [index & (0x7FFF if wide else 0x7F) for index in found]  # the highest bit says "essential"
        at += entries * step
    return []


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind and body of each box; stop at the first damaged one."""
    at = 0
    for _ in range(MAX_BOXES):
        if at + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        start = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            start = 16
        size = size or len(data) - at  # 0: up to the end of the file
        if size < start or at + size > len(data):
            return
        yield kind, data[at + start : at + size]
        at += size

"""HEIC files of a few hundred bytes, put together from boxes around one image in HEVC.

The coded image was made for these tests with pillow-heif 1.8.1 (x265), from an image of 64×64 with four quadrants: red,
green, blue, white. Its alpha channel is 0 in the left half and 255 in the right one. A second one, for large grids, is
512×512 in one colour (200, 100, 50), in 10 bits.
"""

import base64
import struct

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

_CONFIGURATION = base64.b64decode(
    "AQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqSSmubgIa"
    "DAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQA=="
)
_CODED = base64.b64decode(
    "AAAAPygBrwY4Wvz9N/md7///yvXeh/vYOGwlf5cuX//Te7//+AS8sZj+OQoRv6ZYb//x9istQfzSJyJ+kvJdfrgVUA=="
)
_CONFIGURATION_10_BITS = base64.b64decode(
    "AQQIAAAAnbgAAAAAHvAA/P36+gAADwNgAAEAF0ABDAH//wQIAAADAJ24AAADAAAeugJAYQABAClCAQEECAAAAwCduAAAAwAAHqAggQTZbqSSmubgIaDA"
    "gAAADIAAAAMAhGIAAQAHRAHBcrAiQA=="
)
_CODED_10_BITS = base64.b64decode(
    "AAAAPigBrwY4Wvz9N/mSN///yx8eh/vfMmwlf5aaf//Tvz//+As4sZj+Op6xv6ajl//yCgBRQfzVNr/6WaXX3UZc"
)
_CONFIGURATION_ALPHA = base64.b64decode(
    "AQQIAAAAn/gAAAAAHvAA/Pz4+AAADwNgAAEAF0ABDAH//wQIAAADAJ/4AAADAAAeugJAYQABACZCAQEECAAAAwCf+AAAAwAAHsCCBBZbqSSmubAgAAAD"
    "AyAAAAMAIWIAAQAHRAHBcrAiQA=="
)
_CODED_ALPHA = base64.b64decode("AAAAGCgBrgxwdQXwv/CXEUur/qXwj6MVf4cjrA==")

_CONFIGURATION_FLAT = base64.b64decode(
    "AQQIAAAAnbgAAAAAWvAA/P36+gAADwNgAAEAF0ABDAH//wQIAAADAJ24AAADAABaugJAYQABACxCAQEECAAAAwCduAAAAwAAWqAEAgCATZbqSSmubgIa"
    "DAgAAAMAyAAAAwAIQGIAAQAHRAHBcrBiQA=="
)
_CODED_FLAT = base64.b64decode(
    "AAAAhSgBrwnEGkQNMLJIgCE5e8//31f//377ch+kjsdBzcr2kbNlRk5JVAACNAF2BhAAMOCrPq5rAALcAXYF8AAAAwAbEJMAXAEmAAADAAADAAuIhwAA"
    "AwAAAwAAAwAfEAAAAwAAAwAAAwCGgAAAAwAAAwAAKWAAAAMAAAMAAjYAAAMAAAMACsg="
)


def box(kind, *parts):
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind, *parts, version=0, flags=0):
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def size_box(width, height):
    return full_box(b"ispe", struct.pack(">II", width, height))


def nclx_box(primaries, transfer, matrix=6):
    return box(b"colr", b"nclx", struct.pack(">HHHB", primaries, transfer, matrix, 0x80))


def icc_box(profile):
    return box(b"colr", b"prof", profile)


def rotation_box(quarter_turns):
    """Return a rotation, anticlockwise."""
    return box(b"irot", bytes([quarter_turns]))


def mirror_box(axis):
    """Return a mirroring: 0 swaps top and bottom, 1 left and right."""
    return box(b"imir", bytes([axis]))


def heic(*properties, size=(64, 64), tiles=None, alpha=False, ten_bits=False, exif=None, brands=(b"heic", b"mif1")):
    """Return a HEIC file with extra properties of its primary image.

    With `tiles` (columns, rows), the image is a grid of the coded one, and `size` the size of the whole.
    """
    coded, configuration = (_CODED_10_BITS, _CONFIGURATION_10_BITS) if ten_bits else (_CODED, _CONFIGURATION)
    configuration_box = box(b"hvcC", configuration)
    # Items: type, data, properties.
    items = {1: (b"hvc1", coded, [configuration_box, size_box(*(size if tiles is None else (64, 64)))])}
    references, primary = [], 1
    if tiles is not None:
        columns, rows = tiles
        parts = range(10, 10 + columns * rows)
        items = {part: (b"hvc1", coded, [configuration_box, size_box(64, 64)]) for part in parts}
        items[1] = (b"grid", struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, *size), [size_box(*size)])
        references.append(box(b"dimg", struct.pack(f">HH{len(parts)}H", 1, len(parts), *parts)))
    items[primary][2].extend(properties)
    if alpha:
        kind = full_box(b"auxC", b"urn:mpeg:hevc:2015:auxid:1\0")
        items[3] = (b"hvc1", _CODED_ALPHA, [box(b"hvcC", _CONFIGURATION_ALPHA), size_box(64, 64), kind])
        references.append(box(b"auxl", struct.pack(">HHH", 3, 1, primary)))
    if exif is not None:
        items[4] = (b"Exif", struct.pack(">I", 0) + exif, [])
        references.append(box(b"cdsc", struct.pack(">HHH", 4, 1, primary)))
    return _file(items, references, primary, brands)


def large_heic(width=9216, height=6912):
    """Return a HEIC of 64 megapixels in 10 bits, as cameras make them: a grid of tiles of 512×512."""
    columns, rows = -(-width // 512), -(-height // 512)
    parts = range(10, 10 + columns * rows)
    tile = [box(b"hvcC", _CONFIGURATION_FLAT), size_box(512, 512)]
    grid = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, width, height)
    items = {1: (b"grid", grid, [size_box(width, height)])} | dict.fromkeys(parts, (b"hvc1", _CODED_FLAT, tile))
    references = [box(b"dimg", struct.pack(f">HH{len(parts)}H", 1, len(parts), *parts))]
    return _file(items, references, 1, (b"heic", b"mif1"))


def _file(items, references, primary, brands):
    shared = list(dict.fromkeys(part for _, _, parts in items.values() for part in parts))
    associations = b"".join(
        struct.pack(f">HB{len(parts)}B", item, len(parts), *(1 + shared.index(part) for part in parts))
        for item, (_, _, parts) in items.items()
    )
    entries = [
        full_box(b"infe", struct.pack(">HH4s", item, 0, kind), b"\0", version=2) for item, (kind, _, _) in items.items()
    ]
    head = box(b"ftyp", brands[0], bytes(4), *brands)

    def meta(start):
        places = b""
        for item, (_, data, _) in items.items():
            places += struct.pack(">HHHII", item, 0, 1, start, len(data))
            start += len(data)
        return full_box(
            b"meta",
            full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", struct.pack(">H", primary)),
            full_box(b"iloc", struct.pack(">BBH", 0x44, 0, len(items)), places),
            full_box(b"iinf", struct.pack(">H", len(items)), *entries),
            full_box(b"iref", *references) if references else b"",
            box(
                b"iprp",
                box(b"ipco", *shared),
                full_box(b"ipma", struct.pack(">I", len(items)), associations),
            ),
        )

    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", *(data for _, data, _ in items.values()))

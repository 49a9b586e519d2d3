"""ICC profiles for coded colour spaces (nclx), by which HEIC and AVIF files name theirs without a profile."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kinema.media.heif_structure import Nclx

    Array = np.ndarray[Any, np.dtype[np.float64]]

# ITU-T H.273, table 2: the chromaticities (x, y) of red, green and blue, all with white D65.
_PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # BT.709, sRGB
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),  # BT.601, 625 lines
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),  # BT.601, 525 lines
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),  # SMPTE 240M
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
# ITU-T H.273, table 3.
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_PQ, _HLG = 16, 18
_WHITE_D65 = (0.3127, 0.3290)
_WHITE_D50 = np.array([0.9642, 1.0, 0.8249])  # of the ICC profile connection space
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# BT.2408: diffuse white of HDR images.
_HDR_WHITE_NITS = 203
# From this value on, highlights of HDR images are compressed instead of cut.
_KNEE = 0.8
_CURVE_POINTS = 4096


def nclx_profile(nclx: Nclx) -> bytes | None:
    """Return an ICC profile (version 2, RGB) of a coded colour space; None if it is sRGB, unspecified or unknown.

    The camera curves BT.709 and BT.601 count as sRGB's, as in browsers. HDR images (PQ, HLG) are mapped to SDR.
    """
    special = nclx.transfer in {*_GAMMAS, _PQ, _HLG}
    primaries = _PRIMARIES.get(1 if nclx.primaries == 2 else nclx.primaries)
    if primaries is None or (primaries == _PRIMARIES[1] and not special):
        return None
    red, green, blue = _rgb_to_xyz_d50(primaries).T
    curve = _pack_curve(_linear(nclx.transfer, np.linspace(0, 1, _CURVE_POINTS)))
    tags = {
        b"desc": b"desc" + struct.pack(">4xI", 5) + b"nclx\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"CC0\0",
        b"wtpt": _pack_xyz(_WHITE_D50),
        b"rXYZ": _pack_xyz(red),
        b"gXYZ": _pack_xyz(green),
        b"bXYZ": _pack_xyz(blue),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    return _pack_profile(tags)


def _rgb_to_xyz_d50(primaries: tuple[tuple[float, float], ...]) -> Array:
    """Return the matrix from linear RGB with white D65 to XYZ, adapted to D50."""
    columns = np.array([_xyz(point) for point in primaries]).T
    white = _xyz(_WHITE_D65)
    to_xyz = columns * np.linalg.solve(columns, white)
    scale = (_BRADFORD @ _WHITE_D50) / (_BRADFORD @ white)
    adapted: Array = np.linalg.inv(_BRADFORD) @ (scale[:, None] * _BRADFORD) @ to_xyz
    return adapted


def _xyz(point: tuple[float, float]) -> Array:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _linear(transfer: int, coded: Array) -> Array:
    """Return linear light from 0 to 1 for coded values from 0 to 1."""
    if transfer in _GAMMAS:
        return coded ** _GAMMAS[transfer]
    if transfer == _PQ:  # SMPTE ST 2084
        root = coded ** (1 / 78.84375)
        nits = 10_000 * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        return _compress_highlights(nits / _HDR_WHITE_NITS)
    if transfer == _HLG:  # BT.2100, on a display of 1000 nits
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
        return _compress_highlights(1000 * scene**1.2 / _HDR_WHITE_NITS)
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _compress_highlights(light: Array) -> Array:
    """Map light relative to diffuse white to 0 to 1: linear up to the knee, smoothly towards 1 above it."""
    room = 1 - _KNEE
    above = np.maximum(light - _KNEE, 0)
    return np.where(light <= _KNEE, light, _KNEE + room * above / (above + room))


def _pack_xyz(xyz: Array) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(value) * 65536) for value in xyz))


def _pack_curve(values: Array) -> bytes:
    table = (values.clip(0, 1) * 65535).round().astype(">u2")
    return b"curv" + struct.pack(">4xI", len(table)) + table.tobytes()


def _pack_profile(tags: dict[bytes, bytes]) -> bytes:
    """Return a profile with these tags; equal contents are stored once."""
    at = 128 + 4 + 12 * len(tags)
    offsets: dict[bytes, int] = {}
    body = b""
    for content in tags.values():
        if content not in offsets:
            offsets[content] = at + len(body)
            body += content + bytes(-len(content) % 4)
    table = struct.pack(">I", len(tags)) + b"".join(
        name + struct.pack(">II", offsets[content], len(content)) for name, content in tags.items()
    )
    head = struct.pack(">I4sI4s4s4s12x4s28x", at + len(body), b"", 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return (head + struct.pack(">3i", *(round(float(v) * 65536) for v in _WHITE_D50))).ljust(128, b"\0") + table + body

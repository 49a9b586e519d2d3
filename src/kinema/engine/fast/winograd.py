"""Norm, SiLU and a convolution of 3×3 in 16/36 of the multiplications, where there are many channels.

Four pixels that form a square see sixteen. Sums of these, times sums of the kernel's nine weights, are sixteen products
of which the four results are sums again: F(2×2, 3×3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks" (2016), after Winograd. So a convolution is sixteen products of matrices, by the library, between two kernels
that only move memory: the one norms, activates and spreads pixels, the other gathers, adds and sums up.

A convolution in float16 is so 6e-4 from its true value, by the norm, where else it is 2e-4 from rounding its result.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Channels, in and out, from which on it is quicker, and pixels in all that make up for the weights, which are spread
# anew each time: to keep them would take half as much memory as the whole network.
MANY_CHANNELS, MANY_PIXELS = 640, 4096
# Squares and channels that a program has at a time, and squares that it sums up.
ROWS, COLUMNS, SUMMED = 8, 64, 48
LOG2_E = tl.constexpr(1.4426950408889634)
# A quarter of what is convolved, so that no sum of sixteen is greater than the greatest of them. `_together` undoes it.
QUARTER = tl.constexpr(0.25)


def fits(parts: Sequence[torch.Tensor], weight: torch.Tensor) -> bool:
    """Whether this is the way to convolve pictures, [n, h, w, c] each, side by side by [columns, 3 · 3 · c of all].

    In bfloat16 the sums would be rounded too coarsely.
    """
    columns, depth = weight.shape
    many = min(columns, depth // 9) >= MANY_CHANNELS and parts[0][..., 0].numel() >= MANY_PIXELS
    return many and weight.dtype == torch.float16


def convolved(
    launch: Callable[..., None],
    parts: Sequence[torch.Tensor],
    scales: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    kept: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Norm, activate and convolve into `out`, add what is `kept` and a bias, if given, and give the channel sums.

    Args:
        launch: Of kernels.
        parts: [pictures, h, w, c] each, whose channels come one after the other.
        scales: A group norm's factors and what is added after them, [pictures, c of all] each.
        weight: [columns, 3 · 3 · c of all].
        kept: [pictures, h, w, columns].
        bias: [columns], float32.
        out: [pictures, h, w, columns], which may be `kept` or one of the parts; all of them contiguous.

    Returns:
        Sums of each picture: [pictures, pieces, 2, columns].
    """
    pictures, high, wide, columns = out.shape
    channels, squares = weight.shape[1] // 9, triton.cdiv(high, 2) * triton.cdiv(wide, 2)
    block = {"ROWS": ROWS, "COLS": COLUMNS}
    weights = weight.new_empty(16, columns, channels)
    grid: tuple[int, ...] = triton.cdiv(channels, COLUMNS), triton.cdiv(columns, ROWS)
    launch(_spread_weights, grid, weight, weights, columns, channels, **block)
    seen = weight.new_empty(16, pictures * squares, channels)
    for part, end in zip(parts, accumulate(part.shape[-1] for part in parts), strict=True):
        start = end - part.shape[-1]
        grid = triton.cdiv(end - start, COLUMNS), triton.cdiv(squares, ROWS), pictures
        known = (each[:, start:end] for each in scales)
        launch(_spread, grid, part, *known, seen[..., start:end], high, wide, end - start, channels, **block)
    made = torch.bmm(seen, weights.transpose(1, 2))
    pieces = triton.cdiv(squares, SUMMED)
    sums = out.new_empty(pictures, pieces, 2, columns, dtype=torch.float32)
    grid = triton.cdiv(columns, COLUMNS), pieces, pictures
    given = made, out if kept is None else kept, sums if bias is None else bias, out, sums
    launch(_gathered, grid, *given, high, wide, columns, KEPT=kept is not None, SUMMED=SUMMED, **block)
    return sums


@triton.jit(do_not_specialize=["columns"])
def _spread_weights(weight, out, columns, channels, ROWS: tl.constexpr, COLS: tl.constexpr):
    row, col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = (row < columns)[:, None] & (col < channels)[None, :]
    at = weight + row[:, None].to(tl.int64) * 9 * channels + col[None, :]
    a0, a1, a2, a3 = _kernel_row(at, channels, inside)
    b0, b1, b2, b3 = _kernel_row(at + 3 * channels, channels, inside)
    c0, c1, c2, c3 = _kernel_row(at + 6 * channels, channels, inside)
    to, plane = out + row[:, None].to(tl.int64) * channels + col[None, :], columns.to(tl.int64) * channels
    _store(to, 4 * plane, inside, _weighted(a0, b0, c0))
    _store(to + plane, 4 * plane, inside, _weighted(a1, b1, c1))
    _store(to + 2 * plane, 4 * plane, inside, _weighted(a2, b2, c2))
    _store(to + 3 * plane, 4 * plane, inside, _weighted(a3, b3, c3))


@triton.jit
def _kernel_row(at, channels, inside):
    """Three weights side by side, as four sums."""
    first = tl.load(at, inside, 0.0).to(tl.float32)
    second = tl.load(at + channels, inside, 0.0).to(tl.float32)
    third = tl.load(at + 2 * channels, inside, 0.0).to(tl.float32)
    return _weighted(first, second, third)


@triton.jit
def _weighted(first, second, third):
    ends, middle = (first + third) / 2, second / 2
    return first, ends + middle, ends - middle, third


@triton.jit
def _store(to, plane, inside, values):
    """Four sums, each to a plane of its own."""
    tl.store(to, values[0].to(to.dtype.element_ty), inside)
    tl.store(to + plane, values[1].to(to.dtype.element_ty), inside)
    tl.store(to + 2 * plane, values[2].to(to.dtype.element_ty), inside)
    tl.store(to + 3 * plane, values[3].to(to.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["high", "wide"])
def _spread(x, factor, offset, out, high, wide, channels, out_row, ROWS: tl.constexpr, COLS: tl.constexpr):
    across = tl.cdiv(wide, 2)
    squares = tl.cdiv(high, 2) * across
    picture = tl.program_id(2).to(tl.int64)
    square, col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    here = col < channels
    inside = (square < squares)[:, None] & here[None, :]
    known = picture * out_row + col
    by = -LOG2_E * tl.load(factor + known, here, 0.0)[None, :], -LOG2_E * tl.load(offset + known, here, 0.0)[None, :]
    top, left = square // across * 2 - 1, square % across * 2 - 1
    at = x + picture * high * wide * channels + col[None, :]
    a0, a1, a2, a3 = _pixel_row(at, by, top, left, high, wide, channels, inside)
    b0, b1, b2, b3 = _pixel_row(at, by, top + 1, left, high, wide, channels, inside)
    c0, c1, c2, c3 = _pixel_row(at, by, top + 2, left, high, wide, channels, inside)
    d0, d1, d2, d3 = _pixel_row(at, by, top + 3, left, high, wide, channels, inside)
    plane = tl.num_programs(2).to(tl.int64) * squares * out_row
    to = out + (picture * squares + square[:, None]) * out_row + col[None, :]
    _store(to, 4 * plane, inside, _apart(a0, b0, c0, d0))
    _store(to + plane, 4 * plane, inside, _apart(a1, b1, c1, d1))
    _store(to + 2 * plane, 4 * plane, inside, _apart(a2, b2, c2, d2))
    _store(to + 3 * plane, 4 * plane, inside, _apart(a3, b3, c3, d3))


@triton.jit
def _pixel_row(at, by, y, left, high, wide, channels, inside):
    """Four pixels side by side, as four sums."""
    there = inside & ((y >= 0) & (y < high))[:, None]
    first = at + (y * wide + left)[:, None] * channels
    return _apart(
        _activated(first, by, there & (left >= 0)[:, None]),
        _activated(first + channels, by, there),
        _activated(first + 2 * channels, by, there & (left + 2 < wide)[:, None]),
        _activated(first + 3 * channels, by, there & (left + 3 < wide)[:, None]),
    )


@triton.jit
def _activated(at, by, there):
    """Normed, and by SiLU, x / (1 + 2^(-x·log₂e)); zero outside the picture. `by` gives the power of two."""
    power = tl.load(at, there, 0.0).to(tl.float32) * by[0] + by[1]
    root = tl.rsqrt(1 + tl.exp2(power))  # quicker than to divide
    return tl.where(there, power * (-QUARTER / LOG2_E) * root * root, 0.0)


@triton.jit
def _apart(first, second, third, fourth):
    return first - third, second + third, third - second, second - fourth


@triton.jit(do_not_specialize=["high", "wide"])
def _gathered(
    made,
    kept,
    bias,
    out,
    sums,
    high,
    wide,
    columns,
    KEPT: tl.constexpr,
    SUMMED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    across = tl.cdiv(wide, 2)
    squares = tl.cdiv(high, 2) * across
    picture = tl.program_id(2).to(tl.int64)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    here = col < columns
    plane = tl.num_programs(2).to(tl.int64) * squares * columns
    added = tl.zeros([COLS], tl.float32)
    if KEPT:
        added = tl.load(bias + col, here, 0.0).to(tl.float32)
    total = tl.zeros([ROWS, COLS], tl.float32)
    square_of = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, SUMMED, ROWS):
        square = tl.program_id(1) * SUMMED + start + tl.arange(0, ROWS)
        inside = (square < squares)[:, None] & here[None, :]
        at = made + (picture * squares + square[:, None]) * columns + col[None, :]
        a0, a1 = _product_row(at, plane, inside)
        b0, b1 = _product_row(at + 4 * plane, plane, inside)
        c0, c1 = _product_row(at + 8 * plane, plane, inside)
        d0, d1 = _product_row(at + 12 * plane, plane, inside)
        y, along = square // across * 2, square % across * 2
        at = (picture * high * wide + y * wide + along)[:, None] * columns + col[None, :]
        below = inside & (y + 1 < high)[:, None]
        upper, lower = _together(a0, b0, c0, d0)
        upper = _settled(upper, at, inside, kept, added, out, KEPT)
        lower = _settled(lower, at + wide * columns, below, kept, added, out, KEPT)
        total += upper + lower
        square_of += upper * upper + lower * lower
        at, beside = at + columns, (along + 1 < wide)[:, None]
        upper, lower = _together(a1, b1, c1, d1)
        upper = _settled(upper, at, inside & beside, kept, added, out, KEPT)
        lower = _settled(lower, at + wide * columns, below & beside, kept, added, out, KEPT)
        total += upper + lower
        square_of += upper * upper + lower * lower
    to = sums + (picture * tl.num_programs(1) + tl.program_id(1)) * 2 * columns + col
    tl.store(to, tl.sum(total, 0), here)
    tl.store(to + columns, tl.sum(square_of, 0), here)


@triton.jit
def _product_row(at, plane, inside):
    """Four of the sixteen products, as two sums."""
    return _together(
        tl.load(at, inside, 0.0).to(tl.float32),
        tl.load(at + plane, inside, 0.0).to(tl.float32),
        tl.load(at + 2 * plane, inside, 0.0).to(tl.float32),
        tl.load(at + 3 * plane, inside, 0.0).to(tl.float32),
    )


@triton.jit
def _together(first, second, third, fourth):
    """Once across and once down, so that each doubles."""
    return (first + second + third) * 2, (second - third - fourth) * 2


@triton.jit
def _settled(value, at, inside, kept, added, out, KEPT: tl.constexpr):
    """A result with what is added, stored; zero outside the picture."""
    if KEPT:
        value += tl.load(kept + at, inside, 0.0).to(tl.float32) + added[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), inside)
    return tl.where(inside, value, 0.0)

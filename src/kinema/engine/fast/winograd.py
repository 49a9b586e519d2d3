"""Norm, SiLU and a 3×3 convolution with a quarter of the multiplications, for layers with many channels.

A 4×4 square of results depends on 36 input pixels. Linear combinations of these, times linear combinations of the
kernel's nine weights, are 36 products, and the 16 results are linear combinations of the products: F(4×4, 3×3) of Lavin
and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), after Winograd. So a convolution is 36 matmuls by
the library, with memory-bound kernels around them. One transforms the weights. One normalises, activates and transforms
the pixels. One transforms the products to results, adds the residual and computes channel sums.

In one dimension the linear combinations are values of polynomials at 0, ±2/3, ±3/2 and infinity. With these points
float16 loses about half as much as with the usual ±1 and ±2. With trained weights the relative error of a convolution
(by the norm) is 7e-4, where rounding only the result gives 2e-4 (bench/squares.py); with random values it is up to
2e-3.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kinema.engine.fast.tuning import use_winograd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Pixels from which transforming the weights on every call is worth it; storing the transformed weights would take
# more memory than the network itself.
MANY_PIXELS = 4096
# Side of a square, in results and in input pixels.
SIDE, SEEN = tl.constexpr(4), tl.constexpr(6)
# Squares per step of a program of the input and of the output transform, channels, and squares per channel sum.
SPREAD, GATHERED, COLUMNS, SUMMED = 4, 8, 64, 16
# The points other than 0 and infinity, and their squares. The formulas rely on Q = 1 / P.
P, Q = tl.constexpr(2 / 3), tl.constexpr(3 / 2)
PP, QQ = tl.constexpr(4 / 9), tl.constexpr(9 / 4)
# Scale of the convolution's input, so that no sum of 36 values exceeds twice the largest of them.
SMALLER = tl.constexpr(1 / 16)
LOG2_E = tl.constexpr(1.4426950408889634)


def fits(parts: Sequence[torch.Tensor], weight: torch.Tensor) -> bool:
    """Return whether to use Winograd for images, [n, h, w, c] each, concatenated along channels.

    Args:
        parts: The images.
        weight: [columns, 3 · 3 · total channels].
    """
    return parts[0][..., 0].numel() >= MANY_PIXELS and use_winograd(weight, sum(part.shape[-1] for part in parts))


def convolved(
    launch: Callable[..., None],
    parts: Sequence[torch.Tensor],
    scales: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    kept: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Normalise, activate and convolve into `out`, optionally add `kept` and `bias`, and return the channel sums.

    Args:
        launch: Launches a kernel.
        parts: [images, h, w, c] each, concatenated along the channels.
        scales: A group norm's factors and offsets, [images, total channels] each.
        weight: [columns, 3 · 3 · total channels].
        kept: Added to the result, [images, h, w, columns]; requires `bias`.
        bias: [columns], float32, added with `kept`.
        out: [images, h, w, columns], which may be `kept` or one of the parts; all of them contiguous.

    Returns:
        Sums of each image: [images, pieces, 2, columns].
    """
    pictures, high, wide, columns = out.shape
    channels, products = weight.shape[1] // 9, SEEN.value**2
    squares = triton.cdiv(high, SIDE.value) * triton.cdiv(wide, SIDE.value)
    block = {"ROWS": SPREAD, "COLS": COLUMNS}
    weights = weight.new_empty(products, columns, channels)
    grid: tuple[int, ...] = triton.cdiv(channels, COLUMNS), triton.cdiv(columns, SPREAD)
    launch(_spread_weights, grid, weight, weights, columns, channels, **block)
    seen = weight.new_empty(products, pictures * squares, channels)
    for part, end in zip(parts, accumulate(part.shape[-1] for part in parts), strict=True):
        start = end - part.shape[-1]
        grid = triton.cdiv(end - start, COLUMNS), triton.cdiv(squares, SPREAD), pictures
        known = (each[:, start:end] for each in scales)
        launch(_spread, grid, part, *known, seen[..., start:end], high, wide, end - start, channels, **block)
    made = torch.bmm(seen, weights.transpose(1, 2))
    pieces = triton.cdiv(squares, SUMMED)
    sums = out.new_empty(pictures, pieces, 2, columns, dtype=torch.float32)
    grid = triton.cdiv(columns, COLUMNS), pieces, pictures
    given = made, out if kept is None else kept, sums if bias is None else bias, out, sums
    block = {"SUMMED": SUMMED, "ROWS": GATHERED, "COLS": COLUMNS}
    launch(_gathered, grid, *given, high, wide, columns, KEPT=kept is not None, **block)
    return sums


@triton.jit(do_not_specialize=["columns"])
def _spread_weights(weight, out, columns, channels, ROWS: tl.constexpr, COLS: tl.constexpr):
    row, col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = (row < columns)[:, None] & (col < channels)[None, :]
    at = weight + row[:, None].to(tl.int64) * 9 * channels + col[None, :]
    first = _kernel_row(at, channels, inside)
    second = _kernel_row(at + 3 * channels, channels, inside)
    third = _kernel_row(at + 6 * channels, channels, inside)
    to, plane = out + row[:, None].to(tl.int64) * channels + col[None, :], columns.to(tl.int64) * channels
    for i in tl.static_range(SEEN):
        _store(to + i * plane, plane, inside, _weighted(first[i], second[i], third[i]))


@triton.jit
def _kernel_row(at, channels, inside):
    """Transform three weights of a kernel row to six values."""
    return _weighted(
        tl.load(at, inside, 0.0).to(tl.float32),
        tl.load(at + channels, inside, 0.0).to(tl.float32),
        tl.load(at + 2 * channels, inside, 0.0).to(tl.float32),
    )


@triton.jit
def _weighted(first, second, third):
    """Evaluate a polynomial at all points.

    Each value is divided by the product of the point's distances from the others, so that no other sum needs a
    division.
    """
    p_even, p_odd = (first + third * PP) / (2 * PP * (PP - QQ)), second * P / (2 * PP * (PP - QQ))
    q_even, q_odd = (first + third * QQ) / (2 * QQ * (QQ - PP)), second * Q / (2 * QQ * (QQ - PP))
    return first, p_even + p_odd, p_even - p_odd, q_even + q_odd, q_even - q_odd, third


@triton.jit
def _store(to, plane, inside, values):
    """Store six values of a column, each to its own plane; consecutive ones are SEEN planes apart."""
    for i in tl.static_range(SEEN):
        tl.store(to + i * SEEN * plane, values[i].to(to.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["high", "wide"])
def _spread(x, factor, offset, out, high, wide, channels, out_row, ROWS: tl.constexpr, COLS: tl.constexpr):
    across = tl.cdiv(wide, SIDE)
    squares = tl.cdiv(high, SIDE) * across
    picture = tl.program_id(2).to(tl.int64)
    square, col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    here = col < channels
    inside = (square < squares)[:, None] & here[None, :]
    known = picture * out_row + col
    by = tl.load(factor + known, here, 0.0)[None, :] * -LOG2_E, tl.load(offset + known, here, 0.0)[None, :] * -LOG2_E
    y, left = square // across * SIDE - 1, square % across * SIDE - 1
    at = x + picture * high * wide * channels + col[None, :]
    a = _pixel_row(at, by, y, left, high, wide, channels, inside)
    b = _pixel_row(at, by, y + 1, left, high, wide, channels, inside)
    c = _pixel_row(at, by, y + 2, left, high, wide, channels, inside)
    d = _pixel_row(at, by, y + 3, left, high, wide, channels, inside)
    e = _pixel_row(at, by, y + 4, left, high, wide, channels, inside)
    f = _pixel_row(at, by, y + 5, left, high, wide, channels, inside)
    plane = tl.num_programs(2).to(tl.int64) * squares * out_row
    to = out + (picture * squares + square[:, None]) * out_row + col[None, :]
    for i in tl.static_range(SEEN):
        _store(to + i * plane, plane, inside, _apart(a[i], b[i], c[i], d[i], e[i], f[i]))


@triton.jit
def _pixel_row(at, by, y, left, high, wide, channels, inside):
    """Transform six adjacent pixels to six values."""
    there = inside & ((y >= 0) & (y < high))[:, None]
    first = at + (y * wide + left)[:, None] * channels
    return _apart(
        _activated(first, by, there & (left >= 0)[:, None]),
        _activated(first + channels, by, there),
        _activated(first + 2 * channels, by, there & (left + 2 < wide)[:, None]),
        _activated(first + 3 * channels, by, there & (left + 3 < wide)[:, None]),
        _activated(first + 4 * channels, by, there & (left + 4 < wide)[:, None]),
        _activated(first + 5 * channels, by, there & (left + 5 < wide)[:, None]),
    )


@triton.jit
def _activated(at, by, there):
    """Return normalised pixels after SiLU, x / (1 + 2^(-x·log₂e)), zero outside the image.

    `by` is the norm's factor and offset, scaled to give the exponent of 2 directly.
    """
    power = tl.load(at, there, 0.0).to(tl.float32) * by[0] + by[1]
    root = tl.rsqrt(1 + tl.exp2(power))  # faster than a division
    return tl.where(there, power * (-SMALLER / LOG2_E) * root * root, 0.0)


@triton.jit
def _apart(x0, x1, x2, x3, x4, x5):
    """Transform a line of six pixels to the factors at each point."""
    p_even, p_odd = x4 - x2 * QQ, x3 * P - x1 * Q
    q_even, q_odd = x4 - x2 * PP, x3 * Q - x1 * P
    first, last = x0 - x2 * (PP + QQ) + x4, x1 - x3 * (PP + QQ) + x5
    return first, p_even + p_odd, p_even - p_odd, q_even + q_odd, q_even - q_odd, last


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
    across = tl.cdiv(wide, SIDE)
    squares = tl.cdiv(high, SIDE) * across
    picture = tl.program_id(2).to(tl.int64)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    here = col < columns
    plane = tl.num_programs(2).to(tl.int64) * squares * columns
    added = tl.zeros([COLS], tl.float32)
    if KEPT:
        added = tl.load(bias + col, here, 0.0).to(tl.float32)
    total = tl.zeros([ROWS, COLS], tl.float32)
    of_squares = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, SUMMED, ROWS):
        square = tl.program_id(1) * SUMMED + start + tl.arange(0, ROWS)
        inside = (square < squares)[:, None] & here[None, :]
        at = made + (picture * squares + square[:, None]) * columns + col[None, :]
        a = _product_row(at, plane, inside)
        b = _product_row(at + SEEN * plane, plane, inside)
        c = _product_row(at + 2 * SEEN * plane, plane, inside)
        d = _product_row(at + 3 * SEEN * plane, plane, inside)
        e = _product_row(at + 4 * SEEN * plane, plane, inside)
        f = _product_row(at + 5 * SEEN * plane, plane, inside)
        y, left = square // across * SIDE, square % across * SIDE
        at = (picture * high * wide + y * wide + left)[:, None] * columns + col[None, :]
        for i in tl.static_range(SIDE):
            there = inside & (left + i < wide)[:, None]
            results = _together(a[i], b[i], c[i], d[i], e[i], f[i])
            for j in tl.static_range(SIDE):
                place = at + (j * wide + i) * columns
                result = _settled(results[j], place, there & (y + j < high)[:, None], kept, added, out, KEPT)
                total += result
                of_squares += result * result
    to = sums + (picture * tl.num_programs(1) + tl.program_id(1)) * 2 * columns + col
    tl.store(to, tl.sum(total, 0), here)
    tl.store(to + columns, tl.sum(of_squares, 0), here)


@triton.jit
def _product_row(at, plane, inside):
    """Transform a row of six products to four values."""
    return _together(
        tl.load(at, inside, 0.0).to(tl.float32),
        tl.load(at + plane, inside, 0.0).to(tl.float32),
        tl.load(at + 2 * plane, inside, 0.0).to(tl.float32),
        tl.load(at + 3 * plane, inside, 0.0).to(tl.float32),
        tl.load(at + 4 * plane, inside, 0.0).to(tl.float32),
        tl.load(at + 5 * plane, inside, 0.0).to(tl.float32),
    )


@triton.jit
def _together(first, p_plus, p_minus, q_plus, q_minus, last):
    """Transform the products at each point to a line of four results."""
    p_even, p_odd, q_even, q_odd = p_plus + p_minus, p_plus - p_minus, q_plus + q_minus, q_plus - q_minus
    second, fourth = p_odd * P + q_odd * Q, p_odd * (P * PP) + q_odd * (Q * QQ) + last
    return first + p_even + q_even, second, p_even * PP + q_even * QQ, fourth


@triton.jit
def _settled(value, at, inside, kept, added, out, KEPT: tl.constexpr):
    """Store a result, after adding `kept` and the bias if KEPT; return it, zero outside the image."""
    value /= SMALLER
    if KEPT:
        value += tl.load(kept + at, inside, 0.0).to(tl.float32) + added[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), inside)
    return tl.where(inside, value, 0.0)

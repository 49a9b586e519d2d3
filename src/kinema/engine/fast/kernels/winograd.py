"""Norm, SiLU and a 3×3 convolution with a quarter of the multiplications, for layers with many channels.

A 4×4 tile of results depends on 36 input pixels. Linear combinations of these, times linear combinations of the
kernel's nine weights, are 36 products, and the 16 results are linear combinations of the products: F(4×4, 3×3) of Lavin
and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), after Winograd. So a convolution is 36 GEMMs by
the library, with memory-bound kernels around them. One transforms the weights. One normalises, activates and transforms
the pixels. One transforms the products to results, adds the residual and computes channel sums. docs/kernels.md has the
constants and their error.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kinema.engine.fast.kernels.launch import launch
from kinema.engine.fast.tuning import tuning

if TYPE_CHECKING:
    from collections.abc import Sequence

# Side of a tile, in results and in input pixels.
TILE_OUT, TILE_IN = tl.constexpr(4), tl.constexpr(6)
# The points other than 0 and infinity, and their squares. The formulas rely on Q = 1 / P.
P, Q = tl.constexpr(2 / 3), tl.constexpr(3 / 2)
PP, QQ = tl.constexpr(4 / 9), tl.constexpr(9 / 4)
# Scale of the convolution's input, so that no sum of 36 values exceeds twice the largest of them.
INPUT_SCALE = tl.constexpr(1 / 16)
LOG2_E = tl.constexpr(1.4426950408889634)


def norm_silu_conv3x3(
    inputs: Sequence[torch.Tensor],
    scales: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    residual: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Normalise, activate and convolve into `out`, optionally add `residual` and `bias`, and return the channel sums.

    Args:
        inputs: [images, h, w, c] each, concatenated along the channels.
        scales: A group norm's scales and shifts, [images, total channels] each.
        weight: [out channels, 3 · 3 · total channels].
        residual: Added to the result, [images, h, w, out channels]; requires `bias`.
        bias: [out channels], float32, added with `residual`.
        out: [images, h, w, out channels], which may be `residual` or one of the inputs; all of them contiguous.

    Returns:
        Sums of each image: [images, pieces, 2, out channels].
    """
    images, height, width, out_channels = out.shape
    channels, products_per_tile = weight.shape[1] // 9, TILE_IN.value**2
    input_rows, output_rows, cols, tiles_per_sum = tuning().winograd_block
    tiles = triton.cdiv(height, TILE_OUT.value) * triton.cdiv(width, TILE_OUT.value)
    block = {"ROWS": input_rows, "COLS": cols}
    weights = weight.new_empty(products_per_tile, out_channels, channels)
    grid: tuple[int, ...] = triton.cdiv(channels, cols), triton.cdiv(out_channels, input_rows)
    launch(_transform_weights, grid, weight, weights, out_channels, channels, **block)
    transformed = weight.new_empty(products_per_tile, images * tiles, channels)
    for x, end in zip(inputs, accumulate(x.shape[-1] for x in inputs), strict=True):
        start = end - x.shape[-1]
        grid = triton.cdiv(end - start, cols), triton.cdiv(tiles, input_rows), images
        slices = *(each[:, start:end] for each in scales), transformed[..., start:end]
        launch(_transform_input, grid, x, *slices, height, width, end - start, channels, **block)
    products = torch.bmm(transformed, weights.transpose(1, 2))
    pieces = triton.cdiv(tiles, tiles_per_sum)
    sums = out.new_empty(images, pieces, 2, out_channels, dtype=torch.float32)
    grid = triton.cdiv(out_channels, cols), pieces, images
    args = products, out if residual is None else residual, sums if bias is None else bias, out, sums
    block = {"TILES_PER_SUM": tiles_per_sum, "ROWS": output_rows, "COLS": cols}
    launch(_transform_output, grid, *args, height, width, out_channels, RESIDUAL=residual is not None, **block)
    return sums


@triton.jit(do_not_specialize=["out_channels"])
def _transform_weights(weight, out, out_channels, channels, ROWS: tl.constexpr, COLS: tl.constexpr):
    row, col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    mask = (row < out_channels)[:, None] & (col < channels)[None, :]
    ptrs = weight + row[:, None].to(tl.int64) * 9 * channels + col[None, :]
    first = _load_weight_row(ptrs, channels, mask)
    second = _load_weight_row(ptrs + 3 * channels, channels, mask)
    third = _load_weight_row(ptrs + 6 * channels, channels, mask)
    out_ptrs, plane_stride = (
        out + row[:, None].to(tl.int64) * channels + col[None, :],
        out_channels.to(tl.int64) * channels,
    )
    for i in tl.static_range(TILE_IN):
        _store_column(out_ptrs + i * plane_stride, plane_stride, mask, _weight_transform(first[i], second[i], third[i]))


@triton.jit
def _load_weight_row(ptrs, channels, mask):
    """Transform three weights of a kernel row to six values."""
    return _weight_transform(
        tl.load(ptrs, mask, 0.0).to(tl.float32),
        tl.load(ptrs + channels, mask, 0.0).to(tl.float32),
        tl.load(ptrs + 2 * channels, mask, 0.0).to(tl.float32),
    )


@triton.jit
def _weight_transform(first, second, third):
    """Evaluate a polynomial at all points.

    Each value is divided by the product of the point's distances from the others, so that no other sum needs a
    division.
    """
    p_even, p_odd = (first + third * PP) / (2 * PP * (PP - QQ)), second * P / (2 * PP * (PP - QQ))
    q_even, q_odd = (first + third * QQ) / (2 * QQ * (QQ - PP)), second * Q / (2 * QQ * (QQ - PP))
    return first, p_even + p_odd, p_even - p_odd, q_even + q_odd, q_even - q_odd, third


@triton.jit
def _store_column(ptrs, plane_stride, mask, values):
    """Store six values of a column, each to its own plane; consecutive ones are TILE_IN planes apart."""
    for i in tl.static_range(TILE_IN):
        tl.store(ptrs + i * TILE_IN * plane_stride, values[i].to(ptrs.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["height", "width"])
def _transform_input(
    x, scale, shift, out, height, width, channels, out_row_stride, ROWS: tl.constexpr, COLS: tl.constexpr
):
    tile_columns = tl.cdiv(width, TILE_OUT)
    tiles = tl.cdiv(height, TILE_OUT) * tile_columns
    image = tl.program_id(2).to(tl.int64)
    tile, col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    col_mask = col < channels
    mask = (tile < tiles)[:, None] & col_mask[None, :]
    scale_offsets = image * out_row_stride + col
    scale_shift = (
        tl.load(scale + scale_offsets, col_mask, 0.0)[None, :] * -LOG2_E,
        tl.load(shift + scale_offsets, col_mask, 0.0)[None, :] * -LOG2_E,
    )
    y, left = tile // tile_columns * TILE_OUT - 1, tile % tile_columns * TILE_OUT - 1
    ptrs = x + image * height * width * channels + col[None, :]
    a = _load_input_row(ptrs, scale_shift, y, left, height, width, channels, mask)
    b = _load_input_row(ptrs, scale_shift, y + 1, left, height, width, channels, mask)
    c = _load_input_row(ptrs, scale_shift, y + 2, left, height, width, channels, mask)
    d = _load_input_row(ptrs, scale_shift, y + 3, left, height, width, channels, mask)
    e = _load_input_row(ptrs, scale_shift, y + 4, left, height, width, channels, mask)
    f = _load_input_row(ptrs, scale_shift, y + 5, left, height, width, channels, mask)
    plane_stride = tl.num_programs(2).to(tl.int64) * tiles * out_row_stride
    out_ptrs = out + (image * tiles + tile[:, None]) * out_row_stride + col[None, :]
    for i in tl.static_range(TILE_IN):
        _store_column(
            out_ptrs + i * plane_stride, plane_stride, mask, _input_transform(a[i], b[i], c[i], d[i], e[i], f[i])
        )


@triton.jit
def _load_input_row(ptrs, scale_shift, y, left, height, width, channels, mask):
    """Transform six adjacent pixels to six values."""
    row_mask = mask & ((y >= 0) & (y < height))[:, None]
    first = ptrs + (y * width + left)[:, None] * channels
    return _input_transform(
        _load_norm_silu(first, scale_shift, row_mask & (left >= 0)[:, None]),
        _load_norm_silu(first + channels, scale_shift, row_mask),
        _load_norm_silu(first + 2 * channels, scale_shift, row_mask & (left + 2 < width)[:, None]),
        _load_norm_silu(first + 3 * channels, scale_shift, row_mask & (left + 3 < width)[:, None]),
        _load_norm_silu(first + 4 * channels, scale_shift, row_mask & (left + 4 < width)[:, None]),
        _load_norm_silu(first + 5 * channels, scale_shift, row_mask & (left + 5 < width)[:, None]),
    )


@triton.jit
def _load_norm_silu(ptrs, scale_shift, mask):
    """Return normalised pixels after SiLU, x / (1 + 2^(-x·log₂e)), zero outside the image.

    `scale_shift` is the norm's scale and shift, multiplied to give the exponent of 2 directly.
    """
    exponent = tl.load(ptrs, mask, 0.0).to(tl.float32) * scale_shift[0] + scale_shift[1]
    root = tl.rsqrt(1 + tl.exp2(exponent))  # faster than a division
    return tl.where(mask, exponent * (-INPUT_SCALE / LOG2_E) * root * root, 0.0)


@triton.jit
def _input_transform(x0, x1, x2, x3, x4, x5):
    """Transform a line of six pixels to the factors at each point."""
    p_even, p_odd = x4 - x2 * QQ, x3 * P - x1 * Q
    q_even, q_odd = x4 - x2 * PP, x3 * Q - x1 * P
    first, last = x0 - x2 * (PP + QQ) + x4, x1 - x3 * (PP + QQ) + x5
    return first, p_even + p_odd, p_even - p_odd, q_even + q_odd, q_even - q_odd, last


@triton.jit(do_not_specialize=["height", "width"])
def _transform_output(
    products,
    residual,
    bias,
    out,
    sums,
    height,
    width,
    out_channels,
    RESIDUAL: tl.constexpr,
    TILES_PER_SUM: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    tile_columns = tl.cdiv(width, TILE_OUT)
    tiles = tl.cdiv(height, TILE_OUT) * tile_columns
    image = tl.program_id(2).to(tl.int64)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    col_mask = col < out_channels
    plane_stride = tl.num_programs(2).to(tl.int64) * tiles * out_channels
    bias_row = tl.zeros([COLS], tl.float32)
    if RESIDUAL:
        bias_row = tl.load(bias + col, col_mask, 0.0).to(tl.float32)
    total = tl.zeros([ROWS, COLS], tl.float32)
    square_total = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, TILES_PER_SUM, ROWS):
        tile = tl.program_id(1) * TILES_PER_SUM + start + tl.arange(0, ROWS)
        mask = (tile < tiles)[:, None] & col_mask[None, :]
        ptrs = products + (image * tiles + tile[:, None]) * out_channels + col[None, :]
        a = _load_product_row(ptrs, plane_stride, mask)
        b = _load_product_row(ptrs + TILE_IN * plane_stride, plane_stride, mask)
        c = _load_product_row(ptrs + 2 * TILE_IN * plane_stride, plane_stride, mask)
        d = _load_product_row(ptrs + 3 * TILE_IN * plane_stride, plane_stride, mask)
        e = _load_product_row(ptrs + 4 * TILE_IN * plane_stride, plane_stride, mask)
        f = _load_product_row(ptrs + 5 * TILE_IN * plane_stride, plane_stride, mask)
        y, left = tile // tile_columns * TILE_OUT, tile % tile_columns * TILE_OUT
        ptrs = (image * height * width + y * width + left)[:, None] * out_channels + col[None, :]
        for i in tl.static_range(TILE_OUT):
            column_mask = mask & (left + i < width)[:, None]
            results = _output_transform(a[i], b[i], c[i], d[i], e[i], f[i])
            for j in tl.static_range(TILE_OUT):
                offsets = ptrs + (j * width + i) * out_channels
                result = _store_result(
                    results[j], offsets, column_mask & (y + j < height)[:, None], residual, bias_row, out, RESIDUAL
                )
                total += result
                square_total += result * result
    sums_ptrs = sums + (image * tl.num_programs(1) + tl.program_id(1)) * 2 * out_channels + col
    tl.store(sums_ptrs, tl.sum(total, 0), col_mask)
    tl.store(sums_ptrs + out_channels, tl.sum(square_total, 0), col_mask)


@triton.jit
def _load_product_row(ptrs, plane_stride, mask):
    """Transform a row of six products to four values."""
    return _output_transform(
        tl.load(ptrs, mask, 0.0).to(tl.float32),
        tl.load(ptrs + plane_stride, mask, 0.0).to(tl.float32),
        tl.load(ptrs + 2 * plane_stride, mask, 0.0).to(tl.float32),
        tl.load(ptrs + 3 * plane_stride, mask, 0.0).to(tl.float32),
        tl.load(ptrs + 4 * plane_stride, mask, 0.0).to(tl.float32),
        tl.load(ptrs + 5 * plane_stride, mask, 0.0).to(tl.float32),
    )


@triton.jit
def _output_transform(first, p_plus, p_minus, q_plus, q_minus, last):
    """Transform the products at each point to a line of four results."""
    p_even, p_odd, q_even, q_odd = p_plus + p_minus, p_plus - p_minus, q_plus + q_minus, q_plus - q_minus
    second, fourth = p_odd * P + q_odd * Q, p_odd * (P * PP) + q_odd * (Q * QQ) + last
    return first + p_even + q_even, second, p_even * PP + q_even * QQ, fourth


@triton.jit
def _store_result(value, offsets, mask, residual, bias_row, out, RESIDUAL: tl.constexpr):
    """Store a result, after adding the residual and the bias if RESIDUAL; return it, zero outside the image."""
    value /= INPUT_SCALE
    if RESIDUAL:
        value += tl.load(residual + offsets, mask, 0.0).to(tl.float32) + bias_row[None, :]
    tl.store(out + offsets, value.to(out.dtype.element_ty), mask)
    return tl.where(mask, value, 0.0)

"""GEMMs whose epilogue applies scales, biases and GEGLU, or adds to the output; and GELU.

GELU is x · Φ(x), with Φ(x) = 1 / (1 + 2^gelu_exponent(x)); it is within 4e-6 of GELU by erf. The log-odds of Φ are x
times a smooth function of x². Here that function is a polynomial fitted to minimise the maximum error of GELU. It takes
half the instructions of erf, and x needs no clamping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kinema.engine.fast.kernels.launch import launch, multiprocessors
from kinema.engine.fast.tuning import tuning

if TYPE_CHECKING:
    import torch


@triton.jit
def gelu_exponent(x):
    """Return the exponent of 2."""
    square = x * x
    polynomial = -3.21037941830582e-06 * square + 8.790979336481541e-05
    polynomial = polynomial * square + 3.6204763455316424e-04
    polynomial = polynomial * square - 1.0522997379302979e-01
    return (polynomial * square - 2.3020436763763428) * x


@triton.jit
def _gelu(x):
    return x / (1 + tl.exp2(gelu_exponent(x)))


def geglu(projection: torch.Tensor) -> torch.Tensor:
    """Apply GEGLU to the result of a GEMM whose columns are `interleaved`: [rows, 2 · inner] → [rows, inner]."""
    rows, inner = len(projection), projection.shape[1] // 2
    out = projection.new_empty(rows, inner)
    row_block, col_block = tuning().geglu_block
    grid = triton.cdiv(rows, row_block), triton.cdiv(inner, col_block)
    launch(_geglu, grid, projection, out, rows, inner, ROWS=row_block, COLS=col_block)
    return out


@triton.jit(do_not_specialize=["rows"])
def _geglu(projection, out, rows, inner, ROWS: tl.constexpr, COLS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col, pair_col = tl.program_id(1) * COLS + tl.arange(0, COLS), tl.program_id(1) * 2 * COLS + tl.arange(0, 2 * COLS)
    ptrs = projection + row[:, None].to(tl.int64) * 2 * inner + pair_col[None, :]
    pairs = tl.load(ptrs, (row < rows)[:, None] & (pair_col < 2 * inner)[None, :], 0.0).to(tl.float32)
    value, gate = tl.split(tl.reshape(pairs, [ROWS, COLS, 2]))
    gated = tl.permute(tl.reshape(value * _gelu(gate), [ROWS, COLS // 32, 8, 4]), [0, 1, 3, 2])
    mask = (row < rows)[:, None] & (col < inner)[None, :]
    tl.store(out + row[:, None].to(tl.int64) * inner + col[None, :], tl.reshape(gated, [ROWS, COLS]), mask)


def matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    out: torch.Tensor,
    *,
    geglu: bool = False,
    add: bool = False,
    out_scale: float = 1.0,
) -> torch.Tensor:
    """Write x · weightᵀ · scale + bias into `out`.

    Args:
        x: [rows, depth], 16-bit or fp8.
        weight: [columns, depth], of the same dtype.
        bias: [columns].
        scale: [columns].
        out: [rows, columns], or [rows, columns / 2] with `geglu`.
        geglu: Whether the columns are `interleaved` values and gates.
        add: Whether to add to `out`.
        out_scale: Multiplies the result of `geglu` in fp8.
    """
    rows, depth = x.shape
    cols = len(weight)
    bm, bn, bk, warps, stages, programs = tuning().gemm_tiles[x.dtype.itemsize]
    tiles = triton.cdiv(rows, bm) * triton.cdiv(cols, bn)
    launch(
        _matmul,
        (min(tiles, programs * multiprocessors(x.device)) if programs else tiles,),
        TensorDescriptor.from_tensor(x, [bm, bk]),
        TensorDescriptor.from_tensor(weight, [bn, bk]),
        TensorDescriptor.from_tensor(out, [bm, bn // 2 if geglu else bn]),
        x if bias is None else bias,
        x if scale is None else scale,
        rows,
        cols,
        depth,
        out_scale,
        GEGLU=geglu,
        ADD=add,
        HAS_SCALE=scale is not None,
        HAS_BIAS=bias is not None,
        BM=bm,
        BN=bn,
        BK=bk,
        GROUP=8,
        PERSISTENT=programs > 0,
        num_warps=warps,
        num_stages=stages,
    )
    return out


@triton.jit(do_not_specialize=["rows"])
def _matmul(
    x,
    weight,
    out,
    bias,
    scale,
    rows,
    cols,
    depth,
    out_scale,
    GEGLU: tl.constexpr,
    ADD: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    row_tiles, col_tiles = tl.cdiv(rows, BM), tl.cdiv(cols, BN)
    for tile in tl.range(tl.program_id(0), row_tiles * col_tiles, tl.num_programs(0), flatten=PERSISTENT):
        m, n = _tile_position(tile, row_tiles, col_tiles, GROUP)
        m, n = m * BM, n * BN
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(0, depth, BK):
            acc = tl.dot(x.load([m, k]), weight.load([n, k]).T, acc)
        col = n + tl.arange(0, BN)
        if HAS_SCALE:
            acc *= tl.load(scale + col, col < cols, 0.0)[None, :]
        if HAS_BIAS:
            acc += tl.load(bias + col, col < cols, 0.0).to(tl.float32)[None, :]
        if GEGLU:  # a thread has both each value and its gate
            value, gate = tl.split(tl.reshape(acc, [BM, BN // 2, 2]))
            gated = tl.permute(tl.reshape(value * _gelu(gate), [BM, BN // 64, 8, 4]), [0, 1, 3, 2])
            gated = tl.reshape(gated, [BM, BN // 2])
            if HAS_SCALE:
                gated = tl.clamp(gated * out_scale, -448.0, 448.0)
            out.store([m, n // 2], gated.to(out.dtype))
        else:
            if ADD:
                acc += out.load([m, n]).to(tl.float32)
            out.store([m, n], acc.to(out.dtype))


@triton.jit
def _tile_position(tile, row_tiles, col_tiles, GROUP: tl.constexpr):
    """Return a tile's row and column. Tiles are in groups of rows, whose weights and pixels stay in the cache."""
    first_row = tile // (GROUP * col_tiles) * GROUP
    group_rows = min(row_tiles - first_row, GROUP)
    index = tile % (GROUP * col_tiles)
    return first_row + index % group_rows, index // group_rows

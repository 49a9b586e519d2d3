"""Triton kernels: memory-bound ones (norms, sums, attention over a few frames), and GEMMs.

Memory-bound kernels read each input once and write each result once; torch would need several passes over the same
tensors. The GEMM kernels are a feed-forward's first GEMM with its gate, convolutions along time, and fp8 GEMMs.
`winograd` has the transforms around Winograd's GEMMs. Gluon kernels, for Hopper only, are in `stationary`, `attention`
and `convolution`. `kinema.engine.fast.fused` defines in plain torch what each kernel computes, and decides when to call
it. All computation is in float32.

Image sizes are not compile-time constants, so another video size compiles few kernels again: only for a different type
of tile, for a number of frames beyond the current power of two, or for a frame that is not a whole number of tiles.

Import this module only where CUDA is available; torch's CUDA builds include Triton.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kinema.engine.fast import winograd
from kinema.engine.fast.fp8 import FP8_DTYPE
from kinema.engine.fast.gelu import power

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Gluon, Triton's lower-level language, still changes: with these versions the Gluon kernels compile for Hopper.
HAS_GLUON = triton.__version__.startswith(("3.6.", "3.7.", "3.8.", "3.9."))
if HAS_GLUON:
    from kinema.engine.fast import attention, convolution, stationary

# Rows, columns and depth of the tile of one program, its warps, its pipeline stages, and the number of persistent
# programs per multiprocessor (0: one program per tile).
Tile = tuple[int, int, int, int, int, int]

# Kernels that are compiled concurrently.
TOGETHER = 16
# Columns of a tile: 64 16-bit values are a cache line.
COLUMNS = 64
# A program of the layer norm: elements per iteration, number of iterations, and warps.
NORM = 4096, 4, 4
# Most pieces into which the channel sums of a frame are divided.
MOST_CHUNKS = 512
# The fastest tiles measured on an H100 at SVD's sizes, by itemsize.
PRODUCT: dict[int, Tile] = {2: (128, 256, 64, 8, 3, 1), 1: (128, 128, 128, 4, 3, 2)}


# Whether kernels are only compiled, not launched.
_compiling = ContextVar("compiling", default=False)


@contextmanager
def compiled_together() -> Iterator[None]:
    """Within the context, launch no kernel; on exit, compile all that would have been launched, several at a time.

    Their outputs are not written. Without this, each kernel is compiled at its first launch, one after the other. A
    kernel that fails to compile raises its error at its launch.
    """
    with ThreadPoolExecutor(TOGETHER) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        before = _compiling.set(True)
        try:
            yield
        finally:
            _compiling.reset(before)


def _launch(kernel: Any, grid: tuple[int, ...], *given: Any, **chosen: Any) -> None:
    if _compiling.get():
        kernel.warmup(*given, grid=grid, **chosen)
    else:
        kernel[grid](*given, **chosen)


@triton.jit(do_not_specialize=["rows", "per"])
def _sums(
    x,
    y,
    bias,
    out,
    sums,
    rows,
    channels,
    per,
    x_frame,
    y_frame,
    out_frame,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    block, chunk, n = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    cols = block * COLS + tl.arange(0, COLS)
    here = cols < channels
    total = tl.zeros([ROWS, COLS], tl.float32)
    square = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, per, ROWS):
        row = chunk * per + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & here[None, :]
        at = row[:, None].to(tl.int64) * channels + cols[None, :]
        value = tl.load(x + n * x_frame + at, inside, 0.0).to(tl.float32)
        if ADD:
            value += tl.load(y + n * y_frame + at, inside, 0.0).to(tl.float32)
            value += tl.load(bias + cols, here, 0.0).to(tl.float32)[None, :]
            tl.store(out + n * out_frame + at, value, inside)
            value = tl.where(inside, value, 0.0)
        total += value
        square += value * value
    to = sums + (n * tl.num_programs(1) + chunk) * 2 * channels + cols
    tl.store(to, tl.sum(total, 0), here)
    tl.store(to + channels, tl.sum(square, 0), here)


def _chunks(rows: int) -> tuple[int, int]:
    """Return into how many chunks the rows of a frame are divided, and the rows per chunk: a multiple of 32."""
    per = triton.cdiv(triton.cdiv(rows, min(triton.cdiv(rows, 256), MOST_CHUNKS)), 32) * 32
    return triton.cdiv(rows, per), per


def channel_sums(x: torch.Tensor) -> torch.Tensor:
    return _summed(x, x, x, x, add=False)


def add(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return _summed(x, y, bias, out, add=True)


def _summed(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, *, add: bool) -> torch.Tensor:
    n, rows, channels = x.shape
    chunks, per = _chunks(rows)
    sums = x.new_empty(n, chunks, 2, channels, dtype=torch.float32)
    grid = (triton.cdiv(channels, COLUMNS), chunks, n)
    frames = x.stride(0), y.stride(0), out.stride(0)
    _launch(_sums, grid, x, y, bias, out, sums, rows, channels, per, *frames, ADD=add, ROWS=32, COLS=COLUMNS)
    return sums


@triton.jit(do_not_specialize=["chunks", "channels", "group", "plus_stride"])
def _affine(
    sums,
    weight,
    bias,
    plus,
    scale,
    shift,
    chunks,
    channels,
    group,
    pixels,
    eps,
    plus_stride,
    PLUS: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUP: tl.constexpr,
):
    n = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, GROUP)
    cols, here = tl.program_id(0) * group + lane, lane < group
    total = tl.zeros([CHUNKS, GROUP], tl.float32)
    square = tl.zeros([CHUNKS, GROUP], tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        inside = (chunk < chunks)[:, None] & here[None, :]
        at = sums + (n * chunks + chunk[:, None]) * 2 * channels + cols[None, :]
        total += tl.load(at, inside, 0.0)
        square += tl.load(at + channels, inside, 0.0)
    sum_of, square_of = tl.sum(total, 0), tl.sum(square, 0)
    added = tl.zeros([GROUP], tl.float32)
    if PLUS:
        added = tl.load(plus + n * plus_stride + cols, here, 0.0).to(tl.float32)
        square_of += 2 * added * sum_of + pixels * added * added
        sum_of += pixels * added
    count = pixels * group
    mean = tl.sum(sum_of, 0) / count
    variance = tl.maximum(tl.sum(square_of, 0) / count - mean * mean, 0.0)
    factor = tl.load(weight + cols, here, 0.0).to(tl.float32) / tl.sqrt(variance + eps)
    tl.store(scale + n * channels + cols, factor, here)
    offset = tl.load(bias + cols, here, 0.0).to(tl.float32) + (added - mean) * factor
    tl.store(shift + n * channels + cols, offset, here)


@triton.jit(do_not_specialize=["rows", "span"])
def _apply(
    x,
    out,
    scale,
    shift,
    rows,
    channels,
    span,
    x_frame,
    out_frame,
    out_row,
    known_stride,
    spread,
    SILU: tl.constexpr,
    BYTES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    n = tl.program_id(2).to(tl.int64)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    here = cols < channels
    inside = (row < rows)[:, None] & here[None, :]
    row = row[:, None].to(tl.int64)
    known = (n // span) * known_stride + cols
    factor, offset = tl.load(scale + known, here, 0.0), tl.load(shift + known, here, 0.0)
    value = tl.load(x + n * x_frame + row * channels + cols[None, :], inside, 0.0).to(tl.float32)
    value = value * factor[None, :] + offset[None, :]
    if SILU:
        value = value / (1 + tl.exp(-value))
    if BYTES:
        value = tl.clamp(value * spread, -448.0, 448.0)
    tl.store(out + n * out_frame + row * out_row + cols[None, :], value.to(out.dtype.element_ty), inside)


def affine(
    sums: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    span: int,
    pixels: int,
    plus: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    frames, channels = len(sums), sums.shape[-1]
    n, group, chunks = frames // span, channels // groups, span * sums.shape[1]
    scale, shift = sums.new_empty(2, n, channels)
    lanes = 32 if group <= 32 else triton.next_power_of_2(max(group, 128))  # few values: few compiled variants
    _launch(
        _affine,
        (groups, n),
        sums,
        weight,
        bias,
        weight if plus is None else plus,
        scale,
        shift,
        chunks,
        channels,
        group,
        float(span * pixels),
        eps,
        0 if plus is None or len(plus) == 1 else channels,
        PLUS=plus is not None,
        CHUNKS=max(4, 2048 // lanes),
        GROUP=lanes,
    )
    return scale, shift


def normalised(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    span: int,
    out: torch.Tensor,
    spread: float,
    *,
    silu: bool,
) -> torch.Tensor:
    frames, rows, channels = x.shape
    grid = (triton.cdiv(channels, COLUMNS), triton.cdiv(rows, 64), frames)
    strides = x.stride(0), out.stride(0), out.stride(1), scale.stride(0)
    in_bytes = out.dtype == FP8_DTYPE
    given = x, out, scale, shift, rows, channels, span, *strides, spread
    _launch(_apply, grid, *given, SILU=silu, BYTES=in_bytes, ROWS=64, COLS=COLUMNS)
    return out


@triton.jit(do_not_specialize=["rows", "per"])
def _layer_norm(
    x,
    y,
    plus,
    blend,
    out,
    weight,
    bias,
    rows,
    channels,
    per,
    eps,
    share,
    spread,
    PLUS: tl.constexpr,
    ADD: tl.constexpr,
    MIX: tl.constexpr,
    BARE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    frame, cols = tl.program_id(1), tl.arange(0, COLS)
    here = cols < channels
    # Loaded once for all rows of this program, which belong to one frame.
    table, mixed_in = tl.zeros([COLS], tl.float32), tl.zeros([COLS], tl.float32)
    if PLUS:
        table = tl.load(plus + frame * channels + cols, here, 0.0)
    if MIX:
        mixed_in = tl.load(blend + frame * channels + cols, here, 0.0)
    if not BARE:
        factor = tl.load(weight + cols, here, 0.0).to(tl.float32)[None, :]
        offset = tl.load(bias + cols, here, 0.0).to(tl.float32)[None, :]
    for start in range(0, per, ROWS):
        row = tl.program_id(0) * per + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & here[None, :]
        at = (frame.to(tl.int64) * rows + row)[:, None] * channels + cols[None, :]
        value = tl.load(x + at, inside, 0.0).to(tl.float32)
        if MIX:
            mixed = share * value + (1 - share) * tl.load(y + at, inside, 0.0).to(tl.float32)
            tl.store(y + at, mixed + mixed_in[None, :], inside)
        if ADD:
            value += tl.load(y + at, inside, 0.0).to(tl.float32)
        if PLUS:
            value += table[None, :]
        if ADD:
            tl.store(y + at, value, inside)
        mean = tl.sum(value, 1)[:, None] / channels
        centred = tl.where(here[None, :], value - mean, 0.0)
        made = centred * tl.rsqrt(tl.sum(centred * centred, 1)[:, None] / channels + eps)
        if BARE:
            made *= spread
        else:
            made = made * factor + offset
        tl.store(out + at, made.to(out.dtype.element_ty), inside)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    plus: torch.Tensor | None = None,
    add_to: torch.Tensor | None = None,
    mix_into: torch.Tensor | None = None,
    blend: torch.Tensor | None = None,
    share: float = 0.0,
    spread: float | None = None,
) -> torch.Tensor:
    channels = x.shape[1]
    frames = 1 if plus is None else len(plus)
    rows = len(x) // frames
    out = torch.empty_like(x, dtype=x.dtype if spread is None else FP8_DTYPE)
    cols = triton.next_power_of_2(channels)
    together, turns, warps = NORM
    height = max(1, together // cols)
    other = x if add_to is None else add_to
    _launch(
        _layer_norm,
        (triton.cdiv(rows, turns * height), frames),
        x,
        other if mix_into is None else mix_into,
        weight if plus is None else plus,
        weight if blend is None else blend,
        out,
        weight,
        bias,
        rows,
        channels,
        turns * height,
        eps,
        share,
        spread or 1.0,
        PLUS=plus is not None,
        ADD=add_to is not None,
        MIX=mix_into is not None,
        BARE=spread is not None,
        ROWS=height,
        COLS=cols,
        num_warps=warps,
    )
    return out


@triton.jit
def _gelu(x):
    return x / (1 + tl.exp2(power(x)))


@triton.jit(do_not_specialize=["rows"])
def _geglu(wide, out, rows, inner, ROWS: tl.constexpr, COLS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col, pair = tl.program_id(1) * COLS + tl.arange(0, COLS), tl.program_id(1) * 2 * COLS + tl.arange(0, 2 * COLS)
    source = wide + row[:, None].to(tl.int64) * 2 * inner + pair[None, :]
    both = tl.load(source, (row < rows)[:, None] & (pair < 2 * inner)[None, :], 0.0).to(tl.float32)
    value, gate = tl.split(tl.reshape(both, [ROWS, COLS, 2]))
    made = tl.permute(tl.reshape(value * _gelu(gate), [ROWS, COLS // 32, 8, 4]), [0, 1, 3, 2])
    inside = (row < rows)[:, None] & (col < inner)[None, :]
    tl.store(out + row[:, None].to(tl.int64) * inner + col[None, :], tl.reshape(made, [ROWS, COLS]), inside)


def geglu(wide: torch.Tensor) -> torch.Tensor:
    rows, inner = len(wide), wide.shape[1] // 2
    out = wide.new_empty(rows, inner)
    _launch(_geglu, (triton.cdiv(rows, 8), triton.cdiv(inner, 256)), wide, out, rows, inner, ROWS=8, COLS=256)
    return out


@triton.jit(do_not_specialize=["rows"])
def _product(
    x,
    weight,
    out,
    bias,
    scale,
    rows,
    cols,
    depth,
    factor,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    LASTING: tl.constexpr,
):
    down, across = tl.cdiv(rows, BM), tl.cdiv(cols, BN)
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=LASTING):
        m, n = _place(tile, down, across, GROUP)
        m, n = m * BM, n * BN
        sums = tl.zeros([BM, BN], tl.float32)
        for k in range(0, depth, BK):
            sums = tl.dot(x.load([m, k]), weight.load([n, k]).T, sums)
        col = n + tl.arange(0, BN)
        if SCALED:
            sums *= tl.load(scale + col, col < cols, 0.0)[None, :]
        if BIASED:
            sums += tl.load(bias + col, col < cols, 0.0).to(tl.float32)[None, :]
        if GATED:  # a thread has both each value and its gate
            value, gate = tl.split(tl.reshape(sums, [BM, BN // 2, 2]))
            made = tl.permute(tl.reshape(value * _gelu(gate), [BM, BN // 64, 8, 4]), [0, 1, 3, 2])
            made = tl.reshape(made, [BM, BN // 2])
            if SCALED:
                made = tl.clamp(made * factor, -448.0, 448.0)
            out.store([m, n // 2], made.to(out.dtype))
        else:
            if ADD:
                sums += out.load([m, n]).to(tl.float32)
            out.store([m, n], sums.to(out.dtype))


@triton.jit
def _place(tile, down, across, GROUP: tl.constexpr):
    """Return a tile's row and column. Tiles are in groups of rows, whose weights and pixels stay in the cache."""
    first = tile // (GROUP * across) * GROUP
    high = min(down - first, GROUP)
    inside = tile % (GROUP * across)
    return first + inside % high, inside // high


def gated(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor | None,
    out: torch.Tensor,
    factor: float,
) -> torch.Tensor:
    processors = _processors(x.device)
    if HAS_GLUON and x.is_cuda and stationary.fits(x, weight, processors):
        return stationary.gated(_launch, x, weight, bias, scale, out, factor, processors)
    return product(x, weight, bias, scale, out, gated=True, factor=factor)


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    out: torch.Tensor,
    *,
    gated: bool = False,
    add: bool = False,
    factor: float = 1.0,
    tile: Tile | None = None,
) -> torch.Tensor:
    rows, depth = x.shape
    cols = len(weight)
    bm, bn, bk, warps, stages, lasting = tile or PRODUCT[x.dtype.itemsize]
    tiles = triton.cdiv(rows, bm) * triton.cdiv(cols, bn)
    _launch(
        _product,
        (min(tiles, lasting * _processors(x.device)) if lasting else tiles,),
        TensorDescriptor.from_tensor(x, [bm, bk]),
        TensorDescriptor.from_tensor(weight, [bn, bk]),
        TensorDescriptor.from_tensor(out, [bm, bn // 2 if gated else bn]),
        x if bias is None else bias,
        x if scale is None else scale,
        rows,
        cols,
        depth,
        factor,
        GATED=gated,
        ADD=add,
        SCALED=scale is not None,
        BIASED=bias is not None,
        BM=bm,
        BN=bn,
        BK=bk,
        GROUP=8,
        LASTING=lasting > 0,
        num_warps=warps,
        num_stages=stages,
    )
    return out


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def convolves(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether to convolve [images, h, w, c] by [out, 3 · 3 · c] by `convolved`."""
    return HAS_GLUON and x.is_cuda and convolution.fits(x, weight)


def convolved(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    kept: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    return _few(convolution.convolved(_launch, x, weight, scale, kept, bias, out, _processors(x.device)))


def activated_convolves(parts: Sequence[torch.Tensor], weight: torch.Tensor) -> bool:
    """Return whether to normalise, activate and convolve images, [n, h, w, c] each, by `activated_convolved`."""
    return winograd.fits(parts, weight)


def activated_convolved(
    parts: Sequence[torch.Tensor],
    scales: tuple[torch.Tensor, torch.Tensor],
    weight: torch.Tensor,
    kept: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    return _few(winograd.convolved(_launch, parts, scales, weight, kept, bias, out))


def _few(sums: torch.Tensor) -> torch.Tensor:
    """Add up the partial sums if there are more than 64, so that the norm reads them quickly."""
    return sums if sums.shape[1] <= 64 else sums.sum(1, keepdim=True)


@triton.jit(do_not_specialize=["frames", "pixels"])
def _along_time(
    x,
    weight,
    scale,
    kept,
    bias,
    out,
    sums,
    frames,
    pixels,
    depth,
    cols,
    kept_frame,
    out_frame,
    KEPT: tl.constexpr,
    SCALED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    across = tl.cdiv(cols, BN)
    n, left = tl.program_id(0) % across * BN, tl.program_id(0) // across
    # Consecutive programs take all frames of the same pixels, because three programs read each frame.
    frame, tile = left % frames, left // frames
    place = tl.program_id(1) * frames + frame
    row, col = tile * BM + tl.arange(0, BM), n + tl.arange(0, BN)
    pieces = tl.cdiv(depth, BK)
    made = tl.zeros([BM, BN], tl.float32)
    for i in range(tl.maximum(1 - frame, 0) * pieces, tl.minimum(frames + 1 - frame, 3) * pieces):
        tap, k = i // pieces, i % pieces * BK
        seen = x.load([place + tap - 1, tile * BM, k]).reshape(BM, BK)
        made = tl.dot(seen, weight.load([n, tap * depth + k]).T, made)
    there = col < cols
    if SCALED:
        made *= tl.load(scale + col, there, 0.0)[None, :]
    inside = (row < pixels)[:, None] & there[None, :]
    at = row[:, None].to(tl.int64) * cols + col[None, :]
    if KEPT:
        made += tl.load(kept + place.to(tl.int64) * kept_frame + at, inside, 0.0).to(tl.float32)
        made += tl.load(bias + col, there, 0.0).to(tl.float32)[None, :]
    tl.store(out + place.to(tl.int64) * out_frame + at, made.to(out.dtype.element_ty), inside)
    made = tl.where(inside, made, 0.0)
    to = sums + (place.to(tl.int64) * tl.cdiv(pixels, BM) + tile) * 2 * cols + col
    tl.store(to, tl.sum(made, 0), there)
    tl.store(to + cols, tl.sum(made * made, 0), there)


def along_time(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    span: int,
    kept: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *,
    tile: Tile | None = None,
) -> torch.Tensor:
    frames, pixels, depth = x.shape
    cols = len(weight)
    if tile is None and HAS_GLUON and x.is_cuda:
        clips = _by_clip(x, span)
        if convolution.fits(clips, weight, adds=kept is not None):
            added = None if kept is None else _by_clip(kept, span)
            return convolved(clips, weight, scale, added, bias, _by_clip(out, span))
    bm, bn, bk, warps, stages, _ = tile or _along_time_tile(depth, pixels, x.dtype.itemsize)
    tiles = triton.cdiv(pixels, bm)
    sums = out.new_empty(frames, tiles, 2, cols, dtype=torch.float32)
    _launch(
        _along_time,
        (tiles * span * triton.cdiv(cols, bn), frames // span),
        TensorDescriptor.from_tensor(x, [1, bm, bk]),
        TensorDescriptor.from_tensor(weight, [bn, bk]),
        x if scale is None else scale,
        x if kept is None else kept,
        x if bias is None else bias,
        out,
        sums,
        span,
        pixels,
        depth,
        cols,
        0 if kept is None else kept.stride(0),
        out.stride(0),
        KEPT=kept is not None,
        SCALED=scale is not None,
        BM=bm,
        BN=bn,
        BK=bk,
        num_warps=warps,
        num_stages=stages,
    )
    return _few(sums.view(frames // span, -1, 2, cols) if kept is None else sums)


def _by_clip(x: torch.Tensor, span: int) -> torch.Tensor:
    """Return a view of [frames, pixels, c] as [videos, span, pixels, c]."""
    return x.view(-1, span, *x.shape[1:])


def _along_time_tile(depth: int, pixels: int, itemsize: int) -> Tile:
    """Return the fastest tile measured on an H100, by channels (few in the decoder), frame size and itemsize."""
    if itemsize == 1:
        return 128, 128, 128, 4, 3, 0
    if depth <= 256:
        return 128, 128, 64, 4, 3, 0
    return (256, 128, 64, 8, 4, 0) if pixels >= 2048 else (128, 256, 64, 8, 3, 0)


@triton.jit(do_not_specialize=["frames", "pixels"])
def _time_attention(qkv, out, frames, pixels, heads, scale, FRAMES: tl.constexpr, DEPTH: tl.constexpr):
    head, pixel = tl.program_id(0) % heads, tl.program_id(0) // heads
    channels = heads * DEPTH
    f, d = tl.arange(0, FRAMES), tl.arange(0, DEPTH)
    there = (f < frames)[:, None]
    row = (tl.program_id(1).to(tl.int64) * frames + f[:, None]) * pixels + pixel
    at = qkv + row * 3 * channels + head * DEPTH + d[None, :]
    q = tl.load(at, there, 0.0)
    k = tl.load(at + channels, there, 0.0)
    v = tl.load(at + 2 * channels, there, 0.0)
    scores = tl.dot(q, tl.trans(k)) * scale
    scores = tl.where((f < frames)[None, :], scores, float("-inf"))
    scores = tl.exp(scores - tl.max(scores, 1)[:, None])
    taken = tl.dot(scores.to(v.dtype), v) / tl.sum(scores, 1)[:, None]
    tl.store(out + row * channels + head * DEPTH + d[None, :], taken, there)


def time_attention(qkv: torch.Tensor) -> torch.Tensor:
    batch, frames, pixels, _, heads, depth = qkv.shape
    out = qkv.new_empty(batch, frames, pixels, heads * depth)
    _launch(
        _time_attention,
        (pixels * heads, batch),
        qkv,
        out,
        frames,
        pixels,
        heads,
        depth**-0.5,
        FRAMES=max(16, triton.next_power_of_2(frames)),
        DEPTH=depth,
        num_warps=1,
    )
    return out


def frame_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    frames, heads, pixels, depth = q.shape
    return attention.frame_attention(_launch, q, k, v, q.new_empty(frames, pixels, heads * depth))


@triton.jit
def _softmax(scores, out, cols, scale, COLS: tl.constexpr):
    row, col = tl.program_id(0).to(tl.int64), tl.arange(0, COLS)
    value = tl.load(scores + row * cols + col, col < cols, float("-inf")) * scale
    value = tl.exp(value - tl.max(value, 0))
    tl.store(out + row * cols + col, (value / tl.sum(value, 0)).to(out.dtype.element_ty), col < cols)


def softmax(scores: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
    rows, cols = scores.shape
    _launch(_softmax, (rows,), scores, out, cols, scale, COLS=triton.next_power_of_2(cols), num_warps=8)
    return out

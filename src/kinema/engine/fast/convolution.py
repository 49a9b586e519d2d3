"""Convolutions whose kernel is three pixels high (Gluon, for Hopper): 3×3, and 3×1 along time, where a picture's rows are frames.

A program makes one tile after the other, of 192 pixels and 128 columns. One warp has the copy engine bring a tile's
pixels with a row more above and below, some channels at a time, and what lies outside the picture as zeros: so the
kernel's three rows are three places in what was brought once. Three groups of four warps multiply 64 of the pixels each,
and leave what they made in shared memory. From there one more group adds, sums up and stores it, while the three have
long gone on with the next tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kinema.engine.fast.hopper import fetch

if TYPE_CHECKING:
    from collections.abc import Callable

# Groups that multiply, of which the kernel names each; pixels of each, and columns of a tile.
GROUPS, PIXELS, COLUMNS = gl.constexpr(3), gl.constexpr(64), gl.constexpr(128)
# Bytes of a pixel's channels, or a column's, that are brought at a time, and places for them.
BYTES, PIXELS_PLACES, WEIGHTS_PLACES = 128, 2, 6
# A tile's rows, and its pixels in each: within frames, within narrow ones, and along time.
WITHIN, NARROW, ALONG = (6, 32), (12, 16), (3, 64)
# Pixels of a frame from which on this is quicker than cuDNN's, and channels for which it is than a plain kernel along time.
MANY_PIXELS, MANY_CHANNELS = 1024, 320


def fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether this is the way to convolve [n, h, w, c] by a weight, [columns, 3 · across · c]."""
    if x.shape[3] * x.itemsize % 16:
        return False
    if x.itemsize == 1:
        return True
    if weight.shape[1] == 3 * x.shape[3]:
        return x.shape[3] >= MANY_CHANNELS
    return len(weight) % (COLUMNS.value // 2) == 0 and x.shape[1] * x.shape[2] >= MANY_PIXELS


def convolved(
    launch: Callable[..., None],
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    kept: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    processors: int,
    places: tuple[int, int] = (PIXELS_PLACES, WEIGHTS_PLACES),
) -> torch.Tensor:
    """x: [n, h, w, c]; weight: [columns, 3 · across · c]; → sums, [n or n · h, pieces, 2, columns]."""
    count, high, wide, depth = x.shape
    columns, across = len(weight), weight.shape[1] // (3 * depth)
    rows, pixels = ALONG if across == 1 else NARROW if wide <= NARROW[1] else WITHIN
    box = (rows + 2) & -(rows + 2)  # rows that are brought at once: a power of two
    down, along = triton.cdiv(high, rows), triton.cdiv(wide, pixels)
    apart = across == 1 and kept is not None
    pieces = (count * high, along) if apart else (count, down * along)
    sums = out.new_empty(*pieces, 2, columns, dtype=torch.float32)
    deep, bits = BYTES // x.itemsize, 8 * x.itemsize
    launch(
        _convolved,
        (min(count * down * along * triton.cdiv(columns, COLUMNS.value), processors),),
        TensorDescriptor.from_tensor(x, [1, box, pixels, deep], _layout(bits, 4)),
        TensorDescriptor.from_tensor(weight, [COLUMNS.value, deep], _layout(bits, 2)),
        out,
        out if kept is None else kept,
        sums if bias is None else bias,
        sums if scale is None else scale,
        sums,
        count,
        high,
        wide,
        depth,
        columns,
        (out.stride(0), out.stride(1)),
        (0, 0) if kept is None else (kept.stride(0), kept.stride(1)),
        ACROSS=across,
        HIGH=rows,
        PIXELS_PLACES=places[0],
        WEIGHTS_PLACES=places[1],
        KEPT=kept is not None,
        SCALED=scale is not None,
        WHOLE=high % rows == 0 and wide % pixels == 0,
        HALF=0 < columns % COLUMNS.value <= COLUMNS.value // 2,
        num_warps=4,
    )
    return sums


def _layout(bits: int, rank: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(BYTES, bits, rank)


@gluon.jit(do_not_specialize=["count", "high", "wide"])
def _convolved(
    x,
    weight,
    out,
    kept,
    bias,
    scale,
    sums,
    count,
    high,
    wide,
    depth,
    columns,
    out_strides,
    kept_strides,
    ACROSS: gl.constexpr,
    HIGH: gl.constexpr,
    PIXELS_PLACES: gl.constexpr,
    WEIGHTS_PLACES: gl.constexpr,
    KEPT: gl.constexpr,
    SCALED: gl.constexpr,
    WHOLE: gl.constexpr,
    HALF: gl.constexpr,
):
    WIDE: gl.constexpr = x.block_type.shape[2]
    STRIPS: gl.constexpr = (HIGH + 2) * WIDE // min(WIDE, PIXELS)
    deep: gl.constexpr = x.block_type.shape[3]
    pixels = gl.allocate_shared_memory(x.dtype, [PIXELS_PLACES * STRIPS, min(WIDE, PIXELS), deep], weight.layout)
    weights = gl.allocate_shared_memory(weight.dtype, [WEIGHTS_PLACES, COLUMNS, deep], weight.layout)
    staged_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    staged = gl.allocate_shared_memory(out.dtype.element_ty, [GROUPS * COLUMNS // 64, PIXELS, 64], staged_layout)
    layout: gl.constexpr = mbarrier.MBarrierLayout()
    full = gl.allocate_shared_memory(gl.int64, [PIXELS_PLACES, 1], layout)
    free = gl.allocate_shared_memory(gl.int64, [PIXELS_PLACES, 1], layout)
    filled = gl.allocate_shared_memory(gl.int64, [WEIGHTS_PLACES, 1], layout)
    freed = gl.allocate_shared_memory(gl.int64, [WEIGHTS_PLACES, 1], layout)
    ready = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], layout)
    taken = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], layout)
    for i in gl.static_range(PIXELS_PLACES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(free.index(i), count=GROUPS)
    for i in gl.static_range(WEIGHTS_PLACES):
        mbarrier.init(filled.index(i), count=1)
        mbarrier.init(freed.index(i), count=GROUPS)
    for i in gl.static_range(GROUPS):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(taken.index(i), count=1)
    fence_async_shared()
    shared = pixels, weights, staged, full, free, filled, freed, ready, taken
    work = x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides
    gl.warp_specialize(
        [
            (_multiply, (0, shared, work, ACROSS, HIGH, PIXELS_PLACES, WEIGHTS_PLACES, KEPT, SCALED, HALF)),
            (_multiply, (1, shared, work, ACROSS, HIGH, PIXELS_PLACES, WEIGHTS_PLACES, KEPT, SCALED, HALF)),
            (_multiply, (2, shared, work, ACROSS, HIGH, PIXELS_PLACES, WEIGHTS_PLACES, KEPT, SCALED, HALF)),
            (_finish, (shared, work, ACROSS, HIGH, KEPT, WHOLE, HALF)),
            (_bring, (shared, work, ACROSS, HIGH, PIXELS_PLACES, WEIGHTS_PLACES)),
        ],
        [4, 4, 4, 1],  # warps of all but the first, which has 4 too
        [96, 96, 128, 24],  # registers of a thread; the first group's have what is left
    )


@gluon.jit
def _tiles(work, HIGH: gl.constexpr):
    """How many there are."""
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides = work
    return count * gl.cdiv(high, HIGH) * gl.cdiv(wide, x.block_type.shape[2]) * gl.cdiv(columns, COLUMNS)


@gluon.jit
def _place(tile, work, HIGH: gl.constexpr):
    """A tile's picture, its number in it, its first row, first pixel there and first column.

    Neighbours have the same pixels, and each program comes to all columns.
    """
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides = work
    parts, along = gl.cdiv(columns, COLUMNS), gl.cdiv(wide, x.block_type.shape[2])
    each = gl.cdiv(high, HIGH) * along
    picture, number = tile // parts // each, tile // parts % each
    part = (tile + tile // parts // gl.cdiv(gl.num_programs(0), parts)) % parts
    return picture, number, number // along * HIGH, number % along * x.block_type.shape[2], part * COLUMNS


@gluon.jit
def _bring(
    shared,
    work,
    ACROSS: gl.constexpr,
    HIGH: gl.constexpr,
    PIXELS_PLACES: gl.constexpr,
    WEIGHTS_PLACES: gl.constexpr,
):
    """Pixels and weights, piece by piece, wherever a place is free."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides = work
    BOX: gl.constexpr = x.block_type.shape[1]
    WIDE: gl.constexpr = x.block_type.shape[2]
    DEEP: gl.constexpr = x.block_type.shape[3]
    STRIPS: gl.constexpr = WIDE // pixels.shape[1]
    turn = 0
    for tile in range(gl.program_id(0), _tiles(work, HIGH), gl.num_programs(0)):
        picture, number, top, left, column = _place(tile, work, HIGH)
        for i in range(gl.cdiv(depth, DEEP) * ACROSS):
            k, tap = i // ACROSS * DEEP, i % ACROSS
            place = turn % PIXELS_PLACES
            mbarrier.wait(free.index(place), (turn // PIXELS_PLACES & 1) ^ 1)
            mbarrier.expect(full.index(place), (HIGH + 2) // BOX * x.block_type.nbytes)
            for y in gl.static_range(0, HIGH + 2, BOX):
                to = pixels.index((place * (HIGH + 2) + y) * STRIPS)
                to = to._reinterpret(x.dtype, x.block_type.shape, x.layout)
                fetch(x, [picture, top - 1 + y, left + tap - ACROSS // 2, k], full.index(place), to)
            for y in gl.static_range(3):
                at = (3 * turn + y) % WEIGHTS_PLACES
                mbarrier.wait(freed.index(at), ((3 * turn + y) // WEIGHTS_PLACES & 1) ^ 1)
                mbarrier.expect(filled.index(at), weight.block_type.nbytes)
                fetch(weight, [column, (y * ACROSS + tap) * depth + k], filled.index(at), weights.index(at))
            turn += 1


@gluon.jit
def _multiply(
    WHICH: gl.constexpr,
    shared,
    work,
    ACROSS: gl.constexpr,
    HIGH: gl.constexpr,
    PIXELS_PLACES: gl.constexpr,
    WEIGHTS_PLACES: gl.constexpr,
    KEPT: gl.constexpr,
    SCALED: gl.constexpr,
    HALF: gl.constexpr,
):
    """A group: its 64 pixels of each tile."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides = work
    turn = 0
    now = 0
    for tile in range(gl.program_id(0), _tiles(work, HIGH), gl.num_programs(0)):
        column = _place(tile, work, HIGH)[4]
        pieces = gl.cdiv(depth, x.block_type.shape[3]) * ACROSS
        at = turn, pieces, now, column
        if HALF:
            if column + COLUMNS // 2 >= columns:
                _tile(WHICH, at, shared, work, HIGH, PIXELS_PLACES, WEIGHTS_PLACES, KEPT, SCALED, COLUMNS // 2)
            else:
                _tile(WHICH, at, shared, work, HIGH, PIXELS_PLACES, WEIGHTS_PLACES, KEPT, SCALED, COLUMNS)
        else:
            _tile(WHICH, at, shared, work, HIGH, PIXELS_PLACES, WEIGHTS_PLACES, KEPT, SCALED, COLUMNS)
        turn += pieces
        now += 1


@gluon.jit
def _tile(
    WHICH: gl.constexpr,
    at,
    shared,
    work,
    HIGH: gl.constexpr,
    PIXELS_PLACES: gl.constexpr,
    WEIGHTS_PLACES: gl.constexpr,
    KEPT: gl.constexpr,
    SCALED: gl.constexpr,
    BN: gl.constexpr,
):
    """A group's part of one tile, left in shared memory."""
    turn, pieces, now, column = at
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides = work
    WIDE: gl.constexpr = x.block_type.shape[2]
    STRIP: gl.constexpr = pixels.shape[1]
    BITS: gl.constexpr = x.dtype.primitive_bitwidth
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 256 // BITS])
    made = gl.zeros([PIXELS, BN], gl.float32, layout)
    if KEPT and not SCALED:
        col = column + gl.arange(0, BN, gl.SliceLayout(0, layout))
        made += gl.load(bias + col, col < columns, 0.0)[None, :]
    for i in range(pieces):
        place = (turn + i) % PIXELS_PLACES
        mbarrier.wait(full.index(place), (turn + i) // PIXELS_PLACES & 1)
        for y in gl.static_range(3):
            count_of = 3 * (turn + i) + y
            mbarrier.wait(filled.index(count_of % WEIGHTS_PLACES), count_of // WEIGHTS_PLACES & 1)
            seen = pixels.index((place * (HIGH + 2) * WIDE + WHICH * PIXELS + y * WIDE) // STRIP)
            seen = seen._reinterpret(x.dtype, [PIXELS, x.block_type.shape[3]], weight.layout)
            by = weights.index(count_of % WEIGHTS_PLACES).slice(0, BN).permute([1, 0])
            made = warpgroup_mma(seen, by, made, is_async=True)
            made = warpgroup_mma_wait(1, [made])
            before = (count_of + WEIGHTS_PLACES - 1) % WEIGHTS_PLACES
            if y == 0:
                mbarrier.arrive(freed.index(before), pred=i > 0)
                mbarrier.arrive(free.index((turn + i + PIXELS_PLACES - 1) % PIXELS_PLACES), pred=i > 0)
            else:
                mbarrier.arrive(freed.index(before))
    made = warpgroup_mma_wait(0, [made])
    mbarrier.arrive(freed.index((3 * (turn + pieces) + WEIGHTS_PLACES - 1) % WEIGHTS_PLACES))
    mbarrier.arrive(free.index((turn + pieces + PIXELS_PLACES - 1) % PIXELS_PLACES))
    mbarrier.wait(taken.index(WHICH), (now & 1) ^ 1)
    if BN == 64:
        _stage(made, WHICH * 2, column, shared, work, KEPT, SCALED)
    else:
        first, second = gl.split(gl.permute(gl.reshape(made, [PIXELS, 2, BN // 2]), [0, 2, 1]))
        _stage(first, WHICH * 2, column, shared, work, KEPT, SCALED)
        _stage(second, WHICH * 2 + 1, column + BN // 2, shared, work, KEPT, SCALED)
    mbarrier.arrive(ready.index(WHICH))


@gluon.jit
def _stage(made, place, column, shared, work, KEPT: gl.constexpr, SCALED: gl.constexpr):
    """64 columns, in the result's arithmetic."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides = work
    if SCALED:
        col = column + gl.arange(0, 64, gl.SliceLayout(0, made.type.layout))
        made *= gl.load(scale + col, col < columns, 0.0)[None, :]
        if KEPT:
            made += gl.load(bias + col, col < columns, 0.0)[None, :]
    staged.index(place).store(made.to(out.dtype.element_ty))


# Eight numbers of a row are a thread's, and eight threads have 64 columns, of 16 rows at a time.
ROWS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [16, 0], [32, 0]],
        [[0, 8], [0, 16], [0, 32], [1, 0], [2, 0]],
        [[4, 0], [8, 0]],
        [],
        [64, 64],
    )
)


@gluon.jit
def _finish(
    shared,
    work,
    ACROSS: gl.constexpr,
    HIGH: gl.constexpr,
    KEPT: gl.constexpr,
    WHOLE: gl.constexpr,
    HALF: gl.constexpr,
):
    """Add to what the groups have made, sum it up and store it."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides = work
    now = 0
    for tile in range(gl.program_id(0), _tiles(work, HIGH), gl.num_programs(0)):
        place = _place(tile, work, HIGH)
        _finish_part(0, place, now, shared, work, ACROSS, HIGH, KEPT, WHOLE)
        if HALF:
            if place[4] + COLUMNS // 2 < columns:
                _finish_part(1, place, now, shared, work, ACROSS, HIGH, KEPT, WHOLE)
        else:
            _finish_part(1, place, now, shared, work, ACROSS, HIGH, KEPT, WHOLE)
        for i in gl.static_range(GROUPS):
            mbarrier.arrive(taken.index(i))
        now += 1


@gluon.jit
def _finish_part(
    PART: gl.constexpr,
    place,
    now,
    shared,
    work,
    ACROSS: gl.constexpr,
    HIGH: gl.constexpr,
    KEPT: gl.constexpr,
    WHOLE: gl.constexpr,
):
    """64 columns of all groups."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides = work
    picture, number, top, left, column = place
    WIDE: gl.constexpr = x.block_type.shape[2]
    APART: gl.constexpr = ACROSS == 1 and KEPT
    col = column + PART * 64 + gl.arange(0, 64, gl.SliceLayout(0, ROWS))
    there = col < columns
    total = gl.zeros([PIXELS, 64], gl.float32, ROWS)
    square = gl.zeros([PIXELS, 64], gl.float32, ROWS)
    to_picture = out + picture.to(gl.int64) * out_strides[0] + top.to(gl.int64) * out_strides[1]
    from_picture = kept + picture.to(gl.int64) * kept_strides[0] + top.to(gl.int64) * kept_strides[1]
    for i in gl.static_range(GROUPS):
        pixel = i * PIXELS + gl.arange(0, PIXELS, gl.SliceLayout(1, ROWS))
        y, along = pixel // WIDE, left + pixel % WIDE
        inside = there[None, :]
        if not WHOLE:
            inside = inside & ((top + y < high) & (along < wide))[:, None]
        if KEPT:
            row = from_picture + y.to(gl.int64) * kept_strides[1] + along * columns
            add = gl.load(row[:, None] + col[None, :], inside, 0.0)
        if PART == 0:
            mbarrier.wait(ready.index(i), now & 1)
        made = staged.index(i * 2 + PART).load(ROWS)
        if KEPT:
            made += add
        row = to_picture + y.to(gl.int64) * out_strides[1] + along * columns
        gl.store(row[:, None] + col[None, :], made, inside)
        if not WHOLE:
            made = gl.where(inside, made, 0.0)
        made = made.to(gl.float32)
        if APART:
            piece = (picture * high + top + i) * gl.cdiv(wide, WIDE) + left // WIDE
            _sum_up(made, made * made, piece, col, there & (top + i < high), work)
        else:
            total += made
            square += made * made
    if not APART:
        _sum_up(total, square, picture * gl.cdiv(high, HIGH) * gl.cdiv(wide, WIDE) + number, col, there, work)


@gluon.jit
def _sum_up(made, square, piece, col, there, work):
    """Over all rows."""
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_strides, kept_strides = work
    to = sums + piece.to(gl.int64) * 2 * columns + col
    total, square = gl.split(gl.sum(gl.join(made, square), 0))
    gl.store(to, gl.convert_layout(total, gl.SliceLayout(0, ROWS)), there)
    gl.store(to + columns, gl.convert_layout(square, gl.SliceLayout(0, ROWS)), there)

"""3×3 convolutions, and 3×1 convolutions along time, where frames are the rows of an image (Gluon, for Hopper).

A program computes one tile after the other, of 192 pixels and 128 columns. One warp has the copy engine load strips of
pixels, some channels at a time: those of the tile and those a row above and below, with zeros outside the image. In
wide images a strip is part of one row, so that it serves all three rows of the kernel. Three groups of four warps
multiply 64 pixels each and store their results in shared memory. One more group adds the residual, computes channel
sums and stores the result, while the three already compute the next tile.
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

# Groups that multiply (the kernel lists each explicitly), pixels per group, and columns of a tile.
GROUPS, PIXELS, COLUMNS = gl.constexpr(3), gl.constexpr(64), gl.constexpr(128)
# Bytes loaded at a time of a pixel's channels or a column's, and buffers for all strips of a tile.
BYTES, PLACES = 128, gl.constexpr(2)
# Shared memory for these buffers and the weights.
SHARED = 176 * 1024
# Row width from which this is faster than cuDNN's 3×3; and channels from which it is faster along time than the
# Triton kernel if something is added: with that many, the multiplication takes long enough to hide the addition.
WIDE_ENOUGH, MANY_CHANNELS = 40, 320


def fits(x: torch.Tensor, weight: torch.Tensor, *, adds: bool = False) -> bool:
    """Return whether to use this kernel for [n, h, w, c] and a weight, [columns, 3 · across · c].

    No other implementation of fp8 convolutions is fast. `adds`: whether something is added to a convolution along time.
    """
    if x.shape[3] * x.itemsize % 16:
        return False
    if x.itemsize == 1:
        return True
    if weight.shape[1] == 3 * x.shape[3]:
        return x.shape[3] >= MANY_CHANNELS or not adds
    return len(weight) % (COLUMNS.value // 2) == 0 and x.shape[2] >= WIDE_ENOUGH


def convolved(
    launch: Callable[..., None],
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    kept: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    processors: int,
) -> torch.Tensor:
    """Convolve into `out`, optionally add `kept` and `bias`, and return the channel sums of the result.

    Args:
        launch: Launches a kernel.
        x: [n, h, w, c], 16-bit or fp8.
        weight: [columns, 3 · across · c], of the same dtype; `across` is 3, or 1 along time.
        scale: [columns], multiplies the result.
        kept: [n, h, w, columns], laid out like `out`; requires `bias`.
        bias: [columns], float32, added with `kept`.
        out: [n, h, w, columns], which may be `kept`. The pixels of a row are contiguous; the distance in memory between
            consecutive rows, across all images, is constant.
        processors: Number of the GPU's multiprocessors.

    Returns:
        Sums of each n, or of each n · h if something is added along time: [n or n · h, pieces, 2, columns].
    """
    count, high, wide, depth = x.shape
    columns, across = len(weight), weight.shape[1] // (3 * depth)
    rise = 1 if across == 1 or wide > 32 else 2 if wide > 16 else 4  # rows per strip
    rows, pixels = GROUPS.value * rise, PIXELS.value // rise
    down, along = triton.cdiv(high, rows), triton.cdiv(wide, pixels)
    apart = across == 1 and kept is not None
    pieces = (count * high, along) if apart else (count, down * along)
    sums = out.new_empty(*pieces, 2, columns, dtype=torch.float32)
    deep, bits = BYTES // x.itemsize, 8 * x.itemsize
    launch(
        _convolved,
        (min(count * down * along * triton.cdiv(columns, COLUMNS.value), processors),),
        TensorDescriptor.from_tensor(x, [1, rise, pixels, deep], gl.NVMMASharedLayout(BYTES, bits, 4)),
        TensorDescriptor.from_tensor(weight, [COLUMNS.value, deep], gl.NVMMASharedLayout(BYTES, bits, 2)),
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
        out.stride(1),
        0 if kept is None else kept.stride(1),
        ACROSS=across,
        STRIPS=_strips(rise),
        WEIGHTS_PLACES=(SHARED - PLACES.value * _strips(rise) * PIXELS.value * BYTES) // (COLUMNS.value * BYTES),
        KEPT=kept is not None,
        SCALED=scale is not None,
        HALF=0 < columns % COLUMNS.value <= COLUMNS.value // 2,
        num_warps=4,
    )
    return sums


def _strips(rise: int) -> int:
    """Return the number of strips of a tile: three rows per group; adjacent groups share strips where they can."""
    count: int = min(rise, 3) * (GROUPS.value - 1) + 3
    return count


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
    out_row,
    kept_row,
    ACROSS: gl.constexpr,
    STRIPS: gl.constexpr,
    WEIGHTS_PLACES: gl.constexpr,
    KEPT: gl.constexpr,
    SCALED: gl.constexpr,
    HALF: gl.constexpr,
):
    pixels = gl.allocate_shared_memory(x.dtype, [PLACES * STRIPS] + x.block_type.shape, x.layout)
    weights = gl.allocate_shared_memory(weight.dtype, [WEIGHTS_PLACES] + weight.block_type.shape, weight.layout)
    staged_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    staged = gl.allocate_shared_memory(out.dtype.element_ty, [GROUPS * COLUMNS // 64, PIXELS, 64], staged_layout)
    layout: gl.constexpr = mbarrier.MBarrierLayout()
    full = gl.allocate_shared_memory(gl.int64, [PLACES, 1], layout)
    free = gl.allocate_shared_memory(gl.int64, [PLACES, 1], layout)
    filled = gl.allocate_shared_memory(gl.int64, [WEIGHTS_PLACES, 1], layout)
    freed = gl.allocate_shared_memory(gl.int64, [WEIGHTS_PLACES, 1], layout)
    ready = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], layout)
    taken = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], layout)
    for i in gl.static_range(PLACES):
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
    work = x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row
    gl.warp_specialize(
        [
            (_multiply, (0, shared, work, ACROSS, KEPT, SCALED, HALF)),
            (_multiply, (1, shared, work, ACROSS, KEPT, SCALED, HALF)),
            (_multiply, (2, shared, work, ACROSS, KEPT, SCALED, HALF)),
            (_finish, (shared, work, ACROSS, KEPT, HALF)),
            (_bring, (shared, work, ACROSS)),
        ],
        [4, 4, 4, 1],  # warps of each group after the first, which has 4 too
        [96, 96, 128, 24],  # registers per thread; the first group gets the rest
    )


@gluon.jit
def _tiles(work):
    """Return the number of tiles down an image, along its rows, and in total."""
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row = work
    down, along = gl.cdiv(high, GROUPS * x.block_type.shape[1]), gl.cdiv(wide, x.block_type.shape[2])
    return down, along, count * down * along * gl.cdiv(columns, COLUMNS)


@gluon.jit
def _place(tile, work):
    """Return a tile's image, its index in it, its first row, its first pixel in that row and its first column.

    Neighbouring tiles have the same pixels, and each program gets all columns in turn.
    """
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row = work
    down, along, every = _tiles(work)
    parts = gl.cdiv(columns, COLUMNS)
    picture, number = tile // parts // (down * along), tile // parts % (down * along)
    part = (tile + tile // parts // gl.cdiv(gl.num_programs(0), parts)) % parts
    top, left = number // along * GROUPS * x.block_type.shape[1], number % along * x.block_type.shape[2]
    return picture, number, top, left, part * COLUMNS


@gluon.jit
def _bring(shared, work, ACROSS: gl.constexpr):
    """Load pixels and weights, piece by piece, as soon as a buffer is free."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row = work
    STRIPS: gl.constexpr = pixels.shape[0] // PLACES
    WEIGHTS_PLACES: gl.constexpr = weights.shape[0]
    RISE: gl.constexpr = x.block_type.shape[1]
    STEP: gl.constexpr = min(RISE, 3)
    DEEP: gl.constexpr = x.block_type.shape[3]
    turn = 0
    for tile in range(gl.program_id(0), _tiles(work)[2], gl.num_programs(0)):
        picture, number, top, left, column = _place(tile, work)
        for i in range(gl.cdiv(depth, DEEP) * ACROSS):
            k, tap = i // ACROSS * DEEP, i % ACROSS
            place = turn % PLACES
            mbarrier.wait(free.index(place), (turn // PLACES & 1) ^ 1)
            mbarrier.expect(full.index(place), STRIPS * x.block_type.nbytes)
            for strip in gl.static_range(STRIPS):
                at = [picture, top - 1 + strip // STEP * RISE + strip % STEP, left + tap - ACROSS // 2, k]
                fetch(x, at, full.index(place), pixels.index(place * STRIPS + strip))
            for y in gl.static_range(3):
                each = 3 * turn + y
                mbarrier.wait(freed.index(each % WEIGHTS_PLACES), (each // WEIGHTS_PLACES & 1) ^ 1)
                mbarrier.expect(filled.index(each % WEIGHTS_PLACES), weight.block_type.nbytes)
                at = [column, (y * ACROSS + tap) * depth + k]
                fetch(weight, at, filled.index(each % WEIGHTS_PLACES), weights.index(each % WEIGHTS_PLACES))
            turn += 1


@gluon.jit
def _multiply(
    WHICH: gl.constexpr,
    shared,
    work,
    ACROSS: gl.constexpr,
    KEPT: gl.constexpr,
    SCALED: gl.constexpr,
    HALF: gl.constexpr,
):
    """Run one group: compute its 64 pixels of each tile."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row = work
    turn = 0
    now = 0
    for tile in range(gl.program_id(0), _tiles(work)[2], gl.num_programs(0)):
        picture, number, top, left, column = _place(tile, work)
        pieces = gl.cdiv(depth, x.block_type.shape[3]) * ACROSS
        at = turn, pieces, now, column
        if top + WHICH * x.block_type.shape[1] >= high:  # none of its pixels is in the image
            _skip(WHICH, at, shared)
        elif HALF:
            if column + COLUMNS // 2 >= columns:
                _tile(WHICH, at, shared, work, KEPT, SCALED, COLUMNS // 2)
            else:
                _tile(WHICH, at, shared, work, KEPT, SCALED, COLUMNS)
        else:
            _tile(WHICH, at, shared, work, KEPT, SCALED, COLUMNS)
        turn += pieces
        now += 1


@gluon.jit
def _skip(WHICH: gl.constexpr, at, shared):
    """Skip a tile in which the group has no pixels: release what is loaded."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    WEIGHTS_PLACES: gl.constexpr = weights.shape[0]
    turn, pieces, now, column = at
    for i in range(turn, turn + pieces):
        mbarrier.wait(full.index(i % PLACES), i // PLACES & 1)
        mbarrier.arrive(free.index(i % PLACES))
        for y in gl.static_range(3):
            each = 3 * i + y
            mbarrier.wait(filled.index(each % WEIGHTS_PLACES), each // WEIGHTS_PLACES & 1)
            mbarrier.arrive(freed.index(each % WEIGHTS_PLACES))
    mbarrier.wait(taken.index(WHICH), (now & 1) ^ 1)
    mbarrier.arrive(ready.index(WHICH))


@gluon.jit
def _tile(
    WHICH: gl.constexpr,
    at,
    shared,
    work,
    KEPT: gl.constexpr,
    SCALED: gl.constexpr,
    BN: gl.constexpr,
):
    """Compute a group's part of one tile and store it in shared memory."""
    turn, pieces, now, column = at
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row = work
    STRIPS: gl.constexpr = pixels.shape[0] // PLACES
    WEIGHTS_PLACES: gl.constexpr = weights.shape[0]
    STEP: gl.constexpr = min(x.block_type.shape[1], 3)
    BITS: gl.constexpr = x.dtype.primitive_bitwidth
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 256 // BITS])
    made = gl.zeros([PIXELS, BN], gl.float32, layout)
    if KEPT and not SCALED:
        col = column + gl.arange(0, BN, gl.SliceLayout(0, layout))
        made += gl.load(bias + col, col < columns, 0.0)[None, :]
    for i in range(pieces):
        place = (turn + i) % PLACES
        mbarrier.wait(full.index(place), (turn + i) // PLACES & 1)
        for y in gl.static_range(3):
            each = 3 * (turn + i) + y
            mbarrier.wait(filled.index(each % WEIGHTS_PLACES), each // WEIGHTS_PLACES & 1)
            seen = pixels.index(place * STRIPS + STEP * WHICH + y).reshape([PIXELS, x.block_type.shape[3]])
            by = weights.index(each % WEIGHTS_PLACES).slice(0, BN).permute([1, 0])
            made = warpgroup_mma(seen, by, made, is_async=True)
            made = warpgroup_mma_wait(1, [made])
            before = (each + WEIGHTS_PLACES - 1) % WEIGHTS_PLACES
            if y == 0:
                mbarrier.arrive(freed.index(before), pred=i > 0)
                mbarrier.arrive(free.index((turn + i + PLACES - 1) % PLACES), pred=i > 0)
            else:
                mbarrier.arrive(freed.index(before))
    made = warpgroup_mma_wait(0, [made])
    mbarrier.arrive(freed.index((3 * (turn + pieces) + WEIGHTS_PLACES - 1) % WEIGHTS_PLACES))
    mbarrier.arrive(free.index((turn + pieces + PLACES - 1) % PLACES))
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
    """Store 64 columns in shared memory, in the dtype of the result."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row = work
    if SCALED:
        col = column + gl.arange(0, 64, gl.SliceLayout(0, made.type.layout))
        made *= gl.load(scale + col, col < columns, 0.0)[None, :]
        if KEPT:
            made += gl.load(bias + col, col < columns, 0.0)[None, :]
    staged.index(place).store(made.to(out.dtype.element_ty))


# A thread has eight adjacent values of a row; eight threads have 64 columns, of 16 rows at a time.
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
    KEPT: gl.constexpr,
    HALF: gl.constexpr,
):
    """Add to the groups' results, compute channel sums and store."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row = work
    now = 0
    for tile in range(gl.program_id(0), _tiles(work)[2], gl.num_programs(0)):
        place = _place(tile, work)
        _finish_part(0, place, now, shared, work, ACROSS, KEPT)
        if HALF:
            if place[4] + COLUMNS // 2 < columns:
                _finish_part(1, place, now, shared, work, ACROSS, KEPT)
        else:
            _finish_part(1, place, now, shared, work, ACROSS, KEPT)
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
    KEPT: gl.constexpr,
):
    """Finish 64 columns of all groups."""
    pixels, weights, staged, full, free, filled, freed, ready, taken = shared
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row = work
    picture, number, top, left, column = place
    WIDE: gl.constexpr = x.block_type.shape[2]
    APART: gl.constexpr = ACROSS == 1 and KEPT
    col = column + PART * 64 + gl.arange(0, 64, gl.SliceLayout(0, ROWS))
    there = col < columns
    total = gl.zeros([PIXELS, 64], gl.float32, ROWS)
    square = gl.zeros([PIXELS, 64], gl.float32, ROWS)
    for i in gl.static_range(GROUPS):
        pixel = i * PIXELS + gl.arange(0, PIXELS, gl.SliceLayout(1, ROWS))
        y, along = top + pixel // WIDE, left + pixel % WIDE
        inside = ((y < high) & (along < wide))[:, None] & there[None, :]
        row, within = (picture * high + y).to(gl.int64), along * columns
        if KEPT:
            add = gl.load(kept + (row * kept_row + within)[:, None] + col[None, :], inside, 0.0)
        if PART == 0:
            mbarrier.wait(ready.index(i), now & 1)
        made = staged.index(i * 2 + PART).load(ROWS)
        if KEPT:
            made += add
        gl.store(out + (row * out_row + within)[:, None] + col[None, :], made, inside)
        made = gl.where(inside, made, 0.0).to(gl.float32)
        if APART:
            piece = (picture * high + top + i) * _tiles(work)[1] + left // WIDE
            _sum_up(made, made * made, piece, col, there & (top + i < high), work)
        else:
            total += made
            square += made * made
    if not APART:
        down, of_row, every = _tiles(work)
        _sum_up(total, square, picture * down * of_row + number, col, there, work)


@gluon.jit
def _sum_up(made, square, piece, col, there, work):
    """Store the sums over all rows."""
    x, weight, out, kept, bias, scale, sums, count, high, wide, depth, columns, out_row, kept_row = work
    to = sums + piece.to(gl.int64) * 2 * columns + col
    total, square = gl.split(gl.sum(gl.join(made, square), 0))
    gl.store(to, gl.convert_layout(total, gl.SliceLayout(0, ROWS)), there)
    gl.store(to + columns, gl.convert_layout(square, gl.SliceLayout(0, ROWS)), there)

"""A feed-forward's first GEMM fused with its gate; the weights stay in shared memory (Gluon, for Hopper).

A program loads a block of the weights into shared memory once, and pixels are streamed past it. So much less is read
from the L2 cache than where both are loaded for each tile. A program has five roles. One warp has the copy engine load
pixels into a ring of buffers. Four groups of four warps multiply in turn, team by team. While one team multiplies, the
others apply the gate and store their previous results, so the matrix units rarely wait.

For short rows a team is two groups, each with half of the columns; otherwise it is one group. `kernels.product` is used
instead (see `fits`) where rows are shorter or longer than this is worth, or where a GPU's multiprocessors cannot be
divided among the columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

from kinema.engine.fast.gelu import power
from kinema.engine.fast.hopper import exp2, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

# Pixels and columns of a group's tile, and the bytes of a row that the copy engine loads at a time.
ROWS, COLUMNS, BYTES = 64, 128, 128
# Groups that multiply; the kernel lists each explicitly.
GROUPS = gl.constexpr(4)
# Remaining pieces of a row at which a team lets the next one start.
LEAD = gl.constexpr(2)
# Shared memory of a program, without a little for its barriers; and the most buffers for pixels that are useful.
SHARED, MOST_PLACES = 225 * 1024, 16
# Minimum number of pieces of a row for which this is faster, and the fraction of the multiprocessors that must be
# used.
FEWEST, ENOUGH = 5, 0.85


def fits(x: torch.Tensor, weight: torch.Tensor, processors: int) -> bool:
    """Return whether to use this kernel for rows, [rows, depth], and a weight, [columns, depth]."""
    if _pieces(x) < FEWEST or _places(x) < GROUPS.value or x.shape[1] * x.itemsize % 16:
        return False
    across, lanes = _shared_out(x, weight, processors)
    return lanes * across >= ENOUGH * processors and len(x) >= ROWS * GROUPS.value * lanes


def _pieces(x: torch.Tensor) -> int:
    """Return the number of pieces, of BYTES bytes each, in a row."""
    return -(-x.shape[1] * x.itemsize // BYTES)


def _team(x: torch.Tensor) -> int:
    """Return the number of groups in a team: as many as have room for their weights in shared memory."""
    return 2 if SHARED - 2 * _pieces(x) * COLUMNS * BYTES >= GROUPS.value * ROWS * BYTES else 1


def _places(x: torch.Tensor) -> int:
    """Return the number of pixel buffers that fit beside the weights."""
    return min(MOST_PLACES, (SHARED - _team(x) * _pieces(x) * COLUMNS * BYTES) // (ROWS * BYTES))


def _shared_out(x: torch.Tensor, weight: torch.Tensor, processors: int) -> tuple[int, int]:
    """Return the number of programs among which the columns and the pixels are divided."""
    across = triton.cdiv(len(weight), _team(x) * COLUMNS)
    return across, processors // across


def gated(
    launch: Callable[..., None],
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor | None,
    out: torch.Tensor,
    factor: float,
    processors: int,
) -> torch.Tensor:
    """Compute `kinema.engine.fast.fused.gated` for inputs that pass `fits`."""
    across, lanes = _shared_out(x, weight, processors)
    layout, deep = gl.NVMMASharedLayout(BYTES, 8 * x.itemsize, 2), BYTES // x.itemsize
    launch(
        _gated,
        (across * lanes,),
        TensorDescriptor.from_tensor(x, [ROWS, deep], layout),
        TensorDescriptor.from_tensor(weight, [_team(x) * COLUMNS, deep], layout),
        out,
        bias,
        bias if scale is None else scale,
        len(x),
        out.shape[1],
        factor,
        PIECES=_pieces(x),
        PLACES=_places(x),
        TEAM=_team(x),
        SCALED=scale is not None,
        num_warps=4,
    )
    return out


@gluon.jit(do_not_specialize=["rows"])
def _gated(
    x,
    weight,
    out,
    bias,
    scale,
    rows,
    width,
    factor,
    PIECES: gl.constexpr,
    PLACES: gl.constexpr,
    TEAM: gl.constexpr,
    SCALED: gl.constexpr,
):
    across = gl.cdiv(2 * width, weight.block_type.shape[0])
    block, first, lanes = gl.program_id(0) % across, gl.program_id(0) // across, gl.num_programs(0) // across
    pixels = gl.allocate_shared_memory(x.dtype, [PLACES] + x.block_type.shape, x.layout)
    weights = gl.allocate_shared_memory(weight.dtype, [PIECES] + weight.block_type.shape, weight.layout)
    layout: gl.constexpr = mbarrier.MBarrierLayout()
    full = gl.allocate_shared_memory(gl.int64, [PLACES, 1], layout)
    free = gl.allocate_shared_memory(gl.int64, [PLACES, 1], layout)
    turns = gl.allocate_shared_memory(gl.int64, [GROUPS // TEAM, 1], layout)
    kept = gl.allocate_shared_memory(gl.int64, [1], layout)
    for i in gl.static_range(PLACES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(free.index(i), count=TEAM)
    for i in gl.static_range(GROUPS // TEAM):
        mbarrier.init(turns.index(i), count=TEAM)
    mbarrier.init(kept, count=1)
    fence_async_shared()
    mbarrier.arrive(turns.index(0), count=TEAM)
    shared = pixels, weights, full, free, turns, kept
    work = x, weight, out, bias, scale, rows, width, factor, block, first, lanes
    gl.warp_specialize(
        [
            (_multiply, (0, shared, work, PIECES, PLACES, TEAM, SCALED)),
            (_multiply, (1, shared, work, PIECES, PLACES, TEAM, SCALED)),
            (_multiply, (2, shared, work, PIECES, PLACES, TEAM, SCALED)),
            (_multiply, (3, shared, work, PIECES, PLACES, TEAM, SCALED)),
            (_bring, (shared, work, PIECES, PLACES)),
        ],
        [4, 4, 4, 1],  # warps of each group after the first, which has 4 too
        [112, 112, 112, 24],  # registers per thread; the first group gets the rest
    )


@gluon.jit
def _bring(shared, work, PIECES: gl.constexpr, PLACES: gl.constexpr):
    """Load the weights once, then pixels, piece by piece, as soon as a buffer is free."""
    pixels, weights, full, free, turns, kept = shared
    x, weight, out, bias, scale, rows, width, factor, block, first, lanes = work
    BM: gl.constexpr = x.block_type.shape[0]
    BK: gl.constexpr = x.block_type.shape[1]
    mbarrier.expect(kept, PIECES * weight.block_type.nbytes)
    for k in range(PIECES):
        fetch(weight, [block * weight.block_type.shape[0], k * BK], kept, weights.index(k))
    count = 0
    for tile in range(first, gl.cdiv(rows, BM), lanes):
        for k in range(PIECES):
            place = count % PLACES
            mbarrier.wait(free.index(place), (count // PLACES & 1) ^ 1)
            mbarrier.expect(full.index(place), x.block_type.nbytes)
            fetch(x, [tile * BM, k * BK], full.index(place), pixels.index(place))
            count += 1


@gluon.jit
def _multiply(
    WHICH: gl.constexpr,
    shared,
    work,
    PIECES: gl.constexpr,
    PLACES: gl.constexpr,
    TEAM: gl.constexpr,
    SCALED: gl.constexpr,
):
    """Run one group: compute its part of its team's tiles.

    It starts a tile when the previous team has only a few pieces left of its own.
    """
    pixels, weights, full, free, turns, kept = shared
    x, weight, out, bias, scale, rows, width, factor, block, first, lanes = work
    BM: gl.constexpr = x.block_type.shape[0]
    BN: gl.constexpr = weight.block_type.shape[0] // TEAM
    TEAMS: gl.constexpr = GROUPS // TEAM
    MINE: gl.constexpr = WHICH // TEAM
    PART: gl.constexpr = WHICH % TEAM
    UNTIL: gl.constexpr = PIECES - LEAD if PIECES > LEAD else 0
    BITS: gl.constexpr = x.dtype.primitive_bitwidth
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 256 // BITS])
    made_layout: gl.constexpr = _rows_of(BN // 2)
    col = (block * TEAM + PART) * BN + gl.arange(0, BN, gl.SliceLayout(0, layout))
    there = col < 2 * width
    mbarrier.wait(kept, 0)
    turn = 0
    for tile in range(first + MINE * lanes, gl.cdiv(rows, BM), TEAMS * lanes):
        added = gl.load(bias + col, there, 0.0).to(gl.float32)[None, :]
        sums = gl.zeros([BM, BN], gl.float32, layout)
        if not SCALED:
            sums += added
        mbarrier.wait(turns.index(MINE), turn & 1)
        count = (TEAMS * turn + MINE) * PIECES
        for k in range(PIECES):
            place = (count + k) % PLACES
            mbarrier.wait(full.index(place), (count + k) // PLACES & 1)
            by = weights.index(k).slice(PART * BN, BN).permute([1, 0])
            sums = warpgroup_mma(pixels.index(place), by, sums, is_async=True)
            mbarrier.arrive(turns.index((MINE + 1) % TEAMS), pred=k == UNTIL)
            sums = warpgroup_mma_wait(1, [sums])
            mbarrier.arrive(free.index((count + k + PLACES - 1) % PLACES), pred=k > 0)
        sums = warpgroup_mma_wait(0, [sums])
        mbarrier.arrive(free.index((count + PIECES - 1) % PLACES))
        turn += 1
        if SCALED:
            sums = sums * gl.load(scale + col, there, 0.0)[None, :] + added
        # A thread has both each value and its gate. Of every 64 columns it has those of eight contiguous outputs.
        value, gate = gl.split(gl.reshape(sums, [BM, BN // 2, 2]))
        made = _gated_value(value, gate)
        if SCALED:
            made = gl.minimum(gl.maximum(made * factor, -448.0), 448.0)
        made = gl.permute(gl.reshape(made, [BM, BN // 64, 8, 4]), [0, 1, 3, 2])
        made = gl.convert_layout(gl.reshape(made, [BM, BN // 2]), made_layout)
        row = tile * BM + gl.arange(0, BM, gl.SliceLayout(1, made_layout))
        to = (block * TEAM + PART) * (BN // 2) + gl.arange(0, BN // 2, gl.SliceLayout(0, made_layout))
        inside = (row < rows)[:, None] & (to < width)[None, :]
        gl.store(out + row[:, None].to(gl.int64) * width + to[None, :], made.to(out.dtype.element_ty), inside)


@gluon.constexpr_function
def _rows_of(width):
    """Return the layout of a group's result: a thread has eight adjacent values of a row, stored at once."""
    registers = [[0, 1], [0, 2], [0, 4], [8, 0], *([0, 32 << i] for i in range((width // 32).bit_length() - 1))]
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [64, width])


@gluon.jit
def _gated_value(value, gate):
    """Return the value times GELU of the gate, with the GELU of `kernels`."""
    below = exp2(power(gate)) + 1
    share = gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [below], gl.float32, True, 1)
    return value * gate * share

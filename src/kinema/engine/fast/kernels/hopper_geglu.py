"""A feed-forward's first GEMM fused with its GEGLU; the weights stay in shared memory (Gluon, for Hopper).

A program loads a block of the weights into shared memory once, and pixels are streamed past it. So much less is read
from the L2 cache than where both are loaded for each tile. The producer, one warp, has the copy engine load pixels into
a ring of buffers. Four consumers of four warps multiply in turn, team by team. While one team multiplies, the others
apply the gate and store their previous results, so the matrix units rarely wait.

For short rows a team is two consumers, each with half of the columns; otherwise it is one. `triton_gemm.matmul` is used
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

from kinema.engine.fast.kernels.hopper_common import exp2, fetch
from kinema.engine.fast.kernels.launch import launch, multiprocessors
from kinema.engine.fast.kernels.triton_gemm import gelu_exponent
from kinema.engine.fast.tuning import tuning

if TYPE_CHECKING:
    import torch

# Pixels and columns of a consumer's tile, and the bytes of a row that the copy engine loads at a time.
GEGLU_ROWS, GEGLU_COLUMNS, GEGLU_STEP_BYTES = 64, 128, 128
# Consumers; the kernel lists each explicitly.
GEGLU_CONSUMERS = gl.constexpr(4)
# Remaining steps of a row at which a team lets the next one start.
HANDOVER_STEPS = gl.constexpr(2)
# Shared memory of a program, without a little for its barriers; and the most input buffers that are useful.
GEGLU_SHARED_BYTES, MAX_INPUT_BUFFERS = 225 * 1024, 16


def fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether to use this kernel for rows, [rows, depth], and a weight, [columns, depth]."""
    settings, processors = tuning(), multiprocessors(x.device)
    if _depth_steps(x) < settings.hopper_geglu_steps or x.shape[1] * x.itemsize % 16:
        return False
    if _input_buffers(x) < GEGLU_CONSUMERS.value:
        return False
    column_blocks, row_lanes = _division(x, weight, processors)
    used = row_lanes * column_blocks
    return (
        used >= settings.hopper_geglu_utilization * processors
        and len(x) >= GEGLU_ROWS * GEGLU_CONSUMERS.value * row_lanes
    )


def _depth_steps(x: torch.Tensor) -> int:
    """Return the number of steps, of GEGLU_STEP_BYTES bytes each, in a row."""
    return -(-x.shape[1] * x.itemsize // GEGLU_STEP_BYTES)


def _team_size(x: torch.Tensor) -> int:
    """Return the number of consumers in a team: as many as have room for their weights in shared memory."""
    weight_bytes = 2 * _depth_steps(x) * GEGLU_COLUMNS * GEGLU_STEP_BYTES
    return 2 if GEGLU_SHARED_BYTES - weight_bytes >= GEGLU_CONSUMERS.value * GEGLU_ROWS * GEGLU_STEP_BYTES else 1


def _input_buffers(x: torch.Tensor) -> int:
    """Return the number of input buffers that fit beside the weights."""
    weight_bytes = _team_size(x) * _depth_steps(x) * GEGLU_COLUMNS * GEGLU_STEP_BYTES
    return min(MAX_INPUT_BUFFERS, (GEGLU_SHARED_BYTES - weight_bytes) // (GEGLU_ROWS * GEGLU_STEP_BYTES))


def _division(x: torch.Tensor, weight: torch.Tensor, processors: int) -> tuple[int, int]:
    """Return the number of programs among which the columns and the pixels are divided."""
    column_blocks = triton.cdiv(len(weight), _team_size(x) * GEGLU_COLUMNS)
    return column_blocks, processors // column_blocks


def geglu_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor | None,
    out: torch.Tensor,
    out_scale: float,
) -> torch.Tensor:
    """Launch the kernel of `ops.geglu.geglu_linear` for inputs that pass `fits`."""
    column_blocks, row_lanes = _division(x, weight, multiprocessors(x.device))
    layout, depth_step = gl.NVMMASharedLayout(GEGLU_STEP_BYTES, 8 * x.itemsize, 2), GEGLU_STEP_BYTES // x.itemsize
    launch(
        _geglu,
        (column_blocks * row_lanes,),
        TensorDescriptor.from_tensor(x, [GEGLU_ROWS, depth_step], layout),
        TensorDescriptor.from_tensor(weight, [_team_size(x) * GEGLU_COLUMNS, depth_step], layout),
        out,
        bias,
        bias if scale is None else scale,
        len(x),
        out.shape[1],
        out_scale,
        DEPTH_STEPS=_depth_steps(x),
        BUFFERS=_input_buffers(x),
        TEAM_SIZE=_team_size(x),
        HAS_SCALE=scale is not None,
        num_warps=4,
    )
    return out


@gluon.jit(do_not_specialize=["rows"])
def _geglu(
    x,
    weight,
    out,
    bias,
    scale,
    rows,
    width,
    out_scale,
    DEPTH_STEPS: gl.constexpr,
    BUFFERS: gl.constexpr,
    TEAM_SIZE: gl.constexpr,
    HAS_SCALE: gl.constexpr,
):
    column_blocks = gl.cdiv(2 * width, weight.block_type.shape[0])
    block, first, row_lanes = (
        gl.program_id(0) % column_blocks,
        gl.program_id(0) // column_blocks,
        gl.num_programs(0) // column_blocks,
    )
    inputs = gl.allocate_shared_memory(x.dtype, [BUFFERS] + x.block_type.shape, x.layout)
    weights = gl.allocate_shared_memory(weight.dtype, [DEPTH_STEPS] + weight.block_type.shape, weight.layout)
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    input_full = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], barrier_layout)
    input_free = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], barrier_layout)
    turns = gl.allocate_shared_memory(gl.int64, [GEGLU_CONSUMERS // TEAM_SIZE, 1], barrier_layout)
    weights_full = gl.allocate_shared_memory(gl.int64, [1], barrier_layout)
    for i in gl.static_range(BUFFERS):
        mbarrier.init(input_full.index(i), count=1)
        mbarrier.init(input_free.index(i), count=TEAM_SIZE)
    for i in gl.static_range(GEGLU_CONSUMERS // TEAM_SIZE):
        mbarrier.init(turns.index(i), count=TEAM_SIZE)
    mbarrier.init(weights_full, count=1)
    fence_async_shared()
    mbarrier.arrive(turns.index(0), count=TEAM_SIZE)
    shared = inputs, weights, input_full, input_free, turns, weights_full
    args = x, weight, out, bias, scale, rows, width, out_scale, block, first, row_lanes
    gl.warp_specialize(
        [
            (_consumer, (0, shared, args, DEPTH_STEPS, BUFFERS, TEAM_SIZE, HAS_SCALE)),
            (_consumer, (1, shared, args, DEPTH_STEPS, BUFFERS, TEAM_SIZE, HAS_SCALE)),
            (_consumer, (2, shared, args, DEPTH_STEPS, BUFFERS, TEAM_SIZE, HAS_SCALE)),
            (_consumer, (3, shared, args, DEPTH_STEPS, BUFFERS, TEAM_SIZE, HAS_SCALE)),
            (_producer, (shared, args, DEPTH_STEPS, BUFFERS)),
        ],
        [4, 4, 4, 1],  # warps of each role after the first consumer, which has 4 too
        [112, 112, 112, 24],  # registers per thread; the first consumer gets the rest
    )


@gluon.jit
def _producer(shared, args, DEPTH_STEPS: gl.constexpr, BUFFERS: gl.constexpr):
    """Load the weights once, then pixels, step by step, as soon as a buffer is free."""
    inputs, weights, input_full, input_free, turns, weights_full = shared
    x, weight, out, bias, scale, rows, width, out_scale, block, first, row_lanes = args
    BM: gl.constexpr = x.block_type.shape[0]
    BK: gl.constexpr = x.block_type.shape[1]
    mbarrier.expect(weights_full, DEPTH_STEPS * weight.block_type.nbytes)
    for k in range(DEPTH_STEPS):
        fetch(weight, [block * weight.block_type.shape[0], k * BK], weights_full, weights.index(k))
    step = 0
    for tile in range(first, gl.cdiv(rows, BM), row_lanes):
        for k in range(DEPTH_STEPS):
            buffer = step % BUFFERS
            mbarrier.wait(input_free.index(buffer), (step // BUFFERS & 1) ^ 1)
            mbarrier.expect(input_full.index(buffer), x.block_type.nbytes)
            fetch(x, [tile * BM, k * BK], input_full.index(buffer), inputs.index(buffer))
            step += 1


@gluon.jit
def _consumer(
    CONSUMER: gl.constexpr,
    shared,
    args,
    DEPTH_STEPS: gl.constexpr,
    BUFFERS: gl.constexpr,
    TEAM_SIZE: gl.constexpr,
    HAS_SCALE: gl.constexpr,
):
    """Compute one consumer's part of its team's tiles.

    It starts a tile when the previous team has only a few steps left of its own.
    """
    inputs, weights, input_full, input_free, turns, weights_full = shared
    x, weight, out, bias, scale, rows, width, out_scale, block, first, row_lanes = args
    BM: gl.constexpr = x.block_type.shape[0]
    BN: gl.constexpr = weight.block_type.shape[0] // TEAM_SIZE
    TEAMS: gl.constexpr = GEGLU_CONSUMERS // TEAM_SIZE
    TEAM: gl.constexpr = CONSUMER // TEAM_SIZE
    PART: gl.constexpr = CONSUMER % TEAM_SIZE
    HANDOVER: gl.constexpr = DEPTH_STEPS - HANDOVER_STEPS if DEPTH_STEPS > HANDOVER_STEPS else 0
    BITS: gl.constexpr = x.dtype.primitive_bitwidth
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 256 // BITS])
    out_layout: gl.constexpr = _out_layout(BN // 2)
    col = (block * TEAM_SIZE + PART) * BN + gl.arange(0, BN, gl.SliceLayout(0, acc_layout))
    col_mask = col < 2 * width
    mbarrier.wait(weights_full, 0)
    turn = 0
    for tile in range(first + TEAM * row_lanes, gl.cdiv(rows, BM), TEAMS * row_lanes):
        bias_row = gl.load(bias + col, col_mask, 0.0).to(gl.float32)[None, :]
        acc = gl.zeros([BM, BN], gl.float32, acc_layout)
        if not HAS_SCALE:
            acc += bias_row
        mbarrier.wait(turns.index(TEAM), turn & 1)
        step = (TEAMS * turn + TEAM) * DEPTH_STEPS
        for k in range(DEPTH_STEPS):
            buffer = (step + k) % BUFFERS
            mbarrier.wait(input_full.index(buffer), (step + k) // BUFFERS & 1)
            weight_tile = weights.index(k).slice(PART * BN, BN).permute([1, 0])
            acc = warpgroup_mma(inputs.index(buffer), weight_tile, acc, is_async=True)
            mbarrier.arrive(turns.index((TEAM + 1) % TEAMS), pred=k == HANDOVER)
            acc = warpgroup_mma_wait(1, [acc])
            mbarrier.arrive(input_free.index((step + k + BUFFERS - 1) % BUFFERS), pred=k > 0)
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(input_free.index((step + DEPTH_STEPS - 1) % BUFFERS))
        turn += 1
        if HAS_SCALE:
            acc = acc * gl.load(scale + col, col_mask, 0.0)[None, :] + bias_row
        # A thread has both each value and its gate. Of every 64 columns it has those of eight contiguous outputs.
        value, gate = gl.split(gl.reshape(acc, [BM, BN // 2, 2]))
        gated = _gate(value, gate)
        if HAS_SCALE:
            gated = gl.minimum(gl.maximum(gated * out_scale, -448.0), 448.0)
        gated = gl.permute(gl.reshape(gated, [BM, BN // 64, 8, 4]), [0, 1, 3, 2])
        gated = gl.convert_layout(gl.reshape(gated, [BM, BN // 2]), out_layout)
        row = tile * BM + gl.arange(0, BM, gl.SliceLayout(1, out_layout))
        out_col = (block * TEAM_SIZE + PART) * (BN // 2) + gl.arange(0, BN // 2, gl.SliceLayout(0, out_layout))
        mask = (row < rows)[:, None] & (out_col < width)[None, :]
        gl.store(out + row[:, None].to(gl.int64) * width + out_col[None, :], gated.to(out.dtype.element_ty), mask)


@gluon.constexpr_function
def _out_layout(width):
    """Return the layout of a consumer's result: a thread has eight adjacent values of a row, stored at once."""
    registers = [[0, 1], [0, 2], [0, 4], [8, 0], *([0, 32 << i] for i in range((width // 32).bit_length() - 1))]
    lanes = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [64, width])


@gluon.jit
def _gate(value, gate):
    """Return the value times GELU of the gate, with the GELU of `triton_gemm`."""
    denominator = exp2(gelu_exponent(gate)) + 1
    probability = gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [denominator], gl.float32, True, 1)
    return value * gate * probability

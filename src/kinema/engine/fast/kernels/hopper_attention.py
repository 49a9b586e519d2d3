"""Attention within frames for heads of 64 (Gluon, for Hopper), after FlashAttention-3 (Shah et al. 2024).

A program processes some pixels of one frame and head, and keeps their queries in shared memory. The producer, one warp,
has the copy engine load keys and values into a ring of buffers. Three consumers of four warps compute attention for 64
pixels each: scores of 128 keys, their probabilities by the online softmax, and the weighted sum of the values, a matmul
that takes the probabilities from registers. The consumers are not synchronised: while one waits for its matmuls,
another computes exponentials.
"""

from __future__ import annotations

import math
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
from kinema.engine.fast.kernels.launch import launch
from kinema.engine.fast.tuning import tuning

if TYPE_CHECKING:
    import torch

# The kernel lists each consumer explicitly.
ATTENTION_CONSUMERS = gl.constexpr(3)


def spatial_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Launch the kernel of `ops.attention.spatial_attention`; the heads of one pixel must be contiguous in memory."""
    frames, heads, pixels, depth = q.shape
    out = q.new_empty(frames, pixels, heads * depth)
    query_rows, key_rows, buffers = tuning().hopper_attention_tile
    layout = gl.NVMMASharedLayout(128, 8 * q.itemsize, 3)
    queries, keys, values = (each.transpose(1, 2).flatten(2) for each in (q, k, v))
    launch(
        _attention,
        (frames * heads * triton.cdiv(pixels, ATTENTION_CONSUMERS.value * query_rows),),
        TensorDescriptor.from_tensor(queries, [1, query_rows, depth], layout),
        TensorDescriptor.from_tensor(keys, [1, key_rows, depth], layout),
        TensorDescriptor.from_tensor(values, [1, key_rows, depth], layout),
        out,
        pixels,
        heads,
        depth**-0.5 * math.log2(math.e),
        FULL_TILES=pixels % key_rows == 0,
        BUFFERS=buffers,
        num_warps=4,
    )
    return out


@gluon.jit(do_not_specialize=["pixels"])
def _attention(q, k, v, out, pixels, heads, scale, FULL_TILES: gl.constexpr, BUFFERS: gl.constexpr):
    query_tiles = gl.cdiv(pixels, ATTENTION_CONSUMERS * q.block_type.shape[1])
    start = gl.program_id(0) % query_tiles * ATTENTION_CONSUMERS * q.block_type.shape[1]
    head, frame = gl.program_id(0) // query_tiles % heads, gl.program_id(0) // query_tiles // heads
    queries = gl.allocate_shared_memory(q.dtype, [ATTENTION_CONSUMERS] + q.block_type.shape, q.layout)
    keys = gl.allocate_shared_memory(k.dtype, [BUFFERS] + k.block_type.shape, k.layout)
    values = gl.allocate_shared_memory(v.dtype, [BUFFERS] + v.block_type.shape, v.layout)
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    queries_full = gl.allocate_shared_memory(gl.int64, [1], barrier_layout)
    kv_full = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], barrier_layout)
    kv_free = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], barrier_layout)
    mbarrier.init(queries_full, count=1)
    for i in gl.static_range(BUFFERS):
        mbarrier.init(kv_full.index(i), count=1)
        mbarrier.init(kv_free.index(i), count=ATTENTION_CONSUMERS)
    fence_async_shared()
    shared = queries, keys, values, queries_full, kv_full, kv_free
    args = q, k, v, out, pixels, heads, scale, frame, head, start
    gl.warp_specialize(
        [
            (_consumer, (0, shared, args, FULL_TILES, BUFFERS)),
            (_consumer, (1, shared, args, FULL_TILES, BUFFERS)),
            (_consumer, (2, shared, args, FULL_TILES, BUFFERS)),
            (_producer, (shared, args, BUFFERS)),
        ],
        [4, 4, 1],  # warps of each role after the first consumer, which has 4 too
        [152, 152, 24],  # registers per thread; the first consumer gets the rest
    )


@gluon.jit
def _producer(shared, args, BUFFERS: gl.constexpr):
    """Load all queries, then keys and values as soon as a buffer is free."""
    queries, keys, values, queries_full, kv_full, kv_free = shared
    q, k, v, out, pixels, heads, scale, frame, head, start = args
    D: gl.constexpr = q.block_type.shape[2]
    mbarrier.expect(queries_full, ATTENTION_CONSUMERS * q.block_type.nbytes)
    for i in gl.static_range(ATTENTION_CONSUMERS):
        row = start + i * q.block_type.shape[1]
        fetch(q, [frame, row, head * D], queries_full, queries.index(i))
    step = 0
    for row in range(0, pixels, k.block_type.shape[1]):
        buffer = step % BUFFERS
        mbarrier.wait(kv_free.index(buffer), (step // BUFFERS & 1) ^ 1)
        mbarrier.expect(kv_full.index(buffer), k.block_type.nbytes + v.block_type.nbytes)
        fetch(k, [frame, row, head * D], kv_full.index(buffer), keys.index(buffer))
        fetch(v, [frame, row, head * D], kv_full.index(buffer), values.index(buffer))
        step += 1


@gluon.jit
def _consumer(CONSUMER: gl.constexpr, shared, args, FULL_TILES: gl.constexpr, BUFFERS: gl.constexpr):
    """Compute one consumer's pixels. The softmax uses powers of 2, for which the GPU has an instruction."""
    queries, keys, values, queries_full, kv_full, kv_free = shared
    q, k, v, out, pixels, heads, scale, frame, head, start = args
    BM: gl.constexpr = q.block_type.shape[1]
    BN: gl.constexpr = k.block_type.shape[1]
    D: gl.constexpr = q.block_type.shape[2]
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    row_max = gl.full([BM], float("-inf"), gl.float32, gl.SliceLayout(1, score_layout))
    row_sum = gl.zeros([BM], gl.float32, gl.SliceLayout(1, score_layout))
    acc = gl.zeros([BM, D], gl.float32, out_layout)
    no_scores = gl.zeros([BM, BN], gl.float32, score_layout)
    query_tile = queries.index(CONSUMER).reshape([BM, D])
    mbarrier.wait(queries_full, 0)
    step = 0
    for key_start in range(0, pixels, BN):
        buffer = step % BUFFERS
        mbarrier.wait(kv_full.index(buffer), step // BUFFERS & 1)
        key_tile = keys.index(buffer).reshape([BN, D]).permute([1, 0])
        scores = warpgroup_mma(query_tile, key_tile, no_scores, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, [scores])
        if not FULL_TILES:
            key_mask = key_start + gl.arange(0, BN, gl.SliceLayout(0, score_layout)) < pixels
            scores = gl.where(key_mask[None, :], scores, float("-inf"))
        new_max = gl.maximum(row_max, gl.max(scores, 1) * scale)
        rescale = exp2(row_max - new_max)
        probabilities = exp2(scores * scale - new_max[:, None])
        row_sum = row_sum * rescale + gl.sum(probabilities, 1)
        row_max = new_max
        acc *= gl.convert_layout(rescale, gl.SliceLayout(1, out_layout))[:, None]
        probability_operand = gl.convert_layout(probabilities.to(v.dtype), gl.DotOperandLayout(0, out_layout, 2))
        acc = warpgroup_mma(probability_operand, values.index(buffer).reshape([BN, D]), acc, is_async=True)
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(kv_free.index(buffer))
        step += 1
    acc = acc / gl.convert_layout(row_sum, gl.SliceLayout(1, out_layout))[:, None]
    row = start + CONSUMER * BM + gl.arange(0, BM, gl.SliceLayout(1, out_layout))
    out_ptrs = out + (frame.to(gl.int64) * pixels + row[:, None]) * heads * D + head * D
    out_ptrs += gl.arange(0, D, gl.SliceLayout(0, out_layout))[None, :]
    gl.store(out_ptrs, acc.to(out.dtype.element_ty), (row < pixels)[:, None])

"""Attention within frames for heads of 64 (Gluon, for Hopper), after FlashAttention-3 (Shah et al. 2024).

A program processes some pixels of one frame and head, and keeps their queries in shared memory. One warp has the copy
engine load keys and values into a ring of buffers. Three groups of four warps compute attention for 64 pixels each:
scores of 128 keys, their weights by the online softmax, and the weighted sum of the values, a matmul that takes the
weights from registers. The groups are not synchronised: while one waits for its matmuls, another computes exponentials.
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

from kinema.engine.fast.hopper import exp2, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

# Pixels per group, keys per step, and buffers for these. The kernel lists each group explicitly.
PIXELS, KEYS, PLACES = 64, 128, 3
GROUPS = gl.constexpr(3)
LOG2_E = 1.4426950408889634


def frame_attention(
    launch: Callable[..., None], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Compute `kinema.engine.fast.fused.frame_attention`; the heads of one pixel must be contiguous in memory."""
    frames, heads, pixels, depth = q.shape
    layout = gl.NVMMASharedLayout(128, 8 * q.itemsize, 3)
    queries, keys, values = (each.transpose(1, 2).flatten(2) for each in (q, k, v))
    launch(
        _attention,
        (frames * heads * triton.cdiv(pixels, GROUPS.value * PIXELS),),
        TensorDescriptor.from_tensor(queries, [1, PIXELS, depth], layout),
        TensorDescriptor.from_tensor(keys, [1, KEYS, depth], layout),
        TensorDescriptor.from_tensor(values, [1, KEYS, depth], layout),
        out,
        pixels,
        heads,
        depth**-0.5 * LOG2_E,
        WHOLE=pixels % KEYS == 0,
        PLACES=PLACES,
        num_warps=4,
    )
    return out


@gluon.jit(do_not_specialize=["pixels"])
def _attention(q, k, v, out, pixels, heads, scale, WHOLE: gl.constexpr, PLACES: gl.constexpr):
    across = gl.cdiv(pixels, GROUPS * q.block_type.shape[1])
    start = gl.program_id(0) % across * GROUPS * q.block_type.shape[1]
    head, frame = gl.program_id(0) // across % heads, gl.program_id(0) // across // heads
    queries = gl.allocate_shared_memory(q.dtype, [GROUPS] + q.block_type.shape, q.layout)
    keys = gl.allocate_shared_memory(k.dtype, [PLACES] + k.block_type.shape, k.layout)
    values = gl.allocate_shared_memory(v.dtype, [PLACES] + v.block_type.shape, v.layout)
    layout: gl.constexpr = mbarrier.MBarrierLayout()
    asked = gl.allocate_shared_memory(gl.int64, [1], layout)
    full = gl.allocate_shared_memory(gl.int64, [PLACES, 1], layout)
    free = gl.allocate_shared_memory(gl.int64, [PLACES, 1], layout)
    mbarrier.init(asked, count=1)
    for i in gl.static_range(PLACES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(free.index(i), count=GROUPS)
    fence_async_shared()
    shared = queries, keys, values, asked, full, free
    work = q, k, v, out, pixels, heads, scale, frame, head, start
    gl.warp_specialize(
        [
            (_attend, (0, shared, work, WHOLE, PLACES)),
            (_attend, (1, shared, work, WHOLE, PLACES)),
            (_attend, (2, shared, work, WHOLE, PLACES)),
            (_bring, (shared, work, PLACES)),
        ],
        [4, 4, 1],  # warps of each group after the first, which has 4 too
        [152, 152, 24],  # registers per thread; the first group gets the rest
    )


@gluon.jit
def _bring(shared, work, PLACES: gl.constexpr):
    """Load all queries, then keys and values as soon as a buffer is free."""
    queries, keys, values, asked, full, free = shared
    q, k, v, out, pixels, heads, scale, frame, head, start = work
    D: gl.constexpr = q.block_type.shape[2]
    mbarrier.expect(asked, GROUPS * q.block_type.nbytes)
    for i in gl.static_range(GROUPS):
        at = start + i * q.block_type.shape[1]
        fetch(q, [frame, at, head * D], asked, queries.index(i))
    count = 0
    for at in range(0, pixels, k.block_type.shape[1]):
        place = count % PLACES
        mbarrier.wait(free.index(place), (count // PLACES & 1) ^ 1)
        mbarrier.expect(full.index(place), k.block_type.nbytes + v.block_type.nbytes)
        fetch(k, [frame, at, head * D], full.index(place), keys.index(place))
        fetch(v, [frame, at, head * D], full.index(place), values.index(place))
        count += 1


@gluon.jit
def _attend(WHICH: gl.constexpr, shared, work, WHOLE: gl.constexpr, PLACES: gl.constexpr):
    """Compute one group's pixels. The softmax uses powers of 2, for which the GPU has an instruction."""
    queries, keys, values, asked, full, free = shared
    q, k, v, out, pixels, heads, scale, frame, head, start = work
    BM: gl.constexpr = q.block_type.shape[1]
    BN: gl.constexpr = k.block_type.shape[1]
    D: gl.constexpr = q.block_type.shape[2]
    scored: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    taking: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    most = gl.full([BM], float("-inf"), gl.float32, gl.SliceLayout(1, scored))
    total = gl.zeros([BM], gl.float32, gl.SliceLayout(1, scored))
    taken = gl.zeros([BM, D], gl.float32, taking)
    nothing = gl.zeros([BM, BN], gl.float32, scored)
    asking = queries.index(WHICH).reshape([BM, D])
    mbarrier.wait(asked, 0)
    count = 0
    for at in range(0, pixels, BN):
        place = count % PLACES
        mbarrier.wait(full.index(place), count // PLACES & 1)
        by = keys.index(place).reshape([BN, D]).permute([1, 0])
        scores = warpgroup_mma(asking, by, nothing, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, [scores])
        if not WHOLE:
            there = at + gl.arange(0, BN, gl.SliceLayout(0, scored)) < pixels
            scores = gl.where(there[None, :], scores, float("-inf"))
        new = gl.maximum(most, gl.max(scores, 1) * scale)
        faded = exp2(most - new)
        weights = exp2(scores * scale - new[:, None])
        total = total * faded + gl.sum(weights, 1)
        most = new
        taken *= gl.convert_layout(faded, gl.SliceLayout(1, taking))[:, None]
        given = gl.convert_layout(weights.to(v.dtype), gl.DotOperandLayout(0, taking, 2))
        taken = warpgroup_mma(given, values.index(place).reshape([BN, D]), taken, is_async=True)
        taken = warpgroup_mma_wait(0, [taken])
        mbarrier.arrive(free.index(place))
        count += 1
    taken = taken / gl.convert_layout(total, gl.SliceLayout(1, taking))[:, None]
    row = start + WHICH * BM + gl.arange(0, BM, gl.SliceLayout(1, taking))
    to = out + (frame.to(gl.int64) * pixels + row[:, None]) * heads * D + head * D
    to += gl.arange(0, D, gl.SliceLayout(0, taking))[None, :]
    gl.store(to, taken.to(out.dtype.element_ty), (row < pixels)[:, None])

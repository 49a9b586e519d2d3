"""3×3 convolutions, and 3×1 convolutions along time, where frames are the rows of an image (Gluon, for Hopper).

A program computes one tile after the other, of 192 pixels and 128 columns. The producer, one warp, has the copy engine
load strips of pixels, some channels at a time: those of the tile and those a row above and below, with zeros outside
the image. In wide images a strip is part of one row, so that it serves all three rows of the kernel. Three consumers of
four warps multiply 64 pixels each and store their results in shared memory. The epilogue, four more warps, adds the
residual, computes channel sums and stores the result, while the consumers already compute the next tile.
"""

from __future__ import annotations

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

from kinema.engine.fast.kernels.hopper_common import fetch
from kinema.engine.fast.kernels.launch import launch, multiprocessors

# Consumers (the kernel lists each explicitly), pixels per consumer, and columns of a tile.
CONV_CONSUMERS, CONSUMER_PIXELS, CONV_COLUMNS = gl.constexpr(3), gl.constexpr(64), gl.constexpr(128)
# Bytes loaded at a time of a pixel's channels or a column's, and buffers for all strips of a tile.
CONV_STEP_BYTES, INPUT_BUFFERS = 128, gl.constexpr(2)
# Shared memory for these buffers and the weights.
CONV_SHARED_BYTES = 176 * 1024


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Convolve into `out`, optionally add `residual` and `bias`, and return the channel sums of the result.

    Args:
        x: [n, h, w, c], 16-bit or fp8.
        weight: [columns, 3 · kernel width · c], of the same dtype; the width is 3, or 1 along time.
        scale: [columns], multiplies the result.
        residual: [n, h, w, columns], laid out like `out`; requires `bias`.
        bias: [columns], float32, added with `residual`.
        out: [n, h, w, columns], which may be `residual`. The pixels of a row are contiguous; the distance in memory
            between consecutive rows, across all images, is constant.

    Returns:
        Sums of each n, or of each n · h if something is added along time: [n or n · h, pieces, 2, columns].
    """
    images, height, width, depth = x.shape
    columns, kernel_width = len(weight), weight.shape[1] // (3 * depth)
    strip_rows = 1 if kernel_width == 1 or width > 32 else 2 if width > 16 else 4
    rows, pixels = CONV_CONSUMERS.value * strip_rows, CONSUMER_PIXELS.value // strip_rows
    tile_rows, tile_columns = triton.cdiv(height, rows), triton.cdiv(width, pixels)
    sums_per_row = kernel_width == 1 and residual is not None
    pieces = (images * height, tile_columns) if sums_per_row else (images, tile_rows * tile_columns)
    sums = out.new_empty(*pieces, 2, columns, dtype=torch.float32)
    depth_step, bits = CONV_STEP_BYTES // x.itemsize, 8 * x.itemsize
    tiles = images * tile_rows * tile_columns * triton.cdiv(columns, CONV_COLUMNS.value)
    # Three rows per consumer; adjacent consumers share strips where they can.
    strips = min(strip_rows, 3) * (CONV_CONSUMERS.value - 1) + 3
    input_bytes = INPUT_BUFFERS.value * strips * CONSUMER_PIXELS.value * CONV_STEP_BYTES
    launch(
        _conv,
        (min(tiles, multiprocessors(x.device)),),
        TensorDescriptor.from_tensor(
            x, [1, strip_rows, pixels, depth_step], gl.NVMMASharedLayout(CONV_STEP_BYTES, bits, 4)
        ),
        TensorDescriptor.from_tensor(
            weight, [CONV_COLUMNS.value, depth_step], gl.NVMMASharedLayout(CONV_STEP_BYTES, bits, 2)
        ),
        out,
        out if residual is None else residual,
        sums if bias is None else bias,
        sums if scale is None else scale,
        sums,
        images,
        height,
        width,
        depth,
        columns,
        out.stride(1),
        0 if residual is None else residual.stride(1),
        KERNEL_WIDTH=kernel_width,
        STRIPS=strips,
        WEIGHT_BUFFERS=(CONV_SHARED_BYTES - input_bytes) // (CONV_COLUMNS.value * CONV_STEP_BYTES),
        RESIDUAL=residual is not None,
        HAS_SCALE=scale is not None,
        HALF_TILE=0 < columns % CONV_COLUMNS.value <= CONV_COLUMNS.value // 2,
        num_warps=4,
    )
    return sums


@gluon.jit(do_not_specialize=["images", "height", "width"])
def _conv(
    x,
    weight,
    out,
    residual,
    bias,
    scale,
    sums,
    images,
    height,
    width,
    depth,
    columns,
    out_stride,
    residual_stride,
    KERNEL_WIDTH: gl.constexpr,
    STRIPS: gl.constexpr,
    WEIGHT_BUFFERS: gl.constexpr,
    RESIDUAL: gl.constexpr,
    HAS_SCALE: gl.constexpr,
    HALF_TILE: gl.constexpr,
):
    inputs = gl.allocate_shared_memory(x.dtype, [INPUT_BUFFERS * STRIPS] + x.block_type.shape, x.layout)
    weights = gl.allocate_shared_memory(weight.dtype, [WEIGHT_BUFFERS] + weight.block_type.shape, weight.layout)
    staged_layout: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    staged = gl.allocate_shared_memory(
        out.dtype.element_ty, [CONV_CONSUMERS * CONV_COLUMNS // 64, CONSUMER_PIXELS, 64], staged_layout
    )
    barrier_layout: gl.constexpr = mbarrier.MBarrierLayout()
    input_full = gl.allocate_shared_memory(gl.int64, [INPUT_BUFFERS, 1], barrier_layout)
    input_free = gl.allocate_shared_memory(gl.int64, [INPUT_BUFFERS, 1], barrier_layout)
    weight_full = gl.allocate_shared_memory(gl.int64, [WEIGHT_BUFFERS, 1], barrier_layout)
    weight_free = gl.allocate_shared_memory(gl.int64, [WEIGHT_BUFFERS, 1], barrier_layout)
    staged_full = gl.allocate_shared_memory(gl.int64, [CONV_CONSUMERS, 1], barrier_layout)
    staged_free = gl.allocate_shared_memory(gl.int64, [CONV_CONSUMERS, 1], barrier_layout)
    for i in gl.static_range(INPUT_BUFFERS):
        mbarrier.init(input_full.index(i), count=1)
        mbarrier.init(input_free.index(i), count=CONV_CONSUMERS)
    for i in gl.static_range(WEIGHT_BUFFERS):
        mbarrier.init(weight_full.index(i), count=1)
        mbarrier.init(weight_free.index(i), count=CONV_CONSUMERS)
    for i in gl.static_range(CONV_CONSUMERS):
        mbarrier.init(staged_full.index(i), count=1)
        mbarrier.init(staged_free.index(i), count=1)
    fence_async_shared()
    shared = inputs, weights, staged, input_full, input_free, weight_full, weight_free, staged_full, staged_free
    args = (
        x,
        weight,
        out,
        residual,
        bias,
        scale,
        sums,
        images,
        height,
        width,
        depth,
        columns,
        out_stride,
        residual_stride,
    )
    gl.warp_specialize(
        [
            (_consumer, (0, shared, args, KERNEL_WIDTH, RESIDUAL, HAS_SCALE, HALF_TILE)),
            (_consumer, (1, shared, args, KERNEL_WIDTH, RESIDUAL, HAS_SCALE, HALF_TILE)),
            (_consumer, (2, shared, args, KERNEL_WIDTH, RESIDUAL, HAS_SCALE, HALF_TILE)),
            (_epilogue, (shared, args, KERNEL_WIDTH, RESIDUAL, HALF_TILE)),
            (_producer, (shared, args, KERNEL_WIDTH)),
        ],
        [4, 4, 4, 1],  # warps of each role after the first consumer, which has 4 too
        [96, 96, 128, 24],  # registers per thread; the first consumer gets the rest
    )


@gluon.jit
def _tile_counts(args):
    """Return the number of tiles down an image, along its rows, and in total."""
    x, weight, out, residual, bias, scale, sums, images, height, width, depth, columns, out_stride, residual_stride = (
        args
    )
    tile_rows, tile_columns = (
        gl.cdiv(height, CONV_CONSUMERS * x.block_type.shape[1]),
        gl.cdiv(width, x.block_type.shape[2]),
    )
    return tile_rows, tile_columns, images * tile_rows * tile_columns * gl.cdiv(columns, CONV_COLUMNS)


@gluon.jit
def _tile_position(tile, args):
    """Return a tile's image, its index in it, its first row, its first pixel in that row and its first column.

    Neighbouring tiles have the same pixels, and each program gets all columns in turn.
    """
    x, weight, out, residual, bias, scale, sums, images, height, width, depth, columns, out_stride, residual_stride = (
        args
    )
    tile_rows, tile_columns, tiles = _tile_counts(args)
    column_tiles = gl.cdiv(columns, CONV_COLUMNS)
    image, image_tile = (
        tile // column_tiles // (tile_rows * tile_columns),
        tile // column_tiles % (tile_rows * tile_columns),
    )
    column_tile = (tile + tile // column_tiles // gl.cdiv(gl.num_programs(0), column_tiles)) % column_tiles
    top, left = (
        image_tile // tile_columns * CONV_CONSUMERS * x.block_type.shape[1],
        image_tile % tile_columns * x.block_type.shape[2],
    )
    return image, image_tile, top, left, column_tile * CONV_COLUMNS


@gluon.jit
def _producer(shared, args, KERNEL_WIDTH: gl.constexpr):
    """Load pixels and weights, step by step, as soon as a buffer is free."""
    inputs, weights, staged, input_full, input_free, weight_full, weight_free, staged_full, staged_free = shared
    x, weight, out, residual, bias, scale, sums, images, height, width, depth, columns, out_stride, residual_stride = (
        args
    )
    STRIPS: gl.constexpr = inputs.shape[0] // INPUT_BUFFERS
    WEIGHT_BUFFERS: gl.constexpr = weights.shape[0]
    STRIP_ROWS: gl.constexpr = x.block_type.shape[1]
    STRIP_STEP: gl.constexpr = min(STRIP_ROWS, 3)
    DEPTH_STEP: gl.constexpr = x.block_type.shape[3]
    step = 0
    for tile in range(gl.program_id(0), _tile_counts(args)[2], gl.num_programs(0)):
        image, image_tile, top, left, column = _tile_position(tile, args)
        for i in range(gl.cdiv(depth, DEPTH_STEP) * KERNEL_WIDTH):
            k, tap = i // KERNEL_WIDTH * DEPTH_STEP, i % KERNEL_WIDTH
            buffer = step % INPUT_BUFFERS
            mbarrier.wait(input_free.index(buffer), (step // INPUT_BUFFERS & 1) ^ 1)
            mbarrier.expect(input_full.index(buffer), STRIPS * x.block_type.nbytes)
            for strip in gl.static_range(STRIPS):
                coords = [
                    image,
                    top - 1 + strip // STRIP_STEP * STRIP_ROWS + strip % STRIP_STEP,
                    left + tap - KERNEL_WIDTH // 2,
                    k,
                ]
                fetch(x, coords, input_full.index(buffer), inputs.index(buffer * STRIPS + strip))
            for y in gl.static_range(3):
                weight_step = 3 * step + y
                mbarrier.wait(weight_free.index(weight_step % WEIGHT_BUFFERS), (weight_step // WEIGHT_BUFFERS & 1) ^ 1)
                mbarrier.expect(weight_full.index(weight_step % WEIGHT_BUFFERS), weight.block_type.nbytes)
                coords = [column, (y * KERNEL_WIDTH + tap) * depth + k]
                fetch(
                    weight,
                    coords,
                    weight_full.index(weight_step % WEIGHT_BUFFERS),
                    weights.index(weight_step % WEIGHT_BUFFERS),
                )
            step += 1


@gluon.jit
def _consumer(
    CONSUMER: gl.constexpr,
    shared,
    args,
    KERNEL_WIDTH: gl.constexpr,
    RESIDUAL: gl.constexpr,
    HAS_SCALE: gl.constexpr,
    HALF_TILE: gl.constexpr,
):
    """Compute one consumer's 64 pixels of each tile."""
    inputs, weights, staged, input_full, input_free, weight_full, weight_free, staged_full, staged_free = shared
    x, weight, out, residual, bias, scale, sums, images, height, width, depth, columns, out_stride, residual_stride = (
        args
    )
    step = 0
    tile_number = 0
    for tile in range(gl.program_id(0), _tile_counts(args)[2], gl.num_programs(0)):
        image, image_tile, top, left, column = _tile_position(tile, args)
        steps = gl.cdiv(depth, x.block_type.shape[3]) * KERNEL_WIDTH
        progress = step, steps, tile_number, column
        if top + CONSUMER * x.block_type.shape[1] >= height:  # none of its pixels is in the image
            _skip_tile(CONSUMER, progress, shared)
        elif HALF_TILE:
            if column + CONV_COLUMNS // 2 >= columns:
                _compute_tile(CONSUMER, progress, shared, args, RESIDUAL, HAS_SCALE, CONV_COLUMNS // 2)
            else:
                _compute_tile(CONSUMER, progress, shared, args, RESIDUAL, HAS_SCALE, CONV_COLUMNS)
        else:
            _compute_tile(CONSUMER, progress, shared, args, RESIDUAL, HAS_SCALE, CONV_COLUMNS)
        step += steps
        tile_number += 1


@gluon.jit
def _skip_tile(CONSUMER: gl.constexpr, progress, shared):
    """Skip a tile in which the consumer has no pixels: free the buffers."""
    inputs, weights, staged, input_full, input_free, weight_full, weight_free, staged_full, staged_free = shared
    WEIGHT_BUFFERS: gl.constexpr = weights.shape[0]
    step, steps, tile_number, column = progress
    for i in range(step, step + steps):
        mbarrier.wait(input_full.index(i % INPUT_BUFFERS), i // INPUT_BUFFERS & 1)
        mbarrier.arrive(input_free.index(i % INPUT_BUFFERS))
        for y in gl.static_range(3):
            weight_step = 3 * i + y
            mbarrier.wait(weight_full.index(weight_step % WEIGHT_BUFFERS), weight_step // WEIGHT_BUFFERS & 1)
            mbarrier.arrive(weight_free.index(weight_step % WEIGHT_BUFFERS))
    mbarrier.wait(staged_free.index(CONSUMER), (tile_number & 1) ^ 1)
    mbarrier.arrive(staged_full.index(CONSUMER))


@gluon.jit
def _compute_tile(
    CONSUMER: gl.constexpr,
    progress,
    shared,
    args,
    RESIDUAL: gl.constexpr,
    HAS_SCALE: gl.constexpr,
    BN: gl.constexpr,
):
    """Compute a consumer's part of one tile and store it in shared memory."""
    step, steps, tile_number, column = progress
    inputs, weights, staged, input_full, input_free, weight_full, weight_free, staged_full, staged_free = shared
    x, weight, out, residual, bias, scale, sums, images, height, width, depth, columns, out_stride, residual_stride = (
        args
    )
    STRIPS: gl.constexpr = inputs.shape[0] // INPUT_BUFFERS
    WEIGHT_BUFFERS: gl.constexpr = weights.shape[0]
    STRIP_STEP: gl.constexpr = min(x.block_type.shape[1], 3)
    BITS: gl.constexpr = x.dtype.primitive_bitwidth
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 256 // BITS])
    acc = gl.zeros([CONSUMER_PIXELS, BN], gl.float32, layout)
    if RESIDUAL and not HAS_SCALE:
        col = column + gl.arange(0, BN, gl.SliceLayout(0, layout))
        acc += gl.load(bias + col, col < columns, 0.0)[None, :]
    for i in range(steps):
        buffer = (step + i) % INPUT_BUFFERS
        mbarrier.wait(input_full.index(buffer), (step + i) // INPUT_BUFFERS & 1)
        for y in gl.static_range(3):
            weight_step = 3 * (step + i) + y
            mbarrier.wait(weight_full.index(weight_step % WEIGHT_BUFFERS), weight_step // WEIGHT_BUFFERS & 1)
            input_tile = inputs.index(buffer * STRIPS + STRIP_STEP * CONSUMER + y).reshape(
                [CONSUMER_PIXELS, x.block_type.shape[3]]
            )
            weight_tile = weights.index(weight_step % WEIGHT_BUFFERS).slice(0, BN).permute([1, 0])
            acc = warpgroup_mma(input_tile, weight_tile, acc, is_async=True)
            acc = warpgroup_mma_wait(1, [acc])
            previous = (weight_step + WEIGHT_BUFFERS - 1) % WEIGHT_BUFFERS
            if y == 0:
                mbarrier.arrive(weight_free.index(previous), pred=i > 0)
                mbarrier.arrive(input_free.index((step + i + INPUT_BUFFERS - 1) % INPUT_BUFFERS), pred=i > 0)
            else:
                mbarrier.arrive(weight_free.index(previous))
    acc = warpgroup_mma_wait(0, [acc])
    mbarrier.arrive(weight_free.index((3 * (step + steps) + WEIGHT_BUFFERS - 1) % WEIGHT_BUFFERS))
    mbarrier.arrive(input_free.index((step + steps + INPUT_BUFFERS - 1) % INPUT_BUFFERS))
    mbarrier.wait(staged_free.index(CONSUMER), (tile_number & 1) ^ 1)
    if BN == 64:
        _stage_columns(acc, CONSUMER * 2, column, shared, args, RESIDUAL, HAS_SCALE)
    else:
        first, second = gl.split(gl.permute(gl.reshape(acc, [CONSUMER_PIXELS, 2, BN // 2]), [0, 2, 1]))
        _stage_columns(first, CONSUMER * 2, column, shared, args, RESIDUAL, HAS_SCALE)
        _stage_columns(second, CONSUMER * 2 + 1, column + BN // 2, shared, args, RESIDUAL, HAS_SCALE)
    mbarrier.arrive(staged_full.index(CONSUMER))


@gluon.jit
def _stage_columns(acc, buffer, column, shared, args, RESIDUAL: gl.constexpr, HAS_SCALE: gl.constexpr):
    """Store 64 columns in shared memory, in the dtype of the result."""
    inputs, weights, staged, input_full, input_free, weight_full, weight_free, staged_full, staged_free = shared
    x, weight, out, residual, bias, scale, sums, images, height, width, depth, columns, out_stride, residual_stride = (
        args
    )
    if HAS_SCALE:
        col = column + gl.arange(0, 64, gl.SliceLayout(0, acc.type.layout))
        acc *= gl.load(scale + col, col < columns, 0.0)[None, :]
        if RESIDUAL:
            acc += gl.load(bias + col, col < columns, 0.0)[None, :]
    staged.index(buffer).store(acc.to(out.dtype.element_ty))


# A thread has eight adjacent values of a row; eight threads have 64 columns, of 16 rows at a time.
EPILOGUE_LAYOUT = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [16, 0], [32, 0]],
        [[0, 8], [0, 16], [0, 32], [1, 0], [2, 0]],
        [[4, 0], [8, 0]],
        [],
        [64, 64],
    )
)


@gluon.jit
def _epilogue(
    shared,
    args,
    KERNEL_WIDTH: gl.constexpr,
    RESIDUAL: gl.constexpr,
    HALF_TILE: gl.constexpr,
):
    """Add the residual to the consumers' results, compute channel sums and store."""
    inputs, weights, staged, input_full, input_free, weight_full, weight_free, staged_full, staged_free = shared
    x, weight, out, residual, bias, scale, sums, images, height, width, depth, columns, out_stride, residual_stride = (
        args
    )
    tile_number = 0
    for tile in range(gl.program_id(0), _tile_counts(args)[2], gl.num_programs(0)):
        position = _tile_position(tile, args)
        _epilogue_half(0, position, tile_number, shared, args, KERNEL_WIDTH, RESIDUAL)
        if HALF_TILE:
            if position[4] + CONV_COLUMNS // 2 < columns:
                _epilogue_half(1, position, tile_number, shared, args, KERNEL_WIDTH, RESIDUAL)
        else:
            _epilogue_half(1, position, tile_number, shared, args, KERNEL_WIDTH, RESIDUAL)
        for i in gl.static_range(CONV_CONSUMERS):
            mbarrier.arrive(staged_free.index(i))
        tile_number += 1


@gluon.jit
def _epilogue_half(
    HALF: gl.constexpr,
    position,
    tile_number,
    shared,
    args,
    KERNEL_WIDTH: gl.constexpr,
    RESIDUAL: gl.constexpr,
):
    """Finish 64 columns of all consumers."""
    inputs, weights, staged, input_full, input_free, weight_full, weight_free, staged_full, staged_free = shared
    x, weight, out, residual, bias, scale, sums, images, height, width, depth, columns, out_stride, residual_stride = (
        args
    )
    image, image_tile, top, left, column = position
    TILE_WIDTH: gl.constexpr = x.block_type.shape[2]
    SUMS_PER_ROW: gl.constexpr = KERNEL_WIDTH == 1 and RESIDUAL
    col = column + HALF * 64 + gl.arange(0, 64, gl.SliceLayout(0, EPILOGUE_LAYOUT))
    col_mask = col < columns
    total = gl.zeros([CONSUMER_PIXELS, 64], gl.float32, EPILOGUE_LAYOUT)
    square = gl.zeros([CONSUMER_PIXELS, 64], gl.float32, EPILOGUE_LAYOUT)
    for i in gl.static_range(CONV_CONSUMERS):
        pixel = i * CONSUMER_PIXELS + gl.arange(0, CONSUMER_PIXELS, gl.SliceLayout(1, EPILOGUE_LAYOUT))
        y, column_in_image = top + pixel // TILE_WIDTH, left + pixel % TILE_WIDTH
        mask = ((y < height) & (column_in_image < width))[:, None] & col_mask[None, :]
        row, row_offset = (image * height + y).to(gl.int64), column_in_image * columns
        if RESIDUAL:
            residual_tile = gl.load(residual + (row * residual_stride + row_offset)[:, None] + col[None, :], mask, 0.0)
        if HALF == 0:
            mbarrier.wait(staged_full.index(i), tile_number & 1)
        result = staged.index(i * 2 + HALF).load(EPILOGUE_LAYOUT)
        if RESIDUAL:
            result += residual_tile
        gl.store(out + (row * out_stride + row_offset)[:, None] + col[None, :], result, mask)
        result = gl.where(mask, result, 0.0).to(gl.float32)
        if SUMS_PER_ROW:
            sums_row = (image * height + top + i) * _tile_counts(args)[1] + left // TILE_WIDTH
            _store_sums(result, result * result, sums_row, col, col_mask & (top + i < height), args)
        else:
            total += result
            square += result * result
    if not SUMS_PER_ROW:
        tile_rows, tile_columns, tiles = _tile_counts(args)
        _store_sums(total, square, image * tile_rows * tile_columns + image_tile, col, col_mask, args)


@gluon.jit
def _store_sums(value, square, sums_row, col, col_mask, args):
    """Store the sums over all rows."""
    x, weight, out, residual, bias, scale, sums, images, height, width, depth, columns, out_stride, residual_stride = (
        args
    )
    sums_ptrs = sums + sums_row.to(gl.int64) * 2 * columns + col
    total, square = gl.split(gl.sum(gl.join(value, square), 0))
    gl.store(sums_ptrs, gl.convert_layout(total, gl.SliceLayout(0, EPILOGUE_LAYOUT)), col_mask)
    gl.store(sums_ptrs + columns, gl.convert_layout(square, gl.SliceLayout(0, EPILOGUE_LAYOUT)), col_mask)

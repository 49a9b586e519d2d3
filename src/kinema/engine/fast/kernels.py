"""Triton kernels for what only moves memory: norms, gates, sums, and attention over a handful of frames.

Each reads what it needs once and writes what it makes once; torch would take several passes over the same tensors.
`kinema.engine.fast.fused` says what each computes, in plain torch, and decides where these are called. All arithmetic
is in float32. Sizes of pictures are no part of what is compiled, so another size of video compiles nothing anew.

Imported only where there is CUDA, to which torch brings Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Columns of a tile: 64 numbers of two bytes are a cache line.
COLUMNS = 64
# Pieces in which the channels of a frame are summed up, at most.
MOST_CHUNKS = 512


@triton.jit
def _sums(x, y, bias, out, sums, rows, channels, per, ADD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    block, chunk, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    cols = block * COLS + tl.arange(0, COLS)
    here = cols < channels
    base = n.to(tl.int64) * rows * channels
    total = tl.zeros([ROWS, COLS], tl.float32)
    square = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, per, ROWS):
        row = chunk * per + start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & here[None, :]
        at = base + row[:, None].to(tl.int64) * channels + cols[None, :]
        value = tl.load(x + at, inside, 0.0).to(tl.float32)
        if ADD:
            value += tl.load(y + at, inside, 0.0).to(tl.float32)
            value += tl.load(bias + cols, here, 0.0).to(tl.float32)[None, :]
            tl.store(out + at, value, inside)
            value = tl.where(inside, value, 0.0)
        total += value
        square += value * value
    to = sums + (n.to(tl.int64) * tl.num_programs(1) + chunk) * 2 * channels + cols
    tl.store(to, tl.sum(total, 0), here)
    tl.store(to + channels, tl.sum(square, 0), here)


def _chunks(rows: int) -> tuple[int, int]:
    """Into how many chunks the rows of a frame are cut, and how many rows each has: a multiple of 32."""
    per = triton.cdiv(triton.cdiv(rows, min(triton.cdiv(rows, 256), MOST_CHUNKS)), 32) * 32
    return triton.cdiv(rows, per), per


def channel_sums(x: torch.Tensor) -> torch.Tensor:
    n, rows, channels = x.shape
    chunks, per = _chunks(rows)
    sums = x.new_empty(n, chunks, 2, channels, dtype=torch.float32)
    grid = (triton.cdiv(channels, COLUMNS), chunks, n)
    _sums[grid](x, x, x, x, sums, rows, channels, per, ADD=False, ROWS=32, COLS=COLUMNS)
    return sums


def add(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    n, rows, channels = x.shape
    chunks, per = _chunks(rows)
    sums = x.new_empty(n, chunks, 2, channels, dtype=torch.float32)
    grid = (triton.cdiv(channels, COLUMNS), chunks, n)
    _sums[grid](x, y, bias, out, sums, rows, channels, per, ADD=True, ROWS=32, COLS=COLUMNS)
    return sums


@triton.jit
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


@triton.jit
def _apply(x, out, scale, shift, rows, channels, span, SILU: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    n = tl.program_id(2)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    here = cols < channels
    inside = (row < rows)[:, None] & here[None, :]
    at = n.to(tl.int64) * rows * channels + row[:, None].to(tl.int64) * channels + cols[None, :]
    known = (n // span) * channels + cols
    factor, offset = tl.load(scale + known, here, 0.0), tl.load(shift + known, here, 0.0)
    value = tl.load(x + at, inside, 0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    if SILU:
        value = value / (1 + tl.exp(-value))
    tl.store(out + at, value, inside)


def group_norm(
    x: torch.Tensor,
    sums: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    span: int,
    plus: torch.Tensor | None,
    out: torch.Tensor,
    *,
    silu: bool,
) -> torch.Tensor:
    frames, rows, channels = x.shape
    n, group, chunks = frames // span, channels // groups, span * sums.shape[1]
    scale, shift = x.new_empty(2, n, channels, dtype=torch.float32)
    lanes = triton.next_power_of_2(group)
    _affine[groups, n](
        sums,
        weight,
        bias,
        weight if plus is None else plus,
        scale,
        shift,
        chunks,
        channels,
        group,
        float(span * rows),
        eps,
        0 if plus is None or len(plus) == 1 else channels,
        PLUS=plus is not None,
        CHUNKS=max(16, 2048 // lanes),
        GROUP=lanes,
    )
    grid = (triton.cdiv(channels, COLUMNS), triton.cdiv(rows, 64), frames)
    _apply[grid](x, out, scale, shift, rows, channels, span, SILU=silu, ROWS=64, COLS=COLUMNS)
    return out


@triton.jit
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
    pixels,
    eps,
    share,
    PLUS: tl.constexpr,
    ADD: tl.constexpr,
    MIX: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    row, cols = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLS)
    here = (cols < channels)[None, :]
    inside = (row < rows)[:, None] & here
    at = row[:, None].to(tl.int64) * channels + cols[None, :]
    of_frame = (row // pixels)[:, None] * channels + cols[None, :]
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    if MIX:
        mixed = share * value + (1 - share) * tl.load(y + at, inside, 0.0).to(tl.float32)
        tl.store(y + at, mixed + tl.load(blend + of_frame, inside, 0.0), inside)
    if ADD:
        value += tl.load(y + at, inside, 0.0).to(tl.float32)
    if PLUS:
        value += tl.load(plus + of_frame, inside, 0.0)
    if ADD:
        tl.store(y + at, value, inside)
    mean = tl.sum(value, 1)[:, None] / channels
    centred = tl.where(here, value - mean, 0.0)
    factor = 1 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / channels + eps)
    on = cols < channels
    scale = tl.load(weight + cols, on, 0.0).to(tl.float32)[None, :]
    shift = tl.load(bias + cols, on, 0.0).to(tl.float32)[None, :]
    tl.store(out + at, centred * factor * scale + shift, inside)


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
) -> torch.Tensor:
    rows, channels = x.shape
    out = torch.empty_like(x)
    cols = triton.next_power_of_2(channels)
    height = max(1, 2048 // cols)
    other = x if add_to is None else add_to
    _layer_norm[(triton.cdiv(rows, height),)](
        x,
        other if mix_into is None else mix_into,
        weight if plus is None else plus,
        weight if blend is None else blend,
        out,
        weight,
        bias,
        rows,
        channels,
        rows if plus is None else rows // len(plus),
        eps,
        share,
        PLUS=plus is not None,
        ADD=add_to is not None,
        MIX=mix_into is not None,
        ROWS=height,
        COLS=cols,
    )
    return out


@triton.jit
def _gelu(x):
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _geglu(wide, out, rows, inner, ROWS: tl.constexpr, COLS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (col < inner)[None, :]
    at = row[:, None].to(tl.int64) * inner + col[None, :]
    source = wide + at + row[:, None].to(tl.int64) * inner
    value = tl.load(source, inside, 0.0).to(tl.float32)
    gate = tl.load(source + inner, inside, 0.0).to(tl.float32)
    tl.store(out + at, value * _gelu(gate), inside)


def geglu(wide: torch.Tensor) -> torch.Tensor:
    rows, inner = len(wide), wide.shape[1] // 2
    out = wide.new_empty(rows, inner)
    _geglu[triton.cdiv(rows, 8), triton.cdiv(inner, 256)](wide, out, rows, inner, ROWS=8, COLS=256)
    return out


@triton.jit
def _geglu_linear(x, weight, bias, out, rows, inner, depth, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    across = tl.cdiv(2 * inner, BN)
    row = (tl.program_id(0) // across) * BM + tl.arange(0, BM)
    col = (tl.program_id(0) % across) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    # Even columns of a tile are values, odd ones their gates: a thread holds both, side by side.
    source = col // 2 + (col % 2) * inner
    source = tl.where(col < 2 * inner, source, 0)
    a = x + (tl.where(row < rows, row, 0)[:, None]).to(tl.int64) * depth + k[None, :]
    b = weight + source[None, :] * depth + k[:, None]
    both = tl.zeros([BM, BN], tl.float32)
    for start in range(0, depth, BK):
        left = k < depth - start
        both = tl.dot(tl.load(a, left[None, :], 0.0), tl.load(b, left[:, None], 0.0), both)
        a += BK
        b += BK
    both += tl.load(bias + source).to(tl.float32)[None, :]
    value, gate = tl.split(tl.reshape(both, [BM, BN // 2, 2]))
    place = (tl.program_id(0) % across) * (BN // 2) + tl.arange(0, BN // 2)
    at = row[:, None].to(tl.int64) * inner + place[None, :]
    tl.store(out + at, value * _gelu(gate), (row < rows)[:, None] & (place < inner)[None, :])


def geglu_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    tile: tuple[int, int, int] = (128, 256, 64),
    warps: int = 8,
    stages: int = 3,
) -> torch.Tensor:
    rows, depth = x.shape
    inner = len(weight) // 2
    out = x.new_empty(rows, inner)
    grid = (triton.cdiv(rows, tile[0]) * triton.cdiv(2 * inner, tile[1]),)
    bm, bn, bk = tile
    _geglu_linear[grid](
        x, weight, bias, out, rows, inner, depth, BM=bm, BN=bn, BK=bk, num_warps=warps, num_stages=stages
    )
    return out


@triton.jit
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
    _time_attention[pixels * heads, batch](
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

"""Decoding of latents to frames, chunk by chunk, with the temporal decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kinema.engine.engines import make_decoder
from kinema.models.devices import release_cache
from kinema.models.out_of_memory import insufficient, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kinema.media.video_writer import Frames
    from kinema.models.gpu_group import Peer
    from kinema.models.memory_plan import MemoryPlan
    from kinema.values import Engine


class NotFinite(Exception):
    """The decoder's output has NaN or infinity."""


def decode(
    vae: torch.nn.Module,
    latents: torch.Tensor,
    plan: MemoryPlan,
    events: list[str],
    into: Frames,
    *,
    engine: Engine = "reference",
    peers: Sequence[Peer] = (),
) -> Iterator[Frames]:
    """Yield the frames of each chunk, uint8 [n, height, width, 3].

    The decoder smooths frames within a chunk only, so borders between chunks may flicker. If memory runs out, the chunk
    size is halved, decoding continues with the same chunk, and `events` records it.

    Args:
        vae: AutoencoderKLTemporalDecoder, on the latents' device.
        latents: [1, num_frames, channels, h/f, w/f], scaled as for the UNet.
        plan: Its chunk size is the number of frames decoded together.
        events: A line is appended for each time the chunk is halved; becomes `Recipe.events`.
        into: Array for all frames, uint8 [num_frames, height, width, 3]; the chunks are views of it.
        engine: The implementation of the decoder.
        peers: Processes that each decode a chunk at the same time.

    Raises:
        NotFinite: if a frame has NaN or infinity.
        InsufficientMemory: if not even a single frame can be decoded.
    """
    weight = next(vae.parameters())
    unscaled = latents[0].to(weight.dtype) / vae.config.scaling_factor  # type: ignore[union-attr, operator]
    decoder = make_decoder(engine, vae)
    chunk_size, start = plan.decode_chunk_size, 0
    while start < len(unscaled):
        chunks = unscaled[start:].split(chunk_size)[: 1 + len(peers)]
        for peer, chunk in zip(peers, chunks[1:], strict=False):
            peer.ask("decode", plan, weight.dtype, tensor=chunk)
        try:
            for i, chunk in enumerate(chunks):
                frames = into[start : start + len(chunk)]
                torch.from_numpy(frames).copy_(peers[i - 1].answer() if i else decode_chunk(decoder, chunk))
                start += len(chunk)
                yield frames
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise insufficient(error, "decoding a single frame", "use a smaller width and height") from None
            chunk_size = len(chunk) // 2
            events.append(f"memory ran out while decoding {len(chunk)} frames together: continued with {chunk_size}")
        else:
            continue
        release_cache(latents.device)  # after the except block, when the error no longer references the tensors


def decode_chunk(decoder: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
    """Return the frames of a chunk, uint8 [n, height, width, 3] on the device.

    Args:
        decoder: From `kinema.engine.engines.make_decoder`.
        latents: [n, channels, h/f, w/f], unscaled.

    Raises:
        NotFinite: if a frame has NaN or infinity.
    """
    decoded = decoder(latents)
    if not decoded.isfinite().all():
        raise NotFinite
    scaled = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous()  # permuted on the device, which is faster

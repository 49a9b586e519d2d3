"""Decoding of latents to frames, chunk by chunk, with the temporal decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kinema.engine.engines import make_decoder
from kinema.engine.out_of_memory import insufficient, is_out_of_memory
from kinema.models.devices import release_cache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kinema.media.video_writer import Frames
    from kinema.values import Engine


class NotFinite(Exception):
    """The decoder's output has NaN or infinity."""


def decode(
    vae: torch.nn.Module, latents: torch.Tensor, chunk_size: int, events: list[str], engine: Engine = "reference"
) -> Iterator[Frames]:
    """Yield the frames of each chunk, uint8 [n, height, width, 3].

    The decoder smooths frames within a chunk only, so borders between chunks may flicker. If memory runs out, the chunk
    size is halved, decoding continues with the same chunk, and `events` records it.

    Args:
        vae: AutoencoderKLTemporalDecoder, on the latents' device.
        latents: [1, num_frames, channels, h/f, w/f], scaled as for the UNet.
        chunk_size: Frames decoded together.
        events: A line is appended for each time the chunk is halved; becomes `Recipe.events`.
        engine: The implementation of the decoder.

    Raises:
        NotFinite: if a frame has NaN or infinity.
        InsufficientMemory: if not even a single frame can be decoded.
    """
    weight = next(vae.parameters())
    unscaled = latents[0].to(weight.dtype) / vae.config.scaling_factor  # type: ignore[union-attr, operator]
    decoder = make_decoder(engine, vae)
    start = 0
    while start < len(unscaled):
        chunk = unscaled[start : start + chunk_size]
        try:
            frames = _to_uint8(decoder(chunk))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise insufficient(error, "decoding a single frame", "use a smaller width and height") from None
            chunk_size = len(chunk) // 2
            events.append(f"memory ran out while decoding {len(chunk)} frames together: continued with {chunk_size}")
        else:
            start += len(chunk)
            yield frames
            continue
        release_cache(latents.device)  # after the except block, when the error no longer references the tensors


def _to_uint8(decoded: torch.Tensor) -> Frames:
    """[n, 3, h, w] in −1…1 → uint8 [n, h, w, 3]."""
    if not decoded.isfinite().all():
        raise NotFinite
    scaled = (decoded.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    frames: Frames = scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()  # permuted on the device, which is faster
    return frames

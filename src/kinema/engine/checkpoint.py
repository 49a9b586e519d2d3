"""The state between denoising and decoding, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kinema.errors import GenerationFailed
from kinema.models.memory_plan import MemoryPlan

if TYPE_CHECKING:
    import os

    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Denoised latents, float32 [1, num_frames, channels, height/f, width/f].

    `plan` is the memory plan at the end of denoising, and `events` are the deviations so far; decoding continues them.
    """

    latents: torch.Tensor
    plan: MemoryPlan
    events: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file.

        Raises:
            OSError: if it can't be written.
        """
        metadata = {"plan": self.plan.name, "chunk": self.plan.decode_chunk_size, "events": self.events}
        data = save({"latents": self.latents.cpu().contiguous()}, {"denoised": json.dumps(metadata)})
        Path(path).write_bytes(data)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Checkpoint:
        """Read a file written by `save`, to the CPU.

        Raises:
            GenerationFailed: if the file is damaged.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata: dict[str, Any] = json.loads(file.metadata()["denoised"])
                latents = file.get_tensor("latents").clone()
            return Checkpoint(latents, MemoryPlan(metadata["plan"], metadata["chunk"]), tuple(metadata["events"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise GenerationFailed("the saved latents can't be read; generate the video again") from error

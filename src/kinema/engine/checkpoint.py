"""What lies between the two halves of the engine, and the file that keeps it."""

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
    """Latents, float32 [1, num_frames, channels, height/f, width/f], not decoded yet.

    With them the plan that denoising ended with and what did not go as planned: decoding goes on by both.
    """

    latents: torch.Tensor
    plan: MemoryPlan
    events: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file.

        Raises:
            OSError: where it can't be written.
        """
        noted = {"plan": self.plan.name, "chunk": self.plan.decode_chunk_size, "events": self.events}
        data = save({"latents": self.latents.cpu().contiguous()}, {"denoised": json.dumps(noted)})
        Path(path).write_bytes(data)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Checkpoint:
        """What `save` wrote, on the CPU.

        Raises:
            GenerationFailed: where the file is damaged.
        """
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                noted: dict[str, Any] = json.loads(file.metadata()["denoised"])
                latents = file.get_tensor("latents").clone()
            return Checkpoint(latents, MemoryPlan(noted["plan"], noted["chunk"]), tuple(noted["events"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise GenerationFailed("the kept latents can't be read; make the video again") from error

"""Sampling with v-prediction in the notation of Karras et al. 2022 (EDM): pure functions over latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> torch.Tensor:
    """Return noise levels from sigma_max down to sigma_min, then 0 (EDM, equation 5): float32 [steps + 1]."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.from_numpy(np.append((high + ramp * (low - high)) ** rho, 0).astype(np.float32))


def initial_latents(noise: torch.Tensor, sigmas: torch.Tensor, scheduler: dict[str, Any]) -> torch.Tensor:
    """Scale noise to the first level; with "leading" spacing, as in SVD, the unit variance of the data is included."""
    includes_data = scheduler.get("timestep_spacing", "linspace") == "leading"
    return noise * ((sigmas[0] ** 2 + 1) ** 0.5 if includes_data else sigmas[0])


def scaled_input(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Scale latents to unit variance for the UNet (EDM's c_in with σ_data = 1)."""
    return latents / (sigma**2 + 1) ** 0.5


def time_of(sigma: torch.Tensor) -> torch.Tensor:
    """Return the UNet's timestep for a noise level (EDM's c_noise)."""
    return 0.25 * sigma.log()


def denoised(latents: torch.Tensor, v: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Convert a v-prediction to clean latents (EDM's c_skip and c_out with σ_data = 1)."""
    return v * (-sigma / (sigma**2 + 1) ** 0.5) + latents / (sigma**2 + 1)


def euler_step(
    latents: torch.Tensor, clean: torch.Tensor, sigma: torch.Tensor, following: torch.Tensor
) -> torch.Tensor:
    """Take one Euler step to the next noise level `following` (EDM, algorithm 2 without churn)."""
    return latents + (latents - clean) / sigma * (following - sigma)


def guidance_ramp(first: float, last: float, num_frames: int) -> torch.Tensor:
    """Return the guidance scale of each frame, linear from the first to the last: [1, num_frames, 1, 1, 1]."""
    return torch.linspace(first, last, num_frames, dtype=torch.float32, device="cpu").view(1, -1, 1, 1, 1)


def guided(v: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
    """Apply classifier-free guidance (Ho & Salimans 2022) to a batch of two, [unconditional, conditional]."""
    unconditional, conditional = v.chunk(2)
    return unconditional + guidance * (conditional - unconditional)

"""Compare each sampling function with its equation."""

import pytest
import torch

from kinema.engine.sampling import (
    denoised,
    euler_step,
    guidance_ramp,
    guided,
    initial_latents,
    karras_sigmas,
    scaled_input,
    time_of,
)


def test_sigmas_fall_from_maximum_to_minimum_to_zero() -> None:
    sigmas = karras_sigmas(25, 0.002, 700.0)
    assert sigmas.shape == (26,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0] == pytest.approx(700, rel=1e-6)
    assert sigmas[-2] == pytest.approx(0.002, rel=1e-5)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_sigmas_are_evenly_spaced_in_seventh_root() -> None:
    roots = karras_sigmas(11, 0.002, 700.0)[:-1].double() ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff().mean().expand(10), rtol=1e-4)


def test_single_step_starts_at_sigma_max() -> None:
    assert karras_sigmas(1, 0.002, 700.0).tolist() == [700.0, 0.0]


@pytest.mark.parametrize("sigma", [0.002, 1.0, 700.0])
def test_denoised_with_true_v_gives_clean_latents(sigma: float) -> None:
    clean, noise = torch.randn(2, 1, 3, 4, 2, 2, dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    root = (level**2 + 1) ** 0.5
    v = (noise - level * clean) / root  # v-prediction's target: cos φ · noise − sin φ · data
    assert torch.allclose(denoised(clean + level * noise, v, level), clean)


def test_euler_step_with_clean_latents_scales_noise() -> None:
    clean, noise = torch.randn(2, 1, 3, 4, 2, 2, dtype=torch.float64)
    level, lower = torch.tensor([5.0, 2.0], dtype=torch.float64)
    assert torch.allclose(euler_step(clean + level * noise, clean, level, lower), clean + lower * noise)
    assert torch.allclose(euler_step(clean + level * noise, clean, level, level * 0), clean)


def test_scaled_input_has_unit_variance_and_time_is_quarter_log() -> None:
    sigma = torch.tensor(700.0)
    latents = torch.randn(1, 4, 4, 64, 64) * (sigma**2 + 1) ** 0.5
    assert scaled_input(latents, sigma).std() == pytest.approx(1, rel=0.02)
    assert time_of(torch.tensor(torch.e**2)) == pytest.approx(0.5)


def test_initial_latents_depend_on_timestep_spacing() -> None:
    noise, sigmas = torch.ones(1), torch.tensor([2.0, 0.0])
    assert initial_latents(noise, sigmas, {"timestep_spacing": "leading"}).item() == pytest.approx(5**0.5)
    assert initial_latents(noise, sigmas, {"timestep_spacing": "linspace"}).item() == 2
    assert initial_latents(noise, sigmas, {}).item() == 2


def test_guidance_ramp_is_linear_over_frames() -> None:
    ramp = guidance_ramp(1.0, 3.0, 5)
    assert ramp.shape == (1, 5, 1, 1, 1)
    assert ramp.flatten().tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert guidance_ramp(1.5, 3.0, 1).flatten().tolist() == [1.5]


def test_guided_extrapolates_beyond_conditional() -> None:
    without, with_image = torch.randn(2, 1, 3, 4, 2, 2)
    both = torch.cat([without, with_image])
    assert torch.allclose(guided(both, torch.tensor(0.0)), without)
    assert torch.allclose(guided(both, torch.tensor(1.0)), with_image, atol=1e-5)
    assert torch.allclose(guided(both, torch.tensor(3.0)), 3 * with_image - 2 * without, atol=1e-5)

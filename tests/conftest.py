"""Fixtures for all tests. Tests use no network."""

from __future__ import annotations

import os
from pathlib import Path

# Set before libraries read them: no downloads, and threads do not speed up tiny arrays.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():  # Triton reads it when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

import pytest

from tiny import make_tiny_sd, make_tiny_svd


@pytest.fixture(scope="session")
def tiny_svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random SVD of two levels. Read-only: tests that change files create their own."""
    return make_tiny_svd(tmp_path_factory.mktemp("weights") / "tiny-svd")


@pytest.fixture(scope="session")
def tiny_svd_4_levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random SVD of four levels, as the real model has, and eight latent channels."""
    return make_tiny_svd(tmp_path_factory.mktemp("weights") / "tiny-svd-4", levels=4, latent_channels=8)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random Stable Diffusion. Read-only."""
    return make_tiny_sd(tmp_path_factory.mktemp("weights") / "tiny-sd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests a timeout of 30 minutes."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.timeout(1800))

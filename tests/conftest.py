"""What every test shares. Nothing here, and nothing in a test, reaches the network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# Set before any library reads them: tests download nothing, and many small arrays gain nothing from threads.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tiny import make_tiny_sd, make_tiny_svd

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny_svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random SVD of two levels, to be read only: a test that damages files makes its own."""
    return make_tiny_svd(tmp_path_factory.mktemp("weights") / "tiny-svd")


@pytest.fixture(scope="session")
def tiny_svd_4_levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the real model's four levels, and eight latent channels."""
    return make_tiny_svd(tmp_path_factory.mktemp("weights") / "tiny-svd-4", levels=4, latent_channels=8)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Stable Diffusion, to be read only."""
    return make_tiny_sd(tmp_path_factory.mktemp("weights") / "tiny-sd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests half an hour before they count as hanging."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.timeout(1800))

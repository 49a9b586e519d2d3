"""Fixtures for all tests. Tests use no network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

# Set before libraries read them: no downloads, and threads do not speed up tiny arrays.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():  # Triton reads it when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

import pytest

import s3_server
from chromium_browser import ARGUMENTS, CHROMIUM
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


@pytest.fixture(scope="session")
def s3() -> Iterator[s3_server.S3Server]:
    """Return an S3-compatible server, shared by all tests that need one."""
    with s3_server.running() as server:
        yield server


@pytest.fixture
def s3_store(s3, tmp_path, monkeypatch) -> str:
    """Return the URL of a store in a new bucket; the variables of this process select its server."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return s3.new_bucket("-".join(tmp_path.parts[-2:]).replace("_", "-").lower()[-63:].strip("-"))


@pytest.fixture(scope="module")  # its event loop would disturb tests of other modules
def chromium() -> Iterator[Browser]:
    """Return a browser."""
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


# Files that take longest: several processes begin with them, so that none of them is left at the end.
LONGEST = (
    "test_page.py",
    "test_videos_api.py",
    "test_databases.py",
    "test_how_to.py",
    "test_fast.py",
    "test_generate.py",
    "test_gpu_group.py",
    "test_cli_prompt.py",
    "test_parity.py",
    "test_batch_command.py",
    "test_benchmark.py",
)
# Files that share a server: they run in one process, which starts it once.
SHARED = {
    "tests/browser": ("page", "page_routes", "verify_page"),
    "tests/jobs": ("databases", "batch_table", "migrations", "owners", "shared_files", "two_servers"),  # PostgreSQL
    "tests/serving": (
        "batches_api",
        "clients",
        "http_errors",
        "log_and_head",
        "openapi",
        "operation",
        "swagger",
        "videos_api",
        "waiting",
        "webhooks",
    ),
}
GROUPS = {f"{folder}/test_{name}.py": folder for folder, names in SHARED.items() for name in names}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Divide the tests by file, but keep files that share a server together."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadServerScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return GROUPS.get(file, file)

    return LoadServerScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest files to the front, and give slow tests a timeout of 30 minutes."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(pytest.mark.timeout(1800))

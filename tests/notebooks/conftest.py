"""Fixtures: the English notebook, executed once for all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lessons
import pytest
from notebooks.execute import execute

if TYPE_CHECKING:
    from pathlib import Path

    from nbformat import NotebookNode


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the executed notebook as slow: it generates ten videos."""
    for item in items:
        if "executed" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the English notebook runs."""
    return tmp_path_factory.mktemp("lesson")


@pytest.fixture(scope="session")
def executed(run_folder: Path) -> NotebookNode:
    """Return the unchanged English notebook with its outputs, executed with the pocket models."""
    return execute(lessons.read(lessons.ENGLISH), run_folder)

"""The English notebook, run once for all that is asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lessons
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from nbformat import NotebookNode


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the English notebook runs."""
    return tmp_path_factory.mktemp("lesson")


@pytest.fixture(scope="session")
def executed(place: Path) -> NotebookNode:
    """The English notebook with its outputs, made by the pocket models as it stands."""
    return lessons.execute(lessons.read(lessons.ENGLISH), place)

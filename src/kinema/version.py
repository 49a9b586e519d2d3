"""Kinema's own version, also where it is not installed: in a Bento, or a clone on the path."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def own_version() -> str:
    """The installed package's version, else that of the `pyproject.toml` it lies with, else "unknown"."""
    try:
        return version("kinema")
    except PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        return tomllib.loads(project.read_text("utf-8"))["project"]["version"] if project.is_file() else "unknown"

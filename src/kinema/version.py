"""Kinema's version, also if it is not installed: in a Bento, or in a clone on the path; URL of its documentation."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path


def own_version() -> str:
    """Return the version of the installed package, else of the clone's `pyproject.toml`, else "unknown"."""
    try:
        return version("kinema")
    except PackageNotFoundError:
        project = Path(__file__).parents[2] / "pyproject.toml"
        return tomllib.loads(project.read_text("utf-8"))["project"]["version"] if project.is_file() else "unknown"


def documentation_url() -> str | None:
    """Return the URL "Documentation" of the installed package's metadata; None if it has none."""
    try:
        urls = metadata("kinema").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    return next((url.partition(", ")[2] for url in urls if url.startswith("Documentation, ")), None)

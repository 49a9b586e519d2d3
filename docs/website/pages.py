"""The pages of the site: which file of the repository, or which function, gives which page, and the navigation."""

from __future__ import annotations

import posixpath
import shutil
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from docs.website import notebook, reference
from docs.website.markdown import Target, replace_links, title

ROOT = Path(__file__).parents[2]
SITE = "docs/website"  # its files are not pages, except home.md

# Pages from outside docs/, which has the others.
_FROM = {
    "docs/website/home.md": "index.md",
    "README.md": "readme.md",
    "README.ko.md": "readme-ko.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    ".github/SECURITY.md": "security.md",
    "deploy/README.md": "deployment.md",
    "training/README.md": "training.md",
    "training/pocket/DATA.md": "training-data.md",
    "src/kinema/models/pocket/README.md": "models/pocket.md",
    "src/kinema/models/pocket_t2i/README.md": "models/pocket-t2i.md",
    "notebooks/stable_video_diffusion.ipynb": "notebook/stable-video-diffusion.md",
    "notebooks/stable_video_diffusion.ko.ipynb": "notebook/stable-video-diffusion-ko.md",
}
# Section: pages, or patterns for pages that need not exist. A page that matches several patterns is at the first.
NAVIGATION: dict[str, list[str]] = {
    "Start": ["index.md", "quickstart.md", "gallery*.md", "readme.md", "readme-ko.md"],
    "Tutorial": ["notebook/stable-video-diffusion.md", "notebook/stable-video-diffusion-ko.md", "tutorial.md"],
    "How-to": ["how-to/progress*.md", "how-to/previews*.md", "how-to/handle*.md", "how-to/*.md", "troubleshooting*.md"],
    "Server": ["server.md", "page.md", "trust.md", "threat-model.md", "scaling.md", "capacity.md", "deployment.md"],
    "Reference": [*reference.PAGES, "stability.md", "models/*.md"],
    "Performance": ["performance.md", "performance-internals.md", "kernels.md", "performance-history.md"],
    "Project": [
        "architecture.md",
        "glossary.md",
        "dependencies.md",
        "contributing.md",
        "training.md",
        "training-data.md",
        "releasing.md",
        "security.md",
        "changelog.md",
    ],
}
# Pages whose heading is not a good title in the navigation.
TITLES = {
    "index.md": "Overview",
    "readme.md": "README",
    "readme-ko.md": "README (한국어)",
    "notebook/stable-video-diffusion.md": "Notebook",
    "notebook/stable-video-diffusion-ko.md": "노트북 (한국어)",
    "models/pocket.md": "Model pocket",
    "models/pocket-t2i.md": "Model pocket-t2i",
    "performance.md": "Results",
    "performance-history.md": "Earlier results",
}
# Files that a browser would download instead of showing them.
_SHOWN_AS_TEXT = {"", ".py", ".toml", ".sh", ".j2", ".service", ".ini"}


@cache
def sources() -> dict[str, str]:
    """Return the page of each file of the repository that becomes one."""
    docs = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    return {path: path.removeprefix("docs/") for path in docs if not path.startswith(SITE)} | _FROM


def write(folder: Path) -> None:
    """Write every page, and the images and files that pages link to, into an empty folder.

    Raises:
        ValueError: a link of a page leads nowhere.
    """
    for path, page in sources().items():
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".ipynb"):
            text = notebook.as_markdown(ROOT / path, target)
        else:
            text = (ROOT / path).read_text(encoding="utf-8")
        target.write_text(_with_site_links(text, path, page, folder), encoding="utf-8")
    for page, make in reference.PAGES.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(make(), encoding="utf-8")


def _with_site_links(text: str, path: str, page: str, folder: Path) -> str:
    """Return the text of a page with its links to files of the repository changed to pages and files of the site."""

    def change(link: Target) -> str:
        fragment = f"#{link.fragment}" if link.fragment else ""
        is_output = path.endswith(".ipynb") and link.path.startswith(f"{Path(page).stem}/")
        if not link.path or is_output:
            return f"{link.path}{fragment}"
        linked = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(link.path)))
        generated = linked.removeprefix("docs/")
        target = generated if generated in reference.PAGES else sources().get(linked) or _copied(linked, folder, path)
        return posixpath.relpath(target, posixpath.dirname(page) or ".") + fragment

    return replace_links(text, change)


def _copied(path: str, folder: Path, page: str) -> str:
    """Copy a file of the repository, or list a folder of it, for the site; return its path there.

    Raises:
        ValueError: there is no such file.
    """
    source = ROOT / path
    if source.is_dir():
        listing = folder / "files" / f"{path}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        names = sorted(f"{child.name}/" if child.is_dir() else child.name for child in source.iterdir())
        listing.write_text("\n".join([f"{path}/", *names, ""]), encoding="utf-8")
        return listing.relative_to(folder).as_posix()
    if not source.is_file() or path.startswith(".."):
        raise ValueError(f"{page} links to {path}, which does not exist")
    suffix = ".txt" if source.suffix in _SHOWN_AS_TEXT else ""
    is_asset = path.startswith("docs/")
    target = folder / (path.removeprefix("docs/") if is_asset else f"files/{path}{suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target.relative_to(folder).as_posix()


def navigation(folder: Path) -> dict[str, list[str]]:
    """Return the pages of each section, with patterns replaced by the pages that match.

    Raises:
        ValueError: a listed page does not exist, or a page is not listed.
    """
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    listed = {entry for entries in NAVIGATION.values() for entry in entries if "*" not in entry}
    if missing := listed - pages:
        raise ValueError(f"the navigation lists pages that do not exist: {', '.join(sorted(missing))}")
    sections: dict[str, list[str]] = {section: [] for section in NAVIGATION}
    placed = set(listed)
    for section, entries in NAVIGATION.items():
        for entry in entries:
            found = [entry] if entry in listed else _matching(folder, entry, placed)
            sections[section] += found
            placed |= set(found)
    if unlisted := pages - {page for section in sections.values() for page in section}:
        raise ValueError(f"the navigation lacks pages: {', '.join(sorted(unlisted))}")
    return {section: entries for section, entries in sections.items() if entries}


def _matching(folder: Path, pattern: str, placed: set[str]) -> list[str]:
    """Return the pages that match a pattern and have no place yet, sorted by title."""
    found = {path.relative_to(folder).as_posix(): title(path.read_text("utf-8")) for path in folder.glob(pattern)}
    return sorted(found.keys() - placed, key=lambda page: found[page].lower())

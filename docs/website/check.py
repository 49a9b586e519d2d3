"""Check a built site: every link and anchor resolves, and opening a page sends no request to another host."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Attributes that make a browser load something. <a href> loads nothing until it is clicked.
_LOADED = {"src", "srcset", "poster", "data", "href", "action"}
_CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
_EXTERNAL = re.compile(r"(?:https?:)?//", re.IGNORECASE)
# <link> elements that only state a relation; browsers load nothing for them.
_NOT_LOADED = {"canonical", "alternate", "prev", "next"}


class _Page(HTMLParser):
    """The ids of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a":
            self.links += [values["href"]] if values.get("href") else []
            return
        if tag == "link" and set(values.get("rel", "").split()) & _NOT_LOADED:
            return
        self.loaded += [values[name] for name in _LOADED & values.keys() if values[name]]
        self.loaded += [url for found in _CSS_URL.findall(values.get("style", "")) for url in found if url]


def problems(site: Path) -> Iterator[str]:
    """Yield a line for each problem of the site in a folder."""
    pages = {path: _Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        yield from (f"{name} loads {url[:100]} from another host" for url in page.loaded if _EXTERNAL.match(url))
        if path.name == "404.html":  # served at any URL, so its links start at the root
            continue
        for url in [*page.links, *page.loaded]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc or url.startswith("?"):
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name} links to {url[:100]}, which does not exist"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids | {"__top"}:
                yield f"{name} links to {url[:100]}, but the page has no such anchor"
    for path in sorted(site.rglob("*.css")):
        for url in (url for found in _CSS_URL.findall(path.read_text("utf-8")) for url in found if url):
            if _EXTERNAL.match(url):
                yield f"{path.relative_to(site)} loads {url[:100]} from another host"

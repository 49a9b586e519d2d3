"""Find links and headings in Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CODE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$|(?<!`)(`+)(?!`).+?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
# [text](target) and ![text](target), whose text may contain an image; src="target" and href="target" of HTML.
_LINK = re.compile(r"(?<=\]\()<?([^)\s>]+)>?(?=\)| \")|(?<= src=\")([^\"]+)(?=\")|(?<= href=\")([^\"]+)(?=\")")
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)? *$", re.MULTILINE)
_BAR = re.compile(r"\|(?=[^`]*(?:`[^`]*`[^`]*)*$)")
_EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:|//")


class Target(NamedTuple):
    """A relative link: path, empty for the same page, and fragment, empty for the whole page."""

    path: str
    fragment: str


def without_code(text: str) -> str:
    """Return the text with code blanked out; every other character keeps its position."""
    return _CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)


def replace_links(text: str, change: Callable[[Target], str]) -> str:
    """Replace the target of every relative link, outside code, by the return value of `change`."""
    parts, end = [], 0
    for found in _LINK.finditer(without_code(text)):
        target = next(filter(None, found.groups()))
        if not _EXTERNAL.match(target):
            parts += [text[end : found.start()], change(Target(*_split(target)))]
            end = found.end()
    return "".join([*parts, text[end:]])


def links(text: str) -> list[Target]:
    """Return all relative links, outside code."""
    found: list[Target] = []
    replace_links(text, lambda target: found.append(target) or "")  # type: ignore[func-returns-value]
    return found


def headings(text: str) -> Iterator[str]:
    """Yield the text of each heading, without links and marks."""
    visible = without_code(text)
    for found in _HEADING.finditer(visible):
        heading = text[found.start(1) : found.end(1)]  # with inline code, which is blank in `visible`
        yield re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("**", "")


def anchors(text: str) -> set[str]:
    """Return the fragments that a page has: of headings, as code hosts and the site derive them, and of `id="…"`."""
    slugs = {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings(text)}
    return slugs | set(re.findall(r"\bid=\"([^\"]+)\"", without_code(text)))


def title(text: str) -> str:
    """Return the first heading of a page."""
    return next(headings(text), "")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table; bars outside code are escaped."""
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[_BAR.sub(r"\\|", " ".join(cell.split())) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _split(target: str) -> tuple[str, str]:
    path, _, fragment = target.partition("#")
    return path, fragment

"""README.ko.md is a complete translation of README.md: same sections, code, links, tables and numbers.

README.ko.md ends with a hash for each section of README.md. When a section changes, the test prints the line to put
there after the translation is updated.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
MARKS = re.compile(r"<!-- Translated from README\.md.*?\n(.*?)\n-->", re.DOTALL)


class Section(NamedTuple):
    """A heading, its text without code blocks, and its code blocks."""

    heading: str
    body: str
    code: list[str]


def sections(text: str) -> list[Section]:
    """Split a README at its headings."""
    blocks = FENCE.findall(text)
    plain = FENCE.sub("```", text)
    found = []
    for part in re.split(r"^(?=#+ )", plain, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        found.append(Section(heading, body.strip(), [blocks.pop(0) for _ in range(body.count("```"))]))
    return found


def mark(section: Section) -> str:
    """Return a hash of a section that ignores line breaks."""
    content = " ".join([section.heading, *section.body.split(), *section.code])
    return hashlib.sha256(content.encode()).hexdigest()[:8]


ENGLISH = sections((ROOT / "README.md").read_text(encoding="utf-8"))
KOREAN_TEXT = (ROOT / "README.ko.md").read_text(encoding="utf-8")
KOREAN = sections(MARKS.sub("", KOREAN_TEXT))
PAIRS = pytest.mark.parametrize(
    ("english", "korean"),
    # test_headings_have_the_same_levels fails if one README has more sections.
    [pytest.param(*pair, id=pair[0].heading.strip("# ")) for pair in zip(ENGLISH, KOREAN, strict=False)],
)


def links(section: Section) -> list[str]:
    """Return the sorted link targets, without the other README; a Korean notebook counts as the English one."""
    targets = re.findall(r"\]\((?!README(?:\.ko)?\.md\))([^)]+)\)", section.body)
    return sorted(target.replace(".ko.ipynb", ".ipynb") for target in targets)


def tables(section: Section) -> list[int]:
    """Return the number of cells of each table row."""
    return [line.count("|") - 1 for line in section.body.splitlines() if line.startswith("|")]


def prose(section: Section) -> str:
    """Return the text without link targets."""
    return re.sub(r"\]\([^)]+\)", "]", section.body)


def test_headings_have_the_same_levels() -> None:
    assert [section.heading.count("#") for section in KOREAN] == [section.heading.count("#") for section in ENGLISH]


@PAIRS
def test_translation_is_up_to_date(english: Section, korean: Section) -> None:
    found = MARKS.search(KOREAN_TEXT)
    assert found, "README.ko.md has no comment with section hashes at its end"
    marks = dict(line.rsplit(": ", 1) for line in found[1].splitlines())
    name = english.heading.strip("# ")
    assert marks.get(name) == mark(english), (
        f"section {name!r} of README.md changed after it was translated. Update {korean.heading.strip('# ')!r} in "
        f"README.ko.md, then put this line into the comment at its end:\n{name}: {mark(english)}"
    )


@PAIRS
def test_code_is_identical(english: Section, korean: Section) -> None:
    assert korean.code == english.code
    spans = [sorted(re.findall(r"`([^`\n]+)`", section.body)) for section in (korean, english)]
    assert spans[0] == spans[1]


@PAIRS
def test_links_and_tables_are_the_same(english: Section, korean: Section) -> None:
    assert links(korean) == links(english)
    assert tables(korean) == tables(english)


@PAIRS
def test_no_number_is_missing(english: Section, korean: Section) -> None:
    english_numbers, korean_numbers = (
        Counter(re.findall(r"\d+(?:[.,]\d+)*", prose(section))) for section in (english, korean)
    )
    assert not english_numbers - korean_numbers  # Korean has digits for some English number words


@PAIRS
def test_translation_is_korean(english: Section, korean: Section) -> None:
    if re.search(r"[a-z]{3}", prose(english)):
        assert re.search(r"[가-힣]", korean.body)


def test_each_readme_links_to_the_other() -> None:
    assert "](README.ko.md)" in ENGLISH[0].body
    assert "](README.md)" in KOREAN[0].body

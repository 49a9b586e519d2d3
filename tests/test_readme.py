"""README.ko.md says what README.md says: section by section, with the same code, links, tables and figures.

README.ko.md ends with a mark for each section that it translates. When README.md changes, the tests name the section
and the mark to put there once the Korean says the same.
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
    """A heading and what stands under it, code blocks apart."""

    heading: str
    body: str
    code: list[str]


def sections(text: str) -> list[Section]:
    """A README by its headings; a # inside a code block is none."""
    blocks = FENCE.findall(text)
    plain = FENCE.sub("```", text)
    found = []
    for part in re.split(r"^(?=#+ )", plain, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        found.append(Section(heading, body.strip(), [blocks.pop(0) for _ in range(body.count("```"))]))
    return found


def mark(section: Section) -> str:
    """What changes whenever a section does; how its lines are broken is no change."""
    words = " ".join([section.heading, *section.body.split(), *section.code])
    return hashlib.sha256(words.encode()).hexdigest()[:8]


ENGLISH = sections((ROOT / "README.md").read_text(encoding="utf-8"))
KOREAN_TEXT = (ROOT / "README.ko.md").read_text(encoding="utf-8")
KOREAN = sections(MARKS.sub("", KOREAN_TEXT))
PAIRS = pytest.mark.parametrize(
    ("english", "korean"),
    # Where one README has more sections, the test of the headings says so.
    [pytest.param(*pair, id=pair[0].heading.strip("# ")) for pair in zip(ENGLISH, KOREAN, strict=False)],
)


def links(section: Section) -> list[str]:
    """Where a section leads, in any order; each README links to the other."""
    return sorted(re.findall(r"\]\((?!README(?:\.ko)?\.md\))([^)]+)\)", section.body))


def tables(section: Section) -> list[int]:
    """Each table row's number of cells."""
    return [line.count("|") - 1 for line in section.body.splitlines() if line.startswith("|")]


def prose(section: Section) -> str:
    """What is written out: without where links lead."""
    return re.sub(r"\]\([^)]+\)", "]", section.body)


def test_both_have_the_same_headings_in_levels() -> None:
    assert [section.heading.count("#") for section in KOREAN] == [section.heading.count("#") for section in ENGLISH]


@PAIRS
def test_the_translation_is_of_the_english_as_it_stands(english: Section, korean: Section) -> None:
    found = MARKS.search(KOREAN_TEXT)
    assert found, "README.ko.md has no comment with its marks at its end"
    marks = dict(line.rsplit(": ", 1) for line in found[1].splitlines())
    name = english.heading.strip("# ")
    assert marks.get(name) == mark(english), (
        f"README.md's section {name!r} changed after it was translated. Bring {korean.heading.strip('# ')!r} in "
        f"README.ko.md along, then put this line into the comment at its end:\n{name}: {mark(english)}"
    )


@PAIRS
def test_code_is_the_same_byte_for_byte(english: Section, korean: Section) -> None:
    assert korean.code == english.code
    spans = [sorted(re.findall(r"`([^`\n]+)`", section.body)) for section in (korean, english)]
    assert spans[0] == spans[1]


@PAIRS
def test_links_and_tables_are_the_same(english: Section, korean: Section) -> None:
    assert links(korean) == links(english)
    assert tables(korean) == tables(english)


@PAIRS
def test_no_figure_is_lost(english: Section, korean: Section) -> None:
    asked, given = (Counter(re.findall(r"\d+(?:[.,]\d+)*", prose(section))) for section in (english, korean))
    assert not asked - given  # Korean writes some in figures that English writes in words


@PAIRS
def test_the_translation_is_korean(english: Section, korean: Section) -> None:
    if re.search(r"[a-z]{3}", prose(english)):
        assert re.search(r"[가-힣]", korean.body)


def test_each_readme_leads_to_the_other() -> None:
    assert "](README.ko.md)" in ENGLISH[0].body
    assert "](README.md)" in KOREAN[0].body

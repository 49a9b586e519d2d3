"""README.ko.md translates all of README.md: section by section, with the same code, links, tables and numbers.

README.ko.md ends with a comment that has a hash of each section that it translates. When README.md changes, the tests
name the section and the hash to write there after the Korean text is updated.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HASH_COMMENT = re.compile(r"<!-- Translated from README\.md.*?\n(.*?)\n-->", re.DOTALL)


class Section(NamedTuple):
    """A heading, the text below it with code blocks emptied, and the code blocks."""

    heading: str
    body: str
    code: list[str]


def split_sections(text: str) -> list[Section]:
    """Split a README at its headings; ignore a # inside a code block."""
    blocks = CODE_BLOCK.findall(text)
    without_code = CODE_BLOCK.sub("```", text)
    sections = []
    for part in re.split(r"^(?=#+ )", without_code, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        sections.append(Section(heading, body.strip(), [blocks.pop(0) for _ in range(body.count("```"))]))
    return sections


def section_hash(section: Section) -> str:
    """Return a hash of heading, text and code that ignores line breaks in the text."""
    words = " ".join([section.heading, *section.body.split(), *section.code])
    return hashlib.sha256(words.encode()).hexdigest()[:8]


ENGLISH = split_sections((ROOT / "README.md").read_text(encoding="utf-8"))
KOREAN_TEXT = (ROOT / "README.ko.md").read_text(encoding="utf-8")
KOREAN = split_sections(HASH_COMMENT.sub("", KOREAN_TEXT))
each_section = pytest.mark.parametrize(
    ("english", "korean"),
    # If one README has more sections, test_korean_readme_has_the_same_heading_levels fails.
    [pytest.param(*pair, id=pair[0].heading.strip("# ")) for pair in zip(ENGLISH, KOREAN, strict=False)],
)


def links(section: Section) -> list[str]:
    """Return the sorted link targets, without those from one README to the other."""
    return sorted(re.findall(r"\]\((?!README(?:\.ko)?\.md\))([^)]+)\)", section.body))


def table_widths(section: Section) -> list[int]:
    """Return the number of cells of each table row."""
    return [line.count("|") - 1 for line in section.body.splitlines() if line.startswith("|")]


def without_link_targets(section: Section) -> str:
    return re.sub(r"\]\([^)]+\)", "]", section.body)


def test_korean_readme_has_the_same_heading_levels() -> None:
    assert [section.heading.count("#") for section in KOREAN] == [section.heading.count("#") for section in ENGLISH]


@each_section
def test_korean_section_has_the_hash_of_the_current_english_section(english: Section, korean: Section) -> None:
    comment = HASH_COMMENT.search(KOREAN_TEXT)
    assert comment, "README.ko.md has no comment with section hashes at its end"
    hashes = dict(line.rsplit(": ", 1) for line in comment[1].splitlines())
    name = english.heading.strip("# ")
    assert hashes.get(name) == section_hash(english), (
        f"section {name!r} of README.md changed after its translation. Update {korean.heading.strip('# ')!r} in "
        f"README.ko.md, then write this line into the comment at its end:\n{name}: {section_hash(english)}"
    )


@each_section
def test_korean_section_has_identical_code(english: Section, korean: Section) -> None:
    assert korean.code == english.code
    spans = [sorted(re.findall(r"`([^`\n]+)`", section.body)) for section in (korean, english)]
    assert spans[0] == spans[1]


@each_section
def test_korean_section_has_the_same_links_and_tables(english: Section, korean: Section) -> None:
    assert links(korean) == links(english)
    assert table_widths(korean) == table_widths(english)


@each_section
def test_korean_section_has_every_number_of_the_english_section(english: Section, korean: Section) -> None:
    required, actual = (
        Counter(re.findall(r"\d+(?:[.,]\d+)*", without_link_targets(section))) for section in (english, korean)
    )
    assert not required - actual  # Korean may write more numbers as digits


@each_section
def test_korean_section_is_written_in_hangul(english: Section, korean: Section) -> None:
    if re.search(r"[a-z]{3}", without_link_targets(english)):
        assert re.search(r"[가-힣]", korean.body)


def test_each_readme_links_to_the_other() -> None:
    assert "](README.ko.md)" in ENGLISH[0].body
    assert "](README.md)" in KOREAN[0].body

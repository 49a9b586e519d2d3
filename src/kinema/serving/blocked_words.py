"""Words and phrases that prompts may not contain, from the file KINEMA_BLOCKED_WORDS."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from kinema.errors import ContentRefused, InvalidRequest
from kinema.messages import Message

if TYPE_CHECKING:
    from pathlib import Path

    from kinema.settings import Settings

# Limits, so that a check takes milliseconds.
MAX_BYTES = 1_000_000
MAX_ENTRIES = 10_000
MAX_WORDS = 20
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class BlockedWords:
    """Entries of a file in the form of `_plain`.

    Attributes:
        phrases: Sequences of whole words.
        parts: Entries in scripts without capitals, such as Korean and Chinese. They are found inside of words too,
            since these scripts attach particles to words or write no spaces.
    """

    phrases: frozenset[tuple[str, ...]]
    parts: tuple[str, ...]

    def find(self, text: str) -> str | None:
        """Return an entry that a text contains, or None. Case, width and invisible characters make no difference."""
        plain = _plain(text)
        words = _WORD.findall(plain)
        longest = max(map(len, self.phrases), default=0)
        for start in range(len(words)):
            for end in range(start + 1, min(start + longest, len(words)) + 1):
                if (found := tuple(words[start:end])) in self.phrases:
                    return " ".join(found)
        return next((part for part in self.parts if part in plain), None)


def check_prompt(settings: Settings, prompt: str | None) -> None:
    """Check that a prompt contains no blocked word.

    Raises:
        ContentRefused: it does.
        InvalidRequest: the file can't be used.
    """
    if settings.blocked_words is None or prompt is None:
        return
    if (word := read_blocked_words(settings.blocked_words).find(prompt)) is not None:
        raise ContentRefused(
            Message(
                "blocked_word",
                "prompt contains {word!r}, which this server does not accept; write it without that",
                word=word,
            ),
            "prompt",
        )


@lru_cache(maxsize=1)
def read_blocked_words(path: Path) -> BlockedWords:
    """Read a file in UTF-8: a word or phrase per line; lines that begin with # are comments. It is read once.

    Raises:
        InvalidRequest: it can't be read, has no entries, or exceeds a limit.
    """
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: ~ of an unknown user
        reason = "it is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
        raise _unusable(path, f"can't be read ({reason}); check the name and the file") from None
    if len(data) > MAX_BYTES:
        raise _unusable(path, f"is larger than {MAX_BYTES // 1000:,} KB; shorten it")
    lines = [line.strip() for line in text.splitlines()]
    entries = [_plain(line) for line in lines if line and not line.startswith("#")]
    if len(entries) > MAX_ENTRIES:
        raise _unusable(path, f"has {len(entries):,} entries; the maximum is {MAX_ENTRIES:,}")
    phrases = {tuple(_WORD.findall(entry)) for entry in entries if not _is_part(entry)} - {()}
    parts = tuple(entry for entry in entries if _is_part(entry))
    if any(len(phrase) > MAX_WORDS for phrase in phrases):
        raise _unusable(path, f"has an entry of more than {MAX_WORDS} words; write one word or phrase per line")
    if not phrases and not parts:
        raise _unusable(path, "has no words; write one word or phrase per line")
    return BlockedWords(frozenset(phrases), parts)


def _plain(text: str) -> str:
    """Return a text without invisible characters, in lower case, with characters in their usual form."""
    visible = "".join(character for character in text if unicodedata.category(character) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", visible).casefold().split())


def _is_part(entry: str) -> bool:
    return any(unicodedata.category(character) == "Lo" for character in entry)


def _unusable(path: Path, problem: str) -> InvalidRequest:
    return InvalidRequest(f"KINEMA_BLOCKED_WORDS: {path} {problem}", "blocked_words")

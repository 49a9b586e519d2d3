"""The page's languages, by their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.serving.page.english import ENGLISH
from kinema.serving.page.korean import KOREAN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kinema.serving.page.words import Words

LANGUAGES: Mapping[str, Words] = {words.language: words for words in (ENGLISH, KOREAN)}

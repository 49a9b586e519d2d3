"""The page's languages by language code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.korean import KOREAN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kinema.serving.page.translations.labels import Labels

LANGUAGES: Mapping[str, Labels] = {labels.language: labels for labels in (ENGLISH, KOREAN)}

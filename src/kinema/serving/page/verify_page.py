"""The page at /studio/verify: a file is dropped, and the page says what is known about it."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

from kinema.errors import KinemaError
from kinema.serving.client_messages import error_message
from kinema.serving.lifespan import server_state
from kinema.serving.middleware import VERIFY_PAGE
from kinema.serving.page.translations.languages import LANGUAGES
from kinema.serving.page.translations.verify_words import VERIFY_WORDS
from kinema.serving.schemas import error_response
from kinema.serving.verify_api import verify_upload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Stricter than the rest of the page, since this one does without Gradio.
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin", "X-Content-Type-Options": "nosniff"}


def verify_routes(language_of: Callable[[Request], str]) -> APIRouter:
    """Return the router of the page; `language_of` returns the language of a request."""
    router = APIRouter(include_in_schema=False)

    def language_asked(request: Request) -> str:
        asked = request.query_params.get("language", "")
        return asked if asked in VERIFY_WORDS else language_of(request)

    @router.get(VERIFY_PAGE)
    def verify_page(request: Request) -> HTMLResponse:
        """Return the page."""
        language = language_asked(request)
        return HTMLResponse(_document(language, VERIFY_WORDS[language]), headers=HEADERS)

    @router.post(VERIFY_PAGE)
    async def verify_video(request: Request) -> JSONResponse:
        """Check a video as /v1/verify, with error messages in the page's language."""
        try:
            return JSONResponse(await verify_upload(server_state(request.app), request))
        except KinemaError as error:
            language = language_asked(request)
            status, body, headers = error_response(error)
            translation = VERIFY_WORDS[language].get(error.code) or LANGUAGES[language].translate(error_message(error))
            if translation is not None:
                body["error"]["message"] = translation
            headers["Content-Language"] = "en" if translation is None else language
            return JSONResponse(body, status, headers=headers)

    return router


def _document(language: str, words: Mapping[str, str]) -> str:
    """Return the page in one language."""
    others = "".join(
        f'<a href="verify?language={other}" lang="{other}" hreflang="{other}">{escape(others["language"])}</a>'
        for other, others in VERIFY_WORDS.items()
        if other != language
    )
    text = {name: escape(word) for name, word in words.items()}
    data = escape(json.dumps(words, ensure_ascii=False))
    return f"""<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text["title"]} · Kinema</title>
<link rel="icon" href="static/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="static/verify.css">
<script src="static/verify.js" defer></script>
</head>
<body data-words="{data}">
<header><h1>{text["title"]}</h1><nav aria-label="{text["navigation"]}"><a href="./">Kinema</a>{others}</nav></header>
<main>
<p>{text["intro"]}</p>
<form id="drop"><label for="file">{text["choose"]}</label><input id="file" type="file" name="file" multiple
accept="video/mp4,video/webm,image/gif,image/webp,image/png,.c2pa"></form>
<section id="result" aria-live="polite"></section>
</main>
<footer><p>{text["note"]}</p></footer>
</body>
</html>
"""

"""Swagger UI at / for the whole API. BentoML's own page would load files from other servers."""

from __future__ import annotations

from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

from fastapi.responses import HTMLResponse, JSONResponse

from kinema.serving import openapi
from kinema.serving.page import PATH
from kinema.serving.page.translations.languages import LANGUAGES
from kinema.version import documentation_url

if TYPE_CHECKING:
    from fastapi import FastAPI

# Swagger UI sets inline styles and shows files in responses as blobs.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Kinema API</title>
<link rel="icon" href=".{page}/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="./static_content/swagger-ui.css">
<style>
body {{ margin: 0 }}
.swagger-ui .scheme-container {{ display: none }} /* the only server is this one */
</style>
</head>
<body>
<header class="swagger-ui"><div class="wrapper"><p>{links}</p></div></header>
<main id="swagger-ui"></main>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script src=".{page}/static/swagger.js"></script>
</body>
</html>
"""


def add(app: FastAPI, service: Any) -> None:
    """Add / and /docs.json, which replace BentoML's. The service's document includes that of the app.

    Swagger UI's own files are BentoML's, at /static_content.
    """
    pages = " · ".join(
        f'<a href=".{PATH}/{labels.language}/" lang="{labels.language}">{escape(labels.name)}</a>'
        for labels in LANGUAGES.values()
    )
    links = [f"<b>Generate videos on the web page:</b> {pages}"]
    if url := documentation_url():
        links.append(f'<a href="{escape(url)}">Documentation</a>')
    html = _PAGE.format(page=PATH, links=" &nbsp; ".join(links))

    @cache
    def complete_document() -> dict[str, Any]:
        return openapi.complete(service.openapi_spec.asdict(), app)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

    @app.get("/docs.json", include_in_schema=False)
    async def openapi_document() -> JSONResponse:
        return JSONResponse(complete_document())

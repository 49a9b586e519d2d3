"""Fixtures of the page's tests: a server with a stand-in for the model, a browser, and a record of its requests."""

from urllib.parse import urljoin, urlsplit

import pytest
from page_helpers import Server, ready


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    pytest.importorskip("gradio", reason="the extra 'server' is not installed")
    server = Server(tmp_path_factory.mktemp("studio"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def contexts(chromium):
    """Browser contexts by their options, reused so that scripts and styles are cached and compiled."""
    return {}


@pytest.fixture
def visit(chromium, contexts):
    """Return a function that opens a page; afterwards check for requests to other hosts and script errors."""
    pages, urls, script_errors = [], [], []

    def open_page(url, **options):
        key = tuple(sorted(options.items()))
        if key not in contexts:
            defaults = {"locale": "en-US", "viewport": {"width": 1280, "height": 900}}
            if credentials := options.get("http_credentials"):
                options["http_credentials"] = dict(zip(("username", "password"), credentials, strict=True))
            contexts[key] = chromium.new_context(**(defaults | options))
            contexts[key].set_default_timeout(60_000)
            contexts[key].new_page().goto(urljoin(url, "/studio/verify"))  # stays open, so that their process does too
        page = contexts[key].new_page()
        pages.append(page)
        page.on("request", lambda request: urls.append(request.url))
        page.on("pageerror", lambda error: script_errors.append(str(error)))
        page.goto(url)
        ready(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    for context in contexts.values():
        context.clear_cookies()
    external = {
        url for url in urls if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).hostname != "127.0.0.1"
    }
    assert not external, f"requests to other hosts: {external}"
    assert not script_errors, script_errors

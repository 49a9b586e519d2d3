"""What the page's tests share: one server with a stand-in for the work, one browser, and a record of what it asks."""

from urllib.parse import urlsplit

import pytest
from page_helpers import CHROMIUM, QUIET, Server, ready


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    pytest.importorskip("gradio", reason="the extra 'server' is not installed")
    server = Server(tmp_path_factory.mktemp("studio"))
    yield server
    server.kill()


@pytest.fixture(scope="module")  # no longer: its event loop would be in the way of other tests
def chromium():
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visitors(chromium):
    """Browser contexts by their options: who comes again has scripts and styles already, as people do."""
    return {}


@pytest.fixture
def visit(chromium, visitors):
    """Open a page; whatever it asks, it asks of this machine, and no script of it fails."""
    pages, asked, faults = [], [], []

    def open_page(address, **options):
        key = tuple(sorted(options.items()))
        if key not in visitors:
            usual = {"locale": "en-US", "viewport": {"width": 1280, "height": 900}}
            if given := options.get("http_credentials"):
                options["http_credentials"] = dict(zip(("username", "password"), given, strict=True))
            visitors[key] = chromium.new_context(**(usual | options))
            visitors[key].set_default_timeout(60_000)
        page = visitors[key].new_page()
        pages.append(page)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.goto(address)
        ready(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    for context in visitors.values():
        context.clear_cookies()
    outside = {
        url for url in asked if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).hostname != "127.0.0.1"
    }
    assert not outside, f"asked of the outside world: {outside}"
    assert not faults, faults

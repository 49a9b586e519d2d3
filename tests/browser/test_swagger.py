"""Swagger UI at / in a real browser: the tutorial's third way, on a server whose work is a stand-in."""

import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from page_helpers import ROCKET

sys.path.append(str(Path(__file__).parents[1] / "serving"))
from server_process import start, stop

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def swagger_server(tmp_path_factory):
    running = start(tmp_path_factory.mktemp("swagger") / "data")
    yield running
    stop(running)


@pytest.fixture
def swagger(chromium, swagger_server):
    page = chromium.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{swagger_server.url}/")
    page.wait_for_selector(".opblock-summary")
    yield page
    page.close()
    outside = [url for url in asked if urlsplit(url).scheme not in ("data", "blob") and "127.0.0.1" not in url]
    assert not outside, f"asked of the outside world: {outside}"


def operation(page, path):
    """One of the POSTs, opened to be tried out."""
    block = page.locator(f".opblock-post:has([data-path='{path}'])")
    block.locator(".opblock-summary-control").click()
    block.get_by_text("Try it out").click()
    return block


def execute(page, block, path):
    with page.expect_response(f"**{path}") as answer:
        block.locator(".execute").click()
    return answer.value


def test_execute_on_generate_returns_a_video(swagger):
    block = operation(swagger, "/generate")
    block.locator("input[type=file]").set_input_files(ROCKET)
    seed = block.locator("tr[data-property-name=seed] input[type=text]")
    assert seed.input_value() == "null"
    seed.fill("7")
    block.locator("tr[data-property-name=motion_bucket_id] input[type=text]").fill("1")
    block.locator("tr[data-property-name=prompt] input[type=text]").fill("on its pad")
    answer = execute(swagger, block, "/generate")
    assert (answer.status, answer.headers["x-kinema-seed"]) == (200, "7")
    with swagger.expect_download() as video:
        block.locator(".responses-inner a[download]").click()
    assert video.value.path().read_bytes()[4:8] == b"ftyp"


def test_execute_on_videos_queues_one_by_json_and_by_form(swagger):
    block = operation(swagger, "/v1/videos")
    assert execute(swagger, block, "/v1/videos").json()["status"] == "queued"
    block.locator(".opblock-section-request-body select.content-type").select_option("multipart/form-data")
    block.locator("input[type=file]").set_input_files(ROCKET)
    answer = execute(swagger, block, "/v1/videos")
    assert answer.json()["status"] == "queued", answer.text()


def test_the_page_is_one_click_away(swagger):
    swagger.click("header a[lang=ko]")
    swagger.wait_for_selector("html[lang=ko] #k-form")

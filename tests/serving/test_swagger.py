"""Swagger UI at / in a real browser, on a server with a stand-in for the model."""

from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from kinema.version import own_version

pytestmark = pytest.mark.browser
ROCKET = Path(__file__).parents[2] / "examples" / "rocket.jpg"


@pytest.fixture(scope="module")
def context(chromium):
    """A browser context that the tests share, so that scripts are cached."""
    return chromium.new_context()


@pytest.fixture
def swagger(context, server):
    page = context.new_page()
    urls = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(f"{server.url}/")
    page.wait_for_selector(".opblock-summary")
    yield page
    page.close()
    external = [url for url in urls if urlsplit(url).scheme not in ("data", "blob") and "127.0.0.1" not in url]
    assert not external, f"requests to other hosts: {external}"


def operation(page, path):
    """Open a POST operation with "Try it out"."""
    block = page.locator(f".opblock-post:has([data-path='{path}'])")
    block.locator(".opblock-summary-control").click()
    block.get_by_text("Try it out").click()
    return block


def execute(page, block, path):
    with page.expect_response(f"**{path}") as response:
        block.locator(".execute").click()
    return response.value


def test_execute_on_generate_returns_a_video(swagger):
    block = operation(swagger, "/generate")
    block.locator("tr[data-property-name=image] input[type=file]").set_input_files(ROCKET)
    seed = block.locator("tr[data-property-name=seed] input[type=text]")
    assert seed.input_value() == "null"
    seed.fill("7")
    block.locator("tr[data-property-name=motion_bucket_id] input[type=text]").fill("1")
    block.locator("tr[data-property-name=prompt] input[type=text]").fill("on its pad")
    response = execute(swagger, block, "/generate")
    assert (response.status, response.headers["x-kinema-seed"]) == (200, "7")
    with swagger.expect_download() as video:
        block.locator(".responses-inner a[download]").click()
    assert video.value.path().read_bytes()[4:8] == b"ftyp"


def test_execute_on_videos_queues_a_job_from_json_and_from_a_form(swagger, server):
    block = operation(swagger, "/v1/videos")
    jobs = [execute(swagger, block, "/v1/videos").json()]
    block.locator(".opblock-section-request-body select.content-type").select_option("multipart/form-data")
    block.locator("tr[data-property-name=input_reference] input[type=file]").set_input_files(ROCKET)
    jobs.append(execute(swagger, block, "/v1/videos").json())
    assert [job.get("status") for job in jobs] == ["queued", "queued"], jobs
    for job in jobs:
        httpx.delete(f"{server.url}/v1/videos/{job['id']}")


def test_header_links_to_the_page(swagger):
    swagger.click("header a[lang=ko]")
    swagger.wait_for_selector("html[lang=ko] #k-form")


def test_page_shows_kinema_and_nothing_of_bentoml(swagger):
    assert swagger.title() == "Kinema API"
    assert swagger.inner_text(".info .title").split() == ["Kinema", own_version(), "OAS", "3.0"]
    assert "from an image or a prompt" in swagger.inner_text(".info .description")
    tags = [tag.split("\n")[0] for tag in swagger.locator(".opblock-tag").all_inner_texts()]
    assert tags == ["generate", "videos", "batches", "verify", "models", "operation", "workers"]
    assert "bento" not in swagger.inner_text("body").lower()
    assert swagger.locator(".topbar, .servers:visible").count() == 0
    images = swagger.locator("img").evaluate_all("all => all.map(image => image.complete && image.naturalWidth)")
    assert all(images)


def test_validator_badge_is_not_requested_under_another_host_name(chromium, server):
    """Swagger UI requests the badge of its online validator, except at localhost."""
    port = urlsplit(server.url).port
    page = chromium.new_page()
    hosts = set()

    def answer(route):
        """Fetch from the server under its own name; other hosts do not exist."""
        hosts.add(urlsplit(route.request.url).hostname)
        if urlsplit(route.request.url).hostname == "kinema.example":
            path = urlsplit(route.request.url).path
            route.fulfill(response=route.fetch(url=f"{server.url}{path}", headers={"host": f"127.0.0.1:{port}"}))
        else:
            route.abort()

    page.route("**/*", answer)
    page.goto("http://kinema.example/")
    page.wait_for_selector(".opblock-summary")
    page.wait_for_timeout(300)
    page.close()
    assert hosts == {"kinema.example"}

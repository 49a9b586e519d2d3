"""What the page of a complete server shows if it refuses a file."""

import sys
from pathlib import Path

import pytest
from page_helpers import ROCKET

sys.path.append(str(Path(__file__).parents[1] / "serving"))
from server_process import start, stop

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A server whose safety check refuses every image."""
    server = start(tmp_path_factory.mktemp("checked") / "data", safety="image", safety_threshold=1e-30)
    yield server
    stop(server)


@pytest.mark.parametrize(
    ("locale", "message"),
    [
        ("en-US", "the safety check of this server refuses the image; use another image"),
        ("ko-KR", "서버의 안전 검사에서 이미지가 거부되었습니다. 다른 이미지를 사용하세요."),
    ],
    ids=["en", "ko"],
)
def test_refused_image_is_explained_and_not_stored(checked, visit, locale, message):
    page = visit(f"{checked.url}/studio/", locale=locale)
    with page.expect_file_chooser() as chooser:
        page.click("[data-choose]")
    chooser.value.set_files(ROCKET)
    assert message in page.wait_for_selector(".k-image .k-error").inner_text()
    assert not page.is_visible(".k-image .k-media img")
    assert [path for path in (checked.data / "drafts").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ("en", "It is larger than this server accepts. Check it with the command: kinema verify FILE"),
        ("ko", "이 서버가 받을 수 있는 크기를 넘습니다. 다음 명령으로 확인하세요: kinema verify FILE"),
    ],
    ids=["en", "ko"],
)
def test_video_too_large_to_verify_is_explained(checked, chromium, language, message):
    page = chromium.new_page()
    try:
        page.goto(f"{checked.url}/studio/verify?language={language}")
        file = {"name": "a.mp4", "mimeType": "video/mp4", "buffer": bytes(20_000_001)}
        page.locator("#file").set_input_files(file)
        assert message in page.wait_for_selector("#result.failed").inner_text()
    finally:
        page.close()

"""The page as people use it: in a browser, on a server whose work is a stand-in."""

import json
import re

import pytest
from page_helpers import ROCKET, SLOW, Server, finished, generate, give_still, ready, set_number

pytestmark = pytest.mark.browser


def test_a_still_becomes_a_video_that_plays(server, visit):
    page = visit(server.address)
    give_still(page)
    assert "83% of your picture is kept" in page.inner_text(".k-image")
    assert page.eval_on_selector(
        ".k-image .k-screen > img", "i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])"
    ) == [288, 160]
    set_number(page, "Steps", SLOW)
    job = generate(page)
    page.wait_for_selector(".k-panel[data-status=in_progress] img[src*=preview]")
    page.wait_for_function("/step \\d+ of 24/.test(document.querySelector('.k-headline').textContent)")
    assert page.get_attribute(".k-bar", "aria-valuenow") != "0"
    finished(page)
    page.wait_for_function("document.querySelector('.k-panel video').currentTime > 0")
    assert page.eval_on_selector(".k-panel video", "v => [v.videoWidth, v.videoHeight, v.loop]") == [288, 160, True]
    assert page.url.endswith(f"?job={job}")
    page.wait_for_selector("#k-note:has-text('Takes about')")
    assert "AI" in page.inner_text(".k-panel .k-badge")
    assert page.is_visible("text=made by an AI model")


def test_a_sentence_becomes_a_video(server, visit):
    page = visit(server.address)
    page.get_by_text("A sentence", exact=True).click()
    page.get_by_placeholder("hot-air balloon").fill("a <b>red</b> balloon & ${1+1} {{2}}")
    generate(page)
    assert page.inner_text(".k-stages").startswith("Drawing the still")
    finished(page)
    assert page.locator(".k-card h3").first.inner_text() == "a <b>red</b> balloon & ${1+1} {{2}}"
    page.wait_for_function("document.querySelector('.k-panel video').readyState >= 2")


def test_the_crop_follows_the_settings(server, visit):
    page = visit(server.address)
    give_still(page)
    page.get_by_text("Bars", exact=True).click()
    page.wait_for_selector(".k-image .k-screen img[src*='fit=pad']")
    set_number(page, "Height", 288)
    page.wait_for_selector(".k-image .k-screen img[src*='height=288']")
    assert page.eval_on_selector(
        ".k-image .k-screen > img", "i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])"
    ) == [288, 288]
    assert "is not the 288×160" in page.inner_text("#k-note")  # a caution: the model was not trained on it


def test_a_still_may_be_dropped_or_pasted(server, visit):
    page = visit(server.address)
    file = "new File([Uint8Array.from(atob(picture), c => c.charCodeAt(0))], 'a.jpg', {type: 'image/jpeg'})"
    for event in (
        "new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: transfer})",
        "new ClipboardEvent('paste', {bubbles: true, cancelable: true, clipboardData: transfer})",
    ):
        page.wait_for_selector(".k-image.k-empty")
        page.evaluate(
            f"(picture) => {{ const transfer = new DataTransfer(); transfer.items.add({file}); "
            f"document.querySelector('.k-image').dispatchEvent({event}); }}",
            _base64(ROCKET),
        )
        page.wait_for_selector(".k-image .k-screen img")
        page.click("[data-remove]")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.gif", b"GIF89a" + b"0" * 99, "save one of its frames as PNG"),
        ("b.png", b"0" * 20_000_001, "more than 20 MB"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason(server, visit, tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    page = visit(server.address)
    with page.expect_file_chooser() as chooser:
        page.click("[data-choose]")
    chooser.value.set_files(tmp_path / name)
    assert said in page.wait_for_selector(".k-image .k-fault").inner_text()


def test_a_picture_that_is_refused_takes_the_place_of_the_one_before(server, visit, tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + b"0" * 99)
    page = visit(server.address)
    give_still(page)
    with page.expect_file_chooser() as chooser:
        page.click("[data-choose]")
    chooser.value.set_files(tmp_path / "a.gif")
    page.wait_for_selector(".k-image .k-fault")
    set_number(page, "Steps", 5)  # the page is told anew what it will take
    page.wait_for_timeout(1000)
    assert page.is_visible(".k-image .k-fault")
    page.click("#k-generate")
    page.wait_for_selector("#k-note .k-fault:has-text('Give a picture first')")


def test_an_example_is_one_click_away(server, visit):
    page = visit(server.address)
    assert page.locator("[data-example]").count() == 3
    page.get_by_role("button", name="Coffee").click()
    page.wait_for_selector(".k-image .k-screen img")
    generate(page)
    finished(page)
    assert page.locator(".k-card h3").first.inner_text() == "Coffee"


def test_framing_is_called_the_same_everywhere(server, visit):
    page = visit(server.address)
    give_still(page)
    for name in ("Bars", "Stretch", "Crop"):
        page.get_by_text(name, exact=True).click()
        page.wait_for_selector(f".k-image > .k-hint:has-text('{name}:')")


@pytest.mark.parametrize(
    ("locale", "label", "said"),
    [
        ("en-US", "number input for Motion", "Motion 7.5 is invalid"),
        ("ko-KR", "number input for 움직임", "움직임: 7.5 값은 쓸 수 없습니다. 정수를"),
    ],
)
def test_what_is_typed_wrong_is_refused_in_the_pages_words_and_by_the_fields_name(server, visit, locale, label, said):
    page = visit(server.address, locale=locale)
    motion = page.get_by_label(label)
    for value, shown in (("7.5", f".k-fault:has-text('{said}')"), ("", ".k-estimate"), ("300", ".k-warnings")):
        motion.fill(value)
        page.wait_for_selector(f"#k-note {shown}")
    page.wait_for_timeout(500)
    assert page.locator(".toast-wrap .toast-body").count() == 0  # Gradio's own, in its own words


def test_the_model_is_in_sight_and_a_demo_is_called_one(server, visit):
    page = visit(server.address)
    assert page.get_by_label("Model", exact=True).input_value() == "pocket (demo model)"
    assert page.is_visible("text=pocket is a demo model")
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="svd-xt", exact=True).click()
    page.wait_for_selector("text=Each model brings its own size")
    assert page.locator("text=pocket is a demo model").count() == 0


def test_the_page_is_as_wide_as_its_screen(server, visit):
    page = visit(server.address)
    page.set_viewport_size({"width": 1920, "height": 1080})
    page.wait_for_function("document.querySelector('#k-main').getBoundingClientRect().width > 1650")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")


def test_a_card_shows_a_frame_of_its_video_and_can_be_renamed_and_pinned(server, visit):
    page = visit(server.address)
    give_still(page)
    job = generate(page)
    finished(page)
    card = page.locator(f".k-card:has([data-job={job}])")
    image = card.locator(".k-poster img[src$='thumbnail.webp']")
    image.wait_for()
    assert image.evaluate("i => i.decode().then(() => [i.naturalWidth, i.naturalHeight])") == [288, 160]
    card.get_by_text("Rename").click()
    page.get_by_role("textbox", name="Title of this video").fill("Lift-off & <b>up</b>")
    page.keyboard.press("Enter")
    card.locator("h3:text-is('Lift-off & <b>up</b>')").wait_for()
    assert page.locator("dialog").count() == 0
    for pressed in ("true", "false"):
        card.locator(".k-pin").click()
        card.locator(f".k-pin[aria-pressed={pressed}]").wait_for()
    card.get_by_text("Rename").click()
    page.keyboard.press("Escape")
    assert card.locator("h3").inner_text() == "Lift-off & <b>up</b>"


def test_what_can_not_be_made_is_said_beside_the_button(server, visit):
    page = visit(server.address)
    page.click("#k-generate")
    page.wait_for_selector("#k-note .k-fault:has-text('Give a picture first')")
    set_number(page, "Width", 300)
    page.wait_for_selector("#k-note .k-fault:has-text('296 and 304 are')")
    set_number(page, "Width", 288)
    ready(page)


def test_a_reload_in_mid_job_finds_it_and_its_settings(server, visit):
    page = visit(server.address)
    give_still(page)
    set_number(page, "Steps", SLOW)
    job = generate(page)
    page.wait_for_selector(".k-panel[data-status=in_progress]")
    page.close()
    again = visit(f"{server.address}?job={job}")
    again.wait_for_selector(".k-panel[data-status=in_progress]")
    again.wait_for_selector(".k-image .k-screen img")
    again.click(".k-more > button")
    assert again.get_by_label("Steps", exact=True).input_value() == str(SLOW)
    finished(again)
    elsewhere = visit(server.address)  # no address, another browser: the list has it
    elsewhere.click(f".k-poster[data-job={job}]")
    finished(elsewhere)


@pytest.mark.slow
def test_the_page_goes_on_when_the_server_died_and_is_back(tmp_path, visit):
    server = Server(tmp_path)
    try:
        page = visit(server.address)
        give_still(page)
        set_number(page, "Steps", SLOW)
        generate(page)
        page.wait_for_selector(".k-panel[data-status=in_progress]")
        server.kill()
        page.wait_for_selector("text=The server does not answer")
        server.start()
        finished(page)
        page.wait_for_function("document.querySelector('.k-panel video').readyState >= 2")
        assert page.locator(".k-card").count() == 1
    finally:
        server.kill()


def test_cancel_keeps_the_settings(server, visit):
    page = visit(server.address)
    give_still(page)
    set_number(page, "Steps", 5 * SLOW)  # so that neither is done before it is cancelled
    page.get_by_label("number input for Motion").fill("33")
    page.keyboard.press("Tab")
    running = generate(page)
    page.wait_for_selector(".k-panel[data-status=in_progress]")
    waiting = generate(page)
    page.wait_for_selector("text=Waiting")
    for job in (waiting, running):
        page.click(f".k-poster[data-job={job}]")
        page.click(f".k-panel .k-cancel[data-job={job}]")
        page.wait_for_selector(f".k-panel[data-job={job}] .k-headline:has-text('Cancelled')")
    assert page.get_by_label("Steps", exact=True).input_value() == str(5 * SLOW)
    assert page.get_by_label("number input for Motion").input_value() == "33"
    assert page.is_visible(".k-image .k-screen img")


def test_the_gallery_gives_settings_file_and_recipe_and_deletes(server, visit):
    page = visit(server.address)
    give_still(page)
    page.get_by_label("number input for Motion").fill("77")
    page.keyboard.press("Tab")
    job = generate(page)
    finished(page)
    seed = page.get_by_label("Seed", exact=True).input_value()
    other = visit(server.address)
    card = other.locator(f".k-card:has([data-job={job}])")
    card.locator(".k-use").click()
    other.wait_for_selector(".k-image .k-screen img")
    assert other.get_by_label("number input for Motion").input_value() == "77"
    assert other.get_by_label("Seed", exact=True).input_value() == seed
    assert other.get_by_label("Keep the seed").is_checked()
    with other.expect_download() as video:
        card.get_by_text("Download").click()
    assert video.value.suggested_filename == f"kinema-{seed}.mp4"
    assert video.value.path().read_bytes()[4:8] == b"ftyp"
    with other.expect_download() as recipe:
        card.get_by_text("Recipe").click()
    assert json.loads(recipe.value.path().read_text())["request"]["motion_bucket_id"] == 77
    card.get_by_text("Delete").click()
    other.get_by_text("Keep it").click()
    card.get_by_text("Delete").click()
    other.locator(".k-dialog").get_by_text("Delete", exact=True).click()
    card.wait_for(state="detached")
    page.reload()
    ready(page)
    assert page.locator(f"[data-job={job}]").count() == 0


def test_the_same_seed_is_used_again_only_when_it_is_kept(server, visit):
    page = visit(server.address)
    give_still(page)
    generate(page)
    first = page.get_by_label("Seed", exact=True).input_value()
    page.get_by_label("Keep the seed").check()
    generate(page)
    assert page.get_by_label("Seed", exact=True).input_value() == first
    page.click("#k-dice")
    page.wait_for_function("(first) => document.querySelector('[aria-label=Seed]').value !== first", arg=first)
    rolled = page.get_by_label("Seed", exact=True).input_value()
    generate(page)
    assert page.get_by_label("Seed", exact=True).input_value() == rolled


def test_all_of_it_works_by_keyboard(server, visit):
    page = visit(server.address)
    page.on("filechooser", lambda _: None)  # from now on playwright catches it: asked for later, it may miss it
    _tab_to(page, "[data-choose]")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(ROCKET)
    page.wait_for_selector(".k-image .k-screen img")
    _tab_to(page, "[aria-label='range slider for Motion']")
    page.keyboard.press("ArrowRight")
    assert page.get_by_label("number input for Motion").input_value() == "41"  # the pocket's default is 40
    _tab_to(page, "#k-generate")
    page.keyboard.press("Enter")
    finished(page)
    _tab_to(page, ".k-panel video")
    page.wait_for_function("!document.querySelector('.k-panel video').paused")
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('.k-panel video').paused")
    _tab_to(page, ".k-panel .k-delete")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.is_visible(".k-panel video")


def test_the_page_speaks_korean(server, visit):
    page = visit(server.address, locale="ko-KR", reduced_motion="reduce")  # as below, so that they share a browser
    assert page.get_attribute("html", "lang") == "ko"
    assert re.search(r"/studio/ko/", page.url)
    give_still(page)
    generate(page)
    finished(page)
    assert page.inner_text(".k-headline") == "완성"
    # Gradio's word on its calls comes and goes; that it is never seen or read aloud holds at any moment.
    trackers = "all => [...new Set(all.map(e => getComputedStyle(e).display))]"
    assert page.eval_on_selector_all("[data-testid=status-tracker]", trackers) == ["none"]
    assert page.is_visible(".k-segments > .wrap:not([data-testid]) >> nth=0")
    latin = re.findall(r"[A-Za-z]{3,}", page.inner_text("#k-form"))
    assert set(latin) <= {"rocket", "pocket", "svd", "GPU"}, latin
    page.click("a[data-language=en]")  # the same job, and the choice is remembered
    page.wait_for_selector("text=Done")
    page.goto(server.address)
    assert page.wait_for_url("**/studio/en/**") is None


def test_refusals_and_cautions_are_korean_too(server, visit, tmp_path):
    page = visit(server.address, locale="ko-KR", reduced_motion="reduce")
    set_number(page, "너비", 300)
    page.wait_for_selector("#k-note .k-fault:has-text('너비: 300 값은 8의 배수가 아닙니다. 296, 304 가운데')")
    set_number(page, "너비", 320)
    page.wait_for_selector(
        "#k-note .k-warnings:has-text('320×160 크기는 pocket 모델이 학습한 288×160 크기와 다릅니다')"
    )
    page.get_by_label("시드", exact=True).fill("-2")
    page.wait_for_selector("#k-note .k-fault:has-text('시드: -2 값은 범위를 벗어났습니다. 0부터 9007199254740991까지')")
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with page.expect_file_chooser() as chooser:
        page.click("[data-choose]")
    chooser.value.set_files(tmp_path / "a.gif")
    page.wait_for_selector(".k-image .k-fault:has-text('GIF 그림 같습니다. 한 장면을 PNG로 저장해서 쓰세요.')")
    assert page.locator("#k-form [lang=en]").count() == 0


def test_motion_is_left_out_where_it_is_not_wanted(server, visit):
    page = visit(server.address, locale="ko-KR", reduced_motion="reduce")
    give_still(page)
    generate(page)
    finished(page)
    page.wait_for_function("document.querySelector('.k-panel video').readyState >= 2")
    page.wait_for_timeout(500)
    assert page.eval_on_selector(".k-panel video", "v => v.paused && v.currentTime === 0")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing_serious(server, visit, scheme):
    page = visit(server.address, color_scheme=scheme)
    page.get_by_text("A sentence", exact=True).click()
    page.click(".k-more > button")
    page.wait_for_selector("text=Painter's sampler")
    page.click("#k-generate")
    page.wait_for_selector("#k-note .k-fault")
    _audit(page)
    page.get_by_text("A still", exact=True).click()
    give_still(page)
    set_number(page, "Steps", 5 * SLOW)  # the audit takes its time
    generate(page)
    page.wait_for_selector(".k-panel[data-status=in_progress] img[src*=preview]")
    _audit(page)
    page.click(".k-panel .k-cancel")
    finished(page, "failed")
    set_number(page, "Steps", 4)
    generate(page)
    finished(page)
    page.click(".k-facts summary")
    _audit(page)


def _audit(page):
    from importlib.resources import files

    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
    found = [
        (fault["id"], fault["impact"], [node["html"] for node in fault["nodes"]])
        for fault in page.evaluate("axe.run()")["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert not found, found


def _tab_to(page, selector):
    """Press Tab until this has the focus."""
    for _ in range(80):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} is not reached by Tab")


def _base64(path):
    import base64

    return base64.b64encode(path.read_bytes()).decode()


def test_a_seed_that_is_typed_is_kept_and_used(server, visit):
    page = visit(server.address)
    give_still(page)
    set_number(page, "Seed", 42)
    assert page.get_by_label("Keep the seed").is_checked()
    generate(page)
    finished(page)
    assert "seed 42" in page.inner_text(".k-panel")

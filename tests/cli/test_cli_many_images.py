"""Many images at once: all are checked first, and none is kept in memory until its turn."""

import threading
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cli_inputs import draw
from PIL import Image

from kinema.cli import generate as generate_module
from kinema.media import image as image_module


@pytest.fixture
def images(folder):
    """Names of six images of our own."""
    return [draw(folder / f"{i}.png", seed=i).name for i in range(6)]


@pytest.fixture
def alive(monkeypatch):
    """How many decoded images there were each time another one was decoded."""
    seen, counts, plain = [], [], image_module._image

    def watched(*given):
        counts.append(sum(ref() is not None for ref in seen))
        image = plain(*given)
        seen.append(weakref.ref(image.rgb))
        return image

    monkeypatch.setattr(image_module, "_image", watched)
    return counts


def test_no_more_than_one_image_is_in_memory(generate, images, alive):
    ran = generate(images=images)
    assert (ran.code, ran.out.splitlines()) == (0, [f"{i}.mp4" for i in range(6)])
    assert len(alive) == 12  # each was checked, and opened in its turn
    assert alive[:6] == [0] * 6
    assert max(alive) <= 1


def test_one_that_can_not_be_used_is_refused_before_any_work(generate, images, folder):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    ran = generate(images=images)
    assert ran.code == 2
    assert "3.png is damaged or truncated" in ran.err
    assert not list(folder.glob("*.mp4"))


def test_an_image_that_changes_meanwhile_is_refused_and_the_videos_before_it_stay(
    generate, images, folder, monkeypatch
):
    checked = image_module.open_image

    def change_last(source, **given):
        if str(source) == "1.png":
            Image.new("RGB", (96, 64), "red").save(folder / "5.png")
        return checked(source, **given)

    plain = generate_module.check_images

    def check_then_change(*given):
        found = plain(*given)
        monkeypatch.setattr(image_module, "open_image", change_last)
        return found

    monkeypatch.setattr(generate_module, "check_images", check_then_change)
    ran = generate(images=images)
    assert ran.code == 2
    assert "5.png has changed since it was checked" in ran.err
    assert ran.out.splitlines() == [f"{i}.mp4" for i in range(5)]


def test_an_address_is_asked_once(generate, images, folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked = []

    class Host(SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=folder))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        ran = generate(images=[f"{address}/{name}" for name in images[:2]])
    finally:
        server.shutdown()
        server.server_close()
    assert (ran.code, ran.out.splitlines()) == (0, ["0.mp4", "1.mp4"])
    assert asked == ["/0.png", "/1.png"]

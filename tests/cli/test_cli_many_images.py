"""Many images in one command: all are checked first, and at most one is in memory."""

import threading
import weakref
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cli_inputs import write_image
from PIL import Image

from kinema.cli import generate as generate_module
from kinema.media import image as image_module


@pytest.fixture
def images(folder):
    """Write six images and return their names."""
    return [write_image(folder / f"{i}.png", seed=i).name for i in range(6)]


@pytest.fixture
def live_image_counts(monkeypatch):
    """Return a list of the numbers of decoded images in memory before each decode."""
    references, counts, decode = [], [], image_module._input_image

    def count_and_decode(*arguments):
        counts.append(sum(ref() is not None for ref in references))
        image = decode(*arguments)
        references.append(weakref.ref(image.rgb))
        return image

    monkeypatch.setattr(image_module, "_input_image", count_and_decode)
    return counts


def test_at_most_one_decoded_image_is_in_memory(generate, images, live_image_counts):
    result = generate(images=images)
    assert (result.code, result.out.splitlines()) == (0, [f"{i}.mp4" for i in range(6)])
    assert len(live_image_counts) == 12  # each is checked, then opened
    assert live_image_counts[:6] == [0] * 6
    assert max(live_image_counts) <= 1


def test_damaged_image_among_many_is_rejected_before_work_with_on_error_stop(generate, images, folder):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    result = generate("--on-error=stop", images=images)
    assert result.code == 2
    assert "3.png is damaged or truncated" in result.err
    assert not list(folder.glob("*.mp4"))


def test_changed_image_is_rejected_and_earlier_videos_are_kept(generate, images, folder, monkeypatch):
    open_image = image_module.open_image

    def change_last(source, **options):
        if str(source) == "1.png":
            Image.new("RGB", (96, 64), "red").save(folder / "5.png")
        return open_image(source, **options)

    check_images = generate_module.check_images

    def check_then_change(*arguments):
        checked = check_images(*arguments)
        monkeypatch.setattr(image_module, "open_image", change_last)
        return checked

    monkeypatch.setattr(generate_module, "check_images", check_then_change)
    result = generate(images=images)
    assert result.code == 6
    assert "failed: 5.png, seed 7: 5.png has changed since it was checked; run the command again" in result.err
    assert result.out.splitlines() == [f"{i}.mp4" for i in range(5)]


def test_image_url_is_downloaded_once(generate, images, folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    requested = []

    class Host(SimpleHTTPRequestHandler):
        def log_request(self, *_):
            requested.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=folder))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        result = generate(images=[f"{url}/{name}" for name in images[:2]])
    finally:
        server.shutdown()
        server.server_close()
    assert (result.code, result.out.splitlines()) == (0, ["0.mp4", "1.mp4"])
    assert requested == ["/0.png", "/1.png"]

"""Sources of a batch: images, folders and manifests become items with names, seeds and keys."""

import json
import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from batch_inputs import write_image
from PIL import ExifTags, Image

from kinema.batch.batch_items import last_image_path, plan_items
from kinema.batch.own_queue import OwnQueue
from kinema.errors import InvalidImage, InvalidRequest
from kinema.models.catalog import request_for
from kinema.models.video_size import follow_image
from kinema.settings import Settings


def complete(parameters, image_size=None):
    request = request_for(**{"model": "pocket", **parameters})
    return request if image_size is None else follow_image(request, image_size, parameters)


def plan(*sources, seeds=1, **parameters):
    return plan_items([str(source) for source in sources], parameters, complete, seeds=seeds, out=Path("videos"))


def write_manifest(*lines):
    path = Path("list.jsonl")
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_folder_gives_its_images_in_order(photos):
    write_image(photos / ".hidden.png", 1)
    write_image(photos / "B.JPG", 5)
    (photos / "notes.txt").write_text("no image")
    items, failures = plan(photos)
    assert [item.file for item in items] == ["B.mp4", "a.mp4", "c.mp4"]  # B.JPG and b.png differ only in case
    assert [(failure.name, failure.error.code) for failure in failures] == [("b", "invalid_request")]


def test_options_of_the_files_are_part_of_the_key(photos):
    def keys(*options):
        items, _ = plan_items([str(photos)], {}, complete, seeds=1, out=Path("videos"), file_options=options)
        return [item.key for item in items]

    plain = keys()
    assert plain == [item.key for item in plan(photos)[0]]
    assert len({*plain, *keys("watermark"), *keys("credentials"), *keys("watermark", "credentials")}) == 12


def test_web_page_in_place_of_a_last_image_is_named_by_its_url(folder):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html></html>")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}/last.png"
        with pytest.raises(InvalidImage, match=f"^last image: {url} seems to be a web page"):
            last_image_path(url, folder)
    assert not list(folder.iterdir())


def test_folder_without_images_is_an_error(folder):
    (folder / "empty").mkdir()
    with pytest.raises(
        InvalidRequest,
        match=r"the folder empty has no images \(.avif, .heic, .heif, .hif, .jpeg, .jpg, .png, .webp\); use anot",
    ):
        plan("empty")


def test_contact_sheet_in_the_output_folder_is_no_source(folder):
    write_image(folder / "videos" / "a.png", 1)
    write_image(folder / "videos" / "contact-sheet.png", 2)
    items, failures = plan("videos")
    assert ([item.name for item in items], failures) == (["a"], [])


def test_size_follows_each_image_unless_it_is_given(photos):
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (64, 48)).save(photos / "d.jpg", exif=turned)
    (photos / "e.png").write_bytes(b"no image")
    manifest = write_manifest(
        {"image": "photos/d.jpg", "size": "96x64", "name": "given"},
        {"image": "photos/d.jpg", "size": "96", "name": "bad"},
        {"image": "photos/d.jpg", "size": "96x64", "width": 96},
        {"prompt": "a rocket"},
    )
    items, failures = plan(photos, manifest)
    sizes = {item.name: (item.request.width, item.request.height) for item in items}
    assert sizes == {
        "a": (288, 160), "b": (288, 160), "c": (288, 160), "d": (160, 288), "e": (288, 160), "given": (96, 64),
        "a-rocket": (288, 160),
    }  # fmt: skip
    for failure, message in zip(failures, ("size '96' is invalid", "size '96x64' and width 96 are both"), strict=True):
        assert message in failure.error.message
    (item,), _ = plan(photos / "d.jpg", width=96, height=64)
    assert (item.request.width, item.request.height) == (96, 64)


def test_own_queue_completes_a_request_by_the_image(folder):
    jobs = OwnQueue(folder, Settings(device="cpu", model="pocket"))
    sizes = [jobs.complete(given, (30, 40)) for given in ({}, {"width": 96}, {"prompt": "a rocket"})]
    assert [(request.width, request.height) for request in sizes] == [(160, 288), (96, 288), (288, 160)]


def test_manifest_line_has_image_prompt_name_and_parameters(photos):
    shutil.move(photos / "a.png", photos.parent / "with space.png")
    manifest = write_manifest(
        {"image": "with space.png", "seed": 5},
        "",
        {"image": "photos/b.png", "name": "second", "num_frames": 3, "prompt": None},
        {"prompt": "a red rocket", "image_model": "pocket-t2i"},
    )
    (first, second, third), failures = plan(manifest, num_frames=4, negative_prompt="rain")
    assert failures == []
    assert (first.name, first.request.seed, first.request.num_frames) == ("with-space", 5, 4)
    assert first.request.negative_prompt is None
    assert (second.name, second.request.num_frames, second.source) == ("second", 3, "photos/b.png")
    assert (third.name, third.request.prompt, third.image) == ("a-red-rocket", "a red rocket", None)
    assert third.request.negative_prompt == "rain"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "'{nonsense' is not a JSON object; write one such as"),
        ("[1]", "'[1]' is not a JSON object; write one such as"),
        ({"seed": 1}, "neither image nor prompt is given; give one of them"),
        ({"image": "photos/a.png", "prompt": "x"}, "both image and prompt are given; give one of them"),
        ({"image": 3}, "image 3 is not a path"),
        ({"image": "photos/missing.png"}, "file photos/missing.png not found; check the name and the folder"),
        ({"image": "https://x.example/a.png"}, "https://x.example/a.png is a URL; download the image"),
        ({"image": "photos/a.png", "name": "../a"}, "name '../a' can't be a file name; use up to 100 letters"),
        ({"image": "photos/a.png", "name": ".kinema-batch"}, "can't be a file name"),
        ({"image": "photos/a.png", "width": 1001}, "width 1001 is not a multiple of 8; use 1000 or 1008"),
        ({"image": "photos/a.png", "motion_bucket": 1}, "motion_bucket"),
        ({"image": "photos/a.png", "scheduler": "ddim"}, "scheduler only applies with a prompt"),
        ({"prompt": " "}, "prompt is empty; describe the image"),
    ],
)
def test_bad_line_is_a_failure_that_names_line_and_remedy(photos, line, message):
    items, (failure,) = plan(write_manifest({"image": "photos/b.png"}, line))
    assert [item.name for item in items] == ["b"]
    assert failure.status == "failed"
    assert failure.error.message.startswith("line 2 of list.jsonl: ")
    assert message in failure.error.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "list.jsonl is not JSON Lines: it is empty; write one object per line"),
        (b"a.png\nb.png\n", "list.jsonl is not JSON Lines: line 1 is 'a.png'; write one object per line"),
        (b"\xff\xfe\x00", "the manifest list.jsonl is not UTF-8 text; save it as UTF-8"),
    ],
)
def test_manifest_that_is_not_json_lines_is_an_error(folder, content, message):
    (folder / "list.jsonl").write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        plan("list.jsonl")


def test_line_may_have_seconds_and_a_last_image(photos):
    line = {"image": "photos/a.png", "last_image": "photos/b.png"}
    manifest = write_manifest(
        line | {"name": "ends"}, line | {"name": "other", "last_image": "photos/c.png"}, {"image": "photos/a.png"},
        {"image": "photos/a.png", "name": "short", "seconds": 1}, {"prompt": "a rocket", "num_frames": 3},
    )  # fmt: skip
    items, failures = plan(manifest, seconds="2", seed=7)
    assert failures == []
    found = {item.name: item for item in items}
    assert {name: item.request.num_frames for name, item in found.items()} == {
        "ends": 14, "other": 14, "a": 14, "short": 7, "a-rocket": 3
    }  # fmt: skip
    assert (found["ends"].last_image, found["a"].last_image) == (photos.name / Path("b.png"), None)
    assert len({found[name].key for name in ("ends", "other", "a")}) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"last_image": 3}, "last_image 3 is not a path"),
        ({"last_image": "https://x.example/a.png"}, "is a URL; download the image"),
        ({"last_image": "photos/none.png"}, "last image: file photos/none.png not found"),
        ({"last_image": "photos/b.png", "loop": True}, "a loop ends at its first image"),
        ({"last_image": "photos/b.png", "seconds": 9}, "too many for a video with a last image; use at most 14"),
        ({"seconds": "long"}, "seconds 'long' is not a number"),
        ({"seconds": 2, "num_frames": 3}, "seconds 2 and num_frames are both set"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_bad_last_image_or_length_fails_its_line(line, message):
    items, (failure,) = plan(write_manifest({"image": "photos/a.png"} | line))
    assert (items, failure.error.message.startswith("line 1 of list.jsonl: ")) == ([], True)
    assert message in failure.error.message


def test_missing_manifest_is_an_error(folder):
    with pytest.raises(InvalidRequest, match=r"missing.jsonl can't be read \(No such file or directory\)"):
        plan("missing.jsonl")


def test_seed_is_derived_from_the_content(photos):
    seeds = [item.request.seed for item in plan(photos)[0]]
    shutil.copy(photos / "a.png", "other.png")
    assert len(set(seeds)) == 3
    assert [item.request.seed for item in plan(photos, "other.png", seed=-1, num_frames=3)[0]] == [*seeds, seeds[0]]
    (item,), _ = plan(write_manifest({"image": "photos/b.png", "seed": "-1"}))
    assert item.request.seed == seeds[1]


def test_seeds_are_consecutive_and_in_the_names(photos):
    items, _ = plan(photos / "a.png", seeds=3, seed=7)
    assert [(item.name, item.request.seed) for item in items] == [(f"a-seed{seed}", seed) for seed in (7, 8, 9)]
    assert len({item.key for item in items}) == 3


def test_key_depends_on_content_and_parameters_only(photos):
    (item,), _ = plan(photos / "a.png", seed=1)
    shutil.copy(photos / "a.png", "other.png")
    assert plan("other.png", seed=1)[0][0].key == item.key
    assert plan("other.png", seed=1, num_frames=3)[0][0].key != item.key
    assert plan(photos / "b.png", seed=1)[0][0].key != item.key


@pytest.mark.usefixtures("photos")
def test_two_images_with_one_name_fail_for_the_second(folder):
    write_image(folder / "more" / "a.png", 9)
    items, (failure,) = plan("photos", "more")
    assert len(items) == 3
    assert failure.error.message == (
        "a.mp4 is already the output of 'photos/a.png'; rename the image, or set a name in a manifest"
    )

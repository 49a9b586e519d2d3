"""`extend` over HTTP: a job that continues the video of another."""

import numpy as np
import pytest
from server_process import wait_for

from kinema.media.video_reader import each_frame, read_recipe
from kinema.media.video_writer import encode_video

QUICK = {"motion_bucket_id": "1", "num_frames": "3", "seed": "7"}


@pytest.fixture
def short(client, png):
    """A completed video of three frames, from an image."""
    response = client.post("/v1/videos", data=QUICK | {"prompt": "a fox"}, files={"image": ("a.png", png)})
    return wait_for(client, response.json()["id"])


def saved(client, video, folder):
    path = folder / f"{video['id']}.mp4"
    path.write_bytes(client.get(f"/v1/videos/{video['id']}/content").content)
    return path


def stored_videos(server):
    """Return the files of videos that wait to be extended."""
    return {file for file in (server.data / "images").iterdir() if file.read_bytes()[4:8] == b"ftyp"}


def test_extended_video_has_the_frames_of_the_other_and_outlives_it(server, client, png, tmp_path):
    others = stored_videos(server)  # of tests before this one, whose jobs exist
    fields = {"motion_bucket_id": "1", "num_frames": "3", "seed": "7"}
    first = wait_for(client, client.post("/v1/videos", data=fields, files={"image": ("a.png", png)}).json()["id"])
    before = np.stack(list(each_frame(saved(client, first, tmp_path))))
    response = client.post("/v1/videos", json={"extend": first["id"], "num_frames": 2})
    assert response.status_code in (200, 201, 202), response.text
    assert client.delete(f"/v1/videos/{first['id']}").status_code == 200  # the new job has its own copies
    video = wait_for(client, response.json()["id"])
    assert (video["status"], video["extend"], video["last_image_sha256"]) == ("completed", first["id"], None)
    assert (video["parameters"]["num_frames"], video["seed"]) == (5, 7)
    path = saved(client, video, tmp_path)
    after = np.stack(list(each_frame(path)))
    assert len(after) == 5
    assert np.abs(after[:3].astype(int) - before).mean() < 4  # encoded again
    extension = read_recipe(path).extension
    assert extension is not None
    assert extension.lengths == (3,)
    again = client.post("/v1/videos", data={"extend": video["id"], "seconds": "0.3"})
    longest = wait_for(client, again.json()["id"])
    assert (longest["status"], longest["parameters"]["num_frames"]) == ("completed", 7)
    client.delete(f"/v1/videos/{video['id']}")
    client.delete(f"/v1/videos/{longest['id']}")
    assert not stored_videos(server) - others


def test_video_from_a_prompt_is_extended_from_its_generated_image(client):
    first = wait_for(client, client.post("/v1/videos", data=QUICK | {"prompt": "a fox"}).json()["id"])
    video = wait_for(client, client.post("/v1/videos", json={"extend": first["id"], "num_frames": 1}).json()["id"])
    assert (video["status"], video["prompt"]) == ("completed", "a fox")
    assert video["parameters"]["prompt"] is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "seconds", "seconds and num_frames are both missing"),
        ({"num_frames": "500"}, "num_frames", "use at most 125"),
        ({"num_frames": "many"}, "num_frames", "not an integer"),
        ({"num_frames": "2", "seed": "3"}, "seed", "seed can't be chosen for a video that is extended"),
        ({"num_frames": "2", "model": "svd"}, "model", "model can't be chosen"),
        ({"num_frames": "2", "extend": "video_" + "0" * 32}, "extend", "there is no video"),
    ],
)
def test_invalid_extension_is_rejected_by_name(client, short, fields, param, message):
    response = client.post("/v1/videos", data={"extend": short["id"]} | fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], message in error["message"]) == (400, param, True), error


def test_video_without_a_readable_recipe_is_rejected_without_its_path(server, client, short):
    stored = server.data / "jobs" / short["id"] / "video.mp4"
    whole = stored.read_bytes()
    try:
        for content in (encode_video(np.zeros((3, 64, 64, 3), np.uint8), ".mp4", 7), whole[:200]):
            stored.write_bytes(content)
            response = client.post("/v1/videos", data={"extend": short["id"], "num_frames": "2"})
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, "extend")
            assert error["message"] == (
                f"the video {short['id']} has no recipe that this version of Kinema reads, so that it can't be "
                "extended; generate it again"
            )
    finally:
        stored.write_bytes(whole)


def test_loop_and_unfinished_video_and_an_image_with_extend_are_rejected(client, png, short):
    files = {"image": ("a.png", png)}
    with_image = client.post("/v1/videos", data={"extend": short["id"], "num_frames": "2"}, files=files)
    assert (with_image.status_code, with_image.json()["error"]["param"]) == (400, "image")
    loop = wait_for(client, client.post("/v1/videos", data=QUICK | {"loop": "true"}, files=files).json()["id"])
    of_loop = client.post("/v1/videos", data={"extend": loop["id"], "num_frames": "2"})
    assert (of_loop.status_code, "is a loop" in of_loop.text) == (400, True)
    slow = client.post("/v1/videos", data=QUICK | {"motion_bucket_id": "1000"}, files=files).json()["id"]
    unfinished = client.post("/v1/videos", data={"extend": slow, "num_frames": "2"})
    client.delete(f"/v1/videos/{slow}")
    assert (unfinished.status_code, "extend it when it is completed" in unfinished.text) == (400, True)

"""Two servers with data folders of their own share images and videos in a bucket."""

import hashlib
from email.utils import parsedate_to_datetime

import httpx
import pytest
from server_process import start, stop, wait_for, wait_ready

from kinema.jobs.job_files import is_locked

SECRETS = ("do-not-log-this", "X-Amz-Signature")


# Two servers with models to load; `tests/jobs/test_shared_files.py` tests the queue below them.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def replicas(tmp_path_factory, s3):
    """Return two servers that redirect downloads to the bucket; the first one runs the jobs."""
    folder = tmp_path_factory.mktemp("replicas")
    shared = {"database_url": f"sqlite:///{folder}/shared.sqlite3", "store": s3.new_bucket("replicas")}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3.environment.items():
            patched.setenv(name, value)
        servers = [start(folder / name / "data", wait=False, presign_seconds=60, **shared) for name in "ab"]
    for server in servers:
        wait_ready(server)
    yield sorted(servers, key=lambda server: not is_locked(server.data / ".scheduler"))
    for server in servers:
        stop(server)


@pytest.fixture
def clients(replicas):
    running, waiting = replicas
    with running.client() as first, waiting.client() as second:
        yield first, second


@pytest.fixture
def video(clients, png):
    """A video that was submitted to the server that runs no jobs."""
    response = clients[1].post("/v1/videos", data={"seed": 7}, files={"input_reference": png})
    assert response.status_code == 200, response.text
    done = wait_for(clients[1], response.json()["id"])
    assert done["status"] == "completed"
    return done["id"]


def test_every_server_sends_video_ranges_thumbnail_recipe_and_image(clients, video, png):
    image = f"/studio/images/{hashlib.sha256(png).hexdigest()}"
    content = f"/v1/videos/{video}/content"
    bodies = set()
    for client in clients:
        whole = client.get(content, follow_redirects=True)
        assert whole.status_code == 200
        for path in (content, f"/studio/jobs/{video}/video.mp4"):
            part = client.get(path, headers={"Range": "bytes=100-199"}, follow_redirects=True)
            assert (part.status_code, part.content) == (206, whole.content[100:200])
        assert client.head(content).headers["content-length"] == str(len(whole.content))
        assert client.get(f"/studio/jobs/{video}/video.mp4").content == whole.content
        assert client.get(content, params={"variant": "thumbnail"}).headers["content-type"] == "image/webp"
        assert client.get(f"/studio/jobs/{video}/recipe.json").json()["request"]["seed"] == 7
        assert client.get(image, params={"width": 64, "height": 64}).headers["content-type"] == "image/jpeg"
        bodies.add(whole.content)
    assert len(bodies) == 1


def test_every_server_sends_the_file_of_a_batch_with_its_own_time(clients):
    form = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", b"{}\n")}}
    file = clients[0].post("/v1/files", **form).json()
    answers = [client.get(f"/v1/files/{file['id']}/content") for client in (*clients, *clients)]
    assert {answer.content for answer in answers} == {b"{}\n"}
    times = {parsedate_to_datetime(answer.headers["last-modified"]).timestamp() for answer in answers}
    assert (times, len({answer.headers["etag"] for answer in answers})) == ({file["created_at"]}, 1)


def test_download_is_redirected_to_a_presigned_url(clients, video, s3):
    response = clients[1].get(f"/v1/videos/{video}/content")
    assert (response.status_code, response.headers["x-kinema-job"]) == (307, video)
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["location"].startswith(f"{s3.url}/replicas/videos/jobs/{video}/signed-self.mp4?")
    direct = httpx.get(response.headers["location"])
    assert (direct.status_code, direct.headers["content-type"]) == (200, "video/mp4")
    assert direct.content == clients[0].get(f"/studio/jobs/{video}/video.mp4").content
    unfinished = clients[1].post("/v1/videos", data={"prompt": "a fox", "motion_bucket_id": 200}).json()["id"]
    assert clients[1].get(f"/v1/videos/{unfinished}/content").status_code == 409
    assert clients[1].delete(f"/v1/videos/{unfinished}").status_code == 200


def test_video_deleted_on_one_server_is_gone_on_the_other_and_in_the_bucket(clients, video, s3):
    assert clients[1].get(f"/v1/videos/{video}/content", follow_redirects=True).status_code == 200
    assert any(video in key for key in s3.keys("replicas"))
    assert clients[0].delete(f"/v1/videos/{video}").status_code == 200
    assert clients[1].get(f"/v1/videos/{video}/content").status_code == 404
    assert clients[1].get(f"/studio/jobs/{video}/video.mp4").status_code == 404
    assert not any(video in key for key in s3.keys("replicas"))


def test_servers_report_a_bucket_that_is_away(replicas, clients, video, png, s3):
    with s3.fault("away"):
        for client in clients:
            rejected = client.post("/v1/videos", data={"seed": 7}, files={"input_reference": png})
            assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "queue_unavailable")
            assert "the store of the server's images and videos can't be used" in rejected.json()["error"]["message"]
            ready = client.get("/readyz")
            assert (ready.status_code, "the store of" in ready.text) == (503, True)
        assert clients[1].get(f"/studio/jobs/{video}/video.mp4").status_code == 503
        assert clients[0].get(f"/studio/jobs/{video}/video.mp4").status_code == 200  # its copy
    assert [client.get("/readyz").status_code for client in clients] == [200, 200]
    for server in replicas:
        log = server.log.read_text()
        assert not any(secret in log for secret in SECRETS)

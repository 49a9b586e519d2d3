"""Stores of files: a folder and a bucket behave alike, and errors say what to do."""

import io
import subprocess
import sys

import httpx
import pytest

from kinema.errors import InvalidRequest, QueueUnavailable
from kinema.extras import install_remedy
from kinema.jobs.shared_files import SharedFiles, open_store
from kinema.settings import read_settings

BIG = bytes(range(256)) * 48_000  # uploaded in three parts


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path):
    return open_store(request.getfixturevalue("s3_store") if request.param == "s3" else f"file://{tmp_path}/store")


def content(store, name, *bounds):
    return b"".join(store.read(name, *bounds))


def test_stores_behave_alike(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(BIG)
    assert (store.size("jobs/a/video.mp4"), list(store.list("jobs/")), list(store.list(""))) == (None, [], [])
    with pytest.raises(FileNotFoundError):
        content(store, "jobs/a/video.mp4")
    store.put("jobs/a/video.mp4", source)
    store.put("jobs/a/input", b"one")
    store.put("jobs/a/input", b"another")  # replaced
    store.put("database-id", b"id", new=True)
    with pytest.raises(FileExistsError):
        store.put("database-id", b"other", new=True)
    assert (content(store, "jobs/a/video.mp4") == BIG, store.size("jobs/a/video.mp4")) == (True, len(BIG))
    assert (content(store, "jobs/a/input"), content(store, "database-id")) == (b"another", b"id")
    for start, end in [(0, 1), (5, None), (7, 7), (100, 1_000_000), (len(BIG) - 3, len(BIG) + 9)]:
        assert content(store, "jobs/a/video.mp4", start, end) == BIG[start:end]
    found = {file.name: file.size for file in store.list("jobs/")}
    assert found == {"jobs/a/input": 7, "jobs/a/video.mp4": len(BIG)}
    assert {file.name for file in store.list("")} == {*found, "database-id"}
    assert all(file.modified > 1e9 for file in store.list(""))
    store.delete(["jobs/a/input", "jobs/a/missing", "jobs/a/video.mp4"])
    assert ([file.name for file in store.list("")], store.size("jobs/a/input")) == (["database-id"], None)


def test_failed_upload_leaves_nothing(store, tmp_path):
    class Broken(io.BytesIO):
        def read(self, *_):
            if self.tell() >= 6_000_000:
                raise ZeroDivisionError
            return super().read(6_000_000)

    with pytest.raises((QueueUnavailable, FileNotFoundError)):
        store.put("jobs/a/video.mp4", tmp_path / "missing")
    if store.url.startswith("s3"):
        with pytest.raises(QueueUnavailable):
            store.put("jobs/a/video.mp4", Broken(BIG))
    assert list(store.list("")) == []


def test_address_gives_the_file_to_anyone_under_its_name(s3_store, tmp_path):
    store = open_store(s3_store)
    store.put("jobs/a/video.mp4", b"a video")
    response = httpx.get(store.address("jobs/a/video.mp4", 60), headers={"Range": "bytes=2-"})
    assert (response.status_code, response.content) == (206, b"video")
    assert response.headers["content-type"] == "video/mp4"
    assert response.headers["content-disposition"] == 'attachment; filename="a.mp4"'
    assert open_store(f"file://{tmp_path}/store").address("jobs/a/video.mp4", 60) is None


def test_missing_bucket_is_named(s3_store, tmp_path):
    with pytest.raises(InvalidRequest, match=r"s3://no-such-bucket/x \(KINEMA_STORE\).*create it") as error:
        SharedFiles(tmp_path, open_store("s3://no-such-bucket/x"))
    assert error.value.param == "store"


def test_wrong_key_is_an_error_without_the_key(s3, s3_store, tmp_path):
    with s3.fault("denied"), pytest.raises(InvalidRequest, match="set AWS_ACCESS_KEY_ID") as error:
        SharedFiles(tmp_path, open_store(s3_store))
    assert all(text not in str(error.value) for text in s3.environment.values())


def test_server_that_does_not_answer_is_an_error(s3_store, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(QueueUnavailable, match="check AWS_ENDPOINT_URL and the network"):
        SharedFiles(tmp_path, open_store(s3_store))


def test_missing_library_is_an_error():
    code = (
        "import sys; sys.modules['obstore.store'] = None\n"
        "from kinema.jobs.shared_files import open_store\n"
        "try: open_store('s3://bucket')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert install_remedy("s3") in done.stdout


def test_folder_that_can_not_be_created_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="KINEMA_STORE"):
        open_store(f"file://{tmp_path}/file/store")


@pytest.mark.parametrize(
    "url", ["s3://", "gs://bucket", "s3://key:secret@bucket", "folder", "file://host/x", "s3://b/x?y"]
)
def test_other_urls_are_invalid(url):
    with pytest.raises(InvalidRequest, match="store") as error:
        read_settings(store=url)
    assert "secret" not in str(error.value)

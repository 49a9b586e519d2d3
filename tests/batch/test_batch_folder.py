"""The output folder keeps foreign files, and knows what the batch wrote."""

import os

import pytest

from kinema.batch.batch_folder import BatchFolder
from kinema.errors import InvalidRequest, VideoError


@pytest.fixture
def out(folder):
    with BatchFolder(folder / "out") as out:
        yield out


def test_written_file_is_own_until_it_is_changed(out):
    out.write(b"video", "a.mp4", "key")
    assert out.state("a.mp4")[:2] == ("own", "key")
    (out.path / "a.mp4").write_bytes(b"changed")
    assert out.state("a.mp4").kind == "foreign"


def test_foreign_file_is_kept(out):
    (out.path / "a.mp4").write_bytes(b"mine")
    with pytest.raises(VideoError, match=r"a.mp4 was not written by this batch, or was changed since; move it"):
        out.write(b"video", "a.mp4", "key")
    assert (out.path / "a.mp4").read_bytes() == b"mine"
    assert not list(out.hidden.glob(".part-*"))


def test_foreign_file_that_appears_during_the_write_is_kept(out, monkeypatch):
    link = os.link

    def appear(source, target):
        target.write_bytes(b"mine")
        link(source, target)

    monkeypatch.setattr(os, "link", appear)
    with pytest.raises(VideoError, match="was not written by this batch"):
        out.write(b"video", "a.mp4", "key")
    assert (out.path / "a.mp4").read_bytes() == b"mine"


def test_own_file_is_replaced(out):
    out.write(b"first", "a.mp4", "key")
    out.write(b"second", "a.mp4", "other")
    assert (out.path / "a.mp4").read_bytes() == b"second"
    assert out.state("a.mp4")[:2] == ("own", "other")
    assert out.find("key") is None


def test_file_without_its_entry_or_entry_without_its_file_is_not_finished(out):
    out.write(b"video", "a.mp4", "key")
    (out.path / "b.mp4").write_bytes(b"video")
    assert out.state("b.mp4").kind == "foreign"
    (out.path / "a.mp4").unlink()
    assert out.state("a.mp4").kind == "absent"
    assert out.find("key") is None


def test_file_system_without_hard_links_is_supported(out, monkeypatch):
    def unsupported(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    out.write(b"video", "a.mp4", "key")
    assert out.state("a.mp4").kind == "own"


def test_second_batch_in_the_folder_is_rejected(out):
    with pytest.raises(InvalidRequest, match="another kinema batch writes to"), BatchFolder(out.path):
        pass


def test_partial_files_of_a_killed_run_are_deleted(folder):
    with BatchFolder(folder / "out") as out:
        partial = out.partial_file()
        partial.write_bytes(b"half")
    with BatchFolder(folder / "out"):
        assert not partial.exists()


def test_unusable_folder_is_an_error(folder):
    (folder / "file").write_text("")
    with pytest.raises(VideoError, match="file"), BatchFolder(folder / "file"):
        pass

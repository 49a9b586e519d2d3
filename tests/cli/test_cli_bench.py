import json

import pytest
from cli_inputs import SMALL, draw

QUICK = [*SMALL, "--device=cpu", "--dtype=float32", "--runs=1"]


@pytest.fixture
def bench(kinema, tiny_svd):
    """`bench` with a tiny model and small settings."""

    def run(*arguments):
        return kinema("bench", *arguments, "--model", tiny_svd, *QUICK)

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_record_goes_to_a_file_a_table_to_stdout_and_progress_to_stderr(bench, image, folder):
    ran = bench(image.name, "--out", "out.json", "--note", "random weights")
    assert ran.code == 0
    record = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert record["note"] == "random weights"
    assert record["image"]["name"] == "rocket"
    assert (record["settings"]["seed"], record["settings"]["num_frames"], record["runs"]) == (7, 2, 1)
    for words in ("kinema", "diffusers", "factor", "cold start", "total", "rss", "denoise, TFLOP/s", "image rocket"):
        assert words in ran.out
    assert "random weights" in ran.out
    lines = ran.err.splitlines()
    assert lines.index("kinema: video 1 of 1") < lines.index("diffusers: video 1 of 1")
    assert lines[-1] == "record: out.json"
    assert names(folder) == ["out.json", "rocket.png"]


def test_alone_and_without_a_still_it_needs_no_file(bench, folder):
    ran = bench("--against=nothing", "--engine=reference", "--json")
    assert ran.code == 0
    record = json.loads(ran.out)
    assert record["engine"] == "reference"
    assert record["image"]["name"] == "gradient"
    assert len(record["kinema"]["warm"]["runs"]) == 1
    assert record["peers"] == {}
    assert names(folder) == []


MISTAKES = {
    "no such peer": (["--against=onediff"], 2, "there is no peer 'onediff'; there is diffusers, diffusers-compile, or"),
    "no such peer's dtype": (
        ["--peer-dtype=fp8"],
        2,
        "there is no peer_dtype 'fp8'; there is float16, bfloat16, float32",
    ),
    "no such engine": (["--engine=slow"], 2, "there is no engine 'slow'; there is fast and reference"),
    "no such still": (["nope.png"], 2, "there is no file nope.png; check the name and the folder"),
    "out of range": (["--fps=500"], 2, "fps 500 is out of range: 1 to 120"),
    "a painter's setting": (["--scheduler=euler"], 2, "no such option: --scheduler"),
    "no runs": (["--runs=0"], 2, "invalid value for '--runs': "),
    "a file that exists": (["--out=old.json"], 2, "old.json already exists; add --force to overwrite it"),
    "another ending": (["--out=x.txt"], 2, "the record x.txt must end in .json; use x.json"),
    "a folder": (["--out=full.json"], 2, "full.json is a folder; choose another name for the record"),
    "where the peer fails": (["--min-guidance-scale=2", "--max-guidance-scale=1"], 2, "diffusers' pipeline fails at"),
    "no such model": (["--model=svdxt"], 3, "there is no model 'svdxt'; did you mean svd-xt?"),
}


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_anything_is_loaded(kinema, folder, tiny_svd, arguments, code, words):
    (folder / "full.json").mkdir()
    (folder / "old.json").touch()
    ran = kinema("bench", "--model", tiny_svd, *QUICK, *arguments)
    assert (ran.code, ran.out) == (code, "")
    error = ran.err[ran.err.index("error: ") :]
    assert words in error
    assert error.count("\n") == 1
    assert "loading" not in ran.err
    assert names(folder) == ["full.json", "old.json"]


def test_the_record_never_replaces_the_still(bench, folder):
    draw(folder / "rocket.png").rename(folder / "rocket.json")
    ran = bench("rocket.json", "--out", "rocket.json")
    assert ran.code == 2
    assert "rocket.json is the input and would be overwritten" in ran.err

import json

import pytest
from cli_inputs import SMALL, write_image

QUICK = [*SMALL, "--device=cpu", "--dtype=float32", "--runs=1"]


@pytest.fixture
def bench(kinema, tiny_svd):
    """Return a function that runs `bench` with a tiny model and small parameters."""

    def run(*arguments):
        return kinema("bench", *arguments, "--model", tiny_svd, *QUICK)

    return run


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_bench_writes_record_file_table_and_progress(bench, image, folder):
    result = bench(image.name, "-o", "out.json", "--note", "random weights")
    assert result.code == 0
    record = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert record["note"] == "random weights"
    assert record["image"]["name"] == "rocket"
    assert (record["parameters"]["seed"], record["parameters"]["num_frames"], record["runs"]) == (7, 2, 1)
    for text in ("kinema", "diffusers", "factor", "cold start", "total", "rss", "denoise, TFLOP/s", "image rocket"):
        assert text in result.out
    assert "random weights" in result.out
    lines = result.err.splitlines()
    assert lines.index("kinema: video 1 of 1") < lines.index("diffusers: video 1 of 1")
    assert lines[-1] == "record: out.json"
    assert file_names(folder) == ["out.json", "rocket.png"]


@pytest.mark.slow
def test_bench_without_image_and_baselines_writes_no_file(bench, folder):
    result = bench("--against=nothing", "--engine=reference", "--json")
    assert result.code == 0
    record = json.loads(result.out)
    assert record["engine"] == "reference"
    assert record["image"]["name"] == "gradient"
    assert len(record["kinema"]["warm"]["runs"]) == 1
    assert record["baselines"] == {}
    assert file_names(folder) == []


INVALID_ARGUMENTS = {
    "unknown baseline": (
        ["--against=onediff"],
        2,
        "baseline 'onediff' is not supported; use diffusers, diffusers-compile, kinema-one-gpu or",
    ),
    "unknown baseline dtype": (
        ["--baseline-dtype=fp8"],
        2,
        "baseline_dtype 'fp8' is not supported; use float16, bfloat16, float32",
    ),
    "unknown engine": (["--engine=slow"], 2, "engine 'slow' is not supported; use fast or reference"),
    "missing image": (["nope.png"], 2, "file nope.png not found; check the name and the folder"),
    "out of range": (["--fps=500"], 2, "fps 500 is out of range: 1 to 120"),
    "text-to-image option": (["--scheduler=euler"], 2, "no such option: --scheduler"),
    "zero runs": (["--runs=0"], 2, "--runs 0 is too low; use at least 1"),
    "existing file": (["--output=old.json"], 2, "old.json already exists; add --force to overwrite it"),
    "wrong extension": (["--output=x.txt"], 2, "the record x.txt must end in .json; use x.json"),
    "folder": (["--output=full.json"], 2, "full.json is a folder; choose another name for the record"),
    "baseline fails": (["--min-guidance-scale=2", "--max-guidance-scale=1"], 2, "diffusers' pipeline fails at"),
    "unknown model": (["--model=svdxt"], 3, "model 'svdxt' not found; did you mean svd-xt?"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), INVALID_ARGUMENTS.values(), ids=INVALID_ARGUMENTS)
def test_invalid_arguments_are_rejected_before_loading(kinema, folder, tiny_svd, arguments, code, message):
    (folder / "full.json").mkdir()
    (folder / "old.json").touch()
    result = kinema("bench", "--model", tiny_svd, *QUICK, *arguments)
    assert (result.code, result.out) == (code, "")
    error = result.err[result.err.index("error: ") :]
    assert message in error
    assert error.count("\n") == 1
    assert "loading" not in result.err
    assert file_names(folder) == ["full.json", "old.json"]


def test_bench_record_at_image_path_is_rejected(bench, folder):
    write_image(folder / "rocket.png").rename(folder / "rocket.json")
    result = bench("rocket.json", "-o", "rocket.json")
    assert result.code == 2
    assert "rocket.json is the input and would be overwritten" in result.err

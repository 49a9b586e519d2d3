"""Importing Kinema is fast and has no side effects; heavy libraries are imported on use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import kinema

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "av", "huggingface_hub", "safetensors"}


def run_fresh(code: str, folder: Path | None = None) -> tuple[float, set[str]]:
    """Run `code` in a new interpreter; return its duration in seconds and the imported packages."""
    script = (
        f"import json, sys, time\nstart = time.perf_counter()\n{code}\nseconds = time.perf_counter() - start\n"
        "print(json.dumps([seconds, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder)
    seconds, imported = json.loads(done.stdout)
    return seconds, set(imported)


def test_import_is_fast_and_imports_no_other_package() -> None:
    seconds, imported = run_fresh("import kinema")
    assert "kinema" in imported
    assert not imported & (
        HEAVY | {"numpy", "PIL", "pydantic", "pydantic_settings", "httpx", "psutil", "typer", "rich"}
    )
    assert seconds < 0.5  # 10 ms on an idle machine


def test_importing_public_names_imports_no_heavy_library() -> None:
    _, imported = run_fresh("from kinema import *")
    assert not imported & HEAVY


def test_rejected_request_imports_no_heavy_library() -> None:
    code = "import kinema\ntry: kinema.VideoRequest.checked(width=1001)\nexcept kinema.KinemaError: pass"
    assert not run_fresh(code)[1] & HEAVY


def test_import_reads_no_settings(tmp_path: Path) -> None:
    (tmp_path / "kinema.toml").write_text("this is [ no TOML", encoding="utf-8")
    run_fresh("import kinema; kinema.generate; kinema.load", tmp_path)  # fails if the file is read
    assert [path.name for path in tmp_path.iterdir()] == ["kinema.toml"]


def test_every_public_name_is_available() -> None:
    assert sorted(kinema.__all__) == dir(kinema)
    for name in kinema.__all__:
        assert getattr(kinema, name).__name__ == name


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'kinema' has no attribute 'sample'"):
        _ = kinema.sample

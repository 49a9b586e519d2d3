"""Importing Kinema is quick and does nothing: what is heavy is loaded where it is used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import kinema

HEAVY = {"torch", "diffusers", "transformers", "accelerate", "av", "huggingface_hub", "safetensors"}


def after(code: str, folder: Path | None = None) -> tuple[float, set[str]]:
    """Seconds that `code` takes in a fresh interpreter, and the packages that are loaded then."""
    script = (
        f"import json, sys, time\nstart = time.perf_counter()\n{code}\nspent = time.perf_counter() - start\n"
        "print(json.dumps([spent, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder)
    spent, loaded = json.loads(done.stdout)
    return spent, set(loaded)


def test_importing_takes_no_time_and_loads_nothing_but_itself() -> None:
    spent, loaded = after("import kinema")
    assert "kinema" in loaded
    assert not loaded & (HEAVY | {"numpy", "PIL", "pydantic", "pydantic_settings", "httpx", "psutil", "typer", "rich"})
    assert spent < 0.5  # 10 ms on an idle machine


@pytest.mark.parametrize("name", kinema.__all__)
def test_naming_what_is_public_loads_nothing_heavy(name: str) -> None:
    _, loaded = after(f"from kinema import {name}")
    assert not loaded & HEAVY


def test_a_refused_request_loads_nothing_heavy() -> None:
    code = "import kinema\ntry: kinema.VideoRequest.checked(width=1001)\nexcept kinema.KinemaError: pass"
    assert not after(code)[1] & HEAVY


def test_importing_reads_no_settings(tmp_path: Path) -> None:
    (tmp_path / "kinema.toml").write_text("this is [ no TOML", encoding="utf-8")
    after("import kinema; kinema.generate; kinema.load", tmp_path)  # fails if the file is read
    assert [path.name for path in tmp_path.iterdir()] == ["kinema.toml"]


def test_every_public_name_is_there() -> None:
    assert sorted(kinema.__all__) == dir(kinema)
    for name in kinema.__all__:
        assert getattr(kinema, name).__name__ == name


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'kinema' has no attribute 'sample'"):
        _ = kinema.sample

"""Importing Kinema is fast and has no side effects; heavy libraries are imported on use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import kinema

# With what they import, two thirds of a start that needs them.
MODEL_LIBRARIES = {"diffusers", "transformers", "accelerate", "scipy", "sklearn", "pandas", "sympy"}
HEAVY = {"torch", "diffusers", "transformers", "accelerate", "av", "huggingface_hub", "safetensors"}


def run_fresh(code: str, folder: Path | None = None) -> tuple[float, set[str]]:
    """Run `code` in a new interpreter; return its duration in seconds and the imported packages."""
    script = (
        f"import json, sys, time\nstart = time.perf_counter()\n{code}\nseconds = time.perf_counter() - start\n"
        "print(json.dumps([seconds, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder)
    seconds, imported = json.loads(done.stdout.splitlines()[-1])
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


SMALL = {"width": 64, "height": 64, "num_frames": 2, "num_inference_steps": 1, "seed": 5}
FAST_ENGINE = {
    "library": "import kinema; kinema.load({model!r})",
    "commands": """
from kinema.cli import main
assert main(['generate', {image!r}, '--model', {model!r}, *{flags}]) == 0
assert main(['doctor']) == 0
""",
    "worker": """
from pathlib import Path
from kinema.jobs.job import Task
from kinema.models.catalog import request_for
from kinema.serving.engine_work import EngineWork
from kinema.steps import drive
work, request, image = EngineWork(), request_for(model={model!r}, **{small}), Path({image!r})
work.start(print)
latents = drive(work(Task("j", "latents", request, image), None))
video = drive(work(Task("j", "video", request, image, Path("latents")), latents), work.preview)
""",
}


@pytest.mark.parametrize(
    "code",
    [
        # The command imports all that the library does, and more.
        pytest.param(code, id=name, marks=[pytest.mark.slow] if name == "library" else [])
        for name, code in FAST_ENGINE.items()
    ],
)
def test_fast_engine_imports_no_model_library(
    code: str, tiny_svd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "image.png")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    code = code.format(model=str(tiny_svd), image="image.png", small=SMALL, flags=flags)
    assert not run_fresh(code, tmp_path)[1] & MODEL_LIBRARIES


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

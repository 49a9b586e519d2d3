"""The service where only requirements.txt is installed, as in a Bento: kinema itself lies beside it, in src."""

import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import httpx
import pytest
from server_process import HERE, free_port, start, stop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def python(tmp_path):
    """An interpreter that has all that this one has, but not kinema."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "kinema" not in path.name:
            (packages / path.name).symlink_to(path)
    venv.create(tmp_path / "venv", symlinks=True)
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "venv" / "lib" / name / "site-packages" / "packages.pth").write_text(f"{packages}\n")
    return tmp_path / "venv" / "bin" / "python"


def test_service_runs_from_source_without_installation(python, tmp_path, png):
    port = free_port()
    serve = [python, "-m", "bentoml", "serve", "service:StableDiffusionVideo", "--port", str(port)]
    running = start(tmp_path / "data", port=port, cwd=ROOT, command=["env", f"PYTHONPATH={HERE}", *serve])
    try:
        fields = {"motion_bucket_id": "1", "num_frames": "2"}
        made = httpx.post(f"{running.url}/v1/videos/sync", data=fields, files={"image": ("a.png", png)}, timeout=30)
        assert (made.status_code, made.content[4:8]) == (200, b"ftyp")
        document = httpx.get(f"{running.url}/v1/openapi.json").json()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert document["info"]["version"] == project["version"]
        # So that a recipe, the doctor and the command can tell it, too.
        asked = [python, "-c", "import sys; sys.path.append('src'); from kinema.cli import main; main(['--version'])"]
        told = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT, env={"PATH": ""}, check=True)
        assert told.stdout == f"kinema {project['version']}\n"
    finally:
        stop(running)

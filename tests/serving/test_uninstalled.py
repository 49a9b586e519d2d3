"""The service with only requirements.txt installed, as in a Bento: kinema is in src, next to it."""

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
    """An interpreter with all installed packages except kinema."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if "kinema" not in path.name:
            (packages / path.name).symlink_to(path)
    venv.create(tmp_path / "venv", symlinks=True)
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "venv" / "lib" / name / "site-packages" / "packages.pth").write_text(f"{packages}\n")
    return tmp_path / "venv" / "bin" / "python"


@pytest.mark.slow
def test_service_runs_from_source_without_installation(python, tmp_path, png):
    port = free_port()
    serve = [python, "-m", "bentoml", "serve", "service:StableDiffusionVideo", "--port", str(port)]
    running = start(tmp_path / "data", port=port, cwd=ROOT, command=["env", f"PYTHONPATH={HERE}", *serve])
    try:
        fields = {"motion_bucket_id": "1", "num_frames": "2"}
        created = httpx.post(f"{running.url}/v1/videos/sync", data=fields, files={"image": ("a.png", png)}, timeout=30)
        assert (created.status_code, created.content[4:8]) == (200, b"ftyp")
        document = httpx.get(f"{running.url}/v1/openapi.json").json()
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert document["info"]["version"] == project["version"]
        # The command reports the version, too.
        command = [python, "-c", "import sys; sys.path.append('src'); from kinema.cli import main; main(['--version'])"]
        completed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PATH": ""}, check=True)
        assert completed.stdout == f"kinema {project['version']}\n"
    finally:
        stop(running)

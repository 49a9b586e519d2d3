"""The tutorial's commands, and the dependencies of a Bento."""

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_bento_installs_dependencies_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == sorted(expected)


@pytest.mark.slow
def test_tutorial_commands_work_unchanged(tmp_path):
    completed = subprocess.run(
        [ROOT / "examples" / "tutorial.sh"], check=False, capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert completed.returncode == 0, completed.stdout[-3000:] + completed.stderr[-3000:]
    assert completed.stdout.count("bytes of video") == 3
    assert "the same seed gave the same frames" in completed.stdout

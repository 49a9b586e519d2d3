"""What `make` would do in a fresh clone, without doing it."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU = "https://download.pytorch.org/whl/cpu"


def planned(tmp_path, *arguments):
    """The commands of `make demo` where nothing is installed yet."""
    command = ["make", "--dry-run", f"VENV={tmp_path}/venv", "demo", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_an_install_names_its_downloads_and_the_way_to_smaller_ones(tmp_path):
    plan = planned(tmp_path)
    assert "--quiet" not in plan
    assert f"make demo TORCH_INDEX={CPU}" in plan
    assert "--index-url" not in plan


def test_torch_comes_from_the_index_that_is_given(tmp_path):
    plan = planned(tmp_path, f"TORCH_INDEX={CPU}")
    assert plan.index(f"torch --index-url {CPU}") < plan.index("--editable .")
    assert "several gigabytes" not in plan


def test_the_tutorial_asks_no_server_of_a_fixed_port():
    script = (ROOT / "examples" / "tutorial.sh").read_text(encoding="utf-8")
    assert ":3000" not in script
    assert '--port "$PORT"' in script

"""The commands of `make` in a fresh clone, in a dry run."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU = "https://download.pytorch.org/whl/cpu"


def dry_run(tmp_path, *arguments):
    """Return the commands of `make demo` with nothing installed."""
    command = ["make", "--dry-run", f"VENV={tmp_path}/venv", "demo", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_install_shows_downloads_and_suggests_cpu_index(tmp_path):
    commands = dry_run(tmp_path)
    assert "--quiet" not in commands
    assert f"make demo TORCH_INDEX={CPU}" in commands
    assert "--index-url" not in commands


def test_torch_index_is_used(tmp_path):
    commands = dry_run(tmp_path, f"TORCH_INDEX={CPU}")
    assert commands.index(f"torch --index-url {CPU}") < commands.index("--editable .")
    assert "several gigabytes" not in commands


def test_tutorial_script_uses_no_fixed_port():
    script = (ROOT / "examples" / "tutorial.sh").read_text(encoding="utf-8")
    assert ":3000" not in script
    assert '--port "$PORT"' in script

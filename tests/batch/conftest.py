"""Fixtures of the batch's tests: a folder of images, and the command with stub work in this process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from batch_inputs import QUICK, CommandResult, write_image

from kinema.cli import main

sys.path.append(str(Path(__file__).parents[1] / "serving"))  # for server_work and server_process
sys.path.append(str(Path(__file__).parents[1] / "models"))  # for fake_hub


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder; the environment selects stub work."""
    for name in [name for name in os.environ if name.startswith("KINEMA_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINEMA_WORK", "batch_work:LoggedWork")
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")
    monkeypatch.setenv("KINEMA_MIN_FREE_GB", "0")
    monkeypatch.setenv("BATCH_TASK_LOG", str(tmp_path / "tasks.log"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def photos(folder):
    """The folder `photos` with three images."""
    for seed, name in enumerate("abc"):
        write_image(folder / "photos" / f"{name}.png", seed)
    return folder / "photos"


@pytest.fixture
def command(monkeypatch):
    """Return a function that gives the arguments of Python for `kinema batch … --out videos` with a step of 1 ms."""
    folders = [Path(__file__).parent, Path(__file__).parents[1] / "serving"]  # for the work
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))

    def arguments(*own, model="pocket"):
        options = ["--out", "videos", "--motion-bucket-id", "1", "--model", model]
        return [sys.executable, "-m", "kinema", "batch", *map(str, own), *options]

    return arguments


@pytest.fixture
def batch(command):
    """Return a function that runs `kinema batch` in a process: DBOS keeps the stderr of the first test."""

    def run(*arguments, **options):
        done = subprocess.run(command(*arguments, **options), capture_output=True, text=True, check=False, timeout=120)
        return CommandResult(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def batch_in_process(capsys):
    """Return a function that runs `kinema batch` in this process, for runs that end before any work."""

    def run(*arguments):
        capsys.readouterr()
        return CommandResult(main(["batch", "--out", "videos", *QUICK, *map(str, arguments)]), *capsys.readouterr())

    return run

"""Fixtures that run the command in this process, in an empty current folder."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_inputs import SMALL, write_image

from kinema.cli import main

sys.path.append(str(Path(__file__).parents[1] / "models"))  # for fake_hub


class CommandResult(NamedTuple):
    """Exit code, stdout and stderr of a run."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Remove settings and colour options from the environment."""
    for name in [name for name in os.environ if name.startswith(("KINEMA_", "TTY_")) or name.endswith("_COLOR")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def kinema(folder, capsys):
    """Return a function that runs the command: `kinema("generate", ...) -> CommandResult`."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return CommandResult(code, *capsys.readouterr())

    return run


@pytest.fixture
def image(folder):
    """Write `rocket.png`, 96×64."""
    return write_image(folder / "rocket.png")


@pytest.fixture
def generate(kinema, image, tiny_svd):
    """Return a function that runs `generate` with a tiny model, small parameters and by default `rocket.png`."""

    def run(*arguments, images=(image.name,)):
        return kinema("generate", *images, "--model", tiny_svd, *SMALL, *arguments)

    return run


class Terminal:
    """Context manager that makes stderr a pseudo-terminal; `text` is its output, complete after the block."""

    def __enter__(self):
        self.reader, writer = pty.openpty()
        self.pieces = []
        self.thread = threading.Thread(target=self.read)
        self.thread.start()
        self.screen = os.fdopen(writer, "w", encoding="utf-8", buffering=1)
        self.previous, sys.stderr = sys.stderr, self.screen
        return self

    def __exit__(self, *_error):
        sys.stderr = self.previous
        self.screen.close()
        self.thread.join()
        os.close(self.reader)

    def read(self):
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(self.reader, 4096):
                self.pieces.append(piece)

    @property
    def text(self):
        return b"".join(self.pieces).decode()


@pytest.fixture
def terminal(monkeypatch):
    """Return a terminal with colour support, to be entered by the test."""
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()

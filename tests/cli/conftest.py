"""The command, run in this process: its exit code, stdout and stderr, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_inputs import SMALL, draw

from kinema.cli import main

sys.path.append(str(Path(__file__).parents[1] / "models"))  # for fake_hub


class Ran(NamedTuple):
    """How a run of the command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No settings and no wishes for colour from outside."""
    for name in [name for name in os.environ if name.startswith(("KINEMA_", "TTY_")) or name.endswith("_COLOR")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def kinema(folder, capsys):
    """Runs the command there: `kinema("generate", ...) -> Ran`."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def image(folder):
    """`rocket.png`: 96×64, all colours."""
    return draw(folder / "rocket.png")


@pytest.fixture
def generate(kinema, image, tiny_svd):
    """`generate` with a tiny model and small settings; of `rocket.png` unless stills are named."""

    def run(*arguments, images=(image.name,)):
        return kinema("generate", *images, "--model", tiny_svd, *SMALL, *arguments)

    return run


class Terminal:
    """A real terminal as stderr while inside; `text` is all that was written to it, known afterwards."""

    def __enter__(self):
        self.reader, writer = pty.openpty()
        self.pieces = []
        self.thread = threading.Thread(target=self.read)
        self.thread.start()
        self.screen = os.fdopen(writer, "w", encoding="utf-8", buffering=1)
        self.before, sys.stderr = sys.stderr, self.screen
        return self

    def __exit__(self, *_error):
        sys.stderr = self.before
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
    """A terminal that knows colours, to enter where it is wanted."""
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()

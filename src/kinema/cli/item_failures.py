"""Failures of single videos in a run of several: the others continue, and all failures are named at the end."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from kinema.cli.exit_codes import BATCH_INCOMPLETE
from kinema.errors import GenerationFailed, InvalidImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kinema.cli.report import Report


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """A video that failed. `name` is how messages call it; `code` is that of the error."""

    name: str
    source: str
    seed: int | None
    code: str
    message: str


@dataclass(slots=True)
class ItemFailures:
    """The failures of a run. With `stops`, the first one ends the run."""

    report: Report
    stops: bool = False
    items: list[ItemFailure] = field(default_factory=list)

    @contextlib.contextmanager
    def collect(self, name: str, source: str, seed: int | None = None) -> Iterator[None]:
        """Collect an error in the block that concerns only this video; others would repeat and are raised."""
        try:
            yield
        except (InvalidImage, GenerationFailed) as error:
            if self.stops:
                raise
            self.items.append(ItemFailure(name, source, seed, error.code, str(error)))
            self.report.emit("warning", f"{name} failed; the other videos are still made")

    def report_all(self) -> None:
        """Name every failure.

        Raises:
            typer.Exit: there is one; the exit code is 6.
        """
        for item in self.items:
            self.report.emit(
                "item_failed",
                item.message if item.message.startswith(f"{item.name} ") else f"{item.name}: {item.message}",
                name=item.name,
                source=item.source,
                seed=item.seed,
                code=item.code,
                message=item.message,
            )
        if self.items:
            raise typer.Exit(BATCH_INCOMPLETE)

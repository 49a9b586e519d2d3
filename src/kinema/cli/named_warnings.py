"""The warnings about several videos, each once, with the images that it concerns."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.cli.render_task import RenderTask

MAX_NAMES = 3
_LOOP_AND_BOOMERANG = "a loop already plays without end; with --boomerang, it also plays backward and is twice as long"


def named_warnings(tasks: Sequence[RenderTask]) -> list[str]:
    """Return each warning once; one that does not concern all images or prompts begins with those that it concerns."""
    concerned: dict[str, dict[str, None]] = defaultdict(dict)  # ordered
    for task in tasks:
        for warning in task.warnings:
            concerned[warning][task.source] = None
        if task.request.loop and task.encoding.boomerang:
            concerned[_LOOP_AND_BOOMERANG][task.source] = None
    everything = {task.source for task in tasks}
    return [
        warning if sources.keys() == everything else f"{_listed([*sources])}: {warning}"
        for warning, sources in concerned.items()
    ]


def _listed(sources: Sequence[str]) -> str:
    more = len(sources) - MAX_NAMES
    return ", ".join(sources[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")

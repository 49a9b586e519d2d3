"""Which model is meant, where it lies, and what of the catalog is on this machine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.errors import ModelNotFound, NotAnSvdModel, WeightsError, WeightsMissing
from kinema.models import hub
from kinema.models.catalog import CATALOG, POCKET_FOLDER, Entry
from kinema.models.files import INDEX, PICKLES, check_is_svd, folder_names, needed_files, single_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.models.hub import Progress, Snapshot

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model named by a person lies: a folder, or a repository of the hub."""

    name: str
    folder: Path | None = None
    repository: str | None = None
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class Held:
    """A line of `kinema models`: what can be had, and what of it is here."""

    entry: Entry
    snapshot: Snapshot | None

    @property
    def present(self) -> bool:
        """Whether it can be loaded without a network."""
        return self.snapshot is not None

    @property
    def kind(self) -> str:
        """Where it comes from: "embedded" in the package, or "hub"."""
        return "hub" if self.entry.repository else "embedded"

    @property
    def path(self) -> Path | None:
        """Its folder on this machine."""
        return self.snapshot.folder if self.snapshot else None

    @property
    def size_bytes(self) -> int | None:
        """What it takes on the disk; what a download would be, where it is not here."""
        return self.snapshot.size_bytes if self.snapshot else self.entry.size_bytes


def resolve(model: str | Path) -> Source:
    """Where a catalog name, folder or hub id ("owner/name", or "owner/name@revision") leads. Nothing is opened.

    Raises:
        ModelNotFound: naming what comes closest.
        NotAnSvdModel: for a file, where a folder is meant.
    """
    name = str(model)
    if (entry := CATALOG.get(name)) is not None:
        if entry.repository is None:
            return Source(name, POCKET_FOLDER)
        return Source(name, None, entry.repository, entry.revision or "main")
    path = Path(model).expanduser()
    if path.is_dir():
        return Source(path.resolve().name, path)
    if path.suffix in (".safetensors", *PICKLES):
        if path.is_file():
            raise single_file(path)
        raise NotAnSvdModel(f"{path} names a file, and a model is a folder in diffusers' layout, or a name")
    if isinstance(model, str) and (found := HUB_ID.fullmatch(name)) and not name.startswith("."):
        return Source(found["repository"], None, found["repository"], found["revision"] or "main")
    near = difflib.get_close_matches(name.lower(), CATALOG, n=1)
    guess = f"; did you mean {near[0]}?" if near else "."
    raise ModelNotFound(
        f"there is no model {name!r}{guess} There are {', '.join(CATALOG)}, hub ids (owner/name), and folders"
    )


def locate(source: Source, *, half: bool = True, progress: Callable[[Progress], None] | None = None) -> Snapshot:
    """A model's files on this machine, fetched from the hub where they are not.

    Where `half` is False, weights in float32 are preferred; half-precision ones that are here are taken all the same.

    Raises:
        WeightsError: one of its kinds, saying what to do.
        InsufficientDisk: when a download has no room.
    """
    if source.folder is not None:
        if source.folder == POCKET_FOLDER and not (POCKET_FOLDER / INDEX).is_file():
            raise WeightsMissing("this package lacks the weights of pocket; install it again")
        check_is_svd(source.folder)
        files = needed_files(folder_names(source.folder), half=half, where=str(source.folder))
        return hub.Snapshot(source.folder, None, tuple(files))
    assert source.repository is not None
    return hub.fetch(source.repository, source.revision, half=half, progress=progress)


def pull(model: str, progress: Callable[[Progress], None] | None = None) -> Snapshot:
    """Fetch a model ahead of its use, in the half-precision variant where there is one.

    Args:
        model: Catalog name or hub id; of a folder, only what is there is told.
        progress: Called with each piece that arrives.

    Raises:
        WeightsError: one of its kinds, saying what to do.
        InsufficientDisk: when it has no room.
    """
    return locate(resolve(model), progress=progress)


def inventory() -> list[Held]:
    """Every model of the catalog, and whether it is on this machine; the network is not asked."""
    return [Held(entry, _held(entry)) for entry in CATALOG.values()]


def _held(entry: Entry) -> Snapshot | None:
    if entry.repository is not None:
        return hub.cached(entry.repository, entry.revision or "main", half=True)
    try:
        return locate(resolve(entry.name))
    except WeightsError:  # a package without its weights
        return None

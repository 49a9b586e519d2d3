"""Which model is meant, where it lies, and what of the catalog is on this machine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.errors import ModelNotFound, NotAnImagePipeline, NotAnSvdModel, WeightsError, WeightsMissing
from kinema.models import hub
from kinema.models.catalog import CATALOG, IMAGE_MODELS, CatalogEntry
from kinema.models.image_pipeline_files import EITHER, IMAGE_PIPELINE
from kinema.models.model_files import INDEX, PICKLES, SVD, folder_names, single_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.models.hub import Progress, Snapshot
    from kinema.models.model_files import Layout

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model named by a person lies: a folder, or a repository of the hub."""

    name: str
    folder: Path | None = None
    repository: str | None = None
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A line of `kinema models`: what can be had, and what of it is here."""

    entry: CatalogEntry
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


def resolve(model: str | Path, *, text_to_image: bool = False) -> ModelSource:
    """Where a catalog name, folder or hub id ("owner/name", or "owner/name@revision") leads. Nothing is opened.

    Args:
        model: As a person names it.
        text_to_image: Whether a painter is meant, rather than a model that makes videos.

    Raises:
        ModelNotFound: naming what comes closest.
        NotAnSvdModel, NotAnImagePipeline: for a file in place of a folder, or a catalog name of the other kind.
    """
    name = str(model)
    known = IMAGE_MODELS if text_to_image else CATALOG
    if (entry := known.get(name)) is not None:
        return ModelSource(name, entry.folder, entry.repository, entry.revision or "main")
    if name in CATALOG:
        raise NotAnImagePipeline(
            f"{name} makes videos from stills, and draws none: the painters are {', '.join(IMAGE_MODELS)}"
        )
    if name in IMAGE_MODELS:
        raise NotAnSvdModel(f"{name} draws stills from prompts, and makes no videos: it can be the image model")
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelSource(path.resolve().name, path)
    if path.suffix in (".safetensors", *PICKLES):
        if path.is_file() and not text_to_image:
            raise single_file(path)
        kind = NotAnImagePipeline if text_to_image else NotAnSvdModel
        raise kind(f"{path} names a file, and a model is a folder in diffusers' layout, or a name")
    if isinstance(model, str) and (found := HUB_ID.fullmatch(name)) and not name.startswith("."):
        return ModelSource(found["repository"], None, found["repository"], found["revision"] or "main")
    near = difflib.get_close_matches(name.lower(), known, n=1)
    guess = f"; did you mean {near[0]}?" if near else "."
    raise ModelNotFound(
        f"there is no {'painter' if text_to_image else 'model'} {name!r}{guess} There are {', '.join(known)}, hub ids "
        "(owner/name), and folders"
    )


def locate(
    source: ModelSource,
    *,
    half: bool = True,
    progress: Callable[[Progress], None] | None = None,
    layout: Layout = SVD,
) -> Snapshot:
    """A model's files on this machine, fetched from the hub where they are not.

    Where `half` is False, weights in float32 are preferred; half-precision ones that are here are taken all the same.

    Raises:
        WeightsError: one of its kinds, saying what to do.
        InsufficientDisk: when a download has no room.
    """
    if source.folder is not None:
        check_embedded(source.name, source.folder)
        layout.check(source.folder)
        names = folder_names(source.folder)
        files = layout.needed(source.folder, names, half=half, where=str(source.folder))
        return hub.Snapshot(source.folder, None, tuple(files))
    assert source.repository is not None
    return hub.fetch(source.repository, source.revision, half=half, progress=progress, layout=layout)


def check_embedded(name: str, folder: Path) -> None:
    """Refuse a package that lacks the weights of what it should hold.

    Raises:
        WeightsMissing: naming it.
    """
    entry = CATALOG.get(name) or IMAGE_MODELS.get(name)
    if entry is not None and entry.folder == folder and not (folder / INDEX).is_file():
        raise WeightsMissing(f"this package lacks the weights of {name}; install it again")


def pull(model: str, progress: Callable[[Progress], None] | None = None) -> Snapshot:
    """Fetch a model or a painter ahead of its use, in the half-precision variant where there is one.

    Args:
        model: Catalog name or hub id; of a folder, only what is there is told.
        progress: Called with each piece that arrives.

    Raises:
        WeightsError: one of its kinds, saying what to do.
        InsufficientDisk: when it has no room.
    """
    if model in IMAGE_MODELS:
        return locate(resolve(model, text_to_image=True), progress=progress, layout=IMAGE_PIPELINE)
    return locate(resolve(model), progress=progress, layout=SVD if model in CATALOG else EITHER)


def inventory() -> list[InstalledModel]:
    """Every model and painter of the catalog, and whether it is on this machine; the network is not asked."""
    return [InstalledModel(entry, held(entry)) for entry in (*CATALOG.values(), *IMAGE_MODELS.values())]


def held(entry: CatalogEntry) -> Snapshot | None:
    """What of a model of the catalog is on this machine, when it is all that is needed."""
    layout: Layout = IMAGE_PIPELINE if entry.text_to_image else SVD
    if entry.repository is not None:
        return hub.cached(entry.repository, entry.revision or "main", half=True, layout=layout)
    assert entry.folder is not None
    try:
        files = layout.needed(entry.folder, folder_names(entry.folder), half=True, where=entry.name)
    except WeightsError:  # a package without its weights
        return None
    return hub.Snapshot(entry.folder, None, tuple(files))

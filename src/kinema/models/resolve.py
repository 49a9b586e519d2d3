"""Resolution of model names to folders or hub repositories, and the installed models of the catalog."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kinema.errors import ModelError, ModelIncomplete, ModelNotFound, NotAnImagePipeline, NotAnSvdModel
from kinema.models import hub
from kinema.models.catalog import CATALOG, IMAGE_MODELS, CatalogEntry, default_parameters
from kinema.models.image_pipeline_files import EITHER, IMAGE_PIPELINE
from kinema.models.model_files import (
    INDEX,
    PICKLES,
    PIPELINE,
    SVD,
    check_configs,
    folder_names,
    read_json,
    single_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.models.hub import Progress, Snapshot
    from kinema.models.model_files import Layout

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Location of a model: a local folder or a hub repository."""

    name: str
    folder: Path | None = None
    repository: str | None = None
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model of the catalog and its snapshot on this machine: one line of `kinema models`."""

    entry: CatalogEntry
    snapshot: Snapshot | None

    @property
    def present(self) -> bool:
        """Whether it can be loaded without network access."""
        return self.snapshot is not None

    @property
    def source(self) -> str:
        """Where it comes from: "embedded" in the package, or "hub"."""
        return "hub" if self.entry.repository else "embedded"

    @property
    def path(self) -> Path | None:
        """Its folder on this machine; None if it is not installed."""
        return self.snapshot.folder if self.snapshot else None

    @property
    def size_bytes(self) -> int | None:
        """Size on disk; the size of the download if it is not installed."""
        return self.snapshot.size_bytes if self.snapshot else self.entry.size_bytes


def resolve(model: str | Path, *, text_to_image: bool | None = False) -> ModelSource:
    """Resolve a catalog name, folder or hub id ("owner/name" or "owner/name@revision"), without opening files.

    Args:
        model: The name, id or folder.
        text_to_image: Whether to resolve a text-to-image model instead of a video model; None allows both.

    Raises:
        ModelNotFound: suggesting the closest name.
        NotAnSvdModel, NotAnImagePipeline: if it is a file, or a catalog name of the other kind.
    """
    name = str(model)
    known = {True: IMAGE_MODELS, False: CATALOG, None: {**CATALOG, **IMAGE_MODELS}}[text_to_image]
    if (entry := known.get(name)) is not None:
        return ModelSource(name, entry.folder, entry.repository, entry.revision or "main")
    if name in CATALOG:
        raise NotAnImagePipeline(
            f"{name} generates videos, not images; the text-to-image models are {', '.join(IMAGE_MODELS)}"
        )
    if name in IMAGE_MODELS:
        raise NotAnSvdModel(f"{name} generates images, not videos; use it as the image model")
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelSource(path.resolve().name, path)
    if path.suffix in (".safetensors", *PICKLES):
        if path.is_file() and not text_to_image:
            raise single_file(path)
        kind = NotAnImagePipeline if text_to_image else NotAnSvdModel
        raise kind(f"{path} is a file; use a folder in diffusers' layout, a catalog name or a hub id")
    if isinstance(model, str) and (found := HUB_ID.fullmatch(name)) and not name.startswith("."):
        return ModelSource(found["repository"], None, found["repository"], found["revision"] or "main")
    near = difflib.get_close_matches(name.lower(), known, n=1)
    suggestion = f"; did you mean {near[0]}?" if near else "."
    raise ModelNotFound(
        f"{'image model' if text_to_image else 'model'} {name!r} not found{suggestion} Use {', '.join(known)}, a hub "
        "id (owner/name) or a folder"
    )


def locate(
    source: ModelSource,
    *,
    half: bool = True,
    progress: Callable[[Progress], None] | None = None,
    layout: Layout = SVD,
) -> Snapshot:
    """Return a model's files on this machine; download them if necessary.

    If `half` is False, float32 weights are preferred, but half-precision weights that are installed are used too.

    Raises:
        ModelError: if the model is unavailable or invalid.
        InsufficientDisk: if there is no disk space for the download.
    """
    if source.folder is not None:
        check_embedded(source.name, source.folder)
        layout.check(source.folder)
        names = folder_names(source.folder)
        files = layout.needed(source.folder, names, half=half, where=str(source.folder))
        return hub.Snapshot(source.folder, None, tuple(files))
    assert source.repository is not None
    return hub.fetch(source.repository, source.revision, half=half, progress=progress, layout=layout)


def check_folder(model: str) -> None:
    """Check the files and configurations of a video or text-to-image model in a folder, without reading weights.

    Other names are accepted unchecked.

    Raises:
        ModelError: the folder does not exist, is no usable model, or has an invalid kinema.json.
    """
    path = Path(model).expanduser()
    if not path.is_dir():
        if model.startswith(("/", ".", "~")):
            raise ModelNotFound(f"the model folder {path} does not exist; check its name")
        return
    snapshot = locate(resolve(path), layout=EITHER)
    if read_json(snapshot.folder / INDEX).get("_class_name") == PIPELINE:
        check_configs(snapshot.folder)
        default_parameters(model)


def model_kind(model: str) -> Literal["video", "image_model"] | None:
    """Return the kind of a model of the catalog or in a folder; None if it is not known without a download."""
    if model in CATALOG:
        return "video"
    if model in IMAGE_MODELS:
        return "image_model"
    try:
        pipeline = read_json(Path(model).expanduser() / INDEX).get("_class_name")
    except ModelError:  # a hub id, or not a model
        return None
    return "video" if pipeline == PIPELINE else "image_model"


def check_embedded(name: str, folder: Path) -> None:
    """Check that the package contains the weights of its embedded model.

    Raises:
        ModelIncomplete: naming the model.
    """
    entry = CATALOG.get(name) or IMAGE_MODELS.get(name)
    if entry is not None and entry.folder == folder and not (folder / INDEX).is_file():
        raise ModelIncomplete(f"the installed kinema package lacks the weights of {name}; reinstall it")


def pull(model: str, progress: Callable[[Progress], None] | None = None) -> Snapshot:
    """Download a model before its use; prefer the half-precision variant.

    Args:
        model: Catalog name or hub id; for a folder, only its files are returned.
        progress: Called with each chunk that arrives.

    Raises:
        ModelError: if the model is unavailable or invalid.
        InsufficientDisk: if there is no disk space for the download.
    """
    layout: Layout = SVD if model in CATALOG else IMAGE_PIPELINE if model in IMAGE_MODELS else EITHER
    return locate(resolve(model, text_to_image=None), progress=progress, layout=layout)


def inventory() -> list[InstalledModel]:
    """Return all models of the catalog with their installed snapshots, without using the network."""
    return [InstalledModel(entry, installed_snapshot(entry)) for entry in (*CATALOG.values(), *IMAGE_MODELS.values())]


def installed_snapshot(entry: CatalogEntry) -> Snapshot | None:
    """Return the snapshot of a catalog model if it is complete on this machine, else None."""
    layout: Layout = IMAGE_PIPELINE if entry.text_to_image else SVD
    if entry.repository is not None:
        return hub.cached(entry.repository, entry.revision or "main", half=True, layout=layout)
    assert entry.folder is not None
    try:
        files = layout.needed(entry.folder, folder_names(entry.folder), half=True, where=entry.name)
    except ModelError:  # a package without its weights
        return None
    return hub.Snapshot(entry.folder, None, tuple(files))

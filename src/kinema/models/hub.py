"""Access to the Hugging Face Hub: downloads, the local cache, and translation of its errors.

huggingface_hub reads HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT from the environment as usual.
"""

from __future__ import annotations

import errno
import logging
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.errors import (
    HubUnreachable,
    InsufficientDisk,
    ModelCorrupt,
    ModelError,
    ModelGated,
    ModelIncomplete,
    ModelNotFound,
)
from kinema.models.catalog import human_bytes
from kinema.models.model_files import INDEX, SVD, Layout, choose_weights, folder_names, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPARE_DISK = 256 * 10**6  # bytes that a download must leave free on the disk


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a download: bytes over all files, and the current file."""

    file: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model's files on this machine: the folder and the commit (None for a local folder)."""

    folder: Path
    revision: str | None
    files: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Total size of the files on disk."""
        return sum((self.folder / name).stat().st_size for name in self.files)


def cached(repository: str, revision: str, *, half: bool, layout: Layout = SVD) -> Snapshot | None:
    """Return the cached snapshot of a repository if it is complete in either precision, else None."""
    storage = cache_folder() / f"models--{repository.replace('/', '--')}"
    reference = storage / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    folder = storage / "snapshots" / commit
    if not folder.is_dir():
        return None
    try:
        files = layout.needed(folder, folder_names(folder), half=half, where=repository)
        _check_shards(folder, layout, half=half)
    except (ModelIncomplete, ModelCorrupt):
        return None
    return Snapshot(folder, commit, tuple(files))


def _check_shards(folder: Path, layout: Layout, *, half: bool) -> None:
    """Check that the folder has every shard that an index lists."""
    for component, stem in layout.stems(folder).items():
        weights = choose_weights(folder_names(folder), component, half=half, stem=stem)
        if weights is not None and weights.index is not None:
            listed = read_json(folder / weights.index).get("weight_map") or {}
            for name in set(listed.values()):
                if not (folder / component / name).is_file():
                    raise ModelIncomplete(f"{folder / component / name} is missing")


def fetch(
    repository: str,
    revision: str,
    *,
    half: bool,
    progress: Callable[[Progress], None] | None = None,
    layout: Layout = SVD,
) -> Snapshot:
    """Return the files of a repository that are needed for loading; download those that are not in the cache.

    A cached commit is used without a network request. For a branch or tag the hub is queried first; the cached
    snapshot is used if the hub can't be reached.

    Args:
        repository: "owner/name".
        revision: A commit, branch or tag.
        half: Whether to prefer the half-precision variant.
        progress: Called with each chunk that arrives.
        layout: The kind of model.

    Raises:
        ModelNotFound, ModelGated, HubUnreachable, ModelIncomplete, NotAnSvdModel, NotAnImagePipeline, InsufficientDisk,
        ModelError
    """
    snapshot = cached(repository, revision, half=half, layout=layout)
    if snapshot is not None and snapshot.revision == revision:
        return snapshot
    try:
        return _download(repository, revision, snapshot, half=half, progress=progress, layout=layout)
    except HubUnreachable:
        if snapshot is None:
            raise
        return snapshot


def _download(
    repository: str,
    revision: str,
    cached_snapshot: Snapshot | None,
    *,
    half: bool,
    progress: Callable[[Progress], None] | None,
    layout: Layout,
) -> Snapshot:
    """Download the missing files one by one, after checking the kind of model and the disk space.

    The cached snapshot is returned, in either precision, if the revision still refers to its commit.
    """
    from huggingface_hub import HfApi, hf_hub_download

    where = f"{repository} (at {revision})"
    with translated(repository, revision), quiet():
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        if cached_snapshot is not None and cached_snapshot.revision == info.sha:
            return cached_snapshot
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
        if INDEX not in sizes:
            raise ModelIncomplete(f"{where} has no {INDEX}, so it is not a model in diffusers' layout")
        download = _DownloadProgress(progress)
        # The index is requested by branch name, so the cache records the branch's commit; the rest by that commit.
        index = hf_hub_download(repository, INDEX, revision=revision, tqdm_class=download.bar())
        folder = Path(index).parent
        layout.check(folder, where)
        wanted = layout.needed(folder, sizes, half=half, where=where)
        missing = [name for name in wanted if not (folder / name).is_file()]
        _check_disk_space(where, sum(sizes[name] for name in missing))
        download.total = sum(sizes[name] for name in wanted)
        download.done = download.total - sum(sizes[name] for name in missing)
        for name in missing:
            download.file = name
            hf_hub_download(repository, name, revision=folder.name, tqdm_class=download.bar())
    return Snapshot(folder, folder.name, tuple(wanted))


class _DownloadProgress:
    """Sums the progress of all files and reports it; shows no progress bar."""

    def __init__(self, progress: Callable[[Progress], None] | None) -> None:
        self.progress, self.file, self.done, self.total = progress, "", 0, 0

    def add(self, count: float | None) -> None:
        """Count `count` more bytes of the current file."""
        self.done += int(count or 0)
        if self.progress is not None and self.total:
            self.progress(Progress(self.file, min(self.done, self.total), self.total))

    def bar(self) -> Any:
        """Return a class with tqdm's interface, for huggingface_hub."""
        download = self

        class Bar:
            total: int | None = None

            def __init__(self, *_args: object, initial: int = 0, **_kwargs: object) -> None:
                download.add(initial)

            def update(self, count: float | None = 1) -> None:
                download.add(count)

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_args: object) -> None:
                pass

            def close(self, *_args: object, **_kwargs: object) -> None:
                pass

            # Ignored: bytes on the network (fewer than the file's if compressed) and display methods.
            update_transfer = set_transfer_postfix_str = set_postfix_str = refresh = set_description = close

        return Bar


def cache_folder() -> Path:
    """Return the folder of huggingface_hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _check_disk_space(where: str, needed: int) -> None:
    cache = cache_folder()
    existing = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed + SPARE_DISK > free:
        raise InsufficientDisk(
            f"{where} needs {human_bytes(needed + SPARE_DISK)} in {cache}, but only {human_bytes(free)} is free; "
            "free disk space, or set HF_HOME to a folder on a larger disk"
        )


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def reachable(timeout: float = 3.0) -> bool:
    """Return whether the hub responds within `timeout` seconds."""
    import httpx
    from huggingface_hub import constants

    if offline():
        return False
    try:
        httpx.head(constants.ENDPOINT, timeout=timeout)
    except httpx.HTTPError:
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' warnings and log messages below ERROR; Kinema reports what matters itself."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def translated(repository: str, revision: str) -> Iterator[None]:
    """Translate the hub's errors to Kinema's, each with a remedy."""
    import httpx
    from huggingface_hub import errors, get_token

    try:
        yield
    except errors.GatedRepoError:
        login = "wait for access" if get_token() else "log in with `hf auth login` or set HF_TOKEN"
        raise ModelGated(
            f"{repository} requires accepting its licence: open https://huggingface.co/{repository}, accept the "
            f"licence, and {login}; then try again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFound(
            f"repository {repository} does not exist on the hub or is private; check the name, or log in with "
            "`hf auth login` or HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFound(
            f"{repository} has no revision {revision!r}; omit the revision, or use an existing commit, branch or tag"
        ) from None
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{repository!r} is not a valid repository name: {error}") from None
    except errors.RemoteEntryNotFoundError as error:
        raise ModelIncomplete(f"a file that {repository} (at {revision}) lists is missing: {error}") from None
    except (
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        errors.HfHubHTTPError,
        httpx.HTTPError,
    ) as error:
        raise _unreachable(repository, error) from None
    except errors.XetDownloadError as error:
        raise HubUnreachable(
            f"the download of {repository} was interrupted ({error}); try again, complete files are kept"
        ) from None
    except OSError as error:
        raise _disk_error(repository, error) from None


def _unreachable(repository: str, error: Exception) -> HubUnreachable | ModelGated:
    """Return the error for a hub that can't be reached or denies access, with a remedy."""
    cause = error.__cause__ or error  # an HTTP error of a file is wrapped in LocalEntryNotFoundError
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return ModelGated(
            f"the hub denied access to {repository} (HTTP {status}): the token is invalid or may not read gated "
            "repositories. Create a token at https://huggingface.co/settings/tokens and set it with `hf auth login` "
            "or HF_TOKEN"
        )
    if offline():
        return HubUnreachable(
            f"{repository} is not downloaded, and HF_HUB_OFFLINE is set; unset it, or run `kinema models pull` on a "
            "machine with network access and copy the cache (HF_HOME)"
        )
    reason = next(filter(None, str(cause).splitlines()), type(cause).__name__)
    return HubUnreachable(
        f"{repository} can't be downloaded: the hub does not respond ({reason}); check the network and any proxy, try "
        "again later, or use a downloaded model (`kinema models` lists them; pocket is always available)"
    )


def _disk_error(repository: str, error: OSError) -> ModelError | InsufficientDisk:
    cache = cache_folder()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientDisk(
            f"the disk of {cache} is full and {repository} is incomplete; free disk space, or set HF_HOME to a folder "
            "on a larger disk, and try again"
        )
    return ModelError(
        f"{repository} can't be written to {cache} ({error}); set HF_HOME to a folder that you can write to"
    )

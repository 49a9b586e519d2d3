"""The Hugging Face hub: what is fetched from it, what its cache already holds, and its errors in our words.

HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and HF_ENDPOINT mean what they mean everywhere: huggingface_hub reads them.
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
    ModelGated,
    ModelNotFound,
    WeightsDamaged,
    WeightsError,
    WeightsMissing,
)
from kinema.models.catalog import human_bytes
from kinema.models.model_files import INDEX, SVD, Layout, choose_weights, folder_names, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPARE_DISK = 256 * 10**6  # left free beside a download, so that the disk is never filled to its last byte


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is: bytes of all files together, and the file that comes now."""

    file: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model's files on this machine: a folder, and the commit they are of (None for a folder of the user's own)."""

    folder: Path
    revision: str | None
    files: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """What the files take on the disk."""
        return sum((self.folder / name).stat().st_size for name in self.files)


def cached(repository: str, revision: str, *, half: bool, layout: Layout = SVD) -> Snapshot | None:
    """What the cache holds of a repository, when it holds all that its layout needs, of whichever precision."""
    storage = cache_folder() / f"models--{repository.replace('/', '--')}"
    reference = storage / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    folder = storage / "snapshots" / commit
    if not folder.is_dir():
        return None
    try:
        files = layout.needed(folder, folder_names(folder), half=half, where=repository)
        _check_shards(folder, layout, half=half)
    except (WeightsMissing, WeightsDamaged):
        return None
    return Snapshot(folder, commit, tuple(files))


def _check_shards(folder: Path, layout: Layout, *, half: bool) -> None:
    """Refuse a folder in which a shard is missing that an index names."""
    for part, stem in layout.stems(folder).items():
        weights = choose_weights(folder_names(folder), part, half=half, stem=stem)
        if weights is not None and weights.index is not None:
            listed = read_json(folder / weights.index).get("weight_map") or {}
            for name in set(listed.values()):
                if not (folder / part / name).is_file():
                    raise WeightsMissing(f"{folder / part / name} is not there")


def fetch(
    repository: str,
    revision: str,
    *,
    half: bool,
    progress: Callable[[Progress], None] | None = None,
    layout: Layout = SVD,
) -> Snapshot:
    """The files of a repository that loading will read, downloaded unless the cache holds them.

    A pinned commit that is in the cache is taken from there without a word to the hub; a branch is asked for first,
    and taken from the cache where the hub can't be reached.

    Args:
        repository: "owner/name".
        revision: A commit, branch or tag.
        half: Whether the half-precision variant is wanted, where there is one.
        progress: Called with each piece that arrives.
        layout: What kind of model is wanted.

    Raises:
        ModelNotFound, ModelGated, HubUnreachable, WeightsMissing, NotAnSvdModel, NotAnImagePipeline, InsufficientDisk,
        WeightsError
    """
    held = cached(repository, revision, half=half, layout=layout)
    if held is not None and held.revision == revision:
        return held
    try:
        return _download(repository, revision, held, half=half, progress=progress, layout=layout)
    except HubUnreachable:
        if held is None:
            raise
        return held


def _download(
    repository: str,
    revision: str,
    held: Snapshot | None,
    *,
    half: bool,
    progress: Callable[[Progress], None] | None,
    layout: Layout,
) -> Snapshot:
    """Fetch what is not there yet, file by file, once it is seen to be what is wanted and to fit on the disk.

    What is held is enough, in whichever precision, as long as the revision still stands for its commit.
    """
    from huggingface_hub import HfApi, hf_hub_download

    where = f"{repository} (at {revision})"
    with translated(repository, revision), quiet():
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        if held is not None and held.revision == info.sha:
            return held
        sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
        if INDEX not in sizes:
            raise WeightsMissing(f"{where} has no {INDEX}, so it is no model in diffusers' layout")
        meter = _DownloadProgress(progress)
        # By the branch's name, so that the cache notes which commit it stands for; all others by that commit.
        index = hf_hub_download(repository, INDEX, revision=revision, tqdm_class=meter.bar())
        folder = Path(index).parent
        layout.check(folder, where)
        wanted = layout.needed(folder, sizes, half=half, where=where)
        missing = [name for name in wanted if not (folder / name).is_file()]
        _check_room(where, sum(sizes[name] for name in missing))
        meter.total = sum(sizes[name] for name in wanted)
        meter.done = meter.total - sum(sizes[name] for name in missing)
        for name in missing:
            meter.file = name
            hf_hub_download(repository, name, revision=folder.name, tqdm_class=meter.bar())
    return Snapshot(folder, folder.name, tuple(wanted))


class _DownloadProgress:
    """Adds up what all files' progress bars are told, and passes it on; it draws nothing."""

    def __init__(self, progress: Callable[[Progress], None] | None) -> None:
        self.progress, self.file, self.done, self.total = progress, "", 0, 0

    def add(self, count: float | None) -> None:
        """`count` more bytes of the present file."""
        self.done += int(count or 0)
        if self.progress is not None and self.total:
            self.progress(Progress(self.file, min(self.done, self.total), self.total))

    def bar(self) -> Any:
        """The class that huggingface_hub takes for a progress bar."""
        meter = self

        class Bar:
            total: int | None = None

            def __init__(self, *_args: object, initial: int = 0, **_kwargs: object) -> None:
                meter.add(initial)

            def update(self, count: float | None = 1) -> None:
                meter.add(count)

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_args: object) -> None:
                pass

            def close(self, *_args: object, **_kwargs: object) -> None:
                pass

            # Bytes on the network, which are fewer than those of the file where the hub packs them, and decoration.
            update_transfer = set_transfer_postfix_str = set_postfix_str = refresh = set_description = close

        return Bar


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it fetches."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _check_room(where: str, needed: int) -> None:
    cache = cache_folder()
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed + SPARE_DISK > free:
        raise InsufficientDisk(
            f"{where} needs {human_bytes(needed)} more in {cache}, and {human_bytes(free)} are free there: "
            "free some, or set HF_HOME to a folder on a larger disk"
        )


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def reachable(timeout: float = 3.0) -> bool:
    """Whether the hub answers at all, within `timeout` seconds."""
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
    """Keep the libraries' own notices off the terminal: what a person must know, Kinema says itself."""
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
    """The hub's errors as ours, each with what to do about it."""
    import httpx
    from huggingface_hub import errors, get_token

    try:
        yield
    except errors.GatedRepoError:
        login = "your account must be let in" if get_token() else "log in by `hf auth login`, or set HF_TOKEN"
        raise ModelGated(
            f"{repository} asks for its licence to be accepted: open https://huggingface.co/{repository}, accept it, "
            f"and {login}; then try again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFound(
            f"the hub has no {repository}, or it is private: check the name, or log in by `hf auth login` or HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFound(
            f"{repository} has no revision {revision!r}: leave it out, or name a commit or tag"
        ) from None
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{repository!r} can't be a repository: {error}") from None
    except errors.RemoteEntryNotFoundError as error:
        raise WeightsMissing(f"{repository} (at {revision}) lacks a file that it lists: {error}") from None
    except (
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        errors.HfHubHTTPError,
        httpx.HTTPError,
    ) as error:
        raise _unreachable(repository, error) from None
    except errors.XetDownloadError as error:
        raise HubUnreachable(
            f"the download of {repository} broke off ({error}): try again, what is whole is kept"
        ) from None
    except OSError as error:
        raise _disk_fault(repository, error) from None


def _unreachable(repository: str, error: Exception) -> HubUnreachable | ModelGated:
    """Why the hub can't be asked, and how else the model can come here."""
    cause = error.__cause__ or error  # a file's own refusal arrives wrapped in "not in the cache either"
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status in (401, 403):
        return ModelGated(
            f"the hub refuses {repository} to your token (HTTP {status}): it is wrong, or may not read gated "
            "repositories. Make another at https://huggingface.co/settings/tokens, and give it by `hf auth login` or "
            "HF_TOKEN"
        )
    if offline():
        return HubUnreachable(
            f"{repository} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: unset it, or run "
            "`kinema models pull` where there is a network and copy the cache (HF_HOME)"
        )
    reason = next(filter(None, str(cause).splitlines()), type(cause).__name__)
    return HubUnreachable(
        f"{repository} can't be fetched, for the hub does not answer ({reason}): check the network and any proxy, try "
        "again later, or use a model that is here (`kinema models` tells; pocket always is)"
    )


def _disk_fault(repository: str, error: OSError) -> WeightsError | InsufficientDisk:
    cache = cache_folder()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientDisk(
            f"the disk of {cache} is full, and {repository} is not whole: free some room, or set HF_HOME to a folder "
            "on a larger disk, and try again"
        )
    return WeightsError(f"{repository} can't be written to {cache} ({error}): set HF_HOME to a folder of your own")

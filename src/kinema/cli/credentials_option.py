"""The option that signs videos with content credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kinema.cli.options import OUTPUT_PANEL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kinema.media.credentials.signing_keys import SigningKeys
    from kinema.settings import Settings

Credentials = Annotated[
    bool | None,
    typer.Option(
        "--credentials/--no-credentials",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
        help="Sign the video with content credentials (C2PA), which say that and how it was generated. Those of a webm "
        "are in a file beside it, .c2pa. Signed files differ in each run. [dim]Unset: KINEMA_CREDENTIALS, by default "
        "off.[/dim]",
    ),
]


def on_off(flag: bool | None) -> str | None:  # noqa: FBT001 - the value of an option
    """Return the value of a setting for that of an option, such as --credentials; None if it was not given."""
    return None if flag is None else "on" if flag else "off"


def keys_to_sign(settings: Settings) -> SigningKeys | None:
    """Return what signs the videos of a command, or None if they are not signed.

    Raises:
        InvalidRequest, CredentialsError: the keys can't be used.
    """
    if settings.credentials != "on":
        return None
    from kinema.media.credentials.file_signer import usable_keys

    return usable_keys(settings)


def sidecars(paths: Sequence[Path], keys: SigningKeys | None) -> list[Path]:
    """Return the paths of the `.c2pa` files of videos whose formats can't contain credentials, written or removed.

    Raises:
        InvalidRequest: a video can't be signed.
    """
    from kinema.media.video_writer import check_signable, sidecar_path

    for path in paths if keys is not None else ():
        check_signable(path)
    return [sidecar_path(path) for path in paths if path.suffix.lower() == ".webm"]

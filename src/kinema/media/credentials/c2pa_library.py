"""The c2pa library with the settings that Kinema uses: it opens no connection that a file asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kinema.errors import CredentialsError
from kinema.extras import install_remedy

if TYPE_CHECKING:
    from types import ModuleType

# By default the library fetches credentials from any URL in a file, and asks the authorities of certificates.
_SETTINGS: dict[str, Any] = {
    "version": 1,
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
# Extended key usages of certificates that sign: emailProtection, documentSigning, and C2PA's own claimSigning. By
# default the library accepts the first alone.
_SIGNING_USAGES = "1.3.6.1.5.5.7.3.4\n1.3.6.1.5.5.7.3.36\n1.3.6.1.4.1.62558.2.1\n"
HEIF_BRANDS = {b"avif": "image/avif", b"avis": "image/avif", b"heic": "image/heic", b"heix": "image/heic"}


def c2pa_library(alternative: str = "") -> ModuleType:
    """Return the module `c2pa`.

    Args:
        alternative: What can be done instead of installing it, for the error: "… or ".

    Raises:
        CredentialsError: it is not installed.
    """
    try:
        import c2pa
    except (ImportError, OSError) as error:
        raise CredentialsError(
            f"content credentials need the package c2pa-python, which can't be used here ({error}); "
            f"{alternative}{install_remedy('trust')}"
        ) from None
    module: ModuleType = c2pa
    return module


def context(anchors: str = "") -> Any:
    """Return a context in which signatures below the certificates `anchors` (PEM) are trusted."""
    trust = {"trust_config": _SIGNING_USAGES} | ({"user_anchors": anchors} if anchors else {})
    return c2pa_library().Context.from_dict(_SETTINGS | {"trust": trust})


def media_type(head: bytes) -> str | None:
    """Return the media type of a file of which C2PA can contain credentials, by its first bytes; else None."""
    if head.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG"):
        return "image/png"
    if head.startswith(b"GIF8"):
        return "image/gif"
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"AVI ": "video/avi"}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return HEIF_BRANDS.get(head[8:12], "video/mp4")
    return None

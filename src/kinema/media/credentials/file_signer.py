"""Signing of video files: what the credentials of a video claim, and where they are stored."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kinema.errors import CredentialsError
from kinema.media.credentials.c2pa_library import c2pa_library, context, media_type
from kinema.media.credentials.signing_keys import signing_keys
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.media.credentials.signing_keys import SigningKeys
    from kinema.recipe import Recipe
    from kinema.settings import Settings

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
RECIPE, MODEL = "kinema.recipe", "kinema.model"
_CERTIFICATES = (
    "use a KINEMA_C2PA_CERT as C2PA demands: not that of an authority, with the key usage digitalSignature and one of "
    "the extended key usages emailProtection, documentSigning and claimSigning"
)


@dataclass(frozen=True, slots=True)
class SignedFile:
    """A signed video. If its format can't contain credentials (webm), `sidecar` has them and `content` is unchanged."""

    content: bytes
    sidecar: bytes | None = None


@dataclass(frozen=True, slots=True)
class FileSigner:
    """Signs the files of one video.

    Attributes:
        keys: What signs.
        images: The files of the input images; their own credentials are kept.
    """

    keys: SigningKeys
    images: Sequence[bytes] = field(default=(), repr=False)

    def sign(self, content: bytes, recipe: Recipe | None, title: str) -> SignedFile:
        """Sign an mp4, webp, gif or webm. The bytes differ each time.

        Args:
            content: The file.
            recipe: How the video was made; None if that is not known.
            title: The name of the file.

        Raises:
            CredentialsError: it can't be signed.
        """
        c2pa = c2pa_library()
        kind = media_type(content[:16])
        signed = io.BytesIO()
        try:
            builder, embedded = self._builder(claim(recipe, title)), kind is not None
            if not embedded:
                builder.set_no_embed()
            manifest = builder.sign(self._signer(), kind or "video/webm", io.BytesIO(content), signed)
        except c2pa.C2paError as error:
            self._check_without_time_stamp(content, recipe, title, error)
            self.keys.check_dates()
            remedy = _CERTIFICATES if "certificate" in _reason(error) else "see docs/how-to/own-certificate.md"
            raise CredentialsError(
                f"the video can't be signed with content credentials ({_reason(error)}); {remedy}"
            ) from None
        return SignedFile(signed.getvalue()) if embedded else SignedFile(content, bytes(manifest))

    def _check_without_time_stamp(self, content: bytes, recipe: Recipe | None, title: str, error: Exception) -> None:
        """Find out whether the time-stamp authority, if there is one, is the reason why signing failed with `error`.

        Raises:
            CredentialsError: it is, or the certificate is.
        """
        url = self.keys.timestamp_url
        if url is None:
            return
        from httpx import URL

        from kinema.media.fetch import redacted

        replace(self, keys=replace(self.keys, timestamp_url=None)).sign(content, recipe, title)
        raise CredentialsError(
            f"the time-stamp authority {redacted(URL(url))} gave no valid time stamp ({_reason(error)}); try again "
            "later, or remove KINEMA_C2PA_TIMESTAMP_URL"
        ) from None

    def _signer(self) -> Any:
        c2pa = c2pa_library()
        keys = self.keys
        info = c2pa.C2paSignerInfo(keys.algorithm, keys.chain.encode(), keys.key.encode(), keys.timestamp_url)
        return c2pa.Signer.from_info(info)

    def _builder(self, definition: dict[str, Any]) -> Any:
        """Return a builder with the input images as ingredients."""
        c2pa = c2pa_library()
        names = [f"image-{index}" for index, _ in enumerate(self.images, 1)]
        if names:
            definition["assertions"][0]["data"]["actions"][0]["parameters"] = {"ingredientIds": names}
        builder = c2pa.Builder(definition, context())
        for name, image in zip(names, self.images, strict=True):
            ingredient = {"title": "input image", "relationship": "inputTo", "label": name, "instance_id": name}
            kind = media_type(image[:16]) or "application/octet-stream"
            try:
                builder.add_ingredient(json.dumps(ingredient), kind, io.BytesIO(image))
            except c2pa.C2paError:  # an image that Pillow can read, but the library can't
                builder.add_ingredient(json.dumps(ingredient), "application/octet-stream", io.BytesIO(image))
        return builder


def claim(recipe: Recipe | None, title: str) -> dict[str, Any]:
    """Return the definition of a video's manifest: created by a trained model, with Kinema, and by which recipe."""
    generator = {"name": "Kinema", "version": own_version()}
    action = {"action": "c2pa.created", "digitalSourceType": GENERATED, "softwareAgent": generator}
    assertions: list[dict[str, Any]] = [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}]
    if recipe is not None:
        facts = recipe.model_dump(mode="json")
        assertions += [
            {"label": MODEL, "kind": "Json", "data": facts["model"]},
            {"label": RECIPE, "kind": "Json", "data": facts},
        ]
    return {"claim_generator_info": [generator], "title": title, "assertions": assertions}


def usable_keys(settings: Settings) -> SigningKeys:
    """Return what signs, after a trial with a certificate of the owner.

    Raises:
        InvalidRequest, CredentialsError: the keys can't be used, or c2pa-python is not installed.
    """
    c2pa_library("set KINEMA_CREDENTIALS=off, or ")
    keys = signing_keys(settings)
    if settings.c2pa_cert is not None:
        check_signing(keys)
    return keys


def check_signing(keys: SigningKeys) -> None:
    """Sign a small image with a certificate of the owner, to find out whether C2PA accepts it.

    The time-stamp authority is not asked.

    Raises:
        CredentialsError: the certificate can't be used.
    """
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    FileSigner(replace(keys, timestamp_url=None)).sign(data.getvalue(), None, "trial")


def _reason(error: Exception) -> str:
    """Return the library's text without its wrapping, and without a URL, which may contain a password."""
    text = str(error).removeprefix("Signature: ")
    text = re.sub(r"^internal error \((.*)\)$", r"\1", text)
    return re.sub(r" for url \(.*\)", "", text.removeprefix("an error occurred from the underlying http resolver: "))

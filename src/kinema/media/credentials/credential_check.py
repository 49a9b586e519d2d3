"""Reading and checking of the content credentials of any file."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from kinema.media.credentials.c2pa_library import c2pa_library, context, media_type
from kinema.media.credentials.file_signer import GENERATED, RECIPE
from kinema.messages import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

State = Literal["trusted", "valid", "tampered", "invalid", "elsewhere", "none"]
Fault = Literal["expired", "certificate", "time_stamp"]
# Faults of the certificate or time stamp, which say nothing about the file.
_SIGNER_FAULTS = ("signingCredential.", "timeStamp.", "claimSignature.outsideValidity")


class Ingredient(BaseModel):
    """An input of a file, as its credentials say: an input image, whose own credentials may be among them."""

    model_config = ConfigDict(frozen=True)

    title: str | None
    credentials: Literal["valid", "invalid", "none"]


class CredentialCheck(BaseModel):
    """What the credentials of a file say, and whether that can be believed.

    Attributes:
        state: "trusted": unchanged since it was signed, by a trusted certificate. "valid": unchanged, but anyone can
            have signed it. "tampered": the file or its credentials were changed. "invalid": for another reason, as
            `problems` say. "elsewhere": they are at a URL, which is not opened. "none": there are none.
        signer: Name in the certificate.
        generator: The program that made the file, and its version.
        signed_at: When a trusted time-stamp authority saw the signature, or None. Anyone can add the time stamp of
            another authority to a file.
        generated: Whether they claim that a trained model made the file.
        source_types: What they claim about its making, as the IPTC's names of digital source types, such as
            "trainedAlgorithmicMedia" and "digitalCapture" (a camera).
        title: The name that the file had.
        ingredients: Its inputs.
        recipe: Kinema's recipe in the claim; not in the JSON of this, which others complete.
        serial: The serial number of the certificate, in decimal digits; not in the JSON.
        problems: Codes of C2PA for what is wrong.
        fault: What makes them "invalid": a certificate that has expired or is not valid yet, another fault of it, or of
            the time stamp.
    """

    model_config = ConfigDict(frozen=True)

    state: State
    signer: str | None = None
    generator: str | None = None
    signed_at: str | None = None
    generated: bool = False
    source_types: tuple[str, ...] = ()
    title: str | None = None
    ingredients: tuple[Ingredient, ...] = ()
    recipe: dict[str, Any] | None = Field(default=None, exclude=True)
    serial: str | None = Field(default=None, exclude=True)
    problems: tuple[str, ...] = ()
    fault: Fault | None = None


def check_credentials(content: bytes | BinaryIO, sidecar: bytes | None = None, anchors: str = "") -> CredentialCheck:
    """Check the credentials in a file, or those in a `.c2pa` file beside it.

    Args:
        content: The file, which is read in pieces if it is open.
        sidecar: The `.c2pa` file, which is used if the file itself contains no credentials.
        anchors: Trusted certificates as PEM.

    Raises:
        CredentialsError: c2pa-python is not installed.
    """
    c2pa = c2pa_library()
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    kind = media_type(file.read(16))
    file.seek(0)
    settings = context(anchors)
    try:
        reader = None if kind is None else c2pa.Reader.try_create(kind, file, context=settings)
        if reader is None and sidecar is not None:
            file.seek(0)
            reader = c2pa.Reader(kind or "video/webm", file, manifest_data=sidecar, context=settings)
    except c2pa.C2paError as error:
        return _unreadable(str(error))
    if reader is None:
        return CredentialCheck(state="none")
    with reader:
        return _result(json.loads(reader.json()))


def _unreadable(reason: str) -> CredentialCheck:
    """Return the result for credentials that can't be read."""
    kind, _, text = reason.partition(": ")
    if kind in ("Remote", "RemoteManifest"):
        return CredentialCheck(state="elsewhere", problems=(printable(text),))
    if kind in ("ManifestNotFound", "NotSupported"):
        return CredentialCheck(state="none")
    return CredentialCheck(state="tampered", problems=(printable(reason),))


def _result(store: dict[str, Any]) -> CredentialCheck:
    """Return the result for the JSON of a reader."""
    manifest: dict[str, Any] = store.get("manifests", {}).get(store.get("active_manifest"), {})
    results = store.get("validation_results", {}).get("activeManifest", {})
    successes, failures = ([item["code"] for item in results.get(kind, [])] for kind in ("success", "failure"))
    signature = manifest.get("signature_info") or {}
    generators = manifest.get("claim_generator_info") or [{}]
    assertions = {item["label"]: item.get("data") for item in manifest.get("assertions", [])}
    recipe = assertions.get(RECIPE)
    state = _state(store.get("validation_state"), failures)
    sources = [source for action in _actions(assertions) if isinstance(source := action.get("digitalSourceType"), str)]
    return CredentialCheck(
        state=state,
        signer=_text(signature.get("common_name") or signature.get("issuer")),
        generator=_text(" ".join(filter(None, [generators[0].get("name"), generators[0].get("version")]))),
        signed_at=_text(signature.get("time")) if "timeStamp.trusted" in successes else None,
        generated=GENERATED in sources,
        source_types=tuple(dict.fromkeys(printable(source.rpartition("/")[2]) for source in sources))[:16],
        title=_text(manifest.get("title")),
        ingredients=tuple(_ingredient(item) for item in manifest.get("ingredients", [])[:16]),
        recipe=recipe if isinstance(recipe, dict) and isinstance(recipe.get("request"), dict) else None,
        serial=_text(signature.get("cert_serial_number")),
        problems=tuple(dict.fromkeys(failures))[:16],
        fault=_fault(failures) if state == "invalid" else None,
    )


def _state(validation: str | None, failures: list[str]) -> State:
    if validation == "Trusted":
        return "trusted"
    if validation == "Valid":
        return "valid"
    return "invalid" if failures and all(code.startswith(_SIGNER_FAULTS) for code in failures) else "tampered"


def _fault(failures: list[str]) -> Fault:
    if any(code.endswith((".expired", ".outsideValidity")) for code in failures if not code.startswith("timeStamp.")):
        return "expired"
    is_of_certificate = any(code.startswith("signing") and not code.endswith(".untrusted") for code in failures)
    return (
        "time_stamp" if not is_of_certificate and any(code.startswith("time") for code in failures) else "certificate"
    )


def _actions(assertions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for label, data in assertions.items():
        if label.startswith("c2pa.actions") and isinstance(data, dict):
            yield from (action for action in data.get("actions", []) if isinstance(action, dict))


def _ingredient(item: dict[str, Any]) -> Ingredient:
    found = item.get("validation_results")
    if not item.get("active_manifest") or found is None:
        return Ingredient(title=_text(item.get("title")), credentials="none")
    failures = [fault["code"] for fault in found.get("activeManifest", {}).get("failure", [])]
    is_valid = all(code == "signingCredential.untrusted" for code in failures)
    return Ingredient(title=_text(item.get("title")), credentials="valid" if is_valid else "invalid")


def _text(value: object) -> str | None:
    return printable(value) if isinstance(value, str) and value else None

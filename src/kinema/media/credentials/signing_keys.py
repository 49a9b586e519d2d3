"""The key and the certificates with which videos are signed: made at first use, or the owner's.

The data folder's `credentials` has the certificate authority (CA) of this installation and its current key:

    ca-key.pem    private key of the CA
    ca.pem        certificate of the CA, for those who verify; `ca-*.pem` are certificates of earlier ones
    signer.pem    private key and certificate that sign, replaced every year

Only the owner can read the folder. It appears whole or not at all, so several processes may create it at once.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kinema.errors import CredentialsError, InvalidRequest
from kinema.media.credentials.certificates import (
    Certificate,
    PrivateKey,
    algorithm,
    check_dates,
    expiry_warning,
    make_ca,
    make_signer,
    pem_of,
    public_bytes,
    read_certificates,
    read_key,
)
from kinema.partial_files import PREFIX, partial_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kinema.settings import Settings

FOLDER = "credentials"
CA_KEY, CA_CERTIFICATE, SIGNER = "ca-key.pem", "ca.pem", "signer.pem"
# A self-made key signs for a year. Its certificate is valid longer, so that files without a time stamp stay valid.
RENEW_AFTER = datetime.timedelta(days=365)
# An incomplete new folder that is older was left by a process that died.
LEFT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """What signs a file.

    Attributes:
        algorithm: Such as "es256", by the kind of the key.
        chain: The certificates as PEM, that of the key first.
        key: The private key as PEM.
        ca: The certificate that has to be trusted by those who verify, as PEM; None if the chain does not contain it.
        id: 16 hexadecimal digits that identify the certificate, or the CA of self-made keys.
        path: The file with the certificate.
        renewal: What to do when the certificate expires.
        timestamp_url: Address of a time-stamp authority (RFC 3161), or None.
    """

    algorithm: str
    chain: str = field(repr=False)
    key: str = field(repr=False)
    ca: str | None = field(repr=False)
    id: str
    path: Path
    renewal: str = field(repr=False)
    timestamp_url: str | None = field(default=None, repr=False)

    def check_dates(self) -> None:
        """Check that the certificate is valid now.

        Raises:
            CredentialsError: it has expired since it was read, or the clock changed.
        """
        check_dates(self.certificate, self.path, self.renewal)

    @property
    def has_expired(self) -> bool:
        """Whether the certificate has expired since it was read."""
        return datetime.datetime.now(datetime.UTC) > self.certificate.not_valid_after_utc

    @property
    def certificate(self) -> Certificate:
        """The certificate of the key."""
        return read_certificates(self.chain.encode(), self.path, self.renewal)[0]


def signing_keys(settings: Settings) -> SigningKeys:
    """Return the keys of KINEMA_C2PA_CERT and KINEMA_C2PA_KEY, else those of the data folder, created at first use.

    Raises:
        InvalidRequest: only one of the two settings is set.
        CredentialsError: a file is missing, unreadable or invalid, a certificate has expired, or the folder can't be
            written to.
    """
    if (settings.c2pa_cert is None) != (settings.c2pa_key is None):
        missing, given = ("key", "cert") if settings.c2pa_key is None else ("cert", "key")
        raise InvalidRequest(
            f"KINEMA_C2PA_{given.upper()} is set without KINEMA_C2PA_{missing.upper()}; set both, or none to use a "
            "certificate that Kinema makes",
            f"c2pa_{missing}",
        )
    url = None if settings.c2pa_timestamp_url is None else settings.c2pa_timestamp_url.get_secret_value()
    if settings.c2pa_cert is None or settings.c2pa_key is None:
        return _self_made(credentials_folder(settings), url)
    path, key_path = settings.c2pa_cert.expanduser(), settings.c2pa_key.expanduser()
    chain = _certificates(path, "KINEMA_C2PA_CERT")
    key = read_key(
        _read(key_path, "KINEMA_C2PA_KEY"), key_path, "use a file of an EC, Ed25519 or RSA key for KINEMA_C2PA_KEY"
    )
    if public_bytes(key) != public_bytes(chain[0]):
        raise CredentialsError(
            f"the key in {key_path} does not belong to the first certificate in {path}; use its own key, and put its "
            "certificate before those of the authorities"
        )
    check_dates(chain[0], path, _RENEWAL)
    ca = pem_of(chain[-1]) if len(chain) > 1 else None
    return _keys(chain, path, key, key_path, ca, url, _RENEWAL)


def certificate_file(settings: Settings) -> Path | None:
    """Return the file with the certificate that signs; None if it is still to be made."""
    if settings.c2pa_cert is not None or settings.c2pa_key is not None:
        return settings.c2pa_cert or settings.c2pa_key
    folder = credentials_folder(settings)
    return folder / SIGNER if folder.is_dir() and any(folder.iterdir()) else None


def certificate_warning(settings: Settings) -> str | None:
    """Return a warning if the certificate that signs, or the CA of a self-made one, expires soon. Creates nothing.

    Raises:
        InvalidRequest, CredentialsError: as `signing_keys`.
    """
    if settings.c2pa_cert is not None or settings.c2pa_key is not None:
        keys = signing_keys(settings)
        return expiry_warning(keys.certificate, keys.path, keys.renewal)
    if certificate_file(settings) is None:
        return None
    folder = credentials_folder(settings)
    ca = _authority(folder)
    if (warning := expiry_warning(ca, folder / CA_CERTIFICATE, _NEW_CA)) is not None:
        return warning
    signer = _signer_certificate(folder)
    return None if signer is None else expiry_warning(signer, folder / SIGNER, _NEW_SIGNER)


def trust_anchors(settings: Settings, trust: Path | None = None) -> str:
    """Return the certificates whose signatures count as trusted, as PEM: this installation's, and KINEMA_C2PA_TRUST.

    Creates nothing.

    Args:
        settings: The settings.
        trust: A file of further certificates, from the option --trust.

    Raises:
        CredentialsError: a file can't be read or is invalid.
    """
    folder = credentials_folder(settings)
    found = [path for path in sorted(folder.glob("ca*.pem")) if path.name != CA_KEY] if folder.is_dir() else []
    anchors = []
    for path in found:
        remedy = _NEW_CA if path.name == CA_CERTIFICATE else "copy it again, or delete it to trust its CA no more"
        anchors += read_certificates(_read_own(path, remedy), path, remedy)
    if settings.c2pa_cert is not None:
        anchors += _certificates(settings.c2pa_cert.expanduser(), "KINEMA_C2PA_CERT")[1:]
    if settings.c2pa_trust is not None:
        anchors += _certificates(settings.c2pa_trust.expanduser(), "KINEMA_C2PA_TRUST")
    if trust is not None:
        anchors += _certificates(trust, "--trust")
    return "".join(dict.fromkeys(map(pem_of, anchors)))


def credentials_folder(settings: Settings) -> Path:
    """Return the folder of self-made keys, which may not exist."""
    return settings.data_dir.expanduser() / FOLDER


def _self_made(folder: Path, timestamp_url: str | None) -> SigningKeys:
    """Return the keys in the folder; create or renew them if necessary."""
    with _folder_errors(folder):
        if not folder.is_dir() or not any(folder.iterdir()):
            _create(folder)
    ca, path = _authority(folder), folder / SIGNER
    if _signer_certificate(folder) is None:
        key = read_key(_read_own(folder / CA_KEY, _NEW_CA), folder / CA_KEY, _NEW_CA)
        with _folder_errors(folder):
            _replace(path, _signer_file(ca, key))
    content = _read_own(path, _NEW_SIGNER)
    chain = read_certificates(content, path, _NEW_SIGNER)
    check_dates(chain[0], path, _NEW_SIGNER)
    key = read_key(content, path, _NEW_SIGNER)
    if public_bytes(key) != public_bytes(chain[0]):
        raise CredentialsError(f"the key in {path} does not belong to its certificate; {_NEW_SIGNER}")
    keys = _keys([*chain, ca], path, key, path, pem_of(ca), timestamp_url, _NEW_SIGNER)
    return replace(keys, id=_identity(pem_of(ca)))


def _authority(folder: Path) -> Certificate:
    """Return the certificate of the CA in a folder of self-made keys.

    Raises:
        CredentialsError: it is missing, invalid or expired.
    """
    path = folder / CA_CERTIFICATE
    ca = read_certificates(_read_own(path, _NEW_CA), path, _NEW_CA)[0]
    check_dates(ca, path, _NEW_CA)
    return ca


def _signer_certificate(folder: Path) -> Certificate | None:
    """Return the certificate that signs in a folder of self-made keys; None if it is to be made or replaced.

    Raises:
        CredentialsError: it is invalid.
    """
    path = folder / SIGNER
    if not path.exists():
        return None
    certificate = read_certificates(_read_own(path, _NEW_SIGNER), path, _NEW_SIGNER)[0]
    return None if _age(certificate) > RENEW_AFTER else certificate


_RENEWAL = "renew it (a running server needs no restart)"
_NEW_SIGNER = "delete that file: Kinema makes a new one with the same CA, and files that are signed already stay valid"
_NEW_CA = (
    "restore its folder from a backup, or move the folder away and start again: Kinema then makes a new CA, whose "
    "ca.pem has to be given to those who verify; files of the old one are no longer trusted"
)


def _keys(
    chain: list[Certificate],
    path: Path,
    key: PrivateKey,
    key_path: Path,
    ca: str | None,
    timestamp_url: str | None,
    renewal: str,
) -> SigningKeys:
    texts = [pem_of(certificate) for certificate in chain]
    kind = algorithm(key, key_path)
    return SigningKeys(kind, "".join(texts), pem_of(key), ca, _identity(texts[0]), path, renewal, timestamp_url)


def _identity(certificate: str) -> str:
    return hashlib.sha256(certificate.encode()).hexdigest()[:16]


def _create(folder: Path) -> None:
    """Create the folder with a new CA and key; another process's folder is kept."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in folder.parent.glob(f"{PREFIX}????????-{FOLDER}"):
        with contextlib.suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    new = partial_path(folder, f"-{FOLDER}")
    new.mkdir(mode=0o700)
    try:
        ca, ca_key = make_ca()
        _write(new / CA_KEY, pem_of(ca_key))
        _write(new / CA_CERTIFICATE, pem_of(ca))
        _write(new / SIGNER, _signer_file(ca, ca_key))
        new.rename(folder)
    except OSError:
        if not (folder / SIGNER).exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _signer_file(ca: Certificate, ca_key: PrivateKey) -> str:
    certificate, key = make_signer(ca, ca_key)
    return pem_of(key) + pem_of(certificate)


def _age(certificate: Certificate) -> datetime.timedelta:
    return datetime.datetime.now(datetime.UTC) - certificate.not_valid_before_utc


def _replace(path: Path, text: str) -> None:
    partial = partial_path(path)
    try:
        _write(partial, text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, setting: str) -> bytes:
    """Return the content of a file that a setting names.

    Raises:
        CredentialsError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(
            f"{path} can't be read ({error.strerror}); check {setting}, and the permissions of the file"
        ) from None


def _certificates(path: Path, setting: str) -> list[Certificate]:
    """Return the certificates in a file that a setting or option names.

    Raises:
        CredentialsError: it can't be read, or has none.
    """
    return read_certificates(_read(path, setting), path, f"use a file of certificates for {setting}")


def _read_own(path: Path, remedy: str) -> bytes:
    """Return the content of a self-made file.

    Raises:
        CredentialsError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"{path} can't be read ({error.strerror}); {remedy}") from None


@contextlib.contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CredentialsError(
            f"the keys for content credentials can't be stored in {folder} ({error.strerror}); make the folder "
            "writable, set KINEMA_DATA_DIR, or use KINEMA_C2PA_CERT and KINEMA_C2PA_KEY"
        ) from None

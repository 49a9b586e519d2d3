"""Certificates and keys for content credentials: create, read and check them. Everything is PEM."""

from __future__ import annotations

import datetime
import secrets
from typing import TYPE_CHECKING, TypeAlias

from kinema.errors import CredentialsError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate as X509Certificate
    from cryptography.x509 import CertificateBuilder, Name

Certificate: TypeAlias = "X509Certificate"
PrivateKey: TypeAlias = "PrivateKeyTypes"

CA_YEARS, SIGNER_YEARS = 30, 10
WARN_BEFORE = datetime.timedelta(days=30)
_YEAR = datetime.timedelta(days=365.25)
# For clocks that are a little behind.
_SLACK = datetime.timedelta(hours=1)


def make_ca() -> tuple[Certificate, PrivateKey]:
    """Return the certificate and key of a new certificate authority."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Kinema CA {secrets.token_hex(4)}")
    return _signed(_builder(name, name, key.public_key(), CA_YEARS, is_ca=True), key), key


def make_signer(ca: Certificate, ca_key: PrivateKey) -> tuple[Certificate, PrivateKey]:
    """Return a new certificate, signed by the CA and as the C2PA specification demands, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    latest = ca.not_valid_after_utc
    builder = _builder(_name("Kinema"), ca.subject, key.public_key(), SIGNER_YEARS, latest, is_ca=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return _signed(builder, ca_key), key


def read_certificates(content: bytes, path: Path, remedy: str) -> list[Certificate]:
    """Return the certificates in a PEM file, at least one.

    Raises:
        CredentialsError: there is none, or one is damaged; `remedy` says what to do.
    """
    from cryptography import x509

    try:
        return list(x509.load_pem_x509_certificates(content))
    except ValueError:
        found = _instead(content, "certificate")
        raise CredentialsError(f"{path} has no valid certificate in PEM{found}; {remedy}") from None


def read_key(content: bytes, path: Path, remedy: str) -> PrivateKey:
    """Return the private key in a PEM file.

    Raises:
        CredentialsError: there is none, or it is encrypted; `remedy` says what to do.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(content, None)
    except TypeError:
        raise CredentialsError(f"the key in {path} is encrypted; store it without a password, mode 600") from None
    except (ValueError, UnsupportedAlgorithm):
        found = _instead(content, "private key")
        raise CredentialsError(f"{path} has no valid private key in PEM{found}; {remedy}") from None


def _instead(content: bytes, wanted: str) -> str:
    """Return what a file without a certificate or private key has in its place, as far as that can be seen."""
    other = {"certificate": "private key", "private key": "certificate"}[wanted]
    if f"-----BEGIN {wanted.upper()}".encode() not in content and other.upper().encode() in content:
        return f", but a {other}"
    if content.startswith(b"0"):  # the first byte of DER
        return f", but may be in DER, which openssl {'x509' if wanted == 'certificate' else 'pkey'} converts"
    return ""


def algorithm(key: PrivateKey, path: Path) -> str:
    """Return the name that C2PA has for signatures with this kind of key.

    Raises:
        CredentialsError: C2PA has none.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    raise CredentialsError(
        f"content credentials can't be signed with the kind of key in {path}; use EC P-256, P-384 or P-521, Ed25519, "
        "or RSA with at least 2048 bits"
    )


def check_dates(certificate: Certificate, path: Path, remedy: str) -> None:
    """Check that a certificate is valid now.

    Raises:
        CredentialsError: it is not.
    """
    now = datetime.datetime.now(datetime.UTC)
    if now > certificate.not_valid_after_utc:
        raise CredentialsError(
            f"the certificate in {path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {remedy}"
        )
    if now < certificate.not_valid_before_utc:
        raise CredentialsError(
            f"the certificate in {path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; check "
            "the clock of this machine"
        )


def expiry_warning(certificate: Certificate, path: Path, remedy: str) -> str | None:
    """Return a warning if a certificate expires within WARN_BEFORE, else None."""
    end = certificate.not_valid_after_utc
    left = end - datetime.datetime.now(datetime.UTC)
    if left > WARN_BEFORE:
        return None
    days = f"in {left.days} days" if left.days > 1 else "within two days"
    return f"the certificate in {path} expires on {end:%Y-%m-%d}, {days}; no video can be signed from then on: {remedy}"


def pem_of(item: Certificate | PrivateKey) -> str:
    """Return a certificate or a private key as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if isinstance(item, x509.Certificate):
        return item.public_bytes(Encoding.PEM).decode()
    return item.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_bytes(owner: Certificate | PrivateKey) -> bytes:
    """Return the public key of a certificate or private key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return owner.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _name(common_name: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Kinema"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: Name,
    issuer: Name,
    public_key: object,
    years: int,
    latest: datetime.datetime | None = None,
    *,
    is_ca: bool,
) -> CertificateBuilder:
    """Return a certificate that lacks its signature, for an authority or for signing files."""
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    end = now + years * _YEAR
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)  # type: ignore[arg-type]  # of an elliptic curve
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(end if latest is None else min(end, latest))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)  # type: ignore[arg-type]
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(usage, critical=True)
    )


def _signed(builder: CertificateBuilder, ca_key: PrivateKey) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())  # type: ignore[arg-type]
    return builder.add_extension(identifier, critical=False).sign(ca_key, hashes.SHA256())  # type: ignore[arg-type]

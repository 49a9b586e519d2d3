"""Idempotency keys: a request that is sent again with its key changes nothing and gets the same answer."""

from __future__ import annotations

from kinema.errors import IdempotencyKeyReused, InvalidRequest

MAX_KEY = 255


def check_key_length(key: str | None) -> None:
    """Check the length of a key; None is no key.

    Raises:
        InvalidRequest: it is empty, or has more than MAX_KEY characters.
    """
    if key is not None and not 1 <= len(key) <= MAX_KEY:
        raise InvalidRequest(
            f"the idempotency key has {len(key)} characters; expected 1 to {MAX_KEY}", "idempotency_key"
        )


def check_same_request(key: str, fingerprint: str, stored: str) -> None:
    """Check that a key is used with the request that it was first used with.

    Raises:
        IdempotencyKeyReused: the fingerprints of both requests differ.
    """
    if fingerprint != stored:
        raise IdempotencyKeyReused(f"the idempotency key {key!r} was used with another request; use a new key")

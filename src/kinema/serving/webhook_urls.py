"""The URLs to which webhooks may be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest
from kinema.media.fetch import PORTS, allowed_ports, redacted

if TYPE_CHECKING:
    from kinema.settings import Settings

MAX_LENGTH = 2000
_PARAM = "webhook_url"


def check_webhook_url(settings: Settings, url: str | None) -> str | None:
    """Return a URL in ASCII if webhooks may be sent to it; None for None.

    Only the hosts of the settings are allowed, so that clients can't make the server call other machines.

    Raises:
        InvalidRequest: it is not a URL, its host is not allowed, or the server has no secret to sign with.
    """
    if url is None:
        return None
    import httpx

    if len(url) > MAX_LENGTH:
        raise InvalidRequest(f"webhook_url has {len(url)} characters; use at most {MAX_LENGTH}", _PARAM)
    try:
        parsed_url = httpx.URL(url)
        host = parsed_url.host  # httpx validates the name here
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidRequest(
            f"webhook_url {url[:80]!r} is not a valid URL ({error}); use one such as https://host/hook", _PARAM
        ) from None
    if parsed_url.scheme not in PORTS or not host:
        raise InvalidRequest(
            f"webhook_url {url[:80]!r} is not an http:// or https:// URL; use one such as https://host/hook", _PARAM
        )
    if parsed_url.userinfo:
        raise InvalidRequest("webhook_url contains a user name or password; put a token into its path", _PARAM)
    ports = allowed_ports(parsed_url, settings.webhook_hosts)
    if (parsed_url.port or PORTS[parsed_url.scheme]) not in ports:
        allowed = ", ".join(settings.webhook_hosts) or "no host"
        raise InvalidRequest(
            f"webhook_url {redacted(parsed_url)[:200]} is not allowed: the server sends webhooks to {allowed} "
            "(KINEMA_WEBHOOK_HOSTS); use another URL, or poll the job",
            _PARAM,
        )
    if settings.webhook_secret is None:
        raise InvalidRequest(
            "webhook_url can't be used: the server has no secret to sign webhooks with (KINEMA_WEBHOOK_SECRET); "
            "poll the job",
            _PARAM,
        )
    return str(parsed_url.copy_with(fragment=None))

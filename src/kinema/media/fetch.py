"""Download of an image from a URL, with limits on size, time, redirects and hosts."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kinema.errors import InvalidImage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import httpx

MAX_BYTES = 20_000_000
MAX_SECONDS = 30.0
MAX_REDIRECTS = 5
PORTS = {"http": 80, "https": 443}
CANCEL_POLL_SECONDS = 0.1


class FetchCancelled(Exception):
    """The caller cancelled the download."""


def fetch(url: str, hosts: Collection[str] | None = None, is_cancelled: Callable[[], bool] | None = None) -> bytes:
    """Download an http or https URL: at most 20 MB, within 30 seconds in total, with at most 5 redirects.

    Args:
        url: The URL.
        hosts: The only hosts that the URL and its redirects may use; None allows all. "host" allows the ports 80 and
            443, "host:8080" allows that port only.
        is_cancelled: Called ten times per second; the download stops when it returns True.

    Raises:
        InvalidImage: naming the URL, the problem and the remedy.
        FetchCancelled: if `is_cancelled` returned True.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_fetch_unless_cancelled(url, hosts, is_cancelled))
    with ThreadPoolExecutor(1) as pool:  # a notebook cell already runs inside an event loop
        return pool.submit(asyncio.run, _fetch_unless_cancelled(url, hosts, is_cancelled)).result()


async def _fetch_unless_cancelled(
    url: str, hosts: Collection[str] | None, is_cancelled: Callable[[], bool] | None
) -> bytes:
    fetching = asyncio.ensure_future(_fetch(url, hosts))
    while not (await asyncio.wait({fetching}, timeout=None if is_cancelled is None else CANCEL_POLL_SECONDS))[0]:
        if is_cancelled is not None and is_cancelled():
            fetching.cancel()
            await asyncio.wait({fetching})
            raise FetchCancelled
    return fetching.result()


async def _fetch(url: str, hosts: Collection[str] | None) -> bytes:
    """Download `url`; asyncio's timeout also ends a slow read that never stalls completely."""
    import httpx

    parsed_url = _parse(url, hosts)
    headers = {
        "User-Agent": "kinema",
        "Accept": "image/jpeg, image/png, image/webp, image/heic;q=0.8, image/avif;q=0.8",
        "Accept-Encoding": "identity",
    }
    try:
        async with (
            asyncio.timeout(MAX_SECONDS),
            httpx.AsyncClient(headers=headers, timeout=MAX_SECONDS, follow_redirects=False) as client,
        ):
            for _ in range(MAX_REDIRECTS + 1):
                async with client.stream("GET", parsed_url) as response:
                    if response.next_request is None:
                        return await _body(response)
                    parsed_url = _parse(str(response.next_request.url), hosts)
    except (TimeoutError, httpx.TimeoutException):
        raise InvalidImage(
            f"{redacted(parsed_url)} was not downloaded completely within {MAX_SECONDS:g} seconds; "
            "try again, or download the image and use the file"
        ) from None
    except InvalidImage:  # a ValueError, too
        raise
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # ValueError: an invalid DNS name
        reason = str(error) or type(error).__name__
        raise InvalidImage(
            f"{redacted(parsed_url)} can't be reached ({reason}); check the URL and the network, or use a file"
        ) from None
    raise InvalidImage(
        f"{redacted(_parse(url, hosts))} redirects more than {MAX_REDIRECTS} times; use the URL of the image itself"
    )


def _parse(url: str, hosts: Collection[str] | None) -> httpx.URL:
    """Parse a URL and check that it may be fetched."""
    import httpx

    try:
        parsed_url = httpx.URL(url)
        host = parsed_url.host  # httpx validates the name here
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidImage(f"{url!r} is not a valid URL ({error}); use one such as https://host/photo.jpg") from None
    if parsed_url.scheme not in PORTS or not host:
        raise InvalidImage(
            f"{redacted(parsed_url)} is not supported: only http:// and https:// URLs are; "
            "download the image and use the file"
        )
    if parsed_url.port is not None and not 0 < parsed_url.port < 65536:
        raise InvalidImage(f"{redacted(parsed_url)} is not a valid URL: the port must be from 1 to 65535")
    if hosts is not None:
        _check_allowed(parsed_url, hosts)
    return parsed_url


def _check_allowed(parsed_url: httpx.URL, hosts: Collection[str]) -> None:
    """Check that a URL's host and port are allowed.

    Raises:
        InvalidImage: naming the allowed hosts, or the allowed ports of the URL's host.
    """
    ports = allowed_ports(parsed_url, hosts)
    if (parsed_url.port or PORTS[parsed_url.scheme]) in ports:
        return
    if ports:
        rule = f"the server fetches only from port {' or '.join(map(str, ports))} of this host"
    else:
        rule = f"the server fetches only from {', '.join(hosts)}" if hosts else "the server fetches no URLs"
    raise InvalidImage(f"{redacted(parsed_url)} is not allowed: {rule}; send the file itself")


def allowed_ports(parsed_url: httpx.URL, hosts: Collection[str]) -> list[int]:
    """Return the ports of a URL's host that rules allow: "host" allows 80 and 443, "host:8080" that port only."""
    return sorted({port for allowed in hosts for port in _allowed_ports(allowed, parsed_url)})


def _allowed_ports(allowed: str, parsed_url: httpx.URL) -> set[int]:
    """Return the ports that the rule "host" or "host:port" allows on a URL's host: none if it is another host.

    Host names match in any case and in Punycode.
    """
    import httpx

    if httpx.URL(f"http://{allowed}").raw_host != parsed_url.raw_host:
        return set()
    port = urlsplit(f"//{allowed}").port
    return {port} if port else set(PORTS.values())


async def _body(response: httpx.Response) -> bytes:
    """Read the body of a response.

    Raises:
        InvalidImage: for an error status, or a body over 20 MB.
    """
    if not response.is_success:
        raise InvalidImage(_status_message(response))
    body = bytearray()
    too_large = InvalidImage(
        f"{redacted(response.url)} is larger than {MAX_BYTES // 1_000_000} MB; download it, shrink it and use the file"
    )
    if int(response.headers.get("content-length") or 0) > MAX_BYTES:
        raise too_large
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_BYTES:
            raise too_large
    return bytes(body)


def _status_message(response: httpx.Response) -> str:
    """Return the message for an HTTP error status, with a remedy."""
    if response.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        remedy = "it requires a login or blocks programs; download the image in a browser and use the file"
    elif response.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        remedy = "check the URL"
    else:
        remedy = "try again later, or download the image and use the file"
    return f"{redacted(response.url)} responded with {response.status_code} {response.reason_phrase}; {remedy}"


def redacted(parsed_url: httpx.URL) -> str:
    """Return a URL without user name, password, query and fragment, which may contain secrets."""
    return str(parsed_url.copy_with(username=None, password=None, query=None, fragment=None))

"""An address → the bytes behind it, bounded in size, time, redirects and places."""

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
LISTEN_SECONDS = 0.1


class Unwanted(Exception):
    """Nobody waits for the answer any more."""


def fetch(url: str, hosts: Collection[str] | None = None, gone: Callable[[], bool] | None = None) -> bytes:
    """What an http or https address answers: at most 20 MB, within 30 seconds in all, over at most 5 redirects.

    Args:
        url: The address.
        hosts: Where given, nothing else is asked, whatever the address or a redirect names: each is a host, of which
            the usual ports 80 and 443 may be asked, or a host with the one port that may, as "host:8080".
        gone: Asked often; where it says yes, the fetch is given up.

    Raises:
        InvalidImage: naming the address, what went wrong and what to do.
        Unwanted: as `gone` said.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_while_wanted(url, hosts, gone))
    with ThreadPoolExecutor(1) as pool:  # a notebook's cell already runs inside a loop
        return pool.submit(asyncio.run, _while_wanted(url, hosts, gone)).result()


async def _while_wanted(url: str, hosts: Collection[str] | None, gone: Callable[[], bool] | None) -> bytes:
    fetching = asyncio.ensure_future(_fetch(url, hosts))
    while not (await asyncio.wait({fetching}, timeout=None if gone is None else LISTEN_SECONDS))[0]:
        if gone is not None and gone():
            fetching.cancel()
            await asyncio.wait({fetching})
            raise Unwanted
    return fetching.result()


async def _fetch(url: str, hosts: Collection[str] | None) -> bytes:
    """The body behind `url`; asyncio, because only there a deadline also ends a read that trickles."""
    import httpx

    address = _parsed(url, hosts)
    headers = {"User-Agent": "kinema", "Accept": "image/jpeg, image/png, image/webp", "Accept-Encoding": "identity"}
    try:
        async with (
            asyncio.timeout(MAX_SECONDS),
            httpx.AsyncClient(headers=headers, timeout=MAX_SECONDS, follow_redirects=False) as client,
        ):
            for _ in range(MAX_REDIRECTS + 1):
                async with client.stream("GET", address) as response:
                    if response.next_request is None:
                        return await _body(response)
                    address = _parsed(str(response.next_request.url), hosts)
    except (TimeoutError, httpx.TimeoutException):
        raise InvalidImage(
            f"{shown(address)} did not answer in full within {MAX_SECONDS:g} seconds; "
            "try again, or download it and give the file"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # ValueError: a name that DNS can't have
        reason = str(error) or type(error).__name__
        raise InvalidImage(
            f"{shown(address)} can't be reached ({reason}); check the address and the network, or give a file"
        ) from None
    raise InvalidImage(
        f"{shown(_parsed(url, hosts))} redirects more than {MAX_REDIRECTS} times; give the address of the image itself"
    )


def _parsed(url: str, hosts: Collection[str] | None) -> httpx.URL:
    """The address, if it is one that may be fetched."""
    import httpx

    try:
        address = httpx.URL(url)
        host = address.host  # which is where httpx looks whether the name can be one
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidImage(f"{url!r} is no usable address ({error}); give one such as https://host/photo.jpg") from None
    if address.scheme not in PORTS or not host:
        raise InvalidImage(
            f"{shown(address)} is not fetched: only http:// and https:// addresses are; "
            "download it some other way and give the file"
        )
    if address.port is not None and not 0 < address.port < 65536:
        raise InvalidImage(f"{shown(address)} is no usable address: a port is a number from 1 to 65535; correct it")
    if hosts is not None and not any(_allows(allowed, address) for allowed in hosts):
        allowed = f"only {', '.join(hosts)} may be" if hosts else "no address is"
        raise InvalidImage(f"{shown(address)} is not fetched: {allowed} fetched here; give the file itself")
    return address


def _allows(allowed: str, address: httpx.URL) -> bool:
    """Whether "host" or "host:port" lets an address be fetched; names are the same in capitals, and in Punycode."""
    import httpx

    place = httpx.URL(f"http://{allowed}")
    port = address.port or PORTS[address.scheme]
    ports = {urlsplit(f"//{allowed}").port} if urlsplit(f"//{allowed}").port else set(PORTS.values())
    return place.raw_host == address.raw_host and port in ports


async def _body(response: httpx.Response) -> bytes:
    """The answer's bytes, or the reason why it is none."""
    if not response.is_success:
        raise InvalidImage(_refusal(response))
    body = bytearray()
    too_large = InvalidImage(
        f"{shown(response.url)} is larger than {MAX_BYTES // 1_000_000} MB; download it, shrink it and give the file"
    )
    if int(response.headers.get("content-length") or 0) > MAX_BYTES:
        raise too_large
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_BYTES:
            raise too_large
    return bytes(body)


def _refusal(response: httpx.Response) -> str:
    """An HTTP status in words, with the remedy."""
    if response.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        remedy = "it asks for a login or forbids programs; download it in a browser and give the file"
    elif response.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        remedy = "check the address"
    else:
        remedy = "try again later, or download it and give the file"
    return f"{shown(response.url)} answered {response.status_code} {response.reason_phrase}; {remedy}"


def shown(address: httpx.URL) -> str:
    """An address as messages may show it: without name, password and query, which may hold secrets."""
    return str(address.copy_with(username=None, password=None, query=None, fragment=None))

"""Rate limits: wrong keys per address; requests per key; pinned videos and uploaded drafts per caller and day."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinema.errors import QuotaExceeded
from kinema.messages import Message

if TYPE_CHECKING:
    from starlette.types import Scope

DAY = 24 * 3600.0
FREE_KEYS = 20
FORGET_SECONDS = 10.0
TURN_SECONDS = 1.0
MAX_WAITING = 10
MAX_NAMES = 10_000
CALLER = "kinema.caller"  # in a request's scope


class _Buckets:
    """A leaky bucket per name; the least recently filled buckets are dropped."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, time of the last change

    def level(self, name: str, per_second: float) -> float:
        level, then = self._buckets.get(name, (0.0, 0.0))
        return max(0.0, level - (time.monotonic() - then) * per_second)

    def add(self, name: str, amount: float, per_second: float) -> None:
        self._buckets[name] = self.level(name, per_second) + amount, time.monotonic()
        self._buckets.move_to_end(name)
        if len(self._buckets) > MAX_NAMES:
            self._buckets.popitem(last=False)

    def __len__(self) -> int:
        return len(self._buckets)


@dataclass(slots=True)
class _Turns:
    last: float
    waiting: int = 0


class WrongKeys:
    """Counts of recent wrong keys per address; each count decreases by one every 10 seconds.

    After 20 different wrong keys, the address's keys are checked at one per second, and at most 10 requests wait.
    This applies to right keys too: an immediate answer would let a client guess as fast as it can send requests.
    A wrong key that is repeated, as by a misconfigured client, is not a new guess; only that key is delayed.
    A key that was right from this address before is never delayed: its answer reveals nothing new, and other clients
    behind the same address are not locked out.
    """

    def __init__(self) -> None:
        self._right: OrderedDict[str, None] = OrderedDict()  # by address and key, most recent last
        self._guesses = _Buckets()  # by address
        self._repeats = _Buckets()  # by address and key
        self._turns: dict[str, _Turns] = {}  # by either name, while requests wait

    async def turn(self, address: str, key: bytes) -> bool:
        """Wait until this key from this address may be checked; return False if too many requests wait already."""
        network = _network(address)
        if _name(network, key) in self._right:
            return True
        for name, buckets in ((_name(network, key), self._repeats), (network, self._guesses)):
            if buckets.level(name, 1 / FORGET_SECONDS) >= FREE_KEYS:
                return await self._wait(name)
        return True

    async def _wait(self, name: str) -> bool:
        now = time.monotonic()
        turns = self._turns.setdefault(name, _Turns(now))
        if turns.waiting >= MAX_WAITING:
            return False
        turns.last = max(now, turns.last) + TURN_SECONDS
        turns.waiting += 1
        try:
            await asyncio.sleep(turns.last - now)
        finally:
            turns.waiting -= 1
            if not turns.waiting:
                self._turns.pop(name, None)
        return True

    def accept(self, address: str, key: bytes) -> None:
        """Record that this key from this address is right."""
        name = _name(_network(address), key)
        self._right[name] = None
        self._right.move_to_end(name)
        if len(self._right) > MAX_NAMES:
            self._right.popitem(last=False)

    def add(self, address: str, key: bytes) -> None:
        """Record that this key from this address is wrong."""
        network = _network(address)
        name = _name(network, key)
        if not self._repeats.level(name, 1 / FORGET_SECONDS):
            self._guesses.add(network, 1, 1 / FORGET_SECONDS)
        self._repeats.add(name, 1, 1 / FORGET_SECONDS)

    def __len__(self) -> int:
        return len(self._guesses) + len(self._repeats) + len(self._right)


class RequestRate:
    """The number of requests each API key may send per minute; the whole minute may be used at once.

    None is no limit. Each server process counts for itself.
    """

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._buckets = _Buckets()

    def take(self, caller: str) -> float:
        """Count one request; return 0, or the seconds to wait if the caller may not send it yet."""
        if self.per_minute is None:
            return 0.0
        per_second = self.per_minute / 60
        excess = self._buckets.level(caller, per_second) + 1 - self.per_minute
        if excess <= 0:
            self._buckets.add(caller, 1, per_second)
        return max(0.0, excess / per_second)


class DailyQuota:
    """A daily quota per caller, refilled continuously and reset when the server restarts."""

    def __init__(self, most: float) -> None:
        self.most = most
        self._buckets = _Buckets()

    def take(self, scope: Scope, amount: float = 1) -> float:
        """Use `amount` of the caller's quota; return 0, or the seconds to wait if it does not suffice."""
        caller, per_second = scope.get(CALLER, ""), self.most / DAY
        excess = self._buckets.level(caller, per_second) + amount - self.most
        if excess <= 0:
            self._buckets.add(caller, amount, per_second)
        return max(0.0, excess / per_second)


class PinQuota(DailyQuota):
    """The number of videos each caller may pin per day; pinned videos never expire."""

    def check(self, scope: Scope) -> None:
        """Count one more.

        Raises:
            QuotaExceeded: the caller's quota is used up.
        """
        if wait := self.take(scope):
            message = Message(
                "pins_used_up",
                "each caller can pin {most:.0f} videos per day; try again in {seconds:.0f} seconds",
                most=self.most,
                seconds=math.ceil(wait),
            )
            raise QuotaExceeded(message, wait)


class DraftQuota(DailyQuota):
    """The bytes of images each caller may upload to the page per day, whether or not a video is submitted."""

    def check(self, scope: Scope, size: int) -> None:
        """Count `size` bytes more.

        Raises:
            QuotaExceeded: the caller's quota does not suffice.
        """
        if wait := self.take(scope, size):
            message = Message(
                "drafts_used_up",
                "each caller can upload {most:.0f} MB of images per day; try again in {seconds:.0f} seconds",
                most=self.most / 1_000_000,
                seconds=math.ceil(wait),
            )
            raise QuotaExceeded(message, wait)


def _name(network: str, key: bytes) -> str:
    return f"{network} {hash(key)}"


def _network(address: str) -> str:
    """Return the network of one client: its IPv4 address, or its IPv6 /64 network."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket
        return address
    return address if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))

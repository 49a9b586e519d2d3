"""How fast one address may guess keys, and how much of what lasts one caller may have in a day."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinema.errors import AllowanceUsedUp
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


class _Levels:
    """A level for each name, which falls evenly; the names that rose longest ago are forgotten."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level and time

    def level(self, name: str, per_second: float) -> float:
        level, then = self._known.get(name, (0.0, 0.0))
        return max(0.0, level - (time.monotonic() - then) * per_second)

    def rise(self, name: str, amount: float, per_second: float) -> None:
        self._known[name] = self.level(name, per_second) + amount, time.monotonic()
        self._known.move_to_end(name)
        if len(self._known) > MAX_NAMES:
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)


@dataclass(slots=True)
class _Turns:
    last: float
    waiting: int = 0


class WrongKeys:
    """The wrong keys that came of late from each address, one of which is forgotten every 10 seconds.

    After 20 different ones the address's keys are looked at one a second, and as many as 10 requests wait for that,
    whatever their keys: who is told at once that a key is right can guess as fast as requests can be sent. A wrong key
    that comes again and again, as from a client that was set up wrongly, is no guess, and slows down itself alone.
    Nor is a key that was right at this address before: whoever sends it learns nothing from being told at once, so
    that a guesser does not lock out others behind the same address.
    """

    def __init__(self) -> None:
        self._right: OrderedDict[str, None] = OrderedDict()  # of addresses' keys, the latest last
        self._guesses = _Levels()  # of addresses
        self._repeats = _Levels()  # of addresses' keys
        self._turns: dict[str, _Turns] = {}  # of either, while requests wait

    async def turn(self, address: str, key: bytes) -> bool:
        """Wait until this key from this address may be looked at; False where as many wait as may."""
        network = _network(address)
        if _name(network, key) in self._right:
            return True
        for name, levels in ((_name(network, key), self._repeats), (network, self._guesses)):
            if levels.level(name, 1 / FORGET_SECONDS) >= FREE_KEYS:
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
        """Note that this key from this address is right."""
        name = _name(_network(address), key)
        self._right[name] = None
        self._right.move_to_end(name)
        if len(self._right) > MAX_NAMES:
            self._right.popitem(last=False)

    def add(self, address: str, key: bytes) -> None:
        """Note that this key from this address is wrong."""
        network = _network(address)
        name = _name(network, key)
        if not self._repeats.level(name, 1 / FORGET_SECONDS):
            self._guesses.rise(network, 1, 1 / FORGET_SECONDS)
        self._repeats.rise(name, 1, 1 / FORGET_SECONDS)

    def __len__(self) -> int:
        return len(self._guesses) + len(self._repeats) + len(self._right)


class Allowance:
    """So much of what lasts each caller may have, and as much again over each day. A restart forgets what was had."""

    def __init__(self, most: float) -> None:
        self.most = most
        self._levels = _Levels()

    def take(self, scope: Scope, amount: float = 1) -> float:
        """Note that a request's caller has so much more; where that is too much, the seconds after which it is not."""
        caller, per_second = scope.get(CALLER, ""), self.most / DAY
        excess = self._levels.level(caller, per_second) + amount - self.most
        if excess <= 0:
            self._levels.rise(caller, amount, per_second)
        return max(0.0, excess / per_second)


class Pins(Allowance):
    """How many videos each caller may pin, which then stay for ever."""

    def check(self, scope: Scope) -> None:
        """Note one more.

        Raises:
            AllowanceUsedUp: it is one too many.
        """
        if wait := self.take(scope):
            message = Message(
                "pins_used_up",
                "one caller may pin {most:.0f} videos a day; try again in {seconds:.0f} seconds",
                most=self.most,
                seconds=math.ceil(wait),
            )
            raise AllowanceUsedUp(message, wait)


class DraftBytes(Allowance):
    """How many bytes of images each caller may leave on the server for a day without asking for a video."""

    def check(self, scope: Scope, size: int) -> None:
        """Note so many more.

        Raises:
            AllowanceUsedUp: they are too many.
        """
        if wait := self.take(scope, size):
            message = Message(
                "drafts_used_up",
                "one caller may upload {most:.0f} MB of images a day to the page; try again in {seconds:.0f} seconds",
                most=self.most / 1_000_000,
                seconds=math.ceil(wait),
            )
            raise AllowanceUsedUp(message, wait)


def _name(network: str, key: bytes) -> str:
    return f"{network} {hash(key)}"


def _network(address: str) -> str:
    """What one client can be taken to have: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:  # a socket that is no address of a network
        return address
    return address if known.version == 4 else str(ipaddress.ip_network((known, 64), strict=False))

"""How fast one address may guess keys."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass, field

FREE_KEYS = 20
FORGET_SECONDS = 10.0
TURN_SECONDS = 1.0
MAX_WAITING = 10
MAX_ADDRESSES = 10_000


@dataclass(slots=True)
class _Address:
    wrong: float = 0.0
    seen: float = field(default_factory=time.monotonic)
    next_turn: float = 0.0
    waiting: int = 0


class WrongKeys:
    """Of each address the wrong keys that it sent of late, one of which is forgotten every 10 seconds.

    After 20 of them its keys are looked at one a second, and as many as 10 requests wait for that, whatever their keys:
    who is told at once that a key is right can guess as fast as requests can be sent.
    """

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    async def turn(self, address: str) -> bool:
        """Wait until a key from this address may be looked at; False where as many wait as may."""
        known = self._addresses.get(_network(address))
        if known is None or self._left(known) < FREE_KEYS:
            return True
        if known.waiting >= MAX_WAITING:
            return False
        now = time.monotonic()
        known.next_turn = max(now, known.next_turn) + TURN_SECONDS
        known.waiting += 1
        try:
            await asyncio.sleep(known.next_turn - now)
        finally:
            known.waiting -= 1
        return True

    def add(self, address: str) -> None:
        """Note a wrong key from this address."""
        network = _network(address)
        known = self._addresses.setdefault(network, _Address())
        known.wrong, known.seen = self._left(known) + 1, time.monotonic()
        self._addresses.move_to_end(network)
        if len(self._addresses) > MAX_ADDRESSES:
            self._addresses.popitem(last=False)

    @staticmethod
    def _left(known: _Address) -> float:
        return max(0.0, known.wrong - (time.monotonic() - known.seen) / FORGET_SECONDS)


def _network(address: str) -> str:
    """What one client can be taken to have: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:  # a socket that is no address of a network
        return address
    return address if known.version == 4 else str(ipaddress.ip_network((known, 64), strict=False))

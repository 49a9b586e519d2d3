"""How many bytes of bodies may wait on the disk at once, and whether that disk has room for them."""

from __future__ import annotations

import shutil
import tempfile
from threading import Lock
from weakref import WeakSet

from kinema.errors import InsufficientDisk, ServerBusy
from kinema.jobs.job_files import GIGABYTE
from kinema.messages import Message

MOST_MB = 1000


class BodyQuota:
    """One server's: 1 GB of all callers, half of it of one, while `reserve_gb` stay free on the disk.

    Where one body may be larger than that half, there is room for two such. A body counts with what came of it, from
    its first byte on the disk until it is closed.
    """

    def __init__(self, max_body_mb: float, reserve_gb: float) -> None:
        self.most = max(MOST_MB, 2 * max_body_mb) * 1_000_000
        self._reserve_gb = reserve_gb
        self._shares: WeakSet[BodyReservation] = WeakSet()  # what is lost without being closed does not count either
        self._lock = Lock()

    def share(self, caller: str) -> BodyReservation:
        """What a new body of this caller takes: nothing yet."""
        share = BodyReservation(self, caller)
        with self._lock:
            self._shares.add(share)
        return share

    @property
    def used(self) -> int:
        """How many bytes wait."""
        with self._lock:
            return sum(share.size for share in self._shares)

    def grow(self, share: BodyReservation, size: int) -> None:
        """Let a share be as large as this.

        Raises:
            ServerBusy: too much would wait, of all callers or of this one.
            InsufficientDisk: less would be free than must be.
        """
        self._check_disk(size - share.size)
        with self._lock:
            others = [other for other in self._shares if other is not share]
            of_all = size + sum(other.size for other in others)
            of_one = size + sum(other.size for other in others if other.caller == share.caller)
            if of_all > self.most or of_one > self.most / 2:
                raise ServerBusy(
                    Message(
                        "bodies_waiting",
                        "the server holds as many uploads as it can, {most:.0f} MB in all and half of that of one "
                        "caller; try again in a few seconds",
                        most=self.most / 1_000_000,
                    )
                )
            share.size = size

    def _check_disk(self, size: int) -> None:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if free - size < self._reserve_gb * GIGABYTE:
            raise InsufficientDisk(
                Message(
                    "little_room_for_bodies",
                    "{free:.1f} GB are free in the server's folder for temporary files (TMPDIR), and {reserve:g} must "
                    "stay free (KINEMA_MIN_FREE_GB): make room, or set TMPDIR to a folder on a larger disk",
                    free=free / GIGABYTE,
                    reserve=self._reserve_gb,
                )
            )


class BodyReservation:
    """What one body takes of the room."""

    def __init__(self, room: BodyQuota, caller: str) -> None:
        self._room = room
        self.caller, self.size = caller, 0

    def grow(self, size: int) -> None:
        """Be as large as this.

        Raises:
            ServerBusy, InsufficientDisk: as `BodyQuota.grow`.
        """
        self._room.grow(self, size)

    def close(self) -> None:
        """Give all back."""
        self.size = 0

"""Limits on the bytes of request bodies in temporary files, and on the free disk space."""

from __future__ import annotations

import shutil
import tempfile
from threading import Lock
from weakref import WeakSet

from kinema.errors import InsufficientDisk, ServerBusy
from kinema.jobs.job_files import GIGABYTE
from kinema.messages import Message

QUOTA_MB = 1000


class BodyQuota:
    """The quota of a server: 1 GB in all, half of it per caller, while `reserve_gb` stay free on the disk.

    If one body may exceed that half, the quota is two bodies of the maximum size. A body counts from its first
    byte on the disk until it is closed.
    """

    def __init__(self, max_body_mb: float, reserve_gb: float) -> None:
        self.max_bytes = max(QUOTA_MB, 2 * max_body_mb) * 1_000_000
        self._reserve_gb = reserve_gb
        self._reservations: WeakSet[BodyReservation] = (
            WeakSet()
        )  # weak: a reservation that is dropped unclosed doesn't count
        self._lock = Lock()

    def reserve(self, caller: str) -> BodyReservation:
        """Return an empty reservation for a new body of this caller."""
        reservation = BodyReservation(self, caller)
        with self._lock:
            self._reservations.add(reservation)
        return reservation

    @property
    def used(self) -> int:
        """The bytes of all reservations."""
        with self._lock:
            return sum(reservation.size for reservation in self._reservations)

    def grow(self, reservation: BodyReservation, size: int) -> None:
        """Enlarge a reservation to `size` bytes.

        Raises:
            ServerBusy: the quota in all or of this caller would be exceeded.
            InsufficientDisk: too little disk space would stay free.
        """
        self._check_disk(size - reservation.size)
        with self._lock:
            others = [other for other in self._reservations if other is not reservation]
            total = size + sum(other.size for other in others)
            of_caller = size + sum(other.size for other in others if other.caller == reservation.caller)
            if total > self.max_bytes or of_caller > self.max_bytes / 2:
                raise ServerBusy(
                    Message(
                        "bodies_waiting",
                        "the upload quota of {most:.0f} MB in all and half of that per caller is used up; try again in "
                        "a few seconds",
                        most=self.max_bytes / 1_000_000,
                    )
                )
            reservation.size = size

    def _check_disk(self, size: int) -> None:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if free - size < self._reserve_gb * GIGABYTE:
            raise InsufficientDisk(
                Message(
                    "little_room_for_bodies",
                    "{free:.1f} GB is free in the server's temporary folder (TMPDIR), but {reserve:g} GB must stay "
                    "free (KINEMA_MIN_FREE_GB): free disk space, or set TMPDIR to a folder on a larger disk",
                    free=free / GIGABYTE,
                    reserve=self._reserve_gb,
                )
            )


class BodyReservation:
    """The bytes of one body."""

    def __init__(self, quota: BodyQuota, caller: str) -> None:
        self._quota = quota
        self.caller, self.size = caller, 0

    def grow(self, size: int) -> None:
        """Enlarge it to `size` bytes.

        Raises:
            ServerBusy, InsufficientDisk: as `BodyQuota.grow`.
        """
        self._quota.grow(self, size)

    def close(self) -> None:
        """Release all bytes."""
        self.size = 0

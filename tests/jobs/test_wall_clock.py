"""After a jump of the wall clock, no job expires for a day."""

from types import SimpleNamespace

import pytest

from kinema.jobs import wall_clock
from kinema.jobs.wall_clock import WallClock


@pytest.fixture
def times(monkeypatch):
    """A fake monotonic clock, and the offset of the wall clock."""
    now = SimpleNamespace(monotonic=1000.0, offset=1_800_000_000.0)
    clock = SimpleNamespace(monotonic=lambda: now.monotonic, time=lambda: now.monotonic + now.offset)
    monkeypatch.setattr(wall_clock, "time", clock)
    return now


def test_small_corrections_keep_clock_trusted(times):
    clock = WallClock()
    for _ in range(100):
        times.monotonic += 86_400
        times.offset += 60
        assert clock.is_trusted()


@pytest.mark.parametrize("days", [40, -40])
def test_jumped_clock_is_trusted_again_after_a_day(times, days):
    clock = WallClock()
    times.offset += days * 86_400
    assert not clock.is_trusted()
    times.monotonic += 86_399
    assert not clock.is_trusted()
    times.monotonic += 1
    assert clock.is_trusted()


def test_correcting_the_clock_is_a_jump_too(times):
    clock = WallClock()
    times.offset += 1e7
    clock.is_trusted()
    times.monotonic += 80_000
    times.offset -= 1e7
    assert not clock.is_trusted()
    times.monotonic += 80_000
    assert not clock.is_trusted()

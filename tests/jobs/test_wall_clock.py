"""A wall clock that jumps lets nothing expire for a day."""

from types import SimpleNamespace

import pytest

from kinema.jobs import wall_clock
from kinema.jobs.wall_clock import WallClock


@pytest.fixture
def times(monkeypatch):
    """The monotonic time, and how far the wall clock is ahead of it."""
    now = SimpleNamespace(monotonic=1000.0, ahead=1_800_000_000.0)
    clock = SimpleNamespace(monotonic=lambda: now.monotonic, time=lambda: now.monotonic + now.ahead)
    monkeypatch.setattr(wall_clock, "time", clock)
    return now


def test_a_clock_that_goes_evenly_or_is_set_by_minutes_is_trusted(times):
    clock = WallClock()
    for _ in range(100):
        times.monotonic += 86_400
        times.ahead += 60
        assert clock.is_trusted()


@pytest.mark.parametrize("days", [40, -40])
def test_a_clock_that_jumped_is_trusted_again_after_a_day(times, days):
    clock = WallClock()
    times.ahead += days * 86_400
    assert not clock.is_trusted()
    times.monotonic += 86_399
    assert not clock.is_trusted()
    times.monotonic += 1
    assert clock.is_trusted()


def test_putting_a_clock_right_is_a_jump_too(times):
    clock = WallClock()
    times.ahead += 1e7
    clock.is_trusted()
    times.monotonic += 80_000
    times.ahead -= 1e7
    assert not clock.is_trusted()
    times.monotonic += 80_000
    assert not clock.is_trusted()

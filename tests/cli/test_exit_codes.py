"""Signals that stop the command."""

import signal

import pytest

from kinema.cli.exit_codes import Interrupted, raise_on_signals


def import_interrupted_by(number: signal.Signals) -> None:
    """Fail as a library that turns an interruption into an error of its own."""
    try:
        signal.raise_signal(number)
    except SystemExit:
        raise ImportError("a module was read only in part") from None


@pytest.fixture
def heeded(number):
    """Heed a signal, which a shell makes its background processes ignore."""
    before = signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_error_that_a_library_makes_of_an_interruption_does_not_count(number):
    with pytest.raises(Interrupted) as stop, raise_on_signals():
        import_interrupted_by(number)
    assert stop.value.code == 128 + number
    assert isinstance(stop.value.__cause__, ImportError)


def test_error_without_a_signal_is_raised_as_it_is():
    with pytest.raises(ImportError, match="missing"), raise_on_signals():
        raise ImportError("missing")

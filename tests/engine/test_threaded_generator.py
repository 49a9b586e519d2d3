"""Test the threaded generator: it runs in step with the caller, and its thread ends with it."""

import threading
from collections.abc import Callable

import pytest

from kinema.engine.threaded_generator import threaded_generator


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kinema-threaded_generator"]


def count_to(last: int, done: list[int]) -> Callable[[Callable[[int], None]], str]:
    def work(report: Callable[[int], None]) -> str:
        for i in range(1, last + 1):
            done.append(i)
            report(i)
        return "done"

    return work


def test_items_are_in_order_and_result_is_last() -> None:
    iterator = threaded_generator(count_to(3, []))
    assert [next(iterator) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(StopIteration) as ended:
        next(iterator)
    assert ended.value.value == "done"
    assert workers() == []


def test_work_waits_for_caller() -> None:
    done: list[int] = []
    iterator = threaded_generator(count_to(9, done))
    assert done == []
    for i in (1, 2, 3):
        assert next(iterator) == i
        assert done == [*range(1, i + 1)]
    iterator.close()


def test_close_ends_work_at_next_report() -> None:
    done: list[int] = []
    freed = threading.Event()

    def work(report: Callable[[int], None]) -> None:
        try:
            count_to(99, done)(report)
        except Exception:  # noqa: BLE001 - a library that catches every Exception must not stop the close
            done.append(-1)
        finally:
            freed.set()

    iterator = threaded_generator(work)
    next(iterator)
    next(iterator)
    iterator.close()
    assert done == [1, 2]
    assert freed.is_set()
    assert workers() == []


def test_error_of_work_is_raised_in_generator() -> None:
    def work(report: Callable[[int], None]) -> None:
        report(1)
        raise LookupError("unexpected")

    iterator = threaded_generator(work)
    assert next(iterator) == 1
    with pytest.raises(LookupError, match="unexpected"):
        next(iterator)
    assert workers() == []


def test_unstarted_generator_leaves_no_thread() -> None:
    done: list[int] = []
    iterator = threaded_generator(count_to(3, done))
    iterator.close()
    del iterator
    assert done == []
    assert workers() == []

"""The process that decodes what clients sent: its limits, and what ends it."""

import os
import signal
import threading
import time

import psutil
import pytest
from image_attacks import jpeg, large_webp

from kinema.errors import InvalidImage
from kinema.media.image import ImageFacts, inspect_image
from kinema.serving.decode_process import MEGABYTE, MEMORY_MB, ClientGone, DecodeProcess
from kinema.serving.image_tasks import fitted


@pytest.fixture(scope="module")
def process():
    process = DecodeProcess()
    yield process
    process.close()


def test_images_are_checked_one_after_the_other_in_the_same_process(process):
    assert process.run(inspect_image, jpeg(96, 64)) == ImageFacts((96, 64))
    first = process.pid
    assert process.run(fitted, jpeg(96, 64), 64, 64, "crop").startswith(b"\xff\xd8")
    assert process.pid == first != os.getpid()


def test_a_refusal_keeps_its_sentence(process):
    with pytest.raises(InvalidImage) as refused:
        process.run(inspect_image, b"GIF89a")
    assert refused.value.args[0].code == "image_of_another_kind"


def test_what_takes_too_long_is_refused_and_ended(process):
    with pytest.raises(InvalidImage, match="more than 1 seconds to decode"):
        process.run(eval, "sum(range(10**12))", cpu_seconds=1)
    assert process.run(len, b"four") == 4


def test_what_takes_too_much_memory_is_refused(process):
    with pytest.raises(InvalidImage, match="more memory"):
        process.run(bytearray, (MEMORY_MB + 100) * MEGABYTE)
    assert process.run(len, b"four") == 4


def test_forty_megapixels_of_any_kind_fit(process):
    data = large_webp()
    assert process.run(inspect_image, data).size == (16000, 2500)
    assert process.run(fitted, data, 1024, 576, "crop").startswith(b"\xff\xd8")


def test_its_memory_is_given_back(process):
    process.run(inspect_image, large_webp())
    assert process.pid is None or psutil.Process(process.pid).memory_info().rss < 200 * MEGABYTE


def test_a_process_that_is_killed_is_replaced(process):
    process.run(len, b"four")
    killed = threading.Timer(0.3, lambda: os.kill(process.pid, signal.SIGKILL))
    killed.start()
    with pytest.raises(InvalidImage, match="can't be decoded here"):
        process.run(time.sleep, 60)
    assert process.run(len, b"four") == 4


def test_who_is_gone_frees_the_process_and_the_turn(process):
    begun = threading.Event()
    outcomes = []

    def call(gone):
        begun.set()
        with pytest.raises(ClientGone):
            process.run(time.sleep, 60, gone=gone.is_set)
        outcomes.append(gone)

    gone = [threading.Event(), threading.Event()]
    threads = [threading.Thread(target=call, args=(each,)) for each in gone]
    for thread in threads:
        thread.start()
        begun.wait()
    for each in reversed(gone):
        each.set()
    for thread in threads:
        thread.join(10)
    assert len(outcomes) == 2
    assert process.run(len, b"four") == 4


def test_it_ends_with_the_server():
    process = DecodeProcess()
    process.run(len, b"four")
    child = psutil.Process(process.pid)
    process._connection.close()  # as the kernel does when the server dies
    assert child.wait(10) == 0
    process.close()


def test_after_closing_nothing_is_begun():
    process = DecodeProcess()
    process.close()
    with pytest.raises(ClientGone):
        process.run(len, b"four")
    assert process.pid is None

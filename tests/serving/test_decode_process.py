"""The decode process: its limits, and what ends it."""

import os
import signal
import threading
import time

import psutil
import pytest
from heif_files import heic, large_heic
from image_attacks import jpeg, large_avif, large_cmyk_jpeg, large_png, large_webp

from kinema.errors import InvalidImage
from kinema.media.image import ImageFacts, inspect_image
from kinema.serving.decode_process import DECODER_THREADS, MEGABYTE, MEMORY_MB, ClientGone, DecodeProcess
from kinema.serving.image_tasks import fitted


@pytest.fixture(scope="module")
def process():
    process = DecodeProcess()
    yield process
    process.close()


def test_images_are_inspected_in_one_process(process):
    assert process.run(inspect_image, jpeg(96, 64)) == ImageFacts((96, 64))
    first = process.pid
    assert process.run(fitted, jpeg(96, 64), 64, 64, "crop").startswith(b"\xff\xd8")
    assert process.pid == first != os.getpid()


def test_error_keeps_its_message(process):
    with pytest.raises(InvalidImage) as caught:
        process.run(inspect_image, b"GIF89a")
    assert caught.value.args[0].code == "image_of_another_kind"


def test_call_over_cpu_limit_is_killed(process):
    with pytest.raises(InvalidImage, match="more than 1 seconds to decode"):
        process.run(eval, "sum(range(10**12))", cpu_seconds=1)
    assert process.run(len, b"four") == 4


def test_call_over_memory_limit_raises_invalid_image(process):
    with pytest.raises(InvalidImage, match="not enough memory to decode the image; shrink it"):
        process.run(bytearray, (MEMORY_MB + 100) * MEGABYTE)
    assert process.run(len, b"four") == 4


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (large_webp, (16000, 2500)),
        pytest.param(large_heic, (9216, 6912), marks=pytest.mark.slow),
        pytest.param(large_png, (9248, 6936), marks=pytest.mark.slow),
        pytest.param(large_cmyk_jpeg, (9248, 6936), marks=pytest.mark.slow),
        pytest.param(large_avif, (8000, 5000), marks=pytest.mark.slow),
    ],
)
def test_largest_images_fit_in_memory_limit(process, make, size):
    data = make()
    assert process.run(inspect_image, data).size == size
    assert process.run(fitted, data, 1024, 576, "crop").startswith(b"\xff\xd8")


def test_heic_is_decoded(process):
    assert process.run(inspect_image, heic(size=(190, 100), tiles=(3, 2))) == ImageFacts((190, 100))


def test_number_of_decoder_threads_is_limited(process):
    assert process.run(eval, "__import__('pi_heif').options.DECODE_THREADS") == DECODER_THREADS
    assert process.run(eval, "__import__('PIL.AvifImagePlugin').AvifImagePlugin.DEFAULT_MAX_THREADS") == DECODER_THREADS


def test_process_over_idle_memory_is_replaced(process):
    process.run(inspect_image, large_webp())
    assert process.pid is None or psutil.Process(process.pid).memory_info().rss < 200 * MEGABYTE


def test_killed_process_is_replaced(process):
    process.run(len, b"four")
    killed = threading.Timer(0.3, lambda: os.kill(process.pid, signal.SIGKILL))
    killed.start()
    with pytest.raises(InvalidImage, match="can't be decoded by this server"):
        process.run(time.sleep, 60)
    assert process.run(len, b"four") == 4


def test_disconnect_frees_process_and_turn(process):
    started = threading.Event()
    outcomes = []

    def call(gone):
        started.set()
        with pytest.raises(ClientGone):
            process.run(time.sleep, 60, gone=gone.is_set)
        outcomes.append(gone)

    gone = [threading.Event(), threading.Event()]
    threads = [threading.Thread(target=call, args=(each,)) for each in gone]
    for thread in threads:
        thread.start()
        started.wait()
    for each in reversed(gone):
        each.set()
    for thread in threads:
        thread.join(10)
    assert len(outcomes) == 2
    assert process.run(len, b"four") == 4


def test_process_exits_when_server_dies():
    process = DecodeProcess()
    process.run(len, b"four")
    child = psutil.Process(process.pid)
    process._connection.close()  # as the kernel does when the server dies
    assert child.wait(10) == 0
    process.close()


def test_closed_process_starts_no_call():
    process = DecodeProcess()
    process.close()
    with pytest.raises(ClientGone):
        process.run(len, b"four")
    assert process.pid is None

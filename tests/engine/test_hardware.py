"""Which kernels run: probed once, stored per version and GPU, and off with one warning where a probe fails."""

import logging
from pathlib import Path

import pytest
import torch

from kinema.engine.fast import hardware
from kinema.engine.fast.hardware import Capabilities, capabilities
from kinema.engine.fast.tuning import tuned, tuning

HOPPER = torch.device("cuda", 0)
ALL = Capabilities(triton=True, gluon=True, sm90=True, fp8=True)


class Probes:
    """Counts probes; `errors` are raised by name."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.errors: dict[str, Exception] = {}

    def run(self, name: str) -> None:
        self.ran.append(name)
        if name in self.errors:
            raise self.errors[name]


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Probes:
    """Pretend that there is a Hopper GPU with Triton 4.0, and replace what compiles kernels on it."""
    probes, versions = Probes(), {"triton": "4.0"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(hardware, "is_hopper", lambda _: True)
    monkeypatch.setattr(hardware, "find_spec", lambda name: name)
    monkeypatch.setattr(hardware, "version", versions.__getitem__)
    monkeypatch.setattr(hardware, "_probe_triton", lambda _: probes.run("triton"))
    monkeypatch.setattr(hardware, "_probe_gluon", lambda _: probes.run("gluon"))
    capabilities.cache_clear()
    yield probes
    capabilities.cache_clear()


def in_new_process(device: torch.device = HOPPER) -> Capabilities:
    capabilities.cache_clear()
    return capabilities(device)


def test_successful_probes_run_once_per_machine(probes: Probes) -> None:
    assert [in_new_process() for _ in range(3)] == [ALL] * 3
    assert probes.ran == ["triton", "gluon"]


@pytest.mark.parametrize("change", ["triton", "GPU"])
def test_new_version_or_gpu_is_probed_again(probes: Probes, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    in_new_process()
    if change == "triton":
        monkeypatch.setattr(hardware, "version", lambda _: "5.0")
    else:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    in_new_process()
    assert probes.ran == ["triton", "gluon"] * 2


def test_failing_gluon_leaves_triton_with_one_warning(probes: Probes, caplog: pytest.LogCaptureFixture) -> None:
    probes.errors["gluon"] = AttributeError("module 'tma' has no attribute 'load'\nand more")
    for _ in range(3):
        found = capabilities(HOPPER)
    reason = "Gluon 4.0 failed: AttributeError: module 'tma' has no attribute 'load'"
    assert found == Capabilities(triton=True, sm90=True, fp8=True, reason=reason)
    assert found.active() == ["Triton", "fp8"]
    assert caplog.record_tuples == [
        (hardware.__name__, logging.WARNING, f"Fast kernels are off, so videos take longer: {reason}")
    ]


def test_failing_triton_turns_all_kernels_off_and_is_probed_again(probes: Probes) -> None:
    probes.errors["triton"] = RuntimeError("Failed to find C compiler.")
    found = in_new_process()
    assert found == Capabilities(sm90=True, reason="Triton 4.0 failed: RuntimeError: Failed to find C compiler.")
    assert found.active() == []
    assert not hardware.use_triton("add", HOPPER, torch.float16)
    probes.errors.clear()
    assert in_new_process() == ALL


def test_probe_without_memory_is_no_result(probes: Probes) -> None:
    probes.errors["triton"] = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        in_new_process()


def test_probe_ignores_the_callers_context(probes: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(hardware, "_probe_triton", lambda _: seen.append(tuning().gpu_blocks))
    with tuned(gpu_blocks=True):
        in_new_process()
    assert seen == [False]


def test_cache_that_cannot_be_written_is_no_error(probes: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert in_new_process() == ALL


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"find_spec": None}, "Triton is not installed"),
        ({"capability": (7, 5)}, "kernels need an NVIDIA GPU since Ampere (compute capability 8.0)"),
    ],
    ids=["no Triton", "old GPU"],
)
def test_machine_without_kernels(
    probes: Probes, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], reason: str
) -> None:
    if "find_spec" in change:
        monkeypatch.setattr(hardware, "find_spec", lambda _: None)
    else:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: change["capability"])
    found = in_new_process()
    assert (found.triton, found.gluon, found.fp8, found.reason) == (False, False, False, reason)
    assert probes.ran == []


def test_kernels_are_used_for_16_bit_and_fp8_tensors_only(probes: Probes) -> None:
    dtypes = torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float32
    assert [hardware.use_triton("add", HOPPER, dtype) for dtype in dtypes] == [True, True, True, False]
    assert not hardware.use_triton("add", torch.device("cpu"), torch.float16)
    with tuned(plain=frozenset({"add"})):
        assert not hardware.use_triton("add", HOPPER, torch.float16)
        assert hardware.use_triton("layer_norm", HOPPER, torch.float16)
    with tuned(matmul_kernels=False):
        assert hardware.use_triton("conv3x3", HOPPER, torch.float16)
        assert not hardware.use_matmul_kernel("conv3x3", HOPPER, torch.float16)


def test_kernels_with_matmuls_run_on_hopper_only(probes: Probes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.use_matmul_kernel("conv3x3", HOPPER, torch.float16)
    monkeypatch.setattr(hardware, "is_hopper", lambda _: False)
    assert in_new_process() == Capabilities(triton=True)
    assert not hardware.use_matmul_kernel("conv3x3", HOPPER, torch.float16)

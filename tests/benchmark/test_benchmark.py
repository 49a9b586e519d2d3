"""Test that the benchmark's record is consistent with itself, diffusers and the request; no test depends on a time."""

import json
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kinema.benchmark import check, check_settings, gradient, named
from kinema.benchmark.flops import counted
from kinema.benchmark.measure import STAGES, distance, measure
from kinema.benchmark.side_process import side as loader
from kinema.benchmark.side_process import started
from kinema.benchmark.stopwatch import BenchmarkTask
from kinema.errors import GenerationFailed, InvalidRequest, NotAnSvdModel
from kinema.models.loading import load
from kinema.settings import read_settings
from kinema.values import VideoRequest
from tiny import make_tiny_svd


def request_of(folder: Path, **settings: object) -> VideoRequest:
    small = {"width": 64, "height": 64, "num_frames": 3, "num_inference_steps": 2, "seed": 7}
    return VideoRequest.checked(**small | {"model": str(folder)} | settings)


def measured(folder: Path, *, dtype: str = "float32", settings: dict[str, object] | None = None, **options: object):
    """Return the child processes at each progress line of `measure`, and the record."""
    machine = read_settings(device="cpu", dtype=dtype)
    request = request_of(folder, **settings or {})
    processes: dict[str, set[int]] = {}
    for result in measure(str(folder), gradient(64, 64), request, settings=machine, **options):
        if isinstance(result, str):
            processes[result] = children()
    return processes, result


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children()}


def task_of(folder: Path, dtype: str = "float32") -> BenchmarkTask:
    return BenchmarkTask(str(folder), folder, False, "cpu", dtype, None, "full", 1, gradient(64, 64))


@pytest.fixture(scope="module")
def measurement(tiny_svd: Path):
    return measured(tiny_svd, runs=2, note="random weights", settings={"decode_chunk_size": 2, "fps": 9})


@pytest.fixture(scope="module")
def record(measurement):
    return measurement[1]


def side_of(record, name):
    return record["kinema"] if name == "kinema" else record["baselines"][name]


@pytest.fixture(scope="module")
def mixed(tiny_svd: Path):
    """Return a record with Kinema in bfloat16, the baseline in float32 and no decode_chunk_size."""
    settings = {"decode_chunk_size": None}
    return measured(tiny_svd, runs=1, dtype="bfloat16", baseline_dtype="float32", settings=settings)[1]


@pytest.mark.slow
def test_each_side_runs_in_one_process(measurement) -> None:
    processes, _ = measurement
    before = processes["kinema: load the model in a new process, generate the first video"]
    ours = processes["diffusers: load the model in a new process, generate the first video"] - before
    both = processes["kinema: video 1 of 2"] - before
    assert len(ours) == 1
    assert len(both) == 2
    assert ours < both
    for line in ("diffusers: video 1 of 2", "kinema: video 2 of 2", "diffusers: video 2 of 2"):
        assert processes[line] - before == both
    assert not processes["matmul rate"] - before


@pytest.mark.parametrize("side", ["kinema", "diffusers"])
def test_cold_time_starts_with_process(record, side) -> None:
    result = side_of(record, side)
    assert 0 < result["load_seconds"] < result["cold"]["loaded_after"] < result["cold"]["seconds"]
    assert result["cold_again"] is None  # nothing is compiled on a CPU
    assert set(result["peak_memory_gib"]) == {"rss"}
    assert result["peak_memory_gib"]["rss"] > 0.1


def test_factor_is_baseline_time_by_kinema_time(record) -> None:
    ours, baseline = record["kinema"], record["baselines"]["diffusers"]
    factor = baseline["factor"]
    assert set(factor) == {*STAGES, "load", "cold"}
    for stage in STAGES:
        assert factor[stage] == pytest.approx(
            baseline["warm"]["median"][stage] / ours["warm"]["median"][stage], rel=1e-4
        )
    assert factor["load"] == pytest.approx(baseline["load_seconds"] / ours["load_seconds"], rel=1e-4)
    assert factor["cold"] == pytest.approx(baseline["cold"]["seconds"] / ours["cold"]["seconds"], rel=1e-4)


@pytest.mark.parametrize("side", ["kinema", "diffusers"])
def test_stage_times_sum_to_total(record, side) -> None:
    warm = side_of(record, side)["warm"]
    assert len(warm["runs"]) == record["runs"] == 2
    for run in warm["runs"]:
        assert min(run.values()) > 0
        assert run["encode"] + run["denoise"] + run["decode"] == pytest.approx(run["all"], rel=1e-3)
        assert run["step"] * 2 == pytest.approx(run["denoise"], rel=1e-3)
    for stage in STAGES:
        assert warm["min"][stage] <= warm["median"][stage] <= warm["max"][stage]


def test_both_sides_generate_same_video_in_float32(record) -> None:
    assert record["dtype"] == "float32"
    assert record["engine"] == "fast"
    frames = record["baselines"]["diffusers"]["frames"]
    assert frames["max_difference"] <= 1
    assert frames["psnr_db"] is None or frames["psnr_db"] > 55
    assert 0 < record["baselines"]["diffusers"]["latents_relative_difference"] < 1e-4


@pytest.mark.parametrize("vae_levels", [3, 4])
def test_both_sides_use_same_noise_in_half_precision(tmp_path, vae_levels) -> None:
    folder = make_tiny_svd(tmp_path, vae_levels=vae_levels)
    strong = request_of(folder, num_inference_steps=1, max_guidance_scale=1.0)
    ours, theirs = (loader(name)(task_of(folder, "bfloat16"))(strong).frames for name in ("kinema", "diffusers"))
    assert distance(ours, theirs)["psnr_db"] > 30


@pytest.mark.slow
@pytest.mark.slow
def test_baseline_in_other_dtype(mixed) -> None:
    assert (mixed["dtype"], mixed["baseline_dtype"]) == ("bfloat16", "float32")
    assert set(mixed["matrix_tflop_per_second"]) == {"bfloat16", "float32"}
    assert 30 < mixed["baselines"]["diffusers"]["frames"]["psnr_db"] < 70
    assert 1e-4 < mixed["baselines"]["diffusers"]["latents_relative_difference"] < 0.1


def test_speed_is_flops_by_time(record) -> None:
    step, decode = record["tflop"]["step"], record["tflop"]["decode"]
    assert min(step, decode) > 0
    for side in (record["kinema"], *record["baselines"].values()):
        seconds, speed, share = (side["warm"]["median"], side["tflop_per_second"], side["share_of_matrix_rate"])
        assert speed["denoise"] * seconds["denoise"] == pytest.approx(step * 2, rel=1e-3)
        assert speed["decode"] * seconds["decode"] == pytest.approx(decode, rel=1e-3)
        for stage in ("denoise", "decode"):
            assert share[stage] * record["matrix_tflop_per_second"]["float32"] == pytest.approx(speed[stage], rel=1e-3)


@pytest.mark.parametrize(
    ("vae_levels", "factor", "guided"),
    [
        (4, 8, True),
        (3, 4, False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, 8, False), (3, 4, True))),
    ],
)
def test_flops_equal_those_of_diffusers(tmp_path, guided, vae_levels, factor) -> None:
    """Count during a run, with attention as matmuls: torch does not count the CPU's attention kernel."""
    folder = make_tiny_svd(tmp_path, levels=4, latent_channels=8, vae_levels=vae_levels)
    request = request_of(folder, max_guidance_scale=3.0 if guided else 1.0, decode_chunk_size=2)
    pipeline = load(folder, device="cpu", dtype="float32", engine="reference")
    batch, size = 2 if guided else 1, (64 // factor, 64 // factor)
    latents = torch.zeros(3, 8, *size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as step:
            pipeline.unet(torch.zeros(batch, 3, 16, *size), 1.0, torch.zeros(batch, 1, 16), torch.zeros(batch, 3))
        with FlopCounterMode(display=False) as decode:
            for chunk in (latents[:2], latents[2:]):
                pipeline.vae.decode(chunk, num_frames=len(chunk))
    found = {"step": step.get_total_flops(), "decode": decode.get_total_flops()}
    assert counted(folder, request) == found


def test_record_has_parameters_and_model(record, tiny_svd) -> None:
    assert record["note"] == "random weights"
    assert list(record["baselines"]) == ["diffusers"]
    parameters = request_of(tiny_svd, decode_chunk_size=2, fps=9).model_dump(exclude={"model"})
    assert record["parameters"].items() <= (parameters | {"model": "tiny-svd"}).items()
    assert {"seed", "width", "fps", "decode_chunk_size"} <= set(record["parameters"])
    assert record["model"]["weights_sha256"] == load(tiny_svd, device="cpu").identity.weights_sha256
    assert record["image"] == {"name": "gradient", "sha256": gradient(64, 64).sha256}
    assert {"kinema", "python", "torch", "diffusers", "transformers"} <= set(record["versions"])
    assert record["machine"]["processor"]
    assert record["machine"]["threads"] == torch.get_num_threads()


def test_record_is_json_without_private_paths(record, tiny_svd) -> None:
    text = json.dumps(record, allow_nan=False)
    assert str(tiny_svd.parent) not in text


@pytest.mark.slow
def test_baseline_uses_decode_chunk_size_of_kinema(mixed) -> None:
    assert mixed["parameters"]["decode_chunk_size"] == 3


@pytest.mark.slow
def test_error_of_side_process_is_raised_despite_library_output(tiny_svd, tmp_path, monkeypatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "sys.addaudithook(lambda *event: event[1][:1] == ('diffusers',) and os.write(1, b'diffusers imported\\n'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    broken = shutil.copytree(tiny_svd, tmp_path / "broken")
    (broken / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    request = request_of(tiny_svd)
    with (
        started("kinema", task_of(broken), tmp_path / "side", tmp_path / "caches") as ours,
        pytest.raises(NotAnSvdModel, match="is None, expected"),
    ):
        ours.first(request)


@pytest.mark.slow
def test_crashed_side_process_reports_last_output(tiny_svd, tmp_path) -> None:
    request = request_of(tiny_svd)
    with started("diffusers", task_of(tmp_path), tmp_path / "side", tmp_path / "caches") as baseline:
        with pytest.raises(
            GenerationFailed, match=r"the process of diffusers ended with 1; its last output: OSError: .*"
        ):
            baseline.first(request)
        with pytest.raises(GenerationFailed, match="ended with 1"):
            baseline.make(request)


@pytest.mark.slow
def test_side_process_ends_with_benchmark(tiny_svd) -> None:
    before = children()
    machine = read_settings(device="cpu", dtype="float32")
    results = measure(str(tiny_svd), gradient(64, 64), request_of(tiny_svd), settings=machine)
    while not children() - before:
        next(results)
    results.close()
    assert children() == before


def test_distance_is_in_levels_and_decibels() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    assert distance(black, black) == {"psnr_db": None, "max_difference": 0, "mean_difference": 0}
    assert distance(black, black + 51) == {"psnr_db": 13.979, "max_difference": 51, "mean_difference": 51}
    assert distance(black + 255, black)["psnr_db"] == 0


def test_unsupported_baseline_engine_or_guidance_is_rejected(tiny_svd) -> None:
    with pytest.raises(
        InvalidRequest,
        match="baseline 'onediff' is not supported; use diffusers, diffusers-compile, kinema-one-gpu or nothing",
    ):
        named("diffusers,onediff")
    with pytest.raises(InvalidRequest, match="baseline diffusers is repeated in 'diffusers, diffusers'"):
        named("diffusers, diffusers")
    assert named("diffusers, diffusers-compile") == ["diffusers", "diffusers-compile"]
    assert named("nothing") == []
    with pytest.raises(InvalidRequest, match="engine 'slow' is not supported; use fast or reference"):
        check("slow")
    single = request_of(tiny_svd, num_frames=1)
    with pytest.raises(InvalidRequest, match="diffusers' pipeline fails at num_frames 1 with guidance from 1 to 3"):
        check_settings(["diffusers"], single)
    check_settings([], single)
    check_settings(["diffusers"], single.changed(max_guidance_scale=1.0))
    with pytest.raises(InvalidRequest, match="baseline kinema-one-gpu is Kinema itself unless Kinema has more; add"):
        check_settings(["kinema-one-gpu"], single)
    check_settings(["kinema-one-gpu"], single, gpus=2)


@pytest.mark.slow
def test_two_gpus_are_compared_with_one(tiny_svd) -> None:
    settings = read_settings(device="cpu", dtype="float32", gpus_per_video="2")
    request = request_of(tiny_svd)
    *_, record = measure(
        str(tiny_svd), gradient(64, 64), request, settings=settings, baselines=["kinema-one-gpu"], runs=1
    )
    assert (record["gpus"], record["memory_plan"], record["baseline_dtype"]) == (2, "resident_split", None)
    one = record["baselines"]["kinema-one-gpu"]
    assert one["frames"]["max_difference"] <= 1  # its guidance is not split, so sums have another order
    assert one["factor"]["denoise"] > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_several_baselines_alternate_and_reuse_compiler_caches(tiny_svd) -> None:
    processes, record = measured(tiny_svd, runs=1, baselines=["diffusers", "diffusers-compile"])
    assert "diffusers-compile: repeat in a new process, with the compiler caches of the first" in processes
    assert "kinema: repeat in a new process, with the compiler caches of the first" not in processes
    plain, compiled = record["baselines"].values()
    assert plain["frames"]["max_difference"] <= 1
    assert compiled["frames"]["max_difference"] <= 1
    assert plain["cold_again"] is None
    assert 0 < compiled["cold_again"]["loaded_after"] < compiled["cold_again"]["seconds"]

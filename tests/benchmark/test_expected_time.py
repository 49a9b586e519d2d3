"""The estimate of a video's time: the catalog's FLOPs, the constants' records, and the arithmetic."""

import json
from pathlib import Path

import pytest
import torch
from training.common import svd_config

from kinema.benchmark import expected_time
from kinema.benchmark.expected_time import block_rate, expected_seconds
from kinema.benchmark.flops import counted
from kinema.models.catalog import CATALOG, request_for

RECORDS = Path(__file__).parents[2] / "bench" / "results"


def write_svd_configs(folder: Path) -> Path:
    """Write the configurations of SVD, without weights."""
    channels = {"in_channels": 8, "out_channels": 4, "cross_attention_dim": 1024}
    channels |= {"block_out_channels": [320, 640, 1280, 1280]}
    for path, config in {
        "unet/config.json": svd_config.UNET | channels,
        "vae/config.json": svd_config.VAE,
        "image_encoder/config.json": svd_config.IMAGE_ENCODER,
        "scheduler/scheduler_config.json": svd_config.SCHEDULER,
        "feature_extractor/preprocessor_config.json": svd_config.FEATURE_EXTRACTOR,
    }.items():
        (folder / path).parent.mkdir()
        (folder / path).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "name", ["pocket", pytest.param("svd", marks=pytest.mark.slow), pytest.param("svd-xt", marks=pytest.mark.slow)]
)
def test_catalog_has_flops_of_default_parameters(name, tmp_path):
    entry = CATALOG[name]
    flop = counted(entry.folder or write_svd_configs(tmp_path), request_for(model=name))
    assert {part: count / 1e12 for part, count in flop.items()} == pytest.approx(entry.tflop, rel=1e-3)


def test_every_video_model_has_flops():
    assert all(set(entry.tflop) == {"step", "decode"} for entry in CATALOG.values())


@pytest.mark.parametrize(
    ("constant", "record", "side"),
    [
        ("GPU_FAST", "svd-xt-h100-diffusers", "kinema"),
        ("GPU_REFERENCE", "svd-xt-h100-diffusers", "diffusers"),
    ],
)
def test_constants_are_those_of_the_records(constant, record, side):
    sides = json.loads((RECORDS / f"{record}.json").read_text())
    share = (sides if side == "kinema" else sides["baselines"])[side]["share_of_matrix_rate"]
    assert getattr(expected_time, constant) == pytest.approx((share["denoise"], share["decode"]), rel=0.02)


@pytest.mark.parametrize(("constant", "dtype"), [("CPU_16_BIT", "bfloat16"), ("CPU_32_BIT", "float32")])
def test_constants_of_cpus_are_those_of_the_record(constant, dtype):
    share = json.loads((RECORDS / "pocket-block-rate.json").read_text())[dtype]["share_of_block_rate"]
    assert getattr(expected_time, constant) == pytest.approx((share["denoise"], share["decode"]), rel=0.02)


def test_estimate_on_a_cpu_is_close_to_each_measured_time():
    record = json.loads((RECORDS / "pocket-block-rate.json").read_text())
    for dtype in ("bfloat16", "float32"):
        for run in record[dtype]["runs"]:
            rate = run["block_tflop_per_second"] * 1e12
            seconds = expected_seconds(CATALOG["pocket"].tflop, 8, rate, torch.device("cpu"), getattr(torch, dtype))
            assert 1 / 1.5 < seconds / sum(run["seconds"].values()) < 1.5


def test_rate_of_a_cpu_is_measured_with_a_given_clock():
    ticks = iter(range(100))
    assert block_rate(torch.float32, seconds=1, clock=lambda: next(ticks)) == pytest.approx(6.689e9, rel=1e-3)


@pytest.mark.parametrize(("kernels", "side"), [(True, "kinema"), (False, "diffusers")])
def test_estimate_on_h100_is_close_to_measured_time(monkeypatch, kernels, side):
    monkeypatch.setattr(expected_time, "has_kernels", lambda *_: kernels)
    record = json.loads((RECORDS / "svd-xt-h100-diffusers.json").read_text())
    rate = record["matrix_tflop_per_second"]["float16"] * 1e12
    seconds = expected_seconds(CATALOG["svd-xt"].tflop, 25, rate, torch.device("cuda"), torch.float16)
    measured = (record if side == "kinema" else record["baselines"])[side]["warm"]["median"]["all"]
    assert seconds == pytest.approx(measured, rel=0.05)


def test_no_estimate_on_a_device_that_was_never_measured():
    assert expected_seconds(CATALOG["pocket"].tflop, 8, 1e12, torch.device("mps"), torch.float16) is None

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from cli_inputs import SMALL, draw
from fake_hub import FakeHub

from kinema.models.catalog import CATALOG, IMAGE_MODELS
from kinema.values import VideoRequest

HEAVY = {"torch", "diffusers", "transformers", "av", "huggingface_hub"}


def python(*arguments, **environment):
    """Another process, as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )


# Help and version


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["bench", "--help"]])
def test_help_loads_no_heavy_library(arguments):
    process = python("-c", f"import sys; from kinema.cli import main; main({arguments}); print(*sys.modules)")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "kinema" in out
    assert not HEAVY & set(out.splitlines()[-1].split())


def test_help_tells_every_setting_by_its_own_description(kinema):
    plain = re.sub(r"\x1b\[[\d;]*m", "", kinema("generate", "--help").out)  # some CI has colour everywhere
    shown = " ".join(plain.replace("│", " ").split())
    for name, field in VideoRequest.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert " ".join(field.description.split()) in shown
    assert "Default 1024 (pocket: 288)" in shown
    assert "64 to 2048" in shown
    assert "Exit codes: 0 success" in shown


def test_no_command_or_a_misspelt_one_gets_help(kinema):
    assert kinema().code == 2
    ran = kinema("genrate")
    assert (ran.code, ran.err) == (
        2,
        "error: no such command 'genrate'. Did you mean 'generate'? (see `kinema --help`)\n",
    )


# Models


def test_models_lists_the_catalog_with_size_place_and_licence(kinema, monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    out = kinema("models").out
    for entry in (*CATALOG.values(), *IMAGE_MODELS.values()):
        assert entry.name in out
        assert entry.licence in out
        assert entry.repository is None or entry.repository in out
    assert "4.5 GB" in out


def test_models_json_tells_what_is_here(kinema, monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    models = {model["name"]: model for model in json.loads(kinema("models", "--json").out)}
    assert list(models) == [*CATALOG, *IMAGE_MODELS]
    assert models["svd-xt"]["present"] is False
    assert models["svd-xt"]["size_bytes"] == CATALOG["svd-xt"].size_bytes
    assert models["svd-xt-1.1"]["gated"] is True


def test_pull_of_an_unknown_name_is_refused(kinema):
    ran = kinema("models", "pull", "svdxt")
    assert ran.code == 3
    assert "did you mean svd-xt?" in ran.err


def test_pull_fetches_a_model_and_tells_progress_licence_and_place(folder, tiny_svd):
    with FakeHub(tiny_svd, "someone/tiny") as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
        process = python("-m", "kinema", "models", "pull", "someone/tiny", **environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        again = python("-m", "kinema", "models", "pull", "someone/tiny", "--json", **environment)
        events = [json.loads(line) for line in again.communicate(timeout=120)[0].splitlines()]
    assert out.startswith(str(folder / "hf"))
    assert "for its licence see https://huggingface.co/someone/tiny" in err
    assert "download " in err
    assert events[-1] == {"event": "done", "path": out.strip()}


# The doctor


def test_the_doctor_tells_device_memory_plans_versions_and_settings(kinema):
    ran = kinema("doctor", "--json")
    assert ran.code == 0
    facts = json.loads(ran.out)
    assert facts["device"] in facts["devices"]
    assert facts["dtype"] in {"float16", "bfloat16", "float32"}
    assert 0 < facts["memory_free_bytes"] <= facts["memory_total_bytes"]
    assert [model["name"] for model in facts["models"]] == [*CATALOG, *IMAGE_MODELS]
    for model in facts["models"]:
        assert (model["plan"] is None) != (model["error"] is None)
    assert {"python", "torch", "diffusers", "transformers", "av"} <= set(facts["versions"])
    assert {"model": None, "device": "auto", "dtype": "auto"}.items() <= facts["settings"].items()


def test_the_doctor_speaks_to_persons_too(kinema):
    out = kinema("doctor").out
    for word in ("device", "dtype", "memory", "versions", "cache", "settings", "svd-xt-1.1"):
        assert word in out


def test_the_doctor_says_what_does_not_fit(kinema, monkeypatch):
    monkeypatch.setattr("kinema.models.devices.free_memory", lambda _device: 2**30)
    svd = json.loads(kinema("doctor", "--json").out)["models"][1]
    assert svd["plan"] is None
    assert svd["error"].startswith("does not fit: 14 frames of 1024×576 need about")


def test_the_doctor_names_a_setting_that_asks_for_what_is_not_here(kinema, monkeypatch):
    monkeypatch.setenv("KINEMA_DEVICE", "cuda:77")
    ran = kinema("doctor", "--json")
    assert ran.code == 0
    assert any("there is no device 'cuda:77' here" in problem for problem in json.loads(ran.out)["problems"])


# Signals


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_work_and_leaves_nothing(folder, tiny_svd, tmp_path_factory, number, code):
    image = draw(tmp_path_factory.mktemp("images") / "rocket.png")
    options = ["--width=256", "--height=256", "--num-frames=8", "--num-inference-steps=200"]
    process = python("-m", "kinema", "generate", image, "--model", tiny_svd, *options, "-o", folder / "out.mp4")
    for line in process.stderr:
        if line.startswith("denoise 2/"):
            break
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - began < 10
    assert out == ""
    assert err.splitlines()[-1] == "interrupted: no partial file is left"
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_process_prints_the_path_alone_and_exits_0(folder, image, tiny_svd):
    process = python("-m", "kinema", "generate", image, "--model", tiny_svd, *SMALL)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "rocket.mp4\n")
    assert "Warning" not in err

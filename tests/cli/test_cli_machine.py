import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import sqlalchemy
from cli_inputs import SMALL, write_image
from fake_hub import FakeHub

from kinema.engine.fast.hardware import Capabilities
from kinema.jobs.database import create_engine
from kinema.jobs.job_schema import JOBS, METADATA
from kinema.models.catalog import CATALOG, IMAGE_MODELS, request_for
from kinema.models.memory_plan import MemoryPlan
from kinema.models.workload import video_workload
from kinema.values import VideoRequest

HEAVY = {"torch", "diffusers", "transformers", "av", "huggingface_hub"}


def start_python(*arguments, **environment):
    """Start Python in another process."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"} | environment,
    )


# Help and version


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["bench", "--help"]])
def test_help_imports_no_heavy_library(arguments):
    process = start_python("-c", f"import sys; from kinema.cli import main; main({arguments}); print(*sys.modules)")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "kinema" in out
    assert not HEAVY & set(out.splitlines()[-1].split())


def test_help_shows_every_field_description(kinema):
    plain = re.sub(r"\x1b\[[\d;]*m", "", kinema("generate", "--help").out)  # some CI systems force colour
    shown = " ".join(plain.replace("│", " ").split())
    for name, field in VideoRequest.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown
        description = field.description.replace("playback_fps", "--playback-fps").replace("from fps", "from --fps")
        description = description.replace("Unset: chosen", "Unset: 1 for pocket; for other models, chosen")
        assert description in shown
    assert "Default 25 (pocket, svd: 14)" in shown
    assert "svd-xt: 1024x576, 576x1024, 768x768; pocket: 288x160, 160x288, 224x224." in shown
    assert "for other models, chosen to fit the free memory. At least 1." in shown
    assert "Default euler for pocket-t2i and sd-2.1-base." in shown
    assert "64 to 2048" in shown
    assert "Exit codes: 0 success" in shown


def test_missing_or_misspelt_command_exits_2(kinema):
    assert kinema().code == 2
    result = kinema("genrate")
    assert (result.code, result.err) == (
        2,
        "error: no such command 'genrate'. Did you mean 'generate'? (see `kinema --help`)\n",
    )


# Models


def test_models_lists_catalog_with_size_source_and_licence(kinema, monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    out = kinema("models").out
    for entry in (*CATALOG.values(), *IMAGE_MODELS.values()):
        assert entry.name in out
        assert entry.licence in out
        assert entry.repository is None or entry.repository in out
    assert "4.5 GB" in out


def test_models_json_shows_which_are_downloaded(kinema, monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    models = {model["name"]: model for model in json.loads(kinema("models", "--json").out)}
    assert list(models) == [*CATALOG, *IMAGE_MODELS]
    assert models["svd-xt"]["present"] is False
    assert models["svd-xt"]["size_bytes"] == CATALOG["svd-xt"].size_bytes
    assert models["svd-xt-1.1"]["gated"] is True


def test_pull_unknown_name_is_rejected(kinema):
    result = kinema("models", "pull", "svdxt")
    assert result.code == 3
    assert "did you mean svd-xt?" in result.err
    assert "Use pocket, svd, svd-xt, svd-xt-1.1, pocket-t2i, sd-2.1-base, sdxl-turbo, a hub id" in result.err


def test_pull_downloads_model_and_prints_progress_licence_and_folder(folder, tiny_svd):
    with FakeHub(tiny_svd, "someone/tiny") as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
        process = start_python("-m", "kinema", "models", "pull", "someone/tiny", **environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        again = start_python("-m", "kinema", "models", "pull", "someone/tiny", "--json", **environment)
        events = [json.loads(line) for line in again.communicate(timeout=120)[0].splitlines()]
    assert out.startswith(str(folder / "hf"))
    assert "for its licence see https://huggingface.co/someone/tiny" in err
    assert "download " in err
    assert events[-1] == {"event": "done", "path": out.strip()}


# Doctor


def test_tables_have_no_trailing_spaces(kinema):
    for command in (("doctor",), ("models",)):
        assert [line for line in kinema(*command).out.splitlines() if line != line.rstrip()] == []


def test_doctor_json_shows_device_memory_plans_versions_and_settings(kinema):
    result = kinema("doctor", "--json")
    assert result.code == 0
    facts = json.loads(result.out)
    assert facts["device"] in facts["devices"]
    assert facts["dtype"] in {"float16", "bfloat16", "float32"}
    assert 0 < facts["memory_free_bytes"] <= facts["memory_total_bytes"]
    assert [model["name"] for model in facts["models"]] == [*CATALOG, *IMAGE_MODELS]
    for model in facts["models"]:
        assert (model["plan"] is None) != (model["error"] is None)
    assert {"python", "torch", "diffusers", "transformers", "av"} <= set(facts["versions"])
    assert {"model": None, "device": "auto", "dtype": "auto"}.items() <= facts["settings"].items()


def test_doctor_estimates_the_time_of_a_video_and_marks_demo_models(kinema):
    models = {model["name"]: model for model in json.loads(kinema("doctor", "--json").out)["models"]}
    assert models["pocket"]["time"]["source"] == "estimate"
    assert 0 < models["pocket"]["time"]["seconds"] < 600
    assert models["pocket-t2i"]["time"] is None  # of a video
    assert [name for name, model in models.items() if model["demo"]] == ["pocket", "pocket-t2i"]
    out = kinema("doctor").out
    assert re.search(r"pocket \(demo model\) +yes +(about \d+ (s|min)|under 1 s) \(estimate\) ", out)
    assert re.search(r"pocket-t2i \(demo model\) +yes +– ", out)


def test_doctor_has_no_estimate_for_layers_offloaded_one_by_one(kinema, monkeypatch):
    plan = MemoryPlan("sequential_offload", 4)
    monkeypatch.setattr("kinema.cli.doctor._video_pipeline_plan", lambda *_: plan)
    models = json.loads(kinema("doctor", "--json").out)["models"]
    assert models[0]["time"] is None


@pytest.mark.parametrize("content", [None, b"", b"not a database"])
def test_doctor_estimates_without_a_usable_database(kinema, folder, monkeypatch, content):
    monkeypatch.setenv("KINEMA_DATA_DIR", str(folder))
    if content is not None:
        (folder / "jobs.sqlite3").write_bytes(content)
    assert json.loads(kinema("doctor", "--json").out)["models"][0]["time"]["source"] == "estimate"
    assert [path.name for path in folder.iterdir()] == ([] if content is None else ["jobs.sqlite3"])


def test_doctor_shows_the_time_of_the_latest_jobs(kinema, folder, monkeypatch):
    monkeypatch.setenv("KINEMA_DATA_DIR", str(folder))
    request = request_for(model="pocket", seed=1, num_inference_steps=4)
    durations = {"encode": 1.0, "denoise": 100.0, "decode": 50.0}
    engine = create_engine(sqlalchemy.make_url(f"sqlite:///{folder / 'jobs.sqlite3'}"))
    with engine.begin() as connection:
        METADATA.create_all(connection)
        job = {"id": "video_1", "status": "completed", "priority": 0, "created_at": 1.0, "completed_at": 2.0}
        job["work"] = video_workload(request).total
        texts = {"model": "pocket", "request": request.model_dump_json(), "stage_durations": json.dumps(durations)}
        connection.execute(JOBS.insert().values(job | texts))
    engine.dispose()
    models = json.loads(kinema("doctor", "--json").out)["models"]
    assert models[0]["time"] == {"seconds": 251.0, "source": "measured"}  # twice as many steps
    assert models[1]["time"]["source"] == "estimate"
    assert re.search(r"pocket \(demo model\) +yes +about 4 min \(measured\) ", kinema("doctor").out)


def test_doctor_shows_active_kernels_and_why_others_are_off(kinema, monkeypatch):
    assert json.loads(kinema("doctor", "--json").out)["kernels"] == {
        "active": [],
        "reason": "kernels need an NVIDIA GPU",
    }
    assert re.search(r"kernels +none: kernels need an NVIDIA GPU *\n", kinema("doctor").out)
    found = Capabilities(triton=True, sm90=True, fp8=True, reason="Gluon 4.0 failed: no warps")
    monkeypatch.setattr("kinema.engine.fast.hardware.capabilities", lambda _: found)
    monkeypatch.setenv("KINEMA_DTYPE", "bfloat16")
    assert re.search(r"kernels +Triton, fp8; others are off: Gluon 4.0 failed: no warps *\n", kinema("doctor").out)
    monkeypatch.setenv("KINEMA_DTYPE", "float32")
    assert re.search(r"kernels +none: kernels need dtype float16 or bfloat16 *\n", kinema("doctor").out)


def test_doctor_reports_a_misspelt_variable(kinema, monkeypatch):
    monkeypatch.setenv("KINEMA_API_KEY", "secret")
    assert json.loads(kinema("doctor", "--json").out)["problems"] == [
        "KINEMA_API_KEY is not a setting; did you mean KINEMA_API_KEYS?"
    ]


def test_doctor_prints_only_changed_settings(kinema, monkeypatch):
    assert re.search(r"settings +all at their defaults", kinema("doctor").out)
    monkeypatch.setenv("KINEMA_DTYPE", "float32")
    assert re.search(r"settings +dtype float32 *\n", kinema("doctor").out)


def test_doctor_prints_a_table(kinema):
    out = kinema("doctor").out
    for title in ("device", "dtype", "memory", "versions", "cache", "settings", "svd-xt-1.1"):
        assert title in out


def test_doctor_reports_model_that_does_not_fit(kinema, monkeypatch):
    monkeypatch.setattr("kinema.models.devices.free_memory", lambda _device: 2**30)
    svd = json.loads(kinema("doctor", "--json").out)["models"][1]
    assert svd["plan"] is None
    assert svd["error"].startswith("does not fit: 14 frames of 1024×576 need at least")


def test_doctor_reports_unavailable_device_setting(kinema, monkeypatch):
    monkeypatch.setenv("KINEMA_DEVICE", "cuda:77")
    result = kinema("doctor", "--json")
    assert result.code == 0
    assert any("device 'cuda:77' is not available" in problem for problem in json.loads(result.out)["problems"])


# Signals


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_denoise_exits_and_leaves_no_file(folder, tiny_svd, tmp_path_factory, number, code):
    image = write_image(tmp_path_factory.mktemp("images") / "rocket.png")
    options = ["--width=256", "--height=256", "--num-frames=8", "--num-inference-steps=200"]
    process = start_python("-m", "kinema", "generate", image, "--model", tiny_svd, *options, "-o", folder / "out.mp4")
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
def test_process_prints_only_path_and_exits_0(folder, image, tiny_svd):
    process = start_python("-m", "kinema", "generate", image, "--model", tiny_svd, *SMALL)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "rocket.mp4\n")
    assert "Warning" not in err


def test_doctor_shows_plans_of_a_group_and_reports_too_many_gpus(kinema, monkeypatch):
    monkeypatch.setenv("KINEMA_GPUS_PER_VIDEO", "2")
    facts = json.loads(kinema("doctor", "--json").out)
    assert any("gpus is 2, but the number of CUDA GPUs on this machine is 0" in each for each in facts["problems"])
    assert facts["gpus_per_video"] == 1
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")  # where a group is possible, of use for tests only
    monkeypatch.setattr("kinema.models.devices.free_memory", lambda _device: 2**36)
    facts = json.loads(kinema("doctor", "--json").out)
    assert facts["problems"] == []
    plan = next(model["plan"] for model in facts["models"] if model["name"] == "svd-xt")
    assert (plan["name"], plan["decode_chunk_size"]) == ("resident_split", 13)

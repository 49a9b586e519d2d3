"""The engine as the queue's work, on a tiny model: the parts of a job write the same file as a single run."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from server_process import child_processes

import kinema
from kinema.engine import Checkpoint, Projection, generate, to_latents, to_video
from kinema.errors import ContentRefused, InvalidRequest, ModelError
from kinema.jobs import NewJob, Queue
from kinema.jobs.job import DeviceState, Task
from kinema.media import safety_check
from kinema.media.image import fit_image, open_image
from kinema.media.video_reader import read_recipe
from kinema.media.watermark import payload_of
from kinema.models import loading
from kinema.models.catalog import request_for
from kinema.models.gpu_group import PEER
from kinema.serving.engine_work import EngineWork, ServerWork
from kinema.settings import read_settings
from kinema.steps import drive
from tiny import make_tiny_svd

SMALL = {"width": 64, "height": 64, "num_frames": 2, "num_inference_steps": 2, "seed": 5}


@pytest.fixture
def work(monkeypatch, tiny_svd):
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")
    monkeypatch.setenv("KINEMA_DTYPE", "float32")
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    return EngineWork()


def run(work, task):
    """Return the steps of a task, the preview of each, and the output."""
    steps, previews = [], []

    def on_step(step):
        steps.append(step)
        previews.append(work.preview(step))

    return steps, previews, drive(work(task, None), on_step)


def test_saved_checkpoint_decodes_to_video_of_one_run(tiny_svd, png, tmp_path):
    pipeline = loading.load(tiny_svd, device="cpu", dtype="float32")
    image, request = open_image(png), request_for(model=str(tiny_svd), **SMALL)
    whole = drive(generate(pipeline, image, request))
    denoised = drive(to_latents(pipeline, image, request))
    denoised.save(tmp_path / "latents.safetensors")
    again = drive(to_video(pipeline, image, request, Checkpoint.load(tmp_path / "latents.safetensors")))
    assert np.array_equal(whole.frames, again.frames)
    assert whole.recipe == again.recipe


def test_task_parts_write_same_file_as_one_run(work, tiny_svd, png, tmp_path):
    request = request_for(model=str(tiny_svd), **SMALL)
    image = tmp_path / "image"
    image.write_bytes(png)
    steps, _, denoised = run(work, Task("j", "latents", request, image))
    assert [(s.stage, s.step) for s in steps] == [
        ("encode", 1), ("encode", 2), ("denoise", 1), ("denoise", 2),
    ]  # fmt: skip
    denoised.save(tmp_path / "latents.safetensors")
    _, previews, video = run(work, Task("j", "video", request, image, tmp_path / "latents.safetensors"))
    assert all(Image.open(io.BytesIO(data)).format == "JPEG" for data in previews)
    whole = drive(generate(loading.load(tiny_svd, device="cpu", dtype="float32"), open_image(png), request))
    assert video.save(tmp_path / "one.mp4").read_bytes() == whole.save(tmp_path / "other.mp4").read_bytes()


def test_task_with_a_video_to_extend_makes_what_the_library_makes(work, tiny_svd, png, tmp_path):
    pipeline = loading.load(tiny_svd, device="cpu", dtype="float32")
    short = drive(generate(pipeline, open_image(png), request_for(model=str(tiny_svd), **SMALL)))
    short.save(tmp_path / "short.mp4")
    whole = kinema.extend(tmp_path / "short.mp4", num_frames=3, image=png, model=pipeline)
    (tmp_path / "image").write_bytes(png)
    files = {"image": tmp_path / "image", "source_video": tmp_path / "short.mp4"}
    request = whole.recipe.request.changed(model=str(tiny_svd))  # a recipe has only the folder's name
    denoised = drive(work(Task("j", "latents", request, **files), None))
    finished = drive(work(Task("j", "video", request, latents=tmp_path / "latents", **files), denoised))
    assert np.array_equal(finished.video.frames, whole.frames)
    assert finished.video.recipe == whole.recipe


def test_prepared_image_and_latents_in_memory_give_same_video(work, tiny_svd, png, tmp_path):
    request = request_for(model=str(tiny_svd), **SMALL)
    image, latents = tmp_path / "image", tmp_path / "latents.safetensors"
    image.write_bytes(png)
    tasks = Task("j", "latents", request, image), Task("j", "video", request, image, latents)
    work.prepare(tasks[0])
    image.unlink()
    denoised = drive(work(tasks[0], None))
    video = drive(work(tasks[1], denoised))  # the latents are not saved
    whole = drive(generate(loading.load(tiny_svd, device="cpu", dtype="float32"), open_image(png), request))
    assert np.array_equal(video.video.frames, whole.frames)


def test_latents_of_a_prepared_job_do_not_wait_for_the_cpu_and_are_the_same(work, tiny_svd, png, tmp_path, monkeypatch):
    request = request_for(model=str(tiny_svd), **SMALL, noise_aug_strength=0.5)
    image, last_image = tmp_path / "image", tmp_path / "last"
    image.write_bytes(png)
    Image.effect_noise((64, 64), 90).save(last_image, "PNG")
    task = Task("j", "latents", request, image, last_image=last_image)
    expected = drive(work(task, None)).latents  # and the model is loaded
    work.prepare(task)
    with monkeypatch.context() as without_inputs:
        without_inputs.setattr("kinema.engine.image_to_video.encoder_inputs", None)
        assert drive(work(task, None)).latents.equal(expected)
    assert drive(work(task, None)).latents.equal(expected)  # inputs are used once


def test_images_of_two_jobs_at_most_stay_open(work, tiny_svd, png, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(png)
    for job in range(5):
        task = Task(f"j{job}", "latents", request_for(model=str(tiny_svd), **SMALL), image)
        work.prepare(task)
        next(work(task, None)).latents  # noqa: B018 - the first step
        assert len(work._images) <= 2


def test_start_loads_default_model_and_generates_a_video_where_kernels_are_compiled(work, monkeypatch, tmp_path, png):
    folder = make_tiny_svd(tmp_path / "svd")
    (folder / "kinema.json").write_text('{"defaults": {"width": 64, "height": 64, "num_frames": 2}}')
    monkeypatch.setenv("KINEMA_MODEL", str(folder))
    generated, reports = [], []
    monkeypatch.setattr("kinema.engine.generate", lambda *given: generated.append(given[2]) or generate(*given))
    assert EngineWork().start(reports.append) == DeviceState("cpu", 0, str(folder))
    assert (generated, reports) == ([], [f"loading {folder}"])
    monkeypatch.setattr("kinema.models.devices.has_kernels", lambda *_: True)
    EngineWork().start(reports.append)
    assert reports[1:] == [f"loading {folder}", f"compiling the kernels of {folder}"]
    assert [(request.width, request.num_frames, request.num_inference_steps) for request in generated] == [(64, 2, 2)]


def test_start_of_a_spare_imports_nothing_large(tiny_svd, monkeypatch):
    monkeypatch.setenv("KINEMA_MODEL", str(tiny_svd))
    code = (
        "import sys; from kinema.serving.engine_work import EngineWork; EngineWork.import_libraries()\n"
        "import torch; before = set(sys.modules); assert not torch.cuda.is_initialized()\n"
        "assert EngineWork().start(lambda _: None).model\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(new & {'kinema', 'av', 'safetensors', 'triton'})"
    )
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert imported == "set()\n"


def test_start_does_not_wait_for_the_hash_of_the_weights(monkeypatch, tmp_path):
    folder, hashed = make_tiny_svd(tmp_path / "svd"), threading.Event()
    (folder / "kinema.json").write_text('{"defaults": {"width": 64, "height": 64, "num_frames": 2}}')
    monkeypatch.setenv("KINEMA_MODEL", str(folder))
    monkeypatch.setattr("kinema.models.devices.has_kernels", lambda *_: True)
    monkeypatch.setattr(loading, "weights_sha256", lambda *_: hashed.wait() and "")
    work = EngineWork()
    thread = threading.Thread(target=work.start, args=(print,), daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    assert not work._pipeline[1]._digest.done()
    hashed.set()


def test_start_without_usable_default_model_only_reports_it(monkeypatch, capfd):
    monkeypatch.setenv("KINEMA_MODEL", "/nowhere/svd")
    assert EngineWork().start(print).model is None
    assert "loading" not in capfd.readouterr().out


def test_reported_model_is_the_loaded_one(work, tiny_svd, png, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(png)
    state = work.start(print)
    assert state.model == str(tiny_svd)
    with pytest.raises(ModelError):
        drive(work(Task("j", "latents", request_for(model="/nowhere/svd"), image), None))
    assert state.model is None
    drive(work(Task("j", "latents", request_for(model=str(tiny_svd), **SMALL), image), None))
    assert state.model == str(tiny_svd)


def test_denoising_steps_have_jpeg_previews(work, tiny_svd, png, tmp_path):
    image = tmp_path / "image"
    image.write_bytes(png)
    steps, previews, denoised = run(work, Task("j", "latents", request_for(model=str(tiny_svd), **SMALL), image))
    assert [preview is not None for preview in previews] == [step.stage == "denoise" for step in steps]
    assert {Image.open(io.BytesIO(data)).format for data in filter(None, previews)} == {"JPEG"}
    assert work.preview(denoised) is None


@pytest.mark.parametrize("vae_levels", [2, *(pytest.param(levels, marks=pytest.mark.slow) for levels in (3, 4))])
def test_preview_has_size_of_video(work, tmp_path, png, vae_levels):
    folder, image = make_tiny_svd(tmp_path / "svd", vae_levels=vae_levels), tmp_path / "image"
    image.write_bytes(png)
    request = request_for(model=str(folder), **{**SMALL, "width": 72, "num_inference_steps": 1})
    preview = run(work, Task("j", "latents", request, image))[1][-1]
    assert Image.open(io.BytesIO(preview)).size == (72, request.height)


def test_projection_is_fitted_before_first_step(work, tiny_svd, png, tmp_path, monkeypatch):
    """Fitting may move modules that the steps use."""
    image, events, fit = tmp_path / "image", [], Projection.fit
    image.write_bytes(png)
    monkeypatch.setattr(Projection, "fit", staticmethod(lambda pipeline: events.append("fit") or fit(pipeline)))
    task = Task("j", "latents", request_for(model=str(tiny_svd), **SMALL), image)
    drive(work(task, None), lambda step: events.append(step.stage) or work.preview(step))
    assert events[:2] == ["fit", "encode"]
    assert events.count("fit") == 1


def test_first_preview_resembles_image(monkeypatch, tmp_path):
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")
    monkeypatch.setenv("KINEMA_MODEL", "pocket")
    rocket = Path(__file__).parents[2] / "examples" / "rocket.jpg"
    request = request_for(model="pocket", seed=3, num_frames=2)
    work = EngineWork()
    first = next(step for step in work(Task("j", "latents", request, rocket), None) if step.clean is not None)
    preview_image = Image.open(io.BytesIO(work.preview(first))).resize((36, 20))
    scene = fit_image(open_image(rocket), 288, 160).resize((36, 20))
    correlation = np.corrcoef(np.asarray(preview_image, float).ravel(), np.asarray(scene, float).ravel())[0, 1]
    assert correlation > 0.6, correlation


def test_projection_returns_image_for_any_channel_count(tiny_svd_4_levels):
    import torch

    projection = Projection.fit(loading.load(tiny_svd_4_levels, device="cpu", dtype="float32"))
    assert projection.image(torch.randn(1, 3, 8, 6, 10) * 700).size == (10, 6)


def test_generated_image_recipe_is_in_video(work, tiny_svd, tiny_sd, tmp_path):
    request = request_for(
        model=str(tiny_svd), prompt="a cat", image_model=str(tiny_sd), image_num_inference_steps=1, **SMALL
    )
    *_, generated = run(work, Task("j", "image", request))
    assert Image.open(io.BytesIO(work.preview(generated))).size == (64, 64)
    generated.save(tmp_path / "image.png")
    *_, denoised = run(work, Task("j", "latents", request, tmp_path / "image.png"))
    denoised.save(tmp_path / "latents.safetensors")
    *_, video = run(work, Task("j", "video", request, tmp_path / "image.png", tmp_path / "latents.safetensors"))
    recipe = read_recipe(video.save(tmp_path / "cat.mp4"))
    assert recipe.image_generation == generated.image.image_generation
    assert recipe.image_sha256 == generated.image.sha256


@pytest.mark.parametrize(
    ("kind", "setting", "is_watermarked"),
    [(ServerWork, None, True), (ServerWork, "off", False), (EngineWork, None, False), (EngineWork, "on", True)],
)
def test_videos_of_a_server_are_watermarked_unless_setting_is_off(
    work, monkeypatch, tiny_svd, png, tmp_path, kind, setting, is_watermarked
):
    if setting is not None:
        monkeypatch.setenv("KINEMA_WATERMARK", setting)
    image, request = tmp_path / "image", request_for(model=str(tiny_svd), **SMALL)
    image.write_bytes(png)
    part = kind()
    denoised = drive(part(Task("j", "latents", request, image), None))
    denoised.save(tmp_path / "latents.safetensors")
    video = Task("j", "video", request, image, tmp_path / "latents.safetensors")
    first, second = (drive(part(video, None)).save(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    recipe = read_recipe(first)
    expected = f"{payload_of(request, recipe.image_sha256):08x}" if is_watermarked else None
    assert recipe.encoding.watermark == expected
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("kind", "setting", "is_refused"),
    [
        (ServerWork, "video", True),
        (ServerWork, "image", False),
        (ServerWork, "off", False),
        (EngineWork, "video", False),
    ],
)
def test_server_refuses_videos_and_previews_none_if_they_are_checked(
    work, monkeypatch, tiny_svd, png, tmp_path, kind, setting, is_refused
):
    monkeypatch.setenv("KINEMA_SAFETY", setting)
    monkeypatch.setattr(safety_check, "safety_score", lambda _: 0.9)
    image, request = tmp_path / "image", request_for(model=str(tiny_svd), **SMALL)
    image.write_bytes(png)
    part = kind()
    denoised = drive(part(Task("j", "latents", request, image), None))
    _, previews, _ = run(part, Task("j", "latents", request, image))
    assert ([preview for preview in previews if preview is not None] == []) == is_refused
    video = drive(part(Task("j", "video", request, image, tmp_path / "latents.safetensors"), denoised))
    if not is_refused:
        video.save(tmp_path / "a.mp4")
        return
    with pytest.raises(ContentRefused):
        video.save(tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


def test_server_refuses_a_generated_image(work, monkeypatch, tiny_svd, tiny_sd):
    monkeypatch.setenv("KINEMA_SAFETY", "image")
    monkeypatch.setattr(safety_check, "safety_score", lambda _: 0.9)
    request = request_for(
        model=str(tiny_svd), prompt="a cat", image_model=str(tiny_sd), image_num_inference_steps=1, **SMALL
    )
    with pytest.raises(ContentRefused):
        drive(ServerWork()(Task("j", "image", request), None))


def test_worker_without_the_package_of_the_safety_check_does_not_start(work, monkeypatch):
    monkeypatch.setenv("KINEMA_SAFETY", "video")
    monkeypatch.setattr(safety_check, "PACKAGE", "kinema_absent_package")
    with pytest.raises(InvalidRequest, match=r"'\.\[safety\]'"):
        ServerWork()


@pytest.mark.slow
def test_job_of_a_group_runs_again_when_its_second_process_dies(monkeypatch, tiny_svd, png, tmp_path):
    for name, value in {"DEVICE": "cpu", "DTYPE": "float32", "MODEL": tiny_svd, "GPUS_PER_VIDEO": 2}.items():
        monkeypatch.setenv(f"KINEMA_{name}", str(value))
    request = request_for(model=str(tiny_svd), **SMALL | {"num_inference_steps": 200, "max_guidance_scale": 2.0})
    settings = read_settings(data_dir=str(tmp_path / "data"), min_free_gb="0")
    with Queue(settings, "kinema.serving.engine_work:EngineWork") as queue:
        job = queue.submit(NewJob(request, image=png))
        killed = 0
        for state in queue.subscribe(job.id):
            if state.step and not killed:
                for process in child_processes(PEER):
                    process.kill()
                    killed += 1
        assert killed == 1
        job = queue.get(job.id)
        assert (job.status, job.error, job.attempts) == ("completed", None, 1)
        recipe = read_recipe(queue.result(job.id))
    assert (recipe.gpus, recipe.memory_plan) == (2, "resident_split")

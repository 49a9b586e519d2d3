import dataclasses
import json
import shutil

import pytest
import torch
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from kinema.errors import (
    InsufficientMemory,
    InvalidRequest,
    ModelCorrupt,
    ModelIncomplete,
    ModelNotFound,
    NotAnImagePipeline,
    NotAnSvdModel,
)
from kinema.models import image_pipeline as image_pipeline_module
from kinema.models import resolve as resolve_module
from kinema.models.catalog import (
    CATALOG,
    IMAGE_MODELS,
    for_image_model,
    image_model_defaults,
    parameter_warnings,
    request_for,
)
from kinema.models.image_pipeline import default_image_model, load_image_pipeline
from kinema.models.image_pipeline_offload import plan_image_pipeline
from kinema.models.memory_plan import GIB
from kinema.models.resolve import inventory, pull, resolve
from kinema.settings import Settings
from tiny import make_tiny_sd, write_json

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
SD = IMAGE_MODELS["sd-2.1-base"]


def load_on_cpu(folder, dtype="float32"):
    return load_image_pipeline(folder, device="cpu", dtype=dtype, settings=Settings())


@pytest.fixture
def model_folder(tmp_path, tiny_sd):
    """A copy of the tiny text-to-image model that a test may damage."""
    return shutil.copytree(tiny_sd, tmp_path / "own")


def edit(path, **changes):
    write_json(path, {**json.loads(path.read_text()), **changes})


# Loading


def test_load_gives_weights_and_classes_of_diffusers(tiny_sd):
    import diffusers
    import transformers

    image_pipeline = load_on_cpu(tiny_sd)
    kinds = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
    }
    assert image_pipeline.networks.keys() == kinds.keys()
    for component, kind in kinds.items():
        expected = kind.from_pretrained(tiny_sd / component).state_dict()
        actual = image_pipeline.networks[component].state_dict()
        assert type(image_pipeline.networks[component]) is kind
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_loaded_networks_have_requested_dtype_in_eval_mode(tiny_sd, dtype):
    image_pipeline = load_on_cpu(tiny_sd, dtype)
    for network in image_pipeline.networks.values():
        assert {(p.dtype, p.device.type, p.requires_grad) for p in network.parameters()} == {
            (getattr(torch, dtype), "cpu", False)
        }
        assert not network.training


def test_load_prints_nothing(tiny_sd, capfd):
    load_on_cpu(tiny_sd)
    assert capfd.readouterr() == ("", "")


def test_dtype_selects_fp16_variant_or_full_weights(model_folder):
    make_tiny_sd(model_folder, seed=1, dtype=torch.float16, variant="fp16")
    half, full = load_on_cpu(model_folder, "float16"), load_on_cpu(model_folder)
    assert {name for name in half.snapshot.files if "fp16" in name} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    }
    assert not [name for name in full.snapshot.files if "fp16" in name]
    assert half.identity.weights_sha256 != full.identity.weights_sha256
    assert not torch.equal(half.networks["unet"].conv_in.weight.float(), full.networks["unet"].conv_in.weight)


def test_fp16_weights_of_one_part_are_used_and_noted(model_folder):
    (model_folder / UNET).rename(model_folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    image_pipeline = load_on_cpu(model_folder)
    assert image_pipeline.notes == ("text-to-image runs in float32 with weights rounded to float16 (unet)",)
    assert TEXT in image_pipeline.snapshot.files


def test_shards_load_same_weights_as_single_file(tiny_sd, tmp_path):
    sharded, whole = load_on_cpu(make_tiny_sd(tmp_path, max_shard_size="200KB")), load_on_cpu(tiny_sd)
    assert len(sharded.snapshot.files) > len(whole.snapshot.files)
    for component, network in whole.networks.items():
        actual = sharded.networks[component].state_dict()
        assert all(torch.equal(value, actual[name]) for name, value in network.state_dict().items())


def test_identity_has_folder_name_without_path(tiny_sd, model_folder):
    identity = load_on_cpu(tiny_sd).identity
    assert (identity.name, identity.revision) == ("tiny-sd", None)
    assert load_on_cpu(model_folder).identity.weights_sha256 == identity.weights_sha256
    tensors = load_file(model_folder / UNET)
    tensors["conv_in.bias"] += 1
    save_file(tensors, model_folder / UNET)
    assert load_on_cpu(model_folder).identity.weights_sha256 != identity.weights_sha256


def test_release_frees_memory(tiny_sd):
    image_pipeline = load_on_cpu(tiny_sd)
    image_pipeline.release()
    assert {p.device.type for network in image_pipeline.networks.values() for p in network.parameters()} == {"meta"}


def test_safety_checker_and_feature_extractor_are_not_loaded(model_folder):
    shutil.rmtree(model_folder / "feature_extractor")
    edit(
        model_folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        requires_safety_checker=True,
    )
    assert set(load_on_cpu(model_folder).networks) == {"unet", "vae", "text_encoder"}


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "StableVideoDiffusionPipeline"}, "generates videos, not images; use it as the model"),
        (
            {"_class_name": "StableAudioPipeline"},
            "is a StableAudioPipeline, which can't generate an image from a prompt",
        ),
        ({"_class_name": "StableDiffusionControlNetPipeline"}, "can't generate an image from a prompt alone"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "can't generate an image from a prompt alone"),
        ({"unet": ["my_pipeline", "MyUNet"]}, "its unet is a MyUNet of my_pipeline, which runs custom code"),
        (
            {"unet": ["diffusers", "UNetOfTomorrow"]},
            "requires UNetOfTomorrow, which the installed version of diffusers does not",
        ),
    ],
)
def test_unsupported_pipeline_is_rejected(model_folder, changes, message):
    edit(model_folder / "model_index.json", **changes)
    with pytest.raises(NotAnImagePipeline, match=message):
        load_on_cpu(model_folder)


def test_pipeline_without_step_callback_is_rejected(model_folder):
    edit(model_folder / "model_index.json", _class_name="PixArtAlphaPipeline")
    with pytest.raises((NotAnImagePipeline, ModelCorrupt), match="PixArtAlphaPipeline"):
        load_on_cpu(model_folder)


def test_svd_as_image_model_and_image_model_as_svd_are_rejected(tiny_svd):
    with pytest.raises(NotAnImagePipeline, match="tiny-svd generates videos, not images"):
        load_on_cpu(tiny_svd)
    with pytest.raises(
        NotAnImagePipeline, match="svd-xt generates videos, not images; the text-to-image models are pocket-t2i"
    ):
        load_on_cpu("svd-xt")
    with pytest.raises(NotAnSvdModel, match="sdxl-turbo generates images, not videos"):
        resolve("sdxl-turbo")


@pytest.mark.parametrize("name", ["sd-2.1", "no such model", "./nowhere/at-all"])
def test_unknown_image_model_lists_known_ones(name):
    with pytest.raises(
        ModelNotFound, match=r"image model .* not found.*Use pocket-t2i, sd-2\.1-base, sdxl-turbo, a hub id"
    ):
        load_on_cpu(name)


def test_single_file_checkpoint_is_rejected(tmp_path):
    (tmp_path / "sd.safetensors").write_bytes(b"")
    for image_pipeline in (tmp_path / "sd.safetensors", tmp_path):
        with pytest.raises(NotAnImagePipeline, match="folder"):
            load_on_cpu(image_pipeline)


def test_folder_without_index_is_rejected(tmp_path):
    with pytest.raises(ModelIncomplete, match=r"has no model_index\.json"):
        load_on_cpu(tmp_path)


def test_index_without_class_name_is_rejected(model_folder):
    edit(model_folder / "model_index.json", _class_name=None)
    with pytest.raises(ModelIncomplete, match=r"model_index\.json has no _class_name, .* download it again"):
        load_on_cpu(model_folder)


def test_index_without_weights_is_rejected(model_folder):
    (model_folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(
        ModelIncomplete, match=r"lists no component with weights \(unet, transformer, vae, text_encoder\)"
    ):
        load_on_cpu(model_folder)


@pytest.mark.parametrize("name", [UNET, TEXT, "vae/config.json", "scheduler/scheduler_config.json"])
def test_missing_file_is_named(model_folder, name):
    (model_folder / name).unlink()
    with pytest.raises(ModelIncomplete, match=name.replace(".", r"\.")):
        load_on_cpu(model_folder)


def test_missing_tokenizer_is_named(model_folder):
    shutil.rmtree(model_folder / "tokenizer")
    with pytest.raises(ModelIncomplete, match="has no tokenizer/"):
        load_on_cpu(model_folder)


@pytest.mark.parametrize("name", [UNET, TEXT])
@pytest.mark.parametrize("length", [-1, 100, 0])
def test_truncated_weights_are_named_with_remedy(model_folder, name, length):
    (model_folder / name).write_bytes((model_folder / name).read_bytes()[:length])
    with pytest.raises(ModelCorrupt, match=rf"{name} .*delete it and download"):
        load_on_cpu(model_folder)


@pytest.mark.parametrize("name", [UNET, TEXT])
def test_missing_tensor_is_named(model_folder, name):
    tensors = load_file(model_folder / name)
    missing = next(tensor for tensor in sorted(tensors) if tensor.endswith(".weight"))
    del tensors[missing]
    save_file(tensors, model_folder / name, metadata={"format": "pt"})
    with pytest.raises(ModelCorrupt, match=rf"{name} .*{missing}"):
        load_on_cpu(model_folder)


def test_tensor_of_wrong_shape_raises_weights_damaged(model_folder):
    tensors = load_file(model_folder / UNET)
    tensors["conv_out.bias"] = torch.zeros(5)
    save_file(tensors, model_folder / UNET)
    with pytest.raises(ModelCorrupt, match=r"unet/diffusion_pytorch_model\.safetensors .*delete it"):
        load_on_cpu(model_folder)


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/tokenizer_config.json", "model_index.json"])
def test_damaged_config_raises_weights_damaged(model_folder, name):
    (model_folder / name).write_text("{")
    with pytest.raises(ModelCorrupt, match="delete it and download"):
        load_on_cpu(model_folder)


def test_pickle_weights_are_rejected_with_conversion(model_folder):
    (model_folder / UNET).unlink()
    (model_folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ModelIncomplete, match=r"pickle \(unet/.*StableDiffusionPipeline\.from_pretrained"):
        load_on_cpu(model_folder)


def test_pickle_beside_safetensors_is_ignored(model_folder):
    (model_folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert not any(name.endswith(".bin") for name in load_on_cpu(model_folder).snapshot.files)


def test_insufficient_memory_fails_before_weights_are_read(tiny_sd, monkeypatch):
    monkeypatch.setattr("kinema.models.devices.free_memory", lambda _device: 10**5)
    with pytest.raises(InsufficientMemory, match=r"weights of tiny-sd need .* GiB of host memory"):
        load_on_cpu(tiny_sd)


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"dtype": "int8"}])
def test_unknown_device_or_dtype_is_rejected(tiny_sd, options):
    with pytest.raises(InvalidRequest):
        load_image_pipeline(tiny_sd, settings=Settings(), **options)


# The hub and the catalog


@pytest.fixture
def remote(tmp_path, monkeypatch, tiny_sd):
    """A hub with an image model in both precisions and the other files of a real repository, and an empty cache."""
    folder = shutil.copytree(tiny_sd, tmp_path / "remote")
    for name in (UNET, TEXT, "vae/diffusion_pytorch_model.safetensors"):
        shutil.copy(folder / name, folder / name.replace(".safetensors", ".fp16.safetensors"))
    edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    (folder / "safety_checker").mkdir()
    for name in ("v2-1.safetensors", "v2-1.ckpt", "safety_checker/model.safetensors", "unet/model.bin", "README.md"):
        (folder / name).write_bytes(b"never downloaded")
    with FakeHub(folder, "someone/tiny-sd") as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        url = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_load_from_hub_downloads_only_files_that_are_read(remote):
    image_pipeline = load_on_cpu("someone/tiny-sd", "float16")
    assert set(remote.downloaded) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        *(f"{component}/config.json" for component in ("unet", "vae", "text_encoder")),
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    }
    assert (image_pipeline.identity.name, image_pipeline.identity.revision) == ("someone/tiny-sd", COMMIT)
    assert image_pipeline.defaults["scheduler"] == "euler"
    before = len(remote.downloaded)
    assert pull("someone/tiny-sd").revision == COMMIT  # recognised as an image model
    assert len(remote.downloaded) == before


def test_video_model_as_image_model_fails_before_download(remote):
    edit(remote.folder / "model_index.json", _class_name="StableVideoDiffusionPipeline")
    with pytest.raises(NotAnImagePipeline, match=r"someone/tiny-sd \(at main\) generates videos, not images"):
        load_on_cpu("someone/tiny-sd")
    assert remote.downloaded == ["model_index.json"]


def test_inventory_reports_cached_image_model(remote):
    def status():
        return {model.entry.name: model for model in inventory()}["sd-2.1-base"]

    assert (status().present, status().size_bytes) == (False, SD.size_bytes)
    storage = resolve_module.hub.cache_folder() / "models--sd2-community--stable-diffusion-2-1-base"
    shutil.copytree(remote.folder, storage / "snapshots" / SD.revision)
    assert status().present
    assert load_on_cpu("sd-2.1-base").identity.revision == SD.revision
    (storage / "snapshots" / SD.revision / UNET).unlink()
    (storage / "snapshots" / SD.revision / UNET.replace(".safe", ".fp16.safe")).unlink()
    assert not status().present
    assert remote.tokens == set()


def test_image_models_have_commit_licence_size_and_defaults():
    for entry in IMAGE_MODELS.values():
        assert entry.name not in CATALOG
        assert entry.text_to_image
        assert entry.licence_url.startswith("https://")
        assert for_image_model(request_for(model="pocket", prompt="a sea"), entry.name).image_model == entry.name
        if entry.repository:
            assert len(entry.revision) == 40
            assert entry.size_bytes > sum(entry.weights_bytes.values()) > 2e9
    assert IMAGE_MODELS["sdxl-turbo"].defaults == {"image_guidance_scale": 0.0, "image_num_inference_steps": 1}
    assert SD.defaults == {"image_guidance_scale": 7.5, "image_num_inference_steps": 50, "scheduler": "euler"}


def test_package_without_embedded_image_model_is_reported(monkeypatch, tmp_path):
    incomplete = dataclasses.replace(IMAGE_MODELS["pocket-t2i"], folder=tmp_path / "image_model")
    monkeypatch.setitem(IMAGE_MODELS, "pocket-t2i", incomplete)
    with pytest.raises(
        ModelIncomplete, match="the installed kinema package lacks the weights of pocket-t2i; reinstall it"
    ):
        load_on_cpu("pocket-t2i")
    assert not {model.entry.name: model for model in inventory()}["pocket-t2i"].present


def test_explicit_image_parameters_override_model_defaults():
    request = request_for(model="pocket", prompt="a sea", image_guidance_scale=3)
    assert for_image_model(request, "sd-2.1-base").image_guidance_scale == 3
    assert for_image_model(request, "sd-2.1-base").image_num_inference_steps == 50
    assert for_image_model(request, "someone/model", {"image_num_inference_steps": 9}).image_num_inference_steps == 9


def test_stable_diffusion_folder_has_default_parameters(model_folder):
    usual = {"image_guidance_scale": 7.5, "image_num_inference_steps": 50}
    assert image_model_defaults(str(model_folder)) == {**usual, "scheduler": "euler"}
    edit(model_folder / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    assert image_model_defaults(str(model_folder)) == usual
    edit(model_folder / "model_index.json", _class_name="FluxPipeline")
    assert image_model_defaults(str(model_folder)) == image_model_defaults("someone/model") == {}


def test_other_pipeline_uses_its_signature_defaults(tmp_path):
    image_pipeline = load_on_cpu(make_tiny_sd(tmp_path, xl=True))
    assert image_pipeline.defaults == {"image_guidance_scale": 5.0, "image_num_inference_steps": 50}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"image_model": "pocket-t2i", "model": "svd-xt"}, "pocket-t2i was trained on 288×160, not 1024×576"),
        (
            {"image_model": "sdxl-turbo", "negative_prompt": "fog"},
            "negative_prompt has no effect at image_guidance_scale",
        ),
    ],
)
def test_image_parameters_outside_training_give_warning(parameters, message):
    request = request_for(**{"model": "pocket", "prompt": "a sea"} | parameters)
    (warning,) = parameter_warnings(for_image_model(request, request.image_model))
    assert message in warning


def test_default_model_pairs_give_no_warning():
    for model, image_pipeline in (("pocket", "pocket-t2i"), ("svd-xt", "sd-2.1-base"), ("svd-xt", "sdxl-turbo")):
        assert parameter_warnings(for_image_model(request_for(model=model, prompt="a sea"), image_pipeline)) == []


# Default image model and memory plan


def test_default_image_model_without_cuda_is_pocket():
    name, reason = default_image_model((1024, 576), Settings(device="cpu"))
    assert (name, reason) == ("pocket-t2i", "the device is cpu, not a CUDA GPU")


@pytest.mark.parametrize(
    ("size", "free_gib", "is_installed", "reachable", "name", "expected_reason"),
    [
        ((1024, 576), 80, True, False, "sd-2.1-base", "it fits on cuda"),
        ((1024, 576), 80, False, True, "sd-2.1-base", "it fits on cuda"),
        ((1024, 576), 80, False, False, "pocket-t2i", "hub can't be reached; run `kinema models pull sd-2.1-base`"),
        ((288, 160), 80, True, True, "pocket-t2i", "it is trained on 288×160"),
        ((1024, 576), 1, True, True, "pocket-t2i", "does not fit"),
        ((1024, 576), 1.7, True, True, "pocket-t2i", "only with sequential offload"),
        ((1024, 576), 3, True, True, "sd-2.1-base", "it fits"),
    ],
)
def test_default_image_model_on_gpu(monkeypatch, size, free_gib, is_installed, reachable, name, expected_reason):
    monkeypatch.setattr(image_pipeline_module, "pick_device", lambda _wanted: torch.device("cuda"))
    monkeypatch.setattr(image_pipeline_module, "free_memory", lambda _device: int(free_gib * GIB))
    monkeypatch.setattr(image_pipeline_module, "installed_snapshot", lambda _entry: object() if is_installed else None)
    monkeypatch.setattr(image_pipeline_module.hub, "reachable", lambda: reachable)
    chosen, reason = default_image_model(size, Settings())
    assert chosen == name
    assert expected_reason in reason


def plan(free_gib, **settings):
    usual = {"width": 1024, "height": 576, "guided": True, "dtype_bytes": 2}
    return plan_image_pipeline(SD.weights_bytes, free_bytes=int(free_gib * GIB), **usual | settings)


def test_fastest_plan_that_fits_is_chosen():
    names = [plan(free).name for free in (8, 3, 1.7)]
    assert names == ["resident", "model_offload", "sequential_offload"]
    assert all(plan(free).needed_bytes <= free * GIB for free in (8, 3, 1.7))


def test_insufficient_memory_message_has_sizes():
    with pytest.raises(InsufficientMemory, match=r"an image of 1024×576 needs at least 1\.\d GiB .* 1\.0 GiB is"):
        plan(1)
    with pytest.raises(InsufficientMemory):
        plan(3, offload=False)


def test_plan_memory_grows_with_pixels_upcast_and_guidance():
    assert plan(80, width=2048, height=2048).needed_bytes > 2 * plan(80).needed_bytes
    assert plan(80, upcast=True).needed_bytes > plan(80).needed_bytes
    slow = {"width": 256, "height": 256}
    assert plan(80, **slow, guided=False).needed_bytes <= plan(80, **slow).needed_bytes

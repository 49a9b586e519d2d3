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
    ModelNotFound,
    NotAnImagePipeline,
    NotAnSvdModel,
    WeightsDamaged,
    WeightsMissing,
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


def load_here(folder, dtype="float32"):
    return load_image_pipeline(folder, device="cpu", dtype=dtype, settings=Settings())


@pytest.fixture
def own(tmp_path, tiny_sd):
    """A copy of the tiny painter that a test may damage."""
    return shutil.copytree(tiny_sd, tmp_path / "own")


def edit(path, **changes):
    write_json(path, {**json.loads(path.read_text()), **changes})


# Loading


def test_weights_and_classes_are_those_that_diffusers_loads(tiny_sd):
    import diffusers
    import transformers

    image_pipeline = load_here(tiny_sd)
    kinds = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
    }
    assert image_pipeline.networks.keys() == kinds.keys()
    for part, kind in kinds.items():
        theirs = kind.from_pretrained(tiny_sd / part).state_dict()
        ours = image_pipeline.networks[part].state_dict()
        assert type(image_pipeline.networks[part]) is kind
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_everything_is_in_the_arithmetic_asked_for_and_ready_to_paint(tiny_sd, dtype):
    image_pipeline = load_here(tiny_sd, dtype)
    for network in image_pipeline.networks.values():
        assert {(p.dtype, p.device.type, p.requires_grad) for p in network.parameters()} == {
            (getattr(torch, dtype), "cpu", False)
        }
        assert not network.training


def test_loading_says_nothing(tiny_sd, capfd):
    load_here(tiny_sd)
    assert capfd.readouterr() == ("", "")


def test_half_precision_takes_the_half_variant_and_full_the_full(own):
    make_tiny_sd(own, seed=1, dtype=torch.float16, variant="fp16")
    half, full = load_here(own, "float16"), load_here(own)
    assert {name for name in half.snapshot.files if "fp16" in name} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    }
    assert not [name for name in full.snapshot.files if "fp16" in name]
    assert half.identity.weights_sha256 != full.identity.weights_sha256
    assert not torch.equal(half.networks["unet"].conv_in.weight.float(), full.networks["unet"].conv_in.weight)


def test_a_variant_of_some_parts_alone_is_taken_for_these(own):
    (own / UNET).rename(own / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    image_pipeline = load_here(own)
    assert image_pipeline.notes == ("painting in float32 with weights rounded to float16 (unet)",)
    assert TEXT in image_pipeline.snapshot.files


def test_shards_load_as_the_whole_does(tiny_sd, tmp_path):
    sharded, whole = load_here(make_tiny_sd(tmp_path, max_shard_size="200KB")), load_here(tiny_sd)
    assert len(sharded.snapshot.files) > len(whole.snapshot.files)
    for part, network in whole.networks.items():
        theirs = sharded.networks[part].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())


def test_the_identity_names_the_folder_but_not_its_path(tiny_sd, own):
    identity = load_here(tiny_sd).identity
    assert (identity.name, identity.revision) == ("tiny-sd", None)
    assert load_here(own).identity.weights_sha256 == identity.weights_sha256
    tensors = load_file(own / UNET)
    tensors["conv_in.bias"] += 1
    save_file(tensors, own / UNET)
    assert load_here(own).identity.weights_sha256 != identity.weights_sha256


def test_release_gives_the_memory_back(tiny_sd):
    image_pipeline = load_here(tiny_sd)
    image_pipeline.release()
    assert {p.device.type for network in image_pipeline.networks.values() for p in network.parameters()} == {"meta"}


def test_safety_checker_and_feature_extractor_are_left_out(own):
    shutil.rmtree(own / "feature_extractor")
    edit(
        own / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        requires_safety_checker=True,
    )
    assert set(load_here(own).networks) == {"unet", "vae", "text_encoder"}


# Refusals


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "StableVideoDiffusionPipeline"}, "makes videos from stills, and draws none"),
        ({"_class_name": "StableAudioPipeline"}, "is a StableAudioPipeline, which draws no still from a prompt"),
        ({"_class_name": "StableDiffusionControlNetPipeline"}, "draws no still from a prompt alone"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "draws no still from a prompt alone"),
        ({"unet": ["my_pipeline", "MyUNet"]}, "has a MyUNet of my_pipeline for its unet, which runs code of its own"),
        (
            {"unet": ["diffusers", "UNetOfTomorrow"]},
            "asks for UNetOfTomorrow, which the diffusers that is here does not",
        ),
    ],
)
def test_what_is_no_painter_is_refused_by_name(own, changes, words):
    edit(own / "model_index.json", **changes)
    with pytest.raises(NotAnImagePipeline, match=words):
        load_here(own)


def test_a_pipeline_that_tells_no_steps_is_refused(own):
    edit(own / "model_index.json", _class_name="PixArtAlphaPipeline")
    with pytest.raises((NotAnImagePipeline, WeightsDamaged), match="PixArtAlphaPipeline"):
        load_here(own)


def test_an_svd_is_no_painter_and_a_painter_no_svd(tiny_svd):
    with pytest.raises(NotAnImagePipeline, match="tiny-svd makes videos from stills"):
        load_here(tiny_svd)
    with pytest.raises(
        NotAnImagePipeline, match="svd-xt makes videos from stills, and draws none: the painters are pocket-t2i"
    ):
        load_here("svd-xt")
    with pytest.raises(NotAnSvdModel, match="sdxl-turbo draws stills from prompts, and makes no videos"):
        resolve("sdxl-turbo")


@pytest.mark.parametrize("name", ["sd-2.1", "no such painter", "./nowhere/at-all"])
def test_an_unknown_painter_is_refused_with_those_that_are_known(name):
    with pytest.raises(ModelNotFound, match=r"there is no painter .*pocket-t2i, sd-2\.1-base, sdxl-turbo, hub ids"):
        load_here(name)


def test_a_checkpoint_in_one_file_is_no_folder(tmp_path):
    (tmp_path / "sd.safetensors").write_bytes(b"")
    for image_pipeline in (tmp_path / "sd.safetensors", tmp_path):
        with pytest.raises(NotAnImagePipeline, match="folder"):
            load_here(image_pipeline)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(WeightsMissing, match=r"has no model_index\.json"):
        load_here(tmp_path)


@pytest.mark.parametrize("name", [UNET, TEXT, "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_missing_file_is_named(own, name):
    (own / name).unlink()
    with pytest.raises(WeightsMissing, match=name.replace(".", r"\.")):
        load_here(own)


def test_a_missing_tokenizer_is_named(own):
    shutil.rmtree(own / "tokenizer")
    with pytest.raises(WeightsMissing, match="has no tokenizer/"):
        load_here(own)


@pytest.mark.parametrize("name", [UNET, TEXT])
@pytest.mark.parametrize("kept", [-1, 100, 0])
def test_truncated_weights_are_named_with_the_remedy(own, name, kept):
    (own / name).write_bytes((own / name).read_bytes()[:kept])
    with pytest.raises(WeightsDamaged, match=rf"{name} .*delete it and fetch"):
        load_here(own)


@pytest.mark.parametrize("name", [UNET, TEXT])
def test_a_missing_tensor_is_named(own, name):
    tensors = load_file(own / name)
    lost = next(tensor for tensor in sorted(tensors) if tensor.endswith(".weight"))
    del tensors[lost]
    save_file(tensors, own / name, metadata={"format": "pt"})
    with pytest.raises(WeightsDamaged, match=rf"{name} .*{lost}"):
        load_here(own)


def test_a_tensor_of_another_shape_is_damage(own):
    tensors = load_file(own / UNET)
    tensors["conv_out.bias"] = torch.zeros(5)
    save_file(tensors, own / UNET)
    with pytest.raises(WeightsDamaged, match=r"unet/diffusion_pytorch_model\.safetensors .*delete it"):
        load_here(own)


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/tokenizer_config.json", "model_index.json"])
def test_a_damaged_configuration_is_refused(own, name):
    (own / name).write_text("{")
    with pytest.raises(WeightsDamaged, match="delete it and fetch"):
        load_here(own)


def test_pickles_are_never_opened_and_the_message_says_how_to_convert(own):
    (own / UNET).unlink()
    (own / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(WeightsMissing, match=r"pickle \(unet/.*StableDiffusionPipeline\.from_pretrained"):
        load_here(own)


def test_a_pickle_beside_safetensors_is_passed_over(own):
    (own / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert not any(name.endswith(".bin") for name in load_here(own).snapshot.files)


def test_too_little_memory_for_the_weights_is_told_before_they_are_read(tiny_sd, monkeypatch):
    monkeypatch.setattr(image_pipeline_module, "free_memory", lambda _device: 10**5)
    with pytest.raises(InsufficientMemory, match=r"weights of tiny-sd take .* GiB"):
        load_here(tiny_sd)


@pytest.mark.parametrize("named", [{"device": "tpu"}, {"dtype": "int8"}])
def test_a_device_or_dtype_that_is_not_there_is_refused(tiny_sd, named):
    with pytest.raises(InvalidRequest):
        load_image_pipeline(tiny_sd, settings=Settings(), **named)


# The hub and the catalog


@pytest.fixture
def remote(tmp_path, monkeypatch, tiny_sd):
    """A hub with a painter in both precisions and all that a real repository has beside, and an empty cache."""
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
        (folder / name).write_bytes(b"not to be fetched")
    with FakeHub(folder, "someone/tiny-sd") as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        url = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_only_the_files_that_are_read_are_fetched_and_they_are_enough(remote):
    image_pipeline = load_here("someone/tiny-sd", "float16")
    assert set(remote.fetched) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    }
    assert (image_pipeline.identity.name, image_pipeline.identity.revision) == ("someone/tiny-sd", COMMIT)
    assert image_pipeline.defaults["scheduler"] == "euler"
    before = len(remote.fetched)
    assert pull("someone/tiny-sd").revision == COMMIT  # as a painter, though no one said so
    assert len(remote.fetched) == before


def test_a_video_model_is_refused_as_a_painter_before_its_weights_are_fetched(remote):
    edit(remote.folder / "model_index.json", _class_name="StableVideoDiffusionPipeline")
    with pytest.raises(NotAnImagePipeline, match=r"someone/tiny-sd \(at main\) makes videos from stills"):
        load_here("someone/tiny-sd")
    assert remote.fetched == ["model_index.json"]


def test_a_painter_of_the_catalog_is_seen_in_the_cache(remote):
    def here():
        return {held.entry.name: held for held in inventory()}["sd-2.1-base"]

    assert (here().present, here().size_bytes) == (False, SD.size_bytes)
    storage = resolve_module.hub.cache_folder() / "models--sd2-community--stable-diffusion-2-1-base"
    shutil.copytree(remote.folder, storage / "snapshots" / SD.revision)
    assert here().present
    assert load_here("sd-2.1-base").identity.revision == SD.revision
    (storage / "snapshots" / SD.revision / UNET).unlink()
    (storage / "snapshots" / SD.revision / UNET.replace(".safe", ".fp16.safe")).unlink()
    assert not here().present
    assert remote.tokens == set()


def test_painters_are_pinned_and_know_licence_size_and_defaults():
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


def test_a_package_without_its_painter_says_so(monkeypatch, tmp_path):
    lacking = dataclasses.replace(IMAGE_MODELS["pocket-t2i"], folder=tmp_path / "image_model")
    monkeypatch.setitem(IMAGE_MODELS, "pocket-t2i", lacking)
    with pytest.raises(WeightsMissing, match="this package lacks the weights of pocket-t2i; install it again"):
        load_here("pocket-t2i")
    assert not {held.entry.name: held for held in inventory()}["pocket-t2i"].present


def test_what_is_given_lies_over_the_painters_own():
    request = request_for(model="pocket", prompt="a sea", image_guidance_scale=3)
    assert for_image_model(request, "sd-2.1-base").image_guidance_scale == 3
    assert for_image_model(request, "sd-2.1-base").image_num_inference_steps == 50
    assert for_image_model(request, "someone/painter", {"image_num_inference_steps": 9}).image_num_inference_steps == 9


def test_a_folder_of_stable_diffusion_has_its_usual_defaults(own):
    usual = {"image_guidance_scale": 7.5, "image_num_inference_steps": 50}
    assert image_model_defaults(str(own)) == {**usual, "scheduler": "euler"}
    edit(own / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    assert image_model_defaults(str(own)) == usual
    edit(own / "model_index.json", _class_name="FluxPipeline")
    assert image_model_defaults(str(own)) == image_model_defaults("someone/painter") == {}


def test_other_pipelines_lend_their_own_defaults(tmp_path):
    image_pipeline = load_here(make_tiny_sd(tmp_path, xl=True))
    assert image_pipeline.defaults == {"image_guidance_scale": 5.0, "image_num_inference_steps": 50}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_model": "pocket-t2i", "model": "svd-xt"}, "1024×576 is not the 288×160 that pocket-t2i was"),
        (
            {"image_model": "sdxl-turbo", "negative_prompt": "fog"},
            "negative_prompt has no effect at image_guidance_scale",
        ),
    ],
)
def test_what_a_painter_was_not_made_for_is_cautioned(settings, words):
    request = request_for(**{"model": "pocket", "prompt": "a sea"} | settings)
    (warning,) = parameter_warnings(for_image_model(request, request.image_model))
    assert words in warning


def test_the_usual_pairs_need_no_caution():
    for model, image_pipeline in (("pocket", "pocket-t2i"), ("svd-xt", "sd-2.1-base"), ("svd-xt", "sdxl-turbo")):
        assert parameter_warnings(for_image_model(request_for(model=model, prompt="a sea"), image_pipeline)) == []


# Which painter, and in how much memory


def test_without_cuda_the_default_painter_is_the_pockets():
    name, reason = default_image_model((1024, 576), Settings(device="cpu"))
    assert (name, reason) == ("pocket-t2i", "no CUDA device in use")


@pytest.mark.parametrize(
    ("size", "free_gib", "there", "reachable", "name", "why"),
    [
        ((1024, 576), 80, True, False, "sd-2.1-base", "cuda has room for it"),
        ((1024, 576), 80, False, True, "sd-2.1-base", "cuda has room for it"),
        ((1024, 576), 80, False, False, "pocket-t2i", "hub can't be reached; `kinema models pull sd-2.1-base`"),
        ((288, 160), 80, True, True, "pocket-t2i", "it is made for 288×160"),
        ((1024, 576), 1, True, True, "pocket-t2i", "does not fit"),
        ((1024, 576), 1.7, True, True, "pocket-t2i", "layer by layer"),
        ((1024, 576), 3, True, True, "sd-2.1-base", "has room"),
    ],
)
def test_a_gpu_with_room_takes_sd_where_it_can_be_had(monkeypatch, size, free_gib, there, reachable, name, why):
    monkeypatch.setattr(image_pipeline_module, "pick_device", lambda _wanted: torch.device("cuda"))
    monkeypatch.setattr(image_pipeline_module, "free_memory", lambda _device: int(free_gib * GIB))
    monkeypatch.setattr(image_pipeline_module, "held", lambda _entry: object() if there else None)
    monkeypatch.setattr(image_pipeline_module.hub, "reachable", lambda: reachable)
    chosen, reason = default_image_model(size, Settings())
    assert chosen == name
    assert why in reason


def plan(free_gib, **settings):
    usual = {"width": 1024, "height": 576, "guided": True, "dtype_bytes": 2}
    return plan_image_pipeline(SD.weights_bytes, free_bytes=int(free_gib * GIB), **usual | settings)


def test_the_quickest_plan_that_fits_is_taken():
    names = [plan(free).name for free in (8, 3, 1.7)]
    assert names == ["resident", "model_offload", "sequential_offload"]
    assert all(plan(free).needed_bytes <= free * GIB for free in (8, 3, 1.7))


def test_what_does_not_fit_is_refused_with_figures():
    with pytest.raises(InsufficientMemory, match=r"painting a still of 1024×576 needs about 1\.\d GiB .* 1\.0 GiB are"):
        plan(1)
    with pytest.raises(InsufficientMemory):
        plan(3, offload=False)


def test_a_painter_needs_more_for_more_pixels_and_less_without_guidance():
    assert plan(80, width=2048, height=2048).needed_bytes > 2 * plan(80).needed_bytes
    assert plan(80, upcast=True).needed_bytes > plan(80).needed_bytes
    slow = {"width": 256, "height": 256}
    assert plan(80, **slow, guided=False).needed_bytes <= plan(80, **slow).needed_bytes

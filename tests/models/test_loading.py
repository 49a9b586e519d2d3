import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from kinema.errors import (
    InsufficientMemory,
    InvalidRequest,
    ModelNotFound,
    NotAnSvdModel,
    WeightsDamaged,
    WeightsMissing,
)
from kinema.models import loading
from kinema.models.catalog import CATALOG
from kinema.models.loading import default_model, load
from kinema.models.memory_plan import GIB, PARTS
from kinema.settings import Settings
from tiny import FEATURE_EXTRACTOR, SCHEDULER, make_tiny_svd, write_json

CLASSES = {
    "unet": UNetSpatioTemporalConditionModel,
    "vae": AutoencoderKLTemporalDecoder,
    "image_encoder": CLIPVisionModelWithProjection,
}
UNET = "unet/diffusion_pytorch_model.safetensors"


def load_here(folder, dtype="float32", **settings):
    return load(folder, device="cpu", dtype=dtype, settings=Settings(**settings))


@pytest.fixture
def own(tmp_path, tiny_svd):
    """A copy of the tiny SVD that a test may damage."""
    return shutil.copytree(tiny_svd, tmp_path / "own")


def edit(path, **changes):
    write_json(path, {**json.loads(path.read_text()), **changes})


def test_weights_and_classes_are_those_that_diffusers_loads(tiny_svd):
    pipeline = load_here(tiny_svd)
    for part, kind in CLASSES.items():
        theirs = kind.from_pretrained(tiny_svd / part).state_dict()
        ours = getattr(pipeline, part).state_dict()
        assert type(getattr(pipeline, part)) is kind
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_four_levels_and_other_latents_load_too(tiny_svd_4_levels):
    pipeline = load_here(tiny_svd_4_levels)
    assert pipeline.latent_channels == 8
    assert len(pipeline.unet.config.block_out_channels) == 4


@pytest.mark.parametrize(("vae_levels", "factor"), [(2, 2), (3, 4), (4, 8)])
def test_the_vaes_factor_follows_from_its_levels(tmp_path, vae_levels, factor):
    pipeline = load_here(make_tiny_svd(tmp_path, vae_levels=vae_levels))
    assert pipeline.shape.vae_factor == factor
    assert pipeline.vae.encode(torch.zeros(1, 3, 64, 72)).latent_dist.mode().shape[2:] == (64 // factor, 72 // factor)


def test_a_loaded_model_tells_what_the_engine_needs(tiny_svd):
    pipeline = load_here(tiny_svd)
    assert pipeline.image_mean == tuple(FEATURE_EXTRACTOR["image_mean"])
    assert pipeline.image_std == tuple(FEATURE_EXTRACTOR["image_std"])
    assert pipeline.scheduler == SCHEDULER
    assert (pipeline.image_size, pipeline.latent_channels, pipeline.force_upcast) == (224, 4, True)
    assert (pipeline.device, pipeline.dtype) == (torch.device("cpu"), torch.float32)
    assert pipeline.defaults == {"num_frames": 4}
    assert pipeline.notes == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_everything_is_in_the_arithmetic_asked_for_and_ready_to_compute(tiny_svd, dtype):
    pipeline = load_here(tiny_svd, dtype)
    for part in PARTS:
        module = getattr(pipeline, part)
        assert {p.dtype for p in module.parameters()} == {getattr(torch, dtype)}
        assert {t.device.type for t in [*module.parameters(), *module.buffers()]} == {"cpu"}
        assert not any(p.requires_grad for p in module.parameters())
        assert not module.training


def test_loading_says_nothing(tiny_svd, capfd):
    load_here(tiny_svd)
    assert capfd.readouterr() == ("", "")


def test_settings_choose_device_and_dtype_where_no_flag_does(tiny_svd):
    assert load(tiny_svd, settings=Settings(device="cpu", dtype="bfloat16")).dtype == torch.bfloat16
    assert load_here(tiny_svd, device="cpu", dtype="float32").dtype == torch.float32
    with pytest.raises(InvalidRequest):
        load(tiny_svd, device="tpu", settings=Settings())


def test_half_precision_takes_the_half_variant_and_full_the_full(own):
    make_tiny_svd(own, seed=1, dtype=torch.float16, variant="fp16")
    assert load_here(own, "float16").snapshot.files != load_here(own).snapshot.files
    half, full = load_here(own, "float16").identity, load_here(own).identity
    assert half.weights_sha256 != full.weights_sha256
    assert load_here(own).notes == ()


def test_half_weights_alone_serve_full_arithmetic_and_it_is_noted(tmp_path):
    make_tiny_svd(tmp_path, dtype=torch.float16, variant="fp16")
    assert "rounded to float16" in load_here(tmp_path).notes[0]


def test_arithmetic_that_is_slow_on_a_cpu_is_noted(tiny_svd):
    assert load(tiny_svd, device="cpu", dtype="float32").notes == ()
    assert "slowly in float16" in load(tiny_svd, device="cpu", dtype="float16").notes[0]


def test_shards_load_as_the_whole_does(tiny_svd, tmp_path):
    sharded = load_here(make_tiny_svd(tmp_path, max_shard_size="400KB"))
    whole = load_here(tiny_svd)
    assert len(sharded.snapshot.files) > len(whole.snapshot.files) + 3
    for part in PARTS:
        theirs = getattr(whole, part).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in getattr(sharded, part).state_dict().items())


def test_the_weights_are_hashed_once_and_a_fault_is_told_to_who_asks(own, monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "weights_sha256", lambda *_: asked.append(1) or "0" * 64)
    pipeline = load_here(own)
    for _ in range(2):
        pipeline.prepare_identity()
        assert pipeline.identity.weights_sha256 == "0" * 64
    assert asked == [1]
    monkeypatch.undo()
    pipeline = load_here(own)
    for path in own.rglob("*.safetensors"):
        path.unlink()
    pipeline.prepare_identity()
    with pytest.raises(FileNotFoundError):
        _ = pipeline.identity


def test_the_identity_names_the_folder_but_not_its_path(tiny_svd, own):
    identity = load_here(tiny_svd).identity
    assert (identity.name, identity.revision) == ("tiny-svd", None)
    assert load_here(own).identity.weights_sha256 == identity.weights_sha256
    tensors = load_file(own / UNET)
    tensors["conv_in.bias"] += 1
    save_file(tensors, own / UNET)
    assert load_here(own).identity.weights_sha256 != identity.weights_sha256


def test_a_loaded_model_survives_its_files_being_overwritten(own):
    pipeline = load_here(own)
    before = pipeline.unet.conv_in.weight.clone()
    with (own / UNET).open("r+b") as file:
        file.truncate(10)
    assert torch.equal(pipeline.unet.conv_in.weight, before)


def test_release_gives_the_memory_back(tiny_svd):
    pipeline = load_here(tiny_svd)
    pipeline.release()
    assert {p.device.type for part in PARTS for p in getattr(pipeline, part).parameters()} == {"meta"}


def test_tensors_that_older_libraries_saved_beside_are_left_out(own):
    path = own / "image_encoder" / "model.safetensors"
    save_file({**load_file(path), "vision_model.embeddings.position_ids": torch.arange(17)[None]}, path)
    assert load_here(own).image_encoder is not None


def test_configurations_of_older_libraries_build_the_same(own):
    edit(
        own / "image_encoder" / "config.json",
        _name_or_path="somewhere/image_encoder",
        architectures=["CLIPVisionModelWithProjection"],
        dropout=0.0,
        torch_dtype="float16",
        transformers_version="4.34.0.dev0",
    )
    edit(own / "unet" / "config.json", _diffusers_version="0.24.0.dev0", a_setting_of_another_version=1)
    assert {p.dtype for part in PARTS for p in getattr(load_here(own), part).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["svd-tx", "no such model", "./nowhere/at-all", "a/b/c"])
def test_an_unknown_model_is_refused_with_those_that_are_known(name):
    with pytest.raises(ModelNotFound, match=r"there is no model .*pocket, svd, svd-xt, svd-xt-1\.1, hub ids"):
        load_here(name)


def test_a_near_miss_is_guessed():
    with pytest.raises(ModelNotFound, match=r"did you mean svd-xt\?"):
        load_here("SVD-XTT")


def test_a_checkpoint_in_one_file_is_no_folder(tmp_path):
    (tmp_path / "svd_xt.safetensors").write_bytes(b"")
    for model in (tmp_path / "svd_xt.safetensors", tmp_path):
        with pytest.raises(NotAnSvdModel, match=r"checkpoint in one file.*svd-xt.*convert_svd_to_diffusers"):
            load_here(model)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(WeightsMissing, match=r"has no model_index\.json"):
        load_here(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "is a StableDiffusionPipeline, and Kinema runs"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "has AutoencoderKL for its vae, where an SVD has"),
        ({"unet": None}, "has nothing for its unet"),
    ],
)
def test_another_pipeline_is_named(own, changes, words):
    edit(own / "model_index.json", **changes)
    with pytest.raises(NotAnSvdModel, match=words):
        load_here(own)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (
            "unet/config.json",
            {"in_channels": 4},
            "in_channels, twice the VAE's latent_channels, is 4 and must be 8",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type is 'epsilon'"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "_class_name is 'DDIMScheduler'"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": False}, "use_karras_sigmas is False"),
        ("unet/config.json", {"cross_attention_dim": 99}, "projection_dim, is 99 and must be 16"),
        ("vae/config.json", {"block_out_channels": [32]}, r"is \[32\] and must be a list of 2, 3 or 4 numbers"),
        ("vae/config.json", {"block_out_channels": [32] * 5}, r"32\] and must be a list of 2, 3 or 4 numbers"),
        ("vae/config.json", {"block_out_channels": None}, "is None and must be a list of 2, 3 or 4 numbers"),
    ],
)
def test_a_configuration_that_no_svd_has_is_named(own, file, changes, words):
    edit(own / file, **changes)
    with pytest.raises(NotAnSvdModel, match=words) as fault:
        load_here(own)
    assert file in str(fault.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_configuration_is_named(own, text):
    (own / "vae" / "config.json").write_text(text)
    with pytest.raises(WeightsDamaged, match=r"vae/config\.json .*delete it and fetch"):
        load_here(own)


def test_a_configuration_that_builds_nothing_is_named(own):
    edit(own / "unet" / "config.json", down_block_types=["NoSuchBlock", "DownBlockSpatioTemporal"])
    with pytest.raises(WeightsDamaged, match=r"unet/config\.json describes no UNetSpatioTemporalConditionModel"):
        load_here(own)


def test_a_feature_extractor_without_means_is_named(own):
    write_json(own / "feature_extractor" / "preprocessor_config.json", {})
    with pytest.raises(WeightsDamaged, match=r"preprocessor_config\.json names no image_mean"):
        load_here(own)


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "vae/config.json", UNET])
def test_a_missing_file_is_named(own, name):
    (own / name).unlink()
    with pytest.raises(WeightsMissing, match=name.replace(".", r"\.")):
        load_here(own)


@pytest.mark.parametrize("kept", [-1, -1000, 100, 8, 3, 0])
def test_truncated_weights_are_named_with_the_remedy(own, kept):
    content = (own / UNET).read_bytes()
    (own / UNET).write_bytes(content[:kept])
    with pytest.raises(WeightsDamaged, match=r"unet/diffusion_pytorch_model\.safetensors .*delete it and fetch"):
        load_here(own)


def test_trailing_bytes_are_damage_too(own):
    with (own / UNET).open("ab") as file:
        file.write(b"more")
    with pytest.raises(WeightsDamaged, match=r"has \d+ bytes where its header says \d+"):
        load_here(own)


@pytest.mark.parametrize("content", [b"<html>Not found</html>" * 9, b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_safetensors_is_named(own, content):
    (own / UNET).write_bytes(content)
    with pytest.raises(WeightsDamaged, match="is no whole safetensors file"):
        load_here(own)


def test_git_lfs_pointers_are_told_from_damage(own):
    (own / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(WeightsMissing, match="git lfs pull"):
        load_here(own)


def test_a_missing_tensor_is_named(own):
    tensors = load_file(own / UNET)
    del tensors["conv_out.weight"]
    save_file(tensors, own / UNET)
    with pytest.raises(WeightsDamaged, match=r"diffusion_pytorch_model\.safetensors lacks the tensor conv_out\.weight"):
        load_here(own)


def test_a_tensor_of_another_shape_is_named(own):
    tensors = load_file(own / UNET)
    tensors["conv_out.bias"] = torch.zeros(5)
    save_file(tensors, own / UNET)
    with pytest.raises(WeightsDamaged, match=r"conv_out\.bias is 5 where .*unet/config\.json asks for 4"):
        load_here(own)


def test_a_missing_shard_is_named(tmp_path):
    make_tiny_svd(tmp_path, max_shard_size="400KB")
    shard = min((tmp_path / "unet").glob("*-00002-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(WeightsMissing, match=shard.name):
        load_here(tmp_path)


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
def test_an_index_leads_to_safetensors_in_its_own_folder_only(tmp_path, name):
    make_tiny_svd(tmp_path, max_shard_size="400KB")
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    edit(index, weight_map={"conv_in.weight": name})
    with pytest.raises(WeightsDamaged, match="no safetensors file beside it"):
        load_here(tmp_path)


def test_pickles_are_never_opened_and_the_message_says_how_to_convert(own):
    (own / UNET).unlink()
    pickle = own / "unet" / "diffusion_pytorch_model.bin"
    pickle.write_bytes(b"cos\nsystem\n")
    with pytest.raises(WeightsMissing, match=r"pickle \(unet/diffusion_pytorch_model\.bin\).*safe_serialization=True"):
        load_here(own)


def test_a_pickle_beside_safetensors_is_passed_over(own):
    (own / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert not any(name.endswith(".bin") for name in load_here(own).snapshot.files)


def test_too_little_memory_for_the_weights_is_told_before_they_are_read(tiny_svd, monkeypatch):
    monkeypatch.setattr(loading, "free_memory", lambda _device: 10**6)
    with pytest.raises(InsufficientMemory, match=r"weights of tiny-svd take .* GiB"):
        load_here(tiny_svd)


def test_the_default_model_is_the_settings_own():
    assert default_model(Settings(model="svd")) == ("svd", "the settings name it")


def test_without_cuda_the_default_model_is_the_pocket():
    name, reason = default_model(Settings(device="cpu"))
    assert name == "pocket"
    assert "cpu" in reason


@pytest.mark.parametrize(
    ("free_gib", "there", "reachable", "name", "why"),
    [
        (80, True, False, "svd-xt", "has room"),
        (80, False, True, "svd-xt", "has room"),
        (80, False, False, "pocket", "hub can't be reached"),
        (4, True, True, "pocket", "does not fit"),
        (6, True, True, "pocket", "layer by layer"),
    ],
)
def test_a_gpu_with_room_takes_svd_xt_where_it_can_be_had(monkeypatch, free_gib, there, reachable, name, why):
    monkeypatch.setattr(loading, "pick_device", lambda _wanted: torch.device("cuda"))
    monkeypatch.setattr(loading, "free_memory", lambda _device: int(free_gib * GIB))
    monkeypatch.setattr(loading.hub, "cached", lambda *_args, **_kwargs: object() if there else None)
    monkeypatch.setattr(loading.hub, "reachable", lambda: reachable)
    chosen, reason = default_model(Settings())
    assert chosen == name
    assert why in reason
    assert chosen in CATALOG

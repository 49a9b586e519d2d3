import json
import resource
import shutil

import psutil
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from kinema.errors import (
    InsufficientMemory,
    InvalidRequest,
    ModelCorrupt,
    ModelIncomplete,
    ModelNotFound,
    NotAnSvdModel,
)
from kinema.models import loading
from kinema.models.catalog import CATALOG
from kinema.models.loading import default_model, load
from kinema.models.memory_plan import COMPONENTS, GIB
from kinema.models.resolve import check_folder, model_kind
from kinema.settings import Settings
from tiny import FEATURE_EXTRACTOR, SCHEDULER, make_tiny_svd, write_json

CLASSES = {
    "unet": UNetSpatioTemporalConditionModel,
    "vae": AutoencoderKLTemporalDecoder,
    "image_encoder": CLIPVisionModelWithProjection,
}
UNET = "unet/diffusion_pytorch_model.safetensors"


def load_on_cpu(folder, dtype="float32", **settings):
    return load(folder, device="cpu", dtype=dtype, settings=Settings(**settings))


@pytest.fixture
def model_folder(tmp_path, tiny_svd):
    """A copy of the tiny SVD that a test may damage."""
    return shutil.copytree(tiny_svd, tmp_path / "own")


def edit(path, **changes):
    write_json(path, {**json.loads(path.read_text()), **changes})


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_load_gives_weights_of_diffusers(tiny_svd, engine):
    pipeline = load(tiny_svd, device="cpu", dtype="float32", engine=engine)
    for component, kind in CLASSES.items():
        expected = kind.from_pretrained(tiny_svd / component).state_dict()
        actual = getattr(pipeline, component).state_dict()
        assert isinstance(getattr(pipeline, component), kind) == (engine == "reference")
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_model_with_four_levels_and_eight_latent_channels_loads(tiny_svd_4_levels):
    pipeline = load_on_cpu(tiny_svd_4_levels)
    assert pipeline.latent_channels == 8
    assert len(pipeline.unet.config.block_out_channels) == 4


@pytest.mark.parametrize(("vae_levels", "factor"), [(2, 2), (3, 4), (4, 8)])
def test_vae_factor_follows_from_number_of_levels(tmp_path, vae_levels, factor):
    pipeline = load_on_cpu(make_tiny_svd(tmp_path, vae_levels=vae_levels))
    assert pipeline.shape.vae_factor == factor
    assert pipeline.vae.encode(torch.zeros(1, 3, 64, 72)).latent_dist.mode().shape[2:] == (64 // factor, 72 // factor)


def test_loaded_pipeline_has_configuration(tiny_svd):
    pipeline = load_on_cpu(tiny_svd)
    assert pipeline.image_mean == tuple(FEATURE_EXTRACTOR["image_mean"])
    assert pipeline.image_std == tuple(FEATURE_EXTRACTOR["image_std"])
    assert pipeline.scheduler == SCHEDULER
    assert (pipeline.image_size, pipeline.latent_channels, pipeline.force_upcast) == (224, 4, True)
    assert (pipeline.device, pipeline.dtype) == (torch.device("cpu"), torch.float32)
    assert pipeline.defaults == {"num_frames": 4}
    assert pipeline.notes == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_loaded_networks_have_requested_dtype_in_eval_mode(tiny_svd, dtype):
    pipeline = load_on_cpu(tiny_svd, dtype)
    for component in COMPONENTS:
        module = getattr(pipeline, component)
        assert {p.dtype for p in module.parameters()} == {getattr(torch, dtype)}
        assert {t.device.type for t in [*module.parameters(), *module.buffers()]} == {"cpu"}
        assert not any(p.requires_grad for p in module.parameters())
        assert not module.training


def test_load_prints_nothing(tiny_svd, capfd):
    load_on_cpu(tiny_svd)
    assert capfd.readouterr() == ("", "")


def test_settings_give_default_device_and_dtype(tiny_svd):
    assert load(tiny_svd, settings=Settings(device="cpu", dtype="bfloat16")).dtype == torch.bfloat16
    assert load_on_cpu(tiny_svd, device="cpu", dtype="float32").dtype == torch.float32
    with pytest.raises(InvalidRequest):
        load(tiny_svd, device="tpu", settings=Settings())


def test_dtype_selects_fp16_variant_or_full_weights(model_folder):
    make_tiny_svd(model_folder, seed=1, dtype=torch.float16, variant="fp16")
    assert load_on_cpu(model_folder, "float16").snapshot.files != load_on_cpu(model_folder).snapshot.files
    half, full = load_on_cpu(model_folder, "float16").identity, load_on_cpu(model_folder).identity
    assert half.weights_sha256 != full.weights_sha256
    assert load_on_cpu(model_folder).notes == ()


def test_fp16_weights_in_float32_are_noted(tmp_path):
    make_tiny_svd(tmp_path, dtype=torch.float16, variant="fp16")
    assert "rounded to float16" in load_on_cpu(tmp_path).notes[0]


def test_folder_of_other_size_without_defaults_is_noted(model_folder):
    (model_folder / "kinema.json").unlink()
    assert load_on_cpu(model_folder).notes == (
        f"{model_folder} has no kinema.json: unset parameters have svd-xt's defaults, which may not suit this model",
    )


def test_slow_dtype_on_cpu_is_noted(tiny_svd):
    assert load(tiny_svd, device="cpu", dtype="float32").notes == ()
    assert "float16 is slow on this CPU" in load(tiny_svd, device="cpu", dtype="float16").notes[0]


def test_shards_load_same_weights_as_single_file(tiny_svd, tmp_path):
    sharded = load_on_cpu(make_tiny_svd(tmp_path, max_shard_size="400KB"))
    whole = load_on_cpu(tiny_svd)
    assert len(sharded.snapshot.files) > len(whole.snapshot.files) + 3
    for component in COMPONENTS:
        expected = getattr(whole, component).state_dict()
        assert all(
            torch.equal(value, expected[name]) for name, value in getattr(sharded, component).state_dict().items()
        )


def test_weights_are_hashed_once_and_hash_error_is_raised_on_access(model_folder, monkeypatch):
    calls = []
    monkeypatch.setattr(loading, "weights_sha256", lambda *_: calls.append(1) or "0" * 64)
    pipeline = load_on_cpu(model_folder)
    for _ in range(2):
        pipeline.prepare_identity()
        assert pipeline.identity.weights_sha256 == "0" * 64
    assert calls == [1]
    monkeypatch.undo()
    pipeline = load_on_cpu(model_folder)
    for path in model_folder.rglob("*.safetensors"):
        path.unlink()
    pipeline.prepare_identity()
    with pytest.raises(FileNotFoundError):
        _ = pipeline.identity


def test_identity_has_folder_name_without_path(tiny_svd, model_folder):
    identity = load_on_cpu(tiny_svd).identity
    assert (identity.name, identity.revision) == ("tiny-svd", None)
    assert load_on_cpu(model_folder).identity.weights_sha256 == identity.weights_sha256
    tensors = load_file(model_folder / UNET)
    tensors["conv_in.bias"] += 1
    save_file(tensors, model_folder / UNET)
    assert load_on_cpu(model_folder).identity.weights_sha256 != identity.weights_sha256


def test_loaded_weights_survive_truncation_of_files(model_folder):
    pipeline = load_on_cpu(model_folder)
    before = pipeline.unet.conv_in.weight.clone()
    with (model_folder / UNET).open("r+b") as file:
        file.truncate(10)
    assert torch.equal(pipeline.unet.conv_in.weight, before)


def test_release_frees_memory(tiny_svd):
    pipeline = load_on_cpu(tiny_svd)
    pipeline.release()
    assert {p.device.type for component in COMPONENTS for p in getattr(pipeline, component).parameters()} == {"meta"}


def test_unused_tensors_of_older_libraries_are_ignored(model_folder):
    path = model_folder / "image_encoder" / "model.safetensors"
    save_file({**load_file(path), "vision_model.embeddings.position_ids": torch.arange(17)[None]}, path)
    assert load_on_cpu(model_folder).image_encoder is not None


def test_configs_of_older_libraries_load(model_folder):
    edit(
        model_folder / "image_encoder" / "config.json",
        _name_or_path="somewhere/image_encoder",
        architectures=["CLIPVisionModelWithProjection"],
        dropout=0.0,
        torch_dtype="float16",
        transformers_version="4.34.0.dev0",
    )
    edit(model_folder / "unet" / "config.json", _diffusers_version="0.24.0.dev0", field_of_another_version=1)
    assert {
        p.dtype for component in COMPONENTS for p in getattr(load_on_cpu(model_folder), component).parameters()
    } == {torch.float32}


@pytest.mark.parametrize("name", ["svd-tx", "no such model", "./nowhere/at-all", "a/b/c"])
def test_unknown_model_lists_known_ones(name):
    with pytest.raises(ModelNotFound, match=r"model .* not found.*Use pocket, svd, svd-xt, svd-xt-1\.1, a hub id"):
        load_on_cpu(name)


def test_misspelled_model_suggests_closest_name():
    with pytest.raises(ModelNotFound, match=r"did you mean svd-xt\?"):
        load_on_cpu("SVD-XTT")


def test_single_file_checkpoint_is_rejected(tmp_path):
    (tmp_path / "svd_xt.safetensors").write_bytes(b"")
    for model in (tmp_path / "svd_xt.safetensors", tmp_path):
        with pytest.raises(NotAnSvdModel, match=r"single-file checkpoint.*svd-xt.*convert_svd_to_diffusers"):
            load_on_cpu(model)


def test_folder_without_index_is_rejected(tmp_path):
    with pytest.raises(ModelIncomplete, match=r"has no model_index\.json"):
        load_on_cpu(tmp_path)


def test_index_without_class_name_is_rejected(model_folder):
    edit(model_folder / "model_index.json", _class_name=None)
    with pytest.raises(ModelIncomplete, match=r"model_index\.json has no _class_name, .* download it again"):
        load_on_cpu(model_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "is a StableDiffusionPipeline; Kinema supports only"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "expected AutoencoderKLTemporalDecoder as vae .* got AutoencoderKL"),
        ({"unet": None}, "as unet of an SVD, got nothing"),
    ],
)
def test_other_pipeline_is_rejected(model_folder, changes, message):
    edit(model_folder / "model_index.json", **changes)
    with pytest.raises(NotAnSvdModel, match=message):
        load_on_cpu(model_folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "unet/config.json",
            {"in_channels": 4},
            r"in_channels \(twice the VAE's latent_channels\) is 4, expected 8",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type is 'epsilon'"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "_class_name is 'DDIMScheduler'"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": False}, "use_karras_sigmas is False"),
        ("unet/config.json", {"cross_attention_dim": 99}, "image encoder's projection_dim, is 99, expected 16"),
        ("vae/config.json", {"block_out_channels": [32]}, r"is \[32\]; expected a list of 2, 3 or 4 numbers"),
        ("vae/config.json", {"block_out_channels": [32] * 5}, r"32\]; expected a list of 2, 3 or 4 numbers"),
        ("vae/config.json", {"block_out_channels": None}, "is None; expected a list of 2, 3 or 4 numbers"),
    ],
)
def test_config_of_unsupported_architecture_is_rejected(model_folder, file, changes, message):
    edit(model_folder / file, **changes)
    with pytest.raises(NotAnSvdModel, match=message) as error:
        load_on_cpu(model_folder)
    assert file in str(error.value)


def test_weights_under_another_name_are_named(model_folder):
    (model_folder / UNET).rename(model_folder / "unet" / "my_model.safetensors")
    with pytest.raises(ModelIncomplete, match=r"no weights for its unet: .*; rename unet/my_model\.safetensors if"):
        load_on_cpu(model_folder)


def test_check_folder_accepts_models_and_names_and_rejects_broken_folders(model_folder, tiny_sd, tmp_path):
    for name in (str(model_folder), str(tiny_sd), "svd-xt", "someone/fine-tune"):
        check_folder(name)
    with pytest.raises(ModelNotFound, match=r"the model folder .*nowhere does not exist"):
        check_folder(str(tmp_path / "nowhere"))
    edit(model_folder / "unet/config.json", in_channels=4)
    with pytest.raises(NotAnSvdModel, match="in_channels"):
        check_folder(str(model_folder))


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_damaged_config_is_named(model_folder, text):
    (model_folder / "vae" / "config.json").write_text(text)
    with pytest.raises(ModelCorrupt, match=r"vae/config\.json .*delete it and download"):
        load_on_cpu(model_folder)


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize(
    ("component", "fields", "name"),
    [
        ("unet", {"down_block_types": ["NoSuchBlock", "DownBlockSpatioTemporal"]}, "UNetSpatioTemporalConditionModel"),
        ("vae", {"down_block_types": ["NoSuchBlock"] * 4}, "AutoencoderKLTemporalDecoder"),
        ("image_encoder", {"hidden_act": "no_such_activation"}, "CLIPVisionModelWithProjection"),
    ],
)
def test_config_with_unknown_layer_is_named(model_folder, component, fields, name, engine):
    edit(model_folder / component / "config.json", **fields)
    with pytest.raises(ModelCorrupt, match=rf"{component}/config\.json does not describe a {name} \("):
        load(model_folder, device="cpu", engine=engine)


def test_feature_extractor_without_mean_is_named(model_folder):
    write_json(model_folder / "feature_extractor" / "preprocessor_config.json", {})
    with pytest.raises(ModelCorrupt, match=r"preprocessor_config\.json has no image_mean"):
        load_on_cpu(model_folder)


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "vae/config.json", UNET])
def test_missing_file_is_named(model_folder, name):
    (model_folder / name).unlink()
    with pytest.raises(ModelIncomplete, match=name.replace(".", r"\.")):
        load_on_cpu(model_folder)


@pytest.mark.parametrize("length", [-1, -1000, 100, 8, 3, 0])
def test_truncated_weights_are_named_with_remedy(model_folder, length):
    content = (model_folder / UNET).read_bytes()
    (model_folder / UNET).write_bytes(content[:length])
    with pytest.raises(ModelCorrupt, match=r"unet/diffusion_pytorch_model\.safetensors .*delete it and download"):
        load_on_cpu(model_folder)


def test_trailing_bytes_raise_weights_damaged(model_folder):
    with (model_folder / UNET).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ModelCorrupt, match=r"has \d+ bytes, but its header gives \d+"):
        load_on_cpu(model_folder)


@pytest.mark.parametrize("content", [b"<html>Not found</html>" * 9, b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_invalid_safetensors_is_named(model_folder, content):
    (model_folder / UNET).write_bytes(content)
    with pytest.raises(ModelCorrupt, match="is not a complete safetensors file"):
        load_on_cpu(model_folder)


def test_git_lfs_pointer_is_recognised(model_folder):
    (model_folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ModelIncomplete, match="git lfs pull"):
        load_on_cpu(model_folder)


def test_missing_tensor_is_named(model_folder):
    tensors = load_file(model_folder / UNET)
    del tensors["conv_out.weight"]
    save_file(tensors, model_folder / UNET)
    with pytest.raises(ModelCorrupt, match=r"diffusion_pytorch_model\.safetensors lacks the tensor conv_out\.weight"):
        load_on_cpu(model_folder)


def test_tensor_of_wrong_shape_is_named(model_folder):
    tensors = load_file(model_folder / UNET)
    tensors["conv_out.bias"] = torch.zeros(5)
    save_file(tensors, model_folder / UNET)
    with pytest.raises(ModelCorrupt, match=r"conv_out\.bias is 5, but .*unet/config\.json requires 4"):
        load_on_cpu(model_folder)


def test_missing_shard_is_named(tmp_path):
    make_tiny_svd(tmp_path, max_shard_size="400KB")
    shard = min((tmp_path / "unet").glob("*-00002-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelIncomplete, match=shard.name):
        load_on_cpu(tmp_path)


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
def test_index_may_only_list_safetensors_in_its_folder(tmp_path, name):
    make_tiny_svd(tmp_path, max_shard_size="400KB")
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    edit(index, weight_map={"conv_in.weight": name})
    with pytest.raises(ModelCorrupt, match="not a safetensors file in the same folder"):
        load_on_cpu(tmp_path)


def test_pickle_weights_are_rejected_with_conversion(model_folder):
    (model_folder / UNET).unlink()
    pickle = model_folder / "unet" / "diffusion_pytorch_model.bin"
    pickle.write_bytes(b"cos\nsystem\n")
    with pytest.raises(ModelIncomplete, match=r"pickle \(unet/diffusion_pytorch_model\.bin\).*safe_serialization=True"):
        load_on_cpu(model_folder)


def test_pickle_beside_safetensors_is_ignored(model_folder):
    (model_folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert not any(name.endswith(".bin") for name in load_on_cpu(model_folder).snapshot.files)


def test_insufficient_memory_fails_before_weights_are_read(tiny_svd, monkeypatch):
    monkeypatch.setattr("kinema.models.devices.free_memory", lambda _device: 10**6)
    with pytest.raises(InsufficientMemory, match=r"weights of tiny-svd need .* GiB of host memory"):
        load_on_cpu(tiny_svd)


def test_address_space_that_ends_while_weights_are_read_is_insufficient_memory(tiny_svd, monkeypatch):
    load_on_cpu(tiny_svd)  # imports all that it needs
    monkeypatch.setattr("kinema.models.devices.free_memory", lambda _device: 2**40)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + 24 * 2**20  # the UNet of pocket has 28 MB
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        with pytest.raises(InsufficientMemory, match=r"^memory ran out while loading .*\.safetensors; use a smaller"):
            load_on_cpu("pocket")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        ("float32", "close other programs, use --dtype float16 or bfloat16 instead of float32, or use a smaller model"),
        ("bfloat16", "close other programs or use a smaller model"),
    ],
)
def test_insufficient_memory_suggests_another_dtype_only_for_float32(tiny_svd, monkeypatch, dtype, remedy):
    monkeypatch.setattr("kinema.models.devices.free_memory", lambda _device: 10**5)
    with pytest.raises(InsufficientMemory, match=f"; {remedy}$"):
        load_on_cpu(tiny_svd, dtype=dtype)


def test_model_kind_is_known_for_catalog_and_folders(tiny_svd, tiny_sd, tmp_path):
    models = ["svd", "sdxl-turbo", str(tiny_svd), str(tiny_sd), "owner/name", str(tmp_path)]
    assert [model_kind(model) for model in models] == ["video", "image_model", "video", "image_model", None, None]


def test_default_model_comes_from_settings():
    assert default_model(Settings(model="svd")) == ("svd", "it is set in the settings")


def test_default_model_without_cuda_is_pocket():
    name, reason = default_model(Settings(device="cpu"))
    assert name == "pocket"
    assert reason == "the device is cpu, not a CUDA GPU"


@pytest.mark.parametrize(
    ("free_gib", "is_installed", "reachable", "name", "expected_reason"),
    [
        (80, True, False, "svd-xt", "it fits"),
        (80, False, True, "svd-xt", "it fits"),
        (80, False, False, "pocket", "hub can't be reached"),
        (4, True, True, "pocket", "does not fit"),
        (6, True, True, "pocket", "only with sequential offload"),
    ],
)
def test_default_model_on_gpu(monkeypatch, free_gib, is_installed, reachable, name, expected_reason):
    monkeypatch.setattr(loading, "pick_device", lambda _wanted: torch.device("cuda"))
    monkeypatch.setattr(loading, "free_memory", lambda _device: int(free_gib * GIB))
    monkeypatch.setattr(loading, "has_kernels", lambda _device, _dtype: False)
    monkeypatch.setattr(loading.hub, "cached", lambda *_args, **_kwargs: object() if is_installed else None)
    monkeypatch.setattr(loading.hub, "reachable", lambda: reachable)
    chosen, reason = default_model(Settings())
    assert chosen == name
    assert expected_reason in reason
    assert chosen in CATALOG

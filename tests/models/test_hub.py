import errno
import shutil
from types import SimpleNamespace

import pytest
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants

from kinema.errors import (
    HubUnreachable,
    InsufficientDisk,
    ModelError,
    ModelGated,
    ModelIncomplete,
    ModelNotFound,
    NotAnImagePipeline,
    NotAnSvdModel,
)
from kinema.models import hub
from kinema.models.catalog import CATALOG, IMAGE_MODELS
from kinema.models.loading import inventory, load, pull
from tiny import make_tiny_svd, write_json

REPOSITORY = "someone/tiny-svd"


@pytest.fixture
def remote(tmp_path, monkeypatch, tiny_svd):
    """A hub with both precisions and the other files of a real repository, and an empty cache."""
    folder = tmp_path / "remote"
    shutil.copytree(tiny_svd, folder)
    for component, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("image_encoder", "model"),
    ):
        shutil.copy(folder / component / f"{stem}.safetensors", folder / component / f"{stem}.fp16.safetensors")
    (folder / "svd_xt.safetensors").write_bytes(b"a single-file checkpoint")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("a model card")
    with FakeHub(folder, REPOSITORY) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


def test_pull_downloads_only_files_that_are_read(remote):
    snapshot = pull(REPOSITORY)
    assert sorted(remote.downloaded) == sorted(snapshot.files)
    assert [name for name in remote.downloaded if name.endswith(".safetensors")] == [
        "image_encoder/model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert snapshot.revision == COMMIT
    assert "Bearer hf_secret" in remote.tokens


def test_progress_counts_every_byte_once(remote):
    updates = []
    snapshot = pull(REPOSITORY, updates.append)
    done = [update.done_bytes for update in updates]
    assert done == sorted(done)
    assert done[-1] == updates[-1].total_bytes == snapshot.size_bytes
    assert {update.file for update in updates} == set(snapshot.files) - {"model_index.json"}


def test_second_pull_downloads_nothing(remote):
    pull(REPOSITORY)
    remote.downloaded.clear()
    pull(REPOSITORY)
    assert remote.downloaded == []


def test_cached_pinned_model_needs_no_network(remote, monkeypatch):
    pull(f"{REPOSITORY}@{COMMIT}")
    remote.tokens.clear()
    assert pull(f"{REPOSITORY}@{COMMIT}").revision == COMMIT
    assert remote.tokens == set()


def test_cached_model_loads_offline(remote, monkeypatch):
    pull(REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pipeline = load(REPOSITORY, device="cpu", dtype="float32")
    assert (pipeline.identity.name, pipeline.identity.revision) == (REPOSITORY, COMMIT)
    assert pipeline.notes == ("dtype is float32, but the weights are rounded to float16 (image_encoder, vae, unet)",)


def test_identity_uses_hashes_of_cache_file_names(remote):
    snapshot = pull(REPOSITORY)
    copied = load(REPOSITORY, device="cpu", dtype="float32").identity.weights_sha256
    flat = remote.folder.parent / "flat"
    shutil.copytree(snapshot.folder, flat)
    assert load(flat, device="cpu", dtype="bfloat16").identity.weights_sha256 == copied


def test_pull_downloads_shards_with_index(remote, tmp_path):
    shutil.rmtree(remote.folder / "unet")
    make_tiny_svd(tmp_path / "sharded", max_shard_size="400KB")
    shutil.copytree(tmp_path / "sharded" / "unet", remote.folder / "unet")
    snapshot = pull(REPOSITORY)
    assert sum(name.startswith("unet/") for name in snapshot.files) > 3
    assert load(REPOSITORY, device="cpu", dtype="float32").unet.config.in_channels == 8


def test_gated_model_error_has_licence_url_and_login_command(remote, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    remote.error = ("GatedRepo", 401)
    with pytest.raises(ModelGated, match=r"open https://huggingface\.co/someone/tiny-svd.*hf auth login.*HF_TOKEN"):
        pull(REPOSITORY)


def test_rejected_token_raises_model_gated(remote):
    remote.error = (None, 403)
    with pytest.raises(ModelGated, match=r"denied access to .* token is invalid"):
        pull(REPOSITORY)


def test_missing_repository_and_revision_have_different_errors(remote):
    with pytest.raises(ModelNotFound, match="someone/nothing does not exist on the hub or is private"):
        pull("someone/nothing")
    with pytest.raises(ModelNotFound, match="has no revision 'v9'"):
        pull(f"{REPOSITORY}@v9")


def test_server_error_raises_hub_unreachable(remote):
    remote.error = (None, 500)
    with pytest.raises(HubUnreachable, match=r"does not respond .*pocket is always available"):
        pull(REPOSITORY)


def test_no_network_raises_hub_unreachable(remote, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub.reachable()
    with pytest.raises(HubUnreachable, match="check the network"):
        pull(REPOSITORY)


def test_offline_mode_error_names_variable(remote, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()
    with pytest.raises(HubUnreachable, match=r"HF_HUB_OFFLINE is set.*kinema models pull"):
        pull(REPOSITORY)
    assert remote.tokens == set()


def test_responding_hub_is_reachable(remote):
    assert hub.reachable()


def test_other_kind_of_model_fails_before_weights_are_downloaded(remote):
    write_json(remote.folder / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    with pytest.raises(NotAnSvdModel, match=r"someone/tiny-svd \(at main\) is a StableDiffusionXLPipeline"):
        load(REPOSITORY, device="cpu")
    assert remote.downloaded == ["model_index.json"]


def test_pull_of_unsupported_pipeline_downloads_only_index(remote):
    write_json(remote.folder / "model_index.json", {"_class_name": "StableAudioPipeline"})
    with pytest.raises(NotAnImagePipeline, match=r"someone/tiny-svd \(at main\) is a StableAudioPipeline, which can't"):
        pull(REPOSITORY)
    assert remote.downloaded == ["model_index.json"]


def test_repository_without_index_downloads_nothing(remote):
    (remote.folder / "model_index.json").unlink()
    with pytest.raises(ModelIncomplete, match=r"no model_index\.json"):
        pull(REPOSITORY)
    assert remote.downloaded == []


def test_repository_of_pickles_downloads_only_index(remote):
    for path in (remote.folder / "unet").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ModelIncomplete, match=r"pickle \(unet/diffusion_pytorch_model\.bin\).*safe_serialization=True"):
        pull(REPOSITORY)
    assert remote.downloaded == ["model_index.json"]


def test_insufficient_disk_fails_before_download(remote, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**6))
    with pytest.raises(InsufficientDisk, match=r"needs .* MB in .*only 1\.0 MB is free.*HF_HOME"):
        pull(REPOSITORY)
    assert remote.downloaded == ["model_index.json"]


def fail_with(number):
    def download(*_args, **_kwargs):
        raise OSError(number, "error")

    return download


def test_full_disk_during_download_raises_insufficient_disk(remote, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail_with(errno.ENOSPC))
    with pytest.raises(InsufficientDisk, match=r"is full.*HF_HOME"):
        pull(REPOSITORY)


def test_unwritable_cache_raises_weights_error(remote, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail_with(errno.EACCES))
    with pytest.raises(ModelError, match=r"can't be written to .*HF_HOME"):
        pull(REPOSITORY)


def test_inventory_lists_cached_models_without_network(remote, monkeypatch):
    before = {model.entry.name: model for model in inventory()}
    assert list(before) == [*CATALOG, *IMAGE_MODELS]
    xt = before["svd-xt"]
    assert (xt.present, xt.source, xt.path, xt.size_bytes) == (False, "hub", None, CATALOG["svd-xt"].size_bytes)
    storage = hub.cache_folder() / "models--stabilityai--stable-video-diffusion-img2vid-xt"
    shutil.copytree(remote.folder, storage / "snapshots" / CATALOG["svd-xt"].revision)
    xt = {model.entry.name: model for model in inventory()}["svd-xt"]
    assert (xt.present, xt.path.name) == (True, CATALOG["svd-xt"].revision)
    assert 0 < xt.size_bytes < 10**8
    assert remote.tokens == set()

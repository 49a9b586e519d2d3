import errno
import shutil
from types import SimpleNamespace

import pytest
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants

from kinema.errors import (
    HubUnreachable,
    InsufficientDisk,
    ModelGated,
    ModelNotFound,
    NotAnImagePipeline,
    NotAnSvdModel,
    WeightsError,
    WeightsMissing,
)
from kinema.models import hub
from kinema.models.catalog import CATALOG, IMAGE_MODELS
from kinema.models.loading import inventory, load, pull
from tiny import make_tiny_svd, write_json

REPOSITORY = "someone/tiny-svd"


@pytest.fixture
def remote(tmp_path, monkeypatch, tiny_svd):
    """A hub with both precisions and all that a real repository has beside them, and an empty cache."""
    folder = tmp_path / "remote"
    shutil.copytree(tiny_svd, folder)
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("image_encoder", "model"),
    ):
        shutil.copy(folder / part / f"{stem}.safetensors", folder / part / f"{stem}.fp16.safetensors")
    (folder / "svd_xt.safetensors").write_bytes(b"a checkpoint in one file")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("a card")
    with FakeHub(folder, REPOSITORY) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


def test_only_the_files_that_are_read_are_fetched(remote):
    snapshot = pull(REPOSITORY)
    assert sorted(remote.fetched) == sorted(snapshot.files)
    assert [name for name in remote.fetched if name.endswith(".safetensors")] == [
        "image_encoder/model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert snapshot.revision == COMMIT
    assert "Bearer hf_secret" in remote.tokens


def test_progress_counts_every_byte_once(remote):
    seen = []
    snapshot = pull(REPOSITORY, seen.append)
    done = [step.done_bytes for step in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes == snapshot.size_bytes
    assert {step.file for step in seen} == set(snapshot.files) - {"model_index.json"}


def test_what_is_here_is_not_fetched_again(remote):
    pull(REPOSITORY)
    remote.fetched.clear()
    pull(REPOSITORY)
    assert remote.fetched == []


def test_a_pinned_model_that_is_here_needs_no_network(remote, monkeypatch):
    pull(f"{REPOSITORY}@{COMMIT}")
    remote.tokens.clear()
    assert pull(f"{REPOSITORY}@{COMMIT}").revision == COMMIT
    assert remote.tokens == set()


def test_without_a_network_what_is_here_still_loads(remote, monkeypatch):
    pull(REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pipeline = load(REPOSITORY, device="cpu", dtype="float32")
    assert (pipeline.identity.name, pipeline.identity.revision) == (REPOSITORY, COMMIT)
    assert pipeline.notes == ("computing in float32 with weights rounded to float16 (image_encoder, vae, unet)",)


def test_the_identity_believes_the_caches_own_hashes(remote):
    snapshot = pull(REPOSITORY)
    copied = load(REPOSITORY, device="cpu", dtype="float32").identity.weights_sha256
    flat = remote.folder.parent / "flat"
    shutil.copytree(snapshot.folder, flat)
    assert load(flat, device="cpu", dtype="bfloat16").identity.weights_sha256 == copied


def test_shards_come_with_their_index(remote, tmp_path):
    shutil.rmtree(remote.folder / "unet")
    make_tiny_svd(tmp_path / "sharded", max_shard_size="400KB")
    shutil.copytree(tmp_path / "sharded" / "unet", remote.folder / "unet")
    snapshot = pull(REPOSITORY)
    assert sum(name.startswith("unet/") for name in snapshot.files) > 3
    assert load(REPOSITORY, device="cpu", dtype="float32").unet.config.in_channels == 8


def test_a_gated_model_tells_where_to_accept_and_how_to_log_in(remote, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    remote.fault = ("GatedRepo", 401)
    with pytest.raises(ModelGated, match=r"open https://huggingface\.co/someone/tiny-svd.*hf auth login.*HF_TOKEN"):
        pull(REPOSITORY)


def test_a_refused_token_is_told_apart(remote):
    remote.fault = (None, 403)
    with pytest.raises(ModelGated, match=r"refuses .* to your token"):
        pull(REPOSITORY)


def test_a_missing_repository_and_a_missing_revision_are_told_apart(remote):
    with pytest.raises(ModelNotFound, match="the hub has no someone/nothing, or it is private"):
        pull("someone/nothing")
    with pytest.raises(ModelNotFound, match="has no revision 'v9'"):
        pull(f"{REPOSITORY}@v9")


def test_a_hub_that_fails_is_unreachable(remote):
    remote.fault = (None, 500)
    with pytest.raises(HubUnreachable, match=r"does not answer .*pocket always is"):
        pull(REPOSITORY)


def test_no_network_is_told(remote, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not hub.reachable()
    with pytest.raises(HubUnreachable, match="check the network"):
        pull(REPOSITORY)


def test_offline_mode_is_told_by_its_name(remote, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()
    with pytest.raises(HubUnreachable, match=r"HF_HUB_OFFLINE forbids .*kinema models pull"):
        pull(REPOSITORY)
    assert remote.tokens == set()


def test_the_hub_that_answers_is_reachable(remote):
    assert hub.reachable()


def test_another_kind_of_model_is_refused_before_its_weights_are_fetched(remote):
    write_json(remote.folder / "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    with pytest.raises(NotAnSvdModel, match=r"someone/tiny-svd \(at main\) is a StableDiffusionXLPipeline"):
        load(REPOSITORY, device="cpu")
    assert remote.fetched == ["model_index.json"]


def test_what_is_neither_a_model_nor_a_painter_is_not_pulled(remote):
    write_json(remote.folder / "model_index.json", {"_class_name": "StableAudioPipeline"})
    with pytest.raises(
        NotAnImagePipeline, match=r"someone/tiny-svd \(at main\) is a StableAudioPipeline, which draws no"
    ):
        pull(REPOSITORY)
    assert remote.fetched == ["model_index.json"]


def test_a_repository_that_is_no_diffusers_model_is_refused_unread(remote):
    (remote.folder / "model_index.json").unlink()
    with pytest.raises(WeightsMissing, match=r"no model_index\.json"):
        pull(REPOSITORY)
    assert remote.fetched == []


def test_a_repository_of_pickles_is_refused_unread(remote):
    for path in (remote.folder / "unet").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(WeightsMissing, match=r"pickle \(unet/diffusion_pytorch_model\.bin\).*safe_serialization=True"):
        pull(REPOSITORY)
    assert remote.fetched == ["model_index.json"]


def test_too_small_a_disk_is_seen_before_the_download(remote, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**6))
    with pytest.raises(InsufficientDisk, match=r"needs .* MB more in .*1\.0 MB are free.*HF_HOME"):
        pull(REPOSITORY)
    assert remote.fetched == ["model_index.json"]


def fail_with(number):
    def download(*_args, **_kwargs):
        raise OSError(number, "fault")

    return download


def test_a_disk_that_fills_up_is_told(remote, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail_with(errno.ENOSPC))
    with pytest.raises(InsufficientDisk, match=r"is full.*HF_HOME"):
        pull(REPOSITORY)


def test_a_cache_that_can_not_be_written_is_told(remote, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail_with(errno.EACCES))
    with pytest.raises(WeightsError, match=r"can't be written to .*HF_HOME"):
        pull(REPOSITORY)


def test_the_inventory_tells_what_is_here_without_asking_the_hub(remote, monkeypatch):
    before = {held.entry.name: held for held in inventory()}
    assert list(before) == [*CATALOG, *IMAGE_MODELS]
    xt = before["svd-xt"]
    assert (xt.present, xt.kind, xt.path, xt.size_bytes) == (False, "hub", None, CATALOG["svd-xt"].size_bytes)
    storage = hub.cache_folder() / "models--stabilityai--stable-video-diffusion-img2vid-xt"
    shutil.copytree(remote.folder, storage / "snapshots" / CATALOG["svd-xt"].revision)
    xt = {held.entry.name: held for held in inventory()}["svd-xt"]
    assert (xt.present, xt.path.name) == (True, CATALOG["svd-xt"].revision)
    assert 0 < xt.size_bytes < 10**8
    assert remote.tokens == set()

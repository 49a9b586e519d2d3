"""Compare the networks that are built without diffusers and transformers with those of these libraries."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from training.common import svd_config

from kinema.models.catalog import POCKET_FOLDER
from kinema.models.loading import load
from kinema.models.memory_plan import COMPONENTS
from kinema.models.networks import ACTIVATIONS, make_network
from kinema.models.reference_networks import as_reference, make_reference_network
from tiny import PLAIN_TOP, UP_ALONE, make_tiny_svd

PUBLISHED = {"unet": svd_config.UNET, "vae": svd_config.VAE, "image_encoder": svd_config.IMAGE_ENCODER}
TINY = {
    "two levels": {},
    "four levels": {"levels": 4, "latent_channels": 8},
    "two layers": {"layers": 2},
    "first level without attention": PLAIN_TOP,
    "first level with attention in the up blocks only": {**UP_ALONE, "vae_levels": 2},
    "three levels without attention": {"levels": 3, "down": "---"},
    "other image size": {"image_size": 336},
}
UNET = {
    "layers of each level": {"layers_per_block": [1, 3, 2, 1]},
    "one number of heads": {"num_attention_heads": 4},
    "width that heads do not divide": {"num_attention_heads": 7},
    "transformer layers of each level": {"transformer_layers_per_block": [1, 2, 1, 3]},
    "other time ids": {"addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 128},
}
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


def read_config(folder: Path, component: str) -> dict[str, object]:
    return json.loads((folder / component / "config.json").read_text())


def assert_same_layers(component: str, config: dict[str, object]) -> None:
    ours, theirs = make_network(component, config), make_reference_network(component, config)
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1]
    found = dict(theirs.named_modules())
    for name, module in ours.named_modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            assert module.eps == found[name].eps, name
            assert getattr(module, "num_groups", 0) == getattr(found[name], "num_groups", 0), name
        elif isinstance(module, CONVOLUTIONS):
            assert (module.stride, module.padding) == (found[name].stride, found[name].padding), name
        for attribute in ("in_channels", "num_channels", "heads", "switch_spatial_to_temporal_mix"):
            if hasattr(module, attribute) and hasattr(found[name], attribute):
                assert getattr(module, attribute) == getattr(found[name], attribute), name


@pytest.mark.parametrize("shape", TINY.values(), ids=TINY)
def test_tiny_networks_have_layers_of_diffusers(tmp_path: Path, shape: dict[str, object]) -> None:
    folder = make_tiny_svd(tmp_path, **shape)
    for component in COMPONENTS:
        assert_same_layers(component, read_config(folder, component))


@pytest.mark.parametrize("component", COMPONENTS)
def test_pocket_and_published_networks_have_layers_of_diffusers(component: str) -> None:
    assert_same_layers(component, read_config(POCKET_FOLDER, component))
    assert_same_layers(component, PUBLISHED[component])


@pytest.mark.parametrize("fields", UNET.values(), ids=UNET)
def test_unet_has_layers_of_diffusers(fields: dict[str, object]) -> None:
    assert_same_layers("unet", {"block_out_channels": [32, 64, 96, 128], "cross_attention_dim": 16, **fields})


def images(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size)).to(dtype)


@pytest.fixture(scope="module", params=["tiny", "tiny with four levels and two layers", "pocket"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "pocket":
        return POCKET_FOLDER
    shape = {} if request.param == "tiny" else {"levels": 4, "latent_channels": 8, "layers": 2}
    return make_tiny_svd(tmp_path_factory.mktemp("networks") / "svd", **shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@torch.no_grad()
def test_encoders_are_bit_equal_to_those_of_diffusers_and_transformers(folder: Path, dtype: str) -> None:
    ours, theirs = (load(folder, device="cpu", dtype=dtype, engine=engine) for engine in ("fast", "reference"))
    x = images(ours.image_size, ours.dtype)
    assert torch.equal(ours.image_encoder(x).image_embeds, theirs.image_encoder(x).image_embeds)
    x = images(80, ours.dtype)
    expected = theirs.vae.encode(x).latent_dist.mode()
    assert expected.std() > 0
    assert torch.equal(ours.vae.encode(x).latent_dist.mode(), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
@torch.no_grad()
def test_activations_are_bit_equal_to_those_of_transformers(name: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-9, 9, 999)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(ACTIVATIONS[name](x.to(dtype)), ACT2FN[name](x.to(dtype)))


def test_reference_shares_tensors(tiny_svd: Path) -> None:
    pipeline = load(tiny_svd, device="cpu", dtype="bfloat16")
    for component in COMPONENTS:
        network = getattr(pipeline, component)
        reference = as_reference(component, network)
        assert not reference.training
        stored = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
        assert {name: tensor.data_ptr() for name, tensor in reference.state_dict().items()} == stored


@pytest.mark.parametrize(
    ("component", "fields"),
    [
        ("unet", {"down_block_types": ["NoSuchBlock"] * 4}),
        ("unet", {"up_block_types": ["UpBlockSpatioTemporal"] * 3}),
        ("unet", {"num_attention_heads": [5, 10]}),
        ("unet", {"block_out_channels": [33, 64, 64, 64]}),
        ("unet", {"layers_per_block": "two"}),
        ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"]}),
        ("vae", {"block_out_channels": [64, 64]}),
        ("image_encoder", {"hidden_act": "no_such_activation"}),
        ("image_encoder", {"num_attention_heads": 7}),
        ("image_encoder", {"patch_size": 0}),
    ],
)
def test_invalid_config_is_rejected(component: str, fields: dict[str, object]) -> None:
    with pytest.raises((ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)):
        make_network(component, fields)

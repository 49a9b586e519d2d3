import resource

import psutil
import pytest
import torch

from kinema.errors import InsufficientMemory, InvalidRequest
from kinema.models.catalog import CATALOG, request_for
from kinema.models.devices import available_devices, free_memory, pick_device, pick_dtype
from kinema.models.loading import load
from kinema.models.memory_plan import COMPONENTS, GIB, PLANS, MemoryPlan, Shape, plan_memory, plans
from kinema.models.offload import place, plan_for, plan_for_stored_weights

XT = CATALOG["svd-xt"].weights_bytes
CPU = torch.device("cpu")


def plan_xt(free_gib, **changed):
    native = {"width": 1024, "height": 576, "num_frames": 25, "guided": True, "dtype_bytes": 2}
    return plan_memory(XT, free_bytes=int(free_gib * GIB), **{**native, **changed})


@pytest.fixture
def pipeline(tiny_svd):
    return load(tiny_svd, device="cpu", dtype="float32")


def test_cpu_is_last_available_device():
    assert available_devices()[-1] == "cpu"
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_unavailable_device_lists_available_ones(name):
    with pytest.raises(InvalidRequest, match=f"device '{name}' is not available; use auto, .*cpu") as error:
        pick_device(name)
    assert error.value.param == "device"


def test_default_dtype_depends_on_device(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "amx_bf16": False}, raising=False)
    assert pick_dtype(None, CPU) == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert pick_dtype("auto", CPU) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert pick_dtype("float32", torch.device("cuda")) == torch.float32
    with pytest.raises(InvalidRequest, match="dtype 'int8' is not supported; use auto, float16, bfloat16, float32"):
        pick_dtype("int8", CPU)


def test_free_memory_is_at_most_total_memory():
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total


def test_free_memory_is_at_most_the_address_space_left_to_the_process():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + GIB // 4, hard))
    try:
        free = free_memory(CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert 0 < free <= GIB // 4


def test_large_gpu_is_resident_and_decodes_all_frames_together():
    plan = plan_xt(80)
    assert (plan.name, plan.decode_chunk_size) == ("resident", 25)


def test_estimate_matches_measured_peak():
    # SVD-XT in float16 at 1024×576, 25 frames, all on one H100: bench/results/svd-xt-h100.json.
    for chunk, measured in ((8, 13.27), (25, 32.4)):
        assert measured <= plan_xt(80, decode_chunk_size=chunk).needed_bytes / GIB <= 1.15 * measured


def test_estimate_matches_measured_peak_of_fast_engine():
    # As above, with the memory reserved under a limit: bench/results/svd-xt-forward-h100.json.
    plan = plan_xt(80, fast=True)
    assert (plan.name, plan.decode_chunk_size) == ("resident", 25)
    assert 12.69 <= plan.needed_bytes / GIB <= 1.2 * 12.69
    names = ["resident", "resident", "resident_split", "model_offload", "streamed", "streamed"]
    assert [plan_xt(free, fast=True).name for free in (16, 12, 9, 7, 6, 4)] == names


def test_group_of_gpus_splits_guidance_and_frames_and_has_the_whole_model_on_each():
    plan = plan_xt(80, fast=True, gpus=2)
    assert (plan.name, plan.decode_chunk_size) == ("resident_split", 13)
    assert plan.needed_bytes == plan_xt(80, fast=True, gpus=2, decode_chunk_size=13).needed_bytes
    assert plan_xt(80, fast=True, gpus=2, guided=False).name == "resident"
    assert plan_xt(80, fast=True, gpus=2, offload=False).name == "resident_split"
    assert plan.next(plans(guided=True, fast=True, gpus=2)) is None
    # Where frames are divided, a step's memory is kept while the frames are decoded.
    step = plan_xt(80, fast=True, gpus=2, decode_chunk_size=1).needed_bytes
    divided = plan_xt(80, fast=True, gpus=4, decode_chunk_size=7).needed_bytes
    assert 2 * GIB < divided - step < 4 * GIB
    with pytest.raises(
        InsufficientMemory, match=r"GiB of memory on each GPU of a group, but only 6\.0 GiB is free; use gpus 1, a"
    ):
        plan_xt(6, fast=True, gpus=2)


def test_less_memory_selects_leaner_plans_in_order():
    found = [plan_xt(free) for free in (80, 40, 24, 16, 13, 12, 10, 8, 6)]
    ranks = [PLANS.index(plan.name) for plan in found]
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2, 4}  # only the fast engine can be streamed
    for plan in found:
        assert plan.needed_bytes <= plan.free_bytes


def test_slower_plan_is_preferred_to_small_chunk():
    plan = plan_xt(8.5, guided=False)
    assert (plan.name, plan.decode_chunk_size >= 4) == ("model_offload", True)
    assert plan_xt(8.5, guided=False, decode_chunk_size=2).name == "resident"


def test_networks_after_decoding_need_room_beside_a_resident_model():
    weights = sum(XT.values())
    assert plan_xt(80, finishing_bytes=60 * GIB).needed_bytes == weights + 60 * GIB
    assert plan_xt(12, finishing_bytes=10 * GIB).name == "model_offload"
    with pytest.raises(InsufficientMemory, match=r"fewer num_frames, interpolate 1, upscale 1 or a smaller model"):
        plan_xt(12, finishing_bytes=13 * GIB)


def test_explicit_chunk_is_used_up_to_num_frames():
    assert plan_xt(80, decode_chunk_size=3).decode_chunk_size == 3
    assert plan_xt(80, decode_chunk_size=100).decode_chunk_size == 25


def test_insufficient_memory_message_has_sizes_and_remedy():
    with pytest.raises(
        InsufficientMemory, match=r"25 frames of 1024×576 need at least .* GiB .* 2\.0 GiB is free.*smaller model"
    ):
        plan_xt(2)


def test_plan_without_offload_is_resident_or_fails():
    with pytest.raises(InsufficientMemory):
        plan_xt(12, offload=False)
    assert plan_xt(80, offload=False).name == "resident"


def test_memory_grows_with_pixels_frames_and_guidance():
    needs = [
        plan_xt(1000, **changed).needed_bytes
        for changed in ({"guided": False, "num_frames": 14, "width": 512, "height": 320}, {"guided": False}, {})
    ]
    assert needs == sorted(needs)


def test_denoise_memory_is_proportional_to_latents():
    plans = [plan_xt(1000, decode_chunk_size=1, shape=Shape(vae_factor=factor)) for factor in (2, 4, 8)]
    steps = [plan.needed_bytes - sum(XT.values()) for plan in plans]
    assert [step / steps[-1] for step in steps] == pytest.approx([16, 4, 1], rel=1e-6)


def test_next_plan_is_leaner_until_last():
    plan = MemoryPlan("resident", 8)
    names = []
    while plan is not None:
        names.append(plan.name)
        plan = plan.next()
    assert names == ["resident", "resident_split", "model_offload", "streamed", "sequential_offload"]
    assert MemoryPlan("resident", 8).next(plans(guided=False, fast=True)) == MemoryPlan("model_offload", 8)
    assert MemoryPlan("model_offload", 8).next(plans(guided=True, fast=False)) == MemoryPlan("sequential_offload", 8)


def test_plan_for_uses_shape_of_model(pipeline):
    plan = plan_for(pipeline, request_for(model="pocket", seed=0).changed(decode_chunk_size=None))
    assert plan.name == "resident"
    assert plan.decode_chunk_size == 14
    assert plan.needed_bytes < GIB


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_gives_same_output_and_keeps_weights(pipeline, name):
    image = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    before = {
        component: {k: v.clone() for k, v in getattr(pipeline, component).state_dict().items()}
        for component in COMPONENTS
    }
    with torch.inference_mode(), place(pipeline, MemoryPlan("resident", 4)) as placed, placed.on_device("vae") as vae:
        expected = vae.encode(image).latent_dist.mode()
    with torch.inference_mode(), place(pipeline, MemoryPlan(name, 4)) as placed:
        with placed.on_device("vae") as vae:
            assert torch.equal(vae.encode(image).latent_dist.mode(), expected)
        with placed.on_device("image_encoder") as encoder:
            assert encoder(torch.zeros(1, 3, 224, 224)).image_embeds.isfinite().all()
    for component in COMPONENTS:
        for key, value in getattr(pipeline, component).state_dict().items():
            assert torch.equal(value, before[component][key])


@pytest.mark.parametrize("name", PLANS)
def test_on_device_converts_dtype_temporarily(tiny_svd, name):
    pipeline = load(tiny_svd, device="cpu", dtype="bfloat16")
    plan = MemoryPlan(name, 4)
    with torch.inference_mode(), place(pipeline, plan) as placed, placed.on_device("vae", torch.float32) as vae:
        assert vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode().dtype == torch.float32
    assert {p.dtype for p in pipeline.vae.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", PLANS)
def test_on_device_converts_only_named_modules(tiny_svd, name):
    pipeline, used = load(tiny_svd, device="cpu", dtype="bfloat16"), ("encoder", "quant_conv")
    plan, wide = MemoryPlan(name, 4), torch.float32
    with torch.inference_mode(), place(pipeline, plan) as placed, placed.on_device("vae", wide, of=used) as vae:
        assert vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode().dtype == wide
        assert {p.dtype for p in vae.decoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in pipeline.vae.parameters()} == {torch.bfloat16}


def test_plan_for_stored_weights_depends_on_device(pipeline):
    assert plan_for_stored_weights(pipeline).name == "resident"
    pipeline.unet.to("meta")
    assert plan_for_stored_weights(pipeline).name == "model_offload"


def test_place_restores_dtype(pipeline):
    pipeline.vae.double()
    with place(pipeline, MemoryPlan("resident", 4)):
        assert {p.dtype for p in pipeline.vae.parameters()} == {pipeline.dtype}


def test_weights_return_to_cpu_after_error(pipeline):
    plan = MemoryPlan("sequential_offload", 4)
    with pytest.raises(RuntimeError), place(pipeline, plan) as placed, placed.on_device("vae") as vae:
        vae.encode(torch.zeros(1, 5, 64, 64))
    assert {p.device.type for p in pipeline.vae.parameters()} == {"cpu"}

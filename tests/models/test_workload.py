"""The work of the networks after decoding: their operations are counted again."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kinema
from kinema.engine.upscaling import LAYERS, CompactUpscaler
from kinema.models.catalog import CATALOG
from kinema.models.frame_interpolator import FrameInterpolator
from kinema.models.workload import INTERPOLATE_FLOP, UPSCALE_FLOP, extension_workload, video_workload
from kinema.values import VideoRequest

META = torch.device("meta")
SVD_PASS = 159.9e12 / (1024 * 576 * 25 * 2)  # FLOP per pixel and frame, without guidance


def counted(work):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_flop_of_interpolation_are_those_of_the_network():
    width, height = 1024, 576
    network = FrameInterpolator().to(META)
    frames, times = torch.empty(3, 3, height, width, device=META), torch.empty(3, device=META)
    flop = counted(lambda: network(frames, frames, times))
    assert flop == pytest.approx(3 * width * height * INTERPOLATE_FLOP, rel=1e-4)


@pytest.mark.parametrize(("width", "height", "strips"), [(288, 160, 1), (1024, 576, 1.07), (2048, 1152, 1.25)])
def test_flop_of_upscaling_are_those_of_the_network(width, height, strips):
    tensors = []
    for i, (inputs, outputs) in enumerate(LAYERS):
        tensors += [torch.empty(outputs, inputs, 3, 3), torch.empty(outputs)]
        tensors += [torch.empty(outputs)] * (i + 1 < len(LAYERS))
    upscaler = CompactUpscaler(tensors, META)
    flop = counted(lambda: upscaler.upscale(torch.empty(1, 3, height, width, device=META)))
    assert flop == pytest.approx(strips * width * height * UPSCALE_FLOP, rel=0.01)


def test_finishing_counts_as_the_work_of_the_model_with_as_many_operations():
    plain = VideoRequest(model="svd-xt", seed=1, num_frames=25)
    assert video_workload(plain).finishing == {}
    finished = video_workload(plain.changed(interpolate=4, upscale=2))
    pixels = 1.024 * 576 / 1000
    assert finished.finishing == pytest.approx(
        {"interpolate": pixels * 72 * INTERPOLATE_FLOP / SVD_PASS, "upscale": pixels * 97 * UPSCALE_FLOP / SVD_PASS}
    )
    assert finished.total == pytest.approx(plain.work + sum(finished.finishing.values()))
    loop = video_workload(plain.changed(interpolate=2, loop=True)).finishing["interpolate"]
    assert loop == pytest.approx(25 / 72 * finished.finishing["interpolate"])


def test_unknown_model_counts_as_svd_xt_and_the_pocket_model_as_itself():
    known, unknown, pocket = (
        video_workload(VideoRequest(model=name, seed=1, upscale=2)).finishing["upscale"]
        for name in ("svd-xt", "someone/theirs", "pocket")
    )
    assert unknown == known
    assert pocket / known == pytest.approx(SVD_PASS / (127.035e9 / (288 * 160 * 14)))


def test_extension_counts_only_new_frames():
    request = VideoRequest(model="svd-xt", seed=1, num_frames=30, interpolate=2, upscale=2)
    whole, new = video_workload(request).finishing, extension_workload(request, [25]).finishing
    assert new == pytest.approx({"interpolate": whole["interpolate"] * 5 / 29, "upscale": whole["upscale"] * 11 / 59})


def test_extension_counts_the_earlier_video_again_where_the_encoder_gives_no_latents():
    request = {"seed": 1, "width": 288, "height": 160, "num_inference_steps": 8}
    frame = video_workload(VideoRequest(model="pocket", num_frames=1, **request)).denoise
    work = {
        lengths: extension_workload(VideoRequest(model="pocket", num_frames=lengths[-1], **request), lengths[:-1])
        for lengths in ((14, 20), (10, 14), (14, 20, 30))
    }
    # A window of 14 frames each; the first video has no more than its own.
    counts = {lengths: round(found.denoise / frame) for lengths, found in work.items()}
    assert counts == {(14, 20): 28, (10, 14): 24, (14, 20, 30): 56}


def test_catalog_knows_whether_the_pocket_encodes_frames():
    assert kinema.load("pocket", device="cpu").encodes_frames == CATALOG["pocket"].encodes_frames

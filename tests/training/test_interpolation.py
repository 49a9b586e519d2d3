"""The scenes that the interpolation network is trained on: their motion is the one that the frames show."""

import pytest
import torch
from torch.nn.functional import interpolate
from training.interpolation.artefacts import degraded
from training.interpolation.scenes import SceneMaker
from training.interpolation.train import flipped, loss_of
from training.pocket.motion import PHOTO_HEIGHT, PHOTO_WIDTH, Photos

from kinema.models.frame_interpolator import FrameInterpolator, warp


@pytest.fixture(scope="module")
def maker():
    torch.manual_seed(3)
    noise = interpolate(torch.rand(2, 3, 81, 144), (PHOTO_HEIGHT, PHOTO_WIDTH), mode="bicubic").clamp(0, 1)
    pixels = (noise * 255).to(torch.uint8)
    return SceneMaker(Photos(("a", "b"), pixels, torch.zeros(2, 3, 54, 96), torch.ones(2)), 64, 64)


def test_given_frames_sampled_along_the_motion_show_the_frame_between(maker):
    torch.manual_seed(1)
    scenes = flipped(maker.draw(6))
    for frame, motion in ((scenes.first, scenes.motion[:, :2]), (scenes.second, scenes.motion[:, 2:])):
        change = (frame - scenes.between).abs()
        moved = change > 0.02
        assert moved.float().mean() > 0.05
        error = (warp(frame, motion) - scenes.between).abs()
        assert error[moved].median() < 0.25 * change[moved].median()


def test_artefacts_change_the_frames_but_not_the_motion(maker):
    torch.manual_seed(2)
    scenes = maker.draw(6)
    changed = degraded(scenes)
    assert changed.motion is scenes.motion
    assert not torch.equal(changed.first, scenes.first)
    assert (changed.between - scenes.between).abs().mean() < 0.03


def test_training_on_one_batch_lowers_its_loss(maker):
    torch.manual_seed(0)
    network, scenes = FrameInterpolator(), maker.draw(2)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        loss, _ = loss_of(network, scenes, 0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

"""Training of the pocket model: known motion, held-out photographs, coordinate channels, losses of attention."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from training.pocket.assemble import add_coordinate_channels
from training.pocket.denoising import carried_latents, coordinate_channels
from training.pocket.motion import HELD_OUT, Mover, Photos
from training.pocket.networks import COORDINATE_CHANNELS, LATENT_CHANNELS, VAE_FACTOR, make_vae
from training.pocket.pointing import Pointing, bilinear_cross_entropy
from training.pocket.vae import full_state, sampling_grid, use_middle_taps, warp


@pytest.fixture(scope="module")
def clips():
    torch.manual_seed(0)
    pixels = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 16), (648, 1152), mode="bicubic").clamp(0, 1)
    photos = Photos(
        ("a.jpg", "b.jpg"),
        (pixels * 255).byte(),
        torch.nn.functional.adaptive_avg_pool2d(pixels * 2 - 1, (54, 96)),
        torch.ones(2),
    )
    return Mover(photos, 64, 96).draw(4, 5)


def test_held_out_sets_share_no_photograph():
    sets = json.loads(HELD_OUT.read_text())
    names = [name for members in sets.values() for name in members]
    assert {name: len(members) for name, members in sets.items()} == {"validation": 42, "choose": 12, "report": 12}
    assert len(set(names)) == len(names)


def test_split_excludes_choose_and_report_sets():
    sets = json.loads(HELD_OUT.read_text())
    names = (sets["validation"][0], sets["choose"][0], sets["report"][0], "another.jpg")
    photos = Photos(names, torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2), torch.ones(4))
    train, validation = photos.split()
    assert (train.names, validation.names) == (("another.jpg",), (sets["validation"][0],))


def test_motion_bucket_127_is_flow_of_0_8_pixels_at_7_fps(clips):
    flow = (clips.positions[:, 1:] - clips.positions[:, :-1]).norm(dim=2).mean((1, 2, 3))
    torch.testing.assert_close(clips.motion_bucket_id, flow * clips.fps / 7 * 127 / 0.8)


def test_coordinate_channels_match_best_where_the_content_comes_from(clips):
    channels = coordinate_channels(clips.positions)
    own, last = channels[:, 0].flatten(2), channels[:, -1].flatten(2)  # in frame 0, the source is the latent itself
    source = (own.transpose(1, 2) @ last).argmax(1)  # [batch, h·w]
    position = clips.positions[:, 0].flatten(2).gather(2, source[:, None].expand(-1, 2, -1))
    expected = clips.positions[:, -1].flatten(2)
    inside = (expected.abs() <= clips.positions[:, 0].flatten(2).amax(2, keepdim=True)).all(1)
    assert (position - expected).norm(dim=1)[inside].max() < 4  # pixels, that is one latent


def test_last_frame_is_first_frame_warped_by_positions(clips):
    grid, inside = sampling_grid(clips.positions[:, -1])
    grid = torch.nn.functional.interpolate(grid.permute(0, 3, 1, 2), scale_factor=4, mode="bilinear").permute(
        0, 2, 3, 1
    )
    error = ((warp(clips.frames[:, 0], grid) - clips.frames[:, -1]) * inside).abs()
    assert error.mean() < 0.02


def test_add_coordinate_channels_keeps_encoding_and_decoding():
    torch.manual_seed(0)
    vae, wide = make_vae().eval(), make_vae(LATENT_CHANNELS + COORDINATE_CHANNELS).eval()
    wide.load_state_dict(add_coordinate_channels(vae.state_dict()))
    frames = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents, wide_latents = vae.encode(frames).latent_dist.mode(), wide.encode(frames).latent_dist.mode()
        noise = torch.randn(1, COORDINATE_CHANNELS, 8, 8)
        decoded = wide.decode(torch.cat([latents, noise], 1), num_frames=1).sample
        torch.testing.assert_close(decoded, vae.decode(latents, num_frames=1).sample)
    torch.testing.assert_close(wide_latents[:, :LATENT_CHANNELS], latents)
    assert (wide_latents[:, LATENT_CHANNELS:] == 0).all()


def test_middle_taps_decode_like_full_decoder_with_their_state():
    torch.manual_seed(0)
    vae, full = use_middle_taps(make_vae()).eval(), make_vae().eval()
    full.load_state_dict(full_state(vae))
    latents = torch.randn(1, LATENT_CHANNELS, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(full.decode(latents, num_frames=1).sample, vae.decode(latents, num_frames=1).sample)


def test_bilinear_cross_entropy_is_least_for_attention_between_source_tokens():
    source = torch.tensor([[[1.5], [1.0]]])  # between tokens (1, 1) and (2, 1) of a grid of 3 × 4
    right = torch.full((1, 1, 12), -math.inf).log_softmax(-1).nan_to_num(-50.0)
    right[0, 0, [5, 6]] = math.log(0.5)
    wrong = right.roll(1, -1)
    assert bilinear_cross_entropy(right, source, 3, 4).item() == pytest.approx(math.log(2))
    assert bilinear_cross_entropy(wrong, source, 3, 4).item() > 10


def test_bilinear_cross_entropy_is_zero_for_sources_outside():
    source = torch.tensor([[[-1.0, 4.0], [0.0, 0.0]]])
    assert (bilinear_cross_entropy(torch.zeros(1, 2, 12).log_softmax(-1), source, 3, 4) == 0).all()


def test_carrying_loss_vanishes_if_attention_copies_the_latents_at_its_source():
    height = width = 4
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = torch.stack([x, y]).flatten(1).T * (2 * math.pi / 8)
    code = 40 * torch.cat([angles.cos(), angles.sin()], 1)  # [tokens, 4]; equal positions attract
    attention = torch.nn.Module()
    attention.heads = 1
    for name, first in (("to_q", 0), ("to_k", 0), ("to_v", 4)):
        projection = torch.nn.Linear(12, 8, bias=False)
        projection.weight.data.zero_()
        used = range(4) if first == 0 else range(8)
        for i in used:
            projection.weight.data[i, first + i] = 1
        setattr(attention, name, projection)
    block = SimpleNamespace(attentions=[SimpleNamespace(transformer_blocks=[SimpleNamespace(attn1=attention)])])
    pointing = Pointing(SimpleNamespace(up_blocks=[block]))
    for probe in (pointing.carried[0], pointing.kept[0]):
        probe.weight.data.copy_(torch.eye(8))
        probe.bias.data.zero_()
    latents = torch.randn(1, 1, 8, height, width)
    own = torch.stack([x - 1.5, y - 1.5]).float()[None, None] * VAE_FACTOR  # pixels from the centre
    hidden_states = torch.cat([code, latents[0, 0].flatten(1).T], 1)[None]
    pointing._inputs.store(0, attention, (hidden_states,))
    sigma = torch.zeros(1, 1, 1, 1, 1)
    keep, drop = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert max(pointing(own, latents, sigma, keep)) < 0.01
    shifted = (
        own + torch.tensor([1.0, 0]).view(1, 1, 2, 1, 1) * VAE_FACTOR
    )  # the content comes from one token to the right
    assert min(pointing(shifted, latents.roll(-1, -1), sigma, keep)) > 0.1
    assert max(pointing(shifted, latents.roll(-1, -1), sigma, drop)) == 0


def test_latents_in_training_are_those_of_the_first_frame_where_it_shows_the_content():
    latents = torch.randn(1, 2, 8, 4, 6)
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    own = torch.stack([x - 2.5, y - 1.5]) * VAE_FACTOR  # pixels from the centre
    moved = own + torch.tensor([VAE_FACTOR, 0.0]).view(
        2, 1, 1
    )  # the content of frame 1 comes from one latent to the right
    carried = carried_latents(latents, torch.stack([own, moved])[None])
    torch.testing.assert_close(carried[:, 0], latents[:, 0])
    torch.testing.assert_close(carried[:, 1, :, :, :-1], latents[:, 0, :, :, 1:])
    torch.testing.assert_close(carried[:, 1, :, :, -1], latents[:, 1, :, :, -1])  # not in view in frame 0

"""Training of the pocket model: known motion, held-out photographs, latents with positions, attention that points."""

import json
import math

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from training.common.autoencoder import texture_energies
from training.pocket.decoder import extend
from training.pocket.denoising import compose_latents, position_channels
from training.pocket.motion import HELD_OUT, Mover, Photos
from training.pocket.networks import IMAGE_CHANNELS, LATENT_CHANNELS, POSITION_CHANNELS, VAE_FACTOR, make_vae
from training.pocket.pointing import bilinear_cross_entropy, pointing_loss
from training.pocket.transport import decode_positions
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


def test_only_rendered_frames_are_drawn(clips):
    assert clips.frames.shape[1] == clips.positions.shape[1] == 5
    photos = Photos(("a.jpg",), torch.zeros(1, 3, 648, 1152).byte(), torch.zeros(1, 3, 54, 96), torch.ones(1))
    few = Mover(photos, 64, 96).draw(2, 5, rendered=(0, 3))
    assert few.frames.shape == (2, 2, 3, 64, 96)
    assert few.positions.shape[:2] == (2, 5)


def test_clips_have_the_flow_that_is_asked_for():
    photos = Photos(("a.jpg",), torch.zeros(1, 3, 648, 1152).byte(), torch.zeros(1, 3, 54, 96), torch.ones(1))
    clips = Mover(photos, 64, 96).draw(3, 14, rendered=(0,), flow=torch.tensor([0.3, 1.0, 2.0]))
    flow = (clips.positions[:, 1:] - clips.positions[:, :-1]).norm(dim=2).mean((1, 2, 3))
    torch.testing.assert_close(flow, torch.tensor([0.3, 1.0, 2.0]), atol=0.1, rtol=0.1)


def test_texture_energies_are_those_of_known_patterns():
    wave = torch.tensor([1.0, -1.0]).repeat(16)
    columns, checkerboard = wave.expand(3, 32, -1), wave[:, None] * wave
    slow = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(8).expand(3, 32, -1)
    energies = texture_energies(torch.stack([columns, checkerboard.expand(3, -1, -1), slow, torch.ones(3, 32, 32)]))
    assert energies.shape == (4, 8, 4, 4)
    inner = energies[:, :, 1:3, 1:3].mean((2, 3))  # without the borders, where the pattern is reflected
    # Masks in order: level·edge, edge·level, edge·edge, level·spot, spot·level, edge·spot, spot·edge, spot·spot.
    expected = torch.zeros(4, 8)
    expected[0, 3] = 1  # columns of period 2: only the spot along x responds
    expected[1, 7] = 1  # a checkerboard: only spot · spot
    expected[2, 0], expected[2, 3] = 1, 0.5  # columns of period 4: edge, and less of spot, along x
    torch.testing.assert_close(inner, expected, atol=2e-2, rtol=0)


def test_position_channels_match_best_where_the_content_comes_from(clips):
    channels = position_channels(clips.positions)
    own, last = channels[:, 0].flatten(2), channels[:, -1].flatten(2)  # in frame 0, the source is the latent itself
    source = (own.transpose(1, 2) @ last).argmax(1)  # [batch, h·w]
    position = clips.positions[:, 0].flatten(2).gather(2, source[:, None].expand(-1, 2, -1))
    expected = clips.positions[:, -1].flatten(2)
    inside = (expected.abs() <= clips.positions[:, 0].flatten(2).amax(2, keepdim=True)).all(1)
    assert (position - expected).norm(dim=1)[inside].max() < 4  # pixels, that is one latent


def test_positions_are_decoded_from_their_channels(clips):
    positions = clips.positions[:, -1]
    torch.testing.assert_close(decode_positions(position_channels(positions)), positions, atol=1e-3, rtol=0)


def test_latents_of_every_frame_have_the_unmoved_image_its_source_and_own_position(clips):
    image = torch.randn(4, IMAGE_CHANNELS, *clips.positions.shape[-2:])
    latents = compose_latents(image, clips.positions)
    assert latents.shape[:3] == (4, 5, LATENT_CHANNELS)
    channels = latents.split([IMAGE_CHANNELS, POSITION_CHANNELS, POSITION_CHANNELS], 2)
    for frame in range(5):
        torch.testing.assert_close(channels[0][:, frame], image)
        torch.testing.assert_close(channels[1][:, frame], position_channels(clips.positions[:, frame]))
        torch.testing.assert_close(channels[2][:, frame], position_channels(clips.positions[:, 0]))


def test_last_frame_is_first_frame_warped_by_positions(clips):
    grid, inside = sampling_grid(clips.positions[:, -1])
    grid = torch.nn.functional.interpolate(grid.permute(0, 3, 1, 2), scale_factor=4, mode="bilinear").permute(
        0, 2, 3, 1
    )
    error = ((warp(clips.frames[:, 0], grid) - clips.frames[:, -1]) * inside).abs()
    assert error.mean() < 0.02


def test_extended_vae_encodes_and_decodes_like_the_vae_of_one_image():
    torch.manual_seed(0)
    vae = make_vae().eval()
    extended = extend(vae).eval()
    # Both are added to what the VAE of one image computes: the attention's output and the new channels.
    extended.decoder.mid_block.attentions[0].to_out[0].weight.data.zero_()
    extended.decoder.mid_block.attentions[0].to_out[0].bias.data.zero_()
    extended.decoder.conv_in.weight.data[:, IMAGE_CHANNELS:] = 0
    frames = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents, wide = vae.encode(frames).latent_dist.mode(), extended.encode(frames).latent_dist.mode()
        torch.testing.assert_close(wide[:, :IMAGE_CHANNELS], latents)
        assert (wide[:, IMAGE_CHANNELS:] == 0).all()
        decoded = extended.decode(wide, num_frames=1).sample
        torch.testing.assert_close(decoded, vae.decode(latents, num_frames=1).sample, atol=1e-4, rtol=1e-4)


def test_middle_taps_decode_like_full_decoder_with_their_state():
    torch.manual_seed(0)
    vae, full = use_middle_taps(make_vae()).eval(), make_vae().eval()
    full.load_state_dict(full_state(vae))
    latents = torch.randn(1, IMAGE_CHANNELS, 8, 8)
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


def test_pointing_loss_is_least_for_attention_to_the_source_position():
    height, width = 6, 8
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    own = torch.stack([x - (width - 1) / 2, y - (height - 1) / 2])[None] * float(VAE_FACTOR)
    moved = own + torch.tensor([VAE_FACTOR, 0.0]).view(1, 2, 1, 1)  # the content comes from one token to the right
    attention = Attention(2 * POSITION_CHANNELS, heads=1, dim_head=POSITION_CHANNELS, norm_num_groups=2)
    eye = torch.eye(POSITION_CHANNELS) * 20
    attention.to_q.weight.data = torch.cat([eye, 0 * eye], 1)
    attention.to_k.weight.data = torch.cat([0 * eye, eye], 1)
    hidden_states = torch.cat([position_channels(moved), position_channels(own)], 1)
    with torch.no_grad():
        right = pointing_loss(attention, hidden_states, moved)
        wrong = pointing_loss(attention, hidden_states, own)
    assert right < 0.5
    assert wrong > 2


def test_colour_of_aligned_frames_differs_by_a_drift_and_not_by_content_that_enters():
    pytest.importorskip("cv2", reason="the extra 'training' is not installed")
    from training.pocket.metrics import aligned_colour

    ramp = np.linspace(60, 180, 200)[None, :, None] + 25 * np.sin(np.arange(200) / 3)[None, :, None]
    photograph = (ramp + 25 * np.cos(np.arange(90) / 3)[:, None, None] + np.zeros(3)).astype(np.uint8)
    frame, moved = photograph[:, :120], photograph[:, 4:124]
    assert abs(frame.mean() - moved.mean()) > 1
    np.testing.assert_allclose(aligned_colour(moved, frame), 0, atol=0.3)
    np.testing.assert_allclose(aligned_colour(moved + np.array([0, 4, 8], np.uint8), frame), [0, 4, 8], atol=0.3)

"""Training, judging and assembling of the pocket text-to-image model."""

import argparse
import random

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from training.t2i.assemble import assemble
from training.t2i.judge import ANSWERS, accuracy_by_question
from training.t2i.model_card import card
from training.t2i.networks import (
    HEIGHT,
    LATENT_CHANNELS,
    SCHEDULER,
    VAE_FACTOR,
    WIDTH,
    make_text_encoder,
    make_unet,
    make_vae,
)
from training.t2i.pool import ScenePool, as_bytes, caption_tokens
from training.t2i.scenes import Scene
from training.t2i.unet import GradientStep, scene_encoder, unet_loss
from training.t2i.vae import SIZES, Autoencoder, as_batch, decode_output, new_images, validate
from training.t2i.words import MAX_TOKENS, UNKNOWN, vocabulary


def cumulative_alphas():
    return EulerDiscreteScheduler.from_config(SCHEDULER).alphas_cumprod


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # raised in diffusers
def test_scheduler_with_exact_v_prediction_recovers_latents():
    scheduler = EulerDiscreteScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(8)
    z = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    x = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        a = cumulative_alphas()[t.long()]
        scaled = scheduler.scale_model_input(x, t)  # = √a·z + √(1−a)·noise
        noise = (scaled - a.sqrt() * z) / (1 - a).sqrt()
        x = scheduler.step(a.sqrt() * noise - (1 - a).sqrt() * z, t, x).prev_sample
    assert torch.allclose(x, z, atol=2e-3)


def test_unet_loss_is_zero_for_exact_v_and_one_for_zero_prediction():
    z = torch.randn(64, 8, 4, 4)

    def encoder(**_):
        return argparse.Namespace(last_hidden_state=None)

    def predict_zero(noisy, *_, **__):
        return (torch.zeros_like(noisy),)

    def predict_exactly(noisy, t, *_, **__):
        a = cumulative_alphas()[t].view(-1, 1, 1, 1)
        return ((a.sqrt() * noisy - z) / (1 - a).sqrt(),)

    tokens = torch.zeros(64, MAX_TOKENS, dtype=torch.long)
    data = torch.cat([z, torch.rand(64, 1, 4, 4)], 1)
    assert unet_loss(predict_zero, encoder, cumulative_alphas(), tokens[:1], data, tokens).item() == pytest.approx(
        1, abs=0.1
    )
    assert unet_loss(predict_exactly, encoder, cumulative_alphas(), tokens[:1], data, tokens).item() < 1e-6


def test_unet_loss_weights_errors_in_things_higher():
    things = torch.zeros(64, 1, 4, 4)
    things[..., 0] = 1
    data = torch.cat([torch.zeros(64, 8, 4, 4), things], 1)

    def loss(wrong_columns):
        """Return the loss of a prediction that is exact except in some columns."""

        def predict(noisy, t, *_, **__):
            a = cumulative_alphas()[t].view(-1, 1, 1, 1)
            v = a.sqrt() / (1 - a).sqrt() * noisy  # exact for zero latents
            v[..., wrong_columns] += 1
            return (v,)

        torch.manual_seed(0)
        tokens = torch.zeros(64, MAX_TOKENS, dtype=torch.long)
        return unet_loss(
            predict,
            lambda **_: argparse.Namespace(last_hidden_state=None),
            cumulative_alphas(),
            tokens[:1],
            data,
            tokens,
        )

    assert loss(slice(0, 1)) > 2 * loss(slice(1, 2))
    assert loss(slice(0, 4)).item() == pytest.approx(1)


def test_gradient_step_writes_gradients_to_flat():
    layer = torch.nn.Linear(3, 2)
    x = torch.randn(5, 3)
    step = GradientStep(list(layer.parameters()), lambda inputs: layer(inputs).square().mean())
    for _ in range(2):  # gradients must not accumulate
        loss = step(x)
    expected = torch.autograd.grad(layer(x).square().mean(), list(layer.parameters()))
    assert torch.allclose(step.flat, torch.cat([g.flatten() for g in expected]))
    assert loss.item() == pytest.approx(layer(x).square().mean().item())


def test_pool_refresh_replaces_oldest_scenes():
    torch.manual_seed(0)
    scenes = ScenePool(4, 2, "cpu", encode=lambda p, _: as_bytes(p[..., ::8, ::8]))
    before = scenes.data.clone()
    scenes.refresh()
    assert [torch.equal(a, b) for a, b in zip(before, scenes.data, strict=True)] == [False, False, True, True]
    data, tokens = scenes.sample(3)
    assert data.shape == (3, 3, 20, 36)
    assert tokens.shape == (3, MAX_TOKENS)


def test_caption_tokens_sometimes_contain_unknown_token():
    rng, unknown = random.Random(0), vocabulary()[UNKNOWN]
    captions = [caption_tokens(rng, "a red boat on the sea") for _ in range(300)]
    assert {len(tokens) for tokens in captions} == {MAX_TOKENS}
    assert 0.03 < sum(unknown in tokens for tokens in captions) / 300 < 0.2


def test_accuracy_is_counted_by_question():
    scenes = [Scene("sea", thing="boat", colour="red"), Scene("city", "night", thing="car", colour="blue")]
    answers = [{q: getattr(s, q) for q in ANSWERS} for s in scenes]
    answers[1]["hour"] = "day"
    assert accuracy_by_question(scenes, answers) == {"thing": 1.0, "colour": 1.0, "ground": 1.0, "hour": 0.5}


def test_model_card_contains_only_figures_of_the_record():
    figures = dict.fromkeys(("thing_found", "ground_found", "hour_found", "colour_found", "colour_swapped"), 0.875)
    record = {
        "figures": figures | {"size_mib": 25.8},
        "judge_on_drawn_held_out_scenes": dict.fromkeys(ANSWERS, 0.96),
        "settings": {"num_inference_steps": 12, "guidance_scale": 3.0},
        "captions": [{}] * 200,
    }
    text = card(record)
    assert "| landscape correct | 87.5% | 96.0% |" in text
    assert "200 captions" in text
    assert "%" not in card(None)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return make_vae().eval()


def test_vae_training_decodes_like_the_vae(vae, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # the posterior's mode
    images = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        features, kl = Autoencoder(vae)(images)
        expected = vae.decode(vae.encode(images).latent_dist.mode()).sample
    assert features.shape == (1, 64, 32, 48)
    assert (decode_output(vae.decoder, features.float()) - expected).abs().mean() < 0.01  # bfloat16
    assert kl > 0


def test_batch_has_the_size_of_its_step():
    pixels = torch.randint(256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    for size in SIZES:
        images, target, weight = as_batch(pixels, size)
        assert images.shape == (2, 3, *size)
        assert torch.equal(images, target)
        assert weight.item() == 1
    landscape, portrait = (as_batch(pixels, SIZES[i])[0] for i in (0, 8))
    assert torch.equal(landscape, portrait.transpose(2, 3))
    assert landscape.min() == -1
    assert landscape.max() == 1


def test_vae_is_validated_on_the_same_new_scenes(vae):
    images = new_images(2, "cpu", seed=1)
    assert torch.equal(images, new_images(2, "cpu", seed=1))
    images = images[..., :64, :96]
    metrics = validate(vae, images)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode()
        error = (vae.decode(latents).sample.clamp(-1, 1) - images) / 2
    assert metrics["psnr"] == pytest.approx(-10 * error.square().mean((1, 2, 3)).log10().mean().item(), abs=1e-3)
    assert metrics["scaling_factor"] == pytest.approx(1 / latents.std().item(), rel=1e-3)


def test_pool_has_scaled_latents_and_coverage_of_things(vae, tmp_path):
    vae.register_to_config(scaling_factor=3.0)
    vae.save_pretrained(tmp_path)
    pixels, covered = torch.rand(1, 3, HEIGHT, WIDTH), torch.zeros(1, 1, HEIGHT, WIDTH)
    covered[..., 80:84, 100:104] = 1
    data = scene_encoder(tmp_path, "cpu")(pixels, covered)
    assert data.shape == (1, LATENT_CHANNELS + 1, HEIGHT // VAE_FACTOR, WIDTH // VAE_FACTOR)
    with torch.no_grad():
        expected = vae.encode(pixels * 2 - 1).latent_dist.mode() * 3
    assert torch.allclose(data[:, :-1], expected, atol=1e-4)
    things = data[0, -1].nonzero()
    assert things.amin(0).tolist() == [19, 24]
    assert things.amax(0).tolist() == [21, 26]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_assembled_folder_loads_as_text_to_image_pipeline(tmp_path):
    from diffusers import AutoPipelineForText2Image

    run, folder = tmp_path / "run", tmp_path / "model"
    for name, make in {"vae": make_vae, "unet": make_unet, "text_encoder": make_text_encoder}.items():
        make().save_pretrained(run / name)
    assemble(run / "vae", run, folder)
    assert "Not measured yet" in (folder / "README.md").read_text()
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 22 * 2**20
    pipeline = AutoPipelineForText2Image.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red boat on the sea", num_inference_steps=1).images[0]
    assert image.size == (288, 160)

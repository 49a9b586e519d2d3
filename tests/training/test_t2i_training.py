"""How the model learns, and what is made of it."""

import argparse
import random

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from training.t2i.judge import ANSWERS, right
from training.t2i.model_card import card
from training.t2i.networks import SCHEDULER, make_text_encoder, make_unet, make_vae
from training.t2i.scenes import Scene
from training.t2i.train import Scenes, Step, as_bytes, assemble, told, unet_loss
from training.t2i.words import MAX_TOKENS, UNKNOWN, vocabulary


def alphas():
    return EulerDiscreteScheduler.from_config(SCHEDULER).alphas_cumprod


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_sampling_undoes_what_training_does():
    """A network that answers as training asks leads the pipeline's scheduler to the latents, in few steps."""
    scheduler = EulerDiscreteScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(8)
    z = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    x = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        a = alphas()[t.long()]
        seen = scheduler.scale_model_input(x, t)  # = √a·z + √(1−a)·noise
        noise = (seen - a.sqrt() * z) / (1 - a).sqrt()
        x = scheduler.step(a.sqrt() * noise - (1 - a).sqrt() * z, t, x).prev_sample
    assert torch.allclose(x, z, atol=2e-3)


def test_the_loss_is_nothing_for_the_right_answer_and_as_large_as_v_for_none():
    z = torch.randn(64, 8, 4, 4)

    def encoder(**_):
        return argparse.Namespace(last_hidden_state=None)

    def silent(noisy, *_, **__):
        return (torch.zeros_like(noisy),)

    def knowing(noisy, t, *_, **__):
        a = alphas()[t].view(-1, 1, 1, 1)
        return ((a.sqrt() * noisy - z) / (1 - a).sqrt(),)

    tokens = torch.zeros(64, MAX_TOKENS, dtype=torch.long)
    kept = torch.cat([z, torch.rand(64, 1, 4, 4)], 1)
    assert unet_loss(silent, encoder, alphas(), tokens[:1], kept, tokens).item() == pytest.approx(1, abs=0.1)
    assert unet_loss(knowing, encoder, alphas(), tokens[:1], kept, tokens).item() < 1e-6


def test_an_error_in_a_thing_counts_for_more():
    things = torch.zeros(64, 1, 4, 4)
    things[..., 0] = 1
    kept = torch.cat([torch.zeros(64, 8, 4, 4), things], 1)

    def loss(wrong):
        """Of a network that is right but for some columns."""

        def wrong_there(noisy, t, *_, **__):
            a = alphas()[t].view(-1, 1, 1, 1)
            v = a.sqrt() / (1 - a).sqrt() * noisy  # of latents that are all zero
            v[..., wrong] += 1
            return (v,)

        torch.manual_seed(0)
        tokens = torch.zeros(64, MAX_TOKENS, dtype=torch.long)
        return unet_loss(
            wrong_there,
            lambda **_: argparse.Namespace(last_hidden_state=None),
            alphas(),
            tokens[:1],
            kept,
            tokens,
        )

    assert loss(slice(0, 1)) > 2 * loss(slice(1, 2))
    assert loss(slice(0, 4)).item() == pytest.approx(1)


def test_a_step_leaves_the_gradients_in_one_row():
    layer = torch.nn.Linear(3, 2)
    x = torch.randn(5, 3)
    step = Step(list(layer.parameters()), lambda given: layer(given).square().mean())
    for _ in range(2):  # the second one starts from nothing again
        loss = step(x)
    expected = torch.autograd.grad(layer(x).square().mean(), list(layer.parameters()))
    assert torch.allclose(step.flat, torch.cat([g.flatten() for g in expected]))
    assert loss.item() == pytest.approx(layer(x).square().mean().item())


def test_the_pool_is_refreshed_from_its_oldest():
    torch.manual_seed(0)
    scenes = Scenes(4, 2, "cpu", encode=lambda p, _: as_bytes(p[..., ::8, ::8]))
    before = scenes.kept.clone()
    scenes.refresh()
    assert [torch.equal(a, b) for a, b in zip(before, scenes.kept, strict=True)] == [False, False, True, True]
    kept, tokens = scenes.pick(3)
    assert kept.shape == (3, 3, 20, 36)
    assert tokens.shape == (3, MAX_TOKENS)


def test_training_meets_words_that_the_painter_does_not_know():
    rng, unknown = random.Random(0), vocabulary()[UNKNOWN]
    many = [told(rng, "a red boat on the sea") for _ in range(300)]
    assert {len(tokens) for tokens in many} == {MAX_TOKENS}
    assert 0.03 < sum(unknown in tokens for tokens in many) / 300 < 0.2


def test_what_the_judge_sees_is_counted_by_question():
    scenes = [Scene("sea", thing="boat", colour="red"), Scene("city", "night", thing="car", colour="blue")]
    answers = [{q: getattr(s, q) for q in ANSWERS} for s in scenes]
    answers[1]["hour"] = "day"
    assert right(scenes, answers) == {"thing": 1.0, "colour": 1.0, "ground": 1.0, "hour": 0.5}


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_assembled_parts_are_a_text_to_image_pipeline(tmp_path):
    from diffusers import AutoPipelineForText2Image

    out, folder = tmp_path / "run", tmp_path / "painter"
    for name, make in {"vae": make_vae, "unet": make_unet, "text_encoder": make_text_encoder}.items():
        make().save_pretrained(out / name)
    assemble(argparse.Namespace(out=out, folder=folder, record=None))
    assert "Not measured yet" in (folder / "README.md").read_text()
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 30 * 2**20
    pipeline = AutoPipelineForText2Image.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    still = pipeline("a red boat on the sea", num_inference_steps=1).images[0]
    assert still.size == (288, 160)

"""StyleGAN2: the published losses and gradients phase by phase, lazy regularisers, mixing, truncation, labels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from golden import golden
from tiny import SPEC, tiny_method, tools
from trilemma.config import build
from trilemma.errors import ConfigError
from trilemma.interop import stylegan2 as reference
from trilemma.maths import adversarial
from trilemma.methods.stylegan2 import Draw, StyleGAN2, StyleGAN2Options
from trilemma.types import Batch, DataSpec, Sampler

LABELLED = DataSpec("images", 1, 8, 8, classes=3)


def batch(n: int = 8, labels: Tensor | None = None) -> Batch:
    return Batch((torch.rand(n, *SPEC.shape) * 2 - 1).contiguous(memory_format=torch.channels_last), labels)


def close(found: Tensor, stored: Any, tolerance: float, least: float = 0.0) -> None:
    stored = torch.as_tensor(stored)
    assert (found - stored).abs().max() <= max(tolerance * stored.abs().max(), least)


def published() -> tuple[StyleGAN2, dict[str, Tensor], dict[str, Tensor]]:
    """The networks of the published losses, without noise, and what was stored of both."""
    stored = np.load(golden("stylegan2_losses.io.npz"))
    config = json.loads(str(stored["config_json"]))
    options = {
        "mapping": {"z_dim": 8, "w_dim": 8, "layers": 2},
        "generator": {"channel_base": 256, "channel_max": 16},
        "discriminator": {"channel_base": 256, "channel_max": 16},
        "r1_gamma": 10.0,
        "path_weight": 2.0,
        "style_mixing": 0.0,
    }
    method = StyleGAN2(build(StyleGAN2Options, options, "test"), DataSpec("images", 3, 32, 32))
    weights = load_file(golden("stylegan2_generator.state.safetensors"))
    weights = {k: torch.zeros_like(v) if k.endswith("noise_strength") else v for k, v in weights.items()}
    method.generator.load_state_dict(reference.generator(weights, config["generator"]).state_dict())
    weights = load_file(golden("stylegan2_discriminator_resnet.state.safetensors"))
    method.discriminator.load_state_dict(reference.discriminator(weights, config["discriminator"]).state_dict())
    arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "config_json"}
    return method, arrays, load_file(golden("stylegan2_losses.grads.safetensors"))


def test_losses_and_gradients_of_every_phase_are_the_published_ones() -> None:
    """In the published order, without optimiser steps: G, path length twice, D, R1."""
    method, io, grads = published()
    lent = tools(method)
    z, real = io["z"], io["real"]
    names = {
        "generator": dict(reference._generator_names(method.generator)),
        "discriminator": dict(reference._discriminator_names(method.discriminator)),
    }

    def compare(phase: str, network: str, loss: Tensor, tolerance: float) -> None:
        module = method.networks()[network]
        module.zero_grad(set_to_none=True)
        loss.backward()
        wanted = {key.split("/")[1]: value for key, value in grads.items() if key.startswith(f"{phase}/")}
        seen = 0
        for ours, parameter in module.named_parameters():
            theirs = names[network][ours]
            if theirs in wanted:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                close(grad, wanted[theirs], tolerance, least=1e-8 if phase == "Dreg" else 0.0)
                seen += 1
        assert seen == len(wanted)

    fake = method._generate(Draw(z, None), method.generator)
    loss = adversarial.generator_loss(method.judge(method.discriminator, fake, None))
    close(loss.detach(), io["Gmain__Loss_G_loss"].mean(), 2e-5)
    compare("Gmain", "generator", loss, 1e-4)

    for phase in ("Greg", "Greg2"):
        penalty = method.path_penalty(Draw(z[:2], None), io["pl_noise"], lent)
        close(penalty.detach(), io[f"{phase}__Loss_pl_penalty"].mean(), 1e-4)
        close(method.path_mean, io[f"{phase}__pl_mean_after"], 1e-4)
        compare(phase, "generator", 2.0 * 4 * penalty, 2e-4)

    with torch.no_grad():
        fake = method._generate(Draw(z, None), method.generator)
    logits = method.judge(method.discriminator, real, None)
    loss = adversarial.discriminator_loss(logits, method.judge(method.discriminator, fake, None))
    close(logits.detach().flatten(), io["Dmain__Loss_scores_real"].flatten(), 2e-5)
    compare("Dmain", "discriminator", loss, 1e-4)

    image = real.clone().requires_grad_()
    penalty = adversarial.gradient_penalty(method.judge(method.discriminator, image, None), image, 10.0)
    close(penalty.detach(), io["Dreg__Loss_D_reg"].mean(), 1e-4)
    compare("Dreg", "discriminator", 16 * penalty, 2e-4)
    close(method.generator.mapping.w_avg, io["w_avg_after_all"], 2e-5)  # type: ignore[arg-type]


def test_lazy_regularisers_come_when_due_and_adam_makes_room_for_them() -> None:
    method = tiny_method("stylegan2", lazy_reg=3, path_every=2, lr_g=0.01, lr_d=0.02)
    lent = tools(method)
    came = [set(method.step(batch(), 0.0, lent)) - {"d_loss", "g_loss"} for _ in range(7)]
    assert came == [{"r1", "path"}, set(), {"path"}, {"r1"}, {"path"}, set(), {"r1", "path"}]
    generator, discriminator = (lent.optimizers[name].param_groups[0] for name in ("generator", "discriminator"))
    assert generator["lr"] == pytest.approx(0.01 * 2 / 3) and discriminator["lr"] == pytest.approx(0.02 * 3 / 4)
    assert generator["betas"] == pytest.approx((0.0, 0.99 ** (2 / 3)))
    assert discriminator["betas"] == pytest.approx((0.0, 0.99 ** (3 / 4)))


def test_a_regulariser_without_weight_is_not_computed() -> None:
    method = tiny_method("stylegan2", r1_gamma=0.0, path_weight=0.0)
    assert set(method.step(batch(), 0.0, tools(method))) == {"d_loss", "g_loss"}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_styles_are_mixed_as_often_as_asked(share: float) -> None:
    method = tiny_method("stylegan2", style_mixing=share)
    draws = [method._draw(4, None) for _ in range(20)]
    assert all((draw.z_mixed is not None) == (share == 1.0) for draw in draws)
    if share:
        assert {draw.cutoff for draw in draws} <= set(range(1, method.generator.synthesis.num_ws))


@pytest.mark.parametrize("augment", ["none", "ada", "diffaugment"])
@pytest.mark.parametrize("shared_pass", [False, True])
def test_every_augmentation_trains(augment: str, shared_pass: bool) -> None:
    method = tiny_method("stylegan2", augment=augment, shared_pass=shared_pass, ada={"kimg": 0.01, "interval": 1})
    lent = tools(method)
    for _ in range(3):
        losses = method.step(batch(), 0.5, lent)
        assert all(torch.isfinite(value) for value in losses.values())
    assert ("p" in losses) == (augment == "ada")


def test_the_strength_of_ada_follows_the_discriminator_and_is_kept() -> None:
    method = tiny_method("stylegan2", augment="ada", ada={"kimg": 1.0, "interval": 1, "target": -1.0})
    lent = tools(method)
    for _ in range(3):
        method.step(batch(), 0.5, lent)
    assert method.controller.p > 0  # E sign D is above -1 unless every image is called fake
    other = tiny_method("stylegan2", augment="ada")
    other.load_extra_state(json.loads(json.dumps(method.extra_state())))
    assert other.controller.p == method.controller.p and torch.equal(other.path_mean, method.path_mean)


def test_truncation_gives_the_average_image_at_0_and_the_sample_at_1() -> None:
    method = tiny_method("stylegan2")
    lent = tools(method)
    for _ in range(3):
        method.step(batch(), 0.5, lent)
    method.eval()
    whole = method.sample([1, 2]).x
    assert torch.equal(method.sample([1, 2], Sampler(truncation=1.0)).x, whole)
    for conv in method.generator.synthesis.convs():
        torch.nn.init.zeros_(conv.noise_strength)
    same = method.sample([1, 2], Sampler(truncation=0.0)).x
    torch.testing.assert_close(same[0], same[1])
    assert method.tag(Sampler(truncation=0.7)) == "psi0.7"
    assert method.describe(Sampler(truncation=0.7)) == "1 step, truncation 0.7"


def test_a_walk_begins_and_ends_at_samples() -> None:
    method = tiny_method("stylegan2").eval()
    for conv in method.generator.synthesis.convs():
        torch.nn.init.ones_(conv.noise_strength)
    states = method.walk(3, 9, 5)
    assert states.shape == (5, *SPEC.shape)
    torch.testing.assert_close(states[[0, -1]], method.sample([3, 9]).x, atol=1e-5, rtol=0)


def test_labels_condition_both_networks() -> None:
    method = tiny_method("stylegan2", LABELLED, conditional=True)
    method.step(batch(labels=torch.arange(8) % 3), 0.5, tools(method))
    method.eval()
    one, two = (method.sample([5], Sampler(label=label)).x for label in (0, 2))
    assert not torch.allclose(one, two, atol=1e-4)
    drawn = method._labels(_noise(range(600)), Sampler())
    assert drawn is not None
    torch.testing.assert_close(drawn.mean(0), torch.full((3,), 1 / 3), atol=0.08, rtol=0)
    assert method.tag(Sampler(label=2)) == "class2"


def _noise(seeds: range) -> Any:
    from trilemma.maths.noise import SeedNoise

    return SeedNoise(seeds)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lazy_reg": 0}, "lazy_reg"),
        ({"path_every": 0}, "path_every"),
        ({"style_mixing": 1.5}, "style_mixing"),
        ({"adam_betas": [0.5]}, "adam_betas"),
        ({"augment": "adaa"}, "augment"),
        ({"ada": {"preset": "bgcc"}}, "did you mean 'bgc'"),
        ({"policy": ["colour"]}, "did you mean 'color'"),
    ],
)
def test_settings_that_do_not_hold_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(StyleGAN2Options, changes, "recipe x")


def test_choices_that_do_not_fit_the_model_or_the_data_are_refused() -> None:
    method = tiny_method("stylegan2")
    for sampler, words in (
        (Sampler(steps=4), "no sampler setting steps"),
        (Sampler(truncation=2.0), "truncation must be in"),
        (Sampler(label=1), "without labels"),
    ):
        with pytest.raises(ConfigError, match=words):
            method.sample([0], sampler)
    with pytest.raises(ConfigError, match="needs data with labels"):
        tiny_method("stylegan2", conditional=True)
    with pytest.raises(ConfigError, match="not for points"):
        tiny_method("stylegan2", DataSpec("points", 2, 1, 1), augment="ada")
    with pytest.raises(ConfigError, match="label must be from 0 to 2"):
        tiny_method("stylegan2", LABELLED, conditional=True).sample([0], Sampler(label=3))
    with pytest.raises(ConfigError, match="no path from noise"):
        method.path([0], [0.5])

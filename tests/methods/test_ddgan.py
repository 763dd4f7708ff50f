"""DDGAN: parity of a whole training step with the reference, and exact facts about its options."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from trilemma.interop import ddgan as reference
from trilemma.maths.gaussian import sample_posterior
from trilemma.maths.scoring import energy_score
from trilemma.methods.base import Tools
from trilemma.methods.ddgan import DDGAN, DDGANOptions
from trilemma.types import Batch, DataSpec, Sampler


class Draws:
    """Hands out stored random numbers in order, in place of torch's."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        names = ["t", "noise_tp1", "noise_t", "z", "noise_post"]
        self.queue: Iterator[Tensor] = iter([values[f"{part}_{name}"] for part in "dg" for name in names])

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return next(self.queue)


def test_one_training_step_equals_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses to rel 1e-5, gradients to 1e-4, and the parameters after Adam's first step."""
    arrays = dict(np.load(golden("ddgan_step.io.npz"), allow_pickle=False))
    config = json.loads(str(arrays.pop("config_json")))
    io = {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind in "fi"}
    before_g = load_file(golden("ddgan_step.generator_before.safetensors"))
    before_d = load_file(golden("ddgan_step.discriminator_before.safetensors"))
    after_g = load_file(golden("ddgan_step.generator_after.safetensors"))
    after_d = load_file(golden("ddgan_step.discriminator_after.safetensors"))

    options = DDGANOptions(lr_g=1.6e-4, lr_d=1.25e-4, r1_gamma=0.02, lazy_reg=1)
    method = DDGAN(options, DataSpec("images", 3, 32, 32))
    generator_config = config.get("generator", config)
    discriminator_config = config.get("discriminator", config)
    method.generator = reference.generator(before_g, generator_config)
    method.discriminator = reference.discriminator(before_d, discriminator_config)
    method.nz = io["d_z"].shape[1]
    gradients: dict[str, dict[str, Tensor]] = {"generator": {}, "discriminator": {}}
    optimizers = method.optimizers()
    for name, optimizer in optimizers.items():
        network = method.networks()[name]

        def keep(*_: Any, network: Any = network, name: str = name) -> None:
            gradients[name] = {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}

        optimizer.register_step_pre_hook(keep)
    draws = Draws(io)
    for function in ("randint", "randn_like", "randn"):
        monkeypatch.setattr(torch, function, draws)
    losses = method.step(Batch(io["real"]), 0.0, Tools(method.networks(), optimizers, lambda loss: loss.backward()))
    monkeypatch.undo()

    assert losses["d_loss"].item() == pytest.approx(io["errD"].item(), rel=1e-5)
    assert losses["r1"].item() == pytest.approx(io["grad_penalty"].item(), rel=2e-5)
    assert losses["g_loss"].item() == pytest.approx(io["errG"].item(), rel=1e-5)
    for name, stored, make, cfg, lr in (
        ("generator", after_g, reference.generator, generator_config, 1.6e-4),
        ("discriminator", after_d, reference.discriminator, discriminator_config, 1.25e-4),
    ):
        # The same translation of names and layouts serves parameters and gradients.
        parameters = make({k[6:]: v for k, v in stored.items() if k.startswith("after/")}, cfg).state_dict()
        expected = make({k[5:]: v for k, v in stored.items() if k.startswith("grad/")}, cfg).state_dict()
        for key, value in method.networks()[name].named_parameters():
            gradient = gradients[name][key]
            scale = expected[key].abs().max().clamp_min(1e-6)
            assert (gradient - expected[key]).abs().max() <= 1e-4 * scale + 1e-8, (name, key)
            certain = expected[key].abs() > 1e-6
            off = (value.detach() - parameters[key]).abs()
            assert (off[certain] <= 1e-6).all(), (name, key)
            assert (off <= 2.1 * lr).all(), (name, key)


def test_the_penalty_is_lazy_and_not_scaled() -> None:
    method = tiny_method("ddgan", lazy_reg=3, r2_gamma=0.0)
    lent = tools(method)
    batch = Batch(torch.rand(4, *SPEC.shape))
    assert ["r1" in method.step(batch, 0.5, lent) for _ in range(7)] == [True, False, False] * 2 + [True]


def test_the_discriminator_step_builds_no_graph_through_the_generator() -> None:
    method = tiny_method("ddgan")
    method._discriminator_step(torch.rand(4, *SPEC.shape), None, tools(method))
    assert all(parameter.grad is None for parameter in method.generator.parameters())
    assert all(parameter.grad is not None for parameter in method.discriminator.parameters())


def test_the_generator_step_leaves_the_discriminator_alone() -> None:
    method = tiny_method("ddgan")
    method._generator_step(torch.rand(4, *SPEC.shape), None, 0.5, tools(method))
    assert all(parameter.grad is None for parameter in method.discriminator.parameters())
    assert all(parameter.requires_grad for parameter in method.discriminator.parameters())


def test_one_step_is_a_one_shot_gan() -> None:
    """With T = 1 the sample is G(x_1, z) itself: the posterior at the last step is a point."""
    method = tiny_method("ddgan", num_timesteps=1).eval()
    assert method.describe(Sampler()) == "1 step"
    result = method.sample([3, 4], trajectory=True)
    assert result.trajectory is not None and len(result.trajectory) == 2
    x_0 = torch.rand(4, *SPEC.shape)
    t = torch.zeros(4, dtype=torch.int64)
    x_next, z = torch.randn_like(x_0), torch.randn_like(x_0)
    torch.testing.assert_close(sample_posterior(method.schedule, x_0, x_next, t, z), x_0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_any_number_of_steps_trains_and_samples(steps: int) -> None:
    method = tiny_method("ddgan", num_timesteps=steps)
    losses = method.step(Batch(torch.rand(4, *SPEC.shape)), 0.5, tools(method))
    assert all(torch.isfinite(value) for value in losses.values())
    result = method.eval().sample([0], trajectory=True)
    assert result.trajectory is not None and len(result.trajectory) == steps + 1


def test_a_geometric_schedule_trains() -> None:
    method = tiny_method("ddgan", schedule="geometric", beta_min=0.01, beta_max=0.99)
    assert torch.isfinite(method.step(Batch(torch.rand(4, *SPEC.shape)), 0.5, tools(method))["g_loss"])


@pytest.mark.parametrize("loss", ["nonsaturating", "relativistic"])
@pytest.mark.parametrize("auxiliary", ["none", "mse", "energy"])
@pytest.mark.parametrize("shared_pass", [False, True])
def test_our_options_train_together(loss: str, auxiliary: str, shared_pass: bool) -> None:
    method = tiny_method("ddgan", loss=loss, auxiliary=auxiliary, shared_pass=shared_pass)
    losses = method.step(Batch(torch.rand(4, *SPEC.shape)), 0.5, tools(method))
    assert all(torch.isfinite(value) for value in losses.values())
    assert ("auxiliary" in losses) == (auxiliary != "none")


@pytest.mark.parametrize("auxiliary", ["mse", "energy"])
@pytest.mark.parametrize("kind", ["tiny", "strided"])
def test_a_discriminator_of_x_0_alone_trains(auxiliary: str, kind: str) -> None:
    """It is shown each x_0 once: two copies would give real images away to the minibatch standard deviation."""
    method = tiny_method("ddgan", judge="x_0", auxiliary=auxiliary, discriminator={"kind": kind, "conditional": False})
    x_0 = torch.rand(4, *SPEC.shape)
    chain = method._draw_chain(x_0)
    assert torch.equal(chain.real, x_0)
    fake, x_0_pred = method._denoise(method.generator, chain)
    assert fake is x_0_pred and len(fake) == (8 if auxiliary == "energy" else 4)
    logits = chain.logits(method.discriminator, fake)
    torch.testing.assert_close(logits, method.discriminator(fake[:4], chain.t[:4], torch.rand(4, *SPEC.shape)))
    losses = method.step(Batch(x_0), 0.5, tools(method))
    assert {"auxiliary", "d_loss", "g_loss", "r1"} == set(losses)
    assert all(torch.isfinite(value) for value in losses.values())


def test_images_of_one_minibatch_deviation_share_t_where_asked() -> None:
    method = tiny_method("ddgan", grouped_t=True, num_timesteps=1000)
    for n, group in ((16, 4), (6, 3), (5, 1)):
        t = method._draw_chain(torch.rand(n, *SPEC.shape)).t
        members = t.view(group, -1)  # sample i is in group i mod N / g
        assert torch.equal(members, members[:1].expand_as(members)) and len(t.unique()) > n // group / 2


@pytest.mark.parametrize("judge", ["x_t", "x_0"])
def test_the_energy_score_takes_second_samples_of_a_share_of_the_batch(judge: str) -> None:
    method = tiny_method("ddgan", auxiliary="energy", energy_share=0.25, judge=judge)
    chain = method._draw_chain(torch.rand(8, *SPEC.shape))
    assert chain.pairs == 2 and len(chain.x_0) == 10 and len(chain.real) == (8 if judge == "x_0" else 10)
    for same in (chain.x_0, chain.t, chain.x_next):
        assert torch.equal(same[:2], same[8:])
    first, second = torch.rand(2, *SPEC.shape), torch.rand(2, *SPEC.shape)
    x_0_pred = torch.cat([first, torch.full((6, *SPEC.shape), torch.nan), second])
    torch.testing.assert_close(method._auxiliary(chain, x_0_pred), energy_score(first, second, chain.x_0[:2]))
    losses = method.step(Batch(torch.rand(8, *SPEC.shape)), 0.5, tools(method))
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("grouped_t", [False, True])
def test_noisier_steps_are_drawn_as_often_as_asked(grouped_t: bool) -> None:
    torch.manual_seed(0)
    method = tiny_method("ddgan", t_odds=2.0, num_timesteps=3, grouped_t=grouped_t)
    counts = torch.bincount(method._draw_t(40_000, torch.device("cpu")), minlength=3) / 40_000
    torch.testing.assert_close(counts, torch.tensor([1 / 7, 2 / 7, 4 / 7]), atol=0.02, rtol=0)


def test_only_the_regression_learns_in_the_warm_share() -> None:
    method = tiny_method("ddgan", auxiliary="energy", warm_share=0.3)
    lent = tools(method)
    assert set(method.step(Batch(torch.rand(4, *SPEC.shape)), 0.29, lent)) == {"auxiliary"}
    assert {"auxiliary", "d_loss", "g_loss"} <= set(method.step(Batch(torch.rand(4, *SPEC.shape)), 0.31, lent))


def test_the_energy_score_pairs_share_their_noisy_image_and_nothing_else() -> None:
    method = tiny_method("ddgan", auxiliary="energy")
    chain = method._draw_chain(torch.rand(6, *SPEC.shape))
    for same in (chain.x_0, chain.t, chain.x_next):
        assert torch.equal(same[:6], same[6:])
    noisy = chain.t[:6] > 0  # at t = 0 the less noisy image is x_0 itself
    assert not torch.equal(chain.real[:6][noisy], chain.real[6:][noisy]) or not noisy.any()
    torch.testing.assert_close(chain.real[:6][~noisy], chain.real[6:][~noisy], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warm_share": 0.5}, "warm_share"),
        ({"discriminator": {"conditional": False}}, "auxiliary"),
        ({"judge": "x"}, "judge"),
        ({"energy_share": 0.0}, "energy_share"),
        ({"t_odds": 0.0}, "t_odds"),
        ({"num_timesteps": 0}, "num_timesteps"),
        ({"lazy_reg": 0}, "lazy_reg"),
        ({"adam_betas": [0.5]}, "adam_betas"),
        ({"loss": "hinge"}, "loss"),
        ({"lr": 1.0}, "lr_d|lr_g"),
    ],
)
def test_settings_that_do_not_hold_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(DDGANOptions, changes, "recipe x")


def test_another_number_of_steps_than_trained_is_refused() -> None:
    with pytest.raises(ConfigError, match="trained for 4 steps"):
        tiny_method("ddgan").sample([0], Sampler(steps=2))

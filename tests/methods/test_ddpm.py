"""DDPM: exact facts about its samplers and its loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tiny import SPEC, tiny_method, tools
from trilemma.errors import ConfigError
from trilemma.types import Batch, Sampler


class GaussianNoise(nn.Module):
    """The exact noise predictor for data N(0, s^2): E[eps | x_t] = sqrt(1 - a) x / (s^2 a + 1 - a)."""

    def __init__(self, alpha_bar: Tensor, s: float) -> None:
        super().__init__()
        self.alpha_bar, self.s = alpha_bar, s
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * x / (self.s**2 * a + 1 - a)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(steps=500), Sampler(steps=500, eta=1.0)], ids=str)
def test_the_exact_predictor_samples_the_data_distribution(sampler: Sampler) -> None:
    """With the exact E[eps | x_t] of Gaussian data, ancestral and DDIM sampling give back its standard deviation."""
    method = tiny_method("ddpm", timesteps=1000, clip=False).eval()
    method.denoiser = GaussianNoise(method.schedule.alpha_bar, 0.5)
    x = method.sample(range(200), sampler).x
    assert abs(x.mean().item()) < 0.02
    assert abs(x.std().item() - 0.5) < 0.02


def test_the_loss_of_a_silent_network_is_the_variance_of_the_noise() -> None:
    """A fresh network predicts almost nothing, so E||eps - eps_theta||^2 is 1."""
    method = tiny_method("ddpm")
    losses = [method.step(Batch(torch.zeros(64, *SPEC.shape)), 0.0, tools(method))["loss"] for _ in range(2)]
    assert abs(losses[0].item() - 1.0) < 0.1


def test_ddim_counts_and_deterministic_noise() -> None:
    method = tiny_method("ddpm").eval()
    assert method.describe(Sampler(steps=5)) == "DDIM, 5 steps"
    assert method.tag(Sampler(steps=5)) == "ddim5"
    assert method.tag(Sampler()) == "default"
    assert torch.equal(method.sample([3], Sampler(steps=5)).x, method.sample([3], Sampler(steps=5, eta=0.0)).x)
    assert not torch.equal(method.sample([3], Sampler(steps=5)).x, method.sample([3], Sampler(steps=5, eta=1.0)).x)


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (Sampler(steps=0), "steps"),
        (Sampler(steps=21), "steps"),
        (Sampler(eta=0.5), "eta"),
        (Sampler(steps=5, eta=1.5), "eta"),
        (Sampler(steps=5, variance="fixed_large"), "variance"),
    ],
)
def test_sampler_settings_that_do_not_hold_are_refused(sampler: Sampler, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_method("ddpm").sample([0], sampler)


def test_both_variances_differ_and_agree_at_the_last_step() -> None:
    method = tiny_method("ddpm").eval()
    small = method.sample([0], Sampler(variance="fixed_small")).x
    large = method.sample([0], Sampler(variance="fixed_large")).x
    assert not torch.equal(small, large)

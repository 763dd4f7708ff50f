"""Adversarial losses against their formulas, and the gradient penalty against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from trilemma.errors import ConfigError
from trilemma.maths.adversarial import (
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)

REAL, FAKE = torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([[0.3], [4.0], [-1.0]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_losses_equal_their_formulas() -> None:
    real, fake = REAL[:, 0].tolist(), FAKE[:, 0].tolist()
    pairs = list(zip(real, fake, strict=True))
    expected_d = mean([softplus(-r) for r in real]) + mean([softplus(f) for f in fake])
    assert float(discriminator_loss(REAL, FAKE)) == pytest.approx(expected_d)
    assert float(generator_loss(FAKE)) == pytest.approx(mean([softplus(-f) for f in fake]))
    paired_d, paired_g = relativistic_discriminator_loss(REAL, FAKE), relativistic_generator_loss(REAL, FAKE)
    assert float(paired_d) == pytest.approx(mean([softplus(f - r) for r, f in pairs]))
    assert float(paired_g) == pytest.approx(mean([softplus(r - f) for r, f in pairs]))


def test_undecided_discriminator_pays_log_two_a_term() -> None:
    zero = torch.zeros(4, 1)
    assert float(discriminator_loss(zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(relativistic_discriminator_loss(zero, zero)) == pytest.approx(math.log(2))


def test_losses_are_the_negative_log_likelihoods_of_a_sigmoid() -> None:
    expected = -torch.sigmoid(REAL).log().mean() - (1 - torch.sigmoid(FAKE)).log().mean()
    torch.testing.assert_close(discriminator_loss(REAL, FAKE), expected)


def test_losses_stay_finite_for_huge_logits() -> None:
    huge = torch.full((2, 1), 1e4)
    assert float(discriminator_loss(-huge, huge)) == pytest.approx(2e4)
    assert float(generator_loss(huge)) == 0.0


def test_relativistic_game_only_sees_differences() -> None:
    for loss in (relativistic_discriminator_loss, relativistic_generator_loss):
        torch.testing.assert_close(loss(REAL + 7, FAKE + 7), loss(REAL, FAKE))


def test_penalty_of_a_linear_critic_is_half_gamma_times_its_squared_weight() -> None:
    w = torch.randn(3, 4, 4, requires_grad=True)
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    penalty = gradient_penalty((x * w).sum(dim=(1, 2, 3)), x, 0.2)
    torch.testing.assert_close(penalty, 0.1 * w.square().sum())
    penalty.backward()
    torch.testing.assert_close(w.grad, 0.2 * w.detach())


def test_penalty_of_a_quadratic_critic() -> None:
    """D = s |x|^2 / 2 has gradient s x: the penalty is gamma/2 s^2 E |x|^2 and its derivative in s gamma s E |x|^2."""
    s = torch.tensor(1.5, requires_grad=True)
    x = torch.randn(6, 2, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    penalty = gradient_penalty(0.5 * s * x.square().sum(dim=(1, 2, 3)), x, 2.0)
    power = x.detach().square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(penalty, 1.5**2 * power)
    (grad,) = torch.autograd.grad(penalty, s)
    torch.testing.assert_close(grad, 2.0 * 1.5 * power)


def test_misuse_is_refused() -> None:
    with pytest.raises(ConfigError):
        relativistic_discriminator_loss(REAL, FAKE[:, 0])
    with pytest.raises(ConfigError):
        relativistic_generator_loss(REAL, FAKE[:2])
    with pytest.raises(ConfigError):
        gradient_penalty(REAL, torch.zeros(3, 1, 2, 2), 1.0)

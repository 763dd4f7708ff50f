"""The energy score: its value by hand, and that only the true distribution minimises it."""

from __future__ import annotations

import pytest
import torch

from trilemma.errors import ConfigError
from trilemma.maths.scoring import distance, energy_distance, energy_score


def test_distance_of_black_and_white_is_two() -> None:
    white = torch.ones(3, 1, 4, 4)
    torch.testing.assert_close(distance(white, -white), torch.full((3,), 2.0), atol=1e-4, rtol=0)
    assert distance(white, white).max() < 0.01


def test_the_score_by_hand() -> None:
    """y = 1, y' = 3, x = 0 in one dimension: (1 + 3) / 2 - 2 / 2 = 1."""
    y, other, x = torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([[0.0]])
    assert energy_score(y, other, x).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.0, 3.0), (1.0, 1.0), (0.0, 0.01)])
def test_a_wrong_mean_or_spread_scores_worse_than_the_truth(mean: float, std: float) -> None:
    """Outcomes N(0, 1). Squared error would prefer the forecast with hardly any spread; the energy score does not."""
    x, y, other = torch.randn(3, 100_000, 1)
    truth = energy_score(y, other, x)
    assert energy_score(mean + std * y, mean + std * other, x) > truth + 0.01


def test_gradients_are_finite_where_samples_coincide() -> None:
    y = torch.zeros(4, 2, requires_grad=True)
    energy_score(y, y, torch.zeros(4, 2)).backward()
    assert y.grad is not None and torch.isfinite(y.grad).all()


def test_the_distance_of_sets_by_hand() -> None:
    """Samples 1 and 3, data 0 and 4 in one dimension: the mean of 1, 3, 3, 1 less half of 2; in pairs that of 3, 3."""
    y, x = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0]])
    assert energy_distance(y, x).item() == pytest.approx(1.0, abs=1e-3)
    assert energy_distance(y, x, paired=True).item() == pytest.approx(2.0, abs=1e-3)


def test_the_distance_of_sets_is_that_of_all_pairs() -> None:
    y, x = torch.randn(5, 2, 3, 3), torch.randn(7, 2, 3, 3)
    to_data = torch.stack([distance(y, d.expand_as(y)) for d in x]).mean()
    among = torch.stack([distance(y, other.expand_as(y)) for other in y])
    expected = to_data - 0.5 * (among.sum() - among.diagonal().sum()) / 20
    torch.testing.assert_close(energy_distance(y, x), expected)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.0, 3.0), (1.0, 1.0), (0.0, 0.01)])
def test_a_wrong_distribution_is_farther_than_the_true_one(mean: float, std: float) -> None:
    x, y = torch.randn(2, 2000, 1)
    assert energy_distance(mean + std * y, x) > energy_distance(y, x) + 0.01


def test_a_single_sample_has_no_pair() -> None:
    with pytest.raises(ConfigError, match="at least 2 samples"):
        energy_distance(torch.rand(1, 3), torch.rand(4, 3))

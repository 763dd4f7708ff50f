"""The energy score: its value by hand, and that only the true distribution minimises it."""

from __future__ import annotations

import pytest
import torch

from trilemma.maths.scoring import distance, energy_score


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

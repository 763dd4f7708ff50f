"""Copies are found, fresh draws are not, in pixels and in features, with and without unseen samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.measure.digits_cnn import sklearn_digits
from trilemma.measure.features import extract, load_extractor
from trilemma.measure.memorisation import audit


def draw(n: int, seed: int) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Digits to train on, unseen ones, and others that a perfect generator might make; in random order."""
    x = torch.cat([sklearn_digits(train=True).x, sklearn_digits(train=False).x])
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return x[:997], x[997:1397], x[1397:]


def seen(x: Tensor, features: bool) -> Tensor:
    return extract(x, load_extractor("digits")).features if features else x


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("stand_ins", [False, True])
def test_digits(digits: tuple[Tensor, Tensor, Tensor], features: bool, stand_ins: bool) -> None:
    """Copies, copies under a little noise in each pixel, and fresh digits."""
    train, unseen, fresh = (seen(x, features) for x in digits)
    others = None if stand_ins else unseen
    order = torch.randperm(997)[:300]
    copied = audit(train[order], train, others)
    assert copied.scores["near_copies"] == 1
    assert copied.scores["distance_ratio"] == 0
    assert torch.equal(copied.indices, order)
    assert copied.distances.max() == 0
    noise = torch.randint(-3, 4, digits[0].shape)
    noisy = audit(seen((digits[0] + noise).clamp(0, 255).byte(), features), train, others)
    assert noisy.scores["near_copies"] > 0.95
    assert (noisy.indices == torch.arange(997)).float().mean() > 0.99
    found = audit(fresh, train, others)
    assert found.scores["near_copies"] <= 0.04
    assert 0.8 < found.scores["distance_ratio"] < 1.25


@pytest.mark.parametrize("stand_ins", [False, True])
def test_the_share_of_fresh_draws_is_the_baseline(stand_ins: bool) -> None:
    """10 of 1,000 lie within the threshold; of 4,000 fresh ones about 40 do. Half of them copied makes half and 20."""
    train, unseen, fresh = draw(1000, 0), draw(1000, 1), draw(4000, 2)
    found = audit(fresh, train, None if stand_ins else unseen)
    assert found.scores["baseline"] == 0.01
    assert found.scores["near_copies"] == pytest.approx(0.01, abs=0.008)
    half = audit(torch.cat([fresh[:2000], train, train]), train, None if stand_ins else unseen)
    assert half.scores["near_copies"] == pytest.approx(0.505, abs=0.005)


@pytest.mark.parametrize("quantile", [0.05, 0.5])
def test_the_quantile_is_the_baseline(quantile: float) -> None:
    found = audit(draw(50, 1), draw(200, 0), draw(100, 2), quantile=quantile)
    assert found.scores["baseline"] == quantile


def test_the_closest_come_first() -> None:
    """Train at 0 and 10; samples 3, 1 and 2 away."""
    found = audit(torch.tensor([[13.0], [-1.0], [12.0]]), torch.tensor([[0.0], [10.0]]), torch.tensor([[4.0]]))
    assert found.distances.tolist() == [3, 1, 2]
    assert found.indices.tolist() == [1, 0, 1]
    assert found.closest(2).tolist() == [1, 2]
    assert found.scores == {"near_copies": 1.0, "baseline": 1.0, "distance_ratio": 0.5, "threshold": 4.0}


def test_parts_in_memory_change_nothing(digits: tuple[Tensor, Tensor, Tensor]) -> None:
    train, unseen, fresh = digits
    whole, parts = audit(fresh, train, unseen), audit(fresh, train, unseen, memory=200_000)
    assert parts.scores == pytest.approx(whole.scores)
    torch.testing.assert_close(parts.distances, whole.distances)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1, not 1"):
        audit(draw(5, 0), draw(5, 1), quantile=1)
    with pytest.raises(ConfigError, match="neighbours need rows"):
        audit(torch.zeros(5, 1, 8, 8), torch.zeros(5, 1, 9, 9))

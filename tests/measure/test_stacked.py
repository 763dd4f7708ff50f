"""Stacked MNIST scores on images stacked from real digits, whose numbers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.measure.digits_cnn import sklearn_digits
from trilemma.measure.features import Extractor, extract, load_extractor
from trilemma.measure.stacked import MODES, histogram_scores, stacked_numbers


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return load_extractor("digits")


@pytest.fixture(scope="module")
def stacks(extractor: Extractor) -> Tensor:
    """Image k shows the digits of k = 0 to 999 in red, green and blue: (1000, 3, 8, 8). All are read right alone."""
    digits = sklearn_digits(train=False)
    right = extract(digits.x, extractor).logits.argmax(1) == digits.labels
    one_each = torch.stack([digits.x[right & (digits.labels == digit)][0, 0] for digit in range(10)])
    k = torch.arange(MODES)
    return one_each[torch.stack([k // 100, k // 10 % 10, k % 10], 1)]


def test_numbers_are_read_red_first(stacks: Tensor, extractor: Extractor) -> None:
    assert torch.equal(stacked_numbers(stacks, extractor), torch.arange(MODES))


@pytest.mark.parametrize(
    ("chosen", "modes", "kl"),
    [
        (range(1000), 1000, 0.0),
        ([417] * 30, 1, math.log(1000)),
        (range(0, 1000, 2), 500, math.log(2)),
        ([*range(500), *[7] * 500], 500, 0.501 * math.log(501)),
    ],
)
def test_scores_in_closed_form(stacks: Tensor, extractor: Extractor, chosen: list[int], modes: int, kl: float) -> None:
    """All modes, one, half of them; and half of the images on one: p(7) = 501 / 1000, the others 1 / 1000."""
    found = histogram_scores(stacked_numbers(stacks[list(chosen)], extractor))
    assert found == {"modes": modes, "kl": pytest.approx(kl, abs=1e-12)}


def test_a_perfect_generator_has_the_kl_of_its_count() -> None:
    """999 / (2 N) for 26,000 images, with a spread of root(2 x 999) / (2 N); and misses hardly any mode."""
    n = 26_000
    found = histogram_scores(torch.randint(MODES, (n,)))
    assert found["modes"] == 1000
    assert found["kl"] == pytest.approx(999 / (2 * n), abs=4 * math.sqrt(2 * 999) / (2 * n))


def test_what_is_not_stacked_digits_is_refused(stacks: Tensor, extractor: Extractor) -> None:
    with pytest.raises(ConfigError, match=r"images \(N, 3, H, W\), got 'digits' and \(1000, 1, 8, 8\)"):
        stacked_numbers(stacks[:, :1], extractor)
    other = Extractor("inception", "0", 1, torch.device("cpu"), lambda x: (x, x))
    with pytest.raises(ConfigError, match="got 'inception'"):
        stacked_numbers(stacks, other)

"""Mode scores in cases counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trilemma.errors import ConfigError
from trilemma.measure.modes import mode_scores

MODES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def test_every_mode_hit_once() -> None:
    assert mode_scores(MODES, MODES, 0.01) == {"modes": 4, "share_within_4_sigma": 1.0, "kl": 0.0}


def test_collapse_on_one_mode() -> None:
    expected = {"modes": 1, "share_within_4_sigma": 1.0, "kl": pytest.approx(math.log(4))}
    assert mode_scores(torch.zeros(50, 2), MODES, 0.01) == expected


def test_the_border_is_at_four_sigma() -> None:
    """Distances 0.5 (on it), just inside and just outside, with sigma = 1/8."""
    points = torch.tensor([[-0.5, 0.0], [-0.499, 0.0], [-0.501, 0.0], [5.0, 5.0]])
    found = mode_scores(points, MODES, 0.125)
    assert (found["modes"], found["share_within_4_sigma"]) == (1, 0.5)


@pytest.mark.parametrize(("hits", "modes"), [(4, 1), (5, 2)])
def test_a_mode_needs_a_twentieth_of_its_share(hits: int, modes: int) -> None:
    """N = 400 and K = 4: 400 / 80 = 5 points."""
    points = torch.zeros(400, 2)
    points[:hits] = MODES[1]
    assert mode_scores(points, MODES, 0.01)["modes"] == modes


def test_the_true_mixture_scores_as_in_closed_form() -> None:
    """In the plane a Gaussian has 1 - exp(-4^2 / 2) of its mass within 4 sigma."""
    centres = MODES[torch.arange(20_000) % 4]
    found = mode_scores(centres + 0.05 * torch.randn(20_000, 2), MODES, 0.05)
    assert found["modes"] == 4
    assert found["share_within_4_sigma"] == pytest.approx(1 - math.exp(-8), abs=6e-4)


def test_points_that_are_not_finite_are_near_nothing() -> None:
    points = torch.tensor([[0.0, 0.0], [math.nan, 0.0], [math.inf, 1.0], [1.0, 1.0]])
    expected = {"modes": 2, "share_within_4_sigma": 0.5, "kl": pytest.approx(math.log(2))}
    assert mode_scores(points, MODES, 0.1) == expected


def test_kl_counts_each_point_for_its_nearest_mode() -> None:
    """Shares 1/2, 1/4, 1/4, 0: KL to uniform is log 4 less their entropy 1.5 log 2; far points do not count."""
    points = torch.cat([MODES[[0, 0, 1, 2]] + 0.1, torch.full((7, 2), 40.0)])
    assert mode_scores(points, MODES, 0.2)["kl"] == pytest.approx(math.log(4) - 1.5 * math.log(2))


def test_with_no_point_near_a_mode_kl_is_at_its_worst() -> None:
    assert mode_scores(torch.full((3, 2), 40.0), MODES, 0.1)["kl"] == pytest.approx(math.log(4))


def test_nonsense_is_refused() -> None:
    for points in (torch.zeros(0, 2), torch.zeros(4), torch.zeros(4, 3)):
        with pytest.raises(ConfigError, match="mode scores need points"):
            mode_scores(points, MODES, 0.1)
    with pytest.raises(ConfigError, match="sigma > 0"):
        mode_scores(MODES, MODES, 0.0)

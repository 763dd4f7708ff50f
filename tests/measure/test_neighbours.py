"""Neighbours in tiles against the whole matrix, density and coverage against their formulas, and what they mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.measure import fidelity
from trilemma.measure.digits_cnn import sklearn_digits
from trilemma.measure.features import extract, load_extractor
from trilemma.measure.fidelity import fidelity_from_features, precision_recall
from trilemma.measure.memory import RESET, PeakMemory
from trilemma.measure.neighbours import (
    ball_counts,
    density_coverage,
    kth_distances,
    nearest,
    nearest_others,
    reach,
    tile_side,
    tiles,
)

SMALL = 5_000  # bytes: tiles of 10 rows of 5 numbers


def cloud(n: int, *, d: int = 5, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def matrix(x: Tensor, y: Tensor) -> Tensor:
    """All distances, from differences."""
    return (x.double()[:, None] - y.double()[None]).square().sum(2).sqrt()


@pytest.mark.parametrize("memory", [1, SMALL, 2**28])
def test_neighbours_are_those_of_the_whole_matrix(memory: int) -> None:
    """Tiles of 1 row, of 10 (the last one is smaller than k), and all in one."""
    x, y = cloud(23), cloud(17, seed=1)
    found, indices = nearest(x, y, memory=memory)
    expected = matrix(x, y).min(1)
    torch.testing.assert_close(found, expected.values)
    assert torch.equal(indices, expected.indices)
    found, indices = nearest_others(x, 4, memory=memory)
    expected = matrix(x, x).topk(5, largest=False)
    torch.testing.assert_close(found, expected.values[:, 1:])
    assert torch.equal(indices, expected.indices[:, 1:])
    assert torch.equal(kth_distances(x, 4, memory=memory), found[:, 3])


@pytest.mark.parametrize("memory", [SMALL, 2**28])
def test_duplicates_are_at_distance_zero(memory: int) -> None:
    """Far from the origin, where the root of |x|^2 + |y|^2 - 2 x.y alone would be off by about 1e-4."""
    x = 1e4 + cloud(80).double()
    order = torch.randperm(80)
    found, indices = nearest(x, x[order], memory=memory)
    assert torch.equal(found, torch.zeros(80, dtype=torch.float64))
    assert torch.equal(order[indices], torch.arange(80))
    assert (kth_distances(x, 1, memory=memory) > 0).all()
    assert (kth_distances(torch.cat([x, x]), 1, memory=memory) == 0).all()


def test_a_row_may_be_passed_over_wherever_it_lies() -> None:
    x, chosen = cloud(60), torch.tensor([59, 0, 31])
    found, indices = nearest(x[chosen], x, own=chosen, memory=SMALL)
    rest = matrix(x[chosen], x)
    rest[torch.arange(3), chosen] = torch.inf
    torch.testing.assert_close(found, rest.min(1).values)
    assert torch.equal(indices, rest.argmin(1))


def test_pixels_are_compared_exactly() -> None:
    """Integers are not taken modulo 256, and their distances come out exact in float32."""
    x = torch.randint(0, 256, (50, 3 * 16 * 16), dtype=torch.uint8)
    y = torch.randint(0, 256, (40, 3 * 16 * 16), dtype=torch.uint8)
    found, indices = nearest(x, y, memory=10**6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), matrix(x, y).min(1).values, rtol=1e-6, atol=0.0)
    assert torch.equal(indices, matrix(x, y).argmin(1))


@pytest.mark.parametrize(("d", "kind"), [(64, torch.float64), (2048, torch.float64), (3072, torch.uint8)])
@pytest.mark.parametrize("memory", [10**5, 10**6, 2**28])
def test_a_tile_and_what_is_made_of_it_fit_the_memory(d: int, kind: torch.dtype, memory: int) -> None:
    """50,000 rows need no larger tile than 40: its side comes from d and the memory alone."""
    size = 4 if kind == torch.uint8 else 8
    side = tile_side(d, size, memory)
    assert side == 1 or size * (3 * side**2 + 5 * side * d) <= memory
    assert size * (3 * (side + 1) ** 2 + 5 * (side + 1) * d) > memory
    x = torch.zeros(40, d, dtype=kind)
    for rows, columns, squares in tiles(x, x[:30], memory):
        assert squares.element_size() == size
        assert squares.shape == (rows.stop - rows.start, columns.stop - columns.start)
        assert max(squares.shape) <= side


def test_tiles_cover_every_pair_once() -> None:
    seen = torch.zeros(63, 47)
    for rows, columns, squares in tiles(cloud(63), cloud(47, seed=1), SMALL):
        assert squares.shape == seen[rows, columns].shape
        seen[rows, columns] += 1
    assert (seen == 1).all()


def test_density_and_coverage_by_their_formulas() -> None:
    g, r = cloud(90, scale=1.2), cloud(70, seed=1)
    radii = matrix(r, r).sort(1).values[:, 3]
    inside = matrix(g, r) <= radii
    expected = {"density": inside.sum().item() / (3 * 90), "coverage": inside.any(0).double().mean().item()}
    whole, parts = density_coverage(g, r, k=3), density_coverage(g, r, k=3, memory=SMALL)
    assert whole == pytest.approx(expected)
    assert parts == whole
    assert 0.1 < whole["coverage"] < 1
    around, held = ball_counts(g, r, radii, memory=SMALL)
    assert torch.equal(around, inside.sum(1))
    assert torch.equal(held, inside.sum(0))


def test_a_point_on_a_sphere_is_inside() -> None:
    """On a lattice of step 0.1 every inner point has neighbours exactly on its sphere, up to rounding."""
    x = torch.cartesian_prod(torch.arange(9), torch.arange(9)).double() * 0.1
    around, held = ball_counts(x, x, kth_distances(x, 4))
    inner = ((x > 0.05) & (x < 0.75)).all(1)
    assert (held[inner] == 5).all()
    assert (reach(torch.zeros(81), x) < 1e-12).all()
    assert around.sum() == held.sum()


def test_the_reference_against_itself() -> None:
    """Each ball holds its centre and its k neighbours."""
    x = cloud(100)
    assert density_coverage(x, x, k=4) == {"density": 5 / 4, "coverage": 1.0}


def test_collapse_to_an_outlier_covers_one_sample() -> None:
    x = cloud(100)
    x[0] += 100
    found = density_coverage(x[:1].repeat(300, 1), x)
    assert found == {"density": 1 / 5, "coverage": 1 / 100}


def test_a_missing_cluster_is_not_covered() -> None:
    """Half the real samples lie far off; the rest are met exactly."""
    near = cloud(50)
    found = density_coverage(near, torch.cat([near, cloud(50, seed=1) + 1000]))
    assert found == {"density": 6 / 5, "coverage": 0.5}


def test_outliers_do_not_raise_density_as_they_do_precision() -> None:
    """One real outlier's ball reaches over everything: precision takes all noise for real, density hardly counts it."""
    real = cloud(200)
    real[0] += 50
    noise = 5 + cloud(100, scale=2, seed=1)
    around, _ = ball_counts(noise, real, kth_distances(real, 5))
    assert (around > 0).double().mean() > 0.9
    assert density_coverage(noise, real)["density"] < 0.25


def test_collapse_blur_and_missing_classes_show_where_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits: one mode costs recall and coverage, blur precision and density, half the classes half the recall."""
    monkeypatch.setattr(fidelity, "KID_SUBSETS", 1)  # not looked at here
    extractor, digits = load_extractor("digits"), sklearn_digits(train=True)
    reference = extract(digits.x[:700], extractor)
    others, labels = digits.x[700:], digits.labels[700:]

    def scores(x: Tensor) -> dict[str, float]:
        seen = extract(x, extractor)
        return fidelity_from_features(seen, reference) | density_coverage(seen.features, reference.features)

    good = scores(others)
    collapsed = scores(others[labels == 0].repeat(10, 1, 1, 1)[: len(others)])
    blurred = scores(F.avg_pool2d(others.float(), 3, 1, 1).round().byte())
    half = scores(others[labels < 5])
    assert good["precision"] > 0.7 and good["recall"] > 0.65 and good["coverage"] > 0.7
    assert collapsed["precision"] > good["precision"] - 0.05
    assert collapsed["recall"] < 0.1 and collapsed["coverage"] < 0.1
    assert blurred["precision"] < 0.1 and blurred["density"] < 0.1
    assert half["precision"] > good["precision"] - 0.05
    assert half["recall"] == pytest.approx(0.5 * good["recall"], abs=0.05)
    assert half["coverage"] == pytest.approx(0.5 * good["coverage"], abs=0.05)


@pytest.mark.parametrize("k", [0, 10])
def test_neighbours_that_do_not_exist_are_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"there are no {k} nearest neighbours among 9 rows"):
        kth_distances(cloud(10), k)
    with pytest.raises(ConfigError, match="there are no 1 nearest"):
        nearest(cloud(1), cloud(1), own=torch.zeros(1, dtype=torch.int64))


def test_rows_that_do_not_fit_are_refused() -> None:
    for x, y in ((cloud(5), cloud(5, d=4)), (cloud(5)[:0], cloud(5)), (cloud(5)[None], cloud(5))):
        with pytest.raises(ConfigError, match=r"neighbours need rows \(N, d\) and \(M, d\)"):
            nearest(x, y)


@pytest.mark.slow
def test_fifty_thousand_against_fifty_thousand_fit_two_gibibytes() -> None:
    """Of two samples of one distribution either has a density and a coverage as independent draws should have."""
    g, r = cloud(50_000, d=64), cloud(50_000, d=64, seed=1)
    with PeakMemory() as peak:
        scores = density_coverage(g, r) | precision_recall(g, r)
    assert scores["density"] == pytest.approx(1.0, abs=0.05)
    # None of M = N draws falls within the ball that holds k of the N - 1 others with a chance of about 2^-k.
    assert scores["coverage"] == pytest.approx(1 - 2.0**-5, abs=0.01)
    assert scores["precision"] == pytest.approx(scores["recall"], abs=0.01)
    if peak.kind == RESET:
        assert peak.mib is not None and peak.before_mib is not None
        assert peak.mib - peak.before_mib < 2048

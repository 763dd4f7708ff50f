"""Intervals: each score left out by groups against recomputing it, and what the intervals then cover."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.intervals import standard_error
from trilemma.measure import fidelity, uncertainty
from trilemma.measure.features import FeatureSet
from trilemma.measure.fidelity import fid_only, fidelity_from_features
from trilemma.measure.neighbours import ball_counts, density_coverage, kth_distances
from trilemma.measure.stacked import histogram_scores
from trilemma.measure.uncertainty import (
    counted_intervals,
    fid_infinity,
    reliability,
    score_intervals,
    scores_left_out,
)

SMALL = 30_000  # bytes: tiles of about 20 rows
NAMES = {"fid", "kid", "inception_score", "precision", "recall", "density", "coverage"}


def features(x: Tensor, digest: str = "0") -> FeatureSet:
    """Logits are a fixed linear map of the features."""
    weights = torch.randn(x.shape[1], 5, generator=torch.Generator().manual_seed(99))
    return FeatureSet(x, x.to(weights) @ weights, "made-up", digest)


def cloud(n: int, *, d: int = 4, scale: float = 1.0, shift: float = 0.0, seed: int = 0) -> FeatureSet:
    return features(shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def part(x: FeatureSet, rows: Tensor) -> FeatureSet:
    return FeatureSet(x.features[rows], x.logits[rows], x.extractor, x.digest)


def all_scores(generated: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    return fidelity_from_features(generated, reference) | density_coverage(generated.features, reference.features)


def mmd_without_real_pairs(x: Tensor, y: Tensor) -> float:
    own, cross = ((x.double() @ other.double().T / x.shape[1] + 1) ** 3 for other in (x, y))
    n = len(x)
    return ((own.sum() - own.diagonal().sum()) / (n * (n - 1)) - 2 * cross.mean()).item()


@pytest.fixture
def _one_kid_subset_and_split() -> Iterator[None]:
    """All samples at once, which is quick and what the groups are left out of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "KID_SUBSETS", 1)
        patch.setattr(fidelity, "SPLITS", 1)
        yield


@pytest.mark.usefixtures("_one_kid_subset_and_split")
@pytest.mark.parametrize("memory", [SMALL, 2**28])
def test_leaving_out_is_what_recomputing_gives(memory: int) -> None:
    """Seven groups of 8 or 9 among 60 samples, every score from scratch on what is left."""
    g, r = cloud(60, scale=0.8, shift=0.5), cloud(50, seed=1)
    found = scores_left_out(g, r, rounds=7, seed=3, memory=memory)
    assert set(found) == NAMES
    groups = uncertainty._groups(60, 7, 3)
    assert sorted(groups.bincount().tolist()) == [8] * 3 + [9] * 4
    for group in range(7):
        rest = part(g, groups != group)
        expected = all_scores(rest, r) | {"kid": mmd_without_real_pairs(rest.features, r.features)}
        assert {name: values[group].item() for name, values in found.items()} == pytest.approx(expected, abs=1e-6)


def test_the_error_of_a_mean_is_the_textbook_s() -> None:
    """With one sample a group the jackknife of a mean is its standard error, exactly."""
    g, r = cloud(80, scale=1.3), cloud(90, seed=1)
    terms = ball_counts(g.features, r.features, kth_distances(r.features, 5))[0].double() / 5
    low, high = score_intervals(g, r, {"density": 1.0}, rounds=80)["density"]
    error = terms.std().item() / math.sqrt(80)
    assert (low + high) / 2 == pytest.approx(1)
    assert (high - low) / 2 == pytest.approx(1.99045 * error, rel=1e-4)  # Student's t, 79 degrees


@pytest.mark.usefixtures("_one_kid_subset_and_split")
def test_intervals_cover_as_often_as_they_say() -> None:
    """60 draws of N(0.4, 1.2^2 I) against one reference: the errors match the spread, and 95 % hold the truth.

    The truth is the mean over the draws, and of FID the distance of the two Gaussians in closed form. An error is no
    less than 0.85 of the spread; those of coverage and recall may be twice as large.
    """
    reference, runs = cloud(250, seed=1000), 60
    draws = [cloud(250, scale=1.2, shift=0.4, seed=seed) for seed in range(runs)]
    scores = [all_scores(x, reference) for x in draws]
    intervals = [score_intervals(x, reference, s, rounds=25) for x, s in zip(draws, scores, strict=True)]
    assert set(intervals[0]) == NAMES
    mu, sigma = (torch.from_numpy(reference.statistics[name]) for name in ("mu", "sigma"))
    spreads = torch.linalg.eigvalsh(sigma).sqrt()
    frechet = ((0.4 - mu).square().sum() + (1.2 - spreads).square().sum()).item()
    for name in NAMES:
        values = torch.tensor([s[name] for s in scores])
        errors = torch.tensor([standard_error(i[name]) for i in intervals])
        truth = frechet if name == "fid" else values.mean().item()
        covered = sum(i[name][0] <= truth <= i[name][1] for i in intervals) / runs
        assert covered >= 0.88, (name, covered)
        assert 0.85 <= errors.mean() / values.std() <= (2.2 if name in {"recall", "coverage"} else 1.5), name


def test_intervals_shrink_with_the_root_of_the_count() -> None:
    reference = cloud(300, seed=1)

    def errors(n: int) -> dict[str, float]:
        """Their means over four draws."""
        draws = [cloud(n, scale=1.3, shift=0.5, seed=seed) for seed in range(4)]
        found = [score_intervals(g, reference, dict.fromkeys(NAMES, 0.0)) for g in draws]
        return {name: sum(standard_error(intervals[name]) for intervals in found) / 4 for name in NAMES}

    few, many = errors(200), errors(1800)
    for name in ("fid", "kid", "inception_score", "precision", "density"):
        assert few[name] / many[name] == pytest.approx(3, rel=0.25), name


def test_the_error_of_counted_modes_is_worked_by_hand() -> None:
    """One sample a group: 0, 0, 1, 2. Without a 0 all 3 modes stay, without the 1 or the 2 there are 2."""
    found = counted_intervals(torch.tensor([0, 0, 1, 2]), histogram_scores, {"modes": 3.0, "fid": 1.0}, rounds=4)
    assert list(found) == ["modes"]
    error = math.sqrt(3 / 4 * 4 * 0.25)  # values 3, 3, 2, 2 about 2.5
    assert standard_error(found["modes"]) * 1.96 == pytest.approx(uncertainty._student(0.975, 3) * error, rel=1e-4)
    assert sum(found["modes"]) / 2 == 3


@pytest.mark.parametrize(("n", "names"), [(2_000, ("kl", "modes")), (26_000, ("kl",))])
def test_intervals_of_modes_and_kl_cover_their_means(n: int, names: tuple[str, ...]) -> None:
    """Uneven draws over 1,000 modes: nearly all intervals hold the mean over the draws, and none is absurdly wide.

    Of 26,000 hardly any mode is missed, and then a number of modes often has no width.
    """
    shares = torch.linspace(0.2, 1.8, 1000)
    draws = [
        torch.multinomial(shares, n, replacement=True, generator=torch.Generator().manual_seed(seed))
        for seed in range(40)
    ]
    scores = [histogram_scores(x) for x in draws]
    intervals = [counted_intervals(x, histogram_scores, s) for x, s in zip(draws, scores, strict=True)]
    for name in names:
        values = torch.tensor([s[name] for s in scores], dtype=torch.float64)
        covered = sum(i[name][0] <= values.mean() <= i[name][1] for i in intervals) / len(draws)
        errors = torch.tensor([standard_error(i[name]) for i in intervals])
        assert covered >= 0.9, (name, covered)
        assert 0.85 <= errors.mean() / values.std() <= 4, name


def test_a_share_of_points_keeps_an_error() -> None:
    """All 200 within: the rule of three, as for other shares."""
    low, high = counted_intervals(
        torch.zeros(200), lambda x: {"share_within_4_sigma": 1.0}, {"share_within_4_sigma": 1.0}
    )["share_within_4_sigma"]
    assert (1 - low, high - 1) == pytest.approx((3 / 200, 3 / 200), rel=0.03)


def test_seed_makes_the_intervals_repeat() -> None:
    g, r = cloud(100), cloud(100, seed=1)
    scores = dict.fromkeys(NAMES, 0.0)
    one, two, other = (score_intervals(g, r, scores, rounds=10, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert all(one[name] != other[name] for name in ("fid", "kid", "inception_score", "density"))


def test_only_scores_asked_for_are_given_and_they_are_the_centres() -> None:
    g, r = cloud(100), cloud(100, seed=1)
    found = score_intervals(g, r, {"fid": 3.5, "nfe": 1.0}, rounds=10)
    assert list(found) == ["fid"]
    assert sum(found["fid"]) / 2 == pytest.approx(3.5)
    wide = score_intervals(g, r, {"fid": 3.5}, rounds=10, confidence=0.99)["fid"]
    assert (wide[1] - wide[0]) / (found["fid"][1] - found["fid"][0]) == pytest.approx(3.2498 / 2.2622, rel=0.01)


def test_a_share_without_spread_keeps_an_error() -> None:
    """All 200 inside: the rule of three still allows 3 in 200 to be outside."""
    x = cloud(200)
    low, high = score_intervals(x, x, {"precision": 1.0}, rounds=200)["precision"]
    assert (1 - low, high - 1) == pytest.approx((3 / 200, 3 / 200), rel=0.02)


def test_fid_of_many_dimensions_gets_fewer_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncertainty, "_FID_WORK", 12 * 4**3)
    found = scores_left_out(cloud(100), cloud(100, seed=1), rounds=40, seed=0)
    assert (len(found["fid"]), len(found["kid"])) == (12, 40)


@pytest.mark.parametrize("n", [30, 500])
def test_frechet_distance_by_the_root_is_the_library_s(n: int) -> None:
    """Also where the covariance of 30 samples in 40 dimensions is singular."""
    g, r = cloud(n, d=40, scale=1.3, shift=0.1), cloud(300, d=40, seed=1)
    mu, sigma = (torch.from_numpy(g.statistics[name]) for name in ("mu", "sigma"))
    assert uncertainty._distance_to(r)(mu, sigma) == pytest.approx(fid_only(g, r), rel=1e-5)


def test_fid_at_infinity_loses_the_bias() -> None:
    """N(0, 1.2^2 I) against N(0, I) in 16 dimensions: 16 x 0.2^2 = 0.64. Means over 24 draws, to see the bias."""
    reference = cloud(40_000, d=16, seed=1)
    draws = [cloud(500, d=16, scale=1.2, seed=10 + seed) for seed in range(24)]
    plain = sum(fid_only(x, reference) for x in draws) / 24
    infinite = sum(fid_infinity(x, reference) for x in draws) / 24
    assert plain - 0.64 > 0.1
    assert abs(infinite - 0.64) < 0.3 * (plain - 0.64)


def test_fid_at_infinity_of_what_does_not_depend_on_the_count() -> None:
    """One point repeated has the same FID at any count; the seed draws the subsets."""
    reference = cloud(100, seed=1)
    point = features(torch.ones(50, 4))
    assert fid_infinity(point, reference) == pytest.approx(fid_only(point, reference), rel=1e-6)
    x = cloud(100, scale=1.5)
    assert fid_infinity(x, reference, seed=1) == fid_infinity(x, reference, seed=1)
    assert fid_infinity(x, reference, seed=1) != fid_infinity(x, reference, seed=2)


@pytest.mark.parametrize(("freedom", "t"), [(9, 2.262157), (24, 2.063899), (49, 2.009575)])
def test_quantiles_of_student_s_t(freedom: int, t: float) -> None:
    assert uncertainty._student(0.975, freedom) == pytest.approx(t, rel=2e-3)


@pytest.mark.parametrize(
    ("generated", "reference", "dimensions", "names"),
    [
        (10_000, 10_000, 64, set()),
        (1797, 1797, 64, {"inception_score"}),
        (50_000, 10_000, 2048, {"fid"}),
        (5_000, 10_000, 2048, {"fid", "fid_infinity"}),
        (64, 10_000, 64, NAMES | {"fid_infinity"}),
        (10_000, 999, 64, {"kid", "precision", "recall", "density", "coverage"}),
    ],
)
def test_scores_that_mean_little(generated: int, reference: int, dimensions: int, names: set[str]) -> None:
    found = reliability(generated, reference, dimensions)
    assert set(found) == names
    assert all(0 < len(reason) < 90 and "\n" not in reason for reason in found.values())


def test_a_singular_covariance_is_told_from_a_biased_one() -> None:
    assert "singular" in reliability(2048, 50_000, 2048)["fid"]
    assert "biased" in reliability(2049, 50_000, 2048)["fid"]


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be compared"):
        score_intervals(cloud(50), features(torch.zeros(50, 4), digest="1"), {})
    with pytest.raises(ConfigError, match="at least 2 groups"):
        score_intervals(cloud(50), cloud(50), {}, rounds=1)
    with pytest.raises(ConfigError, match="at least 20 samples"):
        fid_infinity(cloud(19), cloud(50))
    with pytest.raises(ConfigError, match="2 points"):
        fid_infinity(cloud(50), cloud(50), points=1)

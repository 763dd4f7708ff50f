"""How sure a score is: intervals by a jackknife over groups, FID without its bias, and counts that are too small.

The naive bootstrap draws the generated samples with replacement, and the duplicates it makes do harm: they are each
other's nearest neighbours at distance 0, so recall's balls shrink (the bootstrap fails for nearest-neighbour
statistics: Abadie and Imbens 2008), and they lower the rank of the covariance, so FID's bias is added a second time.
So samples are left out instead of repeated. The N samples fall into g random groups, and with theta_b the score without
group b and theta its mean over b,

    error^2 = (g - 1) / g sum_b (theta_b - theta)^2                 Quenouille 1956, Tukey 1958; Shao and Wu 1989

Groups are independent draws from the model, so g / (g - 1) error^2 is in expectation never below the variance of the
score of N (1 - 1/g) samples, whatever the score, smooth or not (Efron and Stein 1981). Where samples act together it is
well above: for FID and KID of a perfect generator, whose first-order terms vanish, and for coverage and recall, where a
ball matters only where no other reaches. An interval is score +- t error, with Student's t of g - 1 degrees, centred on
the score as it is: FID's bias at N samples stays in it. The reference is taken as fixed: its own sampling is not
counted.

No score is computed g times. Precision and density are means over samples; coverage and recall count, for each real
sample, the balls that hold it in each group; KID and the inception score need sums by group; FID needs the eigenvalues
of one d x d matrix a group, with a root of the reference's covariance at hand: tr (S_g S_r)^(1/2) = sum_i
lambda_i(L^T S_g L)^(1/2) with S_r = L L^T. Only the scores of counted modes are cheap enough to be made anew for every
group. FID at infinity, near copies and the path length have no interval here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.intervals import Interval
from trilemma.measure.features import FeatureSet
from trilemma.measure.fidelity import NEIGHBOURS
from trilemma.measure.neighbours import COVERAGE_NEIGHBOURS, MEMORY, nearest_others, pairs, reach, tiles

SHARES = ("precision", "recall", "coverage", "share_within_4_sigma")
_FID_WORK = 2e11  # bound on groups x d^3: 23 groups at d = 2048, where one takes seconds


def score_intervals(  # noqa: PLR0913
    generated: FeatureSet,
    reference: FeatureSet,
    scores: Mapping[str, float],
    *,
    rounds: int = 50,
    seed: int = 0,
    confidence: float = 0.95,
    memory: int = MEMORY,
) -> dict[str, Interval]:
    """Intervals of ``scores`` (of `fidelity_from_features`, `density_coverage`); names it does not know are left out.

    ``rounds`` is the number of groups, at most one a sample and for FID at large d fewer; ``seed`` draws them. The
    interval of a share may reach beyond [0, 1]: it stays symmetric, so that the error can be read from it.
    """
    left_out = scores_left_out(generated, reference, rounds=rounds, seed=seed, memory=memory)
    return _intervals(left_out, scores, len(generated), confidence)


def counted_intervals(
    samples: Tensor,
    score: Callable[[Tensor], Mapping[str, float]],
    scores: Mapping[str, float],
    *,
    rounds: int = 50,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of ``scores``, which ``score`` gives of ``samples`` (N, ...): the modes hit and how evenly.

    The same jackknife, with the score made anew without each group. KL's bias at N samples stays in its interval. A
    number of modes that hangs on no group has an interval of no width.
    """
    groups = _groups(len(samples), rounds, seed)
    without = [score(samples[groups != group]) for group in range(int(groups.max()) + 1)]
    left_out = {name: torch.tensor([found[name] for found in without], dtype=torch.float64) for name in without[0]}
    return _intervals(left_out, scores, len(samples), confidence)


def _intervals(
    left_out: Mapping[str, Tensor], scores: Mapping[str, float], samples: int, confidence: float
) -> dict[str, Interval]:
    """The interval of each of ``scores`` from its values without each group."""
    intervals = {}
    for name, values in left_out.items():
        if name in scores:
            groups = len(values)
            error = math.sqrt((groups - 1) / groups * float((values - values.mean()).square().sum()))
            # A share of 0 or 1 shows no spread, yet its interval reaches 3 / N (Hanley and Lippman-Hand 1983).
            error = max(error, 1.5 / samples) if name in SHARES else error
            half = _student(0.5 + confidence / 2, groups - 1) * error
            intervals[name] = (scores[name] - half, scores[name] + half)
    return intervals


def scores_left_out(
    generated: FeatureSet, reference: FeatureSet, *, rounds: int, seed: int, memory: int = MEMORY
) -> dict[str, Tensor]:
    """Each score of the generated samples without one group, for every group: {name: (g,)}, float64.

    KID is that of all samples in one subset, less its constant term; the inception score, where the extractor has
    classes, that of a single split.
    Raises ConfigError for features of different extractors, or too few samples for the neighbours of a score.
    """
    if (generated.extractor, generated.digest) != (reference.extractor, reference.digest):
        raise ConfigError(f"features of {generated.extractor} and {reference.extractor} cannot be compared")
    g, r = generated.features, reference.features
    groups = _groups(len(g), rounds, seed)
    few = _groups(len(g), min(rounds, max(10, int(_FID_WORK / g.shape[1] ** 3))), seed)
    classes = {} if generated.logits is None else {"inception_score": _inception_score(generated.logits, groups)}
    return {
        "fid": _fid(generated, reference, few),
        "kid": _kid(g, r, groups, memory),
        **classes,
        **_precision_density_coverage(g, r, groups, memory),
        "recall": _recall(g, r, groups, memory),
    }


def fid_infinity(generated: FeatureSet, reference: FeatureSet, *, points: int = 15, seed: int = 0) -> float:
    """FID of endlessly many generated samples (Chong and Forsyth 2020): it may come out a little below zero.

    FID's bias falls as 1/N, so a line is fitted to the FIDs of ``points`` random subsets, of evenly spaced sizes from a
    tenth (but twice the dimension, if that leaves half) to all, against 1/N; this is where it meets 1/N = 0. The bias
    that comes from the reference's own count stays. Raises ConfigError for fewer than 20 samples or 2 points.
    """
    n, d = generated.features.shape
    if n < 20 or points < 2:
        raise ConfigError(f"FID at infinity needs at least 20 samples and 2 points, got {n} and {points}")
    distance = _distance_to(reference)
    generator = torch.Generator().manual_seed(seed)
    sizes = np.linspace(max(n // 10, min(2 * d, n // 2)), n, points).round().astype(int)
    found = []
    for size in sizes.tolist():
        x = generated.features[torch.randperm(n, generator=generator)[:size]].double()
        found.append(distance(x.mean(0), x.T.cov()))
    return float(np.polyfit(1 / sizes, found, 1)[1])


def reliability(generated_samples: int, reference_samples: int, features: int) -> dict[str, str]:
    """Why a score means little at these counts and this many features: {score: reason}, empty when all is well."""
    fewest = min(generated_samples, reference_samples)
    found = {}
    if fewest <= features:
        found["fid"] = f"{fewest} samples in {features} dimensions: the covariance is singular, FID far too high"
    elif fewest < 5 * features:
        found["fid"] = f"{fewest} samples in {features} dimensions: biased upwards, compare equal counts only"
    if generated_samples < 4 * features:
        found["fid_infinity"] = f"{generated_samples} samples in {features} dimensions: too few to fit a line through"
    if fewest < 1000:
        found["kid"] = f"{fewest} samples: without bias, but noisy"
        for name in ("precision", "recall", "density", "coverage"):
            found[name] = f"{fewest} samples: too sparse for neighbourhoods to follow the data"
    if generated_samples < 2000:
        found["inception_score"] = f"splits of {generated_samples // 10} samples: biased downwards"
    return found


def _groups(n: int, rounds: int, seed: int) -> Tensor:
    """A random group for each of n samples: (n,), the sizes equal but for one."""
    if min(n, rounds) < 2:
        raise ConfigError(f"intervals need at least 2 groups and 2 samples, got {rounds} and {n}")
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)) % min(rounds, n)


def _without(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``values`` (N, ...) over all samples outside each group, (g, ...), and how many those are, (g,)."""
    count = int(groups.max()) + 1
    inside = torch.zeros(count, *values.shape[1:], dtype=values.dtype).index_add_(0, groups, values)
    return values.sum(0) - inside, len(groups) - groups.bincount(minlength=count)


def _distance_to(reference: FeatureSet) -> Callable[[Tensor, Tensor], float]:
    """The Frechet distance of a mean (d,) and covariance (d, d) to the reference's, whose root is taken once."""
    mu, sigma = (torch.from_numpy(reference.statistics[name]) for name in ("mu", "sigma"))
    values, vectors = torch.linalg.eigh(sigma)
    root = vectors * values.clamp_min(0.0).sqrt()

    def distance(other_mu: Tensor, other_sigma: Tensor) -> float:
        overlap = torch.linalg.eigvalsh(root.T @ other_sigma @ root).clamp_min(0.0).sqrt().sum()
        return float((other_mu - mu).square().sum() + other_sigma.trace() + sigma.trace() - 2 * overlap)

    return distance


def _fid(generated: FeatureSet, reference: FeatureSet, groups: Tensor) -> Tensor:
    distance = _distance_to(reference)
    mu, sigma = (torch.from_numpy(generated.statistics[name]) for name in ("mu", "sigma"))
    found = []
    for group in range(int(groups.max()) + 1):
        x = generated.features[groups == group].double() - mu
        left, total = len(groups) - len(x), x.sum(0)
        # About mu, the others' sums are those of all (0 and (N - 1) sigma) less the group's.
        scatter = (len(groups) - 1) * sigma - x.T @ x - torch.outer(total, total) / left
        found.append(distance(mu - total / left, scatter / (left - 1)))
    return torch.tensor(found, dtype=torch.float64)


def _kid(g: Tensor, r: Tensor, groups: Tensor, memory: int) -> Tensor:
    """MMD^2 = sum_{i != j} k(g_i, g_j) / (m (m - 1)) - 2 mean k(g_i, r_j), without the term of real samples alone."""
    own, real = torch.zeros(2, len(g), dtype=torch.float64)
    for total, others in ((own, g), (real, r)):
        for rows, _, a, b in pairs(g, others, memory):
            total[rows] += _kernel(a, b).sum(1)
    own_diagonal = torch.cat([(x.double().square().mean(1) + 1) ** 3 for x in torch.split(g, 1000)])
    # Outside group b: all pairs, less those with one end in it (from either end), plus those with both in it, which
    # have been taken off twice.
    within = []
    for group in range(int(groups.max()) + 1):
        x = g[groups == group]
        within.append(sum(float(_kernel(a, b).sum()) for _, _, a, b in pairs(x, x, memory)))
    inside = torch.tensor(within, dtype=torch.float64) - _by_group(own_diagonal, groups)
    pairs_with = _by_group(own - own_diagonal, groups)
    left_real, left = _without(real, groups)
    left_own = (own - own_diagonal).sum() - 2 * pairs_with + inside
    kid: Tensor = left_own / (left * (left - 1)) - 2 * left_real / (left * len(r))
    return kid


def _by_group(values: Tensor, groups: Tensor) -> Tensor:
    """Sums of ``values`` (N,) over each group: (g,)."""
    return values.sum(0) - _without(values, groups)[0]


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """(x.y / d + 1)^3 between all rows; two products, as a power is many times slower."""
    base = (a @ b.T).div_(a.shape[1]).add_(1.0)
    return base * base * base


def _inception_score(logits: Tensor, groups: Tensor) -> Tensor:
    """exp(mean sum_y p log p - sum_y q log q) with q the mean of p(y|x)."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    entropy, left = _without((p * log_p).sum(1), groups)
    q = _without(p, groups)[0].clamp_min(0.0) / left[:, None]
    return (entropy / left - torch.xlogy(q, q).sum(1)).exp()


def _precision_density_coverage(g: Tensor, r: Tensor, groups: Tensor, memory: int) -> dict[str, Tensor]:
    """One pass over generated and real samples, for balls around the real ones."""
    groups_of = F.one_hot(groups).float()  # counts below 2^24 are exact in float32
    radii = nearest_others(r, max(NEIGHBOURS, COVERAGE_NEIGHBOURS), memory=memory)[0]
    small, large = (reach(radii[:, k - 1], r) for k in (NEIGHBOURS, COVERAGE_NEIGHBOURS))
    precise, dense = torch.zeros(2, len(g), dtype=torch.float64)
    held = torch.zeros(len(r), groups_of.shape[1])  # generated samples in each ball, by group
    for rows, columns, squares in tiles(g, r, memory):
        precise[rows] = precise[rows].maximum((squares <= small[columns]).any(1).double())
        inside = (squares <= large[columns]).float()
        dense[rows] += inside.sum(1)
        held[columns] += inside.T @ groups_of[rows]
    (precise_left, left), (dense_left, _) = _without(precise, groups), _without(dense, groups)
    return {
        "precision": precise_left / left,
        "density": dense_left / (left * COVERAGE_NEIGHBOURS),
        "coverage": (held.sum(1, keepdim=True) > held).double().mean(0),
    }


def _recall(g: Tensor, r: Tensor, groups: Tensor, memory: int) -> Tensor:
    """Leaving out group b removes its balls, and widens those whose first neighbours are in b to the next ones outside.

    A ball is widened for at most k groups, those of its k neighbours: so it enters as itself for every group but its
    own, and once more, wider, for the group of each neighbour.
    """
    groups_of = F.one_hot(groups).float()
    # Four times as many neighbours as needed: hardly ever are all but two of them in one group.
    distances, indices = nearest_others(g, min(4 * NEIGHBOURS, len(g) - 1), memory=memory)
    labels = groups[indices]
    limit = reach(distances[:, NEIGHBOURS - 1], g)
    wider = []  # a ball's limit without the group of its i-th neighbour, and which group that is unless its own
    for i in range(NEIGHBOURS):
        outside = (labels != labels[:, i : i + 1]).cumsum(1)
        place = (outside < NEIGHBOURS).sum(1, keepdim=True).clamp_max(labels.shape[1] - 1)
        other = (labels[:, i] != groups).float()[:, None]
        wider.append((reach(distances.gather(1, place)[:, 0], g), F.one_hot(labels[:, i], groups_of.shape[1]) * other))
    found = torch.zeros(len(r), groups_of.shape[1])
    for rows, columns, squares in tiles(r, g, memory):
        found[rows] += (squares <= limit[columns]).float() @ (1.0 - groups_of[columns])
        for wide, group in wider:
            found[rows] += (squares <= wide[columns]).float() @ group[columns]
    return (found > 0).double().mean(0)


def _student(share: float, freedom: int) -> float:
    """The quantile of Student's t, by its expansion around the normal one (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)

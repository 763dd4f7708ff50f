"""How close generated images are to real ones: five scores of feature sets, as torch-fidelity has them.

With generated features g ~ N(mu_g, S_g) and real ones r ~ N(mu_r, S_r):

    fid               |mu_g - mu_r|^2 + tr(S_g + S_r - 2 (S_g S_r)^(1/2))           Heusel et al. 2017; lower is better
    kid               unbiased MMD^2 under k(x, y) = (x.y / d + 1)^3, a mean over 100 random subsets
                                                                                   Binkowski et al. 2018; lower
    inception_score   exp E_x KL(p(y|x) || p(y)), a mean over 10 splits             Salimans et al. 2016; higher
    precision         share of generated samples inside the real manifold           Kynkaanniemi et al. 2019; higher
    recall            share of real samples inside the generated manifold           the same

A manifold is the union of balls around its samples that reach to their 3rd nearest neighbour among themselves.
Everything is computed in float64: the first three by torch-fidelity's functions, precision and recall by `neighbours`,
which holds a bounded part of the distance matrix. FID is biased upwards for
few samples: compare only equal counts. An extractor without classes has no logits, and gives no inception score.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from trilemma.errors import ConfigError
from trilemma.measure.features import Extractor, FeatureSet, extract
from trilemma.measure.neighbours import MEMORY, ball_counts, kth_distances

NEIGHBOURS = 3
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
SPLITS = 10
MIN_SAMPLES = SPLITS  # a split of the inception score needs a sample; the other scores need fewer


def fidelity_scores(generated: Tensor, reference: Tensor, extractor: Extractor, *, seed: int = 2020) -> dict[str, Any]:
    """``fid``, ``kid``, ``inception_score``, ``precision``, ``recall`` of uint8 images (N, C, H, W) and (M, C, H, W).

    Raises ConfigError for fewer than 10 images in either set.
    """
    _enough(len(generated), len(reference))
    return fidelity_from_features(extract(generated, extractor), extract(reference, extractor), seed=seed)


def fidelity_from_features(generated: FeatureSet, reference: FeatureSet, *, seed: int = 2020) -> dict[str, Any]:
    """The same five from features at hand. ``seed`` draws KID's subsets and the inception score's splits.

    Each is a float; ``inception_score`` is None for features without logits, as it needs classes.

    Raises ConfigError for fewer than 10 samples in either set, or features of different extractors.
    """
    _enough(len(generated), len(reference))
    _same_extractor(generated, reference)
    g, r = generated.features.double(), reference.features.double()
    subset = _kid_subset_size(generated, reference)
    kid = kid_features_to_metric(g, r, kid_subsets=KID_SUBSETS, kid_subset_size=subset, rng_seed=seed, verbose=False)
    return {
        "fid": fid_only(generated, reference),
        "kid": float(kid[KEY_METRIC_KID_MEAN]),
        "inception_score": _inception_score(generated, seed),
        **precision_recall(generated.features, reference.features),
    }


def precision_recall(generated: Tensor, reference: Tensor, *, memory: int = MEMORY) -> dict[str, float]:
    """``precision`` and ``recall`` of features (M, d) and (N, d), with ``memory`` bytes for what is made of distances.

    Raises ConfigError for fewer than 4 samples in either set.
    """
    shares = {}
    for name, x, centres in (("precision", generated, reference), ("recall", reference, generated)):
        around, _ = ball_counts(x, centres, kth_distances(centres, NEIGHBOURS, memory=memory), memory=memory)
        shares[name] = (around > 0).double().mean().item()
    return shares


def fidelity_protocol(generated: FeatureSet, reference: FeatureSet, *, seed: int = 2020) -> dict[str, Any]:
    """How the five scores of these sets are made: what a second person needs to get the same numbers."""
    return {
        "generated_samples": len(generated),
        "reference_samples": len(reference),
        "extractor": generated.extractor,
        "extractor_digest": generated.digest,
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": _kid_subset_size(generated, reference),
        "inception_score_splits": None if generated.logits is None else SPLITS,
        "precision_recall_neighbours": NEIGHBOURS,
        "metric_seed": seed,
    }


def fid_only(generated: FeatureSet, reference: FeatureSet) -> float:
    """The Frechet distance alone, for probes while training; a set's statistics are computed once and kept."""
    _same_extractor(generated, reference)
    if min(len(generated), len(reference)) < 2:
        raise ConfigError(f"FID needs at least 2 samples a set, got {len(generated)} and {len(reference)}")
    return float(fid_statistics_to_metric(generated.statistics, reference.statistics, verbose=False)[KEY_METRIC_FID])


def _inception_score(generated: FeatureSet, seed: int) -> float | None:
    if generated.logits is None:
        return None
    return float(isc_features_to_metric(generated.logits, splits=SPLITS, rng_seed=seed)[KEY_METRIC_ISC_MEAN])


def _kid_subset_size(generated: FeatureSet, reference: FeatureSet) -> int:
    """1,000 unless a set is smaller; KID is unbiased, so smaller subsets only make it noisier."""
    return min(KID_SUBSET_SIZE, len(generated), len(reference))


def _enough(generated: int, reference: int) -> None:
    if min(generated, reference) < MIN_SAMPLES:
        raise ConfigError(
            f"fidelity needs at least {MIN_SAMPLES} samples a set, "
            f"got {generated} generated and {reference} real: ask for more"
        )


def _same_extractor(generated: FeatureSet, reference: FeatureSet) -> None:
    if (generated.extractor, generated.digest) != (reference.extractor, reference.digest):
        raise ConfigError(
            f"features of {generated.extractor} ({generated.digest}) and {reference.extractor} ({reference.digest}) "
            "cannot be compared: extract both with one extractor"
        )

"""What judges samples: the scores of images against a reference, or the modes of points.

A judge is made once for a reference and takes any samples of its shape, whether a run or another program made them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma.config import require
from trilemma.data import Dataset
from trilemma.data.known import default_root
from trilemma.errors import DataError
from trilemma.measure.cache import See, cached_features
from trilemma.measure.features import STACKED_DATA, Extractor, FeatureSet, default_extractor, extract, load_extractor
from trilemma.measure.fidelity import fidelity_from_features, fidelity_protocol
from trilemma.measure.memorisation import UNSEEN, Audit, audit
from trilemma.measure.modes import mode_scores
from trilemma.measure.neighbours import COVERAGE_NEIGHBOURS, density_coverage
from trilemma.measure.stacked import histogram_scores, stacked_numbers
from trilemma.measure.uncertainty import counted_intervals, fid_infinity, reliability, score_intervals

REFERENCE_SAMPLES = 10_000  # for nearest neighbours; drawn once, by a fixed seed
REFERENCE_SEED = 0
MIN_SAMPLES = 10  # fewer say nothing
FEWEST_UNSEEN = 100  # images, for a hundredth of them to be one
FEWEST_FOR_A_LINE = 20  # samples, to draw FID against their number


@dataclass(frozen=True)
class Trained:
    """What copies are looked for in, whatever the samples are scored against."""

    data: Dataset | None  # the images trained on; None where they are not at hand
    unseen: Dataset | None = None  # images of the same kind that were not trained on, where there are any
    words: str = "training images"  # what ``data`` is, or why there is none


@dataclass(frozen=True)
class Evidence:
    """What lies behind the scores of images: features of both sets, and the nearest training image of each sample.

    Where the training images are not known or not at hand, those of the reference stand in their place.
    """

    features: tuple[FeatureSet, FeatureSet]
    pixels: Audit  # among ``audited``, by pixels
    audited: Tensor  # all training images, uint8 (N, C, H, W)
    seen: Audit  # among ``shown``, by features
    shown: Tensor  # the training images whose features are compared, uint8 (M, C, H, W)


@dataclass(frozen=True)
class Judgement:
    """Scores of one set of samples and how they were made; of images with what lies behind them."""

    scores: dict[str, float | None]  # None: not for this extractor
    protocol: dict[str, Any]
    evidence: Evidence | None = None
    # Points, or the numbers that stacked digits show, and the function that scores them.
    counted: tuple[Tensor, Callable[[Tensor], dict[str, float]]] | None = None


@dataclass(frozen=True)
class Verdict:
    """What eval.json says: scores, the 95 % intervals (low, high) of those that have one, and how they were made."""

    scores: dict[str, float | None]
    intervals: dict[str, list[float]]
    protocol: dict[str, Any]


Judge = Callable[[Tensor], Judgement]


def make_judge(  # noqa: PLR0913
    data: Dataset,
    extractor: str | None,
    weights: Path | None,
    *,
    cache: bool = True,
    reference_samples: int | None = REFERENCE_SAMPLES,
    trained: Trained | None = None,
    see: See | None = None,
) -> Judge:
    """The judge of samples against ``data``: images by an extractor (default: the data's), points by their modes.

    Args:
        cache: keep the reference's features in the user's cache folder, or take them from there.
        reference_samples: how many images of the reference are looked at by the extractor; None: all. As many of the
            training images are, for copies in features.
        trained: where copies are looked for; default ``data``.
        see: what gives the features of images in place of ``extract``; several processes can do it together.

    Raises:
        ConfigError, DataError, ExtractorError: what cannot be judged, before any sample is made.
    """
    require(
        reference_samples is None or reference_samples >= MIN_SAMPLES,
        f"--reference-samples must be all or at least {MIN_SAMPLES}, not {reference_samples}",
    )
    if data.spec.kind == "points":
        require(
            reference_samples == REFERENCE_SAMPLES, "points are scored by their modes: leave out --reference-samples"
        )
        return _points(data, extractor, weights)
    return _images(
        data,
        load_extractor(extractor or default_extractor(data.name, data.spec), weights, spec=data.spec),
        reference_samples,
        trained or Trained(data),
        default_root() / "features" if cache else None,
        see,
    )


def check_reference(data: Dataset) -> None:
    """Refuse a reference that is too small to say anything. Raises DataError."""
    if len(data.x) < MIN_SAMPLES:
        raise DataError(f"{data.name} has {len(data.x)} samples, but scores need {MIN_SAMPLES}: use more data")


def reference_protocol(data: Dataset) -> dict[str, Any]:
    """What the samples are compared with."""
    about = {"data": data.name, "data_digest": data.digest, "split": data.split}
    if data.spec.kind == "points":
        return about
    return about | {
        "size": f"{data.spec.width}x{data.spec.height}",
        "channels": data.spec.channels,
        "resize": data.resize,  # where it had another size
        "reference_seed": REFERENCE_SEED,
    }


def verdict(judgements: Sequence[Judgement]) -> Verdict:
    """The mean scores over sets of samples with Student's intervals; of a single set, a jackknife's."""
    first = judgements[0]
    if len(judgements) == 1:
        given = {name: score for name, score in first.scores.items() if score is not None}
        between = score_intervals(*first.evidence.features, given) if first.evidence is not None else {}
        between |= counted_intervals(*first.counted, given) if first.counted is not None else {}
        return Verdict(first.scores, {name: list(interval) for name, interval in between.items()}, first.protocol)
    found = {name: [judgement.scores[name] for judgement in judgements] for name in first.scores}
    values = {name: [value for value in each if value is not None] for name, each in found.items()}
    known = {name: each for name, each in values.items() if len(each) == len(judgements)}
    means = {name: float(np.mean(each)) for name, each in known.items()}
    intervals = {name: mean_interval(each) for name, each in known.items()}
    return Verdict({name: means.get(name) for name in found}, intervals, first.protocol)


def mean_interval(values: Sequence[float]) -> list[float]:
    """Student's 95 % interval [low, high] of the mean of n values, mean -+ t s / sqrt(n); n must be at least 2."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # here: only repeats need it

    n = len(values)
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return [float(np.mean(values)) - half, float(np.mean(values)) + half]


def drawn(x: Tensor, count: int | None = REFERENCE_SAMPLES) -> Tensor:
    """``count`` of ``x`` (N, ...), drawn once and for all by a fixed seed: sets often lie class by class. All of them
    where there are no more, or count is None."""
    if count is None or len(x) <= count:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(REFERENCE_SEED))[:count]]


def _images(  # noqa: PLR0917
    data: Dataset, extractor: Extractor, samples: int | None, trained: Trained, cache: Path | None, see: See | None
) -> Judge:
    reference = drawn(data.x, samples)
    truth = cached_features(reference, extractor, cache, see)
    audited, shown, known = data.x, reference, truth
    if trained.data is not None and trained.data.digest != data.digest:
        audited, shown = trained.data.x, drawn(trained.data.x, samples)
        known = cached_features(shown, extractor, cache, see)
    unseen = None
    if trained.unseen is not None and len(trained.unseen) >= FEWEST_UNSEEN:
        unseen = drawn(trained.unseen.x, UNSEEN)

    digits = load_extractor("digits") if data.name == STACKED_DATA else None

    def judge(generated: Tensor) -> Judgement:
        seen = (see or extract)(generated, extractor)
        pixels, features = audit(generated, audited, unseen), audit(seen.features, known.features)
        evidence = Evidence((seen, truth), pixels, audited, features, shown)
        scores: dict[str, float | None] = {
            **fidelity_from_features(seen, truth),
            **density_coverage(seen.features, truth.features),
        }
        if len(seen) >= FEWEST_FOR_A_LINE:
            scores["fid_infinity"] = fid_infinity(seen, truth)
        scores["near_copies"] = None if trained.data is None else pixels.scores["near_copies"]
        numbers = None if digits is None else stacked_numbers(generated, digits)
        if numbers is not None:
            scores |= histogram_scores(numbers)
        protocol = fidelity_protocol(seen, truth) | {
            "coverage_neighbours": COVERAGE_NEIGHBOURS,
            "copies": _copies(trained, evidence, 0 if unseen is None else len(unseen)),
            "cautions": reliability(len(seen), len(truth), seen.features.shape[1]),
        }
        return Judgement(scores, protocol, evidence, None if numbers is None else (numbers, histogram_scores))

    return judge


def _copies(trained: Trained, evidence: Evidence, unseen: int) -> dict[str, Any]:
    """Among what copies were looked for, among how many, what stood for unseen images, and what was found."""
    if trained.data is None:
        return {"among": "nothing", "reason": trained.words}
    parts = {"pixels": (evidence.pixels, evidence.audited), "features": (evidence.seen, evidence.shown)}
    each = "the images themselves, each among the others"
    stood = {"pixels": f"{unseen} held-out images" if unseen else each, "features": each}
    return {"among": trained.words} | {
        name: {key: round(value, 4) for key, value in found.scores.items()} | {"images": len(x), "unseen": stood[name]}
        for name, (found, x) in parts.items()
    }


def _points(data: Dataset, name: str | None, weights: Path | None) -> Judge:
    require(name is None and weights is None, "points are scored by their modes: leave out --extractor")
    if data.modes is None or data.sigma is None:
        raise DataError(f"{data.name} has no known modes to score points by")
    modes, sigma = data.modes, data.sigma

    def score(points: Tensor) -> dict[str, float]:
        return mode_scores(points, modes, sigma)

    def judge(generated: Tensor) -> Judgement:
        points = generated.flatten(1)
        return Judgement({**score(points)}, {"generated_samples": len(points)}, counted=(points, score))

    return judge

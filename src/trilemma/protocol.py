"""Which conditions decide a score, and the fingerprint of those that decide quality.

Every score has its protocol beside it. Rows can be ranked by quality only if they agree on what decides quality: the
reference, the counts, the extractor, the settings of the scores, and whether pixels were lost on the way. Times depend
on the machine. What a row does to make its images (its sampler, its network evaluations, its seeds) is what is
compared, so it is no condition.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Affects = Literal["quality", "speed", "training"]

DIGEST = "data_digest"  # of the reference's content


@dataclass(frozen=True)
class Condition:
    """A field of the protocol on which rows must agree."""

    key: str
    name: str  # in words
    affects: Affects
    # Whether the reference's digest decides it: where the digests agree it is only a name, and two names are equal.
    by_digest: bool = False
    # What it was in files written before the field was: there was no other value then. None: the field was always
    # there, and a file without it does not say.
    before: Any = None


CONDITIONS: tuple[Condition, ...] = (
    Condition("data", "data", "quality", by_digest=True),
    Condition(DIGEST, "data digest", "quality"),
    Condition("split", "split", "quality", by_digest=True),
    Condition("size", "size of the reference", "quality", by_digest=True),
    Condition("resize", "resizing of the reference", "quality", by_digest=True),
    Condition("reference_samples", "number of reference samples", "quality"),
    Condition("reference_seed", "choice of the reference samples", "quality", before=0),
    Condition("generated_samples", "number of generated samples", "quality"),
    Condition("lossless", "images kept without loss", "quality", before=True),
    Condition("resized", "resizing of the generated images", "quality", before=False),
    Condition("extractor", "feature extractor", "quality"),
    Condition("extractor_digest", "feature extractor's digest", "quality"),
    Condition("kid_subsets", "number of KID's subsets", "quality"),
    Condition("kid_subset_size", "size of KID's subsets", "quality"),
    Condition("inception_score_splits", "splits of the Inception score", "quality"),
    Condition("precision_recall_neighbours", "neighbours of precision and recall", "quality"),
    Condition("coverage_neighbours", "neighbours of density and coverage", "quality", before=5),
    Condition("metric_seed", "seed of the scores", "quality"),
    Condition("precision", "floating-point type of sampling", "speed", before="float32"),
    Condition("threads", "number of threads", "speed"),
    Condition("hardware", "hardware", "speed"),
)


def fingerprint(protocol: Mapping[str, Any]) -> str:
    """16 hexadecimal digits over what decides the quality scores: equal where they can be compared.

    The start of the sha256 of the conditions as JSON with sorted keys and no spaces, without those not stated and those
    that the reference's digest decides.
    """
    decisive = {
        condition.key: protocol[condition.key]
        for condition in CONDITIONS
        if condition.affects == "quality" and not condition.by_digest and protocol.get(condition.key) is not None
    }
    canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]

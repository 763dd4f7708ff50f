"""The fingerprint: equal exactly where quality scores can be compared."""

from __future__ import annotations

import hashlib

import pytest

from trilemma.protocol import CONDITIONS, fingerprint

DECIDES_QUALITY = {
    "data_digest",
    "reference_samples",
    "reference_seed",
    "generated_samples",
    "lossless",
    "resized",
    "extractor",
    "extractor_digest",
    "coverage_neighbours",
    "kid_subsets",
    "kid_subset_size",
    "inception_score_splits",
    "precision_recall_neighbours",
    "metric_seed",
}
FULL = {condition.key: f"a {condition.key}" for condition in CONDITIONS}
BESIDE = {"seeds": "seed 0", "steps": 50, "nfe_by_network": {"denoiser": 50.0}, "seconds": 3.5, "versions": {}}


@pytest.mark.parametrize("key", [*FULL, *BESIDE])
def test_it_follows_what_decides_quality_and_nothing_else(key: str) -> None:
    before, after = fingerprint({**FULL, **BESIDE}), fingerprint({**FULL, **BESIDE, key: "another"})
    assert (before != after) == (key in DECIDES_QUALITY)


def test_it_is_the_digest_of_canonical_json() -> None:
    text = '{"data_digest":"ab","generated_samples":500,"lossless":true}'
    protocol = {"lossless": True, "generated_samples": 500, "threads": 2, "data_digest": "ab", "extractor": None}
    assert fingerprint(protocol) == hashlib.sha256(text.encode()).hexdigest()[:16]

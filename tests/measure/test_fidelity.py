"""Fidelity scores: the reference implementation's numbers, and what each score means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from golden import golden
from trilemma.errors import ConfigError
from trilemma.measure import fidelity
from trilemma.measure.digits_cnn import sklearn_digits
from trilemma.measure.features import FeatureSet, extract, load_extractor
from trilemma.measure.fidelity import (
    fid_only,
    fidelity_from_features,
    fidelity_protocol,
    fidelity_scores,
    precision_recall,
)


@pytest.fixture(scope="module")
def reference() -> Mapping[str, Any]:
    with np.load(golden("metrics.npz"), allow_pickle=False) as file:
        return dict(file)


def features(
    x: Tensor | np.ndarray[Any, Any], logits: np.ndarray[Any, Any] | None = None, digest: str = "0"
) -> FeatureSet:
    x = torch.as_tensor(x)
    return FeatureSet(x, torch.zeros(len(x), 10) if logits is None else torch.as_tensor(logits), "made-up", digest)


def cloud(n: int, *, d: int = 8, scale: float = 1.0, seed: int = 0) -> FeatureSet:
    return features(scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def test_all_five_match_the_reference(reference: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One way through everything: KID with the subsets the stored numbers were made with."""
    monkeypatch.setattr(fidelity, "KID_SUBSETS", 20)
    monkeypatch.setattr(fidelity, "KID_SUBSET_SIZE", 100)
    fake, real = features(reference["fake"], reference["logits"]), features(reference["real"])
    found = fidelity_from_features(fake, real)
    assert found["fid"] == pytest.approx(float(reference["fid_torch_fidelity_f64"]), rel=1e-6)
    assert found["fid"] == pytest.approx(float(reference["fid_pytorch_fid_f64"]), rel=1e-6)
    assert found["kid"] == pytest.approx(reference["kid_s20x100_f64"][0], rel=1e-5)
    assert found["inception_score"] == pytest.approx(reference["isc_splits10_shuffle1"][0], rel=1e-6)
    precision, recall = reference["prdc_k3_f64"][:2]
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall), abs=1e-6)
    assert all(type(value) is float for value in found.values())


def test_kid_in_one_subset_of_the_smaller_set(reference: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """500 against 600 samples: the subset shrinks from 1,000 to 500, and the protocol says so."""
    monkeypatch.setattr(fidelity, "KID_SUBSETS", 1)
    fake, real = features(reference["fake"]), features(reference["real"])
    assert fidelity_from_features(fake, real)["kid"] == pytest.approx(reference["kid_s1x500_f64"][0], rel=1e-5)
    protocol = fidelity_protocol(fake, real)
    assert protocol["kid_subset_size"] == 500
    assert (protocol["generated_samples"], protocol["reference_samples"]) == (500, 600)


def test_precision_and_recall_with_ties(reference: Mapping[str, Any]) -> None:
    """On a lattice distances tie; a point on a sphere counts as inside."""
    found = fidelity_from_features(features(reference["lat_fake"]), features(reference["lat_real"]))
    expected = reference["prc_torch_fidelity_lattice_k3"]
    assert (found["precision"], found["recall"]) == pytest.approx(tuple(expected[:2]), abs=1e-6)


def test_distance_matrix_in_parts_changes_nothing() -> None:
    a, b = cloud(130).features, cloud(90, scale=1.3, seed=1).features
    assert precision_recall(a, b, memory=5_000) == precision_recall(a, b)


@pytest.mark.parametrize("kind", ["clouds", "digits"])
def test_precision_and_recall_are_the_library_s(kind: str) -> None:
    if kind == "clouds":
        g, r = cloud(900, scale=1.2).features, cloud(700, seed=1).features
    else:
        digits, extractor = sklearn_digits(train=True).x, load_extractor("digits")
        g, r = (extract(part, extractor).features for part in (digits[:250], digits[250:550]))
    expected = prc_features_to_metric(g.double(), r.double(), prc_neighborhood=3, prc_batch_size=100, verbose=False)
    found = precision_recall(g, r)
    assert found["precision"] == pytest.approx(float(expected[KEY_METRIC_PRECISION]), abs=1e-6)
    assert found["recall"] == pytest.approx(float(expected[KEY_METRIC_RECALL]), abs=1e-6)
    assert 0.05 < found["precision"] < 1 and 0.05 < found["recall"] < 1


def test_frechet_distance_of_few_samples(reference: Mapping[str, Any]) -> None:
    """Fewer samples than features: singular covariances, still a finite number and the reference's."""
    found = fid_only(features(reference["fake"][:40]), features(reference["real"][:50]))
    assert found == pytest.approx(float(reference["fid_torch_fidelity_rankdef_40_50"]), rel=1e-3)


def test_frechet_distance_in_closed_form() -> None:
    """Shifting by v and scaling by s: |v|^2 + (1 - s)^2 tr S exactly, for the shift of the scaled means as well."""
    x = cloud(400)
    shift = torch.arange(8.0)
    mu, sigma = x.statistics["mu"], x.statistics["sigma"]
    moved = features(3 * x.features.double() + shift)
    expected = np.sum((2 * mu + shift.numpy()) ** 2) + 4 * np.trace(sigma)
    assert fid_only(moved, x) == pytest.approx(expected, rel=1e-9)


def test_the_same_set_is_perfect() -> None:
    x = cloud(200)
    found = fidelity_from_features(x, x)
    assert found["fid"] == pytest.approx(0, abs=1e-9)
    assert (found["precision"], found["recall"]) == (1, 1)


def test_kid_of_equal_distributions_is_about_zero() -> None:
    """Unbiased, so it may fall on either side of zero; a shift makes it positive."""
    a, b = cloud(200), cloud(200, seed=1)
    assert abs(fidelity_from_features(a, b)["kid"]) < 0.05
    assert fidelity_from_features(features(a.features + 1), b)["kid"] > 0.5


def test_collapse_means_high_precision_and_low_recall() -> None:
    """Generated samples in one small spot inside the data: each is plausible, most of the data is missed."""
    found = fidelity_from_features(cloud(200, scale=0.05), cloud(200, seed=1))
    assert found["precision"] > 0.95
    assert found["recall"] < 0.05


def test_scatter_means_low_precision_and_high_recall() -> None:
    """Generated samples far beyond the data, which their balls still cover: the direction is not swapped."""
    found = fidelity_from_features(cloud(200, scale=6), cloud(200, seed=1))
    assert found["precision"] < 0.1
    assert found["recall"] > 0.9


def test_inception_score_counts_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sure answers in equal parts give the number of classes; the same doubt everywhere gives 1."""
    monkeypatch.setattr(fidelity, "SPLITS", 1)  # in random splits the parts are not quite equal
    sure = features(torch.randn(100, 4), 50.0 * np.eye(10, dtype=np.float32)[np.arange(100) % 10])
    assert fidelity_from_features(sure, sure)["inception_score"] == pytest.approx(10)
    assert fidelity_from_features(cloud(100), cloud(100))["inception_score"] == pytest.approx(1)


def test_images_end_to_end() -> None:
    """Real digits beat noise in every score; the order of arguments is generated, then reference."""
    extractor = load_extractor("digits")
    digits = sklearn_digits(train=True).x
    noise = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8)
    real = fidelity_scores(digits[:300], digits[300:600], extractor)
    bad = fidelity_scores(noise, digits[300:600], extractor)
    assert list(real) == ["fid", "kid", "inception_score", "precision", "recall"]
    assert real["fid"] < 0.2 * bad["fid"]
    assert real["kid"] < bad["kid"]
    assert real["inception_score"] > bad["inception_score"]
    assert real["precision"] > bad["precision"]
    assert real["recall"] > bad["recall"]
    assert all(math.isfinite(value) for value in bad.values())


def test_seed_makes_the_scores_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "KID_SUBSET_SIZE", 100)
    a, b = cloud(150), cloud(150, seed=1)
    one, two, other = (fidelity_from_features(a, b, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one["kid"] != other["kid"]


def test_one_constant_image_gives_finite_scores() -> None:
    """A collapsed generator: every sample the same."""
    constant = extract(torch.zeros(20, 1, 28, 28, dtype=torch.uint8), load_extractor("digits"))
    real = extract(sklearn_digits(train=False).x, load_extractor("digits"))
    assert all(math.isfinite(value) for value in fidelity_from_features(constant, real).values())


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 10 samples"):
        fidelity_from_features(cloud(9), cloud(100))
    with pytest.raises(ConfigError, match="at least 10 samples"):
        fidelity_scores(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), sklearn_digits(True).x, load_extractor("digits"))
    with pytest.raises(ConfigError, match="at least 2 samples"):
        fid_only(cloud(1), cloud(100))
    with pytest.raises(ConfigError, match="cannot be compared"):
        fid_only(cloud(20), features(torch.zeros(20, 8), digest="1"))

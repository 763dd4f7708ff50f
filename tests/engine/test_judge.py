"""Judges: the reference they choose, the mean over several sets of samples, and its interval."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats

from tiny import tiny_data
from trilemma.engine import judge as judging
from trilemma.engine.judge import Judgement, make_judge, mean_interval, reference_protocol, verdict
from trilemma.types import DataSpec


@pytest.mark.parametrize("values", [[1.0, 3.0], [2.0, 2.5, 7.0], [0.1 * k * k for k in range(12)]])
def test_the_interval_is_students(values: list[float]) -> None:
    expected = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx(list(expected), rel=1e-9)


def test_equal_values_have_no_width_and_unknown_ones_no_interval() -> None:
    assert mean_interval([25.0] * 4) == [25.0, 25.0]
    assert all(math.isnan(end) for end in mean_interval([1.0, math.nan]))


def test_one_set_keeps_its_scores_and_several_are_averaged() -> None:
    first, second = (
        Judgement({"fid": 4.0, "modes": 24}, {"generated_samples": 12}),
        Judgement({"fid": 6.0, "modes": 25}, {}),
    )
    alone = verdict([first])
    assert (alone.scores, alone.intervals, alone.protocol) == (first.scores, {}, first.protocol)
    both = verdict([first, second])
    assert both.scores == {"fid": 5.0, "modes": 24.5} and both.protocol == first.protocol
    half = 12.706204736432095  # Student's 97.5 % quantile with one degree of freedom; s / sqrt(n) is 1
    assert both.intervals["fid"] == pytest.approx([5 - half, 5 + half])


def test_a_score_that_is_not_measured_has_no_mean() -> None:
    found = verdict([Judgement({"fid": fid, "inception_score": None}, {}) for fid in (4.0, 6.0)])
    assert found.scores == {"fid": 5.0, "inception_score": None} and found.intervals.keys() == {"fid"}


def test_a_large_reference_is_drawn_once_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    look = judging.cached_features
    monkeypatch.setattr(judging, "cached_features", lambda x, *rest: seen.append(x) or look(x, *rest))
    data = tiny_data()
    made = [make_judge(data, "digits", None, cache=cache, reference_samples=50)(data.x[:12]) for cache in (True, False)]
    assert made[0].scores == made[1].scores and made[0].protocol["reference_samples"] == 50
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:50]
    assert torch.equal(seen[0], data.x[order]) and torch.equal(seen[0], seen[1])


def test_copies_of_the_data_are_told_and_so_is_the_nearest_image() -> None:
    data = tiny_data()
    found = make_judge(data, "digits", None, cache=False)(data.x[300:340])
    assert found.scores["near_copies"] == 1.0 and found.scores["coverage"] > 0.02
    assert found.protocol["copies"]["pixels"]["baseline"] == pytest.approx(0.01, abs=0.002)
    assert found.evidence is not None
    assert torch.equal(data.x[found.evidence.pixels.indices], data.x[300:340])


def test_stacked_digits_are_judged_channel_by_channel() -> None:
    digits = tiny_data().x
    x = torch.cat([digits[:600], digits[600:1200], digits[1197:1797]], 1)
    data = replace(tiny_data(), name="stackedmnist", x=x, spec=DataSpec("images", 3, 8, 8))
    found = make_judge(data, None, None, cache=False)(x[:200])
    assert found.protocol["extractor"] == "stacked-digits"
    assert found.scores["fid"] >= 0 and 0 < found.scores["modes"] <= 200 and found.scores["kl"] > 0
    assert "inception_score" not in found.scores or found.scores["inception_score"] is None
    intervals = verdict([found]).intervals
    assert intervals["kl"][0] < found.scores["kl"] < intervals["kl"][1] and "modes" in intervals


def test_the_cache_is_used_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = replace(tiny_data(), x=tiny_data().x[:20])
    make_judge(data, None, None, cache=False)
    assert list(tmp_path.iterdir()) == []
    make_judge(data, None, None)
    assert len(list((tmp_path / "trilemma" / "features").iterdir())) == 1


def test_what_the_samples_are_compared_with() -> None:
    assert reference_protocol(tiny_data()) == {
        "data": "digits",
        "data_digest": tiny_data().digest,
        "split": "train",
        "size": "8x8",
        "channels": 1,
        "resize": "Lanczos, shorter side, centre cropped",
        "reference_seed": 0,
    }
    assert reference_protocol(tiny_data("gaussians")).keys() == {"data", "data_digest", "split"}

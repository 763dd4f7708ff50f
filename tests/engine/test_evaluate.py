"""Scores of a run: what eval.json holds, what counts as an evaluation, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tiny import tiny_data
from trilemma.engine import evaluate as evaluation
from trilemma.engine.evaluate import eval_path, evaluate, is_current
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, DataError, RunError
from trilemma.types import Sampler

Runs = Callable[[str], Path]
SPEED = {"nfe", "seconds_per_image_batch_1", "images_per_second_batch_100"}
FIDELITY = {"fid", "kid", "inception_score", "precision", "recall"}
MODES = {"modes", "share_within_4_sigma"}


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One repeat at each batch size: how long it takes is the subject of other tests."""
    timed = evaluation.speed_scores
    monkeypatch.setattr(evaluation, "speed_scores", lambda *args, **kwargs: timed(*args, **kwargs, limit_seconds=0.0))


def small(n: int = 100) -> Any:
    """A few digits as the reference."""
    data = tiny_data()
    return replace(data, x=data.x[:n])


def test_an_evaluation_holds_what_it_should(copied: Runs) -> None:
    folder = copied("ddgan")
    result = evaluate(Run(folder), Sampler(), samples=20)
    assert result == json.loads((folder / "eval.json").read_text())
    assert result["row"] == {
        "title": "DDGAN, T = 4",
        "method": "ddgan",
        "family": "denoising GAN",
        "paper": "Xiao et al. 2022",
        "sampler": "4 steps",
        "tag": "default",
    }
    assert result["scores"].keys() == FIDELITY | SPEED
    assert all(isinstance(value, float) for value in result["scores"].values())
    assert result["scores"]["nfe"] == 4
    protocol = result["protocol"]
    assert protocol["data"] == "digits" and protocol["data_digest"] == tiny_data().digest
    assert protocol["generated_samples"] == 20 and protocol["reference_samples"] == len(tiny_data())
    assert protocol["extractor"] and protocol["extractor_digest"] and protocol["steps"] is None
    assert protocol["seeds"] == "seed 0, samples 0 to 19"
    assert protocol["training_images"] == 24 and protocol["training_seconds"] > 0
    assert protocol["parameters"] == sum(
        p.numel() for p in Run(folder).build_method().networks()["generator"].parameters()
    )
    wanted = {"split", "repeats", "threads", "hardware", "versions", "seconds"}
    assert wanted <= protocol.keys()


@pytest.mark.parametrize("name", ["ddgan", "points"])
def test_pictures_lie_beside_it(copied: Runs, name: str) -> None:
    folder = copied(name)
    evaluate(Run(folder), Sampler(), samples=12, data=None if name == "points" else small())
    for picture in ("samples.png", "trajectory.png"):
        with Image.open(folder / "eval" / "default" / picture) as opened:
            opened.load()
            assert min(opened.size) >= 150


def test_another_sampler_has_a_file_of_its_own(copied: Runs) -> None:
    folder = copied("ddpm")
    result = evaluate(Run(folder), Sampler(steps=5), samples=12, data=small())
    assert [path.name for path in folder.glob("eval*.json")] == ["eval-ddim5.json"]
    assert (folder / "eval" / "ddim5" / "samples.png").is_file()
    assert result["row"]["tag"] == "ddim5" and result["row"]["title"] == "DDPM, DDIM, 5 steps"
    assert result["scores"]["nfe"] == 5 and result["protocol"]["steps"] == 5


def test_points_are_scored_by_their_modes(copied: Runs) -> None:
    result = evaluate(Run(copied("points")), Sampler(), samples=50)
    assert result["scores"].keys() == MODES | SPEED
    assert result["protocol"]["generated_samples"] == 50
    with pytest.raises(ConfigError, match="points are scored by their modes"):
        evaluate(Run(copied("ddgan").parent / "copy-points"), Sampler(), extractor_name="digits")


def test_progress_is_told(copied: Runs) -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(Run(copied("points")), Sampler(), samples=150, report=lambda *what: told.append(what))
    assert told == [("samples", 100, 150), ("samples", 150, 150), ("seconds", 150, 150)]


def test_data_that_changed_since_is_refused(copied: Runs) -> None:
    """Whether it was trained on other data, or the data under that name is no more what it was."""
    path = copied("ddgan") / "config.json"
    config = json.loads(path.read_text())
    config["data"]["digest"] = "0" * 64
    path.write_text(json.dumps(config))
    with pytest.raises(RunError, match="trained on digits with digest 000000000000, but that data now has"):
        evaluate(Run(path.parent), Sampler(), samples=12)
    assert not list(path.parent.glob("eval*"))
    evaluate(Run(path.parent), Sampler(), samples=12, data="digits")  # named on purpose


@pytest.mark.parametrize(
    ("name", "settings", "error", "words"),
    [
        ("ddgan", {"samples": 9}, ConfigError, "--samples must be at least 10, not 9"),
        ("ddgan", {"seed": -1}, ConfigError, "seed must be"),
        ("ddgan", {"sampler": Sampler(steps=2)}, ConfigError, "trained for 4 steps"),
        ("ddgan", {"data": "gaussians"}, ConfigError, "gaussians are points"),
        ("ddgan", {"data": "/nonexistent"}, DataError, "unknown data set|none at this one"),
        ("ddgan", {"data": "few"}, DataError, "has 9 samples, but scores need 10"),
        ("points", {"data": "unknown modes"}, DataError, "no known modes"),
        ("points", {"data": "few"}, DataError, "has shape"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_work(
    copied: Runs, name: str, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    known = {"few": small(9), "unknown modes": replace(tiny_data("gaussians"), modes=None)}
    settings = {"sampler": Sampler(), **settings}
    settings["data"] = known.get(settings.get("data", ""), settings.get("data"))
    folder = copied(name)
    with pytest.raises(error, match=words):
        evaluate(Run(folder), **settings)
    assert not list(folder.glob("eval*"))


def test_scores_are_current_until_the_run_is_trained_on(copied: Runs) -> None:
    run, sampler = Run(copied("points")), Sampler()
    method = run.build_method()
    assert not is_current(run, method, sampler)
    evaluate(run, sampler, samples=10)
    assert is_current(run, method, sampler)
    run.log({"step": 99, "images": 999, "seconds": 9.9})
    assert not is_current(run, method, sampler)
    eval_path(run, method, sampler).write_text("{")
    assert not is_current(run, method, sampler)

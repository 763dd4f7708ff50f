"""The library from Python: the names of the package, and races."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trilemma
from tiny import tiny_options
from trilemma import api
from trilemma.config import DataOptions, Recipe, Training, plain
from trilemma.engine import evaluate as evaluation
from trilemma.engine import train as training
from trilemma.engine.loop import Progress
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, DataError, RunError, Terminated
from trilemma.methods.base import Entrant

ROWS = ["ddpm/eval.json", "ddpm/eval-ddim50.json", "ddgan/eval.json", "ddgan-one-shot/eval.json"]


@pytest.fixture(autouse=True)
def _tiny_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    _shrink(monkeypatch)


def _shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe is a tiny one of two steps, and one repeat is timed at each batch size."""

    def tiny(name: str) -> Recipe:
        method = name.split("-", maxsplit=1)[0]
        changes = {"timesteps": 50} if method == "ddpm" else {}
        settings = Training(batch_size=8, images=16, snapshots=1, checkpoint_minutes=0.0)
        return Recipe(method, "", DataOptions(), plain(tiny_options(method, **changes)), settings)

    monkeypatch.setattr(training, "load_recipe", tiny)
    timed = evaluation.speed_scores
    monkeypatch.setattr(evaluation, "speed_scores", lambda *args, **kwargs: timed(*args, **kwargs, limit_seconds=0.0))


def test_the_public_names() -> None:
    names = "bench compare convert evaluate export forecast load race train verify_resume"
    assert trilemma.__all__ == names.split()
    for name in trilemma.__all__:
        assert getattr(trilemma, name) is getattr(api, name)
        assert getattr(trilemma, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
        trilemma.tarin  # noqa: B018
    assert importlib.import_module("trilemma").__version__


def test_from_training_to_comparison(tmp_path: Path) -> None:
    seen: list[int] = []
    run = trilemma.train("ddgan", data="digits", images=24, out=tmp_path / "a", report=lambda p: seen.append(p.images))
    assert run == tmp_path / "a" and seen[-1] == 24
    images = trilemma.load(run).sample(6, seed=0)
    assert images.shape == (6, 8, 8, 1) and images.dtype == np.uint8
    scores = trilemma.evaluate(run, samples=12)["scores"]
    assert scores["nfe"] == 4
    table = trilemma.compare([run], out=tmp_path / "page.html")
    assert table.row_count == 1 and (tmp_path / "page.html").is_file()


def test_data_given_as_an_object(tmp_path: Path) -> None:
    from trilemma.data import load_data

    loaded: list[Any] = []
    run = trilemma.train("ddgan", load_data("digits", size=16), out=tmp_path / "a", on_data=loaded.append)
    assert loaded[0].spec.height == 16
    assert trilemma.load(run).sample(2).shape == (2, 16, 16, 1)


def test_the_default_folder_is_named_after_method_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert trilemma.train("ddgan", "digits") == Path("runs/ddgan-digits")


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(tmp_path: Path, seed: int) -> None:
    with pytest.raises(ConfigError, match="seed must be from 0 to 2147483647"):
        trilemma.train("ddgan", "digits", seed=seed, out=tmp_path / "a")
    assert not list(tmp_path.iterdir())


# Races


def times(folder: Path) -> dict[str, int]:
    """When each file of the race was written, but for the page."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "report.html")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="module")
def first_race(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a race on digits."""
    folder = tmp_path_factory.mktemp("race") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        _shrink(patch)
        trilemma.race("digits", out=folder, samples=12)
    return folder


@pytest.fixture
def finished(first_race: Path, tmp_path: Path) -> Path:
    """A copy of that race for one test."""
    return Path(shutil.copytree(first_race, tmp_path / "race"))


def test_a_race_has_a_row_for_each_entrant_and_sampler(finished: Path) -> None:
    folder = finished
    table, page = trilemma.race("digits", out=folder, samples=12, resume=True)
    assert table.row_count == 4
    assert page == folder / "report.html" and page.is_file()
    assert all((folder / row).is_file() for row in ROWS)
    configs = [Run(folder / name).config() for name in ("ddpm", "ddgan", "ddgan-one-shot")]
    assert [config["options"].get("num_timesteps") for config in configs] == [None, 4, 1]
    assert len({config["data"]["digest"] for config in configs}) == 1
    assert {config["training"]["images"] for config in configs} == {16}


def test_a_finished_race_is_kept(finished: Path) -> None:
    folder = finished
    before = times(folder)
    with pytest.raises(RunError, match="ddpm, .*from an earlier race: go on with --resume"):
        trilemma.race("digits", out=folder, samples=12)
    table, _ = trilemma.race("digits", out=folder, samples=12, resume=True)
    assert table.row_count == 4 and times(folder) == before


def test_a_race_on_other_data_does_not_go_on(finished: Path) -> None:
    with pytest.raises(RunError, match="was trained with another data"):
        trilemma.race("digits", out=finished, size=16, resume=True)


def test_only_what_is_missing_is_done_again(finished: Path) -> None:
    folder = finished
    before = times(folder)
    (folder / "ddpm" / "eval-ddim50.json").unlink()
    trilemma.race("digits", out=folder, samples=12, resume=True)
    changed = {name for name, when in times(folder).items() if when != before[name]}
    pictures = {f"ddpm/eval/ddim50/{name}.png" for name in ("samples", "trajectory", "neighbours", "worst")}
    assert changed == {"ddpm/eval-ddim50.json", *pictures}


def test_a_longer_budget_trains_on_and_scores_anew(finished: Path) -> None:
    folder = finished
    before = times(folder)
    trilemma.race("digits", ["ddgan"], out=folder, images=32, samples=12, resume=True)
    after = times(folder)
    for row in ("ddgan", "ddgan-one-shot"):
        assert Run(folder / row).read_log()[-1]["images"] == 32
        assert after[f"{row}/eval.json"] != before[f"{row}/eval.json"]
    assert after["ddpm/eval.json"] == before["ddpm/eval.json"]


def test_an_interrupted_race_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise Stopped

    told: list[str] = []

    def on_train(row: api.RaceRow) -> Any:
        told.append(row.folder.name)
        return stop if row.folder.name == "ddgan-one-shot" else api.quiet

    with pytest.raises(Stopped):
        trilemma.race("digits", ["ddgan"], out=tmp_path, samples=12, on_train=on_train)
    assert told == ["ddgan", "ddgan-one-shot"]
    before = times(tmp_path / "ddgan")
    table, _ = trilemma.race("digits", ["ddgan"], out=tmp_path, samples=12, resume=True)
    assert table.row_count == 2 and times(tmp_path / "ddgan") == before
    assert [record["step"] for record in Run(tmp_path / "ddgan-one-shot").read_log()] == [1, 2]


def test_a_signal_ends_a_race_once_the_row_is_saved(tmp_path: Path) -> None:
    def on_train(row: api.RaceRow) -> Any:
        second = row.folder.name == "ddgan-one-shot"
        return lambda progress: os.kill(os.getpid(), signal.SIGTERM) if second and progress.step == 1 else None

    with pytest.raises(Terminated, match="ddgan-one-shot: stopped after 1 step, all saved: go on .* --resume"):
        trilemma.race("digits", ["ddgan"], out=tmp_path, samples=12, on_train=on_train)
    assert (tmp_path / "ddgan" / "eval.json").is_file() and not (tmp_path / "report.html").exists()
    table, _ = trilemma.race("digits", ["ddgan"], out=tmp_path, samples=12, resume=True)
    assert table.row_count == 2
    assert [record["step"] for record in Run(tmp_path / "ddgan-one-shot").read_log()] == [1, 2]


@pytest.mark.parametrize(
    ("data", "settings", "error", "words"),
    [
        ("digits", {"methods": ["ddgan", "ddgan"]}, ConfigError, "takes each method once"),
        ("digits", {"methods": ["gan"]}, ConfigError, "unknown method 'gan'"),
        ("digits", {"minutes": 1.0, "images": 5}, ConfigError, "not both"),
        ("nothing", {}, DataError, "unknown data set"),
    ],
)
def test_what_cannot_be_raced_is_refused_before_any_work(
    tmp_path: Path, data: str, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        trilemma.race(data, out=tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_points_race_by_their_modes(tmp_path: Path) -> None:
    table, _ = trilemma.race("gaussians", ["ddgan"], out=tmp_path, samples=50)
    assert table.row_count == 2


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ([{"minutes": 5.0}, {"minutes": 12.0}], (12.0, None)),
        ([{"images": 90}, {"images": 100}], (None, 100)),
    ],
)
def test_a_race_gives_all_rows_one_budget(budgets: list[dict[str, Any]], expected: tuple[Any, Any]) -> None:
    """Without a budget: the largest of the recipes', so that no row is compared with one trained for less."""
    assert api._race_budget([_row(**budget) for budget in budgets]) == expected


def test_a_race_between_minutes_and_images_has_to_be_told_which() -> None:
    with pytest.raises(ConfigError, match="--minutes or --images"):
        api._race_budget([_row(minutes=1.0), _row(images=10)])


def _row(**budget: Any) -> api.RaceRow:
    recipe = Recipe("ddgan", training=Training(**budget))
    return api.RaceRow("ddgan", Entrant(), Path("run"), None, "recipe", recipe)

"""The speed protocol of trained runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trilemma.engine import bench as module
from trilemma.engine.bench import bench
from trilemma.engine.generator import Generator
from trilemma.errors import ConfigError, RunError, TrilemmaError
from trilemma.measure.flops import FlopCounter
from trilemma.measure.roofline import Roofline, measure_roofline

Runs = Callable[[str], Path]
ROOF = Roofline(matmul=1e9, convolution=4e9)


@pytest.fixture
def roof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose best is known."""
    monkeypatch.setattr(module, "measure_roofline", lambda device: ROOF)


def quick(runs: list[Path], **changes: Any) -> list[dict[str, Any]]:
    return bench(runs, **{"batches": [2], "repeats": 2, "limit_seconds": 5.0, **changes})


def test_one_entry_a_batch_and_batch_1_always(copied: Runs, roof: None) -> None:
    run = copied("ddgan")
    (result,) = quick([run], batches=[6, 2, 2])
    assert json.loads((run / "bench.json").read_text()) == result
    (row,) = result["rows"]
    assert [entry["batch"] for entry in row["batches"]] == [1, 2, 6]
    assert (row["title"], row["sampler"], row["tag"], row["nfe"]) == ("DDGAN, T = 4", "4 steps", "default", 4)
    for entry in row["batches"]:
        low, high = entry["images_per_second_quartiles"]
        assert 0 < low <= entry["images_per_second"] <= high and entry["repeats"] == 2
        expected = row["flops_per_image"] * entry["images_per_second"] / ROOF.best
        assert entry["share_of_roofline"] == pytest.approx(expected)
    low, high = row["seconds_per_image_batch_1_quartiles"]
    assert low <= row["seconds_per_image_batch_1"] <= high
    assert row["seconds_per_image_batch_1"] == pytest.approx(1 / row["batches"][0]["images_per_second"])


def test_the_floating_point_type_is_that_of_the_weights(copied: Runs, roof: None) -> None:
    """As it would be for a run in half precision, of which one network is enough."""
    generator = Generator.load(copied("ddgan"))
    assert generator.precision == "float32"
    generator.method.generator.bfloat16()
    speeds: Any = [SimpleNamespace(memory=SimpleNamespace(kind="none"))]
    assert module._protocol(generator, ROOF, speeds, 1, 1.0)["precision"] == "bfloat16"


def test_flops_are_those_of_the_network_times_its_evaluations(copied: Runs, roof: None) -> None:
    run = copied("ddgan")
    method = Generator.load(run).method
    x, t, z = torch.zeros(1, *method.spec.shape), torch.zeros(1, dtype=torch.long), torch.zeros(1, method.nz)
    with torch.inference_mode(), FlopCounter() as counter:
        method.generator(x, t, z)
    (row,) = quick([run])[0]["rows"]
    assert row["flops_per_image"] == 4 * counter.total == row["flops_by_network"]["generator"] > 0


def test_a_network_that_is_no_evaluation_still_costs(copied: Runs, roof: None) -> None:
    (row,) = quick([copied("spigan")])[0]["rows"]
    assert row["nfe"] == 1
    assert row["flops_by_network"]["mapping"] > 0
    assert row["flops_per_image"] == sum(row["flops_by_network"].values())


def test_steps_are_measured_where_a_run_offers_them(copied: Runs, roof: None) -> None:
    ddpm, ddgan = quick([copied("ddpm"), copied("ddgan")], steps=[2, 4, 2], batches=[1], repeats=1)
    assert [row["tag"] for row in ddpm["rows"]] == ["default", "ddim2", "ddim4"]
    assert [row["nfe"] for row in ddpm["rows"]] == [20, 2, 4]
    whole, two, _ = (row["flops_per_image"] for row in ddpm["rows"])
    assert whole == 10 * two
    assert [row["tag"] for row in ddgan["rows"]] == ["default"]  # 4 steps are its default, 2 it has not


def test_steps_that_no_run_offers_are_refused(copied: Runs) -> None:
    run = copied("ddgan")
    with pytest.raises(ConfigError, match="trained for 4 steps, not 3"):
        quick([run], steps=[4, 3])
    assert not (run / "bench.json").exists()


def test_threads_are_stated_and_given_back(copied: Runs, roof: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    monkeypatch.setattr(module, "sweep", lambda *args, **kwargs: seen.append(torch.get_num_threads()) or [])
    with pytest.raises(IndexError):  # an empty sweep: even then the threads are given back
        quick([copied("points")], threads=before + 1)
    assert seen == [before + 1] and torch.get_num_threads() == before


def test_the_protocol_says_how(copied: Runs, roof: None) -> None:
    (result,) = quick([copied("points")], threads=1)
    protocol = result["protocol"]
    assert protocol["threads"] == protocol["hardware"]["threads"] == 1
    assert protocol["roofline"] == {"matmul_flops_per_second": 1e9, "convolution_flops_per_second": 4e9}
    assert (protocol["data"], protocol["shape"], protocol["device"]) == ("gaussians", [2, 1, 1], "cpu")
    assert protocol["repeats"] == 2 and protocol["limit_seconds"] == 5.0
    assert "2 a multiply-add" in protocol["flops"] and protocol["memory"] and protocol["versions"]["torch"]


def test_the_share_of_a_measured_roof(copied: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real probe in the same process."""
    monkeypatch.setattr(module, "measure_roofline", partial(measure_roofline, limit_seconds=0))
    (row,) = quick([copied("points")], repeats=1)[0]["rows"]
    assert all(0 < entry["share_of_roofline"] < 1.5 for entry in row["batches"])


def test_progress_reaches_the_end(copied: Runs, roof: None) -> None:
    seen: list[tuple[int, int]] = []
    quick([copied("points")], batches=[2, 3], report=lambda what, done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": [4, 0]}, "batches must be at least 1, not 4,0"),
        ({"batches": []}, "batches must be at least 1, not none"),
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"repeats": 0}, "repeats must be at least 1, not 0"),
        ({"limit_seconds": -1.0}, "seconds must not be negative, not -1"),
    ],
)
def test_bad_settings_are_refused(trained: Runs, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        quick([trained("points")], **changes)
    assert not (trained("points") / "bench.json").exists()


def test_nothing_is_measured_when_one_run_is_missing(copied: Runs, tmp_path: Path) -> None:
    run = copied("points")
    for runs, words in (([run, tmp_path / "none"], "no run"), ([], "nothing to measure: give at least one run")):
        with pytest.raises(TrilemmaError, match=words) as caught:
            quick(runs)
        assert isinstance(caught.value, RunError)
    assert not (run / "bench.json").exists()

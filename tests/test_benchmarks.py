"""The benchmarks run, count and compare as they say; on networks of toy size."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tiny import SPEC, tiny_options, tiny_plan
from trilemma.config import plain
from trilemma.engine import export as exporting
from trilemma.engine.train import train
from trilemma.errors import ConfigError
from trilemma.measure.flops import FlopCounter
from trilemma.measure.memory import PeakMemory
from trilemma.measure.roofline import Roofline
from trilemma.methods import method_names
from trilemma.methods.base import Tools
from trilemma.types import Batch

ROOT = Path(__file__).resolve().parents[1]
ROOF = Roofline(1e9, 2e9)


class Parts:
    """The files; they are no part of the package."""

    cases: ModuleType
    growth: ModuleType
    int8: ModuleType
    starting: ModuleType
    suite: ModuleType
    versus: ModuleType
    main: ModuleType


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.syspath_prepend(str(ROOT))
    import benchmarks.__main__
    import benchmarks.cases
    import benchmarks.growth
    import benchmarks.int8
    import benchmarks.starting
    import benchmarks.suite
    import benchmarks.versus

    found = Parts()
    found.cases, found.suite, found.main = benchmarks.cases, benchmarks.suite, benchmarks.__main__
    found.growth, found.int8, found.versus = benchmarks.growth, benchmarks.int8, benchmarks.versus
    found.starting = benchmarks.starting
    monkeypatch.setattr(found.growth, "measure_roofline", lambda *_, **__: ROOF)
    monkeypatch.setattr(found.suite, "measure_roofline", lambda *_, **__: ROOF)
    monkeypatch.setattr(found.suite, "measure_convolution", lambda *_, **__: 1e9)
    return found


def toy(parts: Parts, name: str = "ddgan", reference: Any = None, **changes: Any) -> Any:
    return parts.cases.Case(f"{name}-toy", name, plain(tiny_options(name, **changes)), SPEC, 4, reference)


def settings(parts: Parts) -> Any:
    return parts.suite.Settings(torch.device("cpu"), 0.0, 1, (1, 3))


def test_networks_of_the_reference_have_its_sizes(parts: Parts) -> None:
    sizes = {}
    for case in parts.cases.cases():
        if case.reference is not None:
            networks = case.build().networks()
            sizes[case.name] = [round(sum(w.numel() for w in n.parameters()) / 1e6, 2) for n in networks.values()]
    assert sizes == {"ddgan-gray32": [2.50, 0.99], "ddgan-cifar10": [48.43, 12.74]}


def test_every_recipe_builds(parts: Parts) -> None:
    names = [case.name for case in parts.cases.cases()]
    assert len(set(names)) == len(names)
    assert {case.method for case in parts.cases.cases()} == set(method_names())
    assert all(case.build().networks() for case in parts.cases.cases() if case.name.endswith("-mnist"))


def test_networks_for_256_pixels_are_measured_only_where_asked_for(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    large = {case.name for case in parts.cases.cases() if case.large}
    assert large == {"ddgan-celebahq256", "ddgan-celebahq256-recomputing"}
    asked: list[set[str]] = []

    def run(chosen: Any, *args: Any, **kwargs: Any) -> None:
        asked.append({case.name for case in chosen})
        raise ConfigError("enough")

    monkeypatch.setattr(parts.suite, "run", run)
    for words in ([], ["--only", ",".join(large)]):
        with pytest.raises(ConfigError, match="enough"):
            parts.main.main(words)
    assert "ddgan-cifar10" in asked[0] and not asked[0] & large
    assert asked[1] == large


@pytest.mark.parametrize("name", ["ddgan", "spigan", "stylegan2", "vae"])
def test_a_dry_run(parts: Parts, name: str) -> None:
    case = toy(parts, name, parts.cases.Reference(2.0, 4.0))
    result = parts.suite.run([case], settings(parts), evaluate=False, report=lambda _: None)
    assert [(row["kind"], row["batch"]) for row in result["rows"]] == [("train", 4), ("sample", 1), ("sample", 3)]
    for row in result["rows"]:
        assert row["images_per_second"] > 0 and row["flops_per_image"] > 0 and row["repeats"] == 1
        assert row["share_of_roofline"] == pytest.approx(row["flops_per_image"] * row["images_per_second"] / 2e9)
    shares = result["rows"][0]["time_by_kind"]
    assert sum(shares.values()) == pytest.approx(1.0) and {"convolution", "convolution, backward"} <= set(shares)
    scale = 2e9 / 320e9
    train, _, sample = (row["images_per_second"] for row in result["rows"])
    assert result["reference"][case.name] == {
        "train": pytest.approx(train / (2.0 * scale)),
        "sample": pytest.approx(sample / (4.0 * scale)),
    }
    convolutions = result["convolutions"][case.name]
    assert convolutions["flops_per_second"] == pytest.approx(1e9) and convolutions[
        "share_of_roofline"
    ] == pytest.approx(0.5)
    assert sum(shape["share_of_work"] for shape in convolutions["shapes"]) <= 1 + 1e-9
    json.dumps(result)


def test_lazy_penalties_count_as_often_as_they_occur(parts: Parts) -> None:
    case = toy(parts, "ddgan", lazy_reg=2, r1_gamma=1.0)
    found = parts.suite.training_flops(case, settings(parts))
    method = case.build()
    lent = Tools(method.networks(), method.optimizers(), lambda loss: loss.backward())
    counted = []
    for _ in range(2):
        with FlopCounter() as counter:
            method.step(Batch(torch.zeros(4, *SPEC.shape)), 0.5, lent)
        counted.append(counter.total)
    assert counted[0] > counted[1] > 0
    assert found == pytest.approx(sum(counted) / 2 / 4)


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, {0: 1.0}),
        ({"lazy_reg": 4}, {0: 1 / 4, 1: 3 / 4}),
        ({"lazy_reg": 4, "path_every": 6, "path_weight": 0.0}, {0: 1 / 4, 1: 3 / 4}),
        ({"lazy_reg": 4, "path_every": 6, "path_weight": 1.0}, {0: 1 / 12, 1: 8 / 12, 4: 2 / 12, 6: 1 / 12}),
        ({"lazy_reg": 16, "path_every": 4, "path_weight": 1.0}, {0: 1 / 16, 1: 12 / 16, 4: 3 / 16}),
    ],
)
def test_steps_of_a_kind_are_weighed_by_how_often_they_come(
    parts: Parts, options: dict[str, float], shares: dict[int, float]
) -> None:
    assert parts.suite.kinds_of_steps(SimpleNamespace(**options)) == pytest.approx(shares)


def test_scoring_is_measured(parts: Parts) -> None:
    row = parts.suite.evaluation(ROOF, settings(parts), images=8)
    assert (row["kind"], row["batch"]) == ("evaluate", 8) and row["flops_per_image"] > 1e5


def line(speed: float, share: float, **changes: Any) -> dict[str, Any]:
    return {
        "case": "a",
        "kind": "train",
        "batch": 4,
        "images_per_second": speed,
        "share_of_roofline": share,
        "flops_per_image": 1e9,
    } | changes


def test_results_are_compared_with_the_committed_ones(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    assert parts.main.committed(path) == {}
    path.write_text(json.dumps({"rows": [line(10.0, 0.5)]}))
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    path.write_text("written since")
    before = parts.main.committed(path)
    result = {"rows": [line(20.0, 0.25), line(1.0, 1.0, kind="sample")], "reference": {"a": {}}}
    assert parts.main.ratios(result, before) == {("a", "train", 4): (2.0, 0.5)}
    (table,) = parts.main.tables(result, before)
    assert [list(column.cells) for column in table.columns][-2:] == [["x 2.00", ""], ["x 0.50", ""]]
    result["reference"] = {"a": {"train": 1.5, "sample": math.pi}}
    _, other = parts.main.tables(result, before)
    assert [list(column.cells) for column in other.columns] == [["a"], ["1.50"], ["3.14"]]


def test_the_command(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(parts.main, "RESULTS", tmp_path)
    monkeypatch.setattr(parts.cases, "cases", lambda: [toy(parts, "vae")])
    words = ["--only", "vae-toy", "--seconds", "0", "--batches", "1,2", "--repeats", "1", "--runtimes"]
    parts.main.main([*words, ""])
    assert not list(tmp_path.iterdir())
    parts.main.main([*words, "exported", "--name", "here"])
    result = json.loads((tmp_path / "here.json").read_text())
    assert {"hardware", "versions", "roofline", "rows", "parameters", "device"} <= set(result)
    kinds = [(row["kind"], row["batch"]) for row in result["rows"]]
    sampled = [("sample", 1), ("sample", 2), ("sample, exported", 1), ("sample, exported", 2)]
    assert kinds == [("train", 4), *sampled]
    assert all(row["difference"] < 1e-4 for row in result["rows"][-2:])
    assert result["rows"][1]["flops_per_image"] == result["rows"][-1]["flops_per_image"]
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "here.json")
    with pytest.raises(ConfigError, match="unknown case 'vae-tow': did you mean 'vae-toy'"):
        parts.main.main(["--only", "vae-tow"])
    for wrong in (["--batches", "1,x"], ["--repeats", "0"], ["--threads", "0"], ["--seconds", "-1"]):
        with pytest.raises(ConfigError, match="--batches, --repeats and --threads take whole numbers from 1"):
            parts.main.main(wrong)
    for wrong, words_of_it in (
        (["--device", "abacus"], "--device abacus: .*give cpu, or cuda"),
        (["--runtimes", "onnx"], "unknown runtime 'onnx': did you mean 'onnxruntime'"),
    ):
        with pytest.raises(ConfigError, match=words_of_it):
            parts.main.main(wrong)


def test_runtimes_that_are_not_there_are_named(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporting.PACKAGES, "openvino", ("json", "no_such_runtime"))
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(ConfigError, match="--runtimes openvino: not installed; pip install json no_such_runtime"):
        parts.main.chosen_runtimes("exported,openvino", cpu)
    assert parts.main.chosen_runtimes("exported", cpu) == ["exported"]
    assert "exported" in parts.main.chosen_runtimes(None, cpu) and parts.main.chosen_runtimes(None, cuda) == []
    with pytest.raises(ConfigError, match="run on the CPU, not on cuda"):
        parts.main.chosen_runtimes("exported", cuda)


def test_a_sampler_that_cannot_be_exported_is_told_and_left_out(parts: Parts) -> None:
    case = toy(parts, "spigan", mapping={"dim": 8, "layers": 2, "solver": {"solver": "dopri5"}})
    told: list[str] = []
    chosen = dataclasses.replace(settings(parts), runtimes=("exported",), batches=(1,))
    assert parts.suite.exported(case, 1.0, ROOF, chosen, told.append) == []
    assert len(told) == 1 and told[0].startswith("spigan-toy, exported: dopri5 chooses its steps")


def crash(*_: Any) -> None:
    """What a runtime that crashes does to its process."""
    os._exit(139)


def test_a_runtime_that_crashes_is_told_and_leaves_the_others_their_figures(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(parts.suite, "exported_by", crash)
    chosen = dataclasses.replace(settings(parts), runtimes=("exported", "onnxruntime"), batches=(1,))
    assert parts.suite.exported(toy(parts, "spigan"), 1.0, ROOF, chosen, told.append) == []
    assert [line.split(":")[0] for line in told] == ["spigan-toy, exported", "spigan-toy, onnxruntime"]
    assert all("process died" in line for line in told)


def test_what_is_computed_again_counts_once(parts: Parts) -> None:
    case = toy(parts, "ddpm")
    again = parts.cases.recomputing(case)
    (row,) = parts.suite.run([again], settings(parts), evaluate=False, report=lambda _: None)["rows"]
    assert (row["case"], row["kind"]) == ("ddpm-toy-recomputing", "train")
    assert row["flops_per_image"] == parts.suite.training_flops(case, settings(parts))
    trainer, less = parts.suite.Trainer(case, torch.device("cpu")), row["memory"]["needed_mib"]
    needed = parts.suite.training_memory(trainer, torch.device("cpu"))["needed_mib"]
    assert needed["weights"] == less["weights"] == pytest.approx(needed["gradients"], rel=0.05)
    assert 0 < less["activations"] < needed["activations"]
    assert needed["optimizers"] == pytest.approx(2 * needed["weights"], rel=0.05)


def test_the_peak_is_told_beside_what_is_needed(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step takes comes on top of what lies there between steps."""

    class Told(PeakMemory):
        highest: float | None = 150.0

        def __exit__(self, *_: object) -> None:
            self.before_mib, self.mib = 50.0, self.highest

    monkeypatch.setattr(parts.suite, "PeakMemory", Told)
    trainer = parts.suite.Trainer(toy(parts, "vae"), torch.device("cpu"))
    found = parts.suite.training_memory(trainer, torch.device("cpu"))
    resting = sum(found["needed_mib"][name] for name in ("weights", "gradients", "optimizers"))
    assert found["peak_mib"] == pytest.approx(100.0 + resting, rel=1e-3)
    assert found["peak_over_needed"] == pytest.approx(found["peak_mib"] / sum(found["needed_mib"].values()))
    Told.highest = None
    assert parts.suite.training_memory(trainer, torch.device("cpu"))["peak_over_needed"] is None


def test_precision_is_what_networks_compute_in(parts: Parts) -> None:
    chosen = dataclasses.replace(settings(parts), precision="bf16")
    seen = []
    case = toy(parts)
    with parts.suite.computed_in(chosen):
        seen.append(torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype)
        assert parts.suite.sampling(case, case.build(), ROOF, chosen)[0]["images_per_second"] > 0
    seen.append(torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype)
    assert seen == [torch.bfloat16, torch.float32]
    before = torch.backends.cudnn.allow_tf32
    with parts.suite.computed_in(dataclasses.replace(chosen, precision="fp32")):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_compiled_networks_are_timed_beside_the_others_and_left_as_they_were(parts: Parts) -> None:
    case = toy(parts)
    method = case.build()
    rows = parts.suite.sampling(case, method, ROOF, dataclasses.replace(settings(parts), backend="eager"))
    batches = settings(parts).batches
    assert [row["kind"] for row in rows] == ["sample"] * len(batches) + ["sample, compiled by eager"] * len(batches)
    assert method.generator._compiled_call_impl is None


def test_names_of_machines_are_names_of_files(parts: Parts) -> None:
    assert parts.main.slug("Some(R) CPU @ 2.0GHz") == "some-r-cpu-2-0ghz"
    assert parts.main.slug("  ") == "machine"


def test_growth_is_measured_along_every_axis(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    growth = parts.growth
    monkeypatch.setattr(growth, "RESULTS", tmp_path)
    monkeypatch.setattr(growth, "AXES", {"side": (32,), "T": (1, 2), "batch": (1, 2)})
    monkeypatch.setattr(growth, "_drawn", lambda points, path: path)
    growth.main(["--seconds", "0", "--sides", "32,64", "--name", "here"])
    result = json.loads((tmp_path / "growth-here.json").read_text())
    flops = {(p["axis"], p["value"], p["kind"]): p["flops_per_image"] for p in result["points"]}
    assert flops["T", 2, "sample"] == 2 * flops["T", 1, "sample"]
    assert flops["T", 2, "train"] == flops["T", 1, "train"]
    assert 3.9 < flops["side", 64, "train"] / flops["side", 32, "train"] < 4.5  # attention in the middle grows faster
    assert {axis for axis, _, _ in flops} == {"side", "T", "batch", "threads"}
    assert result["exponents"].keys() == {"side, train", "side, sample", "T, sample"}
    assert "side, train: seconds grow as FLOPs to the power" in capsys.readouterr().out
    assert len(growth.figure(result["points"])["data"]) == 4 * 4
    for wrong in (["--sides", "32,x"], ["--seconds", "-1"]):
        with pytest.raises(ConfigError, match="--sides takes whole numbers between commas"):
            growth.main(wrong)


def test_an_exponent_is_the_slope(parts: Parts) -> None:
    points = [{"flops_per_image": f, "seconds_per_image": 3.0 * f**1.5} for f in (1e6, 1e7, 1e8)]
    assert parts.growth.exponent(points) == pytest.approx(1.5)
    assert parts.growth.exponent([points[0], points[0]]) is None


def test_eight_bits_are_scored_and_timed(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    train(tiny_plan("ddgan", 8, "digits"), tmp_path / "run")
    asked: list[dict[str, Any]] = []

    def export(run: Path, **settings: Any) -> Any:
        asked.append(settings)
        return SimpleNamespace(scores={"fid": (2.0, 2.5), "recall": (0.5, 0.25)})

    monkeypatch.setattr(parts.int8, "RESULTS", tmp_path)
    monkeypatch.setattr(parts.int8, "export", export)
    monkeypatch.setattr(parts.int8, "runtimes", lambda: ["exported"])
    parts.int8.main([str(tmp_path / "run"), "--batch", "2", "--samples", "20", "--seconds", "0", "--name", "here"])
    assert asked[0]["int8"].samples == 20 and asked[0]["int8"].fid_rise == math.inf and asked[0]["batch"] == 2
    (row,) = json.loads((tmp_path / "int8-here.json").read_text())["rows"]
    assert row["scores"] == {"fid": {"float32": 2.0, "int8": 2.5}, "recall": {"float32": 0.5, "int8": 0.25}}
    assert list(row["images_per_second"]) == ["pytorch", "exported"] and min(row["images_per_second"].values()) > 0
    assert "int8-here.json" in capsys.readouterr().out


def test_an_earlier_version_is_measured_in_turns(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seconds = iter([4.0, 1.0, 6.0, 3.0, 2.0, 2.0])  # before and after, in three rounds

    def steps(folder: Path, names: str, limit: float) -> Any:
        asked.append(folder == ROOT)
        row = {"batch": 8, "seconds": next(seconds), "time_by_kind": {"other": 1.0}}
        return {names: row} if folder == ROOT else {names: row, "gone": row}

    asked: list[bool] = []
    monkeypatch.setattr(parts.versus, "RESULTS", tmp_path)
    monkeypatch.setattr(parts.versus, "unpack", lambda commit, folder: None)
    monkeypatch.setattr(parts.versus, "steps", steps)
    parts.versus.main(["v1", "--only", "toy", "--rounds", "3", "--name", "here"])
    assert asked == [False, True] * 3
    [row] = json.loads((tmp_path / "versus-here.json").read_text())["rows"]
    assert (row["case"], row["before"]["seconds"], row["after"]["seconds"]) == ("toy", 4.0, 2.0)
    assert (row["times_as_fast"], row["of_the_rounds"]) == (2.0, [1.0, 4.0])
    assert "1.00 to 4.00" in capsys.readouterr().out


def test_the_steps_of_a_folder_are_timed(parts: Parts) -> None:
    found = parts.versus.steps(ROOT, "vae-mnist", 0.0)
    assert found.keys() == {"vae-mnist"}
    assert found["vae-mnist"]["seconds"] > 0
    assert sum(found["vae-mnist"]["time_by_kind"].values()) == pytest.approx(1.0)


def test_a_commit_that_is_not_there_is_named(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-commit: .*; name a commit"):
        parts.versus.unpack("no-such-commit", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_commands_are_timed_from_their_start_to_their_end(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(parts.starting, "RESULTS", tmp_path)
    parts.starting.main(["--method", "vae", "--repeats", "1", "--name", "here"])
    rows = json.loads((tmp_path / "starting-here.json").read_text())["rows"]
    seconds = {row["command"]: row["seconds"] for row in rows}
    assert list(seconds) == ["python", "import trilemma", "trilemma --help", "trilemma sample RUN --n 1"]
    assert min(seconds.values()) > 0 and seconds["trilemma sample RUN --n 1"] > seconds["python"]
    assert "starting-here.json" in capsys.readouterr().out
    with pytest.raises(subprocess.CalledProcessError):
        parts.starting.seconds([*parts.starting.PYTHON[:2], "1 / 0"], 1)

"""The training loop: what it writes can be read, the average is the formula, and a failure is one line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from same_run import assert_same_run, log, quick_plan
from tiny import tiny_options, tiny_plan, weights
from trilemma.engine import loop, machine
from trilemma.engine import train as training
from trilemma.engine.budget import Budget
from trilemma.engine.checkpoint import checkpoints
from trilemma.engine.loop import Trainer
from trilemma.engine.machine import make_accelerator
from trilemma.engine.run import Run
from trilemma.engine.train import Plan, train
from trilemma.errors import ConfigError, NonFiniteError, RunError
from trilemma.measure.features import FeatureSet
from trilemma.measure.watch import Watch
from trilemma.methods import method_class

# What it writes


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with quick scores."""
    plan = tiny_plan(images=32, probe_samples=20)
    return train(plan, tmp_path_factory.mktemp("probed") / "run").folder


def test_the_log_is_one_record_a_line(probed: Path) -> None:
    records = [json.loads(line) for line in (probed / "log.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(record["step"] for record in records)) == [1, 2, 3, 4]
    for record in records:
        assert record["images"] == 8 * record["step"] and record["seconds"] > 0
        assert record["losses"] and all(isinstance(value, float) for value in record["losses"].values())
        assert record["lr"].keys() == {"generator", "discriminator"}
    assert [record["step"] for record in records if "fid" in record] == [2, 4]  # two snapshots over the budget


def test_snapshots_are_pictures_of_64_samples(probed: Path) -> None:
    pictures = sorted((probed / "samples").iterdir())
    assert [path.name for path in pictures] == ["000000k.png"]
    with Image.open(pictures[0]) as picture:
        assert min(picture.size) >= 256  # 8 a row, small ones enlarged


def test_snapshots_can_be_left_out(tmp_path: Path) -> None:
    train(quick_plan(images=16, snapshots=0), tmp_path / "run")
    assert not (tmp_path / "run" / "samples").exists()


def test_what_the_watch_sees_is_logged_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WATCH_SHARE", 1e6)
    monkeypatch.setattr(loop, "LEAST_WATCHED", 20)
    said: list[str] = []
    # After a few steps the samples are still all alike.
    plan = tiny_plan(images=32, watch_samples=50, snapshots=4)
    train(plan, tmp_path / "run", report=lambda progress: said.extend(progress.warnings))
    looks = [record for record in log(tmp_path / "run") if "watch" in record]
    assert len(looks) == 4
    assert all(record["watch"].keys() == {"coverage", "repeats", "copies"} for record in looks)
    timed = [record for record in Run(tmp_path / "run").read_log() if "watch_seconds" in record]
    assert len(timed) == 4 and all(record["watch_seconds"] > 0 for record in timed)
    assert looks[0]["watch"]["repeats"] > 0.5
    assert len(said) == 1 and "repeat another one" in said[0]
    assert [record.get("warnings", []) for record in looks] == [[], said, [], []]


@pytest.mark.parametrize("slow", [0.0, 0.3])
def test_the_watch_takes_no_more_time_than_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float
) -> None:
    """All looks but the first, whose time nobody knows before; a slow one is not repeated until it is affordable."""
    monkeypatch.setattr(loop, "LEAST_WATCHED", 10)  # so that seconds of training suffice
    look = Watch.look

    def slowly(self: Watch, samples: Tensor) -> dict[str, float]:
        time.sleep(slow)
        return look(self, samples)

    monkeypatch.setattr(Watch, "look", slowly)
    plan = replace(tiny_plan(watch_samples=50, snapshots=3, checkpoint_minutes=9.0), budget=Budget(minutes=0.06))
    train(plan, tmp_path / "run")
    records = Run(tmp_path / "run").read_log()
    first, *later = [record["watch_seconds"] for record in records if "watch_seconds" in record]
    assert first + sum(later) <= 0.03 * records[-1]["seconds"] + first
    assert not (slow and later)


@pytest.mark.parametrize("why", ["no time", "few images"])
def test_a_training_of_few_images_says_once_that_nothing_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """One too short to be watched says nothing: somebody looks at it anyway."""
    monkeypatch.setattr(loop, "WATCH_SHARE", 1e-9 if why == "no time" else 1e6)
    plan = tiny_plan(images=32, watch_samples=500, snapshots=4)
    if why == "few images":
        plan = replace(plan, data=replace(plan.data, x=plan.data.x[:60], labels=None))
    said: list[str] = []
    train(plan, tmp_path / "run", report=lambda progress: said.extend(progress.warnings))
    if why == "no time":
        assert said == []
    else:
        (words,) = said
        assert words.startswith("nothing watches for collapse and copies: 60 samples")
    assert [record["warnings"] for record in log(tmp_path / "run") if "warnings" in record] == ([said] if said else [])
    assert not [record for record in log(tmp_path / "run") if "watch" in record]


def test_the_quick_score_compares_with_images_of_all_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that an evaluation draws: a folder lies class by class, so its first images are of a few kinds."""
    seen: list[Tensor] = []

    def extract(x: Tensor, extractor: object) -> FeatureSet:
        seen.append(x)
        return FeatureSet(torch.rand(len(x), 3, dtype=torch.float64), None, "made-up", "0")

    monkeypatch.setattr(training, "extract", extract)
    plan = tiny_plan(probe_samples=20)
    x = torch.arange(10_500).remainder(256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    plan = replace(plan, data=replace(plan.data, x=x))
    some: Any = SimpleNamespace(stored=lambda seeds, sampler: x[:20], method=SimpleNamespace(preview=lambda: None))
    assert training._probe(plan)(some).keys() == {"fid"}
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:10_000]
    assert torch.equal(seen[0], x[order])


def test_snapshots_do_not_change_the_training(tmp_path: Path) -> None:
    for count in (0, 4):
        train(quick_plan(snapshots=count), tmp_path / str(count))
    a, b = (weights(tmp_path / name / "model.safetensors") for name in "04")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_config_says_what_was_trained(unbroken: tuple[Plan, Path]) -> None:
    plan, folder = unbroken
    config = json.loads((folder / "config.json").read_text())
    assert config["method"] == plan.method and config["seed"] == 0
    assert config["data"]["digest"] == plan.data.digest and config["data"]["spec"]["height"] == 8
    assert config["training"]["images"] == 40 and config["training"]["minutes"] is None
    assert {"torch", "trilemma"} <= config["versions"].keys() and "cpu" in config["hardware"]


def test_as_many_checkpoints_stay_as_asked_for(unbroken: tuple[Plan, Path]) -> None:
    _, folder = unbroken
    assert [path.name for path in checkpoints(folder / "checkpoints")] == [
        f"step-{i:09d}.safetensors" for i in (3, 4, 5)
    ]


def trainer(plan: Plan, folder: Path, report: Callable[[Trainer], None]) -> Trainer:
    """One whose report callback sees the trainer itself."""
    torch.manual_seed(plan.seed)
    run = Run(folder)
    made: list[Trainer] = []
    method = method_class(plan.method)(plan.options, plan.data.spec)
    accelerator = make_accelerator(run, plan.training.precision, None)
    made.append(
        Trainer(
            run,
            method,
            plan.data,
            plan.training,
            plan.budget,
            plan.seed,
            accelerator=accelerator,
            report=lambda _: report(made[0]),
        )
    )
    return made[0]


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_average_is_the_formula(tmp_path: Path, share: float) -> None:
    """a_1 = w_1, a_k = d a_{k-1} + (1 - d) w_k; with a share s, d is at most 2^(-1 / (s (k - 1)))."""
    history: list[dict[str, Tensor]] = []

    def remember(trained: Trainer) -> None:
        history.append({key: value.detach().clone() for key, value in trained.method.generator.named_parameters()})

    plan = quick_plan(images=64, ema_decay=0.7, ema_share=share)
    trainer(plan, tmp_path, remember).train()
    assert len(history) == 8
    average = history[0]
    for steps, now in enumerate(history[1:], start=1):
        decay = min(0.7, 0.5 ** (1 / max(1.0, share * steps))) if share else 0.7
        average = {key: decay * average[key] + (1 - decay) * now[key] for key in now}
    found = weights(tmp_path / "model.safetensors")
    for key, value in average.items():
        torch.testing.assert_close(found[f"generator.{key}"], value, atol=1e-7, rtol=1e-5)


def test_all_networks_train_in_training_mode_and_sample_in_the_other(tmp_path: Path) -> None:
    seen: list[tuple[bool, bool, bool]] = []

    def look(trained: Trainer) -> None:
        networks = trained.method.networks()
        averaged = trained.generator.method.networks()["generator"]
        seen.append((networks["generator"].training, networks["discriminator"].training, averaged.training))

    trainer(quick_plan(images=24, snapshots=0), tmp_path, look).train()
    assert seen == [(True, True, False)] * 3


def test_a_budget_of_minutes_ends_in_time(tmp_path: Path) -> None:
    plan = quick_plan(checkpoint_minutes=60.0)
    train(replace(plan, budget=Budget(minutes=0.005)), tmp_path / "run")
    assert 0.3 <= Run(tmp_path / "run").read_log()[-1]["seconds"] < 10
    assert Run(tmp_path / "run").config()["training"]["minutes"] == 0.005


def test_another_precision_in_the_same_process(tmp_path: Path) -> None:
    for name, precision in (("full", "no"), ("half", "bf16"), ("again", "no")):
        train(quick_plan(images=8, precision=precision), tmp_path / name)
    full, half, again = (weights(tmp_path / name / "model.safetensors") for name in ("full", "half", "again"))
    assert all(torch.equal(full[key], again[key]) for key in full)
    assert not all(torch.equal(full[key], half[key]) for key in full)
    assert all(value.dtype == torch.float32 for value in half.values())


# What it refuses


def test_a_bad_loss_stops_with_its_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = method_class("ddgan")
    step = kind.step

    def third_is_bad(self: Any, *args: Any) -> dict[str, Tensor]:
        losses = step(self, *args)
        return {**losses, "g_loss": torch.tensor(float("nan"))} if self.steps_done == 3 else losses

    plan = quick_plan()
    with monkeypatch.context() as patch:
        patch.setattr(kind, "step", third_is_bad)
        with pytest.raises(NonFiniteError) as caught:
            train(plan, tmp_path / "run")
    text = str(caught.value)
    assert "step 3: g_loss is nan;" in text and "step-000000002.safetensors" in text and "\n" not in text
    assert [record["step"] for record in log(tmp_path / "run")] == [1, 2]
    train(plan, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", points)


def test_a_bad_weight_is_named_and_goes_into_no_checkpoint(tmp_path: Path) -> None:
    def poison(trained: Trainer) -> None:
        if trained.progress.step == 3:
            with torch.no_grad():
                next(trained.method.generator.parameters()).fill_(torch.inf)

    with pytest.raises(NonFiniteError, match="step 3: the weight generator.* is not finite; the last good"):
        trainer(quick_plan(), tmp_path, poison).train()
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == [
        f"step-{i:09d}.safetensors" for i in (1, 2)
    ]


def test_divergence_names_loss_and_weight(tmp_path: Path) -> None:
    """A learning rate that is absurd, rather than a fault put in by hand."""
    plan = quick_plan("ddpm", images=800, checkpoint_minutes=60.0)
    plan = replace(plan, options=tiny_options("ddpm", learning_rate=1e35, clip_gradient=0.0))
    with pytest.raises(NonFiniteError, match="loss is (nan|inf).*weight denoiser.*no checkpoint had been written"):
        train(plan, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_existing_run_is_not_trained_over(unbroken: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = unbroken
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="holds a run already: go on with --resume"):
        train(plan, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    (tmp_path / "diary.txt").write_text("dear")
    with pytest.raises(RunError, match="not empty and not a run"):
        train(plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize("name", ["config.json", "step-000000003.safetensors", "000000k.png", "model.safetensors"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    tmp_path: Path, points: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rename = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        rename(source, target)

    plan = quick_plan()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RunError, match=f"cannot write .*{name}: No space left on device"):
            train(plan, tmp_path / "run")
    files = [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert name not in files and not [file for file in files if file.startswith(".")]
    train(plan, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", points)


def test_a_log_that_cannot_grow_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    run = Run(tmp_path)
    run.log_path.symlink_to("/dev/full")
    with pytest.raises(RunError, match="cannot write .*log.jsonl: No space left on device"):
        run.log({"step": 1})


def test_a_log_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2):
        run.log({"step": step, "loss": float("nan")})
    with run.log_path.open("ab") as file:
        file.write(b'{"step": 3, "lo\xff')
    assert run.read_log() == [{"step": 1, "loss": None}, {"step": 2, "loss": None}]
    run.trim_log(1)
    assert run.log_path.read_text() == '{"step": 1, "loss": null}\n'


@pytest.mark.parametrize(
    ("tracker", "words"),
    [("tensorboard", "tensorboard is not installed"), ("tensorbord", "did you mean 'tensorboard'")],
)
def test_a_tracker_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, words: str
) -> None:
    monkeypatch.setattr(machine, "get_available_trackers", list)
    with pytest.raises(ConfigError, match=words):
        train(quick_plan(), tmp_path / "run", tracker=tracker)
    assert not (tmp_path / "run").exists()


def test_points_are_probed_by_their_modes_and_unknown_modes_are_refused(tmp_path: Path) -> None:
    plan = quick_plan(images=8, probe_samples=20)
    with pytest.raises(ConfigError, match="no known modes"):
        train(replace(plan, data=replace(plan.data, modes=None)), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    train(plan, tmp_path / "run")
    assert {"modes", "share_within_4_sigma"} <= log(tmp_path / "run")[-1].keys()

"""FLOPs of a training are the sum over its steps, though few of them are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from same_run import Killed, assert_same_run, killed_at, log, quick_plan
from tiny import POINTS, SPEC, tiny_data, tiny_method, tools
from trilemma.engine import training_flops
from trilemma.engine.budget import Budget
from trilemma.engine.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from trilemma.engine.evaluate import evaluate
from trilemma.engine.run import Run
from trilemma.engine.train import train
from trilemma.engine.training_flops import TrainingFlops
from trilemma.errors import RunError
from trilemma.measure.flops import FlopCounter
from trilemma.methods import method_names
from trilemma.types import DataSpec, Sampler

PLAIN, PENALTY = 2 * 2 * 4 * 4, 2 * 2 * 4 * 8


class Toy:
    """Steps of one network, and of a second every ``lazy`` steps; from step ``phase`` on the first is called twice."""

    def __init__(self, lazy: int = 16, phase: int = 10**9) -> None:
        self.networks = {"plain": nn.Linear(4, 4), "penalty": nn.Linear(4, 8)}
        self.lazy, self.phase = lazy, phase

    def run(self, flops: TrainingFlops, start: int, stop: int) -> None:
        x = torch.zeros(2, 4)
        for index in range(start, stop):
            with flops.step():
                for _ in range(2 if index >= self.phase else 1):
                    self.networks["plain"](x)
                if index % self.lazy == 0:
                    self.networks["penalty"](x)

    def exact(self, steps: int) -> int:
        return sum(PLAIN * (1 + (i >= self.phase)) + PENALTY * (i % self.lazy == 0) for i in range(steps))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[FlopCounter]:
    """The counters that were made."""
    made: list[FlopCounter] = []

    def make() -> FlopCounter:
        made.append(FlopCounter())
        return made[-1]

    monkeypatch.setattr(training_flops, "FlopCounter", make)
    return made


@pytest.mark.parametrize(
    ("toy", "few"),
    [(Toy(), 2), (Toy(lazy=20), 2), (Toy(phase=100), 2 + 1 + 16)],
    ids=["lazy", "a longer cycle", "a second phase"],
)
def test_the_sum_is_exact_and_few_steps_are_counted(toy: Toy, few: int, counted: list[FlopCounter]) -> None:
    flops = TrainingFlops(toy.networks)
    toy.run(flops, 0, 250)
    assert flops.total == toy.exact(250)
    assert len(counted) == few
    assert not any(network._forward_pre_hooks for network in toy.networks.values())


def test_work_that_hooks_do_not_see_is_counted_again_now_and_then() -> None:
    flops = TrainingFlops({})
    for size in [1] * 200 + [3] * 400:
        with flops.step():
            torch.zeros(size, 1) @ torch.zeros(1, 1)
    assert flops.total == 2 * (257 * 1 + (600 - 257) * 3)  # noticed in the 258th step


def test_a_kind_that_never_comes_again_costs_the_mean(counted: list[FlopCounter]) -> None:
    toy = Toy(lazy=10**9)
    flops = TrainingFlops(toy.networks)
    toy.run(flops, 1, 101)
    toy.run(flops, 0, 1)  # the only step with a penalty, and it is not counted
    toy.run(flops, 1, 64)
    assert flops.total == (100 + 63) * PLAIN
    toy.run(flops, 1, 2)
    assert flops.total == (100 + 64 + 1) * PLAIN
    toy.run(flops, 1, 21)
    assert flops.total == (100 + 64 + 1 + 20) * PLAIN
    assert len(counted) == 2 + 64


def test_an_error_inside_a_step_counts_nothing_and_leaves_no_hook() -> None:
    toy = Toy()
    flops = TrainingFlops(toy.networks)
    with pytest.raises(Killed), flops.step():
        toy.networks["plain"](torch.zeros(2, 4))
        raise Killed
    assert flops.total == 0 and not toy.networks["plain"]._forward_pre_hooks


def test_a_state_goes_on_where_it_stopped(tmp_path: Path) -> None:
    toy = Toy(lazy=20, phase=35)
    whole, first, second = (TrainingFlops(toy.networks) for _ in range(3))
    toy.run(whole, 0, 80)
    toy.run(first, 0, 36)
    assert first.state()["waiting"]  # its last step
    save_checkpoint(tmp_path, {"flops": first.state()}, 36, 1)
    second.load_state(load_checkpoint(checkpoints(tmp_path)[0])["flops"])
    toy.run(second, 36, 80)
    assert second.state() == whole.state() and second.total == toy.exact(80)


@pytest.mark.parametrize(
    ("name", "spec"), [*((name, SPEC) for name in method_names()), ("ddgan", POINTS)], ids=[*method_names(), "points"]
)
def test_the_sum_of_each_method(name: str, spec: DataSpec) -> None:
    """Against a counter around every step."""
    method = tiny_method(name, spec)
    data = tiny_data("digits" if spec is SPEC else "gaussians")
    lent, flops, exact = tools(method), TrainingFlops(method.networks()), 0
    steps = 20 if hasattr(method.options, "style_mixing") else 8  # so that each of its kinds of step comes twice
    for index in range(steps):
        batch = data.batch(torch.arange(8 * index, 8 * index + 8))
        with FlopCounter() as every, flops.step():
            method.step(batch, index / steps, lent)
        exact += every.total
    assert not flops.state()["waiting"]
    assert flops.total == pytest.approx(exact, rel=0.02)


# As a budget


def test_a_budget_of_flops_ends_with_the_step_that_spends_it(tmp_path: Path) -> None:
    plan = quick_plan(images=8)
    (record,) = Run(train(plan, tmp_path / "one").folder).read_log()
    enough = 2.5 * record["flops"]
    folder = train(replace(plan, budget=Budget(flops=enough)), tmp_path / "run").folder
    spent = [record["flops"] for record in Run(folder).read_log()]
    assert record["flops"] > 0 and spent[-2] < enough <= spent[-1]
    config = Run(folder).config()["training"]
    assert (config["flops"], config["images"], config["minutes"]) == (enough, None, None)
    before = (folder / "model.safetensors").read_bytes()
    train(replace(plan, budget=Budget(flops=enough)), folder, resume=True)  # it is spent
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_resumed_budget_of_flops_is_an_unbroken_one(tmp_path: Path) -> None:
    plan = quick_plan(images=8)
    (record,) = Run(train(plan, tmp_path / "one").folder).read_log()
    plan = replace(plan, budget=Budget(flops=4 * record["flops"]))
    train(plan, tmp_path / "whole")
    with pytest.raises(Killed):
        train(plan, tmp_path / "run", report=killed_at(2))
    train(plan, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_checkpoint_without_a_count_goes_on_without_one(tmp_path: Path) -> None:
    """Of a version that did not count: the number is left out, not wrong."""
    plan = quick_plan(images=32)
    with pytest.raises(Killed):
        train(plan, tmp_path / "run", report=killed_at(2))
    (*_, newest) = checkpoints(tmp_path / "run" / "checkpoints")
    state = load_checkpoint(newest)
    step = state["progress"]["step"]
    del state["flops"]
    save_checkpoint(newest.parent, state, step, 1)
    with pytest.raises(RunError, match="has no count of FLOPs: give --minutes or --images"):
        train(replace(plan, budget=Budget(flops=1e12)), tmp_path / "run", resume=True)
    train(plan, tmp_path / "run", resume=True)
    assert [record.get("flops") is None for record in log(tmp_path / "run")] == [False] * step + [True] * (4 - step)


def test_the_training_of_a_score_is_told_in_flops(tmp_path: Path) -> None:
    run = train(quick_plan(images=16), tmp_path / "run")
    protocol = evaluate(run, Sampler(), samples=10)["protocol"]
    assert protocol["training_flops"] == run.read_log()[-1]["flops"] > 0

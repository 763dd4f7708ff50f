"""Speed: calls counted from outside, repeats that adapt, and what the machine says of itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import trilemma
from trilemma.errors import ConfigError
from trilemma.measure.memory import PeakMemory
from trilemma.measure.speed import (
    BatchSpeed,
    CallCounter,
    Timing,
    hardware,
    measure,
    nfe,
    speed_scores,
    sweep,
    versions,
)


class Sampler:
    """Maps the noise once, then makes ``steps`` steps, twice the rows each when ``guided``."""

    def __init__(self, steps: int, guided: bool = False) -> None:
        self.steps, self.guided = steps, guided
        self.networks = {"mapping": nn.Linear(2, 2), "generator": nn.Linear(2, 2)}
        self.batches: list[int] = []

    @torch.no_grad()
    def __call__(self, seeds: Sequence[int]) -> Tensor:
        self.batches.append(len(seeds))
        x: Tensor = self.networks["mapping"](torch.zeros(len(seeds), 2))
        for _ in range(self.steps):
            x = self.networks["generator"](input=torch.cat([x, x]) if self.guided else x)[: len(seeds)]
        return x


def test_calls_are_counted_by_network() -> None:
    sampler = Sampler(steps=4)
    with CallCounter(sampler.networks) as counter:
        sampler(range(8))
        sampler(range(8))
    assert counter.calls == {"mapping": 2, "generator": 8}
    assert counter.total == 10
    assert counter.per_image(16) == {"mapping": 1, "generator": 4}


def test_nothing_is_counted_after_the_block() -> None:
    sampler = Sampler(steps=4)
    with CallCounter(sampler.networks) as counter:
        pass
    sampler(range(3))
    assert counter.total == 0
    assert not any(network._forward_hooks for network in sampler.networks.values())


def test_hooks_are_gone_after_an_error() -> None:
    sampler = Sampler(steps=1)
    with pytest.raises(RuntimeError, match="mine"), CallCounter(sampler.networks):
        raise RuntimeError("mine")
    assert not any(network._forward_hooks for network in sampler.networks.values())


@pytest.mark.parametrize("n", [1, 6])
def test_nfe_is_per_image_whatever_the_batch(n: int) -> None:
    assert nfe(Sampler(steps=4), Sampler(steps=4).networks, n) == 0  # somebody else's networks
    sampler = Sampler(steps=4)
    assert nfe(sampler, sampler.networks, n) == 5
    assert nfe(lambda seeds: [sampler([seed]) for seed in seeds], sampler.networks, n) == 5


def test_guidance_costs_two_evaluations_a_step() -> None:
    """Both halves in one call of 2 N rows: two evaluations an image, not one."""
    sampler = Sampler(steps=4, guided=True)
    assert nfe(sampler, sampler.networks, 3) == 9


def test_a_call_without_a_batch_cannot_be_counted() -> None:
    network = nn.Identity()
    with pytest.raises(ConfigError, match="without a batch"), CallCounter({"odd": network}):
        network(3)


def test_repeats_adapt_to_what_a_run_costs() -> None:
    assert len(measure(lambda: None).seconds) == 10
    assert len(measure(lambda: None, limit_seconds=0).seconds) == 1
    slow = measure(lambda: time.sleep(0.02), limit_seconds=0.05)
    assert len(slow.seconds) <= 3
    assert slow.quantile(0.5) >= 0.02


def test_timing_quantiles() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert [timing.quantile(q) for q in (0.25, 0.5, 0.75)] == [2, 3, 4]


def test_scores_of_a_known_sampler() -> None:
    sampler = Sampler(steps=3)
    found = speed_scores(sampler, sampler.networks)
    assert found.scores["nfe"] == 4
    assert set(found.scores) == {"nfe", "seconds_per_image_batch_1", "images_per_second_batch_100"}
    assert found.protocol["repeats"] == {"batch 1": 10, "batch 100": 10}
    assert found.protocol["nfe_by_network"] == {"mapping": 1, "generator": 3}
    low, high = found.protocol["images_per_second_batch_100_quartiles"]
    assert low <= found.scores["images_per_second_batch_100"] <= high
    assert sampler.batches == [1] * 11 + [100] * 11  # one warm-up each


def test_a_given_warmup_replaces_the_long_one() -> None:
    sampler, short = Sampler(steps=3), Sampler(steps=1)
    speed_scores(sampler, sampler.networks, warmup=short, limit_seconds=0)
    assert sampler.batches == [1, 1, 100]
    assert short.batches == [100]


def test_the_machine_and_the_libraries_are_named() -> None:
    machine = hardware()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["threads"] == torch.get_num_threads()
    assert machine["memory_gib"] is None or machine["memory_gib"] > 0
    assert (machine["gpu"] is None) == (not torch.cuda.is_available())
    found = versions()
    assert set(found) == {"trilemma", "python", "torch", "torchvision", "torch-fidelity", "numpy"}
    assert found["trilemma"] == trilemma.__version__
    assert found["torch"] == torch.__version__.split("+", maxsplit=1)[0] or found["torch"] == torch.__version__


def test_a_sweep_has_one_entry_a_batch_the_smallest_first() -> None:
    sampler, told = Sampler(steps=3), []
    found = sweep(sampler, [4, 1, 16, 4], max_repeats=2, advance=told.append)
    assert [speed.batch for speed in found] == told == [1, 4, 16]
    assert sampler.batches == [1, 1, 1, 4, 4, 4, 16, 16, 16]  # a warm-up and two repeats each
    assert all(len(speed.timing.seconds) == 2 for speed in found)


def test_a_sweep_warms_up_with_what_it_is_given() -> None:
    sampler, short = Sampler(steps=3), Sampler(steps=1)
    sweep(sampler, [2, 3], warmup=short, limit_seconds=0)
    assert sampler.batches == short.batches == [2, 3]


def test_images_a_second_are_a_batch_over_its_time() -> None:
    speed = BatchSpeed(6, Timing((1.0, 2.0, 3.0)), PeakMemory())
    assert speed.images_per_second() == 3
    assert [speed.images_per_second(q) for q in (0.0, 1.0)] == [2, 6]  # the slowest repeat, the fastest

"""A long sampling job finds its own batch size, and makes every image once and in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trilemma.engine import pace
from trilemma.engine.generator import Generator
from trilemma.engine.pace import FIRST, Pace

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Sampler:
    """Takes ``seconds(images)`` a batch; notes how large the batches were."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds, self.sizes = seconds, list[int]()
        self.lock = threading.Lock()

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        with self.lock:
            self.sizes.append(len(seeds))
        time.sleep(self.seconds(len(seeds)))
        return torch.tensor(list(seeds))


@pytest.mark.parametrize("n", [1, 7, 16, 33, 500])
def test_every_image_is_made_once_and_in_order(n: int) -> None:
    told: list[int] = []
    made = Pace(Sampler(lambda _: 0.0), CPU).run(range(100, 100 + n), told.append)
    assert made.tolist() == list(range(100, 100 + n)) and sum(told) == n


def test_batches_grow_while_that_is_faster(two_threads: None) -> None:
    """20 ms a batch, and 2 ms an image from 32 images on: 32 are as fast as 64."""
    sampler = Sampler(lambda n: 0.02 + 0.002 * max(0, n - 32))
    job = Pace(sampler, CPU)
    job.run(range(600), lambda _: None)
    assert sampler.sizes[:6] == [FIRST, FIRST, 16, 16, 32, 32]
    assert job.batch_size == 32 and job.lanes == 2  # this one does not share a core with anything


def test_batches_that_do_not_fit_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MiB an image by the clock of memory, and 20 MiB to be had."""

    class Memory:
        mib, before_mib = 0.0, 0.0

        def __init__(self, _: object) -> None:
            pass

        def __enter__(self) -> Memory:
            return self

        def __exit__(self, *_: object) -> None:
            self.mib = float(sampler.sizes[-1])

    sampler = Sampler(lambda _: 0.001)
    monkeypatch.setattr(pace, "PeakMemory", Memory)
    job = Pace(sampler, CPU, memory_mib=20.0)
    job.run(range(200), lambda _: None)
    assert job.batch_size == 16 and max(sampler.sizes) == 16 and job.lanes == 1


def test_threads_take_turns_where_they_would_stand_in_each_others_way(two_threads: None) -> None:
    lock = threading.Lock()

    def make(seeds: Sequence[int]) -> Tensor:
        with lock:
            time.sleep(0.001 * len(seeds))
        return torch.tensor(list(seeds))

    job = Pace(make, CPU)
    assert len(job.run(range(400), lambda _: None)) == 400
    assert job.lanes == 1 and torch.get_num_threads() == 2


def test_images_are_those_of_fixed_batches(trained: Callable[[str], Path], two_threads: None) -> None:
    """But for the order of sums, which may tip a value over to the next grey level."""
    generator = Generator.load(trained("ddgan"))
    found = generator.sample(150, batch_size=None).astype(int)
    assert np.abs(found - generator.sample(150).astype(int)).max() <= 1

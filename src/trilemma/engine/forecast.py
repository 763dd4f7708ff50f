"""What a training will take, from a few of its steps: time, memory, disk, and what of it fits this machine.

The steps are real ones, on the real data, with averaged weights and optimiser moments in place; they end in a folder
that is deleted. Memory is measured at the whole batch and at half of it: the line through both says what fits.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trilemma.config import require
from trilemma.data.pictures import save_grid
from trilemma.engine.budget import Budget
from trilemma.engine.cpu import settle_cpu
from trilemma.engine.loop import GRID_SEEDS, Trainer
from trilemma.engine.machine import make_accelerator
from trilemma.engine.processes import join
from trilemma.engine.run import Run
from trilemma.engine.train import Plan, build_method
from trilemma.engine.training_flops import TrainingFlops
from trilemma.errors import ConfigError, RunError
from trilemma.measure.memory import PeakMemory
from trilemma.methods import method_class

SECONDS = 15.0  # of steps that are timed; with the samples and the loading it makes half a minute
STEPS = 48  # at most: three rounds of the penalties that come every 16 steps
SMALL_SET = 2_000  # images; below, a discriminator learns them by heart
ROOM = 0.9  # of the memory may be used
MIDDLE = 0.5  # of the budget, where nothing is being warmed up
_MIB = 2.0**20


@dataclass(frozen=True)
class Forecast:
    """``seconds`` of training and of everything else (grids, checkpoints); memory and disk in MiB; words of advice."""

    steps: int
    images: int
    seconds: float
    pauses: float
    images_per_second: float
    memory_mib: float | None
    memory_kind: str
    machine_mib: float | None
    disk_mib: float
    free_mib: float
    largest_batch: int | None  # images that fit into a process at a time; None where memory is not known
    accumulate: int  # parts in which the batch fits
    advice: tuple[str, ...]

    def lines(self) -> list[str]:
        """The forecast in words, a line each."""
        found = [
            f"time: {_duration(self.seconds)} of training for {self.steps:,} steps, {self.images:,} images "
            f"({self.images_per_second:.3g} images/s); {_duration(self.pauses)} for grids and checkpoints",
            f"disk: {_size(self.disk_mib)} of {_size(self.free_mib)} free",
        ]
        if self.memory_mib is not None:
            whole = f" of {_size(self.machine_mib)}" if self.machine_mib is not None else ""
            found.insert(1, f"memory: {_size(self.memory_mib)}{whole} ({self.memory_kind})")
        if self.largest_batch is not None:
            parts = f", so training.accumulate {self.accumulate}" if self.accumulate > 1 else ""
            found.append(f"batch: about {self.largest_batch:,} images fit into a process at a time{parts}")
        return found + [f"advice: {words}" for words in self.advice]


def forecast(plan: Plan, out: Path, *, seconds: float = SECONDS, steps: int = STEPS) -> Forecast:
    """Train for at most ``seconds`` or ``steps``, draw one grid, and say what all of ``plan`` will take.

    Raises:
        ConfigError: several processes, or a plan that cannot be trained.
    """
    require(join().num_processes == 1, "--forecast is made by one process: leave out torchrun or accelerate launch")
    settle_cpu()
    training = plan.training
    images_each = training.batch_size
    with tempfile.TemporaryDirectory(prefix="trilemma-forecast-") as folder:
        whole = _measure_what_fits(plan, Path(folder), seconds, steps)
        half = _peak_of_half(plan, whole.batch, Path(folder) / "half")
    larger = images_each / whole.batch  # 1 where the whole batch was measured
    each = whole.step * larger
    count = _steps(plan.budget, each, images_each, whole.flops * larger)
    total = count * each
    between = 60.0 * training.checkpoint_minutes
    saves = min(count, 1 + int(total / between)) if between > 0 else count
    grids = training.snapshots + 1 if training.snapshots else 0
    machine = _machine_mib(join().device)
    fits = _largest_batch(whole.batch, whole.memory.mib, half, machine)
    if fits is not None:
        fits = max(1, fits // training.accumulate)  # measured in parts already
    accumulates = method_class(plan.method).accumulates
    missing = fits is not None and fits < images_each
    # One checkpoint more than are kept: the oldest goes when the newest is there.
    disk = (training.keep_checkpoints + 1) * whole.checkpoint + whole.weights + grids * whole.grid
    return Forecast(
        steps=count,
        images=count * images_each,
        seconds=total,
        pauses=grids * whole.drawing + saves * whole.saving,
        images_per_second=images_each / each,
        memory_mib=whole.memory.mib,
        memory_kind=whole.memory.kind,
        machine_mib=machine,
        disk_mib=disk / _MIB,
        free_mib=_free_mib(out),
        largest_batch=fits,
        accumulate=math.ceil(images_each / fits) if accumulates and missing and fits is not None else 1,
        advice=_advice(plan, missing and not accumulates),
    )


@dataclass(frozen=True)
class _Measured:
    """Seconds and FLOPs of a step of ``batch`` images (FLOPs: 0 where the budget is none of them), seconds of a grid
    and of a checkpoint; bytes of a grid, a checkpoint, weights."""

    batch: int
    step: float
    flops: float
    drawing: float
    saving: float
    grid: int
    checkpoint: int
    weights: int
    memory: PeakMemory


def _measure_what_fits(plan: Plan, folder: Path, seconds: float, steps: int) -> _Measured:
    """With the whole batch, or with the half, the quarter, ... that the GPU holds."""
    batch = plan.training.batch_size
    while True:
        try:
            return _measure(plan, batch, folder / str(batch), seconds, steps)
        except torch.OutOfMemoryError as error:
            smaller = batch // 2
            if smaller < plan.training.accumulate:
                raise RunError(f"not even a batch of {batch} fits into this GPU: take smaller networks") from error
        batch = smaller
        torch.cuda.empty_cache()


def _measure(plan: Plan, batch: int, folder: Path, seconds: float, steps: int) -> _Measured:
    folder.mkdir()
    trainer = _trainer(plan, folder, batch)
    trainer._step(MIDDLE)  # the first step allocates moments and chooses algorithms
    before = trainer.flops.total
    with PeakMemory(trainer.accelerator.device) as memory:
        each, made = _seconds_a_step(trainer, seconds, steps)
    started = time.perf_counter()
    trainer.generator.method.eval()
    samples = trainer.generator.stored(GRID_SEEDS, trainer.method.preview())
    save_grid(samples, folder / "grid.png", columns=8)
    drawing = time.perf_counter() - started
    started = time.perf_counter()
    trainer.save()
    return _Measured(
        batch=batch,
        step=each,
        flops=(trainer.flops.total - before) / made,
        drawing=drawing,
        saving=time.perf_counter() - started,
        grid=(folder / "grid.png").stat().st_size,
        checkpoint=sum(path.stat().st_size for path in trainer.run.checkpoint_folder.iterdir()),
        weights=sum(p.numel() * p.element_size() for p in trainer.average.parameters()),
        memory=memory,
    )


def _trainer(plan: Plan, folder: Path, batch_size: int) -> Trainer:
    """One that does not look or score, and counts FLOPs only for a budget of them: counted steps take longer."""
    training = replace(plan.training, batch_size=batch_size, probe_samples=0, watch_samples=0)
    method = build_method(replace(plan, training=training))
    run = Run(folder)
    accelerator = make_accelerator(run, training.precision, None)
    trainer = Trainer(run, method, plan.data, training, plan.budget, plan.seed, accelerator=accelerator)
    if plan.budget.flops is None:
        trainer.flops = _Uncounted({})
    return trainer


class _Uncounted(TrainingFlops):
    """Counts nothing."""

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """One training step inside the block."""
        yield


def _seconds_a_step(trainer: Trainer, seconds: float, steps: int) -> tuple[float, int]:
    """The mean, as some steps do more than others, and of how many."""
    device = trainer.accelerator.device
    _wait(device)
    started = time.perf_counter()
    done = 0
    while done < steps and (done == 0 or time.perf_counter() - started < seconds):
        trainer._step(MIDDLE)
        _wait(device)
        done += 1
    return (time.perf_counter() - started) / done, done


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_of_half(plan: Plan, batch: int, folder: Path) -> float | None:
    """Memory in MiB of a step with half of what was measured."""
    half = batch // 2
    if half < plan.training.accumulate or half < 1:
        return None
    trainer = _trainer(plan, folder, half)
    trainer._step(MIDDLE)
    with PeakMemory(trainer.accelerator.device) as memory:
        trainer._step(MIDDLE)
        trainer._step(MIDDLE)
    return memory.mib


def _largest_batch(batch: int, whole: float | None, half: float | None, machine: float | None) -> int | None:
    """Where the line through the two measurements meets what there is; None where they do not tell."""
    if whole is None or half is None or machine is None or batch < 2:
        return None
    an_image = (whole - half) / (batch - batch // 2)
    if an_image <= 0:
        return None
    return max(1, int((ROOM * machine - (whole - batch * an_image)) / an_image))


def _machine_mib(device: torch.device) -> float | None:
    """Memory of the GPU, or of the machine; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / _MIB
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _MIB
    except (AttributeError, ValueError, OSError):
        return None


def _free_mib(out: Path) -> float:
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free / _MIB


def _steps(budget: Budget, each: float, batch: int, flops: float) -> int:
    """Steps until the budget is spent, of ``each`` seconds, ``batch`` images and ``flops`` FLOPs."""
    if budget.images is not None:
        return math.ceil(budget.images / batch)
    if budget.flops is not None:
        if flops <= 0:
            raise ConfigError("no FLOPs of this method can be counted: give --minutes or --images")
        return max(1, math.ceil(budget.flops / flops))
    assert budget.minutes is not None
    return max(1, math.ceil(60.0 * budget.minutes / each))


def _advice(plan: Plan, too_large: bool) -> tuple[str, ...]:
    words = []
    n = len(plan.data)
    if too_large:
        words.append(
            f"{plan.training.batch_size} images do not fit at once: lower training.batch_size or share it among "
            "processes"
        )
    if plan.data.spec.kind == "images" and n < SMALL_SET and "discriminator" in vars(plan.options):
        if getattr(plan.options, "augment", None) == "none":
            words.append(
                f"{n:,} images are few, and a discriminator learns them by heart: "
                "take --options.augment ada or --options.augment diffaugment"
            )
        elif not hasattr(plan.options, "augment"):
            words.append(
                f"{n:,} images are few, and a discriminator learns them by heart: "
                "compare with stylegan2 and --options.augment ada or diffaugment"
            )
    return tuple(words)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(mib: float | None) -> str:
    mib = mib or 0.0
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"

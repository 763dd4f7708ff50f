"""What a training will take, from a few of its steps: time, memory, disk, and what of it fits this machine.

The steps are real ones, on the real data, with averaged weights and optimiser moments in place; they end in a folder
that is deleted. Memory is measured at the whole batch and at half of it: the line through both says what fits. Where a
single step or sample is slow, it is made once, the rest is left out, and the forecast says so.
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
from torch import Tensor

from trilemma.config import require
from trilemma.data.pictures import save_grid
from trilemma.engine.budget import Budget
from trilemma.engine.cpu import settle_cpu
from trilemma.engine.loop import GRID_SEEDS, Trainer
from trilemma.engine.machine import make_accelerator
from trilemma.engine.pauses import look_seconds, score_seconds
from trilemma.engine.processes import join
from trilemma.engine.run import Run
from trilemma.engine.train import Plan, build_method
from trilemma.engine.training_flops import TrainingFlops
from trilemma.errors import ConfigError, RunError
from trilemma.measure.memory import PeakMemory, free_mib, own_mib

SECONDS = 15.0  # of steps that are timed
WHOLE = 2.0  # times as long for all, but for what is unavoidable: a step, a sample, a checkpoint
STEPS = 48  # at most: three rounds of the penalties that come every 16 steps
SMALL_SET = 2_000  # images; below, a discriminator learns them by heart
HALF_STEPS = 3  # with half of a batch
ROOM = 0.9  # of the memory may be used
MIDDLE = 0.5  # of the budget, where nothing is being warmed up
_MIB = 2.0**20


@dataclass(frozen=True)
class Forecast:
    """``seconds`` of training and of everything else (snapshots, checkpoints); memory and disk in MiB; words of advice,
    and of what was left out for lack of time. ``machine_mib`` is what may be taken, beside other programs."""

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
    left_out: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The forecast in words, a line each."""
        found = [
            f"time: {_duration(self.seconds)} of training for {self.steps:,} steps, {self.images:,} images "
            f"({self.images_per_second:.3g} images/s); {_duration(self.pauses)} for grids, scores and checkpoints",
            f"disk: {_size(self.disk_mib)} of {_size(self.free_mib)} free",
        ]
        if self.memory_mib is not None:
            whole = f" of {_size(self.machine_mib)}" if self.machine_mib is not None else ""
            found.insert(1, f"memory: {_size(self.memory_mib)}{whole} ({self.memory_kind})")
        if self.largest_batch is not None:
            parts = f", so training.accumulate {self.accumulate}" if self.accumulate > 1 else ""
            found.append(f"batch: about {self.largest_batch:,} images fit into a process at a time{parts}")
        if self.left_out:
            found.append(f"rough: steps or samples are slow here, so {', '.join(self.left_out)}")
        return found + [f"advice: {words}" for words in self.advice]


class _Time:
    """What is left of the forecast's own time, and what was left out for lack of it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds
        self.left_out: list[str] = []

    def allows(self, seconds: float, words: str = "") -> bool:
        """Whether there is time for that; if not, ``words`` say what is left out."""
        if time.perf_counter() + seconds <= self._end:
            return True
        self.left_out += [words] if words and words not in self.left_out else []
        return False


def forecast(plan: Plan, out: Path, *, seconds: float = SECONDS, steps: int = STEPS) -> Forecast:
    """Train for about ``seconds`` or ``steps``, draw one grid, and say what all of ``plan`` will take.

    It takes about twice ``seconds``: more only where one step, sample or checkpoint does.

    Raises:
        ConfigError: several processes, or a plan that cannot be trained.
    """
    require(join().num_processes == 1, "--forecast is made by one process: leave out torchrun or accelerate launch")
    settle_cpu()
    training, left = plan.training, _Time(WHOLE * seconds)
    images_each = training.batch_size
    with tempfile.TemporaryDirectory(prefix="trilemma-forecast-") as folder:
        whole = _measure_what_fits(plan, Path(folder), seconds, steps, left)
        half = None
        if left.allows(HALF_STEPS / 2 * whole.step, "how many images fit is not known"):
            half = _peak_of_half(plan, whole.batch, Path(folder) / "half")
    larger = images_each / whole.batch  # 1 where the whole batch was measured
    each = whole.step * larger
    count = _steps(plan.budget, each, images_each, whole.flops * larger)
    total = count * each
    between = 60.0 * training.checkpoint_minutes
    saves = min(count, 1 + int(total / between)) if between > 0 else count
    grids = training.snapshots + 1 if training.snapshots else 0
    pauses = grids * whole.drawing + saves * whole.saving
    an_image = whole.drawing / len(GRID_SEEDS)
    if left.allows(0.0, "scores are not counted"):
        pauses += look_seconds(plan, whole.samples, an_image, total) + score_seconds(plan, an_image)
    machine = _machine_mib(join().device)
    fits = _largest_batch(whole.batch, whole.memory.mib, half, machine)
    if fits is not None:
        fits = max(1, fits // training.accumulate)  # measured in parts already
    missing = fits is not None and fits < images_each
    # One checkpoint more than are kept: the oldest goes when the newest is there.
    disk = (training.keep_checkpoints + 1) * whole.checkpoint + whole.weights + grids * whole.grid
    return Forecast(
        steps=count,
        images=count * images_each,
        seconds=total,
        pauses=pauses,
        images_per_second=images_each / each,
        memory_mib=whole.memory.mib,
        memory_kind=whole.memory.kind,
        machine_mib=machine,
        disk_mib=disk / _MIB,
        free_mib=_free_mib(out),
        largest_batch=fits,
        accumulate=math.ceil(images_each / fits) if missing and fits is not None else 1,
        advice=_advice(plan),
        left_out=tuple(left.left_out),
    )


@dataclass(frozen=True)
class _Measured:
    """Seconds and FLOPs of a step of ``batch`` images (FLOPs: 0 where the budget is none of them), seconds of a grid
    and of a checkpoint; bytes of a grid, a checkpoint, weights; the ``samples`` that were made."""

    batch: int
    step: float
    flops: float
    drawing: float
    saving: float
    grid: int
    checkpoint: int
    weights: int
    memory: PeakMemory
    samples: Tensor


def _measure_what_fits(plan: Plan, folder: Path, seconds: float, steps: int, left: _Time) -> _Measured:
    """With the whole batch, or with the half, the quarter, ... that the GPU holds."""
    batch = plan.training.batch_size
    while True:
        try:
            return _measure(plan, batch, folder / str(batch), seconds, steps, left)
        except torch.OutOfMemoryError as error:
            smaller = batch // 2
            if smaller < plan.training.accumulate:
                raise RunError(f"not even a batch of {batch} fits into this GPU: take smaller networks") from error
        batch = smaller
        torch.cuda.empty_cache()


def _measure(plan: Plan, batch: int, folder: Path, seconds: float, steps: int, left: _Time) -> _Measured:
    folder.mkdir()
    trainer = _trainer(plan, folder, batch)
    with PeakMemory(trainer.accelerator.device) as memory:
        each, flops = _of_a_step(trainer, seconds, steps, left)
    trainer.generator.method.eval()
    samples, drawing = _drawn(trainer, folder / "grid.png", left)
    whole_grid = len(GRID_SEEDS) / len(samples)
    started = time.perf_counter()
    trainer.save()
    return _Measured(
        batch=batch,
        step=each,
        flops=flops,
        drawing=drawing * whole_grid,
        saving=time.perf_counter() - started,
        grid=int((folder / "grid.png").stat().st_size * whole_grid),
        checkpoint=sum(path.stat().st_size for path in trainer.run.checkpoint_folder.iterdir()),
        weights=sum(p.numel() * p.element_size() for p in trainer.average.parameters()),
        memory=memory,
        samples=samples,
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


def _of_a_step(trainer: Trainer, seconds: float, steps: int, left: _Time) -> tuple[float, float]:
    """Mean seconds and FLOPs, as some steps do more than others.

    The first step allocates moments and chooses algorithms, so that it counts only where no other is made.
    """
    first = before = _one_step(trainer)
    counted = trainer.flops.total
    taken: list[float] = []
    while len(taken) < steps and (not taken or sum(taken) < seconds):
        # Half of the time that is left is for what follows.
        if not left.allows(2.0 * before, "" if taken else "it is from a single step"):
            break
        before = _one_step(trainer)
        taken.append(before)
    if not taken:
        return first, counted
    return sum(taken) / len(taken), (trainer.flops.total - counted) / len(taken)


def _one_step(trainer: Trainer) -> float:
    """Make one, and say how many seconds it took."""
    device = trainer.accelerator.device
    _wait(device)
    started = time.perf_counter()
    trainer._step(MIDDLE)
    _wait(device)
    return time.perf_counter() - started


def _drawn(trainer: Trainer, path: Path, left: _Time) -> tuple[Tensor, float]:
    """The samples of a grid, and the seconds to make and to draw them; a few of them where all would take too long."""
    for n in (1, 4, 16, len(GRID_SEEDS)):
        started = time.perf_counter()
        samples = trainer.generator.stored(GRID_SEEDS[:n], trainer.method.preview())
        save_grid(samples, path, columns=8)
        seconds = time.perf_counter() - started
        if n < len(GRID_SEEDS) and not left.allows(4.0 * seconds, f"a grid is from {n} of its samples"):
            break
    return samples, seconds


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_of_half(plan: Plan, batch: int, folder: Path) -> float | None:
    """Memory in MiB of a step with half of what was measured."""
    half = batch // 2
    if half < plan.training.accumulate or half < 1:
        return None
    trainer = _trainer(plan, folder, half)
    with PeakMemory(trainer.accelerator.device) as memory:
        for _ in range(HALF_STEPS):
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
    """Memory of the GPU or the machine that this process has or may still take, beside other programs and within the
    limits of a container; elsewhere all of the machine's, or None where the system does not say."""
    free, own = free_mib(device), own_mib(device)
    if free is not None and own is not None:
        return free + own
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


def _advice(plan: Plan) -> tuple[str, ...]:
    words = []
    n = len(plan.data)
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

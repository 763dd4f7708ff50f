"""The training loop: the same for every method.

Data in, one ``method.step`` after another until the budget is spent, averaged weights, a log, sample grids of fixed
seeds, checkpoints. It knows no method: whatever differs between them is behind ``Method``.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import gather, gather_object, set_seed  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trilemma.config import Training
from trilemma.data import Dataset, batch_indices, save_grid
from trilemma.engine.budget import Budget, Clock
from trilemma.engine.checkpoint import (
    MISFITS,
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    random_state,
    save_checkpoint,
    set_aside,
    set_random_state,
)
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.machine import differences, machine
from trilemma.engine.processes import Gradients, together, told
from trilemma.engine.restore import check_state, load_optimizer
from trilemma.engine.run import Run
from trilemma.engine.stop import Stop, stopped_by
from trilemma.engine.training_flops import TrainingFlops
from trilemma.errors import NonFiniteError, RunError
from trilemma.measure.watch import Watch, alarms
from trilemma.methods.base import Method, Tools
from trilemma.types import Batch

GRID_SEEDS = sample_seeds(0, 0, 64)  # the same at every snapshot: one sees it learn
LOG_SECONDS = 2.0
WATCH_SHARE = 0.03  # of the training time may go into the watch, two thirds of it into its samples
LEAST_WATCHED = 100  # samples; with fewer, shares of a hundredth mean nothing
Probe = Callable[[Generator], Mapping[str, float]]
Report = Callable[["Progress"], None]


@dataclass
class Progress:
    """Where a training is."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    flops: int | None = 0  # over all processes; None: not known, for the start was not counted
    fraction: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # of the last snapshot, or of a resume


class Trainer:
    """Trains one method on one data set into one run folder."""

    def __init__(  # noqa: PLR0913
        self,
        run: Run,
        method: Method,
        data: Dataset,
        training: Training,
        budget: Budget,
        seed: int,
        *,
        accelerator: Accelerator,
        probe: Probe | None = None,
        watch: Watch | None = None,
        report: Report = lambda progress: None,
        stop: Stop | None = None,
    ) -> None:
        self.run, self.data, self.training, self.budget, self.seed = run, data, training, budget, seed
        self.probe, self.watch, self.report, self.accelerator = probe, watch, report, accelerator
        self.stop = stop or Stop()
        self._looks: list[dict[str, Any]] = []  # what the watch saw
        self._look_seconds: list[float] | None = None  # how long it took; None: see the log
        self._told_unwatched = False
        if accelerator.log_with:
            accelerator.init_trackers("trilemma")
        set_seed(seed + accelerator.process_index)
        self.method = method.to(  # type: ignore[call-overload]
            device=self.accelerator.device, memory_format=torch.channels_last
        )
        # Autocast only: "evaluation" leaves out the wrapper that would average gradients, which Gradients does.
        prepared = {
            name: self.accelerator.prepare_model(network, evaluation_mode=True)
            for name, network in method.networks().items()
        }
        self.optimizers = {name: self.accelerator.prepare(opt) for name, opt in method.optimizers().items()}
        gradients = Gradients(method.networks(), self.accelerator.backward, training.accumulate)
        self.tools = Tools(
            prepared,
            self.optimizers,
            gradients.backward,
            gradients.parts,
            gradients.number,
            self.accelerator.clip_grad_norm_,
            together,
        )
        averaged = nn.ModuleDict({name: method.networks()[name] for name in method.averaged})
        self.average = AveragedModel(averaged, multi_avg_fn=self._average_weights)
        self.generator = Generator(self._averaged_method())
        self.method.train()  # after the generator, which shares networks with it
        self.progress = Progress()
        self.clock = Clock()
        self.flops = TrainingFlops(method.networks())
        self._losses: Mapping[str, Tensor] = {}
        self._logged_at, self._logged_step = -math.inf, -1
        self._saved_at, self._saved_step = 0.0, 0
        self._snapshots_done = 0

    def _averaged_method(self) -> Method:
        """A second method whose sampling networks are the averages; the rest is never called."""
        method: Method = copy.copy(self.method)
        method._modules = dict(self.method._modules)
        for name, network in self._averages().items():
            setattr(method, name, network)
        return method

    def _averages(self) -> dict[str, nn.Module]:
        """The averaged networks by name."""
        return dict(cast(nn.ModuleDict, self.average.module).items())

    @torch.no_grad()
    def _average_weights(self, averages: Any, weights: Any, steps: Tensor | int) -> None:
        """Exponential average; early in a run its half-life may be limited to a share of the steps so far."""
        decay, share = self.training.ema_decay, self.training.ema_share
        if share > 0:
            decay = min(decay, 0.5 ** (1.0 / max(1.0, share * int(steps))))
        get_ema_multi_avg_fn(decay)(averages, weights, steps)  # type: ignore[no-untyped-call]

    def train(self) -> None:
        """Until the budget is spent or a signal came.

        Raises:
            NonFiniteError: a loss or weight is NaN or infinite; the last good checkpoint stays.
            RunError: a file cannot be written.
            Interrupted, Terminated: a signal came; all that was trained is saved.
        """
        if self._snapshots_done == 0 and self.progress.step == 0:
            self._snapshot()
        fraction, due, signal = self._agreed()
        while fraction < 1.0 and not signal:
            if due:
                self.save()
            self.clock.start()
            self._step(fraction)
            self.clock.pause()
            self._after_step()
            fraction, due, signal = self._agreed()
        if fraction >= 1.0:
            self._finish()
        elif self.progress.step > self._saved_step:
            self.save()
        self.accelerator.wait_for_everyone()  # before another process looks for what the main one writes
        for tracker in self.accelerator.trackers:
            tracker.finish()  # not end_training: the processes stay connected, for what comes after
        if signal := signal or self.stop.signal:
            steps = f"{self.progress.step:,} step{'' if self.progress.step == 1 else 's'}"
            words = f"{self.run.folder}: stopped after {steps}, all saved: go on with the same command and --resume"
            raise stopped_by(signal, words)

    def _agreed(self) -> tuple[float, bool, int]:
        """The share of the budget spent, whether a checkpoint is due, and which signal came (0: none).

        The same on all processes: the main one's clock counts, and a signal to any.
        """
        fraction, since = self._spent(), self.clock.seconds - self._saved_at
        due = self.progress.step > self._saved_step and since >= 60.0 * self.training.checkpoint_minutes
        if self.accelerator.num_processes == 1:
            return fraction, due, self.stop.signal
        own = [fraction, float(due), float(self.stop.signal)]
        told = gather(torch.tensor([own], dtype=torch.float64, device=self.accelerator.device)).tolist()
        return told[0][0], bool(told[0][1]), int(max(row[2] for row in told))

    def _spent(self) -> float:
        """The share of the budget spent, by this process's clock."""
        return self.budget.fraction(self.progress.images, self.clock.seconds, self.progress.flops or 0)

    def _step(self, fraction: float) -> None:
        batch = self._batch()
        with self.flops.step():
            self._losses = self.method.step(batch, fraction, self.tools)
        self.average.update_parameters(
            nn.ModuleDict({name: self.method.networks()[name] for name in self.method.averaged})
        )
        self.progress.step += 1
        self.progress.images += self.training.batch_size
        if self.progress.flops is not None:
            self.progress.flops = self.flops.total * self.accelerator.num_processes
        # Reading waits for the device, so on a GPU it is done only now and then.
        if self.accelerator.device.type == "cpu" or self.progress.step % 50 == 0:
            self._read_losses()

    def _batch(self) -> Batch:
        """This process's share of the step's images; the next step's are sent for."""
        n, now = self.training.batch_size, self.progress.images
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        here, there = (batch_indices(len(self.data), n, self.seed, start)[rank::size] for start in (now, now + n))
        batch = self.data.batch(here, self.accelerator.device)
        self.data.ahead(there)
        return batch

    def _read_losses(self) -> None:
        """The last step's losses as numbers, by one transfer for all."""
        if not self._losses:
            return
        values = torch.stack([value.float() for value in self._losses.values()]).tolist()
        self.progress.losses = dict(zip(self._losses, values, strict=True))
        for name, value in self.progress.losses.items():
            if not math.isfinite(value):
                bad = self._bad_tensor()
                raise self._diverged(f"{name} is {value}" + (f" and {bad}" if bad else ""))

    def _check(self) -> None:
        """Nothing bad may go into a checkpoint."""
        self._read_losses()
        if bad := self._bad_tensor():
            raise self._diverged(bad)

    def _bad_tensor(self) -> str:
        """The first weight that is NaN or infinite, in words, or nothing."""
        for network, module in self.method.networks().items():
            for name, parameter in module.named_parameters():
                if not torch.isfinite(parameter).all():
                    return f"the weight {network}.{name} is not finite"
        return ""

    def _diverged(self, what: str) -> NonFiniteError:
        return NonFiniteError(
            f"{self.run.folder}: step {self.progress.step}: {what}; {self._last_good()}; "
            "lower the learning rate or use full precision"
        )

    def _last_good(self) -> str:
        saved = checkpoints(self.run.checkpoint_folder)
        return f"the last good checkpoint is {saved[-1].name}" if saved else "no checkpoint had been written yet"

    def _after_step(self) -> None:
        progress = self.progress
        progress.seconds = self.clock.seconds
        progress.fraction = self._spent()
        if progress.seconds - self._logged_at >= LOG_SECONDS:
            self._logged_at = progress.seconds
            self._log({})
        self.report(progress)
        if progress.fraction < 1.0 and progress.fraction * self.training.snapshots >= self._snapshots_done:
            self._snapshot()

    def _log(self, scores: Mapping[str, Any]) -> None:
        progress = self.progress
        if not self.accelerator.is_main_process or (progress.step == self._logged_step and not scores):
            return
        self._logged_step = progress.step
        seconds = round(progress.seconds, 3)
        record: dict[str, Any] = {"step": progress.step, "images": progress.images, "seconds": seconds}
        if progress.flops is not None:
            record["flops"] = progress.flops
        record |= {"losses": {name: round(value, 6) for name, value in progress.losses.items()}}
        record |= {"lr": {name: opt.param_groups[0]["lr"] for name, opt in self.optimizers.items()}}
        if torch.cuda.is_available():
            record["gpu_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
        record |= dict(scores)
        self.run.log(record)
        numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
        self.accelerator.log(progress.losses | numbers | scores.get("watch", {}), step=progress.step)

    def _snapshot(self) -> None:
        """A grid of fixed seeds and, if asked for, a quick score; the clock stands still."""
        self._snapshots_done = math.floor(self.progress.fraction * self.training.snapshots) + 1
        if not self.accelerator.is_main_process or self.training.snapshots == 0:
            return
        state = random_state()
        self.generator.method.eval()
        started = time.perf_counter()
        samples = self.generator.stored(GRID_SEEDS, self.method.preview())
        seconds_an_image = (time.perf_counter() - started) / len(GRID_SEEDS)
        name = f"{self.progress.images // 1000:06d}k.png"
        save_grid(samples, self.run.sample_folder / name, columns=8)
        if self.progress.step > 0:
            self.progress.scores = dict(self.probe(self.generator)) if self.probe is not None else {}
            found = self._look(seconds_an_image)
            if self.progress.scores or found:
                self._log(self.progress.scores | found)
                self.report(self.progress)
            self.progress.warnings = []
        self.method.train()
        set_random_state(state)

    def _look(self, seconds_an_image: float) -> dict[str, Any]:
        """What the watch sees and has to say, for the log; nothing where it would take too long.

        All looks together take at most ``WATCH_SHARE`` of the training time, one taken to be as long as the one before;
        how long the first takes cannot be known.
        """
        if self.watch is None:
            return {}
        pause = self.clock.seconds / self.progress.fraction / self.training.snapshots
        most = min(self.training.watch_samples, len(self.data.x))
        if most < LEAST_WATCHED:
            return self._unwatched(most)
        n = min(most, int(2 / 3 * WATCH_SHARE * pause / seconds_an_image))
        if n < LEAST_WATCHED:  # a short training, which somebody looks at anyway
            return {}
        if self._look_seconds is None:  # the start, or a resume
            self._look_seconds = [
                record["watch_seconds"] for record in self.run.read_log() if "watch_seconds" in record
            ]
        if sum(self._look_seconds) + sum(self._look_seconds[-1:]) > WATCH_SHARE * self.clock.seconds:
            return {}
        started = time.perf_counter()
        seen = self.watch.look(self.generator.stored(sample_seeds(2, 0, n), self.method.preview()))
        seconds = time.perf_counter() - started
        self._look_seconds.append(seconds)
        self._looks.append({**seen, "images": self.progress.images, "fraction": self.progress.fraction})
        self.progress.warnings = alarms(self._looks)
        told = {"warnings": self.progress.warnings} if self.progress.warnings else {}
        watch = {name: round(value, 4) for name, value in seen.items()}
        return {"watch": watch, "watch_seconds": round(seconds, 3), **told}

    def _unwatched(self, n: int) -> dict[str, Any]:
        """Says once that the watch is off, as it would see only ``n`` samples."""
        if self._told_unwatched or self._looks:
            return {}
        self._told_unwatched = True
        self.progress.warnings = [
            f"nothing watches for collapse and copies: {n} samples could be looked at, and shares of less than "
            f"{LEAST_WATCHED} mean nothing; use more images and training.watch_samples, or set that to 0"
        ]
        return {"warnings": self.progress.warnings}

    def _finish(self) -> None:
        self.progress.fraction = 1.0
        if self._snapshots_done <= self.training.snapshots:  # or a kill came after the last one
            self._snapshot()
        self.save()
        if self.accelerator.is_main_process:
            self.run.save_weights(self._averages(), self.progress.step)

    # Checkpoints

    def save(self) -> None:
        """The full state for resuming."""
        self._check()
        self._saved_at, self._saved_step = self.clock.seconds, self.progress.step
        processes = [{"random": random_state(), "extra": self.method.extra_state()}]
        if self.accelerator.num_processes > 1:
            processes = gather_object(processes)
        if not self.accelerator.is_main_process:
            return
        self._log({})
        progress = self.progress
        state = {
            "networks": {name: network.state_dict() for name, network in self.method.networks().items()},
            "average": self.average.state_dict(),
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            **processes[0],
            "others": processes[1:],  # random numbers and extra state of the other processes
            "progress": {"step": progress.step, "images": progress.images, "seconds": self.clock.seconds},
            "shown": {"losses": progress.losses, "scores": progress.scores, "looks": self._looks},
            "machine": machine(self.accelerator),
        }
        if self.progress.flops is not None:
            state["flops"] = self.flops.state()
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        save_checkpoint(self.run.checkpoint_folder, state, progress.step, self.training.keep_checkpoints)

    def _newest(self) -> tuple[Path, dict[str, Any], list[Path]] | None:
        """``newest_checkpoint`` as the main process sees it: a shared disk may show another process an older one.

        Raises:
            RunError: this process does not see it yet.
        """
        folder, main = self.run.checkpoint_folder, self.accelerator.is_main_process
        found = newest_checkpoint(folder, check_state) if main else None
        name = told(found[0].name if found is not None else None)
        if main or name is None:
            return found
        if not (folder / name).is_file():
            raise RunError(
                f"{folder / name} is there for the main process and not for this one: wait for the shared disk"
            )
        return folder / name, load_checkpoint(folder / name), []

    def resume(self) -> None:
        """Continue from the newest whole checkpoint, or from the start where there is none yet.

        A damaged one, or one that no training can have written, is renamed, and that is told as a warning.

        Raises:
            RunError: all checkpoints are damaged or of other networks, or a finished run has none left.
        """
        found = self._newest()
        if found is None and self.run.model_path.is_file():
            raise RunError(f"{self.run.folder} has no checkpoint left to continue from: train anew with another --out")
        warnings: list[str] = []
        if found is not None:
            path, state, damaged = found
            self._load(path, state)
            self.accelerator.wait_for_everyone()  # before a file that another process still reads gets another name
            if self.accelerator.is_main_process:
                warnings = [
                    f"{file} is damaged, it is now {set_aside(file).name}: going on from {path.name}"
                    for file in damaged
                ]
            warnings += differences(state.get("machine", {}), machine(self.accelerator))
        warnings += self._trim_log(self.progress.step if found is not None else -1)
        if warnings and self.accelerator.is_main_process:
            self.progress.warnings = warnings
            self.report(self.progress)
            self.progress.warnings = []

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        """Take everything from a checkpoint."""
        rank = self.accelerator.process_index
        try:
            for name, network in self.method.networks().items():
                network.load_state_dict(state["networks"][name])
            self.average.load_state_dict(state["average"])
            for name, optimizer in self.optimizers.items():
                load_optimizer(optimizer, state["optimizers"][name])
            processes = [state, *state.get("others", [])]
            alike = len(processes) == self.accelerator.num_processes
            own = processes[rank] if alike else state
            self.method.load_extra_state(own["extra"])
            if self.accelerator.scaler is not None and "scaler" in state:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self._resume_flops(state.get("flops"), path)
        except MISFITS as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(
                f"{path} does not fit this run's config.json: {reason}: delete it to resume from the one before"
            ) from error
        position = state["progress"]  # this and the rest were checked when the file was read
        self.progress.step, self.progress.images = position["step"], position["images"]
        self.clock = Clock(position["seconds"])
        self.progress.seconds = position["seconds"]
        self.progress.fraction = min(1.0, self._spent())
        shown = state.get("shown", {})
        self.progress.losses, self.progress.scores = shown.get("losses", {}), shown.get("scores", {})
        self._looks = shown.get("looks", [])
        self._snapshots_done = math.floor(self.progress.fraction * self.training.snapshots) + 1
        self._saved_at = self._logged_at = position["seconds"]
        self._saved_step = self._logged_step = self.progress.step
        if alike or rank == 0:
            set_random_state(own["random"])
        else:  # of another number of processes: there is no state of this one, so it starts new noise
            torch.manual_seed(self.seed + rank + 1_000_003 * self.progress.step)

    def _resume_flops(self, state: Any, saved: Path) -> None:
        """Go on counting; a checkpoint of a version that did not count leaves the sum unknown for good."""
        if state is not None:
            self.flops.load_state(state)
            self.progress.flops = self.flops.total * self.accelerator.num_processes
            return
        self.progress.flops = None
        if self.budget.flops is not None:
            raise RunError(f"{saved} has no count of FLOPs: give --minutes or --images")

    def _trim_log(self, step: int) -> list[str]:
        """Cut the log at the checkpoint; what there is to say of it."""
        damaged = self.run.trim_log(step) if self.accelerator.is_main_process else 0
        return [f"{self.run.log_path}: {damaged} damaged line(s), left out"] if damaged else []

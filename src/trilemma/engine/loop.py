"""The training loop: the same for every method.

Data in, one ``method.step`` after another until the budget is spent, averaged weights, a log, sample grids of fixed seeds,
checkpoints. It knows no method: whatever differs between them is behind ``Method``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trilemma.config import Training
from trilemma.data import Dataset, batch_indices, save_grid
from trilemma.engine.budget import Budget, Clock
from trilemma.engine.checkpoint import (
    checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.run import Run
from trilemma.errors import NonFiniteError, RunError
from trilemma.methods.base import Method, Tools
from trilemma.types import Batch

GRID_SEEDS = sample_seeds(0, 0, 64)  # the same at every snapshot: one sees it learn
LOG_SECONDS = 2.0
Probe = Callable[[Generator], Mapping[str, float]]
Report = Callable[["Progress"], None]


@dataclass
class Progress:
    """Where a training is."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    fraction: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


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
        tracker: str | None = None,
        probe: Probe | None = None,
        report: Report = lambda progress: None,
    ) -> None:
        self.run, self.data, self.training, self.budget, self.seed = run, data, training, budget, seed
        self.probe, self.report = probe, report
        self.accelerator = Accelerator(
            mixed_precision=training.precision, log_with=tracker, project_dir=str(run.folder) if tracker else None
        )
        if tracker:
            self.accelerator.init_trackers("trilemma")
        torch.manual_seed(seed + self.accelerator.process_index)
        self.method = method.to(  # type: ignore[call-overload]
            device=self.accelerator.device, memory_format=torch.channels_last
        ).train()
        prepared = {name: self.accelerator.prepare(network) for name, network in method.networks().items()}
        self.optimizers = {name: self.accelerator.prepare(opt) for name, opt in method.optimizers().items()}
        self.tools = Tools(prepared, self.optimizers, self.accelerator.backward)
        averaged = nn.ModuleDict({name: method.networks()[name] for name in method.averaged})
        self.average = AveragedModel(
            averaged, multi_avg_fn=get_ema_multi_avg_fn(training.ema_decay), use_buffers=False
        )
        self.generator = Generator(self._averaged_method())
        self.progress = Progress()
        self.clock = Clock()
        self._logged_at = -math.inf
        self._saved_at = 0.0
        self._snapshots_done = 0

    def _averaged_method(self) -> Method:
        """A second method whose sampling networks are the averages; the rest is never called."""
        method = copy.copy(self.method)
        method._modules = dict(self.method._modules)
        for name in self.method.averaged:
            setattr(method, name, self.average.module[name])
        return method

    def train(self) -> None:
        """Until the budget is spent.

        Raises:
            NonFiniteError: a loss is NaN or infinite; the last good checkpoint stays.
            RunError: a file cannot be written.
        """
        if self._snapshots_done == 0 and self.progress.step == 0:
            self._snapshot()
        while (fraction := self._fraction()) < 1.0:
            self.clock.start()
            self._step(fraction)
            self.clock.pause()
            self._after_step()
        self._finish()

    def _fraction(self) -> float:
        """The share of the budget spent, agreed by all processes."""
        fraction = self.budget.fraction(self.progress.images, self.clock.seconds)
        if self.accelerator.num_processes > 1:
            agreed = broadcast(torch.tensor([fraction], dtype=torch.float64, device=self.accelerator.device))
            fraction = float(agreed.item())
        return fraction

    def _step(self, fraction: float) -> None:
        losses = self.method.step(self._batch(), fraction, self.tools)
        self.average.update_parameters(
            nn.ModuleDict({name: self.method.networks()[name] for name in self.method.averaged})
        )
        self.progress.step += 1
        self.progress.images += self.training.batch_size
        self.progress.losses = self._finite(losses)

    def _batch(self) -> Batch:
        """This process's share of the step's images."""
        index = batch_indices(len(self.data), self.training.batch_size, self.seed, self.progress.images)
        rank, size = self.accelerator.process_index, self.accelerator.num_processes
        batch = self.data.batch(index[rank::size])
        device = self.accelerator.device
        return Batch(batch.x.to(device), None if batch.labels is None else batch.labels.to(device))

    def _finite(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        # One transfer for all scalars; on a GPU only now and then, as it waits for the device.
        if self.accelerator.device.type != "cpu" and self.progress.step % 50:
            return self.progress.losses
        values = dict(zip(losses, torch.stack([value.float() for value in losses.values()]).tolist(), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{self.run.folder}: step {self.progress.step}: {name} is {value}{self._first_bad()}; "
                    f"{self._last_good()}; lower the learning rate or use full precision"
                )
        return values

    def _first_bad(self) -> str:
        for network, module in self.method.networks().items():
            for name, parameter in module.named_parameters():
                if not torch.isfinite(parameter).all():
                    return f" and the weight {network}.{name} is not finite"
                if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                    return f" and the gradient of {network}.{name} is not finite"
        return ""

    def _last_good(self) -> str:
        saved = checkpoints(self.run.checkpoint_folder)
        return f"the last good checkpoint is {saved[-1].name}" if saved else "no checkpoint had been written yet"

    def _after_step(self) -> None:
        progress = self.progress
        progress.seconds = self.clock.seconds
        progress.fraction = self.budget.fraction(progress.images, progress.seconds)
        if progress.seconds - self._logged_at >= LOG_SECONDS:
            self._logged_at = progress.seconds
            self._log({})
        self.report(progress)
        if progress.fraction < 1.0:
            if progress.fraction * self.training.snapshots >= self._snapshots_done:
                self._snapshot()
            if progress.seconds - self._saved_at >= 60.0 * self.training.checkpoint_minutes:
                self.save()

    def _log(self, scores: Mapping[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        progress = self.progress
        record: dict[str, Any] = {"step": progress.step, "images": progress.images, "seconds": round(progress.seconds, 3)}
        record |= {"losses": {name: round(value, 6) for name, value in progress.losses.items()}}
        record |= {"lr": {name: opt.param_groups[0]["lr"] for name, opt in self.optimizers.items()}}
        if torch.cuda.is_available():
            record["gpu_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
        record |= dict(scores)
        self.run.log(record)
        self.accelerator.log(progress.losses | dict(scores), step=progress.step)

    def _snapshot(self) -> None:
        """A grid of fixed seeds and, if asked for, a quick score; the clock stands still."""
        self._snapshots_done = math.floor(self.progress.fraction * self.training.snapshots) + 1
        if not self.accelerator.is_main_process or self.training.snapshots == 0:
            return
        state = random_state()
        self.generator.method.eval()
        samples = self.generator.stored(GRID_SEEDS, self.method.preview())
        name = f"{self.progress.images // 1000:06d}k.png"
        save_grid(samples, self.run.folder / "samples" / name, columns=8)
        if self.probe is not None and self.progress.step > 0:
            self.progress.scores = dict(self.probe(self.generator))
            self._log(self.progress.scores)
            self.report(self.progress)
        self.method.train()
        set_random_state(state)

    def _finish(self) -> None:
        self.progress.fraction = 1.0
        self._snapshot()
        self.save()
        if self.accelerator.is_main_process:
            self.run.save_weights(self.average.module)
        self.accelerator.end_training()

    # Checkpoints

    def save(self) -> None:
        """The full state for resuming."""
        self._saved_at = self.clock.seconds
        if not self.accelerator.is_main_process:
            return
        self._log({})
        state = {
            "networks": {name: network.state_dict() for name, network in self.method.networks().items()},
            "average": self.average.state_dict(),
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "extra": self.method.extra_state(),
            "random": random_state(),
            "progress": {"step": self.progress.step, "images": self.progress.images, "seconds": self.clock.seconds},
            "snapshots_done": self._snapshots_done,
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        save_checkpoint(self.run.checkpoint_folder, state, self.progress.step, self.training.keep_checkpoints)

    def resume(self) -> None:
        """Continue from the newest checkpoint, or from the start where there is none yet."""
        saved = checkpoints(self.run.checkpoint_folder)
        if not saved:
            self.run.trim_log(-1)
            return
        state = load_checkpoint(saved[-1])
        try:
            for name, network in self.method.networks().items():
                network.load_state_dict(state["networks"][name])
            self.average.load_state_dict(state["average"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(f"{saved[-1]} does not fit this run's config.json: {reason}") from error
        self.method.load_extra_state(state["extra"])
        set_random_state(state["random"])
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        position = state["progress"]
        self.progress.step, self.progress.images = position["step"], position["images"]
        self.clock = Clock(position["seconds"])
        self._snapshots_done = state["snapshots_done"]
        self._saved_at = self._logged_at = position["seconds"]
        self.progress.fraction = self.budget.fraction(self.progress.images, self.clock.seconds)
        self.run.trim_log(self.progress.step)


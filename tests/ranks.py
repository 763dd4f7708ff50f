"""What the processes of ``tests/engine/test_processes.py`` do: ``torchrun tests/ranks.py MODE FOLDER``."""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from same_run import quick_plan
from tiny import tiny_options, tiny_plan
from trilemma.engine import evaluate as evaluation
from trilemma.engine.checkpoint import checkpoints
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.loop import Progress, Trainer
from trilemma.engine.processes import Gradients, join
from trilemma.engine.run import Run
from trilemma.engine.train import Plan, train
from trilemma.errors import Terminated
from trilemma.maths.adversarial import discriminator_objective
from trilemma.measure.features import Extractor
from trilemma.methods.ddpm import DDPM
from trilemma.types import Sampler

METHODS: dict[str, dict[str, Any]] = {
    "stylegan2": {
        "augment": "ada",
        "ada": {"interval": 3, "target": -1.0, "kimg": 0.05},  # a strength of about a half after three steps
        "lazy_reg": 2,
        "path_every": 2,
    },
    "diffusion_gan": {"interval": 2, "target": -1.0, "kimg": 0.05, "lazy_reg": 2, "path_every": 2},
    "ddgan": {"lazy_reg": 2, "r2_gamma": 0.1, "shared_pass": True},
    "spigan": {"lazy_reg": 2},
    "vae": {},
}
"""Penalties at every other step, and whatever processes have to agree on."""


def known_plan(**changes: Any) -> Plan:
    """Four steps of 8 images without dropout."""
    plan = tiny_plan("ddpm", images=32, snapshots=0, checkpoint_minutes=60.0, **changes)
    unet = replace(plan.options.unet, dropout=0.0)
    return replace(plan, options=replace(plan.options, unet=unet, learning_rate=0.1, final_learning_rate=0.1))


def train_known(folder: Path, **changes: Any) -> None:
    """DDPM whose noise is decided by the image, and whose weights move in proportion to the gradient."""

    def draw(self: DDPM, x_0: Tensor) -> tuple[Tensor, Tensor]:
        ts, noises = [], []
        for image in x_0:
            random = torch.Generator().manual_seed(zlib.crc32(image.contiguous().numpy().tobytes()))
            ts.append(torch.randint(0, self.options.timesteps, (), generator=random))
            noises.append(torch.randn(image.shape, generator=random))
        return torch.stack(ts), torch.stack(noises)

    def optimizers(self: DDPM) -> dict[str, Optimizer]:
        return {"denoiser": SGD(self.denoiser.parameters(), lr=0.1)}

    with patch.object(DDPM, "_draw", draw), patch.object(DDPM, "optimizers", optimizers):
        train(known_plan(**changes), folder)


def train_method(name: str, folder: Path) -> None:
    """Four steps; then the weights of this process and their averages, what it remembers beside them, and how many
    messages with gradients it sent, in a file of its own."""
    finish, send, messages = Trainer._finish, torch.distributed.all_reduce, []

    def count(gradients: Tensor) -> None:
        messages.append(len(gradients))
        send(gradients)

    def show(self: Trainer) -> None:
        finish(self)
        averages = {f"average.{key}": net for key, net in self._averages().items()}
        found = {
            f"{key}.{name}": value.detach().contiguous().clone()
            for key, net in (self.method.networks() | averages).items()
            for name, value in net.state_dict().items()
        }
        extra = self.method.extra_state()
        found["messages"] = torch.tensor(len(messages))
        found["path_mean"] = torch.tensor(float(extra.get("path_mean", 0.0)))
        for name, value in extra.get("controller", {}).items():
            found[f"controller.{name}"] = torch.tensor(float(value))
        if "noise" in extra:
            found["noise.T"] = torch.tensor(extra["noise"]["T"])
        save_file(found, folder / f"{self.run.folder.name}-{join().process_index}.safetensors")

    plan = tiny_plan(name, images=32, snapshots=0, checkpoint_minutes=60.0)
    with patch.object(Trainer, "_finish", show), patch.object(torch.distributed, "all_reduce", count):
        train(replace(plan, options=tiny_options(name, **METHODS[name])), folder / name)


def penalised(rank: int, count: int) -> dict[str, Tensor]:
    """Gradients of a discriminator with R1 and R2, from this process's share of eight points."""
    random = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 8, 2, generator=random)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))
    gradients = Gradients({"net": net}, lambda loss: loss.backward())
    loss, _ = discriminator_objective(net, real[rank::count], fake[rank::count], r1_gamma=1.0, r2_gamma=0.5)
    gradients.backward(loss)
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def stop_and_go_on(folder: Path) -> None:
    """A signal reaches the second process alone; both end with the status that this file tells, and then go on."""

    def report(progress: Progress) -> None:
        if progress.step == 2 and join().process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    plan = quick_plan(snapshots=0)
    train(plan, folder / "unbroken")
    try:
        train(plan, folder / "stopped", report=report)
    except Terminated as stop:
        newest = checkpoints(folder / "stopped" / "checkpoints")[-1].stem
        (folder / f"stopped-{join().process_index}.txt").write_text(f"{stop.code} {newest}")
    train(plan, folder / "stopped", resume=True)


def score(folder: Path) -> None:
    """Points and images, scored; what each process is told goes into a file of its own, with the number of images that
    it looked at itself."""
    timed, see, looked = evaluation.speed_scores, Extractor.features, []

    def count(self: Extractor, x: Tensor) -> dict[str, Tensor]:
        looked.append(len(x))
        return see(self, x)

    brief = patch.object(evaluation, "speed_scores", lambda *args, **kwargs: timed(*args, **kwargs, limit_seconds=0.0))
    with brief, patch.object(Extractor, "features", count):
        points = evaluation.evaluate(Run(folder / "unbroken"), Sampler(), samples=250)
        images = evaluation.evaluate(Run(folder / "known"), Sampler(steps=2), samples=300, cache=False)
    told = {"points": points, "images": images, "looked": sum(looked)}
    (folder / f"scores-{join().process_index}.json").write_text(json.dumps(told))


def all_together(folder: Path) -> None:
    """Everything that two processes show without one of them dying."""
    train_known(folder / "known")
    for name in METHODS:
        train_method(name, folder)
    save_file(penalised(join().process_index, 2), folder / f"penalised-{join().process_index}.safetensors")
    stop_and_go_on(folder)
    score(folder)
    samples = Generator.load(folder / "known", device="cpu").shared(
        sample_seeds(0, 0, 25), Sampler(steps=2), batch_size=7
    )
    save_file({"samples": samples.contiguous()}, folder / f"samples-{join().process_index}.safetensors")


def die_once(folder: Path) -> None:
    """The second process is killed in the second step, unless it has been started again."""
    again = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0

    def report(progress: Progress) -> None:
        if not again and join().process_index == 1 and progress.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if again and join().is_main_process:
            print(f"step {progress.step} after the restart", flush=True)

    train(quick_plan(snapshots=0), folder, report=report)


def train_on_a_machine(folder: Path) -> None:
    train_known(folder)
    here = join()
    print(f"process {here.process_index} of {here.num_processes}, {here.local_process_index} here", flush=True)


if __name__ == "__main__":
    {"all": all_together, "die": die_once, "machine": train_on_a_machine}[sys.argv[1]](Path(sys.argv[2]))

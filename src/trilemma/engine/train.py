"""From a method's name and a data set's to a run folder: resolve the recipe, write config.json, train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trilemma.config import Recipe, Training, all_of, build, default_recipe, load_recipe, plain, require
from trilemma.data import Dataset, data_place, load_data, usual_size
from trilemma.engine.again import training_command
from trilemma.engine.budget import Budget
from trilemma.engine.cpu import settle_cpu
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.judge import drawn
from trilemma.engine.loop import Probe, Progress, Trainer
from trilemma.engine.machine import make_accelerator
from trilemma.engine.processes import check_shares, company, join, restarted, told
from trilemma.engine.run import Run
from trilemma.engine.stop import asked_to_stop
from trilemma.errors import ConfigError, RunError
from trilemma.measure.features import FeatureSet, default_extractor, extract, load_extractor
from trilemma.measure.fidelity import fid_only
from trilemma.measure.modes import mode_scores
from trilemma.measure.speed import hardware, versions
from trilemma.measure.watch import Watch
from trilemma.methods import method_class
from trilemma.methods.base import Method

_SHAPING = ("batch_size", "ema_decay", "ema_share", "precision")  # training settings that decide the weights


@dataclass(frozen=True)
class Plan:
    """Everything a training needs, resolved and checked before any work."""

    method: str
    recipe: str
    options: Any  # the method's options dataclass
    training: Training
    budget: Budget
    data: Dataset
    path: str | None  # the folder or zip the data came from; None for a known set
    seed: int


def resolve_recipe(method: str, data: str, recipe: str | None) -> tuple[str, Recipe]:
    """The recipe's name and content: the one named, or the method's own for this data.

    Raises:
        ConfigError: no such recipe, or a recipe for another method.
    """
    method_class(method)
    kind = "points" if data == "gaussians" else "images"
    name = recipe or default_recipe(method, data, kind)
    loaded = load_recipe(name)
    if loaded.method != method:
        raise ConfigError(f"recipe {name} is for {loaded.method}, not {method}: choose another with --recipe")
    return name, loaded


def make_plan(  # noqa: PLR0913
    method: str,
    data: str | Dataset,
    *,
    recipe: str | None = None,
    minutes: float | None = None,
    images: int | None = None,
    flops: float | None = None,
    seed: int = 0,
    data_root: Path | None = None,
    size: int | None = None,
    options: Any = None,
    training: Training | None = None,
    path: str | None = None,
) -> Plan:
    """Check every setting, then load the data. ``path`` says where a data set given as an object was read from.

    Raises:
        ConfigError: settings that cannot be, all that are wrong in one line, before any data are read.
        DataError: data that cannot be had.
    """
    name, loaded = resolve_recipe(method, data if isinstance(data, str) else data.name, recipe)
    kind = method_class(method)
    options = options if options is not None else build(kind.Options, loaded.options, f"recipe {name}")
    training = training or loaded.training
    if minutes is None and images is None and flops is None:
        minutes, images, flops = training.minutes, training.images, training.flops
    if minutes is None and images is None and flops is None:
        raise ConfigError(f"recipe {name} has no default budget: give --minutes or --images, or --flops")
    processes = join().num_processes
    budget, *_ = all_of(
        lambda: Budget(minutes=minutes, images=images, flops=flops),
        lambda: require(0 <= seed < 2**31, f"seed must be from 0 to 2147483647, not {seed}"),
        lambda: check_shares(training.batch_size, training.accumulate, processes),
    )
    if isinstance(data, str):
        path = data_path(data)
        with company(), join().main_process_first():  # it may have to download
            data = load_data(
                data,
                root=data_root,
                size=usual_size(data, loaded.data.size) if size is None else size,
                channels=loaded.data.channels,
            )
    return Plan(method, name, options, training, budget, data, path, seed)


def data_path(data: str) -> str | None:
    """What finds data again from any folder; None for a known set."""
    return data_place(data)


@company()
def train(
    plan: Plan,
    out: Path,
    *,
    resume: bool = False,
    tracker: str | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Run:
    """Train into the folder ``out``, together with the other processes that call this.

    SIGTERM and Ctrl-C let it save its state first. Processes that torchrun started again go on from the last
    checkpoint, as with ``resume``.

    Raises:
        RunError: the folder holds a run already and ``resume`` is False, or belongs to other settings; or another
            process has ended.
        ConfigError: a batch that cannot be shared or taken in parts.
        NonFiniteError: training diverged.
        Interrupted, Terminated: one of the two signals came.
    """
    settle_cpu()
    run = Run(out)
    method = build_method(plan)
    probe = _probe(plan) if plan.training.probe_samples and join().is_main_process else None
    accelerator = make_accelerator(run, plan.training.precision, tracker)
    again = restarted() or resume
    resuming, done = told(_found(run, plan, method.title(), again) if accelerator.is_main_process else None)
    if done:
        return run
    with asked_to_stop() as stop:
        trainer = Trainer(
            run,
            method,
            plan.data,
            plan.training,
            plan.budget,
            plan.seed,
            accelerator=accelerator,
            probe=probe,
            watch=_watch(plan) if accelerator.is_main_process else None,
            report=report,
            stop=stop,
        )
        if resuming:
            trainer.resume()
        trainer.train()
    return run


def build_method(plan: Plan) -> Method:
    """The plan's method with fresh weights, the same in every process.

    Raises:
        ConfigError: a batch that the processes cannot share, or that has fewer images than parts.
    """
    kind = method_class(plan.method)
    check_shares(plan.training.batch_size, plan.training.accumulate, join().num_processes)
    torch.manual_seed(plan.seed)
    return kind(plan.options, plan.data.spec)


def _found(run: Run, plan: Plan, title: str, resume: bool) -> tuple[bool, bool]:
    """Whether there is a training to go on with, and whether it is at its end already."""
    resuming = _prepare_folder(run, plan, title, resume)
    return resuming, resuming and run.model_path.is_file() and _spent(run, plan.budget)


def _spent(run: Run, budget: Budget) -> bool:
    """Whether a run's weights are those of this budget's end, and not of a shorter one that it trained for before."""
    log, step = run.read_log(), run.finished_step()
    if step is not None:  # earlier versions did not say it: their log's last record has to do
        log = [record for record in log if record["step"] == step]
    if not log or not {"images", "seconds"} <= log[-1].keys():
        return False
    last = log[-1]
    return budget.fraction(last["images"], last["seconds"], last.get("flops") or 0.0) >= 1.0


def _prepare_folder(run: Run, plan: Plan, title: str, resume: bool) -> bool:
    """Write config.json, or check that the run found there is the same one; whether to resume."""
    config = _config(plan, title)
    if not run.config_path.is_file():
        run.clear_temporaries()  # killed before it had a config.json
        if run.folder.is_dir() and any(run.folder.iterdir()):
            raise RunError(f"{run.folder} is not empty and not a run: choose another folder with --out")
        run.write_config(config)
        return False
    if not resume:
        raise RunError(f"{run.folder} holds a run already: go on with --resume or choose another folder with --out")
    before = run.config()
    known = before | {"options": _options(before, str(run.config_path))}
    changed = [key for key in ("method", "options", "seed") if _normal(known.get(key)) != _normal(config[key])]
    changed += ["data"] if before["data"].get("digest") != config["data"]["digest"] else []
    settings = before.get("training") or {}
    changed += [f"training.{key}" for key in _SHAPING if settings.get(key) != config["training"][key]]
    if changed:
        raise RunError(
            f"{run.folder} was trained with another {', '.join(changed)}: resume with the same or choose --out"
        )
    if settings != config["training"]:  # a longer budget, say
        run.write_config(before | {"training": config["training"]})
    run.clear_temporaries()
    return True


def _options(config: Mapping[str, Any], where: str) -> Any:
    """A run's options in full: one that an earlier version did not have takes its default, which changes nothing."""
    try:
        return plain(build(method_class(config["method"]).Options, config["options"], where))
    except ConfigError:  # options of this version do not hold: another run
        return config["options"]


def _normal(value: Any) -> Any:
    """Tuples and lists alike, as JSON has only lists."""
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    return [_normal(item) for item in value] if isinstance(value, list | tuple) else value


def describe_data(data: Dataset, path: str | None) -> dict[str, Any]:
    """What a run remembers of its data."""
    return {
        "name": data.name,
        "path": path,
        "source": data.source,
        "split": data.split,
        "digest": data.digest,
        "images": len(data),
        "spec": plain(data.spec),
        "class_names": list(data.class_names),
        "skipped": list(data.skipped),
    }


def _config(plan: Plan, title: str) -> dict[str, Any]:
    budget = plan.budget
    training = replace(plan.training, minutes=budget.minutes, images=budget.images, flops=budget.flops)
    return {
        "method": plan.method,
        "title": title,
        "recipe": plan.recipe,
        "data": describe_data(plan.data, plan.path),
        "options": plain(plan.options),
        "training": plain(training),
        "seed": plan.seed,
        "command": training_command(plan),
        "versions": versions(),
        "hardware": hardware(),
    }


def _watch(plan: Plan) -> Watch | None:
    """For images, if it is wanted."""
    wanted = plan.training.watch_samples > 0 and plan.training.snapshots > 0
    return Watch(plan.data.x) if wanted and plan.data.spec.kind == "images" else None


def _probe(plan: Plan) -> Probe:
    """A quick score for the learning curve: FID on few samples, or modes for points."""
    count = plan.training.probe_samples
    seeds = sample_seeds(1, 0, count)
    data = plan.data
    if data.spec.kind == "points":
        if data.modes is None or data.sigma is None:
            raise ConfigError(f"{data.name} has no known modes to score: set probe_samples to 0")
        modes, sigma = data.modes, data.sigma
        return lambda generator: mode_scores(
            generator.stored(seeds, generator.method.preview()).flatten(1), modes, sigma
        )
    extractor = load_extractor(default_extractor(data.name, data.spec))
    reference: list[FeatureSet] = []

    def probe(generator: Generator) -> dict[str, float]:
        if not reference:
            reference.append(extract(drawn(data.x), extractor))  # as an evaluation's: sets often lie class by class
        samples = generator.stored(seeds, generator.method.preview())
        return {"fid": fid_only(extract(samples, extractor), reference[0])}

    return probe

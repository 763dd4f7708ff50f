"""Measuring: each row is images a second, the FLOPs an image takes, and what share of the roofline that makes.

FLOPs are counted by shape (``trilemma.measure.flops``): matrix products, convolutions and attention. A training step is
timed with its lazy penalties due and without, each kind counting as often as it occurs.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import REFERENCE_ROOFLINE, Case
from benchmarks.steps import time_by_kind
from trilemma.engine.cpu import settle_cpu
from trilemma.engine.export import program
from trilemma.errors import TrilemmaError
from trilemma.maths.noise import SeedNoise, give_noise
from trilemma.measure.convolutions import ceiling, convolutions_of, measure_convolution
from trilemma.measure.features import load_extractor
from trilemma.measure.flops import FlopCounter
from trilemma.measure.memory import KeptForBackward, PeakMemory
from trilemma.measure.roofline import Roofline, measure_roofline
from trilemma.measure.speed import measure
from trilemma.methods.base import Method, Tools
from trilemma.types import Batch

SHAPES = 4  # convolutions of each network that are measured alone: those with the most work
EVALUATED = 1_000  # images whose features are computed
_MIB = 2.0**20

Row = dict[str, Any]
Report = Callable[[str], object]


@dataclass(frozen=True)
class Settings:
    """What holds for all measurements."""

    device: torch.device
    seconds: float  # no further repeat is begun after so many, in each measurement
    repeats: int = 10
    batches: tuple[int, ...] = (1, 100)  # of sampling
    runtimes: tuple[str, ...] = ()  # that run the exported samplers
    precision: str = "fp32"  # of matrix products and convolutions: one of PRECISIONS
    backend: str | None = None  # of torch.compile, for one more measurement of sampling


PRECISIONS = ("fp32", "tf32", "bf16")


@contextlib.contextmanager
def computed_in(settings: Settings) -> Iterator[None]:
    """Everything inside in the settings' precision. TF32 is a GPU's; bf16 is autocast's, so weights stay float32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    tf32 = settings.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        with torch.autocast(settings.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def row(name: str, kind: str, batch: int, seconds: float, repeats: int, flops: float, roofline: Roofline) -> Row:
    """``seconds`` of a batch and ``flops`` of one image as they are written down."""
    speed = batch / seconds
    return {
        "case": name,
        "kind": kind,
        "batch": batch,
        "images_per_second": speed,
        "flops_per_image": flops,
        "share_of_roofline": flops * speed / roofline.best,
        "repeats": repeats,
    }


class Trainer:
    """A case's method with fresh weights, a batch and optimisers."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.method = case.build(device).train()
        x = SeedNoise(range(case.batch)).normal(case.spec.shape).clamp(-1.0, 1.0).to(device)
        self.batch = Batch(x.contiguous(memory_format=torch.channels_last))
        self.tools = Tools(self.method.networks(), self.method.optimizers(), lambda loss: loss.backward())  # type: ignore[no-untyped-call]

    def step(self, done: int) -> None:
        """The optimisation step that has ``done`` others before it."""
        self.method.load_extra_state(self.method.extra_state() | {"steps_done": done})
        self.method.step(self.batch, 0.5, self.tools)

    def kinds(self) -> dict[int, float]:
        """As ``kinds_of_steps``."""
        return kinds_of_steps(self.method.options)


def kinds_of_steps(options: Any) -> dict[int, float]:
    """One step of each kind, by the number of steps before it, and the share of all steps that are of its kind: steps
    in which the same lazy penalties are due do the same work."""
    intervals = [getattr(options, "lazy_reg", 1)]
    if getattr(options, "path_weight", 0) > 0:
        intervals.append(options.path_every)
    cycle = math.lcm(*intervals)
    kinds = [tuple(step % every == 0 for every in intervals) for step in range(cycle)]
    return {kinds.index(kind): count / cycle for kind, count in Counter(kinds).items()}


def training_flops(case: Case, settings: Settings) -> float:
    """Of one image in training, counting only what the algorithm needs."""
    trainer = Trainer(case if case.needed is None else replace(case, options=case.needed), settings.device)
    total = 0.0
    for done, share in trainer.kinds().items():
        with FlopCounter() as counter:
            trainer.step(done)
        total += share * counter.total
    return total / case.batch


def training(case: Case, trainer: Trainer, flops: float, roofline: Roofline, settings: Settings) -> Row:
    """The optimisation steps of the case's batch, each kind as often as it comes."""
    seconds, repeats = 0.0, settings.repeats
    for done, share in trainer.kinds().items():
        trainer.step(done)
        timing = measure(
            partial(trainer.step, done),
            device=settings.device,
            limit_seconds=settings.seconds,
            max_repeats=settings.repeats,
        )
        seconds += share * timing.quantile(0.5)
        repeats = min(repeats, len(timing.seconds))
    return row(case.name, "train", case.batch, seconds, repeats, flops, roofline)


def training_memory(trainer: Trainer, device: torch.device) -> dict[str, Any]:
    """The peak of training steps and what they need at least, in MiB.

    The peak is of what lies there between steps (weights, the optimisers' states, the last gradients) and of what the
    process takes more while it steps. What libraries hold all the time, such as compiled kernels, is not a step's.
    """
    weights = [*trainer.method.parameters(), *trainer.method.buffers()]
    with KeptForBackward(weights) as kept:
        for done in trainer.kinds():
            trainer.step(done)
    states = [
        value
        for optimizer in trainer.tools.optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    needed = {
        "weights": _mib(weights),
        "gradients": _mib(gradients),
        "optimizers": _mib(states),
        "activations": kept.mib,
    }
    with PeakMemory(device) as peak:
        for done in trainer.kinds():
            trainer.step(done)
    used = None
    if peak.mib is not None and peak.before_mib is not None:
        used = peak.mib - peak.before_mib + _mib([*weights, *states, *gradients])
    return {
        "kind": peak.kind,
        "needed_mib": needed,
        "peak_mib": used,
        "peak_over_needed": None if used is None else used / sum(needed.values()),
    }


def _mib(tensors: Sequence[Tensor]) -> float:
    return sum(tensor.nbytes for tensor in tensors) / _MIB


def sampling(case: Case, method: Method, roofline: Roofline, settings: Settings) -> list[Row]:
    """The method's quick sampler: the default one, but few steps where that takes a thousand; then the same with its
    networks compiled, if the settings have a backend."""
    method.eval()
    sampler = method.preview()

    def sample(n: int) -> Tensor:
        return method.sample(range(n), sampler).x

    with FlopCounter() as counter:
        sample(1)
    found = []
    for backend, batch in itertools.product(dict.fromkeys((None, settings.backend)), settings.batches):
        with compiled(method, backend):
            sample(batch)
            timing = measure(
                partial(sample, batch),
                device=settings.device,
                limit_seconds=settings.seconds,
                max_repeats=settings.repeats,
            )
        kind = "sample" if backend is None else f"sample, compiled by {backend}"
        found.append(row(case.name, kind, batch, timing.quantile(0.5), len(timing.seconds), counter.total, roofline))
    return found


@contextlib.contextmanager
def compiled(method: Method, backend: str | None) -> Iterator[None]:
    """Its networks by torch.compile, if there is a ``backend``, for as long as this lasts."""
    networks = method.counted_networks().values() if backend else ()
    for network in networks:
        network.compile(backend=backend)
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None


def exported(case: Case, flops: float, roofline: Roofline, settings: Settings, report: Report) -> list[Row]:
    """The same sampler as a file that other runtimes run. Each has a process of its own: they come with threads of
    their own, and one that crashes takes no other figures along."""
    found = []
    for runtime in settings.runtimes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
            own = processes.submit(exported_by, runtime, case, flops, roofline, settings, torch.get_num_threads())
            try:
                rows, told = own.result()
            except BrokenProcessPool:
                rows, told = [], ["its process died, so it is left out; without it: --runtimes"]
        found += rows
        for line in told:
            report(f"{case.name}, {runtime}: {line}")
    return found


def exported_by(  # noqa: PLR0917
    runtime: str, case: Case, flops: float, roofline: Roofline, settings: Settings, threads: int
) -> tuple[list[Row], list[str]]:
    """One runtime's rows, and what kept it from others. Noise is given to it, not drawn: ``difference`` is the largest
    from PyTorch's samples of the same noise."""
    torch.set_num_threads(threads)
    settle_cpu()
    method = case.build(settings.device).eval().requires_grad_(False)
    sampler, rows, told = method.preview(), [], []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for batch in settings.batches:
            try:
                run, noise = program(method, sampler, runtime, Path(folder), batch)
            except TrilemmaError as error:
                told.append(str(error))
                continue
            with give_noise(noise):
                wanted = method.sample(range(1), sampler).x
            difference = float((run(noise) - wanted).abs().max())
            timing = measure(partial(run, noise), limit_seconds=settings.seconds, max_repeats=settings.repeats)
            kind, repeats = f"sample, {runtime}", len(timing.seconds)
            rows.append(
                row(case.name, kind, batch, timing.quantile(0.5), repeats, flops, roofline) | {"difference": difference}
            )
    return rows, told


def own_convolutions(case: Case, method: Method, roofline: Roofline, settings: Settings) -> dict[str, Any]:
    """The shapes with the most work in sampling at the larger batch, and the rate that they allow together."""
    method.eval()
    batch = min(max(settings.batches), case.batch)
    calls: Counter[Any] = convolutions_of(lambda: method.sample(range(batch), method.preview()))
    if not calls:
        return {}
    largest = sorted(calls, key=lambda shape: calls[shape] * shape.flops(), reverse=True)[:SHAPES]
    rates = {shape: measure_convolution(shape, settings.device) for shape in largest}
    total = sum(count * shape.flops() for shape, count in calls.items())
    return {
        "batch": batch,
        "flops_per_second": ceiling(calls, rates),
        "share_of_roofline": ceiling(calls, rates) / roofline.best,
        "shapes": [
            {
                "input": list(shape.input),
                "weight": list(shape.weight),
                "stride": list(shape.stride),
                "groups": shape.groups,
                "transposed": shape.transposed,
                "share_of_work": calls[shape] * shape.flops() / total,
                "flops_per_second": rate,
            }
            for shape, rate in rates.items()
        ],
    }


def evaluation(roofline: Roofline, settings: Settings, images: int = EVALUATED) -> Row:
    """Features of digits by the network that scores them."""
    extractor = load_extractor("digits", device=settings.device)
    x = torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = torch.split(x, extractor.batch)

    def run() -> None:
        for part in parts:
            extractor.features(part)

    with FlopCounter() as counter:
        run()
    timing = measure(run, device=settings.device, limit_seconds=settings.seconds, max_repeats=settings.repeats)
    seconds, repeats = timing.quantile(0.5), len(timing.seconds)
    return row("digits-features", "evaluate", images, seconds, repeats, counter.total / images, roofline)


def against_reference(case: Case, rows: Sequence[Row], roofline: Roofline) -> dict[str, float]:
    """Our images a second over the reference's, scaled to this machine's roofline: training, and the largest batch."""
    if case.reference is None:
        return {}
    scale = roofline.best / REFERENCE_ROOFLINE
    ours = {line["kind"]: line["images_per_second"] for line in rows}  # the last of each kind, the largest batch
    return {
        "train": ours["train"] / (case.reference.train * scale),
        "sample": ours["sample"] / (case.reference.sample * scale),
    }


def run(cases: Sequence[Case], settings: Settings, *, evaluate: bool = True, report: Report = print) -> dict[str, Any]:
    """Everything, the roofline first: ``roofline``, ``rows``, ``convolutions`` and ``reference``."""
    with computed_in(settings):
        return _run(cases, settings, evaluate, report)


def _run(cases: Sequence[Case], settings: Settings, evaluate: bool, report: Report) -> dict[str, Any]:
    roofline = measure_roofline(settings.device, limit_seconds=min(0.5, settings.seconds))
    result: dict[str, Any] = {
        "roofline": {
            "matmul_flops_per_second": roofline.matmul,
            "convolution_flops_per_second": roofline.convolution,
        },
        "rows": [],
        "parameters": {},
        "convolutions": {},
        "reference": {},
    }
    for case in cases:
        report(case.name)
        flops = training_flops(case, settings)
        trainer = Trainer(case, settings.device)
        trained = training(case, trainer, flops, roofline, settings)
        method = trainer.method
        rows = [trained | {"memory": training_memory(trainer, settings.device)}]
        if settings.device.type == "cpu":
            rows[0]["time_by_kind"] = time_by_kind(trainer)
        del trainer
        result["parameters"][case.name] = {
            name: sum(weight.numel() for weight in network.parameters()) for name, network in method.networks().items()
        }
        if case.needed is None:  # else another case samples with the same networks
            rows += sampling(case, method, roofline, settings)
            result["convolutions"][case.name] = own_convolutions(case, method, roofline, settings)
            rows += exported(case, rows[-1]["flops_per_image"], roofline, settings, report)
        result["rows"] += rows
        result["reference"][case.name] = against_reference(case, rows, roofline)
    if evaluate:
        report("digits-features")
        result["rows"].append(evaluation(roofline, settings))
    return result

"""How fast a sampler is: network evaluations an image, and seconds by the clock, both measured from outside.

``sample(seeds)`` stands for any sampler that makes one image a seed. Evaluations are counted by forward hooks, per
image: a call on a batch of 2 N rows to make N images (as guidance does) counts 2. The clock shows the median of up
to 10 repeats after a warm-up, with quartiles; a GPU is synchronised before the clock is read.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trilemma import __version__
from trilemma.errors import ConfigError
from trilemma.measure.memory import PeakMemory

Sample = Callable[[Sequence[int]], Any]

BATCH = 100  # of images_per_second_batch_100
MAX_REPEATS = 10
LIMIT_SECONDS = 20.0


class CallCounter:
    """Counts what named networks do inside a ``with`` block; the hooks are gone after it.

    ``calls`` are forward calls, ``rows`` the images in them (the leading size of the first tensor given).
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks = dict(networks)
        self.calls = dict.fromkeys(self.networks, 0)
        self.rows = dict.fromkeys(self.networks, 0)
        self._hooks: list[RemovableHandle] = []

    @property
    def total(self) -> int:
        """Forward calls of all networks."""
        return sum(self.calls.values())

    def per_image(self, images: int) -> dict[str, float]:
        """Evaluations an image, by network."""
        return {name: rows / images for name, rows in self.rows.items()}

    def __enter__(self) -> CallCounter:
        for name, network in self.networks.items():
            self._hooks.append(network.register_forward_hook(self._hook(name), with_kwargs=True))
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
            tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim())
            first = next(tensors, None)
            if first is None:
                raise ConfigError(f"network {name!r} was called without a batch: its evaluations cannot be counted")
            self.calls[name] += 1
            self.rows[name] += len(first)

        return count


def nfe(sample: Sample, networks: Mapping[str, nn.Module], n: int = 1) -> float:
    """Network evaluations an image, summed over ``networks``, counted while ``sample`` makes ``n`` images."""
    with CallCounter(networks) as counter:
        sample(range(n))
    return sum(counter.per_image(n).values())


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat."""

    seconds: tuple[float, ...]

    def quantile(self, q: float) -> float:
        """In seconds; q = 0.5 is the median."""
        return float(np.quantile(self.seconds, q))


def measure(
    run: Callable[[], Any],
    *,
    device: torch.device | str = "cpu",
    limit_seconds: float = LIMIT_SECONDS,
    max_repeats: int = MAX_REPEATS,
) -> Timing:
    """Time ``run`` again and again until ``limit_seconds`` are spent or ``max_repeats`` made; at least once.

    There is no warm-up here: call ``run``, or something shorter that touches the same code, before.
    """
    device = torch.device(device)
    seconds: list[float] = []
    while not seconds or (len(seconds) < max_repeats and sum(seconds) < limit_seconds):
        _synchronise(device)
        start = time.perf_counter()
        run()
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    return Timing(tuple(seconds))


@dataclass(frozen=True)
class SpeedResult:
    """``scores``: nfe, seconds_per_image_batch_1, images_per_second_batch_100; ``protocol``: repeats, quartiles."""

    scores: dict[str, float]
    protocol: dict[str, Any]


def speed_scores(
    sample: Sample,
    networks: Mapping[str, nn.Module],
    *,
    warmup: Sample | None = None,
    inner: Mapping[str, tuple[nn.Module, nn.Module]] | None = None,
    limit_seconds: float = LIMIT_SECONDS,
) -> SpeedResult:
    """``nfe``, ``seconds_per_image_batch_1`` and ``images_per_second_batch_100`` of a sampler, and their protocol.

    Args:
        sample: makes one image for each of the seeds it is given.
        networks: the networks it evaluates, by name.
        warmup: run before the clock at the large batch in place of ``sample``, for samplers of many steps: the same
            networks on as many images with fewer steps. At batch 1 the run whose calls are counted is the warm-up.
        inner: what solves equations inside the sampler, by name: the module whose seconds, and the one whose calls are
            told beside the scores, not among them.
        limit_seconds: no further repeat is begun after so many seconds, at each batch size.
    """
    device = next((p.device for network in networks.values() for p in network.parameters()), torch.device("cpu"))
    with CallCounter(networks) as counter:
        sample(range(1))
    single = measure(lambda: sample(range(1)), device=device, limit_seconds=limit_seconds)
    (warmup or sample)(range(BATCH))
    many = measure(lambda: sample(range(BATCH)), device=device, limit_seconds=limit_seconds)
    by_network = counter.per_image(1)
    return SpeedResult(
        scores={
            "nfe": sum(by_network.values()),
            "seconds_per_image_batch_1": single.quantile(0.5),
            "images_per_second_batch_100": BATCH / many.quantile(0.5),
        },
        protocol={
            "repeats": {"batch 1": len(single.seconds), "batch 100": len(many.seconds)},
            "nfe_by_network": by_network,
            "seconds_per_image_batch_1_quartiles": [single.quantile(0.25), single.quantile(0.75)],
            "images_per_second_batch_100_quartiles": [BATCH / many.quantile(0.75), BATCH / many.quantile(0.25)],
            **({"inner_solvers": _inner(sample, inner, device)} if inner else {}),
        },
    )


@dataclass(frozen=True)
class BatchSpeed:
    """One batch size: seconds of each repeat, and the most memory in use (see ``PeakMemory``)."""

    batch: int
    timing: Timing
    memory: PeakMemory

    def images_per_second(self, q: float = 0.5) -> float:
        """The quantile ``q`` over the repeats; 0.5 is the median."""
        return self.batch / self.timing.quantile(1.0 - q)


def sweep(
    sample: Sample,
    batches: Iterable[int],
    *,
    device: torch.device | str = "cpu",
    warmup: Sample | None = None,
    limit_seconds: float = LIMIT_SECONDS,
    max_repeats: int = MAX_REPEATS,
    advance: Callable[[int], object] = lambda batch: None,
) -> list[BatchSpeed]:
    """A sampler at each batch size once, the smallest first: memory kept from a large batch must not count for a small.

    Args:
        sample: makes one image for each of the seeds it is given.
        batches: images made at a time.
        warmup: run before the clock in place of ``sample``, for samplers of many steps.
        limit_seconds, max_repeats: no further repeat is begun after so many seconds or repeats, at each size.
        advance: told each batch size when it is done.
    """
    found = []
    for batch in sorted(set(batches)):
        seeds = range(batch)
        (warmup or sample)(seeds)
        with PeakMemory(device) as memory:
            timing = measure(
                partial(sample, seeds), device=device, limit_seconds=limit_seconds, max_repeats=max_repeats
            )
        found.append(BatchSpeed(batch, timing, memory))
        advance(batch)
    return found


def _inner(
    sample: Sample, inner: Mapping[str, tuple[nn.Module, nn.Module]], device: torch.device
) -> dict[str, dict[str, float]]:
    """Evaluations an image inside each solver, and its seconds an image at batch 1 and 100 (one run each)."""
    found: dict[str, dict[str, float]] = {name: {} for name in inner}
    with CallCounter({name: counted for name, (_, counted) in inner.items()}) as counter:
        sample(range(1))
    for name, evaluations in counter.per_image(1).items():
        found[name]["evaluations"] = evaluations
    for batch in (1, BATCH):
        for name, (timed, _) in inner.items():
            with _Stopwatch(timed, device) as watch:
                sample(range(batch))
            found[name][f"seconds_per_image_batch_{batch}"] = watch.seconds / batch
    return found


class _Stopwatch:
    """Adds up the seconds that a module's calls take inside a ``with`` block."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.seconds, self._module, self._device, self._since = 0.0, module, device, 0.0
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> _Stopwatch:
        self._hooks = [
            self._module.register_forward_pre_hook(self._start),
            self._module.register_forward_hook(self._stop),
        ]
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_: Any) -> None:
        _synchronise(self._device)
        self._since = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        _synchronise(self._device)
        self.seconds += time.perf_counter() - self._since


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, threads torch uses, memory in GiB and the GPU's name (None without)."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Of trilemma, Python and the libraries that decide a number."""
    found = {"trilemma": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "torch-fidelity", "numpy"):
        found[name] = importlib.metadata.version(name)
    return found


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> float | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)

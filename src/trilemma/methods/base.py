"""What a method is: a module that owns its networks and says how it learns, how it samples and what it is.

Everything else is somebody else's: devices, precision, processes, averaged weights, checkpoints, logs, data and the
count of network calls. The engine lends a step its ``Tools``; sampling needs nothing but seeds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from trilemma.errors import ConfigError
from trilemma.types import Batch, DataSpec, Sampler, SampleResult

Learnt = tuple[Tensor, dict[str, Tensor]]  # a loss, and what there is to tell of it, detached


def _whole(n: int) -> Iterable[slice]:
    return (slice(0, n),)


def _one(n: int) -> int:
    return 1


def _alone(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Tools:
    """What the engine lends a method for one step.

    ``networks`` are the method's own, as prepared for the device and the processes at hand: call these for every pass
    whose parameters receive gradients, and the method's own attributes for all other passes. ``backward`` replaces
    ``loss.backward()`` (it scales the loss where precision demands it, and averages the gradients over the processes).
    ``parts`` cuts a batch of n images into slices, as many as ``number`` says, to learn from one by one, with a
    ``backward`` for each one's share of the loss (see ``learn_in_parts``). ``clip`` limits the norm of gradients.
    ``together`` gives the rows of all processes, from which what they must agree on is computed.
    """

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    backward: Callable[[Tensor], None]
    parts: Callable[[int], Iterable[slice]] = _whole
    number: Callable[[int], int] = _one
    clip: Callable[[Iterable[nn.Parameter], float], object] = torch.nn.utils.clip_grad_norm_
    together: Callable[[Tensor], Tensor] = _alone


@dataclass(frozen=True)
class Entrant:
    """How a method enters a race: a training (its recipe with some options changed) and the samplers to score."""

    suffix: str = ""  # of the run folder's name
    changes: Mapping[str, Any] = field(default_factory=dict)  # options that differ from the recipe
    samplers: tuple[Sampler, ...] = (Sampler(),)


class Method(nn.Module, ABC):
    """Base class. Subclasses set the class attributes, build their networks in ``__init__``, define the three verbs."""

    name: ClassVar[str]
    family: ClassVar[str]  # "diffusion", "denoising GAN", ...
    paper: ClassVar[str]  # authors and year
    Options: ClassVar[type[Any]]  # frozen dataclass: the recipe's schema
    averaged: ClassVar[tuple[str, ...]]  # the networks that sample, whose weights the engine averages
    entrants: ClassVar[tuple[Entrant, ...]] = (Entrant(),)  # its rows in a race

    def __init__(self, options: Any, spec: DataSpec) -> None:
        super().__init__()
        self.options = options
        self.spec = spec

    # What it is

    @abstractmethod
    def title(self) -> str:
        """The row's name in a table, e.g. "DDGAN, T = 4"."""

    def describe(self, sampler: Sampler) -> str:
        """The sampler in words, e.g. "DDIM, 50 steps"; refuses choices the method does not offer.

        Raises:
            ConfigError: a sampler setting the method has no use for.
        """
        self.refuse(sampler)
        return "1 step"

    def refuse(self, sampler: Sampler, *offered: str) -> None:
        """Refuse every choice made in ``sampler`` but the ``offered`` ones."""
        names = [field.name for field in fields(sampler) if field.name not in offered]
        chosen = [name for name in names if getattr(sampler, name) is not None]
        if chosen:
            raise ConfigError(f"{self.name} has no sampler setting {', '.join(chosen)}: leave it out")

    def tag(self, sampler: Sampler) -> str:
        """A file-name part for the sampler; "default" for the method's own."""
        return "default"

    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The trained networks by name; each is an attribute of that name."""

    def sampling_networks(self) -> dict[str, nn.Module]:
        """The networks that sample; their weights are the run's."""
        return {name: self.networks()[name] for name in self.averaged}

    def counted_networks(self) -> dict[str, nn.Module]:
        """The networks whose calls are counted as function evaluations: those that make or change an image."""
        return self.sampling_networks()

    def inner_solvers(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        """What solves an equation inside the sampler, by name: the module, and its derivative network. The seconds of
        the one and the calls of the other are told beside the function evaluations, not among them."""
        return {}

    def preview(self) -> Sampler:
        """A sampler quick enough for looking at a model while it trains."""
        return Sampler()

    # How it learns

    @abstractmethod
    def optimizers(self) -> dict[str, Optimizer]:
        """Fresh optimisers by name, over this method's parameters."""

    @abstractmethod
    def step(self, batch: Batch, progress: float, tools: Tools) -> dict[str, Tensor]:
        """Exactly one optimisation step; ``progress`` in [0, 1) is the share of the budget spent. Detached scalars."""

    def extra_state(self) -> dict[str, Any]:
        """Memory that is not in a tensor (counters, adaptive strengths), as plain numbers."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what ``extra_state`` gave."""

    # How it samples

    @abstractmethod
    def sample(self, seeds: Sequence[int], sampler: Sampler | None = None, *, trajectory: bool = False) -> SampleResult:
        """One sample per seed, from that seed alone: (N, C, H, W) in [-1, 1].

        Args:
            seeds: one integer a sample.
            sampler: the choices a method leaves; None is its default.
            trajectory: also return the states from noise to sample.
        """

    def path(self, seeds: Sequence[int], us: Sequence[float]) -> Tensor:
        """The states at points ``us`` of a path from noise (0) to the sample (1): (K, N, C, H, W).

        Raises:
            ConfigError: the method has no such path.
        """
        raise ConfigError(f"{self.name} makes no path from noise to image: only spigan does, leave out --u")

    def walk(self, first: int, last: int, steps: int) -> Tensor:
        """From the sample of one seed to that of another through the latent space: (steps, C, H, W).

        Raises:
            ConfigError: the method has no latent space to walk in.
        """
        raise ConfigError(f"{self.name} has no latent space to walk through: leave out --interpolate")

    has_latent: ClassVar[bool] = False  # whether ``latent_path`` is there

    def latent_path(self, seeds: Sequence[int], t: Tensor) -> Tensor:
        """For the path length: of each seed's own path, a great circle between two draws of the prior, the sample at
        ``t`` (N,) in [0, 1], float64. All other noise stays along a path. Not rounded, not cut off: (N, C, H, W).

        Raises:
            ConfigError: the method has no latent space.
        """
        raise ConfigError(f"{self.name} has no latent space to walk through")

    @property
    def device(self) -> torch.device:
        """Where the sampling networks are."""
        return next(self.networks()[self.averaged[0]].parameters()).device


def adam(
    weights: Iterable[nn.Parameter], lr: float, betas: Sequence[float], *, eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """Adam, or AdamW where weights decay, as one kernel for all weights."""
    weights = list(weights)
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights)
    moments = cast(tuple[float, float], tuple(betas))
    made: Optimizer = Adam(weights, lr=lr, betas=moments, eps=eps, fused=fused)
    if weight_decay > 0:
        made = AdamW(weights, lr=lr, betas=moments, eps=eps, weight_decay=weight_decay, fused=fused)
    made.register_load_state_dict_post_hook(_lay_as_weights)
    return made


def _lay_as_weights(optimizer: Optimizer) -> None:
    """The kernel walks through a weight and its moments in the order of memory; files know one order alone."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def learn_in_parts(
    n: int,
    learn: Callable[[slice], Learnt],
    optimizers: Sequence[Optimizer],
    tools: Tools,
    before_step: Callable[[], object] = lambda: None,
) -> dict[str, Tensor]:
    """One step of ``optimizers`` on n images. ``learn`` gives a part's loss and what there is to tell of it, detached;
    each part counts as its share of the n images. What is told of the whole comes back."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    told: dict[str, Tensor] = {}
    for part in tools.parts(n):
        share = (part.stop - part.start) / n
        loss, found = learn(part)
        tools.backward(share * loss)
        for name, value in found.items():
            told[name] = share * value + told[name] if name in told else share * value
    before_step()
    for optimizer in optimizers:
        optimizer.step()
    return told


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give all parameter groups the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate

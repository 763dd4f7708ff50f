"""How many FLOPs a training has taken, though few of its steps are counted.

Counting slows a step down. But two steps that call the same networks in the same way do the same work: there are plain
steps, steps with a lazy penalty, steps of a first phase, and so on. Cheap hooks tell the kind of every step. A counter
runs in the first steps and while a kind has no count yet; any other step costs what the last counted one of its kind
did. So the sum is exact where steps of a kind do equal work. Every 257th step is counted again, because some work hangs
on more than the networks called (augmentations that grow stronger): a prime, so that it meets every place of a lazy
cycle in turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.measure.flops import FlopCounter

FIRST = 2  # steps counted at the start: with all lazy penalties, and without
AGAIN = 257
_LARGEST = 2**100  # of all counts: more than was ever computed
PATIENCE = 64  # steps counted in the hope of one that waits for a count


class TrainingFlops:
    """Wrap every step in ``with flops.step():``; ``total`` are the FLOPs of this process's steps so far.

    A step whose kind has no count yet adds nothing until the kind has one, and the mean if it never comes again.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._networks = dict(networks)
        self.total = 0
        self._steps = 0
        self._cost: dict[str, int] = {}  # of the last counted step of each kind
        self._waiting: dict[str, int] = {}  # steps of kinds that have no count yet
        self._since = 0  # the step after which the first of them came

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """One training step inside the block."""
        calls: list[str] = []
        hooks = [
            network.register_forward_pre_hook(_noter(name, calls), with_kwargs=True)
            for name, network in self._networks.items()
        ]
        counts = self._steps < FIRST or bool(self._waiting) or self._steps % AGAIN == 0
        counter = FlopCounter() if counts else None
        try:
            with counter or contextlib.nullcontext():
                yield
        finally:
            for hook in hooks:
                hook.remove()
        self._settle(" ".join(calls), None if counter is None else counter.total)

    def _settle(self, kind: str, counted: int | None) -> None:
        """Add a step that is over, and those that waited for its count."""
        if not self._waiting:
            self._since = self._steps
        self._steps += 1
        if counted is not None:
            self._cost[kind] = counted
            self.total += counted * (1 + self._waiting.pop(kind, 0))
        elif kind in self._cost:
            self.total += self._cost[kind]
        else:
            self._waiting[kind] = self._waiting.get(kind, 0) + 1
        if self._waiting and self._steps - self._since > PATIENCE:
            waiting = sum(self._waiting.values())
            mean = self.total // (self._steps - waiting)
            self._cost |= dict.fromkeys(self._waiting, mean)
            self.total += waiting * mean
            self._waiting = {}

    def state(self) -> dict[str, Any]:
        """For a checkpoint, in plain numbers."""
        return {
            "total": self.total,
            "steps": self._steps,
            "cost": dict(self._cost),
            "waiting": dict(self._waiting),
            "since": self._since,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` gave.

        Raises:
            KeyError, TypeError, ValueError: a number is missing, is none, or cannot be.
        """
        self.total, self._steps, self._since = int(state["total"]), int(state["steps"]), int(state["since"])
        self._cost, self._waiting = (
            {str(kind): int(number) for kind, number in dict(state[part]).items()} for part in ("cost", "waiting")
        )
        counts = [self.total, self._steps, self._since, *self._cost.values(), *self._waiting.values()]
        if not 0 <= min(counts) <= max(counts) < _LARGEST or sum(self._waiting.values()) >= max(1, self._steps):
            raise ValueError("a count of FLOPs that cannot be")


def _noter(name: str, calls: list[str]) -> Any:
    """A hook that notes a call: the network, whether gradients are kept, and whether its first input has one."""

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        wanted = first is not None and first.requires_grad
        calls.append(f"{name}{'+' if torch.is_grad_enabled() else ''}{'x' if wanted else ''}")

    return note

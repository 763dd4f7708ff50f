"""What a training step costs, counted instead of measured: FLOPs, bytes of memory, bytes that processes send.

No machine is needed for it: on torch's meta device shapes are computed and nothing else, so a step of the largest
recipe is counted in seconds. Memory is that of weights, their averages, gradients and moments, and of what the backward
passes keep of the forward passes. Left out are the work space of libraries, and what lies around for a moment only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trilemma.errors import ConfigError
from trilemma.measure.flops import FlopCounter
from trilemma.methods.base import Method, Tools
from trilemma.types import Batch, DataSpec

PROGRESS = 0.5  # of the budget, where nothing is being warmed up


@dataclass(frozen=True)
class StepCost:
    """Of one training step of one process.

    ``flops`` and ``gradient_bytes``, which it sends, are means over the steps counted. ``state_bytes`` are there all
    the time, ``kept_bytes`` at most during a step, for the backward passes.
    """

    flops: float
    gradient_bytes: int
    parameters: int
    state_bytes: int
    kept_bytes: int


def step_cost(method_type: type[Method], options: Any, spec: DataSpec, batch_size: int, steps: int = 16) -> StepCost:
    """Count ``steps`` steps of a method: no memory is touched, no number computed.

    Args:
        batch_size: images of one process.
        steps: a multiple of the intervals at which penalties come.

    Raises:
        ConfigError: a method that looks at its numbers, as SPI-GAN's solver and ADA do.
    """
    method = method_type(options, spec).to("meta")
    networks, optimizers = method.networks(), method.optimizers()
    weights = [p for network in networks.values() for p in network.parameters()]
    sent = _Sent(weights)
    tools = Tools(networks, optimizers, torch.autograd.backward)
    x = torch.zeros(batch_size, *spec.shape, device="meta")
    labels = torch.zeros(batch_size, dtype=torch.int64, device="meta") if spec.classes else None
    kept = _Kept(weights)
    try:
        with FlopCounter() as counter, saved_tensors_hooks(kept.pack, kept.unpack):
            for _ in range(steps):
                method.step(Batch(x, labels), PROGRESS, tools)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        what = f"{method.name} looks at numbers that it has computed, so its steps cannot be counted without them"
        raise ConfigError(f"{what}: measure some with trilemma train --forecast") from error
    averages = [p for network in method.sampling_networks().values() for p in network.parameters()]
    moments = [
        value
        for optimizer in optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.is_meta  # a count of steps stays on the CPU
    ]
    return StepCost(
        flops=counter.total / steps,
        gradient_bytes=sent.bytes // steps,
        parameters=sum(p.numel() for p in weights),
        state_bytes=_bytes([*weights, *averages, *weights, *moments]),  # the second weights stand for gradients
        kept_bytes=kept.most,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Sent:
    """Adds up the gradients that would be averaged over the processes after each backward pass."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.bytes = 0
        for weight in weights:
            weight.register_post_accumulate_grad_hook(self._add)  # type: ignore[no-untyped-call]

    def _add(self, weight: Tensor) -> None:
        self.bytes += _bytes([weight])


class _Kept:
    """Adds up what is kept for backward passes, each piece of memory once, and without the ``weights``."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = {_place(weight) for weight in weights}
        self._users: dict[int, int] = {}
        self._bytes = 0
        self.most = 0

    def pack(self, tensor: Tensor) -> _Piece:
        """Called when a tensor is kept."""
        place = _place(tensor)
        if place not in self._weights:
            users = self._users.get(place, 0)
            self._users[place] = users + 1
            if users == 0:
                self._bytes += tensor.untyped_storage().nbytes()
                self.most = max(self.most, self._bytes)
        return _Piece(tensor, self)

    @staticmethod
    def unpack(piece: _Piece) -> Tensor:
        """Called when a backward pass wants it."""
        return piece.tensor

    def drop(self, tensor: Tensor) -> None:
        """Called when it is no longer kept."""
        place = _place(tensor)
        if place in self._weights:
            return
        self._users[place] -= 1
        if self._users[place] == 0:
            del self._users[place]
            self._bytes -= tensor.untyped_storage().nbytes()


class _Piece:
    """One tensor that is kept; its memory stays as long as this does."""

    def __init__(self, tensor: Tensor, kept: _Kept) -> None:
        self.tensor, self._kept = tensor, kept

    def __del__(self) -> None:
        self._kept.drop(self.tensor)


def _place(tensor: Tensor) -> int:
    """Which piece of memory; tensors without numbers have no address of their own."""
    return int(tensor.untyped_storage()._cdata)

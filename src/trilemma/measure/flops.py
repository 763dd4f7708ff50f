"""Floating-point operations, counted from the shapes of what is computed, whatever computes it.

The rule is torch's: a multiply-add is 2, and only matrix products, convolutions and attention count. Normalisation,
activations, noise and the arithmetic between networks count nothing. Torch's table lacks the attention that CPUs use,
so it is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

RULE = "2 a multiply-add; matrix products, convolutions and attention"


def _attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """Two products, q k^T and the weights times v, from shapes (N, heads, length, width)."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def _attention_backward(_: Any, q: Sequence[int], k: Sequence[int], v: Sequence[int], *__: Any, **___: Any) -> int:
    """Five products: q k^T once more, and the gradients of v, of the weights, of q and of k."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (3 * q[3] + 2 * v[3])


class _NoModules:
    """In place of torch's tracker of modules, which cannot follow ``autograd.grad`` with respect to an input,
    as R1 and path lengths take it: all is counted under one name."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        """Nothing to watch."""

    def __exit__(self, *_: Any) -> None:
        """Nothing to undo."""


class FlopCounter:
    """Counts inside a ``with`` block; backward passes that run there count, too."""

    def __init__(self) -> None:
        self._mode = _torch_counter()
        self._mode.mod_tracker = _NoModules()

    @property
    def total(self) -> int:
        """FLOPs so far."""
        return int(self._mode.get_total_flops())

    def __enter__(self) -> FlopCounter:
        self._mode.__enter__()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._mode.__exit__(*error)


def _torch_counter() -> Any:
    """Torch's counter, with the attention that it lacks."""
    aten = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )


def count_flops(run: Callable[[], Any], networks: Mapping[str, nn.Module]) -> tuple[int, dict[str, int]]:
    """FLOPs of one call of ``run``: in all, and of the calls of each of ``networks``."""
    found, began = dict.fromkeys(networks, 0), dict.fromkeys(networks, 0)
    hooks: list[RemovableHandle] = []

    def watch(name: str, network: nn.Module) -> None:
        def start(*_: Any) -> None:
            began[name] = counter.total

        def stop(*_: Any) -> None:
            found[name] += counter.total - began[name]

        hooks.extend([network.register_forward_pre_hook(start), network.register_forward_hook(stop)])

    try:
        with FlopCounter() as counter:
            for name, network in networks.items():
                watch(name, network)
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return counter.total, found

"""The convolutions that a network makes, and how fast this machine makes each of them alone.

``roofline`` tells what large, well-shaped work can reach. A network's own shapes may reach less whoever computes them:
their rate, each weighed by its share of the work, is the ceiling for that network as it is built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trilemma.measure.flops import FlopCounter
from trilemma.measure.speed import measure

LIMIT_SECONDS = 0.2  # for each shape
MAX_REPEATS = 20


@dataclass(frozen=True)
class Convolution:
    """One call: shapes of input and weight, and torch's settings."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def flops(self) -> int:
        """2 a multiply-add, by the rule of torch's counter."""
        n, _, *sides = self.input
        if not self.transposed:
            settings = zip(sides, self.weight[2:], self.stride, self.padding, self.dilation, strict=True)
            sides = [(x + 2 * p - d * (k - 1) - 1) // s + 1 for x, k, s, p, d in settings]
        count = 2 * n
        for size in (*sides, *self.weight):
            count *= size
        return count


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Convolution] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args
            shape = Convolution(
                input=tuple(x.shape),
                weight=tuple(weight.shape),
                stride=tuple(stride),
                padding=tuple(padding),
                dilation=tuple(dilation),
                transposed=transposed,
                output_padding=tuple(output_padding),
                groups=groups,
            )
            self.calls[shape] += 1
            return func(*args, **(kwargs or {}))
        with self:  # in inference mode it is conv2d and the like that come here, made of convolutions
            found = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is NotImplemented else found


def convolutions_of(run: Callable[[], Any]) -> Counter[Convolution]:
    """The convolutions of one call of ``run``, with how often each is made; not those of a backward pass."""
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        run()
    return recorder.calls


def measure_convolution(
    shape: Convolution,
    device: torch.device | str = "cpu",
    *,
    limit_seconds: float = LIMIT_SECONDS,
    max_repeats: int = MAX_REPEATS,
) -> float:
    """FLOPs a second of the best repeat, in channels_last."""
    draw = torch.Generator().manual_seed(0)

    def numbers(sizes: Iterable[int]) -> Tensor:
        x = torch.randn(tuple(sizes), generator=draw).to(device)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    x, weight = numbers(shape.input), numbers(shape.weight)

    def run() -> Tensor:
        settings = (shape.stride, shape.padding, shape.dilation, shape.transposed, shape.output_padding, shape.groups)
        made: Tensor = torch.ops.aten.convolution(x, weight, None, *settings)
        return made

    with torch.inference_mode():
        with FlopCounter() as counter:  # also the warm-up
            run()
        timing = measure(run, device=device, limit_seconds=limit_seconds, max_repeats=max_repeats)
    return counter.total / min(timing.seconds)


def ceiling(calls: Mapping[Convolution, int], rates: Mapping[Convolution, float]) -> float:
    """FLOPs a second of all ``calls`` together, each made at its own rate; those without a rate are left out."""
    work = {shape: count * shape.flops() for shape, count in calls.items() if shape in rates}
    return sum(work.values()) / sum(flops / rates[shape] for shape, flops in work.items())

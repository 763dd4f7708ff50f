"""The convolutions of a network, found and weighed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trilemma.measure.convolutions import Convolution, ceiling, convolutions_of, measure_convolution
from trilemma.measure.flops import FlopCounter

X = torch.zeros(2, 4, 9, 9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, dilation=2),
        nn.Conv2d(4, 4, 5, groups=4),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
    ],
    ids=str,
)
def test_flops_are_those_of_the_counter(layer: nn.Module) -> None:
    with FlopCounter() as counter:
        layer(X)
    ((shape, count),) = convolutions_of(lambda: layer(X)).items()
    assert count == 1
    assert shape.flops() == counter.total > 0


def test_inference_mode_hides_nothing() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1)
    found = convolutions_of(torch.inference_mode()(lambda: layer(X)))
    assert found.total() == 1 and found == convolutions_of(lambda: layer(X))


def test_equal_calls_are_counted_together() -> None:
    weight, other = torch.zeros(4, 4, 3, 3), torch.zeros(2, 4, 1, 1)

    def run() -> None:
        for _ in range(3):
            F.conv2d(X, weight, padding=1)
        F.conv2d(X, other)

    calls = convolutions_of(run)
    assert sorted(calls.values()) == [1, 3]
    assert {shape.weight for shape in calls} == {(4, 4, 3, 3), (2, 4, 1, 1)}


def test_the_ceiling_is_all_work_over_all_time() -> None:
    calls = convolutions_of(lambda: (F.conv2d(X, torch.zeros(4, 4, 3, 3)), F.conv2d(X, torch.zeros(2, 4, 1, 1))))
    first, second = calls
    rates = {first: 4.0, second: 1.0}
    assert ceiling(calls, rates) == pytest.approx(
        (first.flops() + second.flops()) / (first.flops() / 4 + second.flops())
    )
    assert ceiling(calls, {first: 4.0}) == pytest.approx(4.0)


def test_a_shape_is_measured() -> None:
    shape = Convolution((2, 4, 9, 9), (6, 4, 3, 3), (1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    assert measure_convolution(shape, limit_seconds=0.0) > 1e5

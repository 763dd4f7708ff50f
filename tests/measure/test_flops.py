"""FLOPs equal what a person works out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trilemma.measure.flops import FlopCounter, count_flops


@pytest.mark.parametrize(
    ("network", "flops"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 2 * (16 * 16) * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, padding=1, stride=2), 2 * (8 * 8) * 8 * 3 * 9),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 2 * (16 * 16) * 6 * 1 * 9),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), 2 * (16 * 16) * 3 * 8 * 4),
        (nn.Linear(16, 5), 2 * (3 * 16) * 16 * 5),
        (nn.Sequential(nn.GroupNorm(1, 3), nn.SiLU(), nn.AvgPool2d(2)), 0),
    ],
    ids=["3x3", "strided", "grouped", "transposed", "linear", "none"],
)
@pytest.mark.parametrize("inference", [True, False])
def test_layers(network: nn.Module, flops: int, inference: bool) -> None:
    """Of two images of 3 x 16 x 16."""
    with torch.inference_mode(inference), FlopCounter() as counter:
        network(torch.zeros(2, 3, 16, 16))
    assert counter.total == 2 * flops


@pytest.mark.parametrize("inference", [True, False])
def test_attention_is_two_products(inference: bool) -> None:
    """q k^T, and the weights times v, whichever kernel does it."""
    q, k, v = torch.zeros(2, 3, 10, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 8)
    with torch.inference_mode(inference), FlopCounter() as counter:
        F.scaled_dot_product_attention(q, k, v)
    assert counter.total == 2 * 3 * (2 * 10 * 7 * 8 + 2 * 10 * 7 * 8)


def test_a_backward_pass_counts_too() -> None:
    """Gradients of the weights and of the input cost as much as the forward pass each; the first layer needs one."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1))
    first, second = 2 * 64 * 3 * 4 * 9, 2 * 64 * 4 * 5 * 9
    with FlopCounter() as counter:
        network(torch.zeros(1, 3, 8, 8)).sum().backward()
    assert counter.total == 2 * first + 3 * second


def test_attention_backward_counts_on_the_cpu() -> None:
    q, k, v = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    with FlopCounter() as counter:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    product = 2 * 2 * 6 * 6 * 8
    # The fused kernel works out q k^T once more, the plain one keeps it.
    assert counter.total in (7 * product, 6 * product)


def test_each_network_has_its_own_share() -> None:
    mapping, generator = nn.Linear(4, 8), nn.Linear(8, 2)

    def run() -> None:
        h = mapping(torch.zeros(3, 4))
        for _ in range(5):
            generator(h)
        torch.zeros(3, 4) @ torch.zeros(4, 1)

    total, found = count_flops(run, {"mapping": mapping, "generator": generator})
    assert found == {"mapping": 2 * 3 * 4 * 8, "generator": 5 * 2 * 3 * 8 * 2}
    assert total == sum(found.values()) + 2 * 3 * 4


def test_hooks_are_gone_after_an_error() -> None:
    network = nn.Linear(2, 2)

    def run() -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        count_flops(run, {"network": network})
    assert not network._forward_hooks and not network._forward_pre_hooks
    with FlopCounter() as counter:  # and the counter can be entered again
        network(torch.zeros(1, 2))
    assert counter.total == 8


def test_a_gradient_penalty_can_be_counted() -> None:
    """The gradient with respect to an input that is a leaf, and the gradient of its norm, as R1 takes them."""
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    x = torch.randn(2, 4, requires_grad=True)
    with FlopCounter() as counter:
        (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        assert counter.total == 2 * (2 * 2 * 4 * 3 + 2 * 2 * 3 * 1)
        gradient.square().sum().backward()
    assert counter.total > 2 * (2 * 2 * 4 * 3 + 2 * 2 * 3 * 1)

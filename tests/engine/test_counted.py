"""What is counted without numbers is what a step with numbers does."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from tiny import SPEC, tiny_method, tiny_options, tools
from trilemma.engine.counted import StepCost, _Kept, step_cost
from trilemma.errors import ConfigError
from trilemma.measure.flops import FlopCounter
from trilemma.methods import method_class
from trilemma.types import Batch


def cost(name: str, batch_size: int = 8, steps: int = 1) -> StepCost:
    return step_cost(method_class(name), tiny_options(name), SPEC, batch_size, steps)


@pytest.mark.parametrize("name", ["ddpm", "ddgan", "stylegan2"])
def test_flops_and_parameters(name: str) -> None:
    method = tiny_method(name)
    with FlopCounter() as counter:
        method.step(Batch(torch.zeros(8, *SPEC.shape), None), 0.5, tools(method))
    found = cost(name)
    assert found.flops == pytest.approx(counter.total, rel=0.05)  # StyleGAN2 mixes styles by chance
    assert found.parameters == sum(p.numel() for net in method.networks().values() for p in net.parameters())


def test_every_gradient_of_a_ddpm_is_sent_once_a_step() -> None:
    found = cost("ddpm", batch_size=4, steps=3)
    assert found.gradient_bytes == 4 * found.parameters


def test_ddpm_holds_its_weights_five_times() -> None:
    """Weights, their averages, gradients, and Adam's two moments."""
    found = cost("ddpm")
    assert found.state_bytes == 5 * 4 * found.parameters


@pytest.mark.parametrize("name", ["ddpm", "ddgan"])
def test_each_image_is_kept_alike(name: str) -> None:
    four, eight, twelve = (cost(name, batch_size=n).kept_bytes for n in (4, 8, 12))
    assert twelve - eight == eight - four > 0


def test_memory_is_counted_once_and_until_it_is_free() -> None:
    x, w = torch.zeros(3, 4, device="meta"), torch.zeros(5, 4, device="meta", requires_grad=True)
    kept = _Kept([w])
    with saved_tensors_hooks(kept.pack, kept.unpack):
        y = F.linear(x, w)  # keeps x
        z = y * y  # keeps y twice, which is one piece of memory
        assert kept.most == 4 * (3 * 4 + 3 * 5)
        z.sum().backward()
        F.linear(x[:1], w)  # after which less is kept
    assert kept.most == 4 * (3 * 4 + 3 * 5)
    assert w.grad is not None


def test_a_method_that_looks_at_its_numbers_is_not_counted() -> None:
    with pytest.raises(ConfigError, match="spigan looks at numbers"):
        cost("spigan")

"""Checkpointed networks give the same numbers and gradients, and keep less for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tiny import SPEC, tiny_method, tiny_options, tools
from trilemma.config import plain
from trilemma.maths.adversarial import path_lengths
from trilemma.networks.layers import ResBlock
from trilemma.networks.ncsnpp import NCSNpp
from trilemma.networks.stylegan2 import Synthesis, SynthesisBlock
from trilemma.types import Batch


def unet(checkpoint: bool) -> nn.Module:
    return NCSNpp(
        image_size=8,
        in_channels=1,
        out_channels=1,
        channels=8,
        channel_mult=(1, 2),
        blocks=1,
        attention=(4,),
        dropout=0.3,
        nz=4,
        z_embedding=8,
        z_layers=1,
        checkpoint=checkpoint,
    )


def synthesis(checkpoint: bool) -> nn.Module:
    return Synthesis(w_dim=8, size=8, channels=1, channel_base=64, channel_max=8, checkpoint=checkpoint)


def run_unet(network: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    x, z = (torch.randn(shape, generator=draw) for shape in ((3, 1, 8, 8), (3, 4)))
    made: Tensor = network(x, torch.tensor([0, 1, 2]), z)
    return made


def run_synthesis(network: nn.Module) -> Tensor:
    made: Tensor = network(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)))
    return made


CASES = [(unet, run_unet), (synthesis, run_synthesis)]
Build = Callable[[bool], nn.Module]
Run = Callable[[nn.Module], Tensor]


def pair(build: Build) -> tuple[nn.Module, nn.Module]:
    """The same network without and with checkpoints, its weights far from zero."""
    plain, saving = build(False), build(True)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    saving.load_state_dict(plain.state_dict())
    return plain, saving


def kept(run: Callable[[], Tensor]) -> int:
    """Numbers that the forward pass keeps for the backward one."""
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        made = run()
    del made
    return sum(sizes.values())


@pytest.mark.parametrize(("build", "run"), CASES, ids=["ncsnpp", "synthesis"])
def test_gradients_are_the_same(build: Build, run: Run) -> None:
    """Dropout and the layers' noise are drawn in the forward pass, and must be the same ones in the second."""
    found = []
    for network in pair(build):
        torch.manual_seed(7)
        made = run(network)
        made.square().sum().backward()
        found.append((made.detach(), {name: weight.grad for name, weight in network.named_parameters()}))
    (plain, gradients), (saving, others) = found
    assert torch.equal(plain, saving)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        other = others[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or (other is not None and torch.equal(gradient, other)), name
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients.values()) > 10


def test_a_path_length_penalty_passes_through() -> None:
    """Gradients of gradients, which the generator of StyleGAN2 needs."""
    found = []
    for network in pair(synthesis):
        torch.manual_seed(7)
        ws = torch.randn(3, network.num_ws, 8).requires_grad_(True)
        made = network(ws)
        path_lengths(made, ws, torch.randn_like(made)).square().mean().backward()
        found.append([weight.grad for weight in network.parameters()])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("build", "run"), CASES, ids=["ncsnpp", "synthesis"])
def test_less_is_kept(build: Build, run: Run) -> None:
    plain, saving = pair(build)
    assert kept(lambda: run(saving)) < kept(lambda: run(plain))


@pytest.mark.parametrize(
    ("name", "network"),
    [("ddgan", "unet"), ("ddpm", "unet"), *((name, "generator") for name in ("spigan", "stylegan2", "diffusion_gan"))],
)
def test_a_step_learns_the_same(name: str, network: str) -> None:
    """Of every method that has the setting, penalties included; and the blocks are run again in it."""
    options = plain(tiny_options(name))
    after, runs = [], []
    for changes in ({}, {network: {**options[network], "checkpoint": True}}):
        method = tiny_method(name, **changes)
        modules = [module for made in method.sampling_networks().values() for module in made.modules()]
        calls: list[int] = []
        # Before the forward pass, which in the second run stops as soon as all that is needed is there.
        next(module for module in modules if isinstance(module, ResBlock | SynthesisBlock)).register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)  # type: ignore[misc]
        )
        torch.manual_seed(7)
        method.step(Batch(torch.rand(4, *SPEC.shape) * 2 - 1), 0.5, tools(method))
        after.append(list(method.parameters()))
        runs.append(len(calls))
    for one, other in zip(*after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert runs[0] < runs[1]

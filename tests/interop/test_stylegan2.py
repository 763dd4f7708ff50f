"""Parity with the published StyleGAN2: images, features, gradients, path lengths, R1, and what cannot be read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from golden import golden
from trilemma.errors import ConfigError
from trilemma.interop import stylegan2 as reference
from trilemma.maths import adversarial
from trilemma.networks.stylegan2 import StyleGenerator
from trilemma.networks.stylegan2_discriminator import StyleDiscriminator

GENERATORS = ["stylegan2_generator", "stylegan2_generator_cond"]
DISCRIMINATORS = [f"stylegan2_discriminator_{kind}" for kind in ("resnet", "orig", "skip", "cond")]
FORWARD, GRADIENT, SECOND = 2e-5, 1e-4, 2e-4


def arrays(name: str) -> tuple[dict[str, Tensor], Any]:
    stored = np.load(golden(f"{name}.io.npz"))
    config = json.loads(str(stored["config_json"]))
    return {key: torch.from_numpy(stored[key]) for key in stored.files if key != "config_json"}, config


def state(name: str) -> dict[str, Tensor]:
    return load_file(golden(f"{name}.state.safetensors"))


def close(found: Tensor, stored: Tensor, tolerance: float, least: float = 0.0) -> None:
    """max |found - stored| <= tolerance max |stored|, or an absolute ``least``."""
    assert found.shape == stored.shape
    assert (found - stored).abs().max() <= max(tolerance * stored.abs().max(), least)


def load_generator(name: str) -> tuple[StyleGenerator, dict[str, Tensor]]:
    io, config = arrays(name)
    return reference.generator(state(name), config), io


def load_discriminator(name: str) -> tuple[StyleDiscriminator, dict[str, Tensor]]:
    io, config = arrays(name)
    return reference.discriminator(state(name), config), io


@pytest.mark.parametrize("name", GENERATORS)
def test_the_generator_maps_and_draws_as_published(name: str) -> None:
    generator, io = load_generator(name)
    z, c = io["z"], io.get("c")
    with torch.no_grad():
        close(generator.ws(z, c), io["ws"], FORWARD)
        close(generator.ws(z, c, 0.7), io["ws_psi0.7"], FORWARD)
        close(generator.ws(z, c, 0.5, 4), io["ws_psi0.5_cut4"], FORWARD)
        for fused in ("fused0", "fused1"):
            close(generator(z, c, noise="const"), io[f"img_const_{fused}"], FORWARD)
            close(generator(z, c, noise="none"), io[f"img_none_{fused}"], FORWARD)
        close(generator(z, c, noise="const", truncation_psi=0.7), io["img_psi0.7"], FORWARD)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_generator_has_the_published_features_at_every_side(name: str) -> None:
    generator, io = load_generator(name)
    features: list[Tensor] = []
    for block in generator.synthesis.blocks:
        block.conv.register_forward_hook(lambda _, __, y: features.append(y.detach().clone()))
    generator(io["z"], io.get("c"), noise="const")
    for side, feature in zip((4, 8, 16, 32), features, strict=True):
        close(feature, io[f"feat_b{side}"], FORWARD)


@pytest.mark.parametrize("name", GENERATORS)
def test_gradients_reach_z_as_published(name: str) -> None:
    generator, io = load_generator(name)
    z = io["z"].requires_grad_()
    image = generator(z, io.get("c"), noise="const")
    (grad,) = torch.autograd.grad((image * io["cot"]).sum(), z)
    close(grad, io["grad_z"], GRADIENT)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_average_of_w_moves_as_published(name: str) -> None:
    generator, io = load_generator(name)
    generator.train().mapping(io["z"], io.get("c"))
    assert generator.mapping.w_avg is not None
    close(generator.mapping.w_avg, io["w_avg_after_train_call"], FORWARD)


def test_path_lengths_are_the_published_ones() -> None:
    generator, io = load_generator("stylegan2_generator")
    image, ws = generator(io["z"], noise="const", with_ws=True)
    lengths = adversarial.path_lengths(image, ws, io["pl_noise"])
    close(lengths, io["pl_lengths"], GRADIENT)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_the_discriminator_judges_as_published(name: str) -> None:
    discriminator, io = load_discriminator(name)
    features: list[Tensor] = []
    for block in discriminator.blocks:
        block.register_forward_hook(lambda _, __, y: features.append(y.detach()))
    image = io["img"].requires_grad_()
    logits = discriminator(image, io.get("c"))
    close(logits.detach(), io["logits"], FORWARD)
    if name != "stylegan2_discriminator_skip":  # where a block's output is there with the image's part
        for side, feature in zip((32, 16, 8), features, strict=True):
            close(feature, io[f"feat_after_b{side}"], FORWARD)
    (grad,) = torch.autograd.grad(logits.sum(), image)
    close(grad, io["grad_img"], GRADIENT)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_the_gradient_penalty_has_the_published_gradients(name: str) -> None:
    discriminator, io = load_discriminator(name)
    image = io["img"].requires_grad_()
    logits = discriminator(image, io.get("c"))
    penalty = adversarial.gradient_penalty(logits, image, 10.0)
    close(penalty.detach(), io["r1_loss_gamma10"], SECOND)
    penalty.backward()
    stored = load_file(golden(f"{name}.r1_grads.safetensors"))
    names = dict(reference._discriminator_names(discriminator))
    compared = 0
    for ours, parameter in discriminator.named_parameters():
        if names[ours] in stored:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            close(grad, stored[names[ours]], SECOND, least=1e-8)
            compared += 1
    assert compared == len(stored)


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    weights, (_, config) = state("stylegan2_generator"), arrays("stylegan2_generator")
    judge, (_, judge_config) = state("stylegan2_discriminator_resnet"), arrays("stylegan2_discriminator_resnet")
    for make, words in (
        (lambda: reference.generator({}, config), "lacks mapping.fc0.bias"),
        (lambda: reference.generator({**weights, "x": torch.ones(1)}, config), "has unknown x"),
        (lambda: reference.generator(weights, {**config, "w_dim": 9}), "has shape"),
        (lambda: reference.generator(weights, {**config, "z_dims": 9}), "did you mean 'z_dim'"),
        (lambda: reference.generator(weights, {"z_dim": 8}), "lacks c_dim"),
        (
            lambda: reference.generator(weights, {**config, "synthesis_kwargs": {"architecture": "resnet"}}),
            "only 'skip'",
        ),
        (
            lambda: reference.generator({**weights, "synthesis.b8.resample_filter": torch.ones(4, 4)}, config),
            "not the filter 1, 3, 3, 1",
        ),
        (lambda: reference.discriminator(judge, {**judge_config, "architecture": "skip"}), "lacks b"),
        (lambda: reference.discriminator(judge, {**judge_config, "c_dim": 2}), "lacks"),
        (
            lambda: reference.discriminator(judge, {**judge_config, "epilogue_kwargs": {"mbstd_num_channels": 2}}),
            "minibatch standard deviation",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            make()


def test_networks_are_modules_in_evaluation_mode() -> None:
    generator, _ = load_generator("stylegan2_generator")
    discriminator, _ = load_discriminator("stylegan2_discriminator_resnet")
    for network in (generator, discriminator):
        assert isinstance(network, nn.Module) and not network.training

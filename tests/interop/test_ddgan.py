"""Published networks through ``trilemma.interop.ddgan``: golden numbers, and refusals in one clear line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from golden import golden
from trilemma.errors import ConfigError
from trilemma.interop import ddgan

GENERATORS = (
    "a",
    "b_ddpm_fir_noconv",
    "b_ddpm_nofir",
    "b_ddpm_fir",
    "c_gray",
    "c2_gray28",
    "d_oneadagn_inputskip",
)
DISCRIMINATORS = ("small", "large", "small_gray")


def arrays(name: str) -> dict[str, Any]:
    with np.load(golden(name), allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) if file[key].dtype.kind in "fi" else file[key] for key in file.files}


def config_of(io: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(str(io["config_json"]))
    return config


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Largest deviation over the largest stored entry."""
    assert ours.shape == theirs.shape
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


def load_generator(variant: str) -> tuple[Any, dict[str, Any]]:
    io = arrays(f"ddgan_generator_{variant}.io.npz")
    state = load_file(golden(f"ddgan_generator_{variant}.state.safetensors"))
    return ddgan.generator(state, config_of(io)), io


@pytest.mark.parametrize("variant", GENERATORS)
def test_generator_agrees_with_the_published_one(variant: str) -> None:
    network, io = load_generator(variant)
    x, z = io["x"].requires_grad_(), io["z"].requires_grad_()
    y = network(x, io["t"], z)
    grad_x, grad_z = torch.autograd.grad((y * io["cot"]).sum(), (x, z))
    assert relative(network.latent(z), io["zemb"]) < 2e-5
    assert relative(y, io["y"]) < 2e-5
    assert relative(grad_x, io["grad_x"]) < 5e-5
    assert relative(grad_z, io["grad_z"]) < 5e-5


@pytest.mark.parametrize("variant", GENERATORS)
def test_a_sampling_run_of_four_steps_agrees(variant: str) -> None:
    network, io = load_generator(variant)
    with np.load(golden("ddgan_schedule.npz"), allow_pickle=False) as file:
        coef_1, coef_2, log_var = (
            torch.from_numpy(file[f"vp_T4__{name}"])
            for name in ("posterior_mean_coef1", "posterior_mean_coef2", "posterior_log_variance_clipped")
        )
    x = io["chain_init"]
    with torch.no_grad():
        for step, t in enumerate((3, 2, 1, 0)):
            x_0 = network(x, torch.full((len(x),), t), io["chain_z"][step])
            x = coef_1[t] * x_0 + coef_2[t] * x
            if t:
                x = x + (0.5 * log_var[t]).exp() * io["chain_noise"][step]
    assert relative(x, io["chain_out"]) < 5e-5


@pytest.mark.parametrize("variant", DISCRIMINATORS)
def test_discriminator_agrees_with_the_published_one(variant: str) -> None:
    io = arrays(f"ddgan_discriminator_{variant}.io.npz")
    state = load_file(golden(f"ddgan_discriminator_{variant}.state.safetensors"))
    network = ddgan.discriminator(state, config_of(io))
    stored = load_file(golden(f"ddgan_discriminator_{variant}.grads.safetensors"))
    x = io["x"].requires_grad_()
    y = network(x, io["t"], io["x_t"])
    assert relative(y, io["y"]) < 2e-5
    assert relative(F.softplus(-y).mean(), io["loss_softplus_real"]) < 2e-5

    (grad_x,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert relative(grad_x, io["grad_x"]) < 1e-4
    penalty = 0.02 / 2 * grad_x.flatten(1).square().sum(1).mean()
    assert relative(penalty, io["r1_penalty_gamma0.02"]) < 1e-4

    parameters = dict(network.named_parameters())
    rules = {rule.target: rule.sources[0] for rule in ddgan._discriminator_rules(network)}
    assert rules.keys() == parameters.keys()
    for prefix, loss in (("r1", penalty), ("softplus_real", F.softplus(-y).mean())):
        grads = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        for target, grad in zip(parameters, grads, strict=True):
            theirs = stored[f"{prefix}/{rules[target]}"]
            ours = torch.zeros_like(theirs) if grad is None else grad
            assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max()) + 1e-8, f"{prefix} {target}"


def small_config(**changes: Any) -> dict[str, Any]:
    return {"image_size": 8, "num_channels": 1, "num_channels_dae": 4, "ch_mult": [1, 2], "num_res_blocks": 1,
            "attn_resolutions": [4], "nz": 4, "z_emb_dim": 4, "n_mlp": 1, **changes}  # fmt: skip


def published_names(config: dict[str, Any]) -> dict[str, Tensor]:
    """A fresh network's weights under the published names."""
    from trilemma.networks.ncsnpp import NCSNpp

    network = NCSNpp(**ddgan.options_from_config(config))
    ours, state = network.state_dict(), {}
    for rule in ddgan._generator_rules(network):
        for source, part in zip(rule.sources, ours[rule.target].chunk(len(rule.sources)), strict=True):
            state[source] = part.flatten(1).T if rule.transposed else part
    return state


@pytest.mark.parametrize("block", ["biggan", "ddpm", "biggan_oneadagn"])
@pytest.mark.parametrize("progressive", ["none", "output_skip", "residual"])
@pytest.mark.parametrize(
    "changes",
    [
        {"progressive_input": "residual"},
        {"progressive_input": "input_skip", "progressive_combine": "cat"},
        {"progressive_input": "none", "fir": False, "resamp_with_conv": False},
        {"embedding_type": "fourier"},
        {"conditional": False, "fir": False},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_every_tensor_has_one_published_name(block: str, progressive: str, changes: dict[str, Any]) -> None:
    config = small_config(resblock_type=block, progressive=progressive, **changes)
    state = published_names(config)
    network = ddgan.generator({f"module.{name}": tensor for name, tensor in state.items()}, config)
    targets = [rule.target for rule in ddgan._generator_rules(network)]
    assert sorted(targets) == sorted(network.state_dict())
    back = published_names(config)  # another draw, the same names
    assert back.keys() == state.keys()


def test_options_follow_the_published_names() -> None:
    options = ddgan.options_from_config(small_config(not_use_tanh=True, num_channels=3, lr_g=1e-4))
    assert options["tanh"] is False
    assert (options["in_channels"], options["out_channels"], options["channel_mult"]) == (3, 3, (1, 2))
    assert options["progressive_input"] == "residual"


def test_refusals_name_what_is_wrong() -> None:
    config = small_config()
    state = published_names(config)
    with pytest.raises(ConfigError, match="lacks ch_mult"):
        ddgan.generator(state, {key: value for key, value in config.items() if key != "ch_mult"})
    with pytest.raises(ConfigError, match="did you mean 'num_res_blocks'"):
        ddgan.generator(state, config | {"num_resblocks": 2})
    with pytest.raises(ConfigError, match="has unknown all_modules.99.weight"):
        ddgan.generator(state | {"all_modules.99.weight": torch.zeros(1)}, config)
    with pytest.raises(ConfigError, match="lacks all_modules.0.bias"):
        ddgan.generator({key: value for key, value in state.items() if key != "all_modules.0.bias"}, config)
    with pytest.raises(ConfigError, match="has shape"):
        ddgan.generator(state | {"z_transform.1.weight": torch.zeros(4, 5)}, config)
    with pytest.raises(ConfigError, match="lacks start_conv.weight"):
        ddgan.discriminator(state, {})
    for error in (ConfigError,):
        with pytest.raises(error) as caught:
            ddgan.generator({}, config)
        assert "\n" not in str(caught.value)

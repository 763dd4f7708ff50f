"""Toy-sized methods, data and runs that the tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from trilemma.config import Training, build, load_recipe
from trilemma.data import Dataset, load_data
from trilemma.engine.train import Plan, make_plan
from trilemma.methods import method_class
from trilemma.methods.base import Method, Tools
from trilemma.types import DataSpec

OURS = (
    *("loss", "r2_gamma", "auxiliary", "energy_share", "warm_share"),
    *("judge", "t_odds", "grouped_t", "shared_pass", "warmup_steps"),
)
SPEC = DataSpec("images", 1, 8, 8)
POINTS = DataSpec("points", 2, 1, 1)


STYLE = {
    "mapping": {"z_dim": 8, "w_dim": 8, "layers": 2},
    "generator": {"channel_base": 64, "channel_max": 8},
    "discriminator": {"architecture": "resnet", "channel_base": 64, "channel_max": 8, "mapping_layers": 2},
    "points": {"hidden": 16, "layers": 2},
    "style_mixing": 0.5,
    "path_weight": 1.0,
}


def tiny_options(name: str, **changes: Any) -> Any:
    """The method's digits recipe with networks of a few thousand weights."""
    if name in ("stylegan2", "diffusion_gan"):
        return build(method_class(name).Options, {**STYLE, "lr_g": 0.002, **changes}, "tiny")
    if name == "spigan":
        style = {key: STYLE[key] for key in ("generator", "discriminator", "points")}
        return build(method_class(name).Options, {**style, "mapping": {"dim": 8, "layers": 2}, **changes}, "tiny")
    if name == "vae":
        points = {"hidden": 16, "layers": 2}
        small = {"nz": 4, "channels": 8, "channel_mult": [1, 1]}
        return build(
            method_class(name).Options, {"autoencoder": small, "points": points, "warmup_steps": 1, **changes}, "tiny"
        )
    values = load_recipe(f"{name}-digits").options
    if name == "ddgan":
        # The paper's loss and nothing of ours: a relativistic one ignores the discriminator's last bias.
        values = {key: value for key, value in values.items() if key not in OURS}
    values = {**values, **changes}
    values["unet"] = {**values.get("unet", {}), "channels": 8, "channel_mult": [1, 1], "attention": []}
    values["points"] = {"hidden": 16, "layers": 2}
    if "discriminator" in values:
        values["discriminator"] = {**values["discriminator"], "channels": 4, "embedding": 8}
        values["latent"] = {"nz": 4, "embedding": 8, "layers": 1}
    if name == "ddpm":
        values.setdefault("timesteps", 20)
        values["warmup_steps"] = 1
    return build(method_class(name).Options, values, "tiny")


def tiny_method(name: str, spec: DataSpec = SPEC, **changes: Any) -> Method:
    """A fresh method in channels_last."""
    torch.manual_seed(0)
    method = method_class(name)(tiny_options(name, **changes), spec)
    return method.to(memory_format=torch.channels_last)


def tools(method: Method) -> Tools:
    """What the engine lends, without an engine."""
    return Tools(method.networks(), method.optimizers(), lambda loss: loss.backward())


@cache
def tiny_data(name: str = "digits") -> Dataset:
    """The embedded digits; or "gaussians", whose networks are the fastest."""
    return load_data(name)


def tiny_plan(name: str = "ddgan", images: int = 64, data: str = "digits", **changes: Any) -> Plan:
    """A training of a few steps of 8 images, with a checkpoint after each."""
    settings = {"batch_size": 8, "ema_decay": 0.5, "snapshots": 2, "checkpoint_minutes": 1e-9, "keep_checkpoints": 3}
    settings["watch_samples"] = 0  # whether there is time for them depends on the clock
    training = Training(**{**settings, **changes})
    return make_plan(name, tiny_data(data), images=images, options=tiny_options(name), training=training)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file as tensors."""
    from safetensors.torch import load_file

    return load_file(path)

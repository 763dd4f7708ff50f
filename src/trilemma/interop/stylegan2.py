"""Published weights of StyleGAN2 (with or without ADA) into ``StyleGenerator`` and ``StyleDiscriminator``.

The published networks name their parts after the side in pixels: ``synthesis.b8.conv0`` is the upsampling convolution
of the 8 x 8 block. Filters (``resample_filter``) are stored there and part of the code here; only 1, 3, 3, 1 is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from trilemma.config import shown
from trilemma.errors import ConfigError, nearest
from trilemma.networks.stylegan2 import StyleGenerator, StyleMapping, Synthesis
from trilemma.networks.stylegan2_discriminator import StyleDiscriminator

_GENERATOR = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs")
_DISCRIMINATOR = (
    *("c_dim", "img_resolution", "img_channels", "architecture", "channel_base", "channel_max", "num_fp16_res"),
    *("conv_clamp", "cmap_dim", "block_kwargs", "mapping_kwargs", "epilogue_kwargs"),
)
_MAPPING = ("num_layers", "lr_multiplier", "w_avg_beta", "embed_features", "layer_features", "activation")
_SYNTHESIS = ("channel_base", "channel_max", "num_fp16_res", "conv_clamp", "architecture", "resample_filter")
_UNUSED = ("num_fp16_res", "conv_clamp", "block_kwargs")  # of half precision and training
_FIXED = {
    "embed_features": None,
    "layer_features": None,
    "activation": "lrelu",
    "resample_filter": [1, 3, 3, 1],
}  # the only values these networks have here


def generator(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> StyleGenerator:
    """The published generator as ours, called G(z, c, noise="random" | "const" | "none", truncation_psi=1), in
    evaluation mode.

    Args:
        state_dict: published names to tensors.
        config: published argument names to values; what is left out has the published default.

    Raises:
        ConfigError: a missing, unknown or misshapen tensor, or a configuration that does not fit.
    """
    _check(config, _GENERATOR, "generator")
    _need(config, ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"), "generator")
    mapping = _checked(config.get("mapping_kwargs"), _MAPPING, "mapping_kwargs")
    synthesis = _checked(config.get("synthesis_kwargs"), _SYNTHESIS, "synthesis_kwargs")
    if synthesis.get("architecture", "skip") != "skip":
        raise ConfigError(f"generator of architecture {shown(synthesis['architecture'])}: only 'skip' can be read")
    network = StyleGenerator(
        StyleMapping(
            config["z_dim"],
            config["w_dim"],
            classes=config["c_dim"],
            layers=mapping.get("num_layers", 8),
            lr_scale=mapping.get("lr_multiplier", 0.01),
            beta=mapping.get("w_avg_beta", 0.995),
        ),
        Synthesis(
            w_dim=config["w_dim"],
            size=config["img_resolution"],
            channels=config["img_channels"],
            channel_base=synthesis.get("channel_base", 32768),
            channel_max=synthesis.get("channel_max", 512),
        ),
    )
    _load(network, dict(_generator_names(network)), state_dict, "generator")
    return network.eval()


def discriminator(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> StyleDiscriminator:
    """The published discriminator as ours, called D(image, c), in evaluation mode.

    Raises:
        ConfigError: a missing, unknown or misshapen tensor, or a configuration that does not fit.
    """
    _check(config, _DISCRIMINATOR, "discriminator")
    _need(config, ("c_dim", "img_resolution", "img_channels"), "discriminator")
    mapping = _checked(config.get("mapping_kwargs"), _MAPPING, "mapping_kwargs")
    epilogue = _checked(config.get("epilogue_kwargs"), ("mbstd_group_size", "mbstd_num_channels"), "epilogue_kwargs")
    if epilogue.get("mbstd_num_channels", 1) != 1:
        raise ConfigError("discriminator with more than one channel of minibatch standard deviation: cannot be read")
    network = StyleDiscriminator(
        size=config["img_resolution"],
        channels=config["img_channels"],
        classes=config["c_dim"],
        architecture=config.get("architecture", "resnet"),
        channel_base=config.get("channel_base", 32768),
        channel_max=config.get("channel_max", 512),
        mapped=config.get("cmap_dim"),
        mapping_layers=mapping.get("num_layers", 8),
        std_group=epilogue.get("mbstd_group_size", 4),
    )
    _load(network, dict(_discriminator_names(network)), state_dict, "discriminator")
    return network.eval()


def _check(given: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    for name, value in given.items():
        if name not in names:
            raise nearest(f"name in the configuration of the {what}", name, names)
        if name in _FIXED and value not in (None, _FIXED[name]):
            raise ConfigError(f"{what} with {name} {shown(value)}: only {_FIXED[name]!r} can be read")


def _checked(given: Mapping[str, Any] | None, names: tuple[str, ...], what: str) -> Mapping[str, Any]:
    _check(given or {}, names, what)
    return given or {}


def _need(config: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    missing = [name for name in names if name not in config]
    if missing:
        raise ConfigError(f"configuration of the {what} lacks {', '.join(missing)}: add what it was trained with")


def _load(network: nn.Module, names: Mapping[str, str], state_dict: Mapping[str, Tensor], what: str) -> None:
    """Fill ``network``; ``names`` are ours to theirs and must use up the state dict, its filters apart."""
    filters = {name: value for name, value in state_dict.items() if name.endswith("resample_filter")}
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    for name, value in filters.items():
        if value.shape != (4, 4) or not torch.allclose(value.float().cpu(), torch.outer(taps, taps)):
            raise ConfigError(f"state dict of the {what}: {name} is not the filter 1, 3, 3, 1, the only one read")
    given = set(state_dict) - set(filters)
    for verb, found in (("lacks", set(names.values()) - given), ("has unknown", given - set(names.values()))):
        if found:
            first = ", ".join(sorted(found)[:3])
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ConfigError(f"state dict of the {what} {verb} {first}{more}: give the configuration it had")
    ours = network.state_dict()
    filled = {}
    for name, theirs in names.items():
        if state_dict[theirs].shape != ours[name].shape:
            raise ConfigError(
                f"state dict of the {what}: {theirs} has shape {tuple(state_dict[theirs].shape)}, the configuration "
                f"asks for {tuple(ours[name].shape)}"
            )
        filled[name] = state_dict[theirs]
    network.load_state_dict(filled)


def _both(ours: str, theirs: str, *names: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{ours}.{name}", f"{theirs}.{name}") for name in names or ("weight", "bias"))


def _mapping_names(mapping: StyleMapping) -> Iterator[tuple[str, str]]:
    if mapping.embed is not None:
        yield from _both("mapping.embed", "mapping.embed")
    for i in range(len(mapping.layers)):
        yield from _both(f"mapping.layers.{i}", f"mapping.fc{i}")
    if mapping.w_avg is not None:
        yield "mapping.w_avg", "mapping.w_avg"


def _generator_names(network: StyleGenerator) -> Iterator[tuple[str, str]]:
    yield from _mapping_names(network.mapping)
    sides = cast(Synthesis, network.synthesis).sides
    yield "synthesis.const", f"synthesis.b{sides[0]}.const"
    for i, side in enumerate(sides):
        ours, theirs = f"synthesis.blocks.{i}", f"synthesis.b{side}"
        for our, their in (("up", "conv0"), ("conv", "conv1")):
            if i > 0 or our == "conv":
                yield from _both(f"{ours}.{our}.affine", f"{theirs}.{their}.affine")
                yield from _both(
                    f"{ours}.{our}", f"{theirs}.{their}", "weight", "bias", "noise_const", "noise_strength"
                )
        yield from _both(f"{ours}.to_image.affine", f"{theirs}.torgb.affine")
        yield from _both(f"{ours}.to_image", f"{theirs}.torgb")


def _discriminator_names(network: StyleDiscriminator) -> Iterator[tuple[str, str]]:
    for i, side in enumerate(network.sides):
        if i < len(network.from_image):
            yield from _both(f"from_image.{i}", f"b{side}.fromrgb")
        if i < len(network.blocks):
            yield from _both(f"blocks.{i}.conv_1", f"b{side}.conv0")
            yield from _both(f"blocks.{i}.conv_2", f"b{side}.conv1")
            if network.blocks[i].shortcut is not None:
                yield f"blocks.{i}.shortcut.weight", f"b{side}.skip.weight"
    last = network.sides[-1]
    for ours, theirs in (("conv", "conv"), ("dense", "fc"), ("out", "out")):
        yield from _both(ours, f"b{last}.{theirs}")
    if network.mapping is not None:
        yield from _mapping_names(network.mapping)

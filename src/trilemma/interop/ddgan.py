"""Published weights of the denoising diffusion GAN (Xiao et al. 2022) into ``NCSNpp`` and ``TimeDiscriminator``.

The published generator keeps its layers in one list, ``all_modules.N``, in order of construction: time layers, first
convolution, the way down, the middle, the way up, last norm and convolution. Layers without weights count as well.
Walking our network in that order gives each layer its N. Within a layer:

    residual block   GroupNorm_0, Conv_0, Dense_0, GroupNorm_1, Conv_1, then Conv_2 (biggan) or NIN_0 (ddpm)
    attention        GroupNorm_0, NIN_0 .. NIN_2 (query, key, value), NIN_3
    resampling       Conv2d_0 with a filter, Conv_0 without

NIN layers hold their weights as [in, out], ours as [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.errors import ConfigError, nearest
from trilemma.networks.discriminators import TimeDiscriminator
from trilemma.networks.embeddings import FourierEmbedding
from trilemma.networks.layers import Attention, Downsample, ResBlock, Upsample
from trilemma.networks.levels import DownLevel, UpLevel
from trilemma.networks.ncsnpp import NCSNpp
from trilemma.networks.norm import AdaptiveGroupNorm

_REQUIRED = ("image_size", "num_channels", "num_channels_dae", "ch_mult")
_OPTIONS = {
    "image_size": "image_size",
    "num_channels_dae": "channels",
    "ch_mult": "channel_mult",
    "num_res_blocks": "blocks",
    "attn_resolutions": "attention",
    "dropout": "dropout",
    "resamp_with_conv": "resample_with_conv",
    "fir": "fir",
    "fir_kernel": "fir_kernel",
    "skip_rescale": "skip_rescale",
    "resblock_type": "block",
    "progressive": "progressive_output",
    "progressive_input": "progressive_input",
    "progressive_combine": "progressive_combine",
    "embedding_type": "embedding",
    "fourier_scale": "fourier_scale",
    "conditional": "time_conditional",
    "centered": "centered",
    "nz": "nz",
    "z_emb_dim": "z_embedding",
    "n_mlp": "z_layers",
}
_DEFAULTS: dict[str, Any] = {"progressive_input": "residual"}  # where the published default is not ours
_NOT_OF_THE_GENERATOR = (
    "num_channels not_use_tanh t_emb_dim ngf num_timesteps use_geometric beta_min beta_max seed resume exp dataset "
    "batch_size num_epoch lr_g lr_d beta1 beta2 no_lr_decay use_ema ema_decay r1_gamma lazy_reg save_content "
    "save_content_every save_ckpt_every num_proc_node num_process_per_node node_rank local_rank global_rank "
    "global_size master_address epoch_id compute_fid real_img_dir"
).split()


@dataclass(frozen=True)
class _Rule:
    """One of our tensors: the published ones it is made of, joined along the outputs, each transposed if so stored."""

    target: str
    sources: tuple[str, ...]
    transposed: bool = False


def options_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``NCSNpp`` from the published argument names; what is left out has the published default.

    Raises ConfigError for a missing or unknown name.
    """
    missing = [name for name in _REQUIRED if name not in config]
    if missing:
        raise ConfigError(f"configuration of the generator lacks {', '.join(missing)}: add what it was trained with")
    for name in config:
        if name not in _OPTIONS and name not in _NOT_OF_THE_GENERATOR:
            raise nearest("name in the configuration", name, [*_OPTIONS, *_NOT_OF_THE_GENERATOR])
    given = {**_DEFAULTS, **config}
    options = {ours: _plain(given[theirs]) for theirs, ours in _OPTIONS.items() if theirs in given}
    options["in_channels"] = options["out_channels"] = int(config["num_channels"])
    options["tanh"] = not config.get("not_use_tanh", False)
    options.setdefault("nz", 100)
    options.setdefault("z_embedding", 256)
    options.setdefault("z_layers", 3)
    return options


def generator(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> NCSNpp:
    """The published generator as ours, called G(x, t, z), in evaluation mode.

    Args:
        state_dict: published names to tensors, with or without the prefix ``module.``.
        config: published argument names to values (see ``options_from_config``).

    Raises:
        ConfigError: a missing, unknown or misshapen tensor, or a configuration that does not fit.
    """
    network = NCSNpp(**options_from_config(config))
    _load(network, list(_generator_rules(network)), state_dict, "generator")
    return network.eval()


def discriminator(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> TimeDiscriminator:
    """The published discriminator (small or large) as ours, called D(x, t, x_t), in evaluation mode.

    The kind and every width are read off the tensors, so ``config`` may be empty; what it says of ``ngf``,
    ``t_emb_dim``, ``nc`` (channels of both images) or ``num_channels`` (of one) must agree.

    Raises:
        ConfigError: a missing, unknown or misshapen tensor, or a configuration that does not fit.
    """
    state = _stripped(state_dict)
    for name in ("start_conv.weight", "t_embed.main.0.weight"):
        if name not in state:
            raise ConfigError(f"state dict of the discriminator lacks {name}: is it one?")
    start, embedding = state["start_conv.weight"].shape, state["t_embed.main.0.weight"].shape[1]
    found = {"ngf": start[0] // 2, "t_emb_dim": embedding, "nc": start[1], "num_channels": start[1] // 2}
    for name, value in found.items():
        if config.get(name, value) != value:
            raise ConfigError(f"configuration says {name} {config[name]}, but the discriminator's weights say {value}")
    network = TimeDiscriminator(
        in_channels=found["num_channels"],
        channels=found["ngf"],
        embedding=embedding,
        kind="large" if "conv6.conv1.0.weight" in state else "small",
    )
    _load(network, list(_discriminator_rules(network)), state, "discriminator")
    return network.eval()


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _stripped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def _load(network: nn.Module, rules: list[_Rule], state_dict: Mapping[str, Tensor], what: str) -> None:
    """Fill ``network`` by ``rules``, which must use up the state dict."""
    state = _stripped(state_dict)
    needed = [source for rule in rules for source in rule.sources]
    for verb, names in (("lacks", set(needed) - set(state)), ("has unknown", set(state) - set(needed))):
        if names:
            first = ", ".join(sorted(names)[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(f"state dict of the {what} {verb} {first}{more}: give the configuration it had")
    ours = network.state_dict()
    filled = {}
    for rule in rules:
        parts = [state[source].T if rule.transposed else state[source] for source in rule.sources]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if tensor.dim() == 2 and ours[rule.target].dim() == 4:  # a dense layer that is a 1 x 1 convolution here
            tensor = tensor[:, :, None, None]
        if tensor.shape != ours[rule.target].shape:
            raise ConfigError(
                f"state dict of the {what}: {rule.sources[0]} has shape {tuple(tensor.shape)}, the configuration asks "
                f"for {tuple(ours[rule.target].shape)}"
            )
        filled[rule.target] = tensor
    network.load_state_dict(filled)


def _pair(target: str, source: str) -> Iterator[_Rule]:
    """Weight and bias under the same names."""
    for name in ("weight", "bias"):
        yield _Rule(f"{target}.{name}", (f"{source}.{name}",))


def _nin(target: str, *sources: str) -> Iterator[_Rule]:
    """Published 1 x 1 layers, side by side, as one of ours."""
    yield _Rule(f"{target}.weight", tuple(f"{source}.W" for source in sources), transposed=True)
    yield _Rule(f"{target}.bias", tuple(f"{source}.b" for source in sources))


def _norm(layer: nn.Module, target: str, source: str) -> Iterator[_Rule]:
    adaptive = ".style" if isinstance(layer, AdaptiveGroupNorm) else ""
    yield from _pair(target + adaptive, source + adaptive)


def _block(block: ResBlock, target: str, source: str) -> Iterator[_Rule]:
    yield from _norm(block.norm_1, f"{target}.norm_1", f"{source}.GroupNorm_0")
    yield from _pair(f"{target}.conv_1", f"{source}.Conv_0")
    if block.time is not None:
        yield from _pair(f"{target}.time", f"{source}.Dense_0")
    yield from _norm(block.norm_2, f"{target}.norm_2", f"{source}.GroupNorm_1")
    yield from _pair(f"{target}.conv_2", f"{source}.Conv_1")


def _layer(layer: nn.Module, target: str, source: str, *, ddpm: bool) -> Iterator[_Rule]:
    """The rules of one entry of the published list."""
    if isinstance(layer, ResBlock):
        yield from _block(layer, target, source)
        if layer.shortcut is not None and ddpm:
            yield from _nin(f"{target}.shortcut", f"{source}.NIN_0")
        elif layer.shortcut is not None:
            yield from _pair(f"{target}.shortcut", f"{source}.Conv_2")
    elif isinstance(layer, Attention):
        yield from _pair(f"{target}.norm", f"{source}.GroupNorm_0")
        yield from _nin(f"{target}.qkv", *(f"{source}.NIN_{i}" for i in range(3)))
        yield from _nin(f"{target}.out", f"{source}.NIN_3")
    elif isinstance(layer, Downsample | Upsample):
        if layer.conv is not None:
            yield from _pair(f"{target}.conv", f"{source}.{'Conv2d_0' if layer.fir else 'Conv_0'}")
    elif isinstance(layer, FourierEmbedding):
        yield _Rule(f"{target}.frequencies", (f"{source}.W",))
    else:
        yield from _pair(target, source)


def _entries(network: NCSNpp) -> Iterator[nn.Module]:
    """Our layers in the order of the published list, one an entry."""
    if network.fourier is not None:
        yield network.fourier
    if network.time_in is not None and network.time_out is not None:
        yield from (network.time_in, network.time_out)
    yield network.conv_in
    for level in network.down:
        assert isinstance(level, DownLevel)
        for block, attention in zip(level.blocks, level.attentions, strict=True):
            yield block
            if isinstance(attention, Attention):
                yield attention
        if level.resample is not None:
            yield level.resample
        if level.combine is not None:
            yield level.combine
        elif level.shrink is not None:
            yield level.shrink
    yield from (network.mid_1, network.mid_attention, network.mid_2)
    for level in network.up:
        assert isinstance(level, UpLevel)
        yield from level.blocks
        if isinstance(level.attention, Attention):
            yield level.attention
        if level.emit is not None:
            yield from (level.emit.norm, level.emit.conv)
        elif level.grow is not None:
            yield level.grow
        if level.resample is not None:
            yield level.resample
    if network.out is not None:
        yield from (network.out.norm, network.out.conv)


def _generator_rules(network: NCSNpp) -> Iterator[_Rule]:
    names = {module: name for name, module in network.named_modules()}
    for i, layer in enumerate(_entries(network)):
        inner = ".Conv_0" if names[layer].endswith(".combine") else ""
        yield from _layer(layer, names[layer], f"all_modules.{i}{inner}", ddpm=network.block == "ddpm")
    if network.latent is not None:
        for i in range(len(network.latent.layers)):
            yield from _pair(f"latent.layers.{i}", f"z_transform.{2 * i + 1}")


def _discriminator_rules(network: TimeDiscriminator) -> Iterator[_Rule]:
    yield from _pair("time_in", "t_embed.main.0")
    yield from _pair("time_out", "t_embed.main.2")
    for name in ("start_conv", "final_conv", "end_linear"):
        yield from _pair(name, name)
    for i in range(len(network.blocks)):
        target, source = f"blocks.{i}", f"conv{i + 1}"
        yield from _pair(f"{target}.conv1", f"{source}.conv1.0")
        yield from _pair(f"{target}.conv2", f"{source}.conv2.0")
        yield from _pair(f"{target}.time", f"{source}.dense_t1")
        yield _Rule(f"{target}.skip.weight", (f"{source}.skip.0.weight",))

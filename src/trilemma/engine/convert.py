"""A published checkpoint into a run folder that ``sample`` and ``evaluate`` take, without running its code."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trilemma.config import build, plain, shown
from trilemma.data import catalogue
from trilemma.engine.bounds import bounded, check_settings
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, RunError
from trilemma.files import read_json
from trilemma.interop import ddgan as reference
from trilemma.interop import pickles
from trilemma.interop import stylegan2 as style_reference
from trilemma.measure.speed import hardware, versions
from trilemma.methods import method_class
from trilemma.methods.base import Method
from trilemma.types import DataSpec

_PROCESS = {"num_timesteps": "num_timesteps", "beta_min": "beta_min", "beta_max": "beta_max"}
_STYLE = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")  # the reference's arguments, in their order
_STYLE_PARTS = ("mapping_kwargs", "synthesis_kwargs")  # those that follow
_ONLY_FASTER = "fused_modconv_default"  # in synthesis_kwargs: another way to the same numbers


@dataclass(frozen=True)
class Converted:
    """What a checkpoint became: the method with its weights, and what is known of its data and seed."""

    method: Method
    data: str
    seed: Any = 0


def convert(file: Path | str, run: Path | str, *, config: Path | str | None = None, kind: str = "ddgan") -> Path:
    """Read a generator's weights and write a run folder.

    Args:
        file: ddgan: the .pth file: a state dict, or a training file that holds one under "netG_dict"; stylegan2: the
            .pkl file with G_ema, which is read without running it (see `interop.pickles`).
        run: the folder to write; must not exist or be empty.
        config: ddgan: JSON with the reference's own argument names (image_size, num_channels_dae, ...). A .pkl file has
            its own.
        kind: whose checkpoint it is; "ddgan" or "stylegan2".

    Raises:
        ConfigError: another kind, or a config that does not fit.
        RunError: not plain weights, or the folder is in use.
    """
    if kind not in _READERS:
        raise ConfigError(f"--as {kind}: only {' and '.join(_READERS)} checkpoints can be converted")
    folder = Path(run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is in use: give a new folder")
    made = _READERS[kind](Path(file), None if config is None else Path(config))
    method = made.method
    opened = Run(folder)
    opened.save_weights(method.sampling_networks())
    opened.write_config(
        {
            "method": kind,
            "title": method.title(),
            "recipe": f"converted from {Path(file).name}",
            "data": {
                "name": made.data if made.data in catalogue() else f"{made.data} (give a reference with --data)",
                "source": "named by the checkpoint's configuration" if kind == "ddgan" else "not named",
                "split": "train",
                "spec": plain(method.spec),
            },
            "options": plain(method.options),
            "seed": made.seed,
            "versions": versions(),
            "hardware": hardware(),
        }
    )
    return folder


# Denoising diffusion GAN


def _ddgan(file: Path, config: Path | None) -> Converted:
    if config is None:
        raise ConfigError("--config is missing: a ddgan checkpoint needs JSON with the reference's own argument names")
    arguments = read_json(config)
    if not isinstance(arguments, dict):
        raise ConfigError(f"{config} must hold one JSON object with the reference's argument names")
    check_settings({key: value for key, value in arguments.items() if key != "seed"}, str(config))
    options, spec = _options(arguments, str(config))
    state = _state_dict(file)
    with bounded(str(config), file):
        generator = reference.generator(state, arguments)
        method = method_class("ddgan")(options, spec)
    method.networks()["generator"].load_state_dict(generator.state_dict())
    return Converted(method, str(arguments.get("dataset", "unknown")), arguments.get("seed", 0))


def _state_dict(path: Path) -> dict[str, Any]:
    _check_packing(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"no checkpoint {path}") from error
    except Exception as error:  # torch reports refused pickles and damaged files by many types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RunError(f"{path} cannot be read as plain weights ({reason}): save its state dict alone") from error
    if isinstance(state, dict) and "netG_dict" in state:
        state = state["netG_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise RunError(f"{path} is not a state dict: it must map names to tensors")
    if not all(isinstance(name, str) for name in state):
        raise RunError(f"{path} is not a state dict: its names are not all text")
    return state


def _check_packing(path: Path) -> None:
    """Refuse a zip that unpacks to more than it is: torch does not pack what it saves. Raises RunError."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        larger = unpacked > path.stat().st_size
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile):  # no zip, or none that is whole: torch says so
        return
    if larger:
        raise RunError(
            f"{path} cannot be read as plain weights (it unpacks to more than it is): save it with torch.save"
        )


def _options(arguments: dict[str, Any], where: str) -> tuple[Any, DataSpec]:
    """The method's options that rebuild the generator, and the shape of its images."""
    try:
        settings = dict(reference.options_from_config(arguments))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    size, channels = settings.pop("image_size"), settings.pop("in_channels")
    settings.pop("out_channels")
    for theirs, ours in (("conditional", "time_conditional"), ("centered", "centered")):
        if not settings.pop(ours, True):
            raise ConfigError(f"{where}: {theirs} is false, but only generators with it on can be converted")
    latent = {"nz": settings.pop("nz"), "embedding": settings.pop("z_embedding"), "layers": settings.pop("z_layers")}
    given = {ours: arguments[theirs] for theirs, ours in _PROCESS.items() if theirs in arguments}
    if "use_geometric" in arguments:
        given["schedule"] = "geometric" if arguments["use_geometric"] else "vp"
    options = build(method_class("ddgan").Options, {**given, "unet": settings, "latent": latent}, where)
    return options, build(DataSpec, {"kind": "images", "channels": channels, "height": size, "width": size}, where)


# StyleGAN2


def _stylegan2(file: Path, config: Path | None) -> Converted:
    if config is not None:
        raise ConfigError("--config: a stylegan2 pickle holds its own settings; leave it out")
    try:
        arguments, state = _snapshot(file)
    except pickles.UnreadableError as error:
        raise RunError(f"{file} cannot be read: {error}; nothing in it was run") from error
    where = str(file)
    check_settings(arguments, where)
    options, spec = _style_options(arguments, where)
    with bounded(where, file):
        generator = style_reference.generator(state, arguments)
        method = method_class("stylegan2")(options, spec)
    method.networks()["generator"].load_state_dict(generator.state_dict())
    return Converted(method, "unknown")


def _snapshot(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The arguments that G_ema was made with, by name, and its state dict. Raises UnreadableError."""
    content = pickles.read_pickle(file)
    if isinstance(content, dict) and "G_ema" not in content:
        raise pickles.UnreadableError("it holds no G_ema, the averaged generator of a training")
    network = content["G_ema"] if isinstance(content, dict) else content
    about = pickles.attributes(network)
    in_order = pickles.plain(about.get("_init_args", []))
    named = pickles.plain(about.get("_init_kwargs", {}))
    names = (*_STYLE, *_STYLE_PARTS)
    if not isinstance(in_order, list) or not isinstance(named, dict) or len(in_order) > len(names):
        raise pickles.UnreadableError("its G_ema does not tell the arguments it was made with")
    return {**dict(zip(names, in_order, strict=False)), **named}, pickles.module_tensors(network)


def _style_options(arguments: dict[str, Any], where: str) -> tuple[Any, DataSpec]:
    """The method's options that rebuild the generator, and the shape of its images. What has no counterpart among them
    is refused here, or by `interop.stylegan2`."""
    missing = [name for name in _STYLE if name not in arguments]
    if missing:
        raise ConfigError(f"{where}: its generator was made without {', '.join(missing)}: is it StyleGAN2's?")
    mapping, synthesis = (arguments.get(part) or {} for part in _STYLE_PARTS)
    if not isinstance(mapping, dict) or not isinstance(synthesis, dict):
        raise ConfigError(f"{where}: {' and '.join(_STYLE_PARTS)} must be tables of settings")
    synthesis.pop(_ONLY_FASTER, None)
    if "w_avg_beta" in mapping and mapping["w_avg_beta"] is None:
        raise ConfigError(
            f"{where}: w_avg_beta is none, but only generators that keep an average of w can be converted"
        )
    if arguments["c_dim"] == 1:
        raise ConfigError(
            f"{where}: c_dim is 1, but only generators without classes, or with several, can be converted"
        )
    if arguments["img_channels"] not in (1, 3):
        channels = shown(arguments["img_channels"])
        raise ConfigError(f"{where}: img_channels is {channels}, but images are gray (1) or RGB (3)")
    latent = {"z_dim": arguments["z_dim"], "w_dim": arguments["w_dim"]}
    latent |= {ours: mapping[theirs] for theirs, ours in _MAPPING.items() if theirs in mapping}
    widths = {name: synthesis[name] for name in ("channel_base", "channel_max") if name in synthesis}
    size, channels, classes = arguments["img_resolution"], arguments["img_channels"], arguments["c_dim"]
    given = {"mapping": latent, "generator": widths, "discriminator": widths, "conditional": bool(classes)}
    options = build(method_class("stylegan2").Options, given, where)
    about = {"kind": "images", "channels": channels, "height": size, "width": size, "classes": classes}
    return options, build(DataSpec, about, where)


_MAPPING = {"num_layers": "layers", "lr_multiplier": "lr_scale"}
_READERS: dict[str, Callable[[Path, Path | None], Converted]] = {"ddgan": _ddgan, "stylegan2": _stylegan2}

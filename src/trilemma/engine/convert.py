"""A published checkpoint into a run folder that ``sample`` and ``evaluate`` take, without running its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trilemma.config import build, plain
from trilemma.data import catalogue
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, RunError
from trilemma.files import read_json
from trilemma.interop import ddgan as reference
from trilemma.measure.speed import hardware, versions
from trilemma.methods import method_class
from trilemma.types import DataSpec

_PROCESS = {"num_timesteps": "num_timesteps", "beta_min": "beta_min", "beta_max": "beta_max"}


def convert(file: Path | str, run: Path | str, *, config: Path | str, kind: str = "ddgan") -> Path:
    """Read a generator's state dict and write a run folder.

    Args:
        file: the .pth file: a state dict, or a training file that holds one under "netG_dict".
        run: the folder to write; must not exist or be empty.
        config: JSON with the reference's own argument names (image_size, num_channels_dae, ...).
        kind: whose checkpoint it is; "ddgan".

    Raises:
        ConfigError: another kind, or a config that does not fit.
        RunError: not a plain state dict, or the folder is in use.
    """
    if kind != "ddgan":
        raise ConfigError(f"--as {kind}: only ddgan checkpoints can be converted")
    folder = Path(run)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is in use: give a new folder")
    arguments = read_json(Path(config))
    if not isinstance(arguments, dict):
        raise ConfigError(f"{config} must hold one JSON object with the reference's argument names")
    options, spec = _options(arguments, str(config))
    generator = reference.generator(_state_dict(Path(file)), arguments)
    method = method_class("ddgan")(options, spec)
    method.networks()["generator"].load_state_dict(generator.state_dict())
    opened = Run(folder)
    opened.save_weights(method.sampling_networks())
    opened.write_config(
        {
            "method": "ddgan",
            "title": method.title(),
            "recipe": f"converted from {Path(file).name}",
            "data": {
                "name": _data_name(arguments),
                "source": "named by the checkpoint's configuration",
                "split": "train",
                "spec": plain(spec),
            },
            "options": plain(options),
            "seed": arguments.get("seed", 0),
            "versions": versions(),
            "hardware": hardware(),
        }
    )
    return folder


def _state_dict(path: Path) -> dict[str, Any]:
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
    return state


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


def _data_name(arguments: dict[str, Any]) -> str:
    name = str(arguments.get("dataset", "unknown"))
    return name if name in catalogue() else f"{name} (give a reference with --data)"

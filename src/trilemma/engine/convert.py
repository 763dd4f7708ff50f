"""A published checkpoint into a run folder that ``sample`` and ``evaluate`` take, without running its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trilemma.config import plain
from trilemma.data import catalogue
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, RunError
from trilemma.files import read_json
from trilemma.interop import ddgan as reference
from trilemma.measure.speed import hardware, versions
from trilemma.methods import method_class
from trilemma.types import DataSpec


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
    generator = reference.generator(_state_dict(Path(file)), arguments)
    options, spec = _options(arguments)
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
        reason = str(error).splitlines()[0]
        raise RunError(f"{path} cannot be read as plain weights ({reason}): save its state dict alone") from error
    if isinstance(state, dict) and "netG_dict" in state:
        state = state["netG_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise RunError(f"{path} is not a state dict: it must map names to tensors")
    return state


def _options(arguments: dict[str, Any]) -> tuple[Any, DataSpec]:
    """The method's options that rebuild the generator, and the shape of its images."""
    from trilemma.methods.ddgan import DDGANOptions
    from trilemma.networks.options import LatentOptions, UNetOptions

    settings = dict(reference.options_from_config(arguments))
    size, channels = settings.pop("image_size"), settings.pop("in_channels")
    latent = LatentOptions(settings.pop("nz"), settings.pop("z_embedding"), settings.pop("z_layers"))
    settings.pop("out_channels")
    names = UNetOptions.__dataclass_fields__
    unet = UNetOptions(**{key: value for key, value in settings.items() if key in names})
    options = DDGANOptions(
        num_timesteps=int(arguments.get("num_timesteps", 4)),
        schedule="geometric" if arguments.get("use_geometric") else "vp",
        beta_min=float(arguments.get("beta_min", 0.1)),
        beta_max=float(arguments.get("beta_max", 20.0)),
        unet=unet,
        latent=latent,
    )
    return options, DataSpec("images", channels, size, size)


def _data_name(arguments: dict[str, Any]) -> str:
    name = str(arguments.get("dataset", "unknown"))
    return name if name in catalogue() else f"{name} (give a reference with --data)"

"""Pickles as StyleGAN2-ADA writes them, made with stand-ins for its modules: the same opcodes, none of its code.

An object of its persistent classes is written as a call of ``torch_utils.persistence._reconstruct_persistent_obj`` with
one dict; its settings are ``dnnlib.util.EasyDict``. Both modules exist only while a pickle is written.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

BUFFERS = ("noise_const", "w_avg", "resample_filter")


class EasyDict(dict[str, Any]):
    """A dict whose items are attributes."""


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("nobody calls this")


class Persistent:
    """An object of a persistent class: its name, its source and its attributes."""

    def __init__(self, name: str, state: dict[str, Any]) -> None:
        self.name, self.state = name, state

    def __reduce__(self) -> tuple[Any, ...]:
        source = "raise SystemExit('the source of a class was run')\n"
        about = {"version": 6, "module_src": source, "class_name": self.name, "state": self.state}
        return _reconstruct_persistent_obj, ({"type": "class", **about},), None


@contextmanager
def reference_modules() -> Iterator[None]:
    """The reference's modules for as long as something is written."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")
    stand_ins: list[tuple[Any, ModuleType]] = [(_reconstruct_persistent_obj, persistence), (EasyDict, util)]
    before = [(thing, thing.__module__) for thing, _ in stand_ins]
    for thing, module in stand_ins:
        setattr(module, thing.__name__, thing)
        thing.__module__ = module.__name__
    packages = {name: ModuleType(name) for name in ("torch_utils", "dnnlib")}
    packages |= {module.__name__: module for _, module in stand_ins}
    sys.modules.update(packages)
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        for thing, name in before:
            thing.__module__ = name


def network(state: Mapping[str, Tensor], **attributes: Any) -> Persistent:
    """A network of the reference: modules within each other after the dots in the names of ``state``."""
    inner: dict[str, dict[str, Tensor]] = {}
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        head, dot, rest = name.partition(".")
        (inner.setdefault(head, {}) if dot else own)[rest if dot else head] = value
    hooks = (
        "_backward_hooks",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_state_dict_hooks",
        "_load_state_dict_pre_hooks",
    )
    return Persistent(
        "Generator" if attributes else "Layer",
        {
            "training": False,
            "_parameters": OrderedDict((k, nn.Parameter(v)) for k, v in own.items() if k not in BUFFERS),
            "_buffers": OrderedDict((k, v) for k, v in own.items() if k in BUFFERS),
            "_non_persistent_buffers_set": set(),
            **{hook: OrderedDict() for hook in hooks},
            "_modules": OrderedDict((k, network(v)) for k, v in inner.items()),
            **attributes,
        },
    )


def settings(config: Mapping[str, Any]) -> EasyDict:
    """A configuration with its nested tables as the reference keeps them."""
    return EasyDict({key: settings(value) if isinstance(value, dict) else value for key, value in config.items()})


def snapshot(state: Mapping[str, Tensor], config: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """What a training saves: G, D and so on beside G_ema, which is asked for."""
    made = network(state, z_dim=config["z_dim"], _init_args=(), _init_kwargs=dict(settings(config)))
    return {"G": None, "D": None, "G_ema": made, "training_set_kwargs": settings({"path": "data.zip"}), **others}


def written(path: Path, content: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    """``content`` as a pickle of the reference's."""
    with reference_modules():
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def storage_bytes(content: Any) -> bytes:
    """``content`` as torch writes a storage inside a pickle."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()

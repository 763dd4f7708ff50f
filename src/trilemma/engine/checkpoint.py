"""Everything a run needs to go on as if it had never stopped, without pickling.

A checkpoint is one safetensors file: all tensors (weights, averaged weights, optimiser moments, random states) under
path-like names, and the structure around them (plain numbers, lists, names) as JSON in the file's metadata. One file,
written under a temporary name and renamed, so a checkpoint is whole or not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trilemma.errors import RunError
from trilemma.files import write_atomically


def flatten(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Move the tensors of nested dicts and lists into ``tensors``; returns the JSON structure that refers to them."""
    if isinstance(tree, Tensor):
        while path in tensors:  # keys "a/b" and "a" over "b", or 1 and "1"
            path += "'"
        tensors[path] = tree.detach().cpu().contiguous()
        return {"tensor": path}
    if isinstance(tree, dict):
        # Optimiser states have integer keys, which JSON cannot: keep items as pairs.
        return {"dict": [[key, flatten(value, tensors, f"{path}/{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        items = [flatten(value, tensors, f"{path}/{index}") for index, value in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": items}
    return {"value": tree}


def unflatten(structure: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of ``flatten``."""
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        items = [unflatten(value, tensors) for value in content]
        return tuple(items) if kind == "tuple" else items
    return content


def save_checkpoint(folder: Path, state: dict[str, Any], step: int, keep: int) -> Path:
    """Write ``folder/step-00001200.safetensors`` and delete all but the newest ``keep``."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(flatten(state, tensors))
    path = folder / f"step-{step:09d}.safetensors"
    write_tensors(path, tensors, {"structure": structure})
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """One safetensors file, whole or not there.

    Raises:
        RunError: it cannot be written.
    """
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in storages else tensor  # the format refuses tensors that share memory
        storages.add(storage)

    def write(temporary: Path) -> None:
        try:
            save_file(apart, temporary, metadata=metadata)
        except SafetensorError as error:  # so it reports a full disk
            raise OSError(str(error)) from error

    write_atomically(path, write)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one back.

    Raises:
        RunError: the file is damaged or not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            structure = json.loads(file.metadata()["structure"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state: dict[str, Any] = unflatten(structure, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{path} is not a whole checkpoint ({error})"
        raise RunError(f"{reason}: delete it to resume from the one before") from error
    return state


def random_state() -> dict[str, Any]:
    """The state of torch's generators on this process."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Continue the random numbers where ``random_state`` left them."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])

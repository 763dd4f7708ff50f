"""Everything a run needs to go on as if it had never stopped, without pickling.

A checkpoint is one safetensors file: all tensors (weights, averaged weights, optimiser moments, random states) under
path-like names, and the structure around them (plain numbers, lists, names) as JSON in the file's metadata. One file,
written under a temporary name and renamed, so a checkpoint is whole or not there.

The format has no checksum, and a byte that changes on a disk would be another weight. So the metadata also hold a
CRC-32 over structure and tensors, compared when the file is read. Files of earlier versions, without one, can be read.
"""

from __future__ import annotations

import json
import os
import random
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trilemma.errors import RunError
from trilemma.files import cannot_write, parse_json, write_atomically

# What content of other types or sizes than a training's makes torch, NumPy and Python raise.
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_NUMPY_KEYS = 624


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
    write_tensors(path, tensors, {"structure": structure, "crc32": checksum(structure, tensors)})
    for old in checkpoints(folder)[:-keep]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(old, error) from error
    return path


def checksum(structure: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over the structure and, in the order of their names, each tensor's name, type, shape and bytes, in hex."""
    crc = zlib.crc32(structure.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(raw_bytes(tensor), crc)
    return f"{crc:08x}"


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, as they are stored."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


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
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        structure = metadata["structure"]
        if len(metadata) > 1 and metadata["crc32"] != checksum(structure, tensors):
            raise ValueError("its checksum does not match")
        # Copies: until then they lie in the file, which may be renamed or deleted. Not before the sum, as a copy of
        # truth values makes a 1 of any byte but 0.
        apart = {name: tensor.clone() for name, tensor in tensors.items()}
        state: dict[str, Any] = unflatten(parse_json(structure), apart)
        if not isinstance(state, dict):
            raise TypeError("it holds no names")
    except (SafetensorError, OSError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = f"{path} is not a whole checkpoint ({' '.join(str(error).split()) or type(error).__name__})"
        raise RunError(f"{reason}: delete it to resume from the one before") from error
    return state


def newest_checkpoint(
    folder: Path, check: Callable[[dict[str, Any]], None] = lambda state: None
) -> tuple[Path, dict[str, Any], list[Path]] | None:
    """The newest whole checkpoint, its content and the damaged ones after it; None where there is no checkpoint.

    One whose content makes ``check`` raise counts as damaged.

    Raises:
        RunError: there are some, and each is damaged; or one may not be read.
    """
    damaged: list[Path] = []
    for path in reversed(checkpoints(folder)):
        if not os.access(path, os.R_OK):  # nobody can say whether it is damaged
            raise RunError(f"cannot read {path}: its permissions forbid it: change them or train as its owner")
        try:
            state = load_checkpoint(path)
            check(state)
            return path, state, damaged
        except (RunError, *MISFITS):
            damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise RunError(f"{folder}: no checkpoint is whole ({names}): restore one, or train anew with another --out")
    return None


def set_aside(damaged: Path) -> Path:
    """Rename a damaged checkpoint, so that it is kept but no longer one.

    Raises:
        RunError: it cannot be renamed.
    """
    target = damaged.with_suffix(".damaged")
    try:
        os.replace(damaged, target)
    except OSError as error:
        raise cannot_write(target, error) from error
    return target


def random_state() -> dict[str, Any]:
    """The state of all global generators on this process: torch's, which training draws from, Python's and NumPy's."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = cast(Any, np.random.get_state())
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "python": {"version": version, "state": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "state": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "gauss": [int(has_gauss), float(cached)],
        },
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Continue the random numbers where ``random_state`` left them; earlier versions kept torch's alone."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    if "python" in state:
        random.setstate(_python_state(state["python"]))
    if "numpy" in state:
        np.random.set_state(_numpy_state(state["numpy"]))


def check_random_state(state: dict[str, Any]) -> None:
    """Try what ``set_random_state`` does on other generators.

    Raises:
        one of MISFITS: a part is missing, or of another type or size.
    """
    torch.Generator().set_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.Generator("cuda").set_state(state["cuda"])
    if "python" in state:
        random.Random().setstate(_python_state(state["python"]))
    if "numpy" in state:
        np.random.RandomState().set_state(_numpy_state(state["numpy"]))


def _python_state(kept: dict[str, Any]) -> tuple[int, tuple[int, ...], float | None]:
    gauss = None if kept["gauss"] is None else float(kept["gauss"])
    return kept["version"], tuple(kept["state"].tolist()), gauss


def _numpy_state(kept: dict[str, Any]) -> tuple[str, NDArray[np.uint32], int, int, float]:
    keys, position = kept["state"].numpy().astype(np.uint32), int(kept["position"])
    if not 0 <= position <= len(keys) == _NUMPY_KEYS:  # NumPy would read wherever it points
        raise ValueError("a generator that stands beside its numbers")
    has_gauss, cached = kept["gauss"]
    return "MT19937", keys, position, int(has_gauss), float(cached)

"""Features of reference images, kept on disk: the same pixels are looked at once, whatever they are called.

A file is named after the digest of all that decides its content: the pixels and their order, the extractor and its
weights, the kind of device and the versions of what computes them. An edited image asks for another file, so nothing
here can be out of date, and everything can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trilemma.errors import RunError
from trilemma.files import write_atomically
from trilemma.measure.features import Extractor, FeatureSet, extract
from trilemma.measure.speed import versions

See = Callable[[Tensor, Extractor], FeatureSet]
_FORMAT = 1  # another one where the same key shall no longer mean the same features
_LIBRARIES = ("trilemma", "torch", "torch-fidelity")


def cached_features(x: Tensor, extractor: Extractor, folder: Path | None, see: See | None = None) -> FeatureSet:
    """``extract(x, extractor)`` of uint8 images (N, C, H, W), read from ``folder`` if it is there, else put there.

    A damaged file counts as absent and is written anew. A folder that cannot be written to keeps nothing, and neither
    does None. ``see`` gives what ``extract`` does, in another way.
    """
    see = see or extract
    if folder is None:
        return see(x, extractor)
    key = _key(x, extractor)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    tensors = _read(path, key)
    if tensors is not None:
        logits: Any = tensors.get("logits")  # a network without classes has none
        return FeatureSet(tensors["features"], logits, extractor.name, extractor.digest)
    found = see(x, extractor)
    seen = {"features": found.features, "logits": found.logits}
    made = {name: tensor.contiguous() for name, tensor in seen.items() if tensor is not None}
    metadata = {"key": key, "sha256": _checksum(made)}
    # A full disk costs the time that the cache would have saved, not the scores.
    with contextlib.suppress(RunError, SafetensorError):
        write_atomically(path, lambda temporary: save_file(made, temporary, metadata))
    return found


def _key(x: Tensor, extractor: Extractor) -> str:
    """All that decides the features, as JSON."""
    installed = versions()
    parts = {
        "format": _FORMAT,
        "images": _checksum({"x": x}),
        "extractor": extractor.name,
        "weights": extractor.digest,
        "device": extractor.device.type,
        "versions": {name: installed[name] for name in _LIBRARIES},
    }
    return json.dumps(parts, sort_keys=True)


def _checksum(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """The tensors of a file; None if there is none, or one that is not as it was written."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return None
    whole = metadata.get("key") == key and metadata.get("sha256") == _checksum(tensors)
    return tensors if whole else None

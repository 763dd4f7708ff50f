"""Files of weights: fetched once, read as bare tensors, told apart by a digest. Nothing here is unpickled freely."""

from __future__ import annotations

import hashlib
import logging
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load(weights_only=True); nothing is unpickled here

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trilemma.errors import ExtractorError

_DIGITS = 16  # hexadecimal digits of a sha256 that are kept
# Without it a network that swallows packets would hold the download for ever.
_NETWORK_TIMEOUT_SECONDS = 30.0
# What reading a file that is not what it should be has been seen to raise.
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, SafetensorError)


def digest_of(content: Path | bytes) -> str:
    """The start (16 hex digits) of the sha256 of a file, or of what was read from one."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()[:_DIGITS]
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def short(error: BaseException) -> str:
    """An error's own words on one line of at most 160 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


@contextmanager
def no_words() -> Iterator[None]:
    """Keeps back the warnings and log lines of torch's loaders: what matters is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def read_state(path: Path, hint: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a ``torch.save`` file that holds nothing else.

    Raises ExtractorError, which ends in ``hint``: what file to give instead.
    """
    try:
        safe = path.suffix == ".safetensors"
        with no_words():
            state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ExtractorError(f"{path}: cannot be read as bare weights ({short(error)}); {hint}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ExtractorError(f"{path}: holds something else than named tensors; {hint}")
    return dict(state)


def fetch(title: str, url: str, *, file: str | None = None, sha256: str | None = None) -> Path:
    """The file at ``url`` in torch.hub's cache (as ``file``), downloaded there if need be.

    A download whose sha256 does not begin with ``sha256`` is thrown away. Raises ExtractorError when there is no
    network, no such file or no room, naming the ways to do without.
    """
    file = file or url.rsplit("/", 1)[-1]
    path: Path = Path(str(torch.hub.get_dir())) / "checkpoints" / file
    if path.exists():
        return path
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except (OSError, RuntimeError) as error:
        raise ExtractorError(
            f"cannot download the {title} weights {file} ({short(error)}): fetch {url} elsewhere "
            "and give it with --extractor-weights FILE, or judge digits with --extractor digits (no download)"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path

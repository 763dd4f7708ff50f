"""Known image sets: scikit-learn's embedded digits; MNIST (also stacked), Fashion-MNIST, CIFAR-10 by torchvision."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trilemma.data.dataset import Dataset, make_dataset
from trilemma.data.decode import fit
from trilemma.errors import DataError

_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}  # in torchvision
_TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
# Without it a network that swallows packets would hold the download for ever.
_NETWORK_TIMEOUT_SECONDS = 30.0


def default_root() -> Path:
    """Where downloads go if nothing is said: ``$XDG_CACHE_HOME/trilemma``, else ``~/.cache/trilemma``."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "trilemma"


def load_digits(split: str, *, size: int | None = None, channels: int | None = None) -> Dataset:
    """scikit-learn's 1,797 digits, 8x8, the values 0..16 spread over 0..255. They have no held-out split.

    Raises:
        DataError: any split but train: scores against the training images themselves would flatter.
    """
    if split != "train":
        raise DataError("digits has no held-out split, all 1,797 images are for training; use mnist to test on others")
    from sklearn.datasets import load_digits as embedded_digits  # here: a second of import that only this set needs

    images, labels = embedded_digits(return_X_y=True)
    pixels = np.rint(np.asarray(images) * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return make_dataset(
        "digits",
        fit(torch.from_numpy(pixels), size, channels),
        torch.from_numpy(np.asarray(labels).astype(np.int64)),
        [str(digit) for digit in range(10)],
        split=split,
        source="scikit-learn's embedded digits",
    )


def load_torchvision(
    name: str, split: str, root: Path, *, size: int | None = None, channels: int | None = None
) -> Dataset:
    """MNIST, Fashion-MNIST or CIFAR-10 from ``root``, laid out as torchvision does; downloaded there if absent.

    Raises:
        DataError: neither there nor to be downloaded, or the files there are broken.
    """
    title, train = _TITLES[name], split == "train"
    found = _open(name, root, train)
    if found is None:
        found = _download(name, root, train)
    pixels = torch.as_tensor(found.data)
    # MNIST comes as (N, H, W), CIFAR-10 as (N, H, W, C).
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    names = [str(digit) for digit in range(10)] if name == "mnist" else list(found.classes)
    return make_dataset(
        name,
        fit(pixels, size, channels),
        torch.as_tensor(found.targets, dtype=torch.int64),
        names,
        split=split,
        source=f"{title}, {split} split, through torchvision",
    )


def is_here(name: str, split: str, root: Path) -> bool:
    """Whether MNIST, Fashion-MNIST or CIFAR-10 lies under ``root`` already. Raises DataError for broken files."""
    return _open(name, root, split == "train") is not None


def load_stacked_mnist(split: str, root: Path, *, size: int | None = None) -> Dataset:
    """Stacked MNIST (Metz et al. 2017): each image is three random MNIST digits as red, green and blue, 1,000 classes.

    As many images as MNIST has in that split, drawn from a fixed seed. Raises DataError as MNIST does.
    """
    mnist = load_torchvision("mnist", split, root, size=size)
    assert mnist.labels is not None
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(mnist), (len(mnist), 3), generator=generator)
    digits = mnist.labels[chosen]
    return make_dataset(
        "stackedmnist",
        mnist.x[:, 0][chosen],
        digits[:, 0] * 100 + digits[:, 1] * 10 + digits[:, 2],
        [f"{number:03d}" for number in range(1000)],
        split=split,
        source=f"three digits of {mnist.source} each, drawn from seed 0",
    )


def _torchvision(name: str) -> Any:
    """Its class of the set. Imported here: it takes as long as torch, and a sample needs none of it."""
    from torchvision import datasets

    return getattr(datasets, _CLASSES[name])


def _open(name: str, root: Path, train: bool) -> Any:
    """torchvision's data set if its files lie under ``root``, else None."""
    try:
        return _torchvision(name)(str(root), train=train, download=False)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        if str(error).startswith("Dataset not found"):  # torchvision's words; for CIFAR-10 also at a wrong checksum
            return None
        raise DataError(
            f"{_TITLES[name]} under {root} can't be read ({_first_line(error)}); remove it to have it downloaded anew"
        ) from error


def _download(name: str, root: Path, train: bool) -> Any:
    try:
        with _download_manners():
            return _torchvision(name)(str(root), train=train, download=True)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        raise DataError(
            f"{_TITLES[name]} is not under {root} and can't be downloaded ({_first_line(error)}); without network use "
            "digits, which needs none, a folder or zip of images, or --data-root with a copy of the files"
        ) from error


@contextlib.contextmanager
def _download_manners() -> Iterator[None]:
    """A time limit on the network, and torchvision's notices on stderr, where they can't mix with results."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

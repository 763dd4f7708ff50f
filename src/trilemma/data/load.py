"""From a word to a data set: a known name, a folder of prepared images, else anything that `source` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trilemma.data.dataset import Dataset
from trilemma.data.folder import load_folder, load_source
from trilemma.data.known import default_root, is_here, load_digits, load_stacked_mnist, load_torchvision
from trilemma.data.prepared import is_prepared, load_prepared
from trilemma.data.shards import is_remote
from trilemma.data.source import found, is_pack, open_source, place_of
from trilemma.data.stream import streamed
from trilemma.data.toy import load_gaussians
from trilemma.errors import ConfigError, DataError, nearest
from trilemma.types import DataSpec

_CATALOGUE = {
    "digits": "1,797 handwritten digits, 8x8 gray, comes with scikit-learn: no download, no held-out split",
    "mnist": "70,000 handwritten digits, 28x28 gray, downloaded once",
    "fashion-mnist": "70,000 pieces of clothing, 28x28 gray, downloaded once",
    "stackedmnist": "three MNIST digits as red, green and blue, 28x28, 1,000 classes; needs MNIST, downloaded once",
    "cifar10": "60,000 photographs of ten classes, 32x32 colour, downloaded once",
    "gaussians": "25 Gaussians on a 5x5 grid, points in the plane, drawn on the spot",
}


def catalogue() -> dict[str, str]:
    """The known data sets: name to one line. A folder or zip of images is taken too."""
    return dict(_CATALOGUE)


def data_place(data: str) -> str | None:
    """What finds data again from any folder; None for a known set."""
    return None if data in _CATALOGUE else place_of(data)


def load_held_out(data: str, spec: DataSpec, *, root: Path | None = None, size: int | None = None) -> Dataset | None:
    """The test split of ``data`` in ``spec``'s shape; None where there is none, or it would have to be fetched."""
    try:
        if not is_at_hand(data, "test", root):
            return None
        test = load_data(data, split="test", root=root, size=size, channels=spec.channels)
    except (ConfigError, DataError):
        return None
    return test if test.spec.shape == spec.shape else None


def is_at_hand(data: str, split: str, root: Path | None) -> bool:
    """Whether ``load_data`` would fetch nothing, as far as that is known: a set on the hub may have to be fetched.

    Raises:
        DataError: a known set's files are broken.
    """
    if is_remote(data) or data.startswith("hf:"):
        return False
    name = {"stackedmnist": "mnist"}.get(data.lower(), data.lower())
    if name not in ("mnist", "fashion-mnist", "cifar10") or (data not in _CATALOGUE and found(data) is not None):
        return True
    return is_here(name, split, (default_root() if root is None else root).expanduser())


def usual_size(data: str, size: int | None) -> int | None:
    """The size to load ``data`` at where none was asked for: ``size``, a recipe's, or prepared images' own."""
    path = found(data)
    return None if data not in _CATALOGUE and path is not None and is_prepared(path) else size


def load_data(
    data: str,
    *,
    split: Literal["train", "test"] = "train",
    root: Path | None = None,
    size: int | None = None,
    channels: int | None = None,
) -> Dataset:
    """Load a known set by name, or the images at the path ``data``: a folder, a zip, a folder that was prepared, tars,
    parquet files, a set on the hub, or the URL of tars (see `source`). A known name goes first: write ``./digits`` for
    a folder called digits.

    Args:
        data: a name of ``catalogue()`` (capitals don't matter) or a path.
        split: "train", or "test" for the images held out, where there are any.
        root: where the downloaded sets lie, or shall; ``$XDG_CACHE_HOME/trilemma`` or ``~/.cache/trilemma`` if None.
        size: images become size x size: shorter side resized, centre cropped. None keeps them as they are.
        channels: 1 or 3 to make the images gray or RGB. None keeps what the data is.

    Raises:
        ConfigError: a size or number of channels that can't be, or given for points; an unknown split; a library
            that is not installed.
        DataError: no such set, folder or zip, nothing readable in it, no such split, or no network to fetch it.
    """
    if size is not None and size < 1:
        raise ConfigError(f"--size {size}: must be at least 1 pixel")
    if channels not in (None, 1, 3):
        raise ConfigError(f"--channels {channels}: must be 1 (gray) or 3 (RGB)")
    if split not in ("train", "test"):
        raise nearest("split", split, ["train", "test"])
    name, path = data.lower(), found(data)
    if data in _CATALOGUE or (name in _CATALOGUE and path is None):
        return _load_known(name, split, default_root() if root is None else root, size, channels)
    if is_remote(data):
        with open_source(data, split) as source:
            return streamed(source, size=size, channels=channels)
    if is_pack(data):
        with open_source(data, split) as source:
            return load_source(source, size=size, channels=channels)
    if not data or path is None:
        raise DataError(
            f"{nearest('data set', data, _CATALOGUE)}; or the path of a folder or zip of images, "
            "and there is none at this one"
        )
    if is_prepared(path):
        return load_prepared(path, split=split, size=size, channels=channels)
    return load_folder(path, split=split, size=size, channels=channels)


def _load_known(name: str, split: str, root: Path, size: int | None, channels: int | None) -> Dataset:
    if name == "gaussians":
        if size is not None or channels is not None:
            raise ConfigError("gaussians are points: leave out --size and --channels")
        return load_gaussians(split)
    if name == "digits":
        return load_digits(split, size=size, channels=channels)
    if name == "stackedmnist":
        if channels not in (None, 3):
            raise ConfigError("stackedmnist is colour: leave out --channels")
        return load_stacked_mnist(split, root.expanduser(), size=size)
    return load_torchvision(name, split, root.expanduser(), size=size, channels=channels)

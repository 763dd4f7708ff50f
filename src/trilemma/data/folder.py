"""A folder or zip of images as a data set.

Order: by path. Labels: the first subfolder that tells images apart, if every image lies in one. Splits: folders
``train`` and ``test`` (or ``val``, ``valid``, ``validation``) at the top are the splits, and what lies beside them
belongs to neither; ``train`` among other folders is a class like them. Without such folders all is for training and
nothing is held out.
"""

from __future__ import annotations

import lzma
import os
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trilemma.data.dataset import Dataset, make_dataset
from trilemma.data.decode import Picture, UnusableError, read_picture
from trilemma.data.listing import Entry, Listing, list_folder, list_zip, shown
from trilemma.errors import DataError

_HELD_OUT = ("test", "val", "valid", "validation")  # the first there is taken as the test split
_THREADS = 8
_CHUNK = 32  # pictures a task: small ones decode faster than a task is handed over
_MEMORY_SHARE = 0.8
_UNKNOWN_SIZE = (0, 0)
# What opening a file or unpacking a damaged zip entry, by whatever compression, has been seen to raise.
_UNPACKING_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


@dataclass(frozen=True)
class _Layout:
    """The entries of one split; the class of each, or None where there are no classes; all classes of all splits."""

    entries: list[Entry]
    classes: list[str] | None
    names: list[str]
    split: bool
    beside: list[str]


def load_folder(path: Path, *, split: str, size: int | None = None, channels: int | None = None) -> Dataset:
    """Load the images of a folder or zip.

    Args:
        path: the folder or zip.
        split: "train" or "test".
        size: make all size x size (shorter side resized, centre cropped); None demands that all are of one size.
        channels: 1 or 3 to force gray or RGB; None takes gray if all are, else RGB.

    Raises:
        DataError: not a folder or zip, nothing readable, mixed sizes without ``size``, no such split, or too much for
            the memory.
    """
    with _opened(path) as listing:
        if not listing.entries:
            first = f" ({len(listing.skipped)} passed over, as {listing.skipped[0]})" if listing.skipped else ""
            raise DataError(
                f"no images in {path}{first}; give a folder or zip with png, jpg, bmp, gif, webp or tiff files"
            )
        layout = _layout(listing.entries, split, path)
        pictures, broken = _decode_all(layout.entries, path, size, channels)
    good = [i for i, picture in enumerate(pictures) if picture is not None]
    skipped = sorted([*listing.skipped, *layout.beside, *broken])
    if not good:
        raise DataError(f"none of the {len(pictures)} images in {path} can be read; the first: {broken[0]}")
    labels, names = _labels(layout, good)
    kind = "folder" if path.is_dir() else "zip"
    return make_dataset(
        path.resolve().name if path.is_dir() else path.stem,
        _stack([picture for picture in pictures if picture is not None], channels),
        labels,
        names,
        split=split,
        source=f"{kind} {shown(str(path))}" + (f", {split} split" if layout.split else ""),
        skipped=skipped,
    )


@contextmanager
def _opened(path: Path) -> Iterator[Listing]:
    if path.is_dir():
        yield list_folder(path)
        return
    if not path.is_file() or not zipfile.is_zipfile(path):
        what = "a broken zip, perhaps cut short" if path.suffix.lower() == ".zip" else "neither a folder nor a zip"
        raise DataError(f"{path} is {what}; give a folder or zip of images")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise DataError(f"{path} can't be opened as a zip ({error}); pack it anew") from error
    with archive:
        yield list_zip(archive)


def _layout(entries: Sequence[Entry], split: str, path: Path) -> _Layout:
    """Read splits and classes off the paths."""
    parts = _strip([entry.path.split("/")[:-1] for entry in entries], keep=("train",))
    tops = {part[0].lower() if part else "" for part in parts}
    held_out = next((name for name in _HELD_OUT if name in tops), None)
    is_split = "train" in tops and (held_out is not None or tops == {"train"})
    if split == "test" and not (is_split and held_out):
        raise DataError(f"{path} has no held-out images: put them into a folder test beside a folder train")
    beside: list[str] = []
    chosen = list(range(len(entries)))
    if is_split:
        inside = [i for i in chosen if parts[i] and parts[i][0].lower() in ("train", *_HELD_OUT)]
        beside = [
            f"{shown(entries[i].path)}: beside the folders train and {held_out or 'test'}, in no split"
            for i in sorted(set(chosen) - set(inside))
        ]
        wanted = "train" if split == "train" else held_out
        chosen = [i for i in inside if parts[i][0].lower() == wanted]
        stripped = _strip([parts[i][1:] for i in inside])
        parts = [[] for _ in parts]
        for i, rest in zip(inside, stripped, strict=True):
            parts[i] = rest
        universe = inside
    else:
        universe = chosen
    classed = all(parts[i] for i in universe)
    return _Layout(
        entries=[entries[i] for i in chosen],
        classes=[parts[i][0] for i in chosen] if classed else None,
        names=sorted({parts[i][0] for i in universe}) if classed else [],
        split=is_split,
        beside=beside,
    )


def _strip(folders: list[list[str]], keep: tuple[str, ...] = ()) -> list[list[str]]:
    """Leave out the leading folders that all share: they tell nothing apart."""
    while folders and all(folders) and folders[0][0].lower() not in keep and len({f[0] for f in folders}) == 1:
        folders = [folder[1:] for folder in folders]
    return folders


def _labels(layout: _Layout, good: Sequence[int]) -> tuple[Tensor | None, list[str]]:
    if layout.classes is None:
        return None, []
    kept = [layout.classes[i] for i in good]
    # A class of which nothing can be read is none; but two splits must number their classes alike.
    names = layout.names if layout.split else sorted(set(kept))
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[name] for name in kept], dtype=torch.int64), [shown(name) for name in names]


def _decode_all(
    entries: Sequence[Entry], path: Path, size: int | None, channels: int | None
) -> tuple[list[NDArray[np.uint8] | None], list[str]]:
    """The pixels of each picture, None where it can't be read, and those with their reasons."""
    reader = _Reader(entries, size, channels)
    with warnings.catch_warnings():
        # Pillow only warns of a picture up to twice too large; here that is a picture passed over, with its reason.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        start = reader.read_first()
        if start < len(entries):
            first = reader.results[start]
            assert isinstance(first, Picture) and first.pixels is not None
            _check_memory(first.pixels.nbytes * (len(entries) - start), path)
            reader.read_rest(start + 1)
    reader.check_sizes(path)
    broken = [f"{shown(e.path)}: {r}" for e, r in zip(entries, reader.results, strict=True) if isinstance(r, str)]
    return [r.pixels if isinstance(r, Picture) else None for r in reader.results], broken


class _Reader:
    """Reads pictures in threads. The first good one sets the size; once another differs, only sizes are looked at."""

    def __init__(self, entries: Sequence[Entry], size: int | None, channels: int | None) -> None:
        self.entries = entries
        self.size = size
        self.channels = channels
        self.expected: tuple[int, int] | None = None
        self.results: list[Picture | str] = [""] * len(entries)

    def read_first(self) -> int:
        """Read up to and with the first good picture; its number, or the number of all if there is none."""
        for i in range(len(self.entries)):
            self._read(i)
            picture = self.results[i]
            if isinstance(picture, Picture):
                self.expected = None if self.size else (picture.width, picture.height)
                return i
        return len(self.entries)

    def read_rest(self, start: int) -> None:
        """Read all from number ``start`` on."""
        chunks = [range(i, min(i + _CHUNK, len(self.entries))) for i in range(start, len(self.entries), _CHUNK)]
        pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        try:
            for _ in pool.map(self._read_chunk, chunks):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def check_sizes(self, path: Path) -> None:
        """Refuse mixed sizes.

        Raises:
            DataError: naming the two commonest.
        """
        sizes = Counter((r.width, r.height) for r in self.results if isinstance(r, Picture))
        if self.size is not None or len(sizes) < 2:
            return
        # Equally common ones in a fixed order, so that the message does not change from run to run.
        common = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
        shares = " and ".join(f"{width}x{height} ({count} images)" for (width, height), count in common[:2])
        raise DataError(
            f"{path} holds images of {len(common)} sizes, the commonest {shares}; --size N makes all N x N "
            f"(shorter side resized, centre cropped), for example --size {min(common[0][0])}"
        )

    def _read_chunk(self, chunk: range) -> None:
        for i in chunk:
            self._read(i)

    def _read(self, i: int) -> None:
        try:
            with self.entries[i].open() as stream:
                picture = read_picture(stream, size=self.size, channels=self.channels, expected=self.expected)
        except UnusableError as error:
            self.results[i] = str(error)
            return
        except _UNPACKING_ERRORS as error:
            self.results[i] = f"can't be opened: {error}".splitlines()[0]
            return
        self.results[i] = picture
        if picture.pixels is None:
            self.expected = _UNKNOWN_SIZE  # mixed, so the load fails: no more pixels, only the count of sizes


def _check_memory(needed: int, path: Path) -> None:
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system: then the check is left out
        return
    if needed > _MEMORY_SHARE * available:
        raise DataError(
            f"the images of {path} take about {needed / 2**30:.0f} GiB and this machine has {available / 2**30:.0f}; "
            "a smaller --size N fits"
        )


def _stack(pictures: list[NDArray[np.uint8]], channels: int | None) -> Tensor:
    """(H, W) and (H, W, 3) to one uint8 (N, C, H, W)."""
    colour = channels == 3 or any(pixels.ndim == 3 for pixels in pictures)
    height, width = pictures[0].shape[:2]
    x = np.empty((len(pictures), 3 if colour else 1, height, width), dtype=np.uint8)
    for i, pixels in enumerate(pictures):
        x[i] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(x)

"""A folder or zip of images, or tars of them, as a data set.

Order: by path. Labels: a file of them (see `labels`), or the first subfolder that tells images apart, if every image
lies in one. Splits: folders ``train`` and ``test`` (or ``val``, ``valid``, ``validation``) at the top are the splits,
and what lies beside them belongs to neither; ``train`` among other folders is a class like them. Without such folders
all is for training and nothing is held out.
"""

from __future__ import annotations

import lzma
import os
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from trilemma.data.dataset import Dataset, make_dataset
from trilemma.data.decode import Picture, UnusableError, read_picture
from trilemma.data.labels import Labels, class_names, read_labels
from trilemma.data.listing import Entry, Listing, list_folder, list_tars, list_zip, shown
from trilemma.errors import DataError

_HELD_OUT = ("test", "val", "valid", "validation")  # the first there is taken as the test split
_THREADS = 8
_CHUNK = 32  # pictures a task: small ones decode faster than a task is handed over
_MEMORY_SHARE = 0.8
_LARGEST_LABELS = 128 * 2**20  # bytes: of millions of images
_UNKNOWN_SIZE = (0, 0)
# What opening a file or unpacking a damaged zip entry, by whatever compression, has been seen to raise.
_UNPACKING_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """The pictures of one split before any is decoded."""

    name: str  # of the data set
    words: str  # one line: where they are from
    place: str  # what errors call it
    split: str
    entries: list[Entry]
    classes: list[str] | None  # of each entry; None where there are no classes
    names: list[str]  # all classes, of all splits
    shared: bool  # other splits number their classes alike, so a class that is empty here keeps its number
    held_out: bool  # there is a test split
    skipped: list[str]  # "path: reason"

    def numbered(self, good: Sequence[int]) -> tuple[list[int] | None, list[str]]:
        """For the entries ``good`` that could be read: their classes as numbers, and what the numbers are called."""
        if self.classes is None:
            return None, []
        kept = [self.classes[i] for i in good]
        # A class of which nothing can be read is none, unless other splits have it.
        there = set(kept)
        names = [name for name in self.names if self.shared or name in there]
        number = {name: i for i, name in enumerate(names)}
        return [number[name] for name in kept], [shown(name) for name in names]


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
    with open_folder(path, split) as source:
        return load_source(source, size=size, channels=channels)


def load_source(source: Source, *, size: int | None, channels: int | None) -> Dataset:
    """Decode all pictures of a source; see ``load_folder``."""
    try:
        pictures, broken = _decode_all(source.entries, source.place, size, channels)
    except MemoryError:
        raise DataError(f"the images of {source.place} do not fit into the memory; a smaller --size N may") from None
    good = [i for i, picture in enumerate(pictures) if picture is not None]
    if not good:
        raise nothing_readable(source, broken)
    labels, names = source.numbered(good)
    return make_dataset(
        source.name,
        torch.from_numpy(stack([picture for picture in pictures if picture is not None], channels)),
        None if labels is None else torch.tensor(labels, dtype=torch.int64),
        names,
        split=source.split,
        source=source.words,
        skipped=sorted([*source.skipped, *broken]),
    )


def nothing_readable(source: Source, broken: Sequence[str]) -> DataError:
    """The error for a source of which no picture can be read."""
    return DataError(f"none of the {len(source.entries)} images in {source.place} can be read; the first: {broken[0]}")


@contextmanager
def open_folder(path: Path, split: str, labels: Path | None = None) -> Iterator[Source]:
    """The pictures of a folder or zip, which stays open meanwhile; ``labels`` is a file of them that lies elsewhere.

    Raises:
        DataError: as ``load_folder`` does, as far as it is known before anything is decoded; unreadable labels.
    """
    with _opened(path) as listing:
        name = path.resolve().name if path.is_dir() else path.stem
        kind = "folder" if path.is_dir() else "zip"
        yield make_source(listing, split, name=name, kind=kind, place=str(path), labels=labels)


def open_tars(tars: Sequence[Path], split: str, *, place: str, labels: Path | None = None) -> Source:
    """The pictures of one or more tars. Raises DataError as ``open_folder`` does."""
    name = tars[0].stem if len(tars) == 1 else tars[0].resolve().parent.name
    return make_source(list_tars(tars), split, name=name, kind="tar", place=place, labels=labels)


def make_source(
    listing: Listing, split: str, *, name: str, kind: str, place: str, labels: Path | None = None
) -> Source:
    """Read splits and classes off a listing. Raises DataError where there is no picture in it, or no such split."""
    if not listing.entries:
        first = f" ({len(listing.skipped)} passed over, as {listing.skipped[0]})" if listing.skipped else ""
        raise DataError(
            f"no images in {place}{first}; give a folder or zip with png, jpg, bmp, gif, webp or tiff files"
        )
    layout = _layout(listing.entries, split, place, _labels(listing, labels))
    return Source(
        name=name,
        words=f"{kind} {shown(place)}" + (f", {split} split" if layout.split else ""),
        place=place,
        split=split,
        entries=layout.entries,
        classes=layout.classes,
        names=layout.names,
        shared=layout.split,
        held_out=layout.held_out,
        skipped=sorted([*listing.skipped, *layout.beside]),
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
    except _UNPACKING_ERRORS as error:
        raise DataError(f"{path} can't be opened as a zip ({error}); pack it anew") from error
    with archive:
        yield list_zip(archive)


def _labels(listing: Listing, given: Path | None) -> Labels | None:
    """The labels of the file given, else of the one beside the pictures, else those that pictures bring."""
    if given is not None:
        return _labels_of(Entry(given.name, lambda: given.open("rb")), str(given))
    if listing.labels is not None:
        folder = listing.labels.path.rpartition("/")[0]
        return _labels_of(listing.labels, listing.labels.path, f"{folder}/" if folder else "")
    return Labels("the .cls files", listing.classes) if listing.classes else None


def _labels_of(entry: Entry, file: str, folder: str = "") -> Labels | None:
    try:
        with entry.open() as stream:
            content = stream.read(_LARGEST_LABELS + 1)
    except _UNPACKING_ERRORS as error:
        raise DataError(f"{shown(file)} can't be read ({error}); give the file of labels anew") from None
    if len(content) > _LARGEST_LABELS:
        raise DataError(
            f"{shown(file)} is larger than {_LARGEST_LABELS // 2**20} MiB; give each class a folder instead"
        )
    return read_labels(content, file, folder)


@dataclass(frozen=True)
class _Layout:
    """The entries of one split; the class of each, or None where there are no classes; all classes of all splits."""

    entries: list[Entry]
    classes: list[str] | None
    names: list[str]
    split: bool
    held_out: bool
    beside: list[str]


def _layout(entries: Sequence[Entry], split: str, place: str, labels: Labels | None) -> _Layout:
    """Read splits and classes off the paths, or the classes off a file of labels."""
    parts = _strip([entry.path.split("/")[:-1] for entry in entries], keep=("train",))
    tops = {part[0].lower() if part else "" for part in parts}
    held_out = next((name for name in _HELD_OUT if name in tops), None)
    is_split = "train" in tops and (held_out is not None or tops == {"train"})
    if split == "test" and not (is_split and held_out):
        raise DataError(f"{place} has no held-out images: put them into a folder test beside a folder train")
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
    if labels is not None:
        found = {i: name for i in universe if (name := labels.of(entries[i].path)) is not None}
        beside += [f"{shown(entries[i].path)}: has no label in {shown(labels.file)}" for i in chosen if i not in found]
        beside += _absent(labels, [entries[i].path for i in universe])
        chosen = [i for i in chosen if i in found]
        if not chosen:
            raise DataError(
                f"{shown(labels.file)} names none of the images in {place}: it must give their paths inside, such as "
                f"{shown(entries[universe[0]].path)}"
            )
        names = class_names(found.values())
    else:
        classed = all(parts[i] for i in universe)
        found = {i: parts[i][0] for i in universe} if classed else {}
        names = sorted(set(found.values()))
    return _Layout(
        entries=[entries[i] for i in chosen],
        classes=[found[i] for i in chosen] if found else None,
        names=names,
        split=is_split,
        held_out=is_split and held_out is not None,
        beside=beside,
    )


def _absent(labels: Labels, paths: Sequence[str]) -> list[str]:
    """One line for all files that are labelled but not there."""
    absent = labels.absent(paths)
    if not absent:
        return []
    return [f"{shown(labels.file)}: {len(absent)} of its files are not there, as {shown(absent[0][:200])}"]


def _strip(folders: list[list[str]], keep: tuple[str, ...] = ()) -> list[list[str]]:
    """Leave out the leading folders that all share: they tell nothing apart."""
    while folders and all(folders) and folders[0][0].lower() not in keep and len({f[0] for f in folders}) == 1:
        folders = [folder[1:] for folder in folders]
    return folders


def _decode_all(
    entries: Sequence[Entry], place: str, size: int | None, channels: int | None
) -> tuple[list[NDArray[np.uint8] | None], list[str]]:
    """The pixels of each picture, None where it can't be read, and those with their reasons."""
    reader = _Reader(entries, size, channels)
    with bombs_refused():
        start = reader.read_first()
        if start < len(entries):
            first = reader.results[start]
            assert isinstance(first, Picture) and first.pixels is not None
            _check_memory(first.pixels.nbytes * (len(entries) - start), place)
            reader.read_rest(start + 1)
    reader.check_sizes(place)
    broken = [f"{shown(e.path)}: {r}" for e, r in zip(entries, reader.results, strict=True) if isinstance(r, str)]
    return [r.pixels if isinstance(r, Picture) else None for r in reader.results], broken


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Pillow only warns of a picture up to twice too large; in here that is a picture passed over, with its reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def in_threads(work: Callable[[range], T], count: int, chunk: int = _CHUNK) -> Iterator[T]:
    """``work`` on 0 to ``count`` - 1 in ranges of ``chunk``, several at a time; its results in order."""
    chunks = [range(i, min(i + chunk, count)) for i in range(0, count, chunk)]
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        yield from pool.map(work, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def read_entry(entry: Entry, read: Callable[..., T], **options: Any) -> T | str:
    """``read`` (``read_picture`` or ``look_at``) of one file; the reason where it can't be read."""
    try:
        with entry.open() as stream:
            return read(stream, **options)
    except UnusableError as error:
        return str(error)
    except _UNPACKING_ERRORS as error:
        return f"can't be opened: {error}".splitlines()[0]


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

        def read_chunk(chunk: range) -> None:
            for i in chunk:
                self._read(start + i)

        for _ in in_threads(read_chunk, len(self.entries) - start):
            pass

    def check_sizes(self, place: str) -> None:
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
            f"{place} holds images of {len(common)} sizes, the commonest {shares}; --size N makes all N x N "
            f"(shorter side resized, centre cropped), for example --size {min(common[0][0])}"
        )

    def _read(self, i: int) -> None:
        picture = read_entry(
            self.entries[i], read_picture, size=self.size, channels=self.channels, expected=self.expected
        )
        self.results[i] = picture
        if isinstance(picture, Picture) and picture.pixels is None:
            self.expected = _UNKNOWN_SIZE  # mixed, so the load fails: no more pixels, only the count of sizes


def _check_memory(needed: int, place: str) -> None:
    try:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system: then the check is left out
        return
    if needed > _MEMORY_SHARE * available:
        raise DataError(
            f"the images of {place} take about {needed / 2**30:.0f} GiB and this machine has {available / 2**30:.0f}; "
            "a smaller --size N fits, or trilemma data prepare, which leaves them on the disk"
        )


def stack(pictures: Sequence[NDArray[np.uint8]], channels: int | None) -> NDArray[np.uint8]:
    """(H, W) and (H, W, 3) to one uint8 (N, C, H, W)."""
    colour = channels == 3 or any(pixels.ndim == 3 for pixels in pictures)
    height, width = pictures[0].shape[:2]
    x = np.empty((len(pictures), 3 if colour else 1, height, width), dtype=np.uint8)
    for i, pixels in enumerate(pictures):
        x[i] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return x

"""Data sets of the Hugging Face hub, and parquet files laid out like them, through the library ``datasets``.

The library is not installed with this package: ``pip install 'trilemma[hub]'``. It keeps what it downloads in its own
cache and reads pictures one by one from there, so the set may be larger than the memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from trilemma.data.folder import Source
from trilemma.data.labels import class_names
from trilemma.data.listing import Entry, shown
from trilemma.errors import ConfigError, DataError

HUB = "hf:"
_HELD_OUT = ("test", "validation", "valid", "val")  # the first there is taken as the test split
_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "picture")  # where no column says that it holds images
_LABEL_COLUMNS = ("label", "labels", "class", "fine_label")


def open_hub(data: str, split: str) -> Source:
    """The pictures of ``hf:NAME[:SPLIT[:COLUMN]]``. SPLIT is what is trained on, by default "train", and held out is
    "test" or "validation"; with a SPLIT given nothing is. COLUMN holds the images, by default the only one that does.

    Raises:
        ConfigError: a name of another form, or ``datasets`` is not installed.
        DataError: no such set, split or column, or it can't be downloaded.
    """
    parts = data.removeprefix(HUB).split(":")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise ConfigError(f"{data}: must be hf:NAME, hf:NAME:SPLIT or hf:NAME:SPLIT:COLUMN")
    name, chosen, column = parts[0], parts[1] if len(parts) > 1 else None, parts[2] if len(parts) > 2 else None
    library = _library(data)
    there = [] if chosen else _call(data, partial(library.get_dataset_split_names, name))
    held_out = next((word for word in _HELD_OUT if word in there), None)
    wanted = (chosen or "train") if split == "train" else held_out
    if wanted is None:
        raise DataError(f"{data} has no held-out images: it has no split {' or '.join(_HELD_OUT[:2])}")
    if there and wanted not in there:
        raise DataError(f"{data} has no split train: choose one of {', '.join(there)}, as {HUB}{name}:{there[0]}")
    rows = _call(data, partial(library.load_dataset, name, split=wanted))
    words = f"Hugging Face data set {shown(name)}, {shown(wanted)} split"
    title, stamp = name.split("/")[-1], f"{name}:{wanted}"
    source = _source(library, rows, column, split, place=data, name=title, words=words, stamp=stamp)
    return replace(source, held_out=held_out is not None)


def open_parquet(files: Sequence[Path], split: str, *, place: str) -> Source:
    """The pictures in parquet files; all are for training. Raises ConfigError and DataError as ``open_hub`` does."""
    if split != "train":
        raise DataError(f"{place} has no held-out images: parquet files are all for training")
    library = _library(place)
    paths = [str(file) for file in files]
    rows = _call(place, partial(library.load_dataset, "parquet", data_files=paths, split="train"))
    name = files[0].stem if len(files) == 1 else files[0].resolve().parent.name
    # Rows have no stamps of their own: a file that changes changes them all.
    stamp = " ".join(f"{status.st_size}-{status.st_mtime_ns}" for status in (file.stat() for file in files))
    words = f"parquet {shown(place)}"
    return _source(library, rows, None, split, place=place, name=name, words=words, stamp=stamp)


def _library(place: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{place} needs the library datasets, which is not installed: pip install 'trilemma[hub]'"
        ) from None
    return datasets


def _call(place: str, call: Any) -> Any:
    """What the library answers. No code of a data set is run: versions that are allowed here can't."""
    try:
        return call()
    except Exception as error:  # it, the network and the readers below it raise almost anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{place} can't be loaded ({reason}); check its name and the network") from error


def _source(  # noqa: PLR0913
    library: Any,
    rows: Any,
    column: str | None,
    split: str,
    *,
    place: str,
    name: str,
    words: str,
    stamp: str = "",
) -> Source:
    features = dict(rows.features)
    images = _image_column(library, features, column, place)
    # Not decoded by the library: its pictures have passed through Pillow already and lost what the file said.
    rows = _call(place, partial(rows.cast_column, images, library.Image(decode=False)))
    count = len(rows)
    if count == 0:
        raise DataError(f"no images in {place}; choose another split")
    classes, names = _classes(library, rows, features, place)
    return Source(
        name=name,
        words=words,
        place=place,
        split=split,
        entries=[Entry(f"{i:08d}", partial(_bytes, rows, i, images), stamp) for i in range(count)],
        classes=classes,
        names=names,
        shared=True,
        held_out=False,
        skipped=[],
    )


def _image_column(library: Any, features: dict[str, Any], column: str | None, place: str) -> str:
    if column is not None:
        if column not in features:
            raise DataError(f"{place} has no column {column!r}: choose one of {', '.join(features)}")
        return column
    images = [key for key, feature in features.items() if isinstance(feature, library.Image)]
    images = images or [key for key in _IMAGE_COLUMNS if key in features][:1]
    if len(images) != 1:
        found = "several columns of images" if images else "no column of images"
        raise DataError(f"{place} has {found}: name one of {', '.join(images or features)}, as {HUB}NAME:SPLIT:COLUMN")
    return images[0]


def _classes(library: Any, rows: Any, features: dict[str, Any], place: str) -> tuple[list[str] | None, list[str]]:
    """The class of each row and the names of all classes; none without a column that is known to hold them."""
    typed = [key for key, feature in features.items() if isinstance(feature, library.ClassLabel)]
    key = next((key for key in (*_LABEL_COLUMNS, *typed) if key in features), None)
    if key is None:
        return None, []
    values: Iterable[Any] = _call(place, partial(list, rows[key]))
    if key in typed:
        known = [str(name) for name in features[key].names]
        numbers = [int(value) for value in values]
        if numbers and min(numbers) < 0:  # the hub's sign for a test split whose labels are kept back
            return None, []
        return [known[number] for number in numbers], known
    classes = [str(value) for value in values]
    return classes, class_names(classes)


def _bytes(rows: Any, number: int, column: str) -> BinaryIO:
    """The file of a picture as it was put into the set."""
    value = rows[number][column]
    if value is None:
        raise OSError("an empty row")
    content, path = (value, None) if isinstance(value, bytes) else (value.get("bytes"), value.get("path"))
    if content is not None:
        return io.BytesIO(content)
    if path is None:
        raise OSError("an empty row")
    return Path(path).open("rb")

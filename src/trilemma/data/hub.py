"""Data sets of the Hugging Face hub, and parquet files laid out like them, through the library ``datasets``.

The library is not installed with this package: ``pip install 'trilemma[hub]'``. It keeps what it downloads in its own
cache and reads pictures one by one from there, so the set may be larger than the memory.

A row holds a picture's bytes, or names a file. Which file is up to whoever wrote the row, so only plain files in the
library's own caches, or beside the parquet file, are opened.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Sequence
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
    homes = [Path(name), *_caches(library)]  # a folder of that name goes before the hub
    source = _source(library, rows, column, split, place=data, name=title, words=words, homes=homes, stamp=stamp)
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
    homes = sorted({file.resolve().parent for file in files})
    return _source(library, rows, None, split, place=place, name=name, words=words, homes=homes, stamp=stamp)


def _library(place: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{place} needs the library datasets, which is not installed: pip install 'trilemma[hub]'"
        ) from None
    return datasets


def _caches(library: Any) -> list[Path]:
    """Where the library puts what it downloads and unpacks."""
    from huggingface_hub.constants import HF_HUB_CACHE

    config = library.config
    return [Path(cache) for cache in (HF_HUB_CACHE, config.HF_DATASETS_CACHE, config.EXTRACTED_DATASETS_PATH)]


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
    homes: Sequence[Path],
    stamp: str = "",
) -> Source:
    """``homes`` are the folders of which rows may name files."""
    features = dict(rows.features)
    images = _image_column(library, features, column, place)
    # Not decoded by the library: its pictures have passed through Pillow already and lost what the file said. And of
    # this column alone: a row is read whole, and what else is in it would be decoded, in any format that Pillow knows.
    bare = library.Image(decode=False)
    pictures = _call(place, lambda: rows.select_columns([images]).cast_column(images, bare))
    count = len(pictures)
    if count == 0:
        raise DataError(f"no images in {place}; choose another split")
    classes, names = _classes(library, rows, features, place)
    inside = [home.resolve() for home in homes]
    return Source(
        name=name,
        words=words,
        place=place,
        split=split,
        entries=[Entry(f"{i:08d}", partial(_bytes, pictures, i, images, inside), stamp) for i in range(count)],
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
    """The class of each row and the names of all classes; none without a column that is known to hold them, or where a
    row has none. Raises DataError for a class that has no name."""
    typed = [key for key, feature in features.items() if isinstance(feature, library.ClassLabel)]
    # A picture may be called a label too: a mask, say.
    simple = {key for key, feature in features.items() if isinstance(feature, library.ClassLabel | library.Value)}
    key = next((key for key in (*_LABEL_COLUMNS, *typed) if key in simple), None)
    if key is None:
        return None, []
    values: list[Any] = _call(place, lambda: list(rows.select_columns([key])[key]))
    if None in values:
        return None, []
    if key in typed:
        known = [str(name) for name in features[key].names]
        if values and min(values) < 0:  # the hub's sign for a test split whose labels are kept back
            return None, []
        if values and max(values) >= len(known):
            raise DataError(f"{place} has the class {max(values)} in its column {key}, and names for {len(known)} only")
        return [known[value] for value in values], known
    classes = [str(value) for value in values]
    return classes, class_names(classes)


def _bytes(rows: Any, number: int, column: str, homes: Sequence[Path]) -> BinaryIO:
    """The file of a picture as it was put into the set. Raises OSError for a row that holds none."""
    value = rows[number][column]
    if value is None:
        raise OSError("an empty row")
    content, path = (value, None) if isinstance(value, bytes) else (value.get("bytes"), value.get("path"))
    if content is not None:
        return io.BytesIO(content)
    if path is None:
        raise OSError("an empty row")
    file = Path(path).resolve()
    if not any(file.is_relative_to(home) for home in homes):
        raise OSError("names a file that is not the data set's own")
    if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for whoever writes to it
        raise OSError("not a plain file")
    return file.open("rb")

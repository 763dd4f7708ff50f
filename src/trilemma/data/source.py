"""From a word to pictures that can be read one by one: a folder, a zip, tars, parquet files, or a set on the hub.

``hf:NAME[:SPLIT[:COLUMN]]`` is a data set of the Hugging Face hub, and a URL means tars (see `shards`). A path with
``*``, ``?`` or ``[...]`` stands for all the tars, or all the parquet files, that it matches.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trilemma.data.folder import Source, open_folder, open_tars
from trilemma.data.hub import HUB, open_hub, open_parquet
from trilemma.data.known import default_root
from trilemma.data.shards import is_remote, open_shards
from trilemma.errors import ConfigError, DataError

_PACKS = (".tar", ".parquet")


def found(data: str) -> Path | None:
    """The path if there is something at it. A user, or a name, that cannot be is nothing."""
    try:
        path = Path(os.path.expanduser(data))
        return path if path.exists() else None
    except (OSError, ValueError):
        return None


def is_pack(data: str) -> bool:
    """Whether ``data`` is a set on the hub, a URL, or tars or parquet files, rather than a folder or zip."""
    if is_remote(data):
        return True
    path = found(data)
    return data.startswith(HUB) or (Path(data).suffix.lower() in _PACKS and (path is None or not path.is_dir()))


def place_of(data: str) -> str:
    """What finds ``data`` again from any folder."""
    return data if data.startswith(HUB) or is_remote(data) else str(Path(os.path.expanduser(data)).resolve())


@contextmanager
def open_source(data: str, split: str = "train", *, labels: Path | None = None) -> Iterator[Source]:
    """The pictures of one split; zips stay open meanwhile.

    Args:
        data: see above.
        split: "train" or "test".
        labels: a CSV or JSON file of labels (see `labels`) in place of what the data says itself.

    Raises:
        DataError: nothing there, nothing in it, no such split, or unreadable labels.
        ConfigError: ``labels`` for data that has a column of them; a library that is not installed.
    """
    if is_remote(data):
        yield open_shards(data, split, cache=default_root() / "shards", labels=labels)
        return
    if labels is not None and (data.startswith(HUB) or data.lower().endswith(".parquet")):
        raise ConfigError(f"--labels {labels}: {data} has its labels in a column; leave it out")
    if data.startswith(HUB):
        yield open_hub(data, split)
    elif is_pack(data):
        files = _matching(data)
        if Path(data).suffix.lower() == ".parquet":
            yield open_parquet(files, split, place=data)
        else:
            yield open_tars(files, split, place=data, labels=labels)
    else:
        with open_folder(Path(os.path.expanduser(data)), split, labels) as source:
            yield source


def _matching(data: str) -> list[Path]:
    """The files that a path or pattern means, sorted by name."""
    path = found(data)
    matches = [path] if path else sorted(map(Path, glob.glob(os.path.expanduser(data), recursive=True)))
    files = [file for file in matches if file.is_file()]
    if not files:
        raise DataError(f"no file is called {data}; give the path of a tar or parquet file, or a pattern such as *.tar")
    return files

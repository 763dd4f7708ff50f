"""Labels from a file that lies beside the images, or is named.

    labels.csv      a first line file,label, then one line an image
    labels.json     {"cats/1.png": "cat", ...}
    dataset.json    {"labels": [["cats/1.png", 0], ...]}, as StyleGAN's tools write it; "labels": null is no labels

Files are named by their paths inside the folder or zip, with forward slashes. Labels are words or whole numbers.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trilemma.config import shown as shown_value
from trilemma.data.listing import shown
from trilemma.errors import DataError
from trilemma.files import parse_json

_LONGEST = 200  # characters of a name or label in a message
_WHOLE = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Labels:
    """The class of each file by its path; ``file`` is where that is written, ``folder`` what the paths leave out."""

    file: str
    classes: Mapping[str, str]
    folder: str = ""

    def of(self, path: str) -> str | None:
        """The class of the picture at ``path``, None where the file does not name it."""
        return self.classes.get(path.removeprefix(self.folder))

    def absent(self, paths: Iterable[str]) -> list[str]:
        """The files that are named although there are none at ``paths``."""
        return sorted(set(self.classes) - {path.removeprefix(self.folder) for path in paths})


def read_labels(content: bytes, file: str, folder: str = "") -> Labels | None:
    """The labels in a file's ``content``; None for a dataset.json without any.

    Raises:
        DataError: neither a table nor a JSON object of that kind, a label of another kind, a file with two labels.
    """
    try:
        text = content.decode("utf-8-sig")
        pairs = _table(text, file) if file.lower().endswith(".csv") else _object(text, file)
    except (ValueError, csv.Error) as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise DataError(f"{shown(file)} can't be read as labels ({error}); {_wanted(file)}") from None
    if pairs is None:
        return None
    classes: dict[str, str] = {}
    for name, label in pairs:
        if not isinstance(name, str) or isinstance(label, bool) or not isinstance(label, str | int):
            raise DataError(
                f"{shown(file)} labels {shown_value(name)} with {shown_value(label)}: a label is a word or a whole "
                f"number; {_wanted(file)}"
            )
        path = name.strip().replace("\\", "/").removeprefix("./")
        word = str(label).strip()
        if classes.setdefault(path, word) != word:
            words = f"{_short(path)} two labels, {_short(classes[path])} and {_short(word)}"
            raise DataError(f"{shown(file)} gives {words}: leave one out")
    if not classes:
        raise DataError(f"{shown(file)} names no file; {_wanted(file)}")
    return Labels(file, classes, folder)


def class_names(labels: Iterable[str]) -> list[str]:
    """Each label once: by size if all are whole numbers, else by alphabet."""
    names = set(labels)
    return sorted(names, key=lambda name: (int(name), name)) if all(map(_WHOLE.fullmatch, names)) else sorted(names)


def _table(text: str, file: str) -> list[tuple[Any, Any]]:
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows or [cell.strip().lower() for cell in rows[0]] != ["file", "label"]:
        raise DataError(f"{shown(file)} has no first line file,label: write it, or give the file another name")
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != 2), None)
    if wrong is not None:
        row = shown_value(",".join(rows[wrong - 1]))
        raise DataError(f"{shown(file)}, row {wrong}: must be a file and a label, not {row}")
    return [(row[0], row[1]) for row in rows[1:]]


def _object(text: str, file: str) -> list[tuple[Any, Any]] | None:
    value = parse_json(text)
    if not isinstance(value, dict):
        raise DataError(f"{shown(file)} is not a JSON object; {_wanted(file)}")
    stylegan = value.get("labels") if _base(file) == "dataset.json" or isinstance(value.get("labels"), list) else value
    if stylegan is None:
        return None
    if isinstance(stylegan, dict):
        return list(stylegan.items())
    if not isinstance(stylegan, list) or not all(isinstance(row, list) and len(row) == 2 for row in stylegan):
        raise DataError(f"{shown(file)}: labels must be a list of pairs; {_wanted(file)}")
    return [(row[0], row[1]) for row in stylegan]


def _short(text: str) -> str:
    return shown(text[:_LONGEST])


def _base(file: str) -> str:
    return file.replace("\\", "/").rsplit("/", 1)[-1].lower()


def _wanted(file: str) -> str:
    if file.lower().endswith(".csv"):
        return "it must be a table of file,label"
    return 'it must be {"file": label, ...} or {"labels": [["file", label], ...]}'

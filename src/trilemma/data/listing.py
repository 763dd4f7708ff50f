"""What is in a folder or zip: the pictures, in a fixed order, and what can't be used, with the reason.

A zip is read where it is, nothing is ever unpacked to disk. Hidden files and macOS's ``__MACOSX`` are passed over
without a word, and so are files that are no pictures.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tiff", ".tif")
# Pictures or packs of pictures that somebody may expect to count: named, not passed over.
_UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".ppm", ".pgm", ".psd", ".svg", ".npy", ".npz")
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_ENTRY_BYTES = 256 * 2**20  # a zip entry that unpacks to more is not a picture to train on
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Entry:
    """One picture: its path inside the folder or zip, with forward slashes, and how to open it."""

    path: str
    open: Callable[[], BinaryIO]


@dataclass(frozen=True)
class Listing:
    """The pictures sorted by path, and "path: reason" for what can't be used."""

    entries: list[Entry]
    skipped: list[str]


def shown(path: str) -> str:
    """A path that is safe to print on one line: control characters and undecodable bytes are escaped."""
    text = path.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def list_folder(folder: Path) -> Listing:
    """All pictures below ``folder``. Links are followed, each folder is visited once."""
    entries: list[Entry] = []
    skipped: list[str] = []
    visited = set()

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder) if error.filename else "."
        skipped.append(f"{shown(name)}: {error.strerror or error}")

    for here, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in visited:  # a link back up: without this the walk would not end
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in names:
            file = Path(here, name)
            path = file.relative_to(folder).as_posix()
            reason = _refusal(path) or ("" if not _is_picture(path) else _not_plain(file))
            if reason:
                skipped.append(f"{shown(path)}: {reason}")
            elif _is_picture(path):
                entries.append(Entry(path, partial(_open, file)))
    return _sorted(entries, skipped)


def list_zip(archive: zipfile.ZipFile) -> Listing:
    """All pictures in an open zip. Entries that point outside, encrypted ones and packs within are named, not read."""
    entries: list[Entry] = []
    skipped: list[str] = []
    seen: set[str] = set()
    for info in archive.infolist():
        path = info.filename.replace("\\", "/")  # some Windows programs write the wrong slash
        if info.is_dir() or path.endswith("/"):
            continue
        reason = _refusal(path) or ("" if not _is_picture(path) else _refuse_entry(info, path, seen))
        seen.add(path)
        if reason:
            skipped.append(f"{shown(path)}: {reason}")
        elif _is_picture(path):
            entries.append(Entry(path, partial(_unpack, archive, info)))
    return _sorted(entries, skipped)


def _open(file: Path) -> BinaryIO:
    return file.open("rb")


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    return io.BytesIO(archive.read(info))


def _refusal(path: str) -> str:
    """Why a file is refused for its name alone; empty if it isn't."""
    name = path.rsplit("/", 1)[-1].lower()
    if _hidden_path(path):
        return ""
    if name.endswith(_PACKED):
        return "packed files inside are not opened; unpack it or give it by itself"
    if name.endswith(_UNREAD):
        return "not a format that is read; convert it to png"
    return ""


def _refuse_entry(info: zipfile.ZipInfo, path: str, seen: Container[str]) -> str:
    if path.startswith("/") or path[1:2] == ":" or ".." in path.split("/"):
        return "points outside the zip"
    if info.flag_bits & _ENCRYPTED:
        return "encrypted; give a zip without a password"
    if info.file_size > _ENTRY_BYTES:
        return f"unpacks to more than {_ENTRY_BYTES // 2**20} MiB"
    if path in seen:
        return "a second entry of the same name"
    return ""


def _not_plain(file: Path) -> str:
    try:
        return "" if stat.S_ISREG(file.stat().st_mode) else "not a plain file"
    except OSError as error:
        return error.strerror or "can't be opened"


def _is_picture(path: str) -> bool:
    return path.lower().endswith(SUFFIXES) and not _hidden_path(path)


def _hidden(name: str) -> bool:
    return (name.startswith(".") and name != "..") or name == "__MACOSX"


def _hidden_path(path: str) -> bool:
    return any(_hidden(part) for part in path.split("/"))


def _sorted(entries: list[Entry], skipped: list[str]) -> Listing:
    return Listing(sorted(entries, key=lambda entry: entry.path), sorted(skipped))

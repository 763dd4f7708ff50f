"""What is in a folder, zip or tar: the pictures, in a fixed order, and what can't be used, with the reason.

Zips and tars are read where they are, nothing is ever unpacked to disk. Hidden files and macOS's ``__MACOSX`` are
passed over without a word, and so are files that are no pictures.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from trilemma.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tiff", ".tif")
# Pictures or packs of pictures that somebody may expect to count: named, not passed over.
_UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".ppm", ".pgm", ".psd", ".svg", ".npy", ".npz")
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
# Beside the pictures these say their classes; the first there is counts (see `labels`).
LABEL_FILES = ("labels.csv", "labels.json", "dataset.json")
_CLASS = ".cls"  # in tars, beside a picture of the same name: its class
_CLASS_BYTES = 1024
_ENTRY_BYTES = 256 * 2**20  # a zip entry that unpacks to more is not a picture to train on
_CALM_BYTES = 16 * 2**20  # an entry that unpacks to no more may be packed as tightly as it likes
_TIGHTEST = 200  # bytes that one packed byte of a larger entry may become; pictures come nowhere near
_PIECE = 4096  # bytes taken at a time from an entry packed otherwise than usual
_ENCRYPTED = 0x1
# What a header that is broken or made up has tarfile raise: sizes beyond any file, long names without end.
_TAR_ERRORS = (
    tarfile.TarError,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
PACKED_TIGHTLY = "packed tighter than pictures can be, as if to fill the memory; pack it anew"


@dataclass(frozen=True)
class Entry:
    """One file: its path inside the folder, zip or tar, with forward slashes, and how to open it.

    ``stamp`` changes when the file does: its size and time, or its checksum.
    """

    path: str
    open: Callable[[], BinaryIO]
    stamp: str = ""


@dataclass(frozen=True)
class Listing:
    """The pictures sorted by path, "path: reason" for what can't be used, and what says the pictures' classes."""

    entries: list[Entry]
    skipped: list[str]
    labels: Entry | None = None  # a file of labels
    classes: dict[str, str] = field(default_factory=dict)  # of tars: by path, where each picture brings its own


def shown(path: str) -> str:
    """A path that is safe to print on one line: control characters and undecodable bytes are escaped."""
    text = path.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def list_folder(folder: Path) -> Listing:
    """All pictures below ``folder``. Links are followed, each folder is visited once."""
    entries: list[Entry] = []
    skipped: list[str] = []
    notes: list[Entry] = []
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
            reason = _refusal(path)
            stamp = ""
            if not reason and (_is_picture(path) or _is_note(path)):
                reason, stamp = _plain_file(file)
            if reason:
                skipped.append(f"{shown(path)}: {reason}")
            elif _is_picture(path) or _is_note(path):
                (notes if _is_note(path) else entries).append(Entry(path, partial(_open, file), stamp))
    return _sorted(entries, skipped, notes)


@dataclass
class _Pack:
    """What a zip or tar holds, while it is listed: the same rules for the entries of both."""

    entries: list[Entry] = field(default_factory=list)
    notes: list[Entry] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def add(self, entry: Entry, refuse: Callable[[str, Container[str]], str]) -> None:
        """Take a picture or file of labels; name what is refused for its name, or by ``refuse(path, seen)``."""
        path = entry.path
        wanted = _is_picture(path) or _is_note(path)
        reason = _refusal(path) or (refuse(path, self.seen) if wanted else "")
        self.seen.add(path)
        if reason:
            self.skipped.append(f"{shown(path)}: {reason}")
        elif wanted:
            (self.notes if _is_note(path) else self.entries).append(entry)

    def listing(self) -> Listing:
        return _sorted(self.entries, self.skipped, self.notes)


def list_zip(archive: zipfile.ZipFile) -> Listing:
    """All pictures in an open zip. Entries that point outside, encrypted ones and packs within are named, not read."""
    pack = _Pack()
    for info in archive.infolist():
        path = info.filename.replace("\\", "/")  # some Windows programs write the wrong slash
        if path and not path.endswith("/"):  # not is_dir, which fails for an entry without a name
            entry = Entry(path, partial(_unpack, archive, info), f"{info.CRC:08x}-{info.file_size}")
            pack.add(entry, partial(_refuse_entry, info))
    return pack.listing()


def _open(file: Path) -> BinaryIO:
    return file.open("rb")


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    """An entry's content, never more of it than is stated, whatever it unpacks to."""
    # Only these two stop at the number asked for; the others unpack all of what they take in.
    piece = info.file_size if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else _PIECE
    with archive.open(info) as packed:
        return io.BytesIO(b"".join(iter(partial(packed.read, piece), b"")))


def is_packed_tightly(info: zipfile.ZipInfo) -> bool:
    """Whether an entry is large and packed tighter than pictures can be: made to fill the memory."""
    return info.file_size > _CALM_BYTES and info.file_size > _TIGHTEST * info.compress_size


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
    encrypted = "encrypted; give a zip without a password" if info.flag_bits & _ENCRYPTED else ""
    tight = PACKED_TIGHTLY if is_packed_tightly(info) else ""
    return _refuse_name(path, "zip") or encrypted or _refuse_more(path, info.file_size, seen) or tight


def _refuse_name(path: str, pack: str) -> str:
    outside = path.startswith("/") or path[1:2] == ":" or ".." in path.split("/")
    return f"points outside the {pack}" if outside else ""


def _refuse_more(path: str, size: int, seen: Container[str]) -> str:
    if size > _ENTRY_BYTES:
        return f"unpacks to more than {_ENTRY_BYTES // 2**20} MiB"
    return "a second entry of the same name" if path in seen else ""


def _plain_file(file: Path) -> tuple[str, str]:
    """Why a file can't be read, empty if it can; and its stamp."""
    try:
        status = file.stat()
    except OSError as error:
        return error.strerror or "can't be opened", ""
    return "" if stat.S_ISREG(status.st_mode) else "not a plain file", f"{status.st_size}-{status.st_mtime_ns}"


def _is_picture(path: str) -> bool:
    return path.lower().endswith(SUFFIXES) and not _hidden_path(path)


def _is_note(path: str) -> bool:
    return _base(path) in LABEL_FILES and not _hidden_path(path)


def _hidden(name: str) -> bool:
    return (name.startswith(".") and name != "..") or name == "__MACOSX"


def _hidden_path(path: str) -> bool:
    return any(_hidden(part) for part in path.split("/"))


def _sorted(entries: list[Entry], skipped: list[str], notes: list[Entry]) -> Listing:
    """``notes``: files of labels. One counts if all pictures lie in its folder, so one inside a class does not."""
    above = [
        note
        for note in sorted(notes, key=lambda note: (note.path.count("/"), LABEL_FILES.index(_base(note.path))))
        if all(entry.path.startswith(note.path.removesuffix(_base(note.path))) for entry in entries)
    ]
    ordered = sorted(entries, key=lambda entry: entry.path)
    return Listing(ordered, sorted(skipped), above[0] if above else None)


def _base(path: str) -> str:
    return path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Member:
    """What a tar says of one of its files: all that is needed to list it and to find it again."""

    path: str
    start: int  # in the tar, of its content
    size: int  # in bytes
    mtime: float
    plain: bool  # a file, not a link or a device
    label: str | None = None  # of a KEY.cls: what it says


@dataclass(frozen=True)
class Tar:
    """What is in a tar, how a part of it is read, given where it starts and its size, and a stamp of the whole."""

    members: Sequence[Member]
    cut: Callable[[int, int], BinaryIO]
    stamp: str = ""


def list_tars(tars: Sequence[Path]) -> Listing:
    """All pictures in tars that are not packed; see ``list_members``. Raises DataError for a file that is no tar."""
    return list_members([Tar(read_members(partial(_open, tar), str(tar)), partial(_cut, tar)) for tar in tars])


def list_members(tars: Sequence[Tar]) -> Listing:
    """All pictures in tars. A file is read by its place in the tar, so in any order.

    A text KEY.cls beside a picture KEY.jpg says its class, as in the shards of WebDataset.
    """
    pack = _Pack()
    classes: dict[str, str] = {}
    for tar in tars:
        for member in tar.members:
            if member.label is not None:
                classes[member.path.removesuffix(_CLASS)] = member.label
                continue
            opener = partial(tar.cut, member.start, member.size)
            stamp = f"{tar.stamp}{member.size}-{member.mtime}"
            pack.add(Entry(member.path, opener, stamp), partial(_refuse_member, member))
    found = pack.listing()
    own = {entry.path: classes[key] for entry in pack.entries if (key := entry.path.rsplit(".", 1)[0]) in classes}
    return replace(found, classes=own)


def read_members(open_tar: Callable[[], BinaryIO], place: str) -> list[Member]:
    """The files in a tar, in its order; folders are left out. Raises DataError for what is no tar, or a packed one."""
    members = []
    try:
        with open_tar() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                path = member.name.replace("\\", "/").removeprefix("./")
                if member.isdir():
                    continue
                label = None
                if path.endswith(_CLASS) and member.isreg() and member.size <= _CLASS_BYTES:
                    content = archive.extractfile(member)
                    label = (content.read() if content else b"").decode("utf-8", "replace").strip()
                plain = member.isreg() and not member.issparse()
                members.append(Member(path, member.offset_data, member.size, member.mtime, plain, label))
    except _TAR_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{place} can't be read as a tar ({reason}); unpack one that is compressed") from None
    return members


def _cut(tar: Path, start: int, size: int) -> BinaryIO:
    """A part of a file."""
    with tar.open("rb") as file:
        file.seek(start)
        return io.BytesIO(file.read(size))


def _refuse_member(member: Member, path: str, seen: Container[str]) -> str:
    if not member.plain:
        return "not a plain file"
    return _refuse_name(path, "tar") or _refuse_more(path, member.size, seen)

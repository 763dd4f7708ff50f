"""Images decoded once for good: a folder with one array a split, read from the disk as it is needed, and an index.

    train.npy        uint8 (N, C, H, W), and test.npy where images are held out
    prepared.json    settings; for each split the files, their labels, what was passed over and why, the digest

The pixels, their order and the digest are those of the same images loaded directly with the same settings. Pictures are
decoded in parts of at most 32 MiB, by several threads; a part that is finished is kept, so a preparation that was
stopped goes on where it was. The index is written last: without it a folder is not prepared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trilemma.config import build, plain, require_all
from trilemma.config import shown as shown_value
from trilemma.data.dataset import Dataset, content_digest, make_dataset
from trilemma.data.decode import Crop, Filter, Picture, fit, read_picture, resizing
from trilemma.data.folder import Source, bombs_refused, in_threads, nothing_readable, read_entry, stack
from trilemma.data.listing import shown
from trilemma.data.source import open_source
from trilemma.errors import ConfigError, DataError, RunError
from trilemma.files import cannot_write, read_json, write_atomically, write_json

INDEX = "prepared.json"
PARTS = ".parts"
_FORMAT = "trilemma prepared images 1"
_PART_BYTES = 32 * 2**20
_PART_IMAGES = 1024
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Preparation:
    """How pictures become pixels; see ``read_picture``."""

    size: int | None = None
    gray: bool = False
    crop: Crop = "center"
    filter: Filter = "lanczos"

    def __post_init__(self) -> None:
        require_all(
            (self.size is None or self.size >= 1, f"--size {self.size}: must be at least 1 pixel"),
            (self.crop in ("center", "none", "pad"), f"--crop {self.crop}: must be center, none or pad"),
            (self.filter in ("lanczos", "box"), f"--filter {self.filter}: must be lanczos or box"),
            (self.size is not None or self.crop != "pad", "--crop pad needs --size"),
        )

    def words(self) -> str:
        """How pictures of other sizes were resized."""
        return resizing() if self.size is None else resizing(self.crop, self.filter)

    def read(self, stream: Any) -> Picture:
        """One picture."""
        channels = 1 if self.gray else None
        return read_picture(
            stream, size=self.size, channels=channels, expected=None, crop=self.crop, resample=self.filter
        )


@dataclass(frozen=True)
class Split:
    """What the index says of one split."""

    source: str  # one line: where the images are from
    images: int
    shape: tuple[int, ...]  # (C, H, W)
    digest: str
    file_bytes: int  # of the array's file, as is the time of its last change
    modified_ns: int
    made_from: str  # a checksum over the files and settings
    class_names: tuple[str, ...]
    labels: tuple[int, ...] | None
    files: tuple[str, ...]
    skipped: tuple[str, ...]


def is_prepared(path: Path) -> bool:
    """Whether a folder holds prepared images, finished or not."""
    return (path / INDEX).is_file() or (path / PARTS / "plan.json").is_file()


def prepare(
    data: str,
    out: Path,
    how: Preparation | None = None,
    *,
    labels: Path | None = None,
    without: Collection[str] = (),
    report: Report = lambda done, total: None,
) -> Path:
    """Decode the images of ``data`` (see `source`) into the folder ``out`` and return it.

    Called again after it was stopped it goes on; once finished it does nothing.

    Args:
        labels: a file of labels (see `labels`) that does not lie beside the images.
        without: paths of images to leave out.
        report: told the number of images decoded and of all.

    Raises:
        ConfigError: settings that can't be.
        DataError: nothing there, nothing readable, images of several shapes where nothing makes them one, a name in
            ``without`` that is not there, or a folder that holds something else.
        RunError: the folder can't be written to.
    """
    how = how or Preparation()
    if is_prepared(Path(data)):
        raise DataError(f"{data} is prepared already: train with it, or prepare what it was made from")
    if out.exists() and not is_prepared(out) and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty and holds no prepared images: choose another folder with --out")
    with ExitStack() as opened:
        sources = [opened.enter_context(open_source(data, labels=labels))]
        if sources[0].held_out:
            sources.append(opened.enter_context(open_source(data, "test", labels=labels)))
        sources = _left(sources, without)
        plans = {source.split: _checksum(source, how) for source in sources}
        if (out / INDEX).is_file():
            if {split: found.made_from for split, found in _splits(out).items()} != plans:
                raise DataError(
                    f"{out} holds images of other files or settings: choose another folder with --out, or remove it"
                )
            shutil.rmtree(out / PARTS, ignore_errors=True)  # a kill may have come just before
            return out
        sizes = _begin(out / PARTS, plans, sources, how)
        total, done = sum(len(source.entries) for source in sources), 0
        records: dict[str, list[dict[str, Any]]] = {}
        try:
            for source in sources:
                records[source.split] = []
                for number, start in enumerate(range(0, len(source.entries), sizes[source.split])):
                    part = range(start, min(start + sizes[source.split], len(source.entries)))
                    record = _part(out / PARTS, source, number, part, how)
                    _same_shape(source, records[source.split], record, how)
                    records[source.split].append(record)
                    done += len(part)
                    report(done, total)
            splits = {s.split: _assemble(out, s, records[s.split], plans[s.split]) for s in sources}
        except DataError:  # these settings can't work: nothing of them shall stand in the way of others
            shutil.rmtree(out / PARTS, ignore_errors=True)
            raise
    index = {
        "format": _FORMAT,
        "name": sources[0].name,
        "settings": plain(how),
        "splits": {split: dataclasses.asdict(found) for split, found in splits.items()},
    }
    write_json(out / INDEX, index)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return out


def _left(sources: Sequence[Source], without: Collection[str]) -> list[Source]:
    """The sources less the pictures named."""
    without = set(without)
    unknown = without - {shown(entry.path) for source in sources for entry in source.entries}
    if unknown:
        raise DataError(
            f"--without names {sorted(unknown)[0]}, which is not among the images: give paths inside {sources[0].place}"
        )
    left = []
    for source in sources:
        kept = [i for i, entry in enumerate(source.entries) if shown(entry.path) not in without]
        if not kept:
            raise DataError(f"--without leaves no image of {source.words}: name fewer")
        gone = len(source.entries) - len(kept)
        left.append(
            dataclasses.replace(
                source,
                entries=[source.entries[i] for i in kept],
                classes=None if source.classes is None else [source.classes[i] for i in kept],
                words=source.words + (f" without {gone} of them" if gone else ""),
            )
        )
    return left


def _checksum(source: Source, how: Preparation) -> str:
    """Over all that decides the pixels and labels, without reading a picture."""
    digest = hashlib.sha256(json.dumps([_FORMAT, plain(how), source.names, source.shared]).encode())
    for i, entry in enumerate(source.entries):
        line = [entry.path, entry.stamp, None if source.classes is None else source.classes[i]]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def _begin(parts: Path, plans: dict[str, str], sources: Sequence[Source], how: Preparation) -> dict[str, int]:
    """The number of images a part for each split: as it was before, or for a new start chosen by the first picture."""
    file = parts / "plan.json"
    if file.is_file():
        before = read_json(file)
        if not isinstance(before, dict) or before.get("made_from") != plans:
            raise DataError(
                f"{parts.parent} holds an unfinished preparation of other files or settings: choose another folder "
                "with --out, or remove it"
            )
        kept = before.get("images_a_part")
        if not isinstance(kept, dict) or not all(_is_count(kept.get(split)) for split in plans):
            raise _damaged(parts.parent, f"{PARTS}/{file.name} is damaged")
        return {split: kept[split] for split in plans}
    with bombs_refused():
        sizes = {source.split: _images_a_part(source, how) for source in sources}
    write_json(file, {"made_from": plans, "images_a_part": sizes})
    return sizes


def _images_a_part(source: Source, how: Preparation) -> int:
    broken = []
    for entry in source.entries:
        picture = read_entry(entry, how.read)
        if isinstance(picture, Picture) and picture.pixels is not None:
            height, width = picture.pixels.shape[:2]
            fitting: int = _PART_BYTES // (3 * height * width)
            return max(1, min(_PART_IMAGES, fitting))
        broken.append(f"{shown(entry.path)}: {picture}")
    raise nothing_readable(source, broken)


def _part(parts: Path, source: Source, number: int, part: range, how: Preparation) -> dict[str, Any]:
    """Decode some pictures into a file, unless that was done before; what is in it."""
    name = f"{source.split}-{number:06d}"
    if (done := _done(parts / f"{name}.json", part)) is not None:
        return done

    def read(chunk: range) -> list[Picture | str]:
        return [read_entry(source.entries[part[i]], how.read) for i in chunk]

    with bombs_refused():
        found = [result for chunk in in_threads(read, len(part), 1 + len(part) // 64) for result in chunk]
    good = [i for i, result in zip(part, found, strict=True) if isinstance(result, Picture)]
    pixels = [result.pixels for result in found if isinstance(result, Picture) and result.pixels is not None]
    broken = [(i, result) for i, result in zip(part, found, strict=True) if isinstance(result, str)]
    for i, each in zip(good, pixels, strict=True):
        if each.shape[:2] != pixels[0].shape[:2]:
            raise _shapes(source, good[0], pixels[0].shape, i, each.shape, how)
    array = stack(pixels, 1 if how.gray else None) if pixels else None
    if array is not None:
        write_atomically(parts / f"{name}.npy", lambda path: _save(path, array.shape, [array]))
    record = {
        "good": good,
        "skipped": [f"{shown(source.entries[i].path)}: {reason}" for i, reason in broken],
        "shape": None if array is None else list(array.shape[1:]),
    }
    write_json(parts / f"{name}.json", record)  # last: a part without it is decoded again
    return record


def _done(file: Path, part: range) -> dict[str, Any] | None:
    """The record of a part that was decoded before; None where there is none, or a damaged one."""
    try:
        record = read_json(file)
        good, skipped, shape = record["good"], record["skipped"], record["shape"]
        fits = set(good) <= set(part) and all(isinstance(line, str) for line in skipped)
        shaped = len(shape) == 3 and all(map(_is_count, shape)) if good else shape is None
    except (RunError, LookupError, TypeError):
        return None
    return record if fits and shaped else None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _same_shape(source: Source, before: Sequence[dict[str, Any]], record: dict[str, Any], how: Preparation) -> None:
    """Refuse a part whose images have another height or width than those before."""
    first = next((each for each in before if each["shape"]), None)
    if first and record["shape"] and first["shape"][1:] != record["shape"][1:]:
        raise _shapes(source, first["good"][0], first["shape"][1:], record["good"][0], record["shape"][1:], how)


def _shapes(source: Source, i: int, shape: Sequence[int], j: int, other: Sequence[int], how: Preparation) -> DataError:
    first, second = (shown(source.entries[k].path) for k in (i, j))
    size = how.size or "N"
    return DataError(
        f"{second} becomes {other[1]}x{other[0]} and {first} {shape[1]}x{shape[0]}: all must have one shape; "
        f"--size {size} --crop center cuts squares, --size {size} --crop pad puts white beside"
    )


def _save(path: Path, shape: Sequence[int], arrays: Any) -> None:
    """An .npy of uint8, array by array. Not through a memory map: on a full disk that would end the process."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)


def _assemble(out: Path, source: Source, records: Sequence[dict[str, Any]], plan: str) -> Split:
    """Join the parts of a split into its array, gray ones repeated where others have colour."""
    skipped = [line for record in records for line in record["skipped"]]
    good = [i for record in records for i in record["good"]]
    if not good:
        raise nothing_readable(source, skipped)
    shapes = [record["shape"] for record in records if record["shape"]]
    shape = (max(each[0] for each in shapes), *shapes[0][1:])

    def parts() -> Any:
        for number, record in enumerate(records):
            if record["shape"]:
                yield from _parts_of(out / PARTS / f"{source.split}-{number:06d}.npy", record, shape)

    whole = write_atomically(
        out / PARTS / f"{source.split}.npy", lambda path: _save(path, (len(good), *shape), parts())
    )
    final = _array_path(out, source.split)
    try:
        whole.replace(final)
        status = final.stat()
    except OSError as error:
        raise cannot_write(final, error) from error
    labels, names = source.numbered(good)
    if len(names) < 2:  # one class is no class
        labels, names = None, []
    tensor = None if labels is None else torch.tensor(labels, dtype=torch.int64)
    return Split(
        source=source.words,
        images=len(good),
        shape=shape,
        digest=content_digest(_mapped(final, (len(good), *shape)), tensor),
        file_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        made_from=plan,
        class_names=tuple(names),
        labels=None if labels is None else tuple(labels),
        files=tuple(shown(source.entries[i].path) for i in good),
        skipped=tuple(sorted([*source.skipped, *skipped])),
    )


def _parts_of(file: Path, record: dict[str, Any], shape: Sequence[int]) -> Any:
    part = _open(file, (len(record["good"]), *record["shape"]))
    yield part if part.shape[1] == shape[0] else np.repeat(part, shape[0], axis=1)


def _array_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.npy"


def load_prepared(path: Path, *, split: str, size: int | None = None, channels: int | None = None) -> Dataset:
    """The images of a prepared folder, on the disk until they are asked for.

    Args:
        path: the folder.
        split: "train" or "test".
        size, channels: where they are not those of the images, a copy of all is made in memory.

    Raises:
        DataError: not finished, damaged, changed since, or no such split.
    """
    if not (path / INDEX).is_file():
        raise DataError(f"{path} is not finished: start the same trilemma data prepare again, it goes on")
    splits = _splits(path)
    if split not in splits:
        raise DataError(f"{path} has no held-out images: there were none when it was prepared")
    found = splits[split]
    file = _array_path(path, split)
    if found.images < 1 or len(found.shape) != 3 or found.shape[0] not in (1, 3):
        raise _damaged(path, f"it holds {found.images} images of the shape {shown_value(found.shape)}")
    x = _mapped(file, (found.images, *found.shape))
    labels = None if found.labels is None else torch.tensor(found.labels, dtype=torch.int64)
    if labels is not None and (
        len(labels) != found.images or not 0 <= int(labels.min()) <= int(labels.max()) < len(found.class_names)
    ):
        raise _damaged(path, "its labels do not fit the images")
    status = file.stat()
    if (status.st_size, status.st_mtime_ns) != (found.file_bytes, found.modified_ns):
        # A copy has another time; what counts is the content, and reading it all takes a while.
        if content_digest(x, labels) != found.digest:
            raise _damaged(path, f"{file.name} is not what the digest was taken of")
    fitted = fit(x, size, channels)
    return make_dataset(
        shown(str(read_json(path / INDEX).get("name") or path.resolve().name)),
        fitted,
        labels,
        [shown(name) for name in found.class_names],
        split=split,
        source=f"{shown(found.source)}, prepared",
        skipped=[shown(line) for line in found.skipped],
        digest=found.digest if fitted is x else None,
        resize=_resized(path, None if fitted.shape[2:] == x.shape[2:] else resizing()),
    )


def _resized(path: Path, again: str | None) -> str:
    """How the pictures were resized when they were prepared, and ``again`` for another size since."""
    settings = read_json(path / INDEX).get("settings")
    try:
        words = build(Preparation, settings if isinstance(settings, dict) else {}, str(path / INDEX)).words()
    except ConfigError as error:
        raise _damaged(path, str(error)) from None
    return words if again in (None, words) else f"{words}; then {again}"


def _splits(path: Path) -> dict[str, Split]:
    """What the index says. Raises DataError where it is damaged or of another version."""
    try:
        index = read_json(path / INDEX)
        if not isinstance(index, dict) or index.get("format") != _FORMAT:
            raise _damaged(path, f"{INDEX} is of another version")
        splits = index.get("splits")
        if not isinstance(splits, dict) or "train" not in splits:
            raise _damaged(path, f"{INDEX} has no training split")
        return {split: build(Split, values, f"{path / INDEX}, {shown(split)}") for split, values in splits.items()}
    except (RunError, ConfigError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} can't be used: {what}; remove it and prepare the images anew")


def _open(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An .npy of that shape as a read-only memory map."""
    try:
        array: NDArray[np.uint8] = np.lib.format.open_memmap(file, mode="r")  # refuses what would have to be unpickled
    except Exception as error:  # a damaged header makes NumPy raise almost anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _damaged(file.parent, f"{file.name} can't be read ({reason})") from None
    if array.dtype != np.uint8 or array.shape != shape or not array.flags.c_contiguous:
        raise _damaged(file.parent, f"{file.name} is {array.dtype} {array.shape}, not uint8 {shape}")
    return array


def _mapped(file: Path, shape: tuple[int, ...]) -> Tensor:
    """The same as a tensor over the map: nothing is read, nothing copied. Nobody writes into a data set."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(_open(file, shape))

"""Images that any program made, read to be scored: a folder, a zip or an .npz.

Folders and zips are read as data sets are (see `folder`). An .npz has one uint8 array, (N, H, W, C), (N, C, H, W) or
(N, H, W), under ``images``, ``samples`` or ``arr_0``; nothing is unpickled.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trilemma.data.dataset import Dataset, make_dataset
from trilemma.data.decode import FORMATS, fit
from trilemma.data.folder import load_folder
from trilemma.data.listing import PACKED_TIGHTLY, Entry, is_packed_tightly, list_folder, list_zip, shown
from trilemma.errors import DataError
from trilemma.types import DataSpec

_KEYS = ("images", "samples", "arr_0")
_NO_LOSS = ("PNG", "BMP", "TIFF")  # GIF has a palette of 256 colours
_WEBP_WITHOUT_LOSS = b"VP8L"  # bytes 12 to 15 of such a file


@dataclass(frozen=True, eq=False)
class GivenImages:
    """Images as they are scored, and what their files were."""

    data: Dataset
    formats: tuple[str, ...]  # PNG, JPEG, ..., or npz
    lossless: bool  # whether no file's format loses pixels
    resized: bool  # whether any had another size before


def load_given(path: Path, reference: DataSpec, *, size: int | None = None) -> GivenImages:
    """Images of the reference's shape, made gray or RGB as the reference is.

    Args:
        path: the folder, zip or .npz.
        reference: the shape wanted.
        size: the reference's size where images of other sizes shall be brought to it (shorter side resized, centre
            cropped); None refuses them.

    Raises:
        DataError: nothing to read, an array of another kind, or images of another size without ``size``.
    """
    if path.suffix.lower() == ".npz" and path.is_file():
        x = _read_npz(path)
        before, formats, lossless = {(int(x.shape[3]), int(x.shape[2]))}, {"npz"}, True
        data = make_dataset(
            path.stem, fit(x, size, reference.channels), split="train", source=f"npz {shown(str(path))}"
        )
    else:
        data = load_folder(path, split="train", size=size, channels=reference.channels)
        before, formats, lossless = _look(path)
    width, height = reference.width, reference.height
    if data.spec.shape != reference.shape:
        side = min(width, height)
        raise DataError(
            f"{path} holds images of {data.spec.width}x{data.spec.height}, but the reference has {width}x{height}: "
            f"--size {side} brings both to {side}x{side} (shorter side resized, centre cropped)"
        )
    return GivenImages(data, tuple(sorted(formats)), lossless, resized=bool(before - {(width, height)}))


def _look(path: Path) -> tuple[set[tuple[int, int]], set[str], bool]:
    """Sizes (width, height) and formats of a folder's or zip's pictures, and whether none loses pixels."""
    if path.is_dir():
        return _heads(list_folder(path).entries)
    with zipfile.ZipFile(path) as archive:
        return _heads(list_zip(archive).entries)


def _heads(entries: Iterable[Entry]) -> tuple[set[tuple[int, int]], set[str], bool]:
    sizes: set[tuple[int, int]] = set()
    formats: set[str] = set()
    lossless = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # only the head is read
        for entry in entries:
            try:
                with entry.open() as stream, Image.open(stream, formats=FORMATS) as image:
                    sizes.add(image.size)
                    formats.add("JPEG" if image.format == "MPO" else str(image.format))  # MPO: several JPEGs in one
                    compression = str(image.info.get("compression", "")).lower()
                    stream.seek(12)
                    kind = stream.read(4)
            except Exception:  # broken in any of many ways: the loader has named it with its reason
                continue
            plain = image.format in _NO_LOSS and not ("jpeg" in compression or "webp" in compression)
            lossless = lossless and (plain or (image.format == "WEBP" and kind == _WEBP_WITHOUT_LOSS))
    return sizes, formats, lossless


def _read_npz(path: Path) -> Tensor:
    """uint8 (N, C, H, W) with C 1 or 3."""
    name, array = _array(path)
    if array.dtype != np.uint8:
        raise DataError(
            f"{path}: {name} is {array.dtype}, but images are uint8 from 0 to 255: convert it before it is saved"
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or 0 in array.shape or not {array.shape[-1], array.shape[1]} & {1, 3}:
        raise DataError(
            f"{path}: {name} has shape {array.shape}, but images are (N, H, W, C) or (N, C, H, W) "
            "with 1 or 3 channels, or (N, H, W)"
        )
    if array.shape[-1] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))


def _array(path: Path) -> tuple[str, np.ndarray[Any, Any]]:
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise DataError(f"{path} holds one bare array: save it with numpy.savez(path, images=array)")
        with found as arrays:
            name = next((key for key in _KEYS if key in arrays.files), None)
            if name is None:
                names = ", ".join(map(shown, arrays.files[:8])) or "nothing"
                raise DataError(f"{path} holds {names}: save the images under the name {' or '.join(_KEYS)}")
            if arrays.zip is not None:
                _check_packing(arrays.zip, path, name)
            return name, arrays[name]
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path}: too large for the memory; split it") from None
    except Exception as error:  # a damaged file makes NumPy and the unpacking raise almost anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} can't be read as an .npz of plain arrays ({reason}); save it anew") from error


def _check_packing(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """Refuse an array that is none, which numpy would read whole, and ways of packing that could fill the memory."""
    for info in archive.infolist():
        if info.filename.removesuffix(".npy") != name:
            continue
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: {name} is packed in a way that numpy does not use; save it anew")
        if is_packed_tightly(info):
            raise DataError(f"{path}: {name} is {PACKED_TIGHTLY}")
        with archive.open(info) as entry:
            if entry.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                raise DataError(f"{path}: {name} is no array: save it with numpy.savez(path, images=array)")

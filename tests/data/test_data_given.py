"""Images of other programs: every layout of an array, every kind of file, and what is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data.given import load_given
from trilemma.errors import DataError
from trilemma.types import DataSpec

Array = np.ndarray[Any, Any]
GRAY, COLOUR = DataSpec("images", 1, 8, 6), DataSpec("images", 3, 8, 6)
RANDOM = np.random.RandomState(0)
GRAYS = RANDOM.randint(0, 256, (12, 8, 6), dtype=np.uint8)
COLOURS = RANDOM.randint(0, 256, (12, 8, 6, 3), dtype=np.uint8)


def npz(path: Path, **arrays: Array) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def error(path: Path, reference: DataSpec = GRAY) -> str:
    with pytest.raises(DataError) as caught:
        load_given(path, reference)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("array", "reference", "expected"),
    [
        (GRAYS, GRAY, GRAYS[:, None]),
        (GRAYS[..., None], GRAY, GRAYS[:, None]),
        (GRAYS[:, None], GRAY, GRAYS[:, None]),
        (COLOURS, COLOUR, COLOURS.transpose(0, 3, 1, 2)),
        (COLOURS.transpose(0, 3, 1, 2), COLOUR, COLOURS.transpose(0, 3, 1, 2)),
        (GRAYS, COLOUR, np.repeat(GRAYS[:, None], 3, axis=1)),
        (np.repeat(GRAYS[..., None], 3, axis=3), GRAY, GRAYS[:, None]),
    ],
    ids=["NHW", "NHW1", "N1HW", "NHW3", "N3HW", "gray to colour", "colour to gray"],
)
def test_arrays_of_every_layout(tmp_path: Path, array: Array, reference: DataSpec, expected: Array) -> None:
    found = load_given(npz(tmp_path / "theirs.npz", arr_0=array), reference)
    assert torch.equal(found.data.x, torch.from_numpy(expected.copy()))
    assert (found.data.name, found.formats, found.lossless, found.resized) == ("theirs", ("npz",), True, False)


def test_the_names_of_an_array(tmp_path: Path) -> None:
    other = np.zeros((12,), dtype=np.int64)
    for name in ("images", "samples", "arr_0"):
        found = load_given(npz(tmp_path / "a.npz", **{name: GRAYS, "arr_1": other}), GRAY)
        assert torch.equal(found.data.x[:, 0], torch.from_numpy(GRAYS))
    assert "holds pictures, labels: save the images under the name images" in error(
        npz(tmp_path / "b.npz", pictures=GRAYS, labels=other)
    )


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (GRAYS.astype(np.float32) / 255, "images is float32, but images are uint8 from 0 to 255"),
        (GRAYS.astype(np.int64), "images is int64"),
        (COLOURS[..., :2], "images has shape (12, 8, 6, 2)"),
        (GRAYS[0], "images has shape (8, 6)"),
        (GRAYS[:0], "images has shape (0, 8, 6, 1)"),
        (GRAYS[:, :5], "holds images of 6x5, but the reference has 6x8: --size 6 brings both to 6x6"),
        (np.array([{"pickled": True}], dtype=object), "can't be read as an .npz of plain arrays"),
    ],
)
def test_arrays_that_are_no_such_images(tmp_path: Path, array: Array, words: str) -> None:
    assert words in error(npz(tmp_path / "a.npz", images=array))


def cut(path: Path) -> None:
    npz(path, images=GRAYS)
    path.write_bytes(path.read_bytes()[:300])


def bare(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, GRAYS)


def without_end(path: Path) -> None:
    """A whole zip around an array that is cut short."""
    npz(path, images=GRAYS)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("images.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", content[:200])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (cut, "can't be read"),
        (without_end, "can't be read"),
        (lambda path: path.write_bytes(b""), "can't be read"),
        (lambda path: path.write_text("hello"), "can't be read"),
        (bare, "holds one bare array: save it with numpy.savez"),
        (np.savez, "holds nothing: save the images under the name"),
    ],
    ids=["cut", "array cut", "empty file", "text", "npy", "empty"],
)
def test_files_that_are_no_npz(tmp_path: Path, write: Callable[[Path], Any], words: str) -> None:
    write(tmp_path / "a.npz")
    assert words in error(tmp_path / "a.npz")


def pictures(folder: Path, suffix: str = "png", count: int = 12, **options: Any) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(COLOURS[i]).save(folder / f"{i:02d}.{suffix}", **options)
    return folder


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def test_a_folder_a_zip_and_an_array_are_the_same_images(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "theirs")
    found = [
        load_given(path, COLOUR) for path in (folder, zipped(folder), npz(tmp_path / "theirs.npz", samples=COLOURS))
    ]
    assert len({given.data.digest for given in found}) == 1
    assert [given.formats for given in found] == [("PNG",), ("PNG",), ("npz",)]
    assert [given.data.name for given in found] == ["theirs"] * 3
    assert all(given.lossless and not given.resized for given in found)


@pytest.mark.parametrize(
    ("suffix", "options", "formats", "lossless"),
    [
        ("png", {}, ("PNG",), True),
        ("bmp", {}, ("BMP",), True),
        ("tiff", {}, ("TIFF",), True),
        ("tiff", {"compression": "tiff_lzw"}, ("TIFF",), True),
        ("tiff", {"compression": "jpeg"}, ("TIFF",), False),
        ("jpg", {"quality": 100}, ("JPEG",), False),
        ("gif", {}, ("GIF",), False),
        ("webp", {"lossless": True}, ("WEBP",), True),
        ("webp", {"quality": 90}, ("WEBP",), False),
        ("png", {"format": "JPEG"}, ("JPEG",), False),  # by its content, whatever it is called
        ("jpg", {"format": "PNG"}, ("PNG",), True),
    ],
)
def test_lost_pixels_are_told(
    tmp_path: Path, suffix: str, options: dict[str, Any], formats: tuple[str, ...], lossless: bool
) -> None:
    folder = pictures(tmp_path / "theirs", suffix, **options)
    for path in (folder, zipped(folder)):
        found = load_given(path, COLOUR)
        assert (found.formats, found.lossless) == (formats, lossless)


def test_one_jpeg_among_many_is_enough(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "theirs")
    Image.fromarray(COLOURS[0]).save(folder / "00.jpg")
    (folder / "torn.png").write_bytes((folder / "01.png").read_bytes()[:20])
    found = load_given(folder, COLOUR)
    assert (found.formats, found.lossless, len(found.data)) == (("JPEG", "PNG"), False, 13)
    assert len(found.data.skipped) == 1 and "torn.png" in found.data.skipped[0]


def test_other_sizes_are_refused_or_made_equal(tmp_path: Path) -> None:
    square = DataSpec("images", 3, 4, 4)
    folder = pictures(tmp_path / "theirs")
    assert "holds images of 6x8, but the reference has 4x4: --size 4 brings both to 4x4" in error(folder, square)
    array = load_given(npz(tmp_path / "a.npz", images=COLOURS), square, size=4)
    found = load_given(folder, square, size=4)
    assert found.resized and array.resized and found.data.spec.shape == (3, 4, 4)
    assert torch.equal(found.data.x, array.data.x)
    (tmp_path / "notes.txt").write_text("hello")
    assert "neither a folder nor a zip" in error(tmp_path / "notes.txt")

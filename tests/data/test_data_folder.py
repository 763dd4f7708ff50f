"""Folders and zips of pictures: every mode, every order, and what people and programs put into them by mistake."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data import load_data
from trilemma.data.dataset import Dataset
from trilemma.errors import DataError

SIDE = 12
RED, WHITE = (255, 0, 0), (255, 255, 255)


def _picture(value: int | tuple[int, ...] = 90, mode: str = "L", size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.new(mode, size, value)


def _save(path: Path, image: Image.Image | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or _picture()).save(path)
    return path


def _png(value: int = 90) -> bytes:
    stream = io.BytesIO()
    _picture(value).save(stream, "PNG")
    return stream.getvalue()


def _error(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load_data(str(path), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _palette(colours: list[int], **info: int) -> Image.Image:
    image = _picture(1, "P")
    image.putpalette(colours)
    image.info.update(info)
    return image


def _sixteen_bits(value: int) -> Image.Image:
    return Image.fromarray(np.full((SIDE, SIDE), value, dtype=np.uint16))


MODES: dict[str, tuple[Callable[[], Image.Image], str, tuple[int, ...]]] = {
    "1": (lambda: _picture(1, "1"), "png", (255,)),
    "L": (lambda: _picture(77), "png", (77,)),
    "LA": (lambda: _picture((100, 0), "LA"), "png", (255,)),
    "LA half": (lambda: _picture((55, 51), "LA"), "png", (215,)),  # 0.2 * 55 + 0.8 * 255
    "P gray": (lambda: _palette([0, 0, 0, 60, 60, 60]), "png", (60,)),
    "P colour": (lambda: _palette([0, 0, 0, 60, 70, 80]), "png", (60, 70, 80)),
    "P transparent": (lambda: _palette([0, 0, 0, 60, 70, 80], transparency=1), "png", (255,)),
    "RGB": (lambda: _picture((1, 2, 3), "RGB"), "png", (1, 2, 3)),
    "RGB of grays": (lambda: _picture((9, 9, 9), "RGB"), "png", (9, 9, 9)),
    "RGBA": (lambda: _picture((10, 20, 30, 0), "RGBA"), "png", (255, 255, 255)),
    "RGBA opaque": (lambda: _picture((10, 20, 30, 255), "RGBA"), "png", (10, 20, 30)),
    "CMYK": (lambda: _picture((255, 0, 0, 0), "CMYK"), "tiff", (0, 255, 255)),
    "I;16": (lambda: _sixteen_bits(0x8080), "png", (0x80,)),
    "I;16 white": (lambda: _sixteen_bits(0xFFFF), "tiff", (255,)),
    "I": (lambda: _picture(257, "I"), "tiff", (1,)),
    "F": (lambda: _picture(1, "F"), "tiff", (255,)),
    "GIF": (lambda: _picture(33), "gif", (33,)),
    "BMP": (lambda: _picture((4, 5, 6), "RGB"), "bmp", (4, 5, 6)),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_gray_or_rgb(tmp_path: Path, name: str) -> None:
    make, suffix, expected = MODES[name]
    _save(tmp_path / f"a.{suffix}", make())
    data = load_data(str(tmp_path))
    assert data.skipped == ()
    assert data.spec.channels == len(expected)
    assert data.x[0, :, 5, 5].tolist() == list(expected)
    assert bool((data.x[0] == data.x[0, :, :1, :1]).all())


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp", "Tif", "PNG"])
def test_formats_in_any_case(tmp_path: Path, suffix: str) -> None:
    _save(tmp_path / f"a.{suffix}", _picture((200, 10, 60), "RGB"))
    data = load_data(str(tmp_path))
    assert (data.x[0, :, 6, 6].int() - torch.tensor([200, 10, 60])).abs().max() <= 4


def test_gray_and_colour_together_are_colour_and_channels_decides(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _picture(50))
    _save(tmp_path / "b.png", _picture(RED, "RGB"))
    data = load_data(str(tmp_path))
    assert data.x[:, :, 0, 0].tolist() == [[50, 50, 50], [255, 0, 0]]
    assert load_data(str(tmp_path), channels=1).x[:, :, 0, 0].tolist() == [[50], [76]]
    (tmp_path / "b.png").unlink()
    assert load_data(str(tmp_path), channels=3).spec.channels == 3


def test_exif_turns_pictures_upright(tmp_path: Path) -> None:
    lying = np.zeros((8, 16, 3), dtype=np.uint8)
    lying[:, :8] = RED  # red at the left; orientation 6 says: turn clockwise, then red is at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "b.tiff", "c.webp"):
        Image.fromarray(lying).save(tmp_path / name, exif=exif, lossless=True)  # lossless is for WebP alone
    data = load_data(str(tmp_path))
    assert data.spec.shape == (3, 16, 8)
    assert (data.x[:, 0, :8] == 255).all()
    assert (data.x[:, 0, 8:] == 0).all()
    assert load_data(str(tmp_path), size=8).spec.shape == (3, 8, 8)


def test_labels_order_and_hidden_files(tmp_path: Path) -> None:
    for i, name in enumerate(["dog/b.png", "cat/z.png", "cat/deep/a.png", "dog/a.png"]):
        _save(tmp_path / name, _picture(10 * i))
    (tmp_path / ".hidden").mkdir()
    _save(tmp_path / ".hidden" / "x.png")
    (tmp_path / "cat" / "._z.png").write_bytes(b"macOS")
    (tmp_path / "notes.csv").write_text("not a picture")
    data = load_data(str(tmp_path))
    assert data.x[:, 0, 0, 0].tolist() == [20, 10, 30, 0]
    assert data.class_names == ("cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.skipped == ()
    assert data.name == tmp_path.name


def test_no_labels_without_subfolders_for_all(tmp_path: Path) -> None:
    _save(tmp_path / "cat" / "a.png")
    _save(tmp_path / "dog" / "a.png")
    _save(tmp_path / "loose.png")
    assert load_data(str(tmp_path)).labels is None


def test_folders_that_all_share_tell_nothing(tmp_path: Path) -> None:
    _save(tmp_path / "pets" / "images" / "cat" / "a.png")
    assert load_data(str(tmp_path)).labels is None
    _save(tmp_path / "pets" / "images" / "dog" / "a.png")
    assert load_data(str(tmp_path)).class_names == ("cat", "dog")


@pytest.mark.parametrize("held_out", ["test", "val", "Validation"])
def test_splits_are_respected(tmp_path: Path, held_out: str) -> None:
    _save(tmp_path / "train" / "cat" / "a.png", _picture(1))
    _save(tmp_path / "train" / "dog" / "a.png", _picture(2))
    _save(tmp_path / held_out / "dog" / "a.png", _picture(3))
    _save(tmp_path / "preview.png")
    train, test = load_data(str(tmp_path)), load_data(str(tmp_path), split="test")
    assert train.x[:, 0, 0, 0].tolist() == [1, 2]
    assert test.x[:, 0, 0, 0].tolist() == [3]
    assert test.labels is not None
    assert test.labels.tolist() == [1]  # numbered as in training, though cat is missing
    assert [line.split(":")[0] for line in train.skipped] == ["preview.png"]
    assert "split" in train.source


def test_without_held_out_images_there_is_no_test_split(tmp_path: Path) -> None:
    _save(tmp_path / "a.png")
    assert "held-out" in _error(tmp_path, split="test")
    _save(tmp_path / "only" / "train" / "b.png")
    (tmp_path / "a.png").unlink()
    assert "held-out" in _error(tmp_path, split="test")
    assert len(load_data(str(tmp_path))) == 1


def test_a_train_among_vehicles_is_a_class(tmp_path: Path) -> None:
    for name in ("bus", "train", "car"):
        _save(tmp_path / name / "a.png")
    assert load_data(str(tmp_path)).class_names == ("bus", "car", "train")


def test_mixed_sizes_name_the_commonest_and_the_way_out(tmp_path: Path) -> None:
    for i, size in enumerate([(20, 10), (8, 8), (20, 10), (8, 8), (20, 10), (9, 9)]):
        _save(tmp_path / f"{i}.png", _picture(size=size))
    message = _error(tmp_path)
    for word in ("3 sizes", "20x10 (3 images)", "8x8 (2 images)", "--size N", "--size 10"):
        assert word in message
    assert load_data(str(tmp_path), size=8).x.shape == (6, 1, 8, 8)


def test_rectangles_of_one_size_are_kept(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _picture(size=(20, 10)))
    assert load_data(str(tmp_path)).spec.shape == (1, 10, 20)


def test_size_crops_the_centre_and_averages(tmp_path: Path) -> None:
    wide = np.zeros((32, 96), dtype=np.uint8)
    wide[:, 32:64] = np.indices((32, 32)).sum(0) % 2 * 200  # a chequerboard between black wings
    _save(tmp_path / "a.png", Image.fromarray(wide))
    x = load_data(str(tmp_path), size=8).x
    assert x.shape == (1, 1, 8, 8)
    assert (x[:, :, 1:-1, 1:-1].int() - 100).abs().max() <= 3  # picking pixels would give 0 or 200


def test_large_jpegs_shrink_as_they_should(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 640, dtype=np.float32)[None].repeat(640, 0).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "a.jpg", quality=95)
    x = load_data(str(tmp_path), size=16).x[0, 0].float()
    assert (x.mean(0) - (torch.arange(16) + 0.5) * 255 / 16).abs().max() < 3


def _bad_files(folder: Path) -> dict[str, str]:
    """Broken pictures in ``folder``: name to a word of the reason."""
    good = _png()
    (folder / "cut.png").write_bytes(good[:-30])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    (folder / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (folder / "photo.heic").write_bytes(b"x")
    (folder / "more.zip").write_bytes(b"x")
    _save(folder / "float.tiff", _picture(7, "F"))
    _save(folder / "integer.tiff", _picture(70_000, "I"))
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "new\nline\x1b[31m.png").write_text("x")
    return {
        "cut.png": "broken",
        "empty.png": "not a picture",
        "text.jpg": "not a picture",
        "script.png": "not a picture",
        "photo.heic": "format",
        "more.zip": "packed",
        "float.tiff": "outside [0, 1]",
        "integer.tiff": "outside 0..65535",
        "gone.png": "No such file",
        "pipe.png": "not a plain file",
        "new\\nline\\x1b[31m.png": "not a picture",
    }


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes in folders nor such names")
def test_bad_files_among_good_ones_are_named(tmp_path: Path) -> None:
    expected = _bad_files(tmp_path)
    _save(tmp_path / "good.png")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    data = load_data(str(tmp_path))
    assert len(data) == 1
    found = dict(line.split(": ", 1) for line in data.skipped)
    assert set(found) == set(expected)
    for name, word in expected.items():
        assert word in found[name], found[name]
    assert list(data.skipped) == sorted(data.skipped)


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    assert "no images" in _error(tmp_path)
    (tmp_path / "all.zip").write_bytes(b"x")
    assert "all.zip" in _error(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"y")
    message = _error(tmp_path)
    assert "none of the 2 images" in message
    assert "a.png" in message


def test_a_class_without_a_readable_picture_is_none(tmp_path: Path) -> None:
    for name in ("ape", "bee", "cow"):
        _save(tmp_path / name / "a.png")
    (tmp_path / "bee" / "a.png").write_bytes(b"x")
    data = load_data(str(tmp_path))
    assert data.class_names == ("ape", "cow")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]


def test_too_large_pictures_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path / "a.png", _picture(size=(40, 40)))  # over twice the limit: Pillow raises
    _save(tmp_path / "b.png", _picture(size=(20, 20)))  # over it: Pillow only warns
    _save(tmp_path / "c.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    data = load_data(str(tmp_path))
    assert len(data) == 1
    assert all("too large" in line for line in data.skipped)
    assert len(data.skipped) == 2


def test_more_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        _save(tmp_path / f"{i}.png")
    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 300)
    assert "--size" in _error(tmp_path)


def test_one_changed_pixel_changes_the_digest(tmp_path: Path) -> None:
    for i in range(40):  # enough for several threads
        _save(tmp_path / f"{i:02d}.png", _picture(i))
    before = load_data(str(tmp_path))
    assert load_data(str(tmp_path)).digest == before.digest
    assert before.x[:, 0, 0, 0].tolist() == list(range(40))
    changed = _picture(7)
    changed.putpixel((3, 3), 8)
    _save(tmp_path / "07.png", changed)
    assert load_data(str(tmp_path)).digest != before.digest


def _zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def _twins(tmp_path: Path) -> tuple[Dataset, Dataset]:
    entries = {"pets/dog/a.png": _png(3), "pets/cat/b.png": _png(2), "pets/cat/a.png": _png(1)}
    for name, content in entries.items():
        (tmp_path / "as folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "as folder" / name).write_bytes(content)
    return load_data(str(tmp_path / "as folder")), load_data(str(_zip(tmp_path / "pets.zip", entries)))


def test_a_zip_is_as_good_as_its_folder_and_is_not_unpacked(tmp_path: Path) -> None:
    folder, packed = _twins(tmp_path)
    assert packed.digest == folder.digest
    assert packed.class_names == ("cat", "dog")
    assert packed.name == "pets"
    assert {path.name for path in tmp_path.iterdir()} == {"as folder", "pets.zip"}


def _mark_encrypted(path: Path, name: str) -> None:
    """Set the encryption bit of an entry, in its local and its central header."""
    content = bytearray(path.read_bytes())
    for signature, flags, name_at in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        at = content.find(signature)
        while at >= 0:
            if content[at + name_at : at + name_at + len(name)] == name.encode():
                content[at + flags] |= 1
            at = content.find(signature, at + 4)
    path.write_bytes(bytes(content))


def test_evil_zip_entries_are_named_not_read(tmp_path: Path) -> None:
    path = _zip(
        tmp_path / "evil.zip",
        {
            "good.png": _png(),
            "../up.png": _png(),
            "a/../../up.png": _png(),
            "/root.png": _png(),
            "C:\\boot.png": _png(),
            "nested.zip": b"PK",
            "secret.png": _png(),
            "__MACOSX/._good.png": b"x",
            "text.png": b"hello",
        },
    )
    _mark_encrypted(path, "secret.png")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("good.png", _png(1))
    data = load_data(str(path))
    found = dict(line.split(": ", 1) for line in data.skipped)
    assert len(data) == 1
    assert data.x[0, 0, 0, 0] == 90
    for name in ("../up.png", "a/../../up.png", "/root.png"):
        assert "outside" in found[name]
    assert "encrypted" in found["secret.png"]
    assert "packed" in found["nested.zip"]
    assert "same name" in found["good.png"]
    assert "not a picture" in found["text.png"]
    assert any("boot.png" in line and "outside" in line for line in data.skipped)
    assert len(data.skipped) == 8


def test_windows_slashes_in_a_zip(tmp_path: Path) -> None:
    data = load_data(str(_zip(tmp_path / "a.zip", {"cat\\a.png": _png(), "dog\\a.png": _png()})))
    assert data.class_names == ("cat", "dog")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_entry_is_passed_over(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", _png())
        archive.writestr("b.png", _png())
    whole = path.read_bytes()
    start, end = 30 + len("a.png"), whole.find(b"PK\x03\x04", 4)
    for at in range(start, end):  # whatever byte of a.png it is, b.png is still read
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        data = load_data(str(path))
        assert data.x[-1, 0, 0, 0] == 90
        assert len(data) == 1 or len(data.skipped) == 0
        assert all(line.startswith("a.png: ") for line in data.skipped)


def test_what_is_no_folder_or_zip(tmp_path: Path) -> None:
    assert "folder or zip" in _error(_save(tmp_path / "one.png"))
    whole = _zip(tmp_path / "whole.zip", {"a.png": _png()}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-40])
    assert "cut short" in _error(tmp_path / "cut.zip")
    assert "no images" in _error(_zip(tmp_path / "empty.zip", {}))

"""The check of images before training: what it counts, what it names, which of them look alike."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trilemma.data.prepared import Preparation, prepare
from trilemma.engine import data_check
from trilemma.engine.data_check import check_data, near_duplicates
from trilemma.errors import DataError, RunError


def thumbnails(*values: float) -> np.ndarray[Any, Any]:
    """One a value, of noise that is the same for all but for its brightness."""
    noise = np.random.RandomState(0).randint(0, 50, (8, 8, 3))
    return np.stack([(noise + value).astype(np.uint8) for value in values])


@pytest.mark.parametrize("rows", [1, 2, 3, 4096])
def test_near_ones_are_grouped_from_link_to_link(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(data_check, "ROWS", rows)
    assert near_duplicates(thumbnails(10, 90, 12, 91, 11, 50, 92)) == [[0, 2, 4], [1, 3, 6]]
    assert near_duplicates(thumbnails(10, 13, 16)) == []
    assert near_duplicates(thumbnails(7)) == []


@pytest.mark.parametrize("memory", [2**14, 2**26])
def test_many_equal_ones_are_one_group_whatever_the_tiles(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(data_check, "MEMORY", memory)
    monkeypatch.setattr(data_check, "ROWS", 16)
    values = [20, 60, 100] * 20
    groups = near_duplicates(thumbnails(*values))
    assert groups == [list(range(start, 60, 3)) for start in range(3)]


def test_the_same_mean_is_not_enough() -> None:
    stripes = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    stripes[0, ::2], stripes[1, 1::2] = 200, 200
    assert near_duplicates(stripes) == []


@pytest.mark.parametrize("rows", [1, 4096])
def test_near_to_one_is_near_enough_to_be_in_its_group(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Both others are near the first, brighter than it, and not near each other."""
    monkeypatch.setattr(data_check, "ROWS", rows)
    star = np.full((3, 8, 8, 3), 90, dtype=np.uint8)
    star[1, :3] += 3
    star[2, 5:] += 3
    assert near_duplicates(star[1:]) == []
    assert near_duplicates(star) == [[0, 1, 2]]


def test_groups_agree_with_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(1)
    some = random.randint(0, 256, (40, 8, 8, 3))
    copies = some[random.randint(0, 40, 60)] + random.randint(-2, 3, (60, 8, 8, 3))
    both = np.concatenate([some, copies]).clip(0, 255).astype(np.uint8)
    flat = both.reshape(100, -1).astype(float)
    near = np.sqrt(((flat[:, None] - flat[None]) ** 2).mean(-1)) <= data_check.NEAR
    reached = np.linalg.matrix_power(near.astype(float), 100) > 0
    expected = {tuple(np.flatnonzero(row)) for row in reached if row.sum() > 1}
    assert len(expected) > 10
    monkeypatch.setattr(data_check, "ROWS", 7)
    assert {tuple(group) for group in near_duplicates(both)} == expected


def noise(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def smooth(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture that survives being resized: a few large fields of colour."""
    return Image.fromarray(noise(seed, 4, 4, 3)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth(1, (64, 64)).save(folder / "cat" / "one.png")
    smooth(1, (128, 128)).save(folder / "cat" / "one again.jpg", quality=95, subsampling=0)
    smooth(2, (80, 40)).save(folder / "cat" / "turned.jpg", exif=turned)
    Image.fromarray(noise(3, 64, 64)).save(folder / "cat" / "gray.png")
    Image.fromarray(noise(4, 64, 64).astype(np.uint16) * 257).save(folder / "cat" / "deep.png")
    Image.fromarray(noise(5, 64, 64, 4)).save(folder / "cat" / "glass.png")
    smooth(6, (64, 64)).convert("CMYK").save(folder / "dog" / "print.jpg")
    smooth(7, (64, 64)).save(folder / "dog" / "cut.jpg")
    smooth(8, (64, 64)).convert("RGBA").save(folder / "dog" / "opaque.png")
    stream = io.BytesIO()
    Image.fromarray(noise(7, 64, 64, 3)).save(stream, "JPEG")
    (folder / "dog" / "cut.jpg").write_bytes(stream.getvalue()[:-500])
    (folder / "dog" / "photo.heic").write_bytes(b"x")
    return folder


def test_what_is_found(photos: Path, tmp_path: Path) -> None:
    told: list[str] = []
    found = check_data(str(photos), tmp_path / "out", report=lambda what, done, total: told.append(what))
    assert found == json.loads((tmp_path / "out" / "check.json").read_text())
    assert found["images"] == 8 and set(told) == {"read", "compare"}
    assert found["formats"] == {"PNG": 5, "JPEG": 3}
    assert found["modes"] == {"RGB": 3, "RGBA": 2, "CMYK": 1, "I;16": 1, "L": 1}
    assert found["sizes"] == {"64x64": 6, "128x128": 1, "40x80": 1}
    assert found["shorter_side"] == {"least": 40, "median": 64, "most": 128}
    assert (found["aspect_ratio"]["least"], found["aspect_ratio"]["most"]) == (0.5, 1.0)
    assert found["gray"] == 2 and found["classes"] == {"cat": 6, "dog": 2}
    assert len(found["broken"]) == 1 and found["broken"][0].startswith("dog/cut.jpg: broken")
    assert found["passed_over"] == ["dog/photo.heic: not a format that is read; convert it to png"]
    assert found["duplicates"] == [["cat/one again.jpg", "cat/one.png"]]
    problems = {each["problem"]: each for each in found["problems"]}
    assert {name: each["count"] for name, each in problems.items()} == {
        "broken, named and passed over": 1,
        "other files passed over": 1,
        "images of several sizes": 3,
        "images that are not square": 1,
        "near duplicates": 1,
        "gray images among colour": 2,
        "transparent": 1,
        "turned by EXIF": 1,
        "of 16 bits": 1,
        "CMYK": 1,
        "few images": 8,
    }
    assert problems["turned by EXIF"]["examples"] == ["cat/turned.jpg"]
    assert problems["transparent"]["examples"] == ["cat/glass.png"]
    assert problems["of 16 bits"]["examples"] == ["cat/deep.png"]
    assert problems["images of several sizes"]["fix"] == f"trilemma data prepare {photos} --size 32"
    assert problems["images that are not square"]["fix"].startswith("--crop center cuts 6% ")  # a half of one in 8
    assert all(each["fix"] for each in problems.values())


def test_what_it_writes_mends_what_it_found(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_data(str(photos), out)
    assert {path.name for path in out.iterdir()} == {"check.json", "contact.png", "duplicates.png", "duplicates.txt"}
    with Image.open(out / "contact.png") as sheet, Image.open(out / "duplicates.png") as pair:
        assert sheet.size == (8 * 98 + 2, 98 + 2)  # eight pictures of 96 pixels in a row
        assert pair.size == (2 * 98 + 2, 98 + 2)
    without = (out / "duplicates.txt").read_text().splitlines()
    assert without == ["cat/one.png"]
    prepared = prepare(str(photos), tmp_path / "prepared", Preparation(size=32), without=without)
    assert json.loads((prepared / "prepared.json").read_text())["splits"]["train"]["images"] == 7
    for name in without:
        (photos / name).unlink()
    assert check_data(str(photos), out)["duplicates"] == []
    assert {path.name for path in out.iterdir()} == {"check.json", "contact.png"}


def problems(folder: Path) -> dict[str, Any]:
    found = check_data(str(folder), folder.parent / "out")
    return {each["problem"]: each for each in found["problems"]}


def test_rectangles_of_one_size_may_stay_so_and_gray_in_colour_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        gray = Image.fromarray(noise(i, 32, 48))
        gray.convert("RGB").save(folder / f"{i}.png")
    found = problems(folder)
    assert "--crop none keeps them" in found["images that are not square"]["fix"]
    assert found["colour images that show only gray"]["count"] == 3
    assert found.keys() == {"images that are not square", "colour images that show only gray", "few images"}


def test_sixteen_bits_for_three_colours_are_not_deep(tmp_path: Path) -> None:
    """A BMP with five, six and five bits for red, green and blue, as its masks say."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = noise(0, 32, 32, 2).tobytes()
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    header = struct.pack("<IiiHHIIiiII", 40, 32, 32, 1, 16, 3, len(pixels), 0, 0, 0, 0) + masks
    start = struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(pixels), 0, 0, 14 + len(header))
    (folder / "a.bmp").write_bytes(start + header + pixels)
    assert problems(folder).keys() == {"few images"}


def test_rare_classes_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name, count in (("many", 21), ("some", 3), ("few", 2)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(100 * len(name) + i, 32, 32, 3)).save(folder / name / f"{i}.png")
    found = problems(folder)
    assert found["classes with a tenth of the commonest or less"]["examples"] == ["few: 2"]


def test_what_cannot_be_checked(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 images"):
        check_data(str(folder), tmp_path / "out")
    Image.new("L", (8, 8)).save(folder / "a.png")
    with pytest.raises(DataError, match="prepared already"):
        check_data(str(prepare(str(folder), tmp_path / "prepared")), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        check_data(str(folder), tmp_path / "file" / "out")
    assert not (tmp_path / "out").exists()

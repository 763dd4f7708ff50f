"""Prepared images: the same pixels and digest as loaded directly, resumed after a stop, refused when changed."""

from __future__ import annotations

import io
import json
import shutil
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data import load_data, prepared, usual_size
from trilemma.data.dataset import content_digest
from trilemma.data.decode import fit
from trilemma.data.prepared import Preparation, is_prepared, prepare
from trilemma.engine.judge import reference_protocol
from trilemma.errors import ConfigError, DataError, RunError

RED = (255, 0, 0)


class Killed(BaseException):
    """Stands for a signal: nothing in the library catches it."""


def save(path: Path, value: Any = 90, size: tuple[int, int] = (12, 12), mode: str = "L") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def photos(folder: Path, count: int = 10) -> Path:
    """Pictures of several sizes and kinds, one of them cut short."""
    random = np.random.RandomState(0)
    for i in range(count):
        size = (20 + i, 14, 3) if i % 2 else (14, 20)
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, size).astype(np.uint8)).save(folder / "ab"[i % 2] / f"{i}.png")
    stream = io.BytesIO()
    Image.fromarray(random.randint(0, 256, (30, 30)).astype(np.uint8)).save(stream, "JPEG")
    (folder / "a" / "cut.jpg").write_bytes(stream.getvalue()[:-200])
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("images_a_part", [1, 3, 1024])
@pytest.mark.parametrize("gray", [False, True])
def test_pixels_labels_and_digest_are_those_of_direct_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images_a_part: int, gray: bool
) -> None:
    monkeypatch.setattr(prepared, "_PART_IMAGES", images_a_part)
    folder = photos(tmp_path / "photos")
    out = prepare(str(folder), tmp_path / "out", Preparation(size=8, gray=gray))
    direct, ours = load_data(str(folder), size=8, channels=1 if gray else None), load_data(str(out))
    assert torch.equal(ours.x, direct.x)
    assert ours.labels is not None and direct.labels is not None and torch.equal(ours.labels, direct.labels)
    assert (ours.digest, ours.class_names, ours.skipped) == (direct.digest, direct.class_names, direct.skipped)
    assert (ours.name, ours.spec, len(ours.skipped)) == ("photos", direct.spec, 1)
    assert files(out) == {"prepared.json", "train.npy"}
    array = np.load(out / "train.npy", mmap_mode="r", allow_pickle=False)
    assert array.dtype == np.uint8 and array.shape == (10, 1 if gray else 3, 8, 8)
    index = json.loads((out / "prepared.json").read_text())
    assert index["splits"]["train"]["files"][:2] == ["a/0.png", "a/2.png"]


def test_splits_and_zips(tmp_path: Path) -> None:
    for i, name in enumerate(["train/x/1.png", "train/y/2.png", "test/y/3.png"]):
        save(tmp_path / "photos" / name, 10 * i)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted((tmp_path / "photos").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path / "photos").as_posix())
    for data in ("photos", "photos.zip"):
        out = prepare(str(tmp_path / data), tmp_path / f"out of {data}")
        for split in ("train", "test"):
            ours = load_data(str(out), split=split)  # type: ignore[arg-type]
            assert ours.digest == load_data(str(tmp_path / data), split=split).digest  # type: ignore[arg-type]
            assert ours.class_names == ("x", "y")
        assert files(out) == {"prepared.json", "train.npy", "test.npy"}


def test_what_is_not_held_out_is_no_split(tmp_path: Path) -> None:
    out = prepare(str(save(tmp_path / "photos" / "a.png").parent), tmp_path / "out")
    with pytest.raises(DataError, match="has no held-out images"):
        load_data(str(out), split="test")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Preparation(), "Lanczos, shorter side, centre cropped"),
        (Preparation(size=8), "Lanczos, shorter side, centre cropped"),
        (Preparation(size=8, filter="box"), "Box, shorter side, centre cropped"),
        (Preparation(size=8, filter="box", crop="pad"), "Box, longer side, white beside"),
        (Preparation(size=8, crop="none"), "Lanczos, shorter side, not cropped"),
    ],
)
def test_how_images_were_resized_is_known(tmp_path: Path, how: Preparation, words: str) -> None:
    """Also to a protocol, and with what was done to them since."""
    out = prepare(str(save(tmp_path / "photos" / "a.png").parent), tmp_path / "out", how)
    data = load_data(str(out))
    assert data.resize == words == reference_protocol(data)["resize"]
    again = "" if words.startswith("Lanczos, shorter side, centre") else "; then Lanczos, shorter side, centre cropped"
    assert load_data(str(out), size=6).resize == words + again


def test_the_array_stays_on_the_disk(tmp_path: Path) -> None:
    """What changes in the file is seen in the tensor: nothing was copied; and nobody is warned of read-only memory."""
    out = prepare(str(save(tmp_path / "photos" / "a.png", 5).parent), tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_data(str(out))
    assert data.x[-1, -1, -1, -1] == 5
    with (out / "train.npy").open("rb+") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"\x07")
    assert data.x[-1, -1, -1, -1] == 7
    assert data.batch([0]).x.shape == (1, 1, 12, 12)


class Counter:
    """Counts decoded pictures, and is killed at one of them if asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read, self.count, self.killed_at, self.lock = prepared.read_picture, 0, -1, threading.Lock()
        monkeypatch.setattr(prepared, "read_picture", self)
        monkeypatch.setattr(prepared, "_PART_IMAGES", 4)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            if self.count == self.killed_at:
                raise Killed
            self.count += 1
        return self.read(*args, **kwargs)


def ten(folder: Path) -> str:
    for i in range(10):
        save(folder / f"{i}.png", i)
    return str(folder)


def test_after_a_stop_it_goes_on_and_decodes_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = ten(tmp_path / "photos"), tmp_path / "out"
    counter = Counter(monkeypatch)

    def kill(done: int, total: int) -> None:
        assert total == 10
        if done == 8:  # two parts of four are finished
            raise Killed

    with pytest.raises(Killed):
        prepare(data, out, report=kill)
    assert counter.count == 1 + 8  # one to see how large they are
    assert is_prepared(out)
    with pytest.raises(DataError, match="not finished: start the same"):
        load_data(str(out))
    counter.count = 0
    prepare(data, out)
    assert counter.count == 2
    assert load_data(str(out)).digest == load_data(data).digest
    assert files(out) == {"prepared.json", "train.npy"}


@pytest.mark.parametrize(("killed_at", "left"), [(0, 11), (1 + 2, 10), (1 + 4, 6), (1 + 9, 2)])
def test_a_part_that_was_not_finished_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int, left: int
) -> None:
    monkeypatch.setattr("trilemma.data.folder._THREADS", 1)  # so that pictures come in order
    data, out = ten(tmp_path / "photos"), tmp_path / "out"
    counter = Counter(monkeypatch)
    counter.killed_at = killed_at
    with pytest.raises(Killed):
        prepare(data, out)
    counter.killed_at, counter.count = -1, 0
    prepare(data, out)
    assert counter.count == left
    assert load_data(str(out)).digest == load_data(data).digest


def test_a_stop_while_the_parts_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = ten(tmp_path / "photos"), tmp_path / "out"
    counter = Counter(monkeypatch)
    write = prepared.write_json

    def killed_before_the_index(path: Path, value: Any) -> Path:
        if path.name == prepared.INDEX:
            raise Killed
        return write(path, value)

    monkeypatch.setattr(prepared, "write_json", killed_before_the_index)
    with pytest.raises(Killed):
        prepare(data, out)
    monkeypatch.setattr(prepared, "write_json", write)
    counter.count = 0
    prepare(data, out)
    assert counter.count == 0
    assert load_data(str(out)).digest == load_data(data).digest


def test_once_finished_it_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = ten(tmp_path / "photos"), tmp_path / "out"
    prepare(data, out)
    before = (out / "prepared.json").stat().st_mtime_ns
    counter = Counter(monkeypatch)
    assert prepare(data, out) == out
    assert counter.count == 0 and (out / "prepared.json").stat().st_mtime_ns == before


def test_other_settings_or_files_do_not_mix(tmp_path: Path) -> None:
    data, out = ten(tmp_path / "photos"), tmp_path / "out"

    def kill(done: int, total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        prepare(data, out, report=kill)
    with pytest.raises(DataError, match="unfinished preparation of other files or settings"):
        prepare(data, out, Preparation(size=6))
    prepare(data, out)
    with pytest.raises(DataError, match="images of other files or settings"):
        prepare(data, out, Preparation(gray=True))
    save(tmp_path / "photos" / "3.png", 200, (12, 12), "L")
    save(tmp_path / "photos" / "more.png")
    with pytest.raises(DataError, match="images of other files or settings"):
        prepare(data, out)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    data = ten(tmp_path / "photos")
    (tmp_path / "notes.txt").write_text("")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(DataError, match="is not empty and holds no prepared images"):
            prepare(data, out)
    with pytest.raises(RunError, match="cannot write"):
        prepare(data, tmp_path / "notes.txt" / "out")
    with pytest.raises(DataError, match="is prepared already"):
        prepare(str(prepare(data, tmp_path / "out")), tmp_path / "again")


def wide(folder: Path, sizes: list[tuple[int, int]]) -> str:
    """White pictures with a black left half."""
    for i, (width, height) in enumerate(sizes):
        pixels = np.full((height, width), 255, dtype=np.uint8)
        pixels[:, : width // 2] = 0
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(folder)


def test_rectangles_are_kept(tmp_path: Path) -> None:
    data = wide(tmp_path / "photos", [(32, 16), (64, 32)])
    loaded = load_data(str(prepare(data, tmp_path / "out", Preparation(size=8, crop="none", filter="box"))))
    assert loaded.spec.shape == (1, 8, 16)
    assert (loaded.x[..., :8] == 0).all() and (loaded.x[..., 8:] == 255).all()
    own = load_data(str(prepare(wide(tmp_path / "same", [(32, 16)] * 2), tmp_path / "as they are")))
    assert own.spec.shape == (1, 16, 32)


@pytest.mark.parametrize("crop", ["none", "center", "pad"])
def test_what_would_become_too_large_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crop: Literal["none", "center", "pad"]
) -> None:
    """A strip may be small itself."""
    data = wide(tmp_path / "photos", [(8, 8), (40, 1)])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    loaded = load_data(str(prepare(data, tmp_path / "out", Preparation(size=8, crop=crop))))
    assert len(loaded) == (1 if crop == "none" else 2)
    assert loaded.skipped == (
        ("1.png: would become 320 x 8 at --size 8: more than 100 pixels: too large to be safe to open",)
        if crop == "none"
        else ()
    )
    with pytest.raises(DataError, match="none of the 2 images .* would become .* at --size 11"):
        prepare(data, tmp_path / "larger", Preparation(size=11, crop=crop))


def test_padding_shows_all_on_white(tmp_path: Path) -> None:
    data = wide(tmp_path / "photos", [(32, 16)])
    x = load_data(str(prepare(data, tmp_path / "out", Preparation(size=8, crop="pad", filter="box")))).x[0, 0]
    assert x.shape == (8, 8)
    assert (x[:2] == 255).all() and (x[-2:] == 255).all()
    assert (x[2:6, :4] == 0).all() and (x[2:6, 4:] == 255).all()


def test_the_filter_counts(tmp_path: Path) -> None:
    data = wide(tmp_path / "photos", [(33, 33)])
    box, lanczos = (
        load_data(str(prepare(data, tmp_path / name, Preparation(size=6, filter=name)))).x  # type: ignore[arg-type]
        for name in ("box", "lanczos")
    )
    assert not torch.equal(box, lanczos)
    assert torch.equal(lanczos, load_data(data, size=6).x)


@pytest.mark.parametrize("images_a_part", [1, 1024])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Preparation(), ("1.png becomes 20x10 and 0.png 12x12", "--size N --crop center")),
        (Preparation(size=6, crop="none"), ("1.png becomes 12x6 and 0.png 6x6", "--size 6 --crop pad")),
    ],
)
def test_several_shapes_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images_a_part: int, how: Preparation, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(prepared, "_PART_IMAGES", images_a_part)
    data = wide(tmp_path / "photos", [(12, 12), (20, 10)])
    with pytest.raises(DataError) as caught:
        prepare(data, tmp_path / "out", how)
    assert all(each in str(caught.value) for each in words)
    prepare(data, tmp_path / "out", Preparation(size=6))  # what failed is not in the way


def test_images_are_left_out_by_name(tmp_path: Path) -> None:
    data = ten(tmp_path / "photos")
    loaded = load_data(str(prepare(data, tmp_path / "out", without=["3.png", "0.png"])))
    assert loaded.x[:, 0, 0, 0].tolist() == [1, 2, 4, 5, 6, 7, 8, 9]
    with pytest.raises(DataError, match="--without names gone.png, which is not among"):
        prepare(data, tmp_path / "other", without=["gone.png", "3.png"])
    with pytest.raises(DataError, match="--without leaves no image"):
        prepare(data, tmp_path / "other", without=[f"{i}.png" for i in range(10)])


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 images .* the first: a.png"):
        prepare(str(tmp_path / "photos"), tmp_path / "out")


def test_a_copy_is_as_good_and_a_change_is_noticed(tmp_path: Path) -> None:
    out = prepare(ten(tmp_path / "photos"), tmp_path / "out")
    digest = load_data(str(out)).digest
    copy = Path(shutil.copytree(out, tmp_path / "copy", copy_function=shutil.copyfile))  # with times of its own
    assert load_data(str(copy)).digest == digest
    pixels = bytearray((copy / "train.npy").read_bytes())
    pixels[-1] ^= 1
    (copy / "train.npy").write_bytes(pixels)
    with pytest.raises(DataError, match="is not what the digest was taken of; remove it and prepare"):
        load_data(str(copy))


def changed(value: Any, *path: str, to: Any) -> Any:
    """A copy of nested dictionaries with one value replaced."""
    key, *rest = path
    return {**value, key: changed(value[key], *rest, to=to) if rest else to}


@pytest.mark.parametrize(
    ("path", "to", "problem"),
    [
        (("format",), "trilemma prepared images 9", "of another version"),
        (("splits",), {}, "no training split"),
        (("splits", "train"), 3, "must be a table"),
        (("splits", "train", "digest"), None, "digest must be text"),
        (("splits", "train", "images"), 11, r"train.npy is uint8 \(10, 1, 12, 12\), not uint8 \(11, 1, 12, 12\)"),
        (("splits", "train", "shape"), [1, 12], r"10 images of the shape \(1, 12\)"),
        (("splits", "train", "shape"), [1, 12, 13], "train.npy is uint8"),
        (("splits", "train", "labels"), [0] * 10, "labels do not fit"),
        (("splits", "train", "labels"), [0], "labels do not fit"),
    ],
)
def test_a_damaged_index_is_one_line(tmp_path: Path, path: tuple[str, ...], to: Any, problem: str) -> None:
    out = prepare(ten(tmp_path / "photos"), tmp_path / "out")
    index = json.loads((out / "prepared.json").read_text())
    (out / "prepared.json").write_text(json.dumps(changed(index, *path, to=to)))
    with pytest.raises(DataError, match=problem) as caught:
        load_data(str(out))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04"])
def test_a_damaged_array_is_one_line(tmp_path: Path, content: bytes) -> None:
    out = prepare(ten(tmp_path / "photos"), tmp_path / "out")
    (out / "train.npy").write_bytes(content)
    with pytest.raises(DataError, match="train.npy can't be read"):
        load_data(str(out))
    (out / "prepared.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        load_data(str(out))


def test_another_size_is_made_in_memory(tmp_path: Path) -> None:
    out = prepare(str(photos(tmp_path / "photos")), tmp_path / "out", Preparation(size=8))
    whole = load_data(str(out))
    small = load_data(str(out), size=4, channels=1)
    assert torch.equal(small.x, fit(whole.x, 4, 1))
    assert small.digest == content_digest(small.x, small.labels) != whole.digest
    assert load_data(str(out), size=8, channels=3).digest == whole.digest


def test_the_size_a_recipe_wants_is_for_what_is_not_prepared(tmp_path: Path) -> None:
    data = ten(tmp_path / "photos")
    out = prepare(data, tmp_path / "out")
    assert [usual_size(each, 32) for each in (str(out), data, "digits", "hf:cats")] == [None, 32, 32, 32]


@pytest.mark.parametrize(
    "settings", [{"size": 0}, {"crop": "pad"}, {"crop": "fill", "size": 8}, {"filter": "nearest"}], ids=str
)
def test_settings_that_cannot_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(settings))}"):
        Preparation(**settings)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_is_prepared_as_it_is_loaded(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    levels = np.arange(144, dtype=np.uint8).reshape(12, 12)
    colours = Image.fromarray(np.stack([levels, levels.T, 255 - levels], -1))
    if mode == "I;16":
        Image.fromarray(levels.astype(np.uint16) * 257).save(folder / "a.png")
    else:
        picture = colours.convert(mode)
        if mode in ("LA", "RGBA"):
            picture.putalpha(Image.fromarray(levels))
        picture.save(folder / ("a.tiff" if mode == "CMYK" else "a.png"))
    direct = load_data(str(folder), size=6)
    ours = load_data(str(prepare(str(folder), tmp_path / "out", Preparation(size=6))))
    assert ours.digest == direct.digest
    assert ours.spec.channels == (1 if mode in ("1", "L", "LA", "I;16") else 3)

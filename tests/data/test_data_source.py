"""Tars, parquet files and sets on the hub. What stands in for the library ``datasets`` has the few calls that are used
and no network; at the end real parquet files go through the real library."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trilemma.data import data_place, load_data
from trilemma.data.prepared import Preparation, prepare
from trilemma.data.source import is_pack, open_source
from trilemma.errors import ConfigError, DataError, TrilemmaError


def png(value: int, size: tuple[int, int] = (6, 6)) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, "PNG")
    return stream.getvalue()


def tar(path: Path, entries: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def error(data: str, **options: Any) -> str:
    with pytest.raises(TrilemmaError) as caught:
        load_data(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PETS = {"./pets/dog/a.png": png(3), "./pets/cat/b.png": png(2), "./pets/cat/a.png": png(1)}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_as_good_as_its_folder(tmp_path: Path, format: int) -> None:
    for name, content in PETS.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    with tarfile.open(tmp_path / "pets.tar", "w", format=format) as archive:
        archive.add(tmp_path / "folder", ".")
    folder, packed = load_data(str(tmp_path / "folder")), load_data(str(tmp_path / "pets.tar"))
    assert packed.digest == folder.digest
    assert (packed.class_names, packed.name) == (("cat", "dog"), "pets")


def test_shards_with_their_labels_beside(tmp_path: Path) -> None:
    for shard in range(3):
        entries = {}
        for i in range(4):
            number = 4 * shard + i
            entries |= {f"{number:04d}.png": png(number), f"{number:04d}.cls": f"{number % 2 * 9}\n".encode()}
            entries[f"{number:04d}.json"] = b"{}"
        tar(tmp_path / f"train-{shard}.tar", entries)
    data = load_data(str(tmp_path / "train-*.tar"))
    assert data.x[:, 0, 0, 0].tolist() == list(range(12))
    assert data.labels is not None and data.labels.tolist() == [0, 1] * 6
    assert (data.class_names, data.name, data.skipped) == (("0", "9"), tmp_path.name, ())
    assert len(load_data(str(tmp_path / "train-[01].tar"))) == 8


def test_evil_members_are_named_not_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"good.png": png(7), "../up.png": png(1), "/root.png": png(1), "more.zip": b"x"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        again = tarfile.TarInfo("good.png")
        again.size = len(png(8))
        archive.addfile(again, io.BytesIO(png(8)))
    data = load_data(str(path))
    assert data.x[:, 0, 0, 0].tolist() == [7]
    found = dict(line.split(": ", 1) for line in data.skipped)
    words = {"../up.png": "outside the tar", "/root.png": "outside", "more.zip": "packed", "link.png": "not a plain"}
    assert set(found) == {*words, "good.png"} and "same name" in found["good.png"]
    assert all(word in found[name] for name, word in words.items())


def test_what_is_no_tar_is_one_line(tmp_path: Path) -> None:
    assert "no file is called" in error(str(tmp_path / "a.tar"))
    assert "no file is called" in error(str(tmp_path / "*.tar"))
    (tmp_path / "text.tar").write_text("hello")
    assert "can't be read as a tar" in error(str(tmp_path / "text.tar"))
    tar(tmp_path / "packed.tar", {"a.png": png(1)}, "w:gz")
    assert "unpack one that is compressed" in error(str(tmp_path / "packed.tar"))
    assert "no images in" in error(str(tar(tmp_path / "empty.tar", {"a.txt": b""})))
    assert "has no held-out images" in error(str(tar(tmp_path / "a.tar", {"a.png": png(1)})), split="test")


def test_tars_are_prepared_like_folders(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", PETS)
    out = prepare(str(tmp_path / "a.tar"), tmp_path / "out")
    assert load_data(str(out)).digest == load_data(str(tmp_path / "a.tar")).digest


def test_what_a_word_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.tar").mkdir()
    found = {data: is_pack(data) for data in ("hf:cats", "a.tar", "b/*.parquet", "folder.tar", "photos", "c.zip")}
    assert found == {
        "hf:cats": True, "a.tar": True, "b/*.parquet": True, "folder.tar": False, "photos": False, "c.zip": False
    }  # fmt: skip
    assert [data_place(data) for data in ("digits", "hf:a/b:train", "x/*.tar")] == [
        None,
        "hf:a/b:train",
        str(tmp_path.resolve() / "x" / "*.tar"),
    ]


# Sets on the hub


@dataclass
class StandInImage:
    """datasets.Image"""

    decode: bool = True


@dataclass
class StandInClassLabel:
    """datasets.ClassLabel"""

    names: list[str]


@dataclass
class StandInValue:
    """datasets.Value"""

    dtype: str


@dataclass
class StandInRows:
    """datasets.Dataset, of which rows are asked only once nothing in them would be decoded."""

    features: dict[str, Any]
    rows: list[dict[str, Any]]
    raw: str = ""

    def select_columns(self, columns: list[str]) -> StandInRows:
        kept = {key: self.features[key] for key in columns}
        return StandInRows(kept, [{key: row.get(key) for key in columns} for row in self.rows], self.raw)

    def cast_column(self, column: str, feature: StandInImage) -> StandInRows:
        assert not feature.decode
        return StandInRows({**self.features, column: feature}, self.rows, column)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        assert not any(isinstance(feature, StandInImage) and feature.decode for feature in self.features.values())
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


@dataclass
class Hub:
    """What the stand-in serves, and what it was asked for."""

    sets: dict[str, dict[str, StandInRows]] = field(default_factory=dict)
    parquet: StandInRows | None = None
    asked: list[Any] = field(default_factory=list)

    def load_dataset(self, name: str, *, split: str, data_files: list[str] | None = None) -> StandInRows:
        self.asked.append((name, split, data_files))
        if name == "parquet":
            assert self.parquet is not None
            return self.parquet
        if name not in self.sets:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nmore lines")
        return self.sets[name][split]

    def get_dataset_split_names(self, name: str) -> list[str]:
        if name not in self.sets:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nmore lines")
        return list(self.sets[name])


def rows(values: list[int], labels: list[Any] | None = None, **features: Any) -> StandInRows:
    """Rows of an image, "image", each of one value, with labels."""
    listed = [{"image": {"bytes": png(value), "path": None}} for value in values]
    for row, label in zip(listed, labels or [], strict=False):
        row["label"] = label
    return StandInRows({"image": StandInImage(), **features}, listed)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    served = Hub()
    module: Any = ModuleType("datasets")
    module.Image, module.ClassLabel, module.Value = StandInImage, StandInClassLabel, StandInValue
    module.config = SimpleNamespace(HF_DATASETS_CACHE=tmp_path / "cache", EXTRACTED_DATASETS_PATH=tmp_path / "more")
    module.load_dataset, module.get_dataset_split_names = served.load_dataset, served.get_dataset_split_names
    monkeypatch.setitem(sys.modules, "datasets", module)
    yield served


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert error("hf:me/cats") == (
        "hf:me/cats needs the library datasets, which is not installed: pip install 'trilemma[hub]'"
    )
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "pip install 'trilemma[hub]'" in error(str(tmp_path / "a.parquet"))


def test_a_set_on_the_hub(hub: Hub) -> None:
    names = StandInClassLabel(["cat", "dog", "eel"])
    hub.sets["me/pets"] = {
        "train": rows([5, 6, 7], [2, 0, 2], label=names),
        "validation": rows([8], [1], label=names),
    }
    train, test = load_data("hf:me/pets"), load_data("hf:me/pets", split="test")
    assert train.x[:, 0, 0, 0].tolist() == [5, 6, 7] and test.x[:, 0, 0, 0].tolist() == [8]
    assert train.labels is not None and train.labels.tolist() == [2, 0, 2]
    assert test.labels is not None and test.labels.tolist() == [1]
    assert train.class_names == test.class_names == ("cat", "dog", "eel")
    assert (train.name, train.source) == ("pets", "Hugging Face data set me/pets, train split")
    assert hub.asked == [("me/pets", "train", None), ("me/pets", "validation", None)]


def test_a_split_and_a_column_by_name(hub: Hub) -> None:
    both = StandInRows(
        {"left": StandInImage(), "right": StandInImage()},
        [{"left": {"bytes": png(1), "path": None}, "right": {"bytes": png(2), "path": None}}],
    )
    hub.sets["me/pairs"] = {"all": both}
    assert load_data("hf:me/pairs:all:right").x[:, 0, 0, 0].tolist() == [2]
    for data, problem in (
        ("hf:me/pairs:all", "has several columns of images: name one of left, right, as hf:NAME:SPLIT:COLUMN"),
        ("hf:me/pairs:all:up", "has no column 'up': choose one of left, right"),
        ("hf:me/pairs", "has no split train: choose one of all, as hf:me/pairs:all"),
        ("hf:me/nobody", "can't be loaded (Dataset 'me/nobody' doesn't exist on the Hub); check its name"),
        ("hf:", "must be hf:NAME, hf:NAME:SPLIT or hf:NAME:SPLIT:COLUMN"),
        ("hf:a:b:c:d", "must be hf:NAME"),
        ("hf:a::c", "must be hf:NAME"),
    ):
        assert problem in error(data)
    assert "has no held-out images" in error("hf:me/pairs:all:left", split="test")
    assert "has no held-out images" in error("hf:me/pairs", split="test")


def test_files_and_broken_rows(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.png").write_bytes(png(4))
    contents = [
        {"bytes": None, "path": str(tmp_path / "cache" / "a.png")},
        {"bytes": b"x", "path": None},
        None,
        {"bytes": None, "path": None},
        png(9),
    ]
    hub.sets["odd"] = {"train": StandInRows({"img": "binary"}, [{"img": content} for content in contents])}
    data = load_data("hf:odd")
    assert data.x[:, 0, 0, 0].tolist() == [4, 9]
    assert [line.split(":")[0] for line in data.skipped] == ["00000001", "00000002", "00000003"]
    assert data.labels is None


def test_a_row_may_not_name_any_file_of_the_machine(hub: Hub, tmp_path: Path) -> None:
    own = tmp_path / "cache"
    own.mkdir()
    for folder in (tmp_path, own):
        (folder / "a.png").write_bytes(png(4))
    os.mkfifo(own / "pipe.png")
    (own / "link.png").symlink_to(tmp_path / "a.png")
    names = ("a.png", "../a.png", "../cache/a.png", "link.png", "pipe.png", "no.png", "a\x00.png")
    contents = [{"bytes": None, "path": str(own / name)} for name in names]
    contents += [{"bytes": None, "path": path} for path in ("/dev/zero", "a.png", "hf://a.png")]
    hub.sets["odd"] = {"train": StandInRows({"img": "binary"}, [{"img": content} for content in contents])}
    data = load_data("hf:odd")
    assert data.x[:, 0, 0, 0].tolist() == [4, 4]
    found = {int(line[:8]): line.split(": ", 1)[1] for line in data.skipped}
    assert sorted(found) == [1, *range(3, 10)]
    assert all("not the data set's own" in found[i] for i in (1, 3, 7, 8, 9))
    assert "not a plain file" in found[4]


@pytest.mark.parametrize(
    ("labels", "feature", "expected"),
    [
        (["dog", "cat", "dog"], StandInValue("string"), ([1, 0, 1], ("cat", "dog"))),
        ([11, 9, 11], StandInValue("int64"), ([1, 0, 1], ("9", "11"))),
        (["dog", None, "cat"], StandInValue("string"), (None, ())),
        ([-1, -1, -1], StandInClassLabel(["a", "b"]), (None, ())),
        ([0, None, 1], StandInClassLabel(["a", "b"]), (None, ())),
        ([b"a mask", b"a mask", b"a mask"], StandInImage(), (None, ())),
        ([[1], [2], [1]], "a list", (None, ())),
    ],
)
def test_labels_of_any_kind(hub: Hub, labels: list[Any], feature: Any, expected: Any) -> None:
    hub.sets["pets"] = {"train": rows([1, 2, 3], labels, label=feature)}
    data = load_data("hf:pets:train:image")
    assert (None if data.labels is None else data.labels.tolist(), data.class_names) == expected


def test_a_class_without_a_name_is_one_line(hub: Hub) -> None:
    hub.sets["pets"] = {"train": rows([1, 2], [0, 2], label=StandInClassLabel(["a", "b"]))}
    assert error("hf:pets") == "hf:pets has the class 2 in its column label, and names for 2 only"


def test_parquet_files(hub: Hub, tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet"):
        (tmp_path / name).write_bytes(b"PAR1")
    hub.parquet = rows([3, 4])
    data = load_data(str(tmp_path / "*.parquet"))
    assert data.x[:, 0, 0, 0].tolist() == [3, 4] and data.name == tmp_path.name
    assert hub.asked == [("parquet", "train", [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")])]
    assert "parquet files are all for training" in error(str(tmp_path / "*.parquet"), split="test")


def test_a_set_on_the_hub_is_prepared_with_both_splits(hub: Hub, tmp_path: Path) -> None:
    hub.sets["me/pets"] = {"train": rows([5, 6]), "test": rows([7])}
    out = prepare("hf:me/pets", tmp_path / "out", Preparation(size=4))
    for split, values in (("train", [5, 6]), ("test", [7])):
        data = load_data(str(out), split=split)  # type: ignore[arg-type]
        assert data.x[:, 0, 0, 0].tolist() == values
        assert data.digest == load_data("hf:me/pets", split=split, size=4).digest  # type: ignore[arg-type]


def test_an_image_is_opened_only_when_it_is_read(hub: Hub) -> None:
    hub.sets["pets"] = {"train": rows(list(range(5)))}
    with open_source("hf:pets") as source:
        assert [entry.path for entry in source.entries] == [f"{i:08d}" for i in range(5)]
        with source.entries[3].open() as stream, Image.open(stream) as image:
            assert np.asarray(image)[0, 0] == 3
    with pytest.raises((ConfigError, DataError)):
        with open_source("hf:nobody"):
            pass
    assert hub.asked == [("pets", "train", None)]


# The library itself


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with a cache of its own."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library


def parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    """A file without a word of the library's."""
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(exist_ok=True)
    writer.write_table(arrow.table(columns), path)
    return path


def test_a_real_parquet_file(real: Any, tmp_path: Path) -> None:
    images = [{"bytes": png(value), "path": None} for value in (5, 6, 7)]
    data = load_data(str(parquet(tmp_path / "pets" / "a.parquet", {"image": images, "label": ["dog", "cat", "dog"]})))
    assert data.x[:, 0, 0, 0].tolist() == [5, 6, 7]
    assert data.labels is not None and data.labels.tolist() == [1, 0, 1] and data.class_names == ("cat", "dog")
    out = prepare(str(tmp_path / "pets" / "a.parquet"), tmp_path / "out")
    assert load_data(str(out)).digest == data.digest


def test_a_real_row_may_not_name_any_file_of_the_machine(real: Any, tmp_path: Path) -> None:
    file = tmp_path / "pets" / "a.parquet"
    names = [file.parent / "own.png", tmp_path / "other.png", file.parent / "pipe.png", Path("/dev/zero")]
    parquet(file, {"image": [{"bytes": None, "path": str(name)} for name in names]})
    for name in names[:2]:
        name.write_bytes(png(4))
    os.mkfifo(names[2])
    data = load_data(str(file))
    assert data.x[:, 0, 0, 0].tolist() == [4]
    assert [line.split(":")[0] for line in data.skipped] == ["00000001", "00000002", "00000003"]


def test_real_columns_beside_the_images_are_not_decoded(real: Any, tmp_path: Path) -> None:
    """A mask that no reader of pictures should see; and a class that has no label."""
    features = real.Features(
        {"image": real.Image(), "mask": real.Image(), "label": real.ClassLabel(names=["cat", "dog"])}
    )
    for name, labels in {"known": [1, 0], "unknown": [1, None]}.items():
        masks = [{"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n", "path": None}] * 2
        images = [{"bytes": png(value), "path": None} for value in (5, 6)]
        columns = {"image": images, "mask": masks, "label": labels}
        (tmp_path / name).mkdir()
        real.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / name / "train.parquet")
        data = load_data(f"hf:{tmp_path / name}:train:image")
        assert data.x[:, 0, 0, 0].tolist() == [5, 6]
        assert (None if data.labels is None else data.labels.tolist()) == ([1, 0] if name == "known" else None)
        assert "several columns of images" in error(str(tmp_path / name / "train.parquet"))

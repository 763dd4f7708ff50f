"""Labels from files: what they may look like, which one counts, and what is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trilemma.data import load_data
from trilemma.data.labels import class_names, read_labels
from trilemma.data.source import open_source
from trilemma.errors import ConfigError, DataError


def save(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 6), value).save(path)
    return path


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labels.csv", "file,label\na/1.png,cat\n2.png,dog\n"),
        ("labels.csv", '\ufefffile, label\r\n"a/1.png",cat\r\n\r\n./2.png, dog \r\n'),
        ("labels.csv", "file,label\na\\1.png,cat\n2.png,dog\n2.png,dog\n"),
        ("labels.json", '{"a/1.png": "cat", "2.png": "dog"}'),
        ("dataset.json", '{"labels": [["a/1.png", "cat"], ["2.png", "dog"]]}'),
        ("theirs.json", '{"labels": [["a/1.png", "cat"], ["2.png", "dog"]]}'),
    ],
)
def test_every_form_says_the_same(file: str, text: str) -> None:
    labels = read_labels(text.encode(), file)
    assert labels is not None
    assert labels.classes == {"a/1.png": "cat", "2.png": "dog"}
    assert (labels.of("2.png"), labels.of("3.png")) == ("dog", None)
    assert labels.absent(["2.png", "9.png"]) == ["a/1.png"]


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("labels.csv", "", "no first line file,label"),
        ("labels.csv", "a.png,cat\n", "no first line file,label"),
        ("labels.csv", "file,label\na.png\n", "row 2: must be a file and a label"),
        ("labels.csv", "file,label\na.png,b,c\n", "row 2"),
        ("labels.csv", "file,label\na.png,cat\na.png,dog\n", "gives a.png two labels, cat and dog"),
        ("labels.csv", "file,label\n", "names no file"),
        ("labels.json", "[1]", "not a JSON object"),
        ("labels.json", "{", "can't be read as labels"),
        ("labels.json", "[" * 100_000, "can't be read as labels"),
        ("labels.json", '{"a.png": [1]}', "a label is a word or a whole number"),
        ("labels.json", '{"a.png": true}', "a label is a word or a whole number"),
        ("labels.json", '{"a.png": 0.5}', "a label is a word or a whole number"),
        ("dataset.json", '{"labels": [["a.png"]]}', "must be a list of pairs"),
        ("dataset.json", '{"labels": [[3, 4]]}', "a label is a word"),
        ("labels.json", "\xff", "can't be read as labels"),
    ],
)
def test_what_is_no_file_of_labels_is_one_line(file: str, text: str, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labels(text.encode("latin-1"), file)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_dataset_json_may_have_no_labels() -> None:
    assert read_labels(b'{"labels": null}', "dataset.json") is None
    assert read_labels(b'{"title": "something else"}', "dataset.json") is None


def test_numbers_are_sorted_as_numbers() -> None:
    assert class_names(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert class_names(["10", "9", "x"]) == ["10", "9", "x"]


def photos(folder: Path) -> Path:
    for value, name in enumerate(["cat/a.png", "cat/b.png", "dog/c.png"]):
        save(folder / name, 10 * value)
    return folder


LABELS: dict[str, Any] = {"cat/a.png": 7, "cat/b.png": 11, "dog/c.png": 7}


def test_a_file_of_labels_goes_before_subfolders(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    assert load_data(str(folder)).class_names == ("cat", "dog")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    data = load_data(str(folder))
    assert data.class_names == ("7", "11")
    assert data.labels is not None and data.labels.tolist() == [0, 1, 0]
    assert data.skipped == ()


def test_one_inside_a_class_is_not_for_all(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    (folder / "cat" / "labels.json").write_text('{"a.png": "x"}')
    assert load_data(str(folder)).class_names == ("cat", "dog")


def test_what_is_not_labelled_is_passed_over_by_name(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    (folder / "labels.csv").write_text("file,label\ncat/a.png,x\ndog/c.png,y\ngone.png,x\nmore.png,x\n")
    data = load_data(str(folder))
    assert data.x[:, 0, 0, 0].tolist() == [0, 20]
    assert data.class_names == ("x", "y")
    assert data.skipped == (
        "cat/b.png: has no label in labels.csv",
        "labels.csv: 2 of its files are not there, as gone.png",
    )
    (folder / "labels.csv").write_text("file,label\na.png,x\n")
    with pytest.raises(DataError, match="labels.csv names none of the images .* such as cat/a.png"):
        load_data(str(folder))


def test_in_a_zip_with_a_folder_around_all(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, "around/" + file.relative_to(folder).as_posix())
        archive.writestr("around/dataset.json", json.dumps({"labels": list(map(list, LABELS.items()))}))
    data = load_data(str(tmp_path / "photos.zip"))
    assert data.labels is not None and data.labels.tolist() == [0, 1, 0]
    assert data.class_names == ("7", "11")


def test_splits_number_their_classes_alike(tmp_path: Path) -> None:
    for name in ("train/a.png", "train/b.png", "test/c.png"):
        save(tmp_path / name)
    (tmp_path / "labels.json").write_text('{"train/a.png": 0, "train/b.png": 1, "test/c.png": 2}')
    train, test = load_data(str(tmp_path)), load_data(str(tmp_path), split="test")
    assert train.class_names == test.class_names == ("0", "1", "2")
    assert train.labels is not None and train.labels.tolist() == [0, 1]
    assert test.labels is not None and test.labels.tolist() == [2]


def test_a_file_of_labels_that_lies_elsewhere(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    (tmp_path / "mine.json").write_text(json.dumps(LABELS))
    with open_source(str(folder), labels=tmp_path / "mine.json") as source:
        assert source.classes == ["7", "11", "7"] and source.names == ["7", "11"]
    with pytest.raises(DataError, match="absent.csv can't be read"):
        with open_source(str(folder), labels=tmp_path / "absent.csv"):
            pass
    with pytest.raises(ConfigError, match="its labels in a column"):
        with open_source("hf:cats", labels=tmp_path / "mine.json"):
            pass

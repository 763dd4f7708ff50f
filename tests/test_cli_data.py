"""``trilemma data check`` and ``trilemma data prepare``: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trilemma import api
from trilemma.cli import main
from trilemma.data import load_data

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with some pictures in a folder called photos."""
    (tmp_path / "photos").mkdir()
    random = np.random.RandomState(0)
    for i in range(6):
        Image.fromarray(random.randint(0, 256, (32, 32 + i // 5 * 16, 3)).astype(np.uint8)).save(
            tmp_path / "photos" / f"{i}.png"
        )
    (tmp_path / "photos" / "broken.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_prints_a_table_or_json(here: Path, capsys: Capture) -> None:
    main(["data", "check", "photos"])
    out = capsys.readouterr().out
    for word in (
        "6 of folder photos",
        "PNG 6",
        "32x32 5, 48x32 1",
        "broken.png: not a picture",
        "checks/photos/contact",
    ):
        assert word in out, word
    main("data check photos --json --out mine".split())
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((here / "mine" / "check.json").read_text())
    assert found["images"] == 6 and found["contact_sheet"] == "mine/contact.png"


def test_prepare_prints_the_folder_and_names_what_it_passed_over(here: Path, capsys: Capture) -> None:
    (here / "leave.txt").write_text("0.png\n\n3.png\n")
    main("data prepare photos --size 16 --gray --crop pad --filter box --without leave.txt".split())
    out, err = capsys.readouterr()
    assert out == "prepared/photos-16\n"
    assert "skipped 1 file: broken.png: not a picture" in err
    data = load_data("prepared/photos-16")
    assert data.spec.shape == (1, 16, 16) and len(data) == 4
    index = json.loads((here / out.strip() / "prepared.json").read_text())
    assert index["settings"] == {"size": 16, "gray": True, "crop": "pad", "filter": "box"}


def test_labels_from_a_file(here: Path) -> None:
    (here / "labels.csv").write_text("file,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(6)))
    folder = api.prepare_data("photos", size=16, labels="labels.csv", out="out")
    assert load_data(str(folder)).class_names == ("a", "b")
    assert api.check_data("photos", labels="labels.csv")["classes"] == {"a": 3, "b": 3}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("data", "data: missing"),
        ("data chek photos", "Expected one of 'check', 'prepare'"),
        ("data check", "data: missing"),
        ("data check photos --size 32", "--size: for data prepare, not for data check"),
        ("data check photos --gray --crop pad", "--gray, --crop: for data prepare"),
        ("data prepare photos --json", "--json: for data check, not for data prepare"),
        ("data prepare photos --sise 3", "unknown flag '--sise': did you mean --size?"),
        ("data prepare photos --size 0", "--size 0: must be at least 1 pixel"),
        ("data prepare photos --crop pad", "--crop pad needs --size"),
        ("data prepare photos --crop all", "Expected one of 'center', 'none', 'pad'"),
        ("data prepare photos", "5.png becomes 48x32 and 0.png 32x32: all must have one shape"),
        ("data prepare photos --size 8 --without gone.txt", "--without gone.txt can't be read as text"),
        ("data prepare photos --size 8 --labels gone.csv", "gone.csv can't be read"),
        ("data prepare photos --size 8 --out photos", "photos is not empty and holds no prepared images"),
        ("data prepare nothing", "nothing is neither a folder nor a zip"),
        ("data check nothing", "nothing is neither a folder nor a zip"),
        ("data check digits", "digits is a known set, ready as it is"),
        ("data prepare MNIST", "MNIST is a known set, ready as it is"),
        ("data check photos/broken.png", "is neither a folder nor a zip"),
        ("data check none.tar", "no file is called none.tar"),
        ("data prepare hf:a:b:c:d", "must be hf:NAME"),
    ],
)
def test_bad_input_is_one_line(here: Path, capsys: Capture, line: str, problem: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert problem in err and err.startswith("trilemma: ") and err.count("\n") == 1
    assert not list(here.rglob("*.npy")) and not list(here.rglob("*.json"))


def test_an_interrupted_check_promises_nothing(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "check_data", interrupted)
    with pytest.raises(SystemExit) as caught:
        main("data check photos".split())
    assert caught.value.code == 130
    assert capsys.readouterr().err == "trilemma: interrupted\n"


def test_an_interrupted_preparation_says_how_it_goes_on(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "prepare_data", interrupted)
    with pytest.raises(SystemExit) as caught:
        main("data prepare photos --size 8".split())
    assert caught.value.code == 130
    assert capsys.readouterr().err == "trilemma: interrupted; the same command goes on\n"

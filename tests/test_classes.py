"""Classes by name, by the command line: from a labelled folder to images of one class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trilemma.cli import main

RECIPE = """
method = "stylegan2"
[data]
size = 8
[options]
conditional = true
path_weight = 0.0
[options.mapping]
z_dim = 8
w_dim = 8
layers = 2
[options.generator]
channel_base = 64
channel_max = 8
[options.discriminator]
channel_base = 64
channel_max = 8
mapping_layers = 2
[training]
batch_size = 4
images = 12
ema_decay = 0.0
snapshots = 0
watch_samples = 0
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps on dark cats, gray dogs and bright birds."""
    folder = tmp_path_factory.mktemp("named")
    random = np.random.RandomState(0)
    for name, level in (("cats", 20), ("dogs", 120), ("birds", 220)):
        (folder / "pets" / name).mkdir(parents=True)
        for i in range(4):
            pixels = random.randint(level - 20, level + 20, (8, 8)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pets" / name / f"{i}.png")
    (folder / "mine.toml").write_text(RECIPE)
    data, recipe, out = (str(folder / name) for name in ("pets", "mine.toml", "run"))
    main(["train", "stylegan2", "--data", data, "--recipe", recipe, "--out", out])
    return folder / "run"


def sampled(run: Path, folder: Path, *choice: str) -> NDArray[np.uint8]:
    main(["sample", str(run), "--n", "2", "--out", str(folder / "some.npz"), *choice])
    with np.load(folder / "some.npz") as arrays:
        images: NDArray[np.uint8] = arrays["images"]
    return images


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_a_class_is_asked_for_by_its_name_or_number(run: Path, tmp_path: Path) -> None:
    assert json.loads((run / "config.json").read_text())["data"]["class_names"] == ["birds", "cats", "dogs"]
    cats, dogs = sampled(run, tmp_path, "--class", "cats"), sampled(run, tmp_path, "--class", "dogs")
    assert np.array_equal(cats, sampled(run, tmp_path, "--class", "1"))
    assert np.array_equal(cats, sampled(run, tmp_path, "--label", "1"))
    assert not np.array_equal(cats, dogs)


def test_an_unknown_class_is_refused_with_all_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, "sample", str(run), "--class", "cat")
    assert "unknown class 'cat': did you mean 'cats'? known: birds, cats, dogs" in text
    assert "label must be from 0 to 2, not 3" in refusal(capsys, "sample", str(run), "--class", "3")


def test_runs_of_before_have_numbers_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = Path(shutil.copytree(run, tmp_path / "old"))
    config = json.loads((old / "config.json").read_text())
    del config["data"]["class_names"]
    (old / "config.json").write_text(json.dumps(config))
    assert np.array_equal(sampled(old, tmp_path, "--class", "1"), sampled(run, tmp_path, "--class", "cats"))
    text = refusal(capsys, "sample", str(old), "--class", "cats")
    assert "--class cats: this run does not know the names of classes: give a number" in text
    config["data"]["class_names"] = {"cats": 1}
    (old / "config.json").write_text(json.dumps(config))
    assert "data.class_names is no list of names" in refusal(capsys, "sample", str(old), "--class", "cats")


def test_a_name_goes_before_a_number(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    config["data"]["class_names"] = ["1", "2", "3"]
    (other / "config.json").write_text(json.dumps(config))
    assert np.array_equal(sampled(other, tmp_path, "--class", "2"), sampled(run, tmp_path, "--class", "1"))

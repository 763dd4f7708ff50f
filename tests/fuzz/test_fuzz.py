"""Files that are broken or evil: each ends in a named error of one line, or is counted among what was passed over.

The files come from `hostile`. Whatever they hold, no other kind of error gets out, and nothing is written but what was
asked for. That they cost neither memory nor time is tested in `test_bombs`.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import fake_runs
import hostile
import trilemma
from same_run import Killed, killed_at, quick_plan
from tiny import SPEC, tiny_data, tiny_method
from trilemma.comparison import markdown_table, read_rows
from trilemma.config import build, load_recipe, plain
from trilemma.data import Dataset, load_data
from trilemma.data.given import load_given
from trilemma.data.prepared import prepare
from trilemma.engine.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from trilemma.engine.evaluate import evaluate
from trilemma.engine.generator import Generator
from trilemma.engine.run import Run
from trilemma.engine.train import train
from trilemma.errors import NonFiniteError, TrilemmaError
from trilemma.methods import method_class
from trilemma.report import page
from trilemma.types import Sampler

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and zipfile warn of much of this

pictures, zips, tars, labels, arrays, recipes = (
    cache(make)
    for make in (hostile.pictures, hostile.zips, hostile.tars, hostile.labels, hostile.arrays, hostile.recipes)
)
MOST_SECONDS = 10.0  # of processor time for one file, on a slow machine that is busy; a tenth is usual
MOST_GROWN = 300.0  # MiB
# Names alone: what lies behind them is made from the files of the run in each test.
ANY_SPEC = {"kind": "images", "channels": 1, "height": 8, "width": 8, "classes": 0}
ANY_CONFIG = {"method": "vae", "options": {}, "data": {"name": "digits", "spec": ANY_SPEC}}
ANY_TENSORS = hostile.safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))
SPEC_NAMES = ("data.spec", "channels", "height", "width", "classes")  # of config.json: compare has no use for them


@cache
def changed(make: Callable[[Any], dict[str, bytes]], content: bytes) -> dict[str, bytes]:
    """All that is made from a file of a run: from what it says where it is JSON."""
    return make(json.loads(content) if content[:1] == b"{" else content)


def outcome(action: Callable[[], Any]) -> tuple[Any, str]:
    """What an action returns and "", or None and the one line that says why not. Any other error gets through."""
    try:
        return action(), ""
    except TrilemmaError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 20_000
        return None, text


def everything(folder: Path) -> dict[str, int]:
    """All files below a folder with their sizes."""
    return {str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def peak_mib() -> float:
    """The most memory that this process has had so far, where the system says."""
    if sys.platform != "linux":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.fixture(autouse=True)
def _little_time_and_memory() -> Iterator[None]:
    """Each of these files is small, and takes little of either."""
    began, before = time.process_time(), peak_mib()
    yield
    assert time.process_time() - began < MOST_SECONDS
    assert peak_mib() - before < MOST_GROWN


# Pictures, zips and tars


@pytest.mark.parametrize("name", hostile.pictures())
def test_pictures(tmp_path: Path, name: str) -> None:
    (tmp_path / "good.png").write_bytes(hostile.good())
    (tmp_path / name).write_bytes(pictures()[name])
    before = everything(tmp_path)
    for size in (None, 8):
        data, words = outcome(lambda: load_data(str(tmp_path), size=size))  # noqa: B023
        if words:
            assert "images of 2 sizes" in words and size is None
            continue
        assert isinstance(data, Dataset) and len(data) + len(data.skipped) == 2
        for line in data.skipped:
            assert line.startswith(f"{name}: ") and "\n" not in line and len(line) < 500
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", hostile.zips())
def test_zips(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a" / "b" / "c"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    (inside / "pictures.zip").write_bytes(zips()[name])
    before = everything(tmp_path)
    data, words = outcome(lambda: load_data("pictures.zip", size=8))
    assert everything(tmp_path) == before
    assert words or len(data) >= 1
    for line in () if words else data.skipped:
        assert all(letter.isprintable() for letter in line)


@pytest.mark.parametrize("name", hostile.tars())
def test_tars(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a" / "b" / "c"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    (inside / "pictures.tar").write_bytes(tars()[name])
    before = everything(tmp_path)
    data, words = outcome(lambda: load_data("pictures.tar", size=8))
    assert everything(tmp_path) == before
    assert words or len(data) >= 1
    for line in () if words else (*data.skipped, *data.class_names):
        assert all(letter.isprintable() for letter in line)


@pytest.mark.parametrize("name", hostile.labels())
def test_labels(tmp_path: Path, name: str) -> None:
    for picture in ("good.png", "two.png"):
        (tmp_path / picture).write_bytes(hostile.good())
    (tmp_path / f"labels.{name.split('.')[1]}").write_bytes(labels()[name])
    before = everything(tmp_path)
    data, words = outcome(lambda: load_data(str(tmp_path)))
    assert everything(tmp_path) == before
    assert words or len(data) + len(data.skipped) >= 2
    for line in () if words else (*data.skipped, *data.class_names):
        assert all(letter.isprintable() for letter in line)


@pytest.fixture(scope="module")
def prepared_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a folder of two prepared images of two classes."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("a", "b"):
        (folder / "pictures" / name).mkdir(parents=True)
        (folder / "pictures" / name / "good.png").write_bytes(hostile.good())
    out = prepare(str(folder / "pictures"), folder / "out")
    return {path.name: path.read_bytes() for path in out.iterdir()}


ANY_SPLIT = dict.fromkeys(("source", "images", "shape", "digest", "file_bytes", "modified_ns", "made_from"))
ANY_SPLIT |= dict.fromkeys(("class_names", "labels", "files", "skipped"))
ANY_INDEX = {"format": "", "name": "", "settings": {}, "splits": {"train": {**ANY_SPLIT, "images": 2}}}


@pytest.mark.parametrize("name", hostile.indices(ANY_INDEX))
def test_indices_of_prepared_images(tmp_path: Path, prepared_files: dict[str, bytes], name: str) -> None:
    content = changed(hostile.indices, prepared_files["prepared.json"])[name]
    folder = folder_of(tmp_path / "prepared", prepared_files | {"prepared.json": content})
    before = everything(tmp_path)
    data, words = outcome(lambda: load_data(str(folder), size=8))
    assert everything(tmp_path) == before
    assert words or (len(data) == 2 and data.spec.shape == (1, 8, 8))
    for line in () if words else (data.name, data.source, *data.skipped, *data.class_names):
        assert all(letter.isprintable() for letter in line)


def test_what_a_stopped_preparation_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged record of a part is made anew, a damaged plan is one line."""
    monkeypatch.setattr("trilemma.data.prepared._assemble", lambda *args: (_ for _ in ()).throw(Killed))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "good.png").write_bytes(hostile.good())
    out = tmp_path / "out"
    with pytest.raises(Killed):
        prepare(str(tmp_path / "pictures"), out)
    monkeypatch.undo()
    plan, record = out / ".parts" / "plan.json", out / ".parts" / "train-000000.json"
    whole = json.loads(plan.read_text())
    for sizes in (3, [], {}, {"train": 0}, {"train": "x"}, {"train": 1.5}):
        plan.write_text(json.dumps({**whole, "images_a_part": sizes}))
        assert "plan.json is damaged" in outcome(lambda: prepare(str(tmp_path / "pictures"), out))[1]
    plan.write_text(json.dumps(whole))
    for odd in ("", "3", "{}", '{"good": 3, "skipped": [], "shape": []}', '{"good": [9], "skipped": [], "shape": [1]}'):
        copied = shutil.copytree(out, tmp_path / f"out-{len(odd)}")
        (copied / ".parts" / record.name).write_text(odd)
        assert outcome(lambda: prepare(str(tmp_path / "pictures"), copied))[1] == ""  # noqa: B023
        assert len(load_data(str(copied))) == 1


@pytest.mark.parametrize(
    "name", ["~no-such-user-here/x", "a" * 5000, "a/" * 3000, "\x00", "a\x00b", "", "/dev/null", "\ud800", "file://x"]
)
def test_names_of_data(name: str) -> None:
    _, words = outcome(lambda: load_data(name))
    assert words


@pytest.mark.parametrize("name", hostile.arrays())
def test_arrays(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.npz").write_bytes(arrays()[name])
    found, words = outcome(lambda: load_given(Path("theirs.npz"), SPEC))
    assert words.startswith("theirs.npz") or len(found.data) == 20  # where what was changed does not matter
    assert list(everything(tmp_path)) == [str(tmp_path / "theirs.npz")]


def test_arrays_are_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pickled", "no-array", "header-code", "cut-4"):
        (tmp_path / "theirs.npz").write_bytes(arrays()[name])
        _, words = outcome(lambda: trilemma.evaluate("theirs.npz", data=tiny_data(), cache=False))
        assert words.startswith("theirs.npz")
        assert list(everything(tmp_path)) == [str(tmp_path / "theirs.npz")]


# Settings


@pytest.mark.parametrize("name", hostile.recipes())
def test_recipes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(recipes()[name])

    def read() -> Any:
        recipe = load_recipe(str(path))
        return build(method_class(recipe.method).Options, recipe.options, f"recipe {path}")

    _, words = outcome(read)
    assert words


@pytest.mark.parametrize("name", ["x" * 5000 + ".toml", "/dev/null.toml", "a\x00.toml", "/", "./", "~x.toml"])
def test_names_of_recipes(name: str) -> None:
    assert outcome(lambda: load_recipe(name))[1]


# Run folders


@pytest.fixture(scope="module")
def run_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small run that was never trained."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    method, run = tiny_method("vae"), Run(folder)
    run.save_weights(method.sampling_networks())
    data = {"name": "digits", "spec": plain(SPEC)}
    run.write_config({"method": "vae", "title": "VAE", "data": data, "options": plain(method.options)})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def load_and_sample(folder: Path) -> None:
    """It is refused in one line, or samples as any run does; either way the folder is as before."""
    before = everything(folder)
    generator, words = outcome(lambda: Generator.load(folder, device="cpu"))
    if not words:
        images, words = outcome(lambda: generator.sample(2))
        assert words or (images.dtype == np.uint8 and images.shape[0] == 2)
    assert everything(folder) == before


@pytest.mark.parametrize("name", hostile.configs(ANY_CONFIG))
def test_configs(tmp_path: Path, run_files: dict[str, bytes], name: str) -> None:
    content = changed(hostile.configs, run_files["config.json"])[name]
    load_and_sample(folder_of(tmp_path / "run", run_files | {"config.json": content}))


@pytest.mark.parametrize("name", hostile.tensor_files(ANY_TENSORS))
def test_weights(tmp_path: Path, run_files: dict[str, bytes], name: str) -> None:
    content = changed(hostile.tensor_files, run_files["model.safetensors"])[name]
    load_and_sample(folder_of(tmp_path / "run", run_files | {"model.safetensors": content}))


def test_weights_that_are_no_numbers(tmp_path: Path, run_files: dict[str, bytes]) -> None:
    whole = run_files["model.safetensors"]
    head = int.from_bytes(whole[:8], "little")
    spoilt = whole[: 8 + head] + np.full((len(whole) - 8 - head) // 4, np.nan, "<f4").tobytes()
    generator = Generator.load(folder_of(tmp_path / "run", run_files | {"model.safetensors": spoilt}), device="cpu")
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        generator.sample(1)
    whole_numbers = whole[: 8 + head].replace(b'"F32"', b'"I32"') + whole[8 + head :]
    folder = folder_of(tmp_path / "other", run_files | {"model.safetensors": whole_numbers})
    assert "holds torch.int32, not torch.float32" in outcome(lambda: Generator.load(folder))[1]


@pytest.mark.parametrize("name", hostile.checkpoints(ANY_TENSORS))
def test_checkpoints(tmp_path: Path, name: str) -> None:
    state = {"networks": {"a": {"weight": torch.zeros(3)}}, "steps": [1, (2.5, None)], "progress": {"step": 1}}
    path = save_checkpoint(tmp_path, state, 1, keep=1)
    path.write_bytes(changed(hostile.checkpoints, path.read_bytes())[name])
    found, words = outcome(lambda: load_checkpoint(path))
    assert isinstance(found, dict) or "is not a whole checkpoint" in words


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the VAE that was stopped with two checkpoints."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    with pytest.raises(Killed):
        train(quick_plan("vae"), folder, report=killed_at(3))
    return folder


def resumed(folder: Path) -> tuple[str, list[str]]:
    """The line of refusal, or "" and what was said of a run that went on to its end."""
    said: list[str] = []
    plan = quick_plan("vae")
    _, words = outcome(lambda: train(plan, folder, resume=True, report=lambda p: said.extend(p.warnings)))
    assert (folder / "model.safetensors").is_file() is not bool(words)
    return words, said


def newest(stopped: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The last checkpoint in a copy of the run, and what is in it."""
    path = checkpoints(shutil.copytree(stopped, folder) / "checkpoints")[-1]
    return path, load_checkpoint(path)


@pytest.mark.parametrize("name", list(hostile.checkpoints(ANY_TENSORS))[::3])
def test_a_run_goes_on_from_the_checkpoint_before_one_that_is_none(tmp_path: Path, stopped: Path, name: str) -> None:
    path, _ = newest(stopped, tmp_path / "run")
    path.write_bytes(changed(hostile.checkpoints, path.read_bytes())[name])
    words, said = resumed(tmp_path / "run")
    assert words == "" and len(said) == 1 and f"{path} is damaged" in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("name", hostile.ODD_STATES)
def test_a_run_goes_on_from_the_checkpoint_before_one_that_no_training_wrote(
    tmp_path: Path, stopped: Path, name: str
) -> None:
    path, state = newest(stopped, tmp_path / "run")
    save_checkpoint(path.parent, hostile.with_change(state, hostile.ODD_STATES[name]), 2, keep=9)
    words, said = resumed(tmp_path / "run")
    assert words == "" and len(said) == 1 and f"{path} is damaged" in said[0] and "\n" not in said[0]


@pytest.mark.parametrize("name", hostile.MISFITS)
def test_a_checkpoint_of_other_networks_is_one_line(tmp_path: Path, stopped: Path, name: str) -> None:
    path, state = newest(stopped, tmp_path / "run")
    save_checkpoint(path.parent, hostile.with_change(state, hostile.MISFITS[name]), 2, keep=9)
    words, _ = resumed(tmp_path / "run")
    assert words.startswith(f"{path} does not fit this run's config.json: ") and "delete it" in words
    assert len(checkpoints(path.parent)) == 2


def test_settings_of_an_optimiser_are_those_of_the_run(tmp_path: Path, stopped: Path) -> None:
    """What a checkpoint says of them is not taken: of all that is in its groups only the learning rate changes."""
    path, state = newest(stopped, tmp_path / "run")
    (group,) = state["optimizers"]["autoencoder"]["param_groups"]
    group |= {"betas": "x", "eps": [1], "amsgrad": 3, "fused": "x", "params": ["y"]}
    save_checkpoint(path.parent, state, 2, keep=9)
    assert resumed(tmp_path / "run") == ("", [])


ODD_TRAININGS = {
    "list": [1],
    "text": "x",
    "samples-text": {"score_samples": "x"},
    "samples-minus": {"score_samples": -1},
}


@pytest.mark.parametrize("name", ODD_TRAININGS)
def test_odd_settings_of_a_training(tmp_path: Path, stopped: Path, name: str) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    plan = quick_plan("vae")
    Run(folder).save_weights(method_class("vae")(plan.options, plan.data.spec).sampling_networks())
    Run(folder).write_config({**Run(folder).config(), "training": ODD_TRAININGS[name]})
    assert outcome(lambda: train(plan, folder, resume=True))[1]
    assert "config.json" in outcome(lambda: evaluate(Run(folder), Sampler()))[1]


@pytest.mark.parametrize(("key", "value"), [("path", 3), ("path", [1]), ("digest", 3), ("digest", [1])])
def test_odd_names_of_data(tmp_path: Path, stopped: Path, key: str, value: Any) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    config = Run(folder).config()
    Run(folder).write_config({**config, "data": {**config["data"], key: value}})
    assert f"no usable {key}" in outcome(lambda: Run(folder).config())[1]


def test_a_log_that_a_run_goes_on_from(tmp_path: Path, run_files: dict[str, bytes]) -> None:
    folder = folder_of(tmp_path / "run", run_files)
    for content in hostile.logs('{"step": 14, "images": 3, "seconds": 1.5}\n').values():
        (folder / "log.jsonl").write_bytes(content)
        records = Run(folder).read_log()
        assert all(isinstance(record.get("step", 0), int | float) for record in records)
        Run(folder).trim_log(7)


# Comparison


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an evaluated run."""
    folder = fake_runs.run_folder(tmp_path_factory.mktemp("fuzz") / "run")
    fake_runs.evaluation(folder, pictures=False)
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {"log.jsonl": b"".join(lines[:12])}


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the plot library, which is megabytes and not what is tested."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")


def compare(folder: Path) -> str:
    """The line of refusal, or "" and the page, the table and its Markdown could be made."""
    before, out = everything(folder), folder.parent / "report.html"
    table, words = outcome(lambda: trilemma.compare([folder], out=out))
    assert everything(folder) == before and out.exists() is not bool(words)
    if not words:
        text = io.StringIO()
        Console(file=text, width=180).print(table)
        assert text.getvalue() and markdown_table(read_rows([folder]))
        made = out.read_text(encoding="utf-8")
        assert "<script>alert(1)" not in made
    return words


@pytest.mark.parametrize("name", hostile.evaluations({"row": {}, "scores": {}, "protocol": {}}))
def test_evaluations(tmp_path: Path, scored: dict[str, bytes], name: str) -> None:
    content = changed(hostile.evaluations, scored["eval.json"])[name]
    words = compare(folder_of(tmp_path / "run", scored | {"eval.json": content}))
    assert not words or "eval.json" in words


@pytest.mark.parametrize("name", hostile.logs(""))
def test_logs(tmp_path: Path, scored: dict[str, bytes], name: str) -> None:
    first = scored["log.jsonl"].decode().splitlines(keepends=True)[0]
    words = compare(folder_of(tmp_path / "run", scored | {"log.jsonl": hostile.logs(first)[name]}))
    assert not words or "log.jsonl" in words


@pytest.mark.parametrize("name", [name for name in hostile.configs(ANY_CONFIG) if not name.startswith(SPEC_NAMES)])
def test_configs_of_scored_runs(tmp_path: Path, scored: dict[str, bytes], name: str) -> None:
    content = changed(hostile.configs, scored["config.json"])[name]
    words = compare(folder_of(tmp_path / "run", scored | {"config.json": content}))
    assert not words or "config.json" in words


@pytest.mark.parametrize("name", [name for name in hostile.pictures() if name.endswith(".png")])
def test_pictures_of_scored_runs(tmp_path: Path, scored: dict[str, bytes], name: str) -> None:
    folder = folder_of(tmp_path / "run", scored)
    (folder / "eval" / "default").mkdir(parents=True)
    for place in ("samples", "trajectory"):
        (folder / "eval" / "default" / f"{place}.png").write_bytes(pictures()[name])
    assert compare(folder) == ""


def test_there_are_hundreds_of_them() -> None:
    groups = (
        *(pictures(), zips(), arrays(), recipes(), hostile.configs(ANY_CONFIG), hostile.tensor_files(ANY_TENSORS)),
        *(hostile.checkpoints(ANY_TENSORS), hostile.logs(""), hostile.huge_settings(), tars(), labels()),
        *(hostile.indices(ANY_INDEX), hostile.ODD_STATES, hostile.MISFITS),
    )
    assert sum(map(len, groups)) > 900

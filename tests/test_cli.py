"""The command line: bad input is one line and status 2, results go to standard output and nothing else does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trilemma
from trilemma import api, cli, commands
from trilemma.cli import main
from trilemma.config import load_recipe
from trilemma.engine import bench as benchmark
from trilemma.engine.export import Exported
from trilemma.engine.verify import Verified
from trilemma.measure.roofline import Roofline
from trilemma.types import Sampler

SRC = Path(__file__).resolve().parents[1] / "src"
TINY = (
    "--options.unet.channels 8 --options.latent.nz 4 --options.latent.embedding 8 --options.discriminator.channels 4 "
    "--options.discriminator.embedding 8 --training.batch-size 8 --training.probe-samples 0 --training.snapshots 1 "
    "--images 16"
).split()

Capture = pytest.CaptureFixture[str]


def words(text: str) -> list[str]:
    return text.split()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, made by the command."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    main(["train", "ddgan", "--data", "digits", "--out", str(folder), *TINY])
    return folder


def good(capsys: Capture, *arguments: str) -> str:
    """What a command prints."""
    capsys.readouterr()
    main(list(arguments))
    return capsys.readouterr().out


def bad(capsys: Capture, *arguments: str) -> str:
    """What a command complains of; it writes nothing anywhere."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == "", out
    assert err.startswith("trilemma: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err and "Error(" not in err and "<class" not in err
    assert sorted(Path.cwd().rglob("*")) == before
    return err.removeprefix("trilemma: ").rstrip("\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "frobnicate",
            "unknown command 'frobnicate': known: bench, compare, convert, data, evaluate, export, extractor, list",
        ),
        ("trian ddgan", "unknown command 'trian': did you mean 'train'?"),
        ("train", "train: a method is missing"),
        ("train ddgan", "train: --data is missing: for example trilemma train ddgan --data digits"),
        ("train ddgna --data digits", "unknown method 'ddgna': did you mean 'ddgan'?"),
        ("train ddgan --data digist", "unknown data set 'digist': did you mean 'digits'?"),
        ("train ddgan --data no/where", "none at this one"),
        ("train ddgan --data digits extra", "train: Unrecognized options: extra"),
        ("train ddgan --data digits --imges 5", "unknown flag '--imges': did you mean --images?"),
        (
            "train ddgan --data digits --options.unet.chanels 5",
            "unknown flag '--options.unet.chanels': did you mean --options.unet.channels?",
        ),
        ("train ddgan --data digits --training.batch 5", "did you mean --training.batch-size?"),
        (
            "train ddgan --data digits --recipe ddgan-digit",
            "unknown recipe 'ddgan-digit': did you mean 'ddgan-digits'?",
        ),
        ("train ddgan --data digits --recipe ddpm-digits", "recipe ddpm-digits is for ddpm, not ddgan"),
        ("train ddgan --data digits --recipe mine.toml", "no recipe file mine.toml"),
        ("train ddgan --data digits --seed abc", "train: --seed must be a whole number, not 'abc'"),
        ("train ddgan --data digits --seed", "train: Missing value for argument '--seed'"),
        ("train ddgan --data digits --seed -1", "seed must be from 0 to 2147483647, not -1"),
        ("train ddgan --data digits --seed 2147483648", "seed must be from 0 to 2147483647"),
        ("train ddgan --data digits --images 1.5", "train: --images must be a whole number, not '1.5'"),
        ("train ddgan --data digits --images 0", "--images must be positive, not 0"),
        ("train ddgan --data digits --minutes soon", "train: --minutes must be a number, not 'soon'"),
        ("train ddgan --data digits --minutes -1", "--minutes must be positive, not -1.0"),
        ("train ddgan --data digits --minutes 1 --images 5", "give either --minutes or --images, not both"),
        ("train ddgan --data digits --flops 0", "--flops must be positive, not 0.0"),
        ("train ddgan --data digits --flops 1e12 --images 5", "give one of --minutes, --images and --flops, not two"),
        (
            "train ddgan --data no/where --minutes -1 --seed -1 --training.accumulate 999",
            "--minutes must be positive, not -1.0; seed must be from 0 to 2147483647, not -1; training.accumulate 9",
        ),
        ("train ddgan --data digits --size 0", "--size 0: must be at least 1"),
        ("train ddgan --data gaussians --size 8", "gaussians are points"),
        ("train ddgan --data digits --training.batch-size 0", "batch_size must be at least 1, not 0"),
        ("train ddgan --data digits --training.batch-size x", "--training.batch-size must be a whole number, not 'x'"),
        ("train ddgan --data digits --options.lr-g fast", "--options.lr-g must be a number, not 'fast'"),
        ("train ddgan --data digits --options.num-timesteps 0", "num_timesteps must be at least 1, not 0"),
        (
            "train ddgan --data digits --options.unet.channel-mult 1 two",
            "--options.unet.channel-mult must be whole numbers, not '1 two'",
        ),
        (
            "train ddgan --data digits --options.loss hinge",
            "invalid choice 'hinge' for argument '--options.loss'. Expected one of 'nonsaturating', 'relativistic'",
        ),
        ("train ddgan --data digits --tracker tensorbord", "unknown tracker 'tensorbord': did you mean 'tensorboard'?"),
        ("train ddpm --data digits --training.accumulate 0", "accumulate must be at least 1, not 0"),
        (
            "train ddpm --data digits --training.batch-size 4 --training.accumulate 5",
            "training.accumulate 5 is more than the 4 images of a batch",
        ),
        ("train --forecast ddpm --data digits --resume", "--forecast is for a training from its start"),
        ("sample", "sample: missing PATH a run's folder"),
        ("sample nothing", "no run nothing: give the folder of a trained run"),
        ("sample . --n 0", "--n must be at least 1, not 0"),
        ("sample . --n many", "sample: --n must be a whole number, not 'many'"),
        ("sample . --seed -3", "--seed must be from 0 to 2147483647, not -3"),
        ("sample . --batch-size 0", "--batch-size must be at least 1, not 0"),
        ("sample . --batch-size many", "--batch-size takes a whole number or auto, not 'many'"),
        ("sample . --batch-size auto --u 0,1", "--batch-size auto is for single images: give it a number"),
        ("sample . --variance huge", "Expected one of 'fixed_large', 'fixed_small'"),
        ("sample . --steps four", "--steps takes whole numbers, for example 4 or 1,2,4,8, not 'four'"),
        ("sample . --steps 1,,4", "--steps takes whole numbers, for example 4 or 1,2,4,8, not '1,,4'"),
        ("sample . --steps 1,4 --u 0,1", "--u and --steps are different pictures: choose one"),
        ("sample . -q", "sample: Unrecognized options: -q"),
        ("sample .", ". is not a run: it has no config.json"),
        ("evaluate nothing", "no run nothing"),
        ("evaluate .", ". is not a run"),
        ("evaluate . --seed -1", "--seed must be from 0"),
        ("evaluate . --samples few", "evaluate: --samples must be a whole number, not 'few'"),
        ("evaluate . --repeats many", "evaluate: --repeats must be a whole number, not 'many'"),
        ("evaluate nothing --data digits", "no run nothing"),
        ("compare", "nothing to compare"),
        ("compare nothing", "nothing does not exist"),
        ("bench", "nothing to measure: give at least one run folder"),
        ("bench nothing", "no run nothing"),
        ("bench .", ". is not a run"),
        ("bench . --batches 0", "batches must be at least 1, not 0"),
        ("bench . --batches 4,x", "--batches takes whole numbers, for example 1,16,100, not '4,x'"),
        ("bench . --threads 0", "threads must be at least 1, not 0"),
        ("bench . --threads all", "bench: --threads must be a whole number, not 'all'"),
        ("bench . --repeats 0", "repeats must be at least 1, not 0"),
        ("bench . --seconds -1", "seconds must not be negative, not -1"),
        ("export nothing", "no run nothing"),
        ("export . --format pt", "export: invalid choice 'pt'"),
        ("export . --batch 0", "batch must be at least 1 or dynamic, not 0"),
        ("export . --batch many", "--batch takes a whole number or dynamic, not 'many'"),
        ("export . --tolerance 0", "tolerance must be positive, not 0"),
        ("export . --int8", "int8 is for --format onnx"),
        ("export . --int8 --samples 3", "--samples must be at least 10, not 3"),
        ("export . --samples 100 --fid-rise 1", "--samples and --fid-rise: for --int8 alone, which is not given"),
        ("export . --out a.onnx", "--out a.onnx: the file's name must end in .pt2"),
        ("convert a.pth run", "--config is missing: a ddgan checkpoint needs JSON"),
        ("convert a.pth run --config c.json", "cannot read c.json: No such file or directory"),
        ("convert a.pth run --config c.json --as ddpm", "--as ddpm: only ddgan and stylegan2 checkpoints"),
        ("convert a.pkl run --as stylegan2 --config c.json", "--config: a stylegan2 pickle holds its own settings"),
        ("convert a.pkl run --as stylegan2", "a.pkl cannot be read: it cannot be opened: No such file"),
        ("extractor", "extractor: missing"),
        ("extractor trian digits", "extractor: invalid choice 'trian'"),
        ("extractor train nothing", "unknown data set 'nothing'"),
        ("extractor train gaussians", "points have no feature extractor"),
        ("extractor train digits --seed -1", "--seed must be from 0 to 2147483647, not -1"),
        ("extractor train digits --minutes 1 --images 5", "give either --minutes or --images, not both"),
        ("extractor train digits --images 0", "--images must be positive, not 0"),
        ("extractor train digits --width 0", "--width must be from 1 to 512, not 0"),
        ("extractor train digits --size 4", "images of 4 x 4 pixels are too small"),
        ("extractor train digits --out a.pt", "--out a.pt: give a file that ends in .safetensors"),
        ("race", "race: missing STR"),
        ("race nothing", "unknown data set 'nothing'"),
        ("race digits --methods ddpm,gan", "unknown method 'gan'"),
        ("race digits --methods ,", "--methods needs at least one method"),
        ("race digits --methods ddgan,ddgan", "a race takes each method once"),
        ("race digits --minutes 1 --images 5", "give either --minutes or --images, not both"),
        ("race digits --flops -1", "--flops must be positive, not -1.0"),
        ("race digits --seed -1", "--seed must be from 0"),
        ("race digits --extractor vgg", "unknown extractor 'vgg'"),
        ("race gaussians --extractor digits", "points have no feature extractor"),
        ("list all", "list: Unrecognized options: all"),
    ],
)
def test_bad_input_is_one_line(here: Path, capsys: Capture, line: str, expected: str) -> None:
    assert expected in bad(capsys, *words(line))


def test_a_bad_recipe_file_is_one_line(here: Path, capsys: Capture) -> None:
    for text, expected in (
        (
            'method = "ddgan"\n[training]\nbatch = 3',
            "'training.batch': did you mean 'training.batch_size'?",
        ),
        ('method = "ddgan"\n[options.unet]\nchanels = 3', "unknown key 'unet.chanels': did you mean 'unet.channels'?"),
        (
            'method = "ddgan"\n[options]\nloss = "hinge"',
            "loss must be one of 'nonsaturating', 'relativistic'",
        ),
        ('method = "ddgan', "not valid TOML"),
        ('method = "ddgan"', "has no default budget: give --minutes or --images"),
        ('method = "ddgan"\n[training]\nminutes = 1\nimages = 5', "give either --minutes or --images, not both"),
    ):
        (here / "mine.toml").write_text(text)
        line = bad(capsys, *words("train ddgan --data digits --recipe mine.toml"))
        assert expected in line and ("mine.toml" in line or "either" in line)


def test_bad_data_is_one_line(here: Path, capsys: Capture) -> None:
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    for index in range(3):
        (here / "broken" / f"{index}.png").write_bytes(b"no picture")
    (here / "notes.txt").write_text("hello")
    (here / "cut.zip").write_bytes(b"PK\x03\x04")
    for data, expected in (
        ("empty", "no images in empty"),
        ("broken", "none of the 3 images in broken can be read"),
        ("notes.txt", "neither a folder nor a zip"),
        ("cut.zip", "a broken zip"),
    ):
        for command in ("train ddgan --data", "race"):
            assert expected in bad(capsys, *words(command), data, "--out", "out")


@pytest.mark.parametrize("command", ["train ddgan --data digits", "race digits --methods ddgan"])
def test_a_folder_that_cannot_be_written_is_one_line(here: Path, capsys: Capture, command: str) -> None:
    (here / "file").write_text("")
    assert "cannot write file/out" in bad(capsys, *words(command), "--out", "file/out")
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("")
    if command.startswith("train"):
        assert "full is not empty and not a run" in bad(capsys, *words(command), "--out", "full")


def test_all_that_is_wrong_with_a_sample_is_told_at_once(here: Path, capsys: Capture) -> None:
    line = "sample . --n 0 --seed -1 --batch-size many --steps four --u 0,x --interpolate 1 --class a --label 3"
    text = bad(capsys, *words(line))
    for expected in (
        "--n must be at least 1",
        "--seed must be from 0",
        "--batch-size takes a whole number or auto, not 'many'",
        "--steps takes whole numbers",
        "--u takes points of the path",
        "--interpolate takes two samples, not [1]",
        "--u and --interpolate are different pictures",
        "--class and --label both name the class",
    ):
        assert expected in text, expected
    both = bad(capsys, *words("bench . --steps one --batches 4,x"))
    assert "--steps takes" in both and "--batches takes" in both


def test_bad_uses_of_a_run_are_one_line(run: Path, here: Path, capsys: Capture) -> None:
    (here / "file").write_text("")
    folder = str(run)
    for line, expected in (
        ("sample RUN --out grid.jpg", "give a .png grid, an .npz file or a folder"),
        ("sample RUN --out steps.npz --trajectory", "a trajectory is a picture"),
        ("sample RUN --out file/grid.png", "cannot write file/grid.png"),
        ("sample RUN --steps 7", "trained for 4 steps, not 7"),
        ("sample RUN --steps 2,4", "trained for 4 steps, not 2"),
        ("sample RUN --steps 4,4 --trajectory", "--trajectory and --steps are different pictures: choose one"),
        ("sample RUN --steps 4,4 --out grid.npz", "a trajectory is a picture"),
        ("bench RUN --steps 4,7", "trained for 4 steps, not 7"),
        ("export RUN --steps 7", "trained for 4 steps, not 7"),
        ("export RUN --eta 0.5", "no sampler setting eta"),
        ("export RUN --out file/a.pt2", "cannot write file/a.pt2"),
        ("sample RUN --eta 0.5", "no sampler setting eta"),
        ("sample RUN --truncation 0.5", "no sampler setting truncation"),
        ("sample RUN --label 3", "no sampler setting label"),
        ("sample RUN --class 3", "no sampler setting label"),
        ("sample RUN --class three", "unknown class 'three': known: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("sample RUN --class 3 --label 3", "--class and --label both name the class"),
        ("export RUN --class three", "unknown class 'three'"),
        ("sample RUN --u 0,1", "makes no path from noise to image"),
        ("sample RUN --u 0,x", "--u takes points of the path, for example 0,0.25,0.5,0.75,1, not '0,x'"),
        ("sample RUN --interpolate 0,1", "has no latent space to walk through"),
        ("sample RUN --interpolate 1", "--interpolate takes two samples, not [1]"),
        ("sample RUN --interpolate 0,b", "--interpolate takes two samples' numbers, for example 0,1, not '0,b'"),
        ("sample RUN --u 0,1 --trajectory", "--trajectory and --u are different pictures: choose one"),
        ("sample RUN --u 0,1 --out path.npz", "a trajectory is a picture"),
        ("evaluate RUN --samples 3", "--samples must be at least 10, not 3"),
        ("evaluate RUN --steps 7", "trained for 4 steps, not 7"),
        ("evaluate RUN --data gaussians", "gaussians are points"),
        ("evaluate RUN --repeats 0", "--repeats must be at least 1, not 0"),
        ("evaluate RUN --name mine --size 8", "--name, --size: only for images of another program"),
        ("evaluate file", "--data is missing: name the reference that the images in file are compared with"),
        ("evaluate file --data digits", "file is neither a folder nor a zip"),
        ("evaluate file --data digits --steps 4", "--steps: file holds images, which are scored as they are"),
        ("evaluate file --data digits --repeats 2", "--repeats: file holds images"),
        ("evaluate RUN --extractor inception --extractor-weights none.pth", "none.pth"),
        ("evaluate RUN --extractor vgg", "unknown extractor 'vgg'"),
        ("evaluate RUN --extractor clip --extractor-weights none.pt", "none.pt"),
        ("evaluate RUN --extractor none.safetensors", "no extractor file none.safetensors"),
        ("compare RUN", "has not been evaluated"),
        ("train ddgan --data digits --out RUN", "holds a run already: go on with --resume or choose another folder"),
        ("train ddgan --data digits --out RUN --resume", "was trained with another options"),
        ("convert file RUN --config file", "is in use: give a new folder"),
    ):
        if "compare" in line and (run / "eval.json").exists():
            continue  # another test has evaluated it by then
        assert expected in bad(capsys, *words(line.replace("RUN", folder)))


def test_a_near_name_of_a_run_is_offered(run: Path, capsys: Capture) -> None:
    assert f"did you mean {run}?" in bad(capsys, "sample", f"{run}e")


# What works


def test_a_run_from_training_to_comparison(here: Path, capsys: Capture) -> None:
    assert good(capsys, *words("train ddgan --data digits --out a --seed 7"), *TINY) == "a\n"
    config = json.loads((here / "a" / "config.json").read_text())
    assert config["seed"] == 7 and config["options"]["unet"]["channels"] == 8 and config["training"]["batch_size"] == 8
    assert good(capsys, *words("sample a --n 10 --out grid.png")) == "grid.png\n"
    assert good(capsys, *words("sample a --n 3 --out singles")) == "singles\n"
    assert len(list((here / "singles").iterdir())) == 3
    good(capsys, *words("sample a --n 3 --out s.npz"))
    with np.load(here / "s.npz") as arrays:
        assert arrays["images"].shape == (3, 8, 8, 1)
    good(capsys, *words("sample a --n 2 --trajectory --out steps.png"))
    result = json.loads(good(capsys, *words("evaluate a --samples 12 --json")))
    assert result == json.loads((here / "a" / "eval.json").read_text())
    assert "DDGAN, T = 4" in good(capsys, *words("compare a --out page.html"))
    assert (here / "page.html").read_text().startswith("<!doctype html>") or (here / "page.html").stat().st_size > 1000
    table = good(capsys, *words("evaluate a --samples 12"))
    assert "fid" in table and "nfe" in table
    assert "caution, fid: 12 samples in " in table and "\ncaution, recall: 12 samples: too sparse" in table
    assert "caution, FID: 12 samples in " in good(capsys, *words("compare a --out page.html"))


def test_images_of_another_program_beside_the_run_that_made_them(run: Path, here: Path, capsys: Capture) -> None:
    """The same images have the same scores, whether the run makes them or they come in a file."""
    shutil.copytree(run, here / "mine")
    good(capsys, *words("sample mine --n 12 --out theirs.npz"))
    own = json.loads(good(capsys, *words("evaluate mine --samples 12 --json")))
    result = json.loads(good(capsys, *words("evaluate theirs.npz --data digits --json")))
    theirs = {name: value for name, value in result["scores"].items() if value is not None}
    assert {"fid", "recall", "coverage", "near_copies"} <= theirs.keys()
    assert theirs == {name: value for name, value in own["scores"].items() if name in theirs}
    assert own["intervals"] == result["intervals"]
    assert own["protocol"]["fingerprint"] == result["protocol"]["fingerprint"]
    main(words("evaluate theirs.npz --data digits --name Theirs --out runs/second --no-cache"))
    out, err = capsys.readouterr()
    assert "scores: runs/second\n" in out and "—" in out
    assert "scored all 12 images" in err
    table = good(capsys, *words("compare mine runs/theirs runs/second --out page.html"))
    assert "Theirs" in table and "from npz files" in table


def test_rows_that_were_not_scored_alike_need_force(run: Path, here: Path, capsys: Capture) -> None:
    shutil.copytree(run, here / "a")
    shutil.copytree(run, here / "b")
    good(capsys, *words("evaluate a --samples 12"))
    good(capsys, *words("evaluate b --samples 13"))
    line = bad(capsys, *words("compare a b"))
    assert (
        "number of generated samples is 12 (DDGAN, T = 4 (a)) and 13 (DDGAN, T = 4 (b))" in line and "--force" in line
    )
    assert "number of generated samples differs" in good(capsys, *words("compare a b --force"))


def test_repeats_show_the_width_of_a_score(run: Path, here: Path, capsys: Capture) -> None:
    shutil.copytree(run, here / "a")
    table = good(capsys, *words("evaluate a --samples 12 --repeats 2"))
    assert next(line for line in table.splitlines() if "fid" in line).count("±") == 1
    assert "±" in good(capsys, *words("compare a"))


def test_steps_side_by_side(run: Path, here: Path, capsys: Capture) -> None:
    assert good(capsys, "sample", str(run), *words("--n 3 --steps 4,4 --out steps.png")) == "steps.png\n"
    good(capsys, "sample", str(run), *words("--n 3 --steps 4 --out one.png"))
    steps, one = (np.asarray(Image.open(here / name)) for name in ("steps.png", "one.png"))
    assert one.shape == (36, 3 * 34 + 2)  # a single number is a plain grid
    pitch = (steps.shape[1] - 2) // 2
    factor = (pitch - 2) // 8
    for column in range(2):
        left = 2 + column * pitch
        tile = steps[2 : 2 + 8 * factor : factor, left : left + 8 * factor : factor]
        assert np.array_equal(tile, one[2:34:4, 2:34:4])


def test_a_bench_from_the_command_line(run: Path, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measure_roofline", lambda device: Roofline(1e9, 1e9))
    folder = shutil.copytree(run, here / "a")
    line = words("bench a --batches 2 --repeats 1 --threads 1")
    result = json.loads(good(capsys, *line, "--json"))
    assert result == json.loads((folder / "bench.json").read_text())
    assert [entry["batch"] for entry in result["rows"][0]["batches"]] == [1, 2]
    table = good(capsys, *line)
    assert "DDGAN, T = 4" in table and "of the roof" in table and "1 thread, " in table
    assert len(json.loads(good(capsys, *words("bench a a --batches 1 --repeats 1 --json")))) == 2


@pytest.mark.parametrize(("batch", "size"), [("16", "16"), ("dynamic", "N")])
def test_an_export_says_what_goes_in(capsys: Capture, monkeypatch: pytest.MonkeyPatch, batch: str, size: str) -> None:
    asked: list[Any] = []

    def export(run: Path, **settings: Any) -> Exported:
        asked.append((run, settings))
        return Exported(Path("a.onnx"), {"x_T": (1, 8, 8), "z": (4,)}, settings["batch"], 3e-6, 0.002, 0.003)

    monkeypatch.setattr(api, "export", export)
    main(words(f"export a --format onnx --batch {batch} --steps 10 --eta 0.5 --tolerance 0.01"))
    out, err = capsys.readouterr()
    assert out == "a.onnx\n"
    assert err.splitlines() == [
        f"x_T: {size} x 1 x 8 x 8",
        f"z: {size} x 4",
        "largest difference from PyTorch: 3e-06",
        "a batch takes 2 ms, 1.50 times as fast as PyTorch",
    ]
    ((run, settings),) = asked
    assert run == Path("a") and settings["batch"] == (None if batch == "dynamic" else 16)
    assert settings["sampler"] == Sampler(steps=10, eta=0.5) and settings["tolerance"] == 0.01
    assert settings["format"] == "onnx" and settings["out"] is None


def test_an_interrupted_training_goes_on(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    show = commands.Line.show

    def interrupted(self: commands.Line, share: float, note: str = "") -> None:
        show(self, share, note)
        raise KeyboardInterrupt

    line = [*words("train ddgan --data digits --out a --training.checkpoint-minutes 0"), *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(commands.Line, "show", interrupted)
        with pytest.raises(SystemExit) as caught:
            main(line)
    assert caught.value.code == 130
    assert "interrupted; go on with --resume" in capsys.readouterr().err
    assert good(capsys, *line, "--resume") == "a\n"
    assert (here / "a" / "model.safetensors").is_file()


def test_a_forecast_says_what_a_training_would_take_and_makes_none(here: Path, capsys: Capture) -> None:
    said = good(capsys, *words("train ddpm --data gaussians --images 800 --training.batch-size 8 --forecast"))
    assert "of training for 100 steps, 800 images" in said.splitlines()[0]
    assert "\ndisk: " in said and list(here.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    show = commands.Line.show

    def signalled(self: commands.Line, share: float, note: str = "") -> None:
        show(self, share, note)
        os.kill(os.getpid(), number)

    line = [*words("train ddgan --data digits --out a"), *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(commands.Line, "show", signalled)
        with pytest.raises(SystemExit) as caught:
            main(line)
    assert caught.value.code == status
    assert (
        "trilemma: a: stopped after 1 step, all saved: go on with the same command and --resume\n"
        in capsys.readouterr().err
    )
    assert [path.name for path in (here / "a" / "checkpoints").iterdir()] == ["step-000000001.safetensors"]
    assert good(capsys, *line, "--resume") == "a\n"


@pytest.mark.parametrize(("difference", "status"), [(None, 0), ("networks/generator/w", 1)])
def test_what_a_verification_found(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, difference: str | None, status: int
) -> None:
    asked: list[Any] = []

    def verify(*args: Any, **settings: Any) -> Verified:
        asked.append((args, settings["steps"], settings["kill_in"]))
        return Verified(difference, 12, 8, 3)

    monkeypatch.setattr(api, "verify_resume", verify)
    with pytest.raises(SystemExit) as caught:
        main(words("verify-resume ddgan --data gaussians --steps 8 --kill-in 3"))
        sys.exit(0)
    assert caught.value.code == status and asked == [(("ddgan", "gaussians"), 8, 3)]
    how = "12 tensors after 8 steps, killed in step 3 and resumed"
    said = f"bit-identical: {how}\n" if difference is None else f"{difference} differs ({how})\n"
    assert capsys.readouterr().out == said


def test_a_broken_image_among_good_ones_is_named(here: Path, capsys: Capture) -> None:
    (here / "photos").mkdir()
    for index in range(12):
        Image.fromarray(np.full((8, 8), 20 * index, np.uint8)).save(here / "photos" / f"{index}.png")
    (here / "photos" / "torn.png").write_bytes((here / "photos" / "3.png").read_bytes()[:40])
    main([*words("train ddgan --data photos --size 16 --out a"), *TINY])
    out, err = capsys.readouterr()
    assert out == "a\n"
    (line,) = [line for line in err.splitlines() if "skipped" in line]
    assert line.startswith("skipped 1 file: ") and "torn.png" in line
    assert len(json.loads((here / "a" / "config.json").read_text())["data"]["skipped"]) == 1
    for index in range(4):
        (here / "photos" / f"torn{index}.png").write_bytes(b"no picture")
    main([*words("train ddgan --data photos --size 16 --out b"), *TINY])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert line.startswith("skipped 5 files: ") and line.endswith("; ...") and line.count(".png: ") == 3


def test_the_list(capsys: Capture) -> None:
    text = good(capsys, "list")
    for name in ("methods:", "  ddgan ", "  ddpm ", "recipes:", "  ddgan-digits ", "data:", "  gaussians "):
        assert f"\n{name}" in f"\n{text}"


@pytest.mark.parametrize("line", ["", "-h", "--help", "help"])
def test_help(capsys: Capture, line: str) -> None:
    text = good(capsys, *words(line))
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)


def test_version(capsys: Capture) -> None:
    assert good(capsys, "--version") == f"{trilemma.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_names_its_flags(capsys: Capture, name: str) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in cli.flags(cli.COMMANDS[name]):
        if flag.removeprefix("--") not in cli.POSITIONAL.get(name, ()):
            assert flag in text, flag


def test_help_of_train_explains_the_settings_of_the_recipe(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["train", "ddgan", "--data", "mnist", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    channels = load_recipe("ddgan-mnist").options["unet"]["channels"]
    assert f"--options.unet.channels INT width of the first level (default: {channels})" in text
    assert "--data STR digits, mnist" in text
    assert "--training.batch-size INT" in text


def test_flags_become_settings() -> None:
    """Values, lists and switches, which have two flags whatever the recipe says."""
    line = "--data digits ddgan --options.lr_g=0.5 --options.unet.channel-mult 1 2 2 --resume --training.images 5"
    command = cli._parse_train(words(line))
    assert command.method == "ddgan" and command.resume is True and command.training.images == 5
    assert command.options.lr_g == 0.5 and command.options.unet.channel_mult == (1, 2, 2)
    for fir in (True, False):
        flag = "--options.unet.fir" if fir else "--options.unet.no-fir"
        assert cli._parse_train(["ddgan", "--data", "digits", flag]).options.unet.fir is fir
    assert cli.parse(cli.Convert, "convert", words("a b --config c --as x")).as_ == "x"
    assert cli.parse(cli.Compare, "compare", words("a b c")).runs == (Path("a"), Path("b"), Path("c"))
    assert cli.parse(cli.Sample, "sample", words("a --steps 1,2,4,8")).steps == "1,2,4,8"
    assert cli.parse(cli.Bench, "bench", words("a b --threads 2")).runs == (Path("a"), Path("b"))
    assert tuple(map(int, cli.Bench.batches.split(","))) == benchmark.BATCHES


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(command: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(commands, "run_list", gone)
    with pytest.raises(SystemExit) as caught:
        main(["list"])
    assert caught.value.code == 141


def test_standard_output_is_json_alone(run: Path) -> None:
    """In a process of its own, where nothing stands between the libraries and the terminal."""
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-m", "trilemma", "evaluate", str(run), "--json", "--samples", "12"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["row"]["method"] == "ddgan"
    assert "Warning" not in done.stderr


def test_bad_input_in_a_process_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-m", "trilemma", "sample", "run", "--n", "many"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "trilemma: sample: --n must be a whole number, not 'many'\n"
    assert not list(tmp_path.iterdir())

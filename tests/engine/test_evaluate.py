"""Scores of a run: what eval.json holds, what counts as an evaluation, and what is refused."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from tiny import tiny_data
from trilemma.cli import Evaluate, parse
from trilemma.data import known, load_data
from trilemma.engine import evaluate as evaluation
from trilemma.engine.again import evaluation_command
from trilemma.engine.evaluate import eval_path, evaluate, is_current
from trilemma.engine.generator import Generator
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, DataError, RunError
from trilemma.measure.classifier import Classifier, NetworkOptions, save_classifier
from trilemma.measure.digits_cnn import WEIGHTS
from trilemma.protocol import fingerprint
from trilemma.types import Sampler

Runs = Callable[[str], Path]
SPEED = {"nfe", "seconds_per_image_batch_1", "images_per_second_batch_100"}
UNSURE = {"fid", "kid", "inception_score", "precision", "recall", "density", "coverage"}  # those with a jackknife
FIDELITY = UNSURE | {"near_copies", "fid_infinity"}
MODES = {"modes", "share_within_4_sigma", "kl"}


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One repeat at each batch size: how long it takes is the subject of other tests."""
    timed = evaluation.speed_scores
    monkeypatch.setattr(evaluation, "speed_scores", lambda *args, **kwargs: timed(*args, **kwargs, limit_seconds=0.0))


def small(n: int = 100) -> Any:
    """A few digits as the reference."""
    data = tiny_data()
    return replace(data, x=data.x[:n])


def test_an_evaluation_holds_what_it_should(copied: Runs) -> None:
    folder = copied("ddgan")
    result = evaluate(Run(folder), Sampler(), samples=20)
    assert result == json.loads((folder / "eval.json").read_text())
    assert result["row"] == {
        "title": "DDGAN, T = 4",
        "method": "ddgan",
        "family": "denoising GAN",
        "paper": "Xiao et al. 2022",
        "sampler": "4 steps",
        "tag": "default",
    }
    assert result["scores"].keys() == FIDELITY | SPEED
    assert all(isinstance(value, float) for value in result["scores"].values())
    assert result["scores"]["nfe"] == 4
    protocol = result["protocol"]
    assert protocol["data"] == "digits" and protocol["data_digest"] == tiny_data().digest
    assert protocol["generated_samples"] == 20 and protocol["reference_samples"] == len(tiny_data())
    assert protocol["extractor"] and protocol["extractor_digest"] and protocol["steps"] is None
    assert protocol["seeds"] == "seed 0, samples 0 to 19"
    assert protocol["training_images"] == 24 and protocol["training_seconds"] > 0
    assert protocol["parameters"] == sum(
        p.numel() for p in Run(folder).build_method().networks()["generator"].parameters()
    )
    wanted = {"split", "repeats", "threads", "hardware", "versions", "seconds", "size", "resize", "reference_seed"}
    assert wanted <= protocol.keys()
    assert protocol["lossless"] is True and protocol["precision"] == "float32" and protocol["sampling_repeats"] == 1
    assert protocol["fingerprint"] == fingerprint(protocol)
    assert result["intervals"].keys() == UNSURE
    for name, (low, high) in result["intervals"].items():
        assert low < result["scores"][name] < high
    assert protocol["copies"]["pixels"]["near_copies"] == result["scores"]["near_copies"]
    assert "fid" in protocol["cautions"]  # 20 samples in 64 dimensions
    assert protocol["command"] == f"trilemma evaluate {folder} --samples 20"


@pytest.mark.parametrize("name", ["ddgan", "points"])
def test_pictures_lie_beside_it(copied: Runs, name: str) -> None:
    folder = copied(name)
    evaluate(Run(folder), Sampler(), samples=12, data=None if name == "points" else small())
    for picture in ("samples.png", "trajectory.png", *(() if name == "points" else ("neighbours.png", "worst.png"))):
        with Image.open(folder / "eval" / "default" / picture) as opened:
            opened.load()
            assert min(opened.size) >= (64 if picture == "worst.png" else 130)


def test_another_sampler_has_a_file_of_its_own(copied: Runs) -> None:
    folder = copied("ddpm")
    result = evaluate(Run(folder), Sampler(steps=5), samples=12, data=small())
    assert [path.name for path in folder.glob("eval*.json")] == ["eval-ddim5.json"]
    assert (folder / "eval" / "ddim5" / "samples.png").is_file()
    assert result["row"]["tag"] == "ddim5" and result["row"]["title"] == "DDPM, DDIM, 5 steps"
    assert result["scores"]["nfe"] == 5 and result["protocol"]["steps"] == 5


def test_points_are_scored_by_their_modes(copied: Runs) -> None:
    result = evaluate(Run(copied("points")), Sampler(), samples=50)
    assert result["scores"].keys() == MODES | SPEED
    assert result["intervals"].keys() == MODES
    assert all(low <= result["scores"][name] <= high for name, (low, high) in result["intervals"].items())
    assert result["protocol"]["generated_samples"] == 50
    with pytest.raises(ConfigError, match="points are scored by their modes"):
        evaluate(Run(copied("ddgan").parent / "copy-points"), Sampler(), extractor_name="digits")


def test_progress_is_told(copied: Runs) -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(Run(copied("points")), Sampler(), samples=150, report=lambda *what: told.append(what))
    assert told == [("samples", 100, 150), ("samples", 150, 150), ("seconds", 150, 150)]


def test_data_that_changed_since_is_refused(copied: Runs) -> None:
    """Whether it was trained on other data, or the data under that name is no more what it was."""
    path = copied("ddgan") / "config.json"
    config = json.loads(path.read_text())
    config["data"]["digest"] = "0" * 64
    path.write_text(json.dumps(config))
    with pytest.raises(RunError, match="trained on digits with digest 000000000000, but that data now has"):
        evaluate(Run(path.parent), Sampler(), samples=12)
    assert not list(path.parent.glob("eval*"))
    evaluate(Run(path.parent), Sampler(), samples=12, data="digits")  # named on purpose


@pytest.mark.parametrize(
    ("name", "settings", "error", "words"),
    [
        ("ddgan", {"samples": 9}, ConfigError, "--samples must be at least 10, not 9"),
        ("ddgan", {"seed": -1}, ConfigError, "seed must be"),
        ("ddgan", {"repeats": 0}, ConfigError, "--repeats must be at least 1, not 0"),
        ("ddgan", {"repeats": 2, "seed": 2**31 - 1}, ConfigError, "--repeats 2 from seed 2147483647 on goes beyond"),
        ("ddgan", {"sampler": Sampler(steps=2)}, ConfigError, "trained for 4 steps"),
        ("ddgan", {"data": "gaussians"}, ConfigError, "gaussians are points"),
        ("ddgan", {"data": "/nonexistent"}, DataError, "unknown data set|none at this one"),
        ("ddgan", {"data": "few"}, DataError, "has 9 samples, but scores need 10"),
        ("points", {"data": "unknown modes"}, DataError, "no known modes"),
        ("points", {"data": "few"}, DataError, "has shape"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_work(
    copied: Runs, name: str, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    known = {"few": small(9), "unknown modes": replace(tiny_data("gaussians"), modes=None)}
    settings = {"sampler": Sampler(), **settings}
    settings["data"] = known.get(settings.get("data", ""), settings.get("data"))
    folder = copied(name)
    with pytest.raises(error, match=words):
        evaluate(Run(folder), **settings)
    assert not list(folder.glob("eval*"))


def test_scores_are_current_until_the_run_is_trained_on(copied: Runs) -> None:
    run, sampler = Run(copied("points")), Sampler()
    method = run.build_method()
    assert not is_current(run, method, sampler)
    evaluate(run, sampler, samples=10)
    assert is_current(run, method, sampler)
    run.log({"step": 99, "images": 999, "seconds": 9.9})
    assert not is_current(run, method, sampler)
    eval_path(run, method, sampler).write_text("{")
    assert not is_current(run, method, sampler)


def test_repeats_are_the_mean_over_disjoint_seeds(copied: Runs) -> None:
    run = Run(copied("ddgan"))
    single = [evaluate(run, Sampler(), samples=12, seed=seed, data=small()) for seed in (3, 4, 5)]
    told: list[tuple[str, int, int]] = []
    result = evaluate(
        run, Sampler(), samples=12, seed=3, repeats=3, data=small(), report=lambda *what: told.append(what)
    )
    scored = FIDELITY - {"fid_infinity"}  # which 12 samples are too few for
    assert result["intervals"].keys() == scored  # the clock has quartiles of its own
    for name in scored:
        values = [one["scores"][name] for one in single]
        mean = sum(values) / 3
        assert result["scores"][name] == pytest.approx(mean, rel=1e-12)
        half = stats.t.ppf(0.975, 2) * stats.sem(values)
        assert result["intervals"][name] == pytest.approx([mean - half, mean + half], rel=1e-9, abs=1e-12)
    assert len({one["scores"]["fid"] for one in single}) == 3
    protocol = result["protocol"]
    assert protocol["sampling_repeats"] == 3 and protocol["generated_samples"] == 12
    assert protocol["seeds"] == "seeds 3 to 5, samples 0 to 11"
    assert protocol["fingerprint"] == single[0]["protocol"]["fingerprint"]
    assert told[-1] == ("seconds", 12, 12) and told[-2] == ("samples", 36, 36)
    assert result == json.loads((run.folder / "eval.json").read_text())


def test_repeats_of_points(copied: Runs) -> None:
    result = evaluate(Run(copied("points")), Sampler(), samples=40, repeats=2)
    assert result["intervals"].keys() == MODES
    assert result["protocol"]["generated_samples"] == 40


def folder_of(x: Tensor, folder: Path) -> None:
    """Gray images (N, 1, H, W) as PNGs."""
    folder.mkdir(parents=True)
    for i, image in enumerate(x[:, 0].numpy()):
        Image.fromarray(image).save(folder / f"{i:04d}.png")


def described_as(run: Path, **data: Any) -> None:
    """Edit what a run says of its data."""
    config = json.loads((run / "config.json").read_text())
    config["data"] |= data
    (run / "config.json").write_text(json.dumps(config))


@pytest.fixture
def _a_model_that_memorised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its samples are the first training images."""
    monkeypatch.setattr(Generator, "shared", lambda self, seeds, *args, **kwargs: tiny_data().x[: len(seeds)].clone())


@pytest.mark.usefixtures("_a_model_that_memorised")
def test_copies_are_looked_for_among_the_training_images_whatever_the_reference(copied: Runs) -> None:
    other = replace(tiny_data(), name="others", x=255 - tiny_data().x[:90], digest="1" * 64)
    result = evaluate(Run(copied("ddgan")), Sampler(), samples=20, data=other, extractor_name="digits")
    assert result["scores"]["near_copies"] == 1.0
    protocol = result["protocol"]
    assert protocol["data"] == "others" and protocol["reference_samples"] == 90
    copies = protocol["copies"]
    assert copies["among"] == "training images"
    assert copies["pixels"]["images"] == copies["features"]["images"] == len(tiny_data())
    assert copies["features"]["near_copies"] == 1.0


@pytest.mark.usefixtures("_a_model_that_memorised")
def test_without_the_training_images_nothing_is_said_of_copies(copied: Runs) -> None:
    run = copied("ddgan")
    described_as(run, digest="0" * 64)
    result = evaluate(Run(run), Sampler(), samples=20, data=small())
    assert result["scores"]["near_copies"] is None
    assert "that data now has" in result["protocol"]["copies"]["reason"]
    assert (run / "eval" / "default" / "neighbours.png").is_file()


@pytest.mark.parametrize(("held_out", "unseen"), [(120, "120 held-out images"), (50, "each among the others")])
def test_held_out_images_say_how_near_is_usual(copied: Runs, tmp_path: Path, held_out: int, unseen: str) -> None:
    """The data's test split, where it has enough images; a hundredth of them are nearer than the threshold."""
    folder_of(tiny_data().x[:150], tmp_path / "data" / "train")
    folder_of(tiny_data().x[150 : 150 + held_out], tmp_path / "data" / "test")
    run = copied("ddgan")
    described_as(run, path=str(tmp_path / "data"), digest=load_data(str(tmp_path / "data")).digest)
    copies = evaluate(Run(run), Sampler(), samples=20, extractor_name="digits")["protocol"]["copies"]
    assert copies["pixels"]["images"] == 150 and unseen in copies["pixels"]["unseen"]
    assert copies["pixels"]["baseline"] == pytest.approx(1 / (120 if held_out == 120 else 75), abs=1e-3)


def test_nothing_is_fetched_to_look_for_copies(copied: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on a known set whose files are elsewhere, scored against another reference."""
    monkeypatch.setattr(known, "_download", lambda *what: pytest.fail("it was about to be downloaded"))
    run = copied("ddgan")
    for name in ("mnist", "stackedmnist"):
        described_as(run, name=name, path=None, digest="2" * 64)
        result = evaluate(Run(run), Sampler(), samples=12, data=small(), data_root=tmp_path / "empty")
        assert f"{name} would have to be fetched" in result["protocol"]["copies"]["reason"]
    described_as(run, name="mnist", digest=tiny_data().digest)  # the images themselves are given, their test split not
    result = evaluate(Run(run), Sampler(), samples=12, data=small(), data_root=tmp_path / "empty")
    assert "each among the others" in result["protocol"]["copies"]["pixels"]["unseen"]


def test_a_classifier_of_one_s_own_sees_paths(copied: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the digits network does; the two are different quantities."""
    monkeypatch.setattr(evaluation, "FEWEST_PATHS", 12)
    torch.manual_seed(0)
    options = NetworkOptions(classes=("a", "b"), channels=1, size=(8, 8), mean=(90.0,), std=(60.0,), width=4)
    path = save_classifier(Classifier(options), tmp_path / "own.safetensors", {})
    run = Run(copied("stylegan2"))
    lengths = [
        evaluate(run, Sampler(), samples=12, data=small(), extractor_name=name)["scores"]["path_length"]
        for name in (str(path), "digits")
    ]
    assert min(lengths) > 0 and lengths[0] != pytest.approx(lengths[1], rel=1e-2)


def test_as_many_of_the_reference_as_asked_for(copied: Runs) -> None:
    """Drawn once and for all, and a condition of the scores."""
    run = Run(copied("ddgan"))
    whole, some = (
        evaluate(run, Sampler(), samples=12, data=small(), reference_samples=count)["protocol"] for count in (None, 40)
    )
    assert (whole["reference_samples"], some["reference_samples"]) == (100, 40)
    assert whole["fingerprint"] != some["fingerprint"]
    assert some["copies"]["pixels"]["images"] == 100 and some["copies"]["features"]["images"] == 40
    with pytest.raises(ConfigError, match="--reference-samples must be all or at least 10, not 9"):
        evaluate(run, Sampler(), samples=12, reference_samples=9)
    with pytest.raises(ConfigError, match="leave out --reference-samples"):
        evaluate(Run(copied("points")), Sampler(), samples=12, reference_samples=None)


def test_the_command_asks_for_the_same_evaluation(copied: Runs, tmp_path: Path) -> None:
    run, weights = copied("ddpm"), tmp_path / "my weights.safetensors"
    shutil.copy(WEIGHTS, weights)
    result = evaluate(
        Run(run),
        Sampler(steps=5, eta=0.5),
        samples=12,
        seed=3,
        repeats=2,
        extractor_name="digits",
        extractor_weights=weights,
        data="digits",
        data_root=tmp_path / "data root",
        reference_samples=None,
    )
    program, verb, *arguments = shlex.split(result["protocol"]["command"])
    assert (program, verb) == ("trilemma", "evaluate")
    typed = parse(Evaluate, "evaluate", arguments)
    assert typed == Evaluate(
        run=run,
        samples=12,
        steps=5,
        eta=0.5,
        seed=3,
        repeats=2,
        extractor="digits",
        extractor_weights=weights,
        data="digits",
        data_root=tmp_path / "data root",
        reference_samples="all",
    )
    given = replace(small(), name="mine", digest="1" * 64)
    command = evaluate(Run(run), Sampler(), samples=12, data=given, extractor_name="digits")["protocol"]["command"]
    assert command == f"trilemma evaluate {run} --samples 12 --extractor digits --data mine"


def test_a_label_is_a_flag() -> None:
    arguments = shlex.split(evaluation_command(Path("runs/a b"), {"label": 3, "seed": None}))[2:]
    assert parse(Evaluate, "evaluate", arguments) == Evaluate(run=Path("runs/a b"), label=3)


def test_the_fingerprint_is_of_the_protocol_not_of_the_run(copied: Runs) -> None:
    """Another method, sampler or seed is what is compared; another count or reference is another protocol."""

    def found(name: str, steps: int | None = None, **settings: Any) -> str:
        settings = {"samples": 12, "data": small(), **settings}
        result: str = evaluate(Run(folders[name]), Sampler(steps=steps), **settings)["protocol"]["fingerprint"]
        return result

    folders = {name: copied(name) for name in ("ddgan", "ddpm")}
    usual = found("ddgan")
    assert usual == found("ddpm", 5) == found("ddgan", seed=1)
    assert len({usual, found("ddgan", samples=13), found("ddgan", data=small(90)), found("ddgan", data="digits")}) == 4

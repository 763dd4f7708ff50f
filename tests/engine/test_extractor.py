"""Training an extractor: it learns, the same seed gives the same weights, and data that cannot teach it is refused."""

from __future__ import annotations

import importlib.metadata
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from trilemma import api, cli
from trilemma.data import Dataset, load_data
from trilemma.data.dataset import make_dataset
from trilemma.engine import evaluate as evaluation
from trilemma.engine.extractor import augmented, make_extractor_plan, rate
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, DataError, NonFiniteError, RunError
from trilemma.measure.classifier import load_classifier, read_made
from trilemma.measure.features import extract, load_extractor
from trilemma.measure.fidelity import fidelity_from_features
from trilemma.measure.weight_files import digest_of
from trilemma.types import Sampler


def made_up(n: int = 200, classes: int = 2, channels: int = 3) -> Dataset:
    """Random images of 8 x 8."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, channels, 8, 8), dtype=torch.uint8, generator=generator)
    return make_dataset("noise", x, torch.arange(n) % classes, list("abcdef")[:classes], split="train", source="noise")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extractor for scikit-learn's digits."""
    out = tmp_path_factory.mktemp("extractor") / "digits.safetensors"
    return api.train_extractor("digits", out=out, images=8_000, width=4)


def test_it_learns_digits(digits: Path) -> None:
    made, whole = read_made(digits), load_data("digits")
    assert made["test_accuracy"] > 0.9
    assert made["test"] == "one image in 10, held out"
    assert (made["train_images"], made["test_images"]) == (1618, 179)
    assert made["data_digest"] == whole.digest != made["test_digest"]
    assert made["images"] == 63 * 128  # the first batch that ends at 8,000 or beyond
    assert made["flip"] is False  # whatever was asked for: these are digits
    assert made["seconds"] > 0 and made["versions"]["torch"] == importlib.metadata.version("torch")
    options = load_classifier(digits).options
    assert options.classes == tuple("0123456789")
    assert (options.channels, options.size, options.width) == (1, (8, 8), 4)


def test_its_accuracy_is_that_of_the_file(digits: Path) -> None:
    """Held out are the images that no batch of the training had in it: split again, judged again."""
    plan = make_extractor_plan("digits")
    found = extract(plan.test.x, load_extractor(str(digits)))
    assert found.logits is not None and plan.test.labels is not None
    right = (found.logits.argmax(1) == plan.test.labels).double().mean().item()
    assert right == pytest.approx(read_made(digits)["test_accuracy"], abs=0.006)  # one image of 179
    both = {row.numpy().tobytes() for row in plan.train.x} & {row.numpy().tobytes() for row in plan.test.x}
    assert len(plan.train) + len(plan.test) == 1797 and not both


def test_its_features_score_images(digits: Path) -> None:
    """The total variance of real digits is 100, and noise is farther from them than other digits are."""
    extractor, x = load_extractor(str(digits)), load_data("digits").x
    noise = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8)
    real, other, bad = (extract(images, extractor) for images in (x[:200], x[200:400], noise))
    assert 80 < extract(x, extractor).features.double().var(0).sum() < 120
    good_scores, bad_scores = fidelity_from_features(other, real), fidelity_from_features(bad, real)
    assert good_scores["fid"] < 0.2 * bad_scores["fid"]
    assert good_scores["precision"] > bad_scores["precision"]
    assert good_scores["inception_score"] > bad_scores["inception_score"]


def test_a_run_is_scored_with_it(digits: Path, copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    timed = evaluation.speed_scores
    monkeypatch.setattr(evaluation, "speed_scores", lambda *args, **kwargs: timed(*args, **kwargs, limit_seconds=0.0))
    data = load_data("digits")
    small = make_dataset("digits", data.x[:50], split="train", source="here")
    result = evaluation.evaluate(Run(copied("ddgan")), Sampler(), samples=12, data=small, extractor_name=str(digits))
    assert result["protocol"]["extractor"] == "digits.safetensors"
    assert result["protocol"]["extractor_digest"] == digest_of(digits)
    assert all(isinstance(value, float) for value in result["scores"].values())


def test_the_command_prints_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path alone goes to standard output; how good it is, to standard error."""
    out = tmp_path / "own.safetensors"
    cli.main(["extractor", "train", "digits", "--images", "256", "--width", "2", "--no-flip", "--out", str(out)])
    printed, words = capsys.readouterr()
    assert printed == f"{out}\n"
    accuracy = read_made(out)["test_accuracy"]
    assert f"{accuracy:.4f} of 179 test images right (one image in 10, held out)" in words


def test_a_seed_repeats_the_weights(tmp_path: Path) -> None:
    files = [
        api.train_extractor(made_up(), out=tmp_path / f"{i}.safetensors", images=640, width=2, seed=seed)
        for i, seed in enumerate((1, 1, 2))
    ]
    one, two, other = (load_file(file) for file in files)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert read_made(files[0])["flip"] is True


def test_the_rate_rises_and_falls_to_nothing() -> None:
    assert [rate(share) for share in (0.0, 0.1, 0.2, 0.6, 1.0, 1.1)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


def test_augmented_images_are_shifts_with_mirrored_edges() -> None:
    """Each is one of the 3 x 3 shifts of its own image by up to one pixel (an eighth of 8), or its mirror image."""
    x = made_up(6).x
    padded = torch.nn.functional.pad(x.float(), (1, 1, 1, 1), mode="reflect").to(torch.uint8)
    index = torch.tensor([3, 0, 5, 3] * 100)
    generator = torch.Generator().manual_seed(0)
    for flip, kinds in ((False, 9), (True, 18)):
        found = augmented(x, index, generator, flip=flip)
        assert found.shape == (400, 3, 8, 8) and found.is_contiguous(memory_format=torch.channels_last)
        seen = set()
        for image, i in zip(found, index.tolist(), strict=True):
            (kind,) = [kind for kind, shifted in shifts(padded[i]).items() if torch.equal(image, shifted)]
            seen.add(kind)
        assert len(seen) == kinds


def shifts(padded: Tensor) -> dict[tuple[int, int, bool], Tensor]:
    """All crops of 8 x 8 and their mirror images."""
    crops = {(r, c, False): padded[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3)}
    return crops | {(r, c, True): crop.flip(2) for (r, c, _), crop in crops.items()}


def pictures(folder: Path, classes: dict[str, int], value: int = 0) -> Path:
    """Gray pictures of 8 x 8 in a subfolder for each class."""
    generator = np.random.default_rng(value)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(generator.integers(0, 256, (8, 8), np.uint8)).save(folder / name / f"{i:04d}.png")
    return folder


def test_a_zip_of_class_folders_and_another_to_test_on(tmp_path: Path) -> None:
    """The layout of two zips, train and test, each with a folder for each class."""
    zips = []
    for name, count in (("train", 60), ("test", 9)):
        folder = pictures(tmp_path / name, {"cat": count, "dog": count}, count)
        with zipfile.ZipFile(tmp_path / f"my-{name}.zip", "w") as archive:
            for file in sorted(folder.rglob("*.png")):
                archive.write(file, file.relative_to(folder).as_posix())
        zips.append(str(tmp_path / f"my-{name}.zip"))
    out = api.train_extractor(zips[0], test=zips[1], out=tmp_path / "own.safetensors", images=128, width=1)
    made = read_made(out)
    assert (made["data"], made["train_images"], made["test_images"]) == ("my-train", 120, 18)
    assert made["test"] == f"zip {zips[1]}" and made["test_digest"] == load_data(zips[1]).digest
    assert load_classifier(out).options.classes == ("cat", "dog")


def test_a_folder_of_its_own_split(tmp_path: Path) -> None:
    for split, count in (("train", 60), ("test", 7)):
        pictures(tmp_path / "data" / split, {"cat": count, "dog": count}, count)
    plan = make_extractor_plan(str(tmp_path / "data"))
    assert (len(plan.train), len(plan.test), plan.test.split) == (120, 14, "test")
    assert plan.test_words.endswith("test split") and plan.data_digest == plan.train.digest
    assert plan.budget.images == 20_000


def test_data_that_cannot_teach_is_refused(tmp_path: Path) -> None:
    one, few = pictures(tmp_path / "one", {"cat": 120}), pictures(tmp_path / "few", {"cat": 40, "dog": 40})
    (tmp_path / "flat").mkdir()
    for file in (one / "cat").iterdir():
        (tmp_path / "flat" / file.name).write_bytes(file.read_bytes())
    for data, problem in (
        (str(one), "no classes to tell apart"),
        (str(tmp_path / "flat"), "no classes to tell apart"),
        (str(few), "72 images to train on are too few: give 100 at least"),
        ("gaussians", "points have no feature extractor"),
        (made_up(5), "too few images"),
        (made_up(8), "too few images to hold any out"),
        (made_up(channels=1, classes=1), "no classes to tell apart"),
    ):
        with pytest.raises(DataError, match=problem) as caught:
            make_extractor_plan(data)
        assert "\n" not in str(caught.value)


def test_sizes_that_do_not_suit_are_refused() -> None:
    with pytest.raises(DataError, match="too small: --size 8 or more"):
        make_extractor_plan("digits", size=7)
    large = make_dataset(
        "large",
        torch.zeros(200, 1, 65, 60, dtype=torch.uint8),
        torch.arange(200) % 2,
        "ab",
        split="train",
        source="here",
    )
    with pytest.raises(DataError, match="images of 60 x 65 pixels take this network long: give --size 64"):
        make_extractor_plan(large)
    assert make_extractor_plan(large, size=65).train.spec.height == 65


def test_test_images_of_another_kind_are_refused() -> None:
    for test in (made_up(classes=3), made_up(channels=1)):
        with pytest.raises(DataError, match="do not fit the data"):
            make_extractor_plan(made_up(), test=test)


def test_settings_are_refused_before_any_data_is_read() -> None:
    for settings, problem in (
        ({"seed": -1}, "--seed"),
        ({"width": 0}, "--width"),
        ({"minutes": 1.0, "images": 1}, "either --minutes or --images"),
        ({"minutes": 0.0}, "--minutes must be positive"),
    ):
        with pytest.raises(ConfigError, match=problem):
            make_extractor_plan("no/where", **settings)  # type: ignore[arg-type]


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").write_text("mine")
    with pytest.raises(RunError, match="is there already"):
        api.train_extractor(made_up(), out=tmp_path / "own.safetensors", images=128)
    assert (tmp_path / "own.safetensors").read_text() == "mine"
    with pytest.raises(ConfigError, match=r"ends in \.safetensors"):
        api.train_extractor(made_up(), out=tmp_path / "own.pt", images=128)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        api.train_extractor(made_up(), out=tmp_path / "file" / "own.safetensors", images=128)


def test_a_training_that_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilemma.engine.extractor.PEAK_RATE", float("inf"))
    with pytest.raises(NonFiniteError, match="the loss became NaN after"):
        api.train_extractor(made_up(), out=tmp_path / "own.safetensors", images=1280, width=1)
    assert not list(tmp_path.iterdir())


def test_a_budget_in_minutes_ends_in_time(tmp_path: Path) -> None:
    """The share of the budget is told by the clock, and the training stops at the first step beyond it."""
    shares = []
    out = api.train_extractor(
        made_up(),
        out=tmp_path / "own.safetensors",
        minutes=0.3 / 60,
        width=1,
        report=lambda progress: shares.append(progress.fraction),
    )
    assert shares == sorted(shares) and shares[-1] >= 1 > shares[-2]
    assert read_made(out)["seconds"] == pytest.approx(0.3 * shares[-1], abs=0.06)

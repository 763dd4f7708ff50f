"""Images of other programs, scored as runs are: exact facts of their scores, what is written, and what is refused."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from tiny import tiny_data
from trilemma.cli import Evaluate, parse
from trilemma.comparison import comparison_table, differences, read_rows, refuse_unequal
from trilemma.data import Dataset, content_digest
from trilemma.engine import evaluate as evaluation
from trilemma.engine.evaluate import evaluate
from trilemma.engine.images import are_images, evaluate_images, result_folder
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, DataError, RunError, TrilemmaError
from trilemma.measure import cache
from trilemma.measure.features import Extractor, FeatureSet, extract, load_extractor
from trilemma.report import write_report
from trilemma.types import Sampler

FIDELITY = ("fid", "kid", "inception_score", "precision", "recall")
SPEED = ("nfe", "seconds_per_image_batch_1", "images_per_second_batch_100")


def small(n: int = 60) -> Dataset:
    """A few digits as the reference."""
    data = tiny_data()
    return replace(data, x=data.x[:n], labels=None, digest=content_digest(data.x[:n]))


def npz(path: Path, x: Tensor) -> Path:
    np.savez(path, images=x.permute(0, 2, 3, 1).numpy())
    return path


def pngs(folder: Path, x: Tensor, suffix: str = "png") -> Path:
    folder.mkdir()
    for i, image in enumerate(x[:, 0].numpy()):
        Image.fromarray(image).save(folder / f"{i:03d}.{suffix}")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_reference_itself_is_perfect(here: Path) -> None:
    result = evaluate_images(npz(here / "copy.npz", small().x), small())
    scores = result["scores"]
    assert scores["fid"] == pytest.approx(0.0, abs=1e-3)
    assert (scores["precision"], scores["recall"]) == (1.0, 1.0)
    assert {name: scores[name] for name in SPEED} == dict.fromkeys(SPEED)
    assert result == json.loads((here / "runs" / "copy" / "eval.json").read_text())


def test_what_is_written(here: Path) -> None:
    x = tiny_data().x[100:140]
    told: list[tuple[str, int, int]] = []
    seen: list[Dataset] = []
    result = evaluate_images(
        pngs(here / "theirs", x),
        small(),
        name="Their GAN, big",
        report=lambda *what: told.append(what),
        on_images=seen.append,
    )
    folder = here / "runs" / "Their-GAN-big"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "eval", "eval.json"]
    with Image.open(folder / "eval" / "default" / "samples.png") as picture:
        assert min(picture.size) >= 150
    config = json.loads((folder / "config.json").read_text())
    assert config["kind"] == "images" and config["title"] == "Their GAN, big"
    assert config["images"]["path"] == str(here / "theirs") and config["images"]["images"] == 40
    assert config["data"]["digest"] == small().digest and config["data"]["spec"]["kind"] == "images"
    assert result["row"] == {
        "title": "Their GAN, big",
        "method": "Their GAN, big",
        "family": "images of another program",
        "paper": "",
        "sampler": "from PNG files",
        "tag": "default",
    }
    assert result["intervals"].keys() == {*FIDELITY, "density", "coverage"}
    protocol = result["protocol"]
    assert protocol["generated_samples"] == 40 and protocol["reference_samples"] == 60
    assert protocol["generated_digest"] == content_digest(x)
    assert protocol["lossless"] is True and "resized" not in protocol and protocol["formats"] == ["PNG"]
    assert protocol["copies"]["among"] == "reference, as the training images are not known"
    assert protocol["seeds"] == "all 40 images"
    assert not {"steps", "threads", "hardware", "training_images", "parameters"} & protocol.keys()
    assert told == [("scores", 0, 40), ("scores", 40, 40)] and len(seen[0]) == 40


def test_the_same_images_have_the_same_scores_however_they_are_packed(here: Path) -> None:
    x = tiny_data().x[100:130]
    found = [evaluate_images(path, small()) for path in (pngs(here / "a", x), npz(here / "b.npz", x))]
    assert found[0]["scores"] == found[1]["scores"]
    assert found[0]["protocol"]["fingerprint"] == found[1]["protocol"]["fingerprint"]


def test_a_jpeg_is_no_lossless_image(here: Path) -> None:
    x = tiny_data().x[100:130]
    sharp, blurred = (evaluate_images(pngs(here / kind, x, kind), small()) for kind in ("png", "jpg"))
    assert (sharp["protocol"]["lossless"], blurred["protocol"]["lossless"]) == (True, False)
    assert sharp["protocol"]["fingerprint"] != blurred["protocol"]["fingerprint"]
    assert blurred["row"]["sampler"] == "from JPEG files"
    with pytest.raises(ConfigError, match=r"images kept without loss is true \(png\) and false \(jpg\)"):
        refuse_unequal(read_rows([Path("runs/png"), Path("runs/jpg")]))


def test_some_of_the_images(here: Path) -> None:
    path = npz(here / "theirs.npz", tiny_data().x[100:140])
    whole, some, again, other = (
        evaluate_images(path, small(), samples=samples, seed=seed)
        for samples, seed in ((None, 0), (20, 0), (20, 0), (20, 1))
    )
    assert some["protocol"]["generated_samples"] == 20
    assert some["protocol"]["seeds"] == "20 of 40 images, drawn with seed 0"
    assert some["scores"] == again["scores"] != other["scores"]
    assert some["protocol"]["fingerprint"] == other["protocol"]["fingerprint"] != whole["protocol"]["fingerprint"]


def test_a_size_for_both(here: Path) -> None:
    path = npz(here / "theirs.npz", tiny_data().x[100:120])
    result = evaluate_images(path, "digits", size=12)
    assert result["protocol"]["size"] == "12x12" and result["protocol"]["resized"] is True
    large = npz(here / "large.npz", tiny_data().x[100:120].repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(
        DataError, match="holds images of 16x16, but the reference has 8x8: --size 8 brings both to 8x8"
    ):
        evaluate_images(large, "digits")
    assert evaluate_images(large, "digits", size=8)["protocol"]["resized"] is True


def test_held_out_images_of_the_reference_say_how_near_is_usual(here: Path) -> None:
    (here / "data").mkdir()
    pngs(here / "data" / "train", tiny_data().x[:150])
    pngs(here / "data" / "test", tiny_data().x[150:260])
    result = evaluate_images(npz(here / "theirs.npz", tiny_data().x[300:320]), "data", extractor_name="digits")
    pixels = result["protocol"]["copies"]["pixels"]
    assert (pixels["images"], pixels["unseen"]) == (150, "110 held-out images")


def test_the_whole_reference_gives_the_library_s_fid(here: Path) -> None:
    """However many it has: the usual choice of some is another protocol, and compare says so."""
    x = tiny_data().x[1000:1100]
    path = npz(here / "theirs.npz", x)
    whole = evaluate_images(path, "digits", reference_samples=None, out=here / "whole", samples=100)
    some = evaluate_images(path, "digits", reference_samples=200, out=here / "some", samples=100)
    assert (whole["protocol"]["reference_samples"], some["protocol"]["reference_samples"]) == (1797, 200)
    extractor = load_extractor("digits")
    seen, truth = (fid_features_to_statistics(extract(part, extractor).features) for part in (x, tiny_data().x))
    expected = fid_statistics_to_metric(seen, truth, verbose=False)[KEY_METRIC_FID]
    assert whole["scores"]["fid"] == pytest.approx(float(expected), rel=1e-6)
    assert some["scores"]["fid"] != pytest.approx(float(expected), rel=1e-3)
    with pytest.raises(ConfigError, match="number of reference samples is 1797 .* and 200"):
        refuse_unequal(read_rows([here / "whole", here / "some"]))


def test_the_command_asks_for_the_same_scores(here: Path) -> None:
    path = npz(here / "their images.npz", tiny_data().x[100:140])
    settings: dict[str, Any] = {"name": "Their GAN", "out": Path("runs/a b"), "size": 12, "samples": 20, "seed": 3}
    result = evaluate_images(path, "digits", **settings, extractor_name="digits", reference_samples=500)
    program, verb, *arguments = shlex.split(result["protocol"]["command"])
    assert (program, verb) == ("trilemma", "evaluate")
    typed = parse(Evaluate, "evaluate", arguments)
    assert typed == Evaluate(run=path, data="digits", extractor="digits", reference_samples="500", **settings)


def test_shrunken_images_do_not_stand_beside_native_ones(here: Path) -> None:
    """A result of before this was told counts as not resized."""
    x = tiny_data().x[100:130]
    native = evaluate_images(npz(here / "native.npz", x), "digits")
    large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    evaluate_images(npz(here / "large.npz", large), "digits", size=8)
    rows = read_rows([Path("runs/native"), Path("runs/large")])
    with pytest.raises(ConfigError, match="resizing of the generated images is false .* and true"):
        refuse_unequal(rows)
    older = replace(rows[0], protocol={**native["protocol"], "resized": False})
    refuse_unequal([rows[0], older])


def test_colour_is_handled_as_the_reference(here: Path) -> None:
    x = tiny_data().x[100:120]
    gray = evaluate_images(npz(here / "gray.npz", x), small())
    colour = evaluate_images(npz(here / "colour.npz", x.expand(-1, 3, -1, -1)), small())
    assert gray["scores"] == colour["scores"]


@pytest.mark.parametrize("how", ["edited", "renamed"])
def test_a_reference_is_known_by_its_content(here: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """An edited folder is looked at anew; the same images under another name are not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    looked: list[int] = []

    def counted(x: Tensor, extractor: Extractor) -> FeatureSet:
        looked.append(len(x))
        return extract(x, extractor)

    monkeypatch.setattr(cache, "extract", counted)
    folder, images = pngs(here / "reference", tiny_data().x[:20]), npz(here / "theirs.npz", tiny_data().x[100:120])

    def fid(**settings: Any) -> float:
        result = evaluate_images(images, str(folder), extractor_name="digits", **settings)
        return float(result["scores"]["fid"])

    first = fid()
    assert fid() == first and looked == [20]
    if how == "renamed":
        folder = folder.rename(here / "elsewhere")
        assert fid() == first and looked == [20]
        return
    with Image.open(folder / "007.png") as image:
        other = 255 - np.asarray(image)
    Image.fromarray(other).save(folder / "007.png")
    edited = fid()
    assert looked == [20, 20] and edited != first
    assert fid(cache=False) == edited


def test_beside_a_run_in_one_comparison(
    here: Path, copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = evaluation.speed_scores
    monkeypatch.setattr(evaluation, "speed_scores", lambda *args, **kwargs: timed(*args, **kwargs, limit_seconds=0.0))
    run = copied("ddgan")
    evaluate(Run(run), Sampler(), samples=40, data=small())
    evaluate_images(npz(here / "theirs.npz", tiny_data().x[100:140]), small())
    rows = read_rows([run, Path("runs/theirs")])
    refuse_unequal(rows)
    assert {difference.affects for difference in differences(rows)} == {"training"}
    assert rows[0].protocol["fingerprint"] == rows[1].protocol["fingerprint"]
    assert (rows[1].kind, rows[1].parameters, rows[1].scores.nfe, rows[1].trajectory) == ("images", None, None, None)
    assert rows[1].scores.fid is not None and rows[1].samples is not None
    assert comparison_table(rows).row_count == 2
    assert "theirs" in write_report(rows, here / "page.html", "t", "c").read_text()


def test_a_result_is_written_anew_and_nothing_else_is_written_over(here: Path, copied: Callable[[str], Path]) -> None:
    path, run = npz(here / "theirs.npz", tiny_data().x[100:120]), copied("ddgan")
    out = here / "out"
    evaluate_images(path, small(), out=out)
    again = evaluate_images(path, small(), out=out, name="other")
    assert json.loads((out / "eval.json").read_text()) == again and again["row"]["title"] == "other"
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("")
    (here / "file").write_text("")
    for folder, words in (
        (run, "holds a run already: choose another folder with --out"),
        (here / "full", "is not empty: choose another folder for the scores with --out"),
        (here / "file" / "out", "cannot write .*file/out"),
    ):
        with pytest.raises(RunError, match=words):
            evaluate_images(path, small(), out=folder)
    assert not list(run.glob("eval*")) and [path.name for path in (here / "full").iterdir()] == ["notes.txt"]


def test_scores_of_images_are_no_run(here: Path) -> None:
    evaluate_images(npz(here / "theirs.npz", tiny_data().x[100:120]), small())
    with pytest.raises(RunError, match="runs/theirs holds scores of images that no run made, and no weights"):
        Run.open("runs/theirs").config()
    (here / "runs" / "theirs" / "eval.json").unlink()
    again = f"trilemma evaluate {here}/theirs.npz --data digits --out runs/theirs"
    with pytest.raises(RunError, match=f"runs/theirs has not been evaluated: {again}"):
        read_rows([Path("runs/theirs")])


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"data": "gaussians"}, ConfigError, "gaussians are points: images cannot be compared with them"),
        ({"data": "nothing"}, DataError, "unknown data set"),
        ({"data": "few"}, DataError, "has 9 samples, but scores need 10"),
        ({"data": "small", "size": 16}, ConfigError, "size 16 is not that of the reference given, 8x8"),
        ({"samples": 9}, ConfigError, "--samples must be at least 10, not 9"),
        ({"samples": 13}, DataError, "holds 12 images, but --samples asks for 13"),
        ({"seed": -1}, ConfigError, "seed must be from 0"),
        ({"name": " "}, ConfigError, "--name must not be empty"),
        ({"path": "few.npz"}, DataError, "few.npz holds 9 images, but scores need 10"),
        ({"path": "empty"}, DataError, "no images in empty"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    here: Path, settings: dict[str, Any], error: type[TrilemmaError], words: str
) -> None:
    npz(here / "theirs.npz", small(12).x)
    npz(here / "few.npz", small(9).x)
    (here / "empty").mkdir()
    known = {"few": small(9), "small": small()}
    settings = {"path": "theirs.npz", "data": "small", **settings}
    path, data = Path(settings.pop("path")), settings.pop("data")
    with pytest.raises(error, match=words) as caught:
        evaluate_images(path, known.get(data, data), **settings)
    assert "\n" not in str(caught.value)
    assert not (here / "runs").exists()


def test_what_counts_as_images(here: Path, copied: Callable[[str], Path]) -> None:
    run, folder = copied("ddgan"), pngs(here / "theirs", torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    file = npz(here / "theirs.npz", small(12).x)
    assert are_images(file, None) and are_images(file, "digits") and are_images(folder, "digits")
    assert not any(are_images(path, "digits") for path in (run, here / "nowhere")) and not are_images(folder, None)


@pytest.mark.parametrize(
    ("path", "name", "out", "folder"),
    [
        ("a/theirs.npz", None, None, "runs/theirs"),
        ("a/theirs.zip", "Big GAN (v2)", None, "runs/Big-GAN-v2"),
        ("a/theirs.zip", "../..", None, "runs/images"),
        ("a/theirs.zip", "x", Path("b"), "b"),
    ],
)
def test_where_the_scores_go(path: str, name: str | None, out: Path | None, folder: str) -> None:
    assert result_folder(Path(path), name, out) == Path(folder)

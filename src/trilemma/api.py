"""The library from Python: train, load, sample, evaluate, compare, race, bench, convert, export."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from trilemma.comparison import comparison_table, differences, published_for, read_rows, refuse_unequal
from trilemma.config import Recipe, build
from trilemma.data import Dataset, catalogue, load_data, usual_size
from trilemma.engine import evaluate as evaluation
from trilemma.engine import images as image_evaluation
from trilemma.engine import train as training
from trilemma.engine.bench import bench
from trilemma.engine.convert import convert
from trilemma.engine.export import export
from trilemma.engine.extractor import check_extractor_out, make_extractor_plan
from trilemma.engine.extractor import train_extractor as fit_extractor
from trilemma.engine.forecast import Forecast
from trilemma.engine.forecast import forecast as foretell
from trilemma.engine.generator import Generator
from trilemma.engine.judge import REFERENCE_SAMPLES
from trilemma.engine.loop import Progress
from trilemma.engine.processes import company, join, restarted, told
from trilemma.engine.run import Run
from trilemma.engine.verify import verify_resume
from trilemma.errors import ConfigError, RunError
from trilemma.measure.features import default_extractor, load_extractor
from trilemma.methods import method_class
from trilemma.methods.base import Entrant
from trilemma.report import write_figures, write_report
from trilemma.types import Sampler

__all__ = ["bench", "compare", "convert", "evaluate", "export", "forecast", "load", "race", "train", "verify_resume"]

load = Generator.load


def quiet(*_: Any) -> None:
    """No progress shown."""


def train(  # noqa: PLR0913
    method: str,
    data: str | Dataset,
    *,
    out: Path | str | None = None,
    recipe: str | None = None,
    minutes: float | None = None,
    images: int | None = None,
    flops: float | None = None,
    seed: int = 0,
    resume: bool = False,
    size: int | None = None,
    data_root: Path | str | None = None,
    tracker: str | None = None,
    options: Any = None,
    training_options: Any = None,
    path: str | None = None,
    report: Callable[[Progress], None] = quiet,
    on_data: Callable[[Dataset], None] = quiet,
) -> Path:
    """Train a method into a run folder and return the folder.

    Args:
        method: a name from ``trilemma list``.
        data: a data set's name, a folder or zip of images, or a loaded ``Dataset``.
        out: the run folder; default runs/METHOD-DATA.
        recipe: a packaged recipe's name or a TOML file; default the method's own for the data.
        minutes, images, flops: the budget, one of them; default the recipe's.
        options, training_options: settings in place of the recipe's.
        path: where a data set given as an object was read from, so that ``evaluate`` finds it again.
        report: called after every step with the progress.
        on_data: called with the data once it is loaded.

    Raises:
        TrilemmaError: anything a user can mend, in one line.
    """
    plan = training.make_plan(
        method,
        data,
        recipe=recipe,
        minutes=minutes,
        images=images,
        flops=flops,
        seed=seed,
        data_root=None if data_root is None else Path(data_root),
        size=size,
        options=options,
        training=training_options,
        path=path,
    )
    on_data(plan.data)
    folder = Path(out) if out is not None else Path("runs") / f"{method}-{plan.data.name}"
    return training.train(plan, folder, resume=resume, tracker=tracker, report=report).folder


def forecast(  # noqa: PLR0913
    method: str,
    data: str | Dataset,
    *,
    out: Path | str | None = None,
    recipe: str | None = None,
    minutes: float | None = None,
    images: int | None = None,
    flops: float | None = None,
    seed: int = 0,
    size: int | None = None,
    data_root: Path | str | None = None,
    options: Any = None,
    training_options: Any = None,
    on_data: Callable[[Dataset], None] = quiet,
) -> Forecast:
    """What ``train`` with these settings will take: a few steps are made, and nothing is left of them.

    Raises:
        TrilemmaError: anything a user can mend, in one line.
    """
    plan = training.make_plan(
        method,
        data,
        recipe=recipe,
        minutes=minutes,
        images=images,
        flops=flops,
        seed=seed,
        data_root=None if data_root is None else Path(data_root),
        size=size,
        options=options,
        training=training_options,
    )
    on_data(plan.data)
    return foretell(plan, Path("runs") if out is None else Path(out))


def evaluate(  # noqa: PLR0913
    run: Path | str,
    *,
    samples: int | None = None,
    steps: int | None = None,
    eta: float | None = None,
    variance: Any = None,
    truncation: float | None = None,
    label: int | None = None,
    seed: int = 0,
    extractor: str | None = None,
    extractor_weights: Path | str | None = None,
    data: str | Dataset | None = None,
    data_root: Path | str | None = None,
    report: Callable[[str, int, int], None] = quiet,
    repeats: int = 1,
    cache: bool = True,
    reference_samples: int | None = REFERENCE_SAMPLES,
    name: str | None = None,
    out: Path | str | None = None,
    size: int | None = None,
    on_data: Callable[[Dataset], None] = quiet,
) -> dict[str, Any]:
    """Score a run and time its sampling; writes eval.json and pictures into the run and returns eval.json's content.

    Args:
        run: the folder of a run; or images of another program (a folder, zip or .npz), their reference in ``data``.
        samples: images made for the scores; of images, how many of them are scored (default: all).
        repeats: sets of samples, each from a seed of its own: scores are means over them and have intervals.
        cache: keep the features of the reference in the user's cache folder, by its content.
        reference_samples: images of the reference that are compared with, drawn once and for all; None: all.
        name, out, size: of images: the row's title, the folder for the scores (default: runs/NAME), and the size that
            images and reference are brought to.
        on_data: called with the images once they are read.

    Raises:
        TrilemmaError: anything a user can mend, in one line.
    """
    path = Path(run)
    sampler = Sampler(steps=steps, eta=eta, variance=variance, truncation=truncation, label=label)
    if image_evaluation.are_images(path, data):
        reference = _reference_of_images(path, data, sampler, repeats)
        with company():
            if not join().is_main_process:  # nothing is sampled, so there is nothing to share
                scored: dict[str, Any] = told(None)
                return scored
            scored = told(
                image_evaluation.evaluate_images(
                    path,
                    reference,
                    name=name,
                    out=None if out is None else Path(out),
                    size=size,
                    samples=samples,
                    seed=seed,
                    extractor_name=extractor,
                    extractor_weights=None if extractor_weights is None else Path(extractor_weights),
                    data_root=None if data_root is None else Path(data_root),
                    cache=cache,
                    reference_samples=reference_samples,
                    report=report,
                    on_images=on_data,
                )
            )
            return scored
    _refuse_for_a_run(path, name=name, out=out, size=size)
    return evaluation.evaluate(
        Run.open(run),
        sampler,
        samples=samples,
        seed=seed,
        extractor_name=extractor,
        extractor_weights=None if extractor_weights is None else Path(extractor_weights),
        data=data,
        data_root=None if data_root is None else Path(data_root),
        report=report,
        repeats=repeats,
        cache=cache,
        reference_samples=reference_samples,
    )


def _reference_of_images(path: Path, data: str | Dataset | None, sampler: Sampler, repeats: int) -> str | Dataset:
    """The reference of images, which must be named; what only sampling has is refused."""
    given = [key for key, value in dataclasses.asdict(sampler).items() if value is not None]
    given += ["repeats"] if repeats != 1 else []
    if given:
        flags = ", ".join(f"--{key}" for key in given)
        raise ConfigError(f"{flags}: {path} holds images, which are scored as they are; leave out what is for runs")
    if data is None:
        raise ConfigError(f"--data is missing: name the reference that the images in {path} are compared with")
    return data


def _refuse_for_a_run(path: Path, **for_images: Any) -> None:
    """Refuse settings that only images have, and a folder that could only be one of images."""
    if path.is_dir() and not Run(path).config_path.is_file():
        raise RunError(
            f"{path} is not a run: it has no config.json; give the folder that train wrote, or name the reference of a "
            "folder of images with --data"
        )
    given = [f"--{key}" for key, value in for_images.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: only for images of another program, and {path} is none; leave it out")


def compare(
    runs: Sequence[Path | str],
    *,
    out: Path | str = "report.html",
    title: str | None = None,
    force: bool = False,
    figures: Path | str | None = None,
) -> Table:
    """Draw the page ``out`` from evaluated runs (or a race's folder) and return the table.

    Rows whose quality scores were made under different protocols are refused; with ``force`` they are shown, and what
    differs is marked. Into the folder ``figures``, if there is one, go the page's plots as PNG and PDF.
    """
    rows = read_rows([Path(run) for run in runs])
    if not force:
        refuse_unequal(rows)
    forced = any(difference.affects == "quality" for difference in differences(rows))
    command = ["trilemma", "compare", *map(str, runs), "--out", str(out), *(["--force"] if forced else [])]
    command += [] if figures is None else ["--figures", str(figures)]
    write_report(
        rows,
        Path(out),
        title=title or "Quality, coverage, speed",
        command=shlex.join(command),
        published=published_for(rows),
    )
    if figures is not None:
        write_figures(rows, Path(figures))
    return comparison_table(rows)


@dataclasses.dataclass(frozen=True)
class RaceRow:
    """One training of a race."""

    method: str
    entrant: Entrant
    folder: Path
    options: Any
    recipe: str
    loaded: Recipe


def race_rows(data: str, methods: Sequence[str], folder: Path) -> list[RaceRow]:
    """The trainings of a race, every setting checked before any work."""
    if len(set(methods)) < len(methods):
        raise ConfigError(f"a race takes each method once, not {', '.join(methods)}")
    rows = []
    for method in methods:
        kind = method_class(method)
        recipe, loaded = training.resolve_recipe(method, data, None)
        for entrant in kind.entrants:
            options = build(kind.Options, {**loaded.options, **entrant.changes}, f"recipe {recipe}")
            rows.append(RaceRow(method, entrant, folder / f"{method}{entrant.suffix}", options, recipe, loaded))
    return rows


def _race_data(data: str, rows: Sequence[RaceRow], size: int | None, root: Path | None) -> Dataset:
    """The one data set all rows share."""
    sizes = {row.loaded.data.size for row in rows}
    if size is None and len(sizes) > 1:
        raise ConfigError(f"the methods' recipes want different image sizes {sorted(map(str, sizes))}: give --size")
    wanted = usual_size(data, sizes.pop()) if size is None else size
    with company(), join().main_process_first():  # it may have to download
        return load_data(data, root=root, size=wanted, channels=rows[0].loaded.data.channels)


def _race_budget(rows: Sequence[RaceRow]) -> tuple[float | None, int | None]:
    """One budget for all rows where none was given: the largest of their recipes', in minutes or in images."""
    minutes = [row.loaded.training.minutes for row in rows if row.loaded.training.minutes is not None]
    images = [row.loaded.training.images for row in rows if row.loaded.training.images is not None]
    if len(minutes) == len(rows):
        return max(minutes), None
    if len(images) == len(rows):
        return None, max(images)
    raise ConfigError("the methods' recipes have budgets of different kinds: give --minutes or --images")


def race(  # noqa: PLR0913
    data: str,
    methods: Sequence[str] = ("ddpm", "ddgan"),
    *,
    out: Path | str | None = None,
    minutes: float | None = None,
    images: int | None = None,
    flops: float | None = None,
    samples: int | None = None,
    seed: int = 0,
    resume: bool = False,
    size: int | None = None,
    data_root: Path | str | None = None,
    extractor: str | None = None,
    extractor_weights: Path | None = None,
    on_data: Callable[[Dataset], None] = quiet,
    on_train: Callable[[RaceRow], Callable[[Progress], None]] = lambda row: quiet,
    on_evaluate: Callable[[RaceRow, Sampler], Callable[[str, int, int], None]] = lambda row, sampler: quiet,
) -> tuple[Table, Path]:
    """Train each method on the same data and budget, one after the other, score all, draw the comparison.

    With ``resume``, finished rows are kept and an interrupted one goes on. ``extractor`` is as in ``evaluate``.

    Returns:
        the table and the path of report.html.

    Without a budget all rows get the largest of their recipes'.

    Raises:
        TrilemmaError: anything a user can mend, in one line.
    """
    name = data if data in catalogue() else Path(data).stem
    folder = Path(out) if out is not None else Path("runs") / f"race-{name}"
    rows = race_rows(data, methods, folder)
    taken = [str(row.folder) for row in rows if Run(row.folder).config_path.is_file()]
    with company():
        again = restarted() or resume
    if taken and not again:
        raise RunError(f"{', '.join(taken)} from an earlier race: go on with --resume or choose another --out")
    if minutes is None and images is None and flops is None:
        minutes, images = _race_budget(rows)
    loaded = _race_data(data, rows, size, None if data_root is None else Path(data_root))
    on_data(loaded)
    if loaded.spec.kind == "images" or extractor is not None:  # better now than after hours of training
        usual = default_extractor(loaded.name, loaded.spec)
        with company(), join().main_process_first():
            load_extractor(extractor or usual, extractor_weights, spec=loaded.spec)
    for row in rows:
        train(
            row.method,
            loaded,
            out=row.folder,
            recipe=row.recipe,
            minutes=minutes,
            images=images,
            flops=flops,
            seed=seed,
            resume=Run(row.folder).config_path.is_file(),
            options=row.options,
            training_options=row.loaded.training,
            path=training.data_path(data),
            report=on_train(row),
        )
        method = method_class(row.method)(row.options, loaded.spec)
        for sampler in row.entrant.samplers:
            if not evaluation.is_current(Run(row.folder), method, sampler):
                evaluate(
                    row.folder,
                    samples=samples,
                    **dataclasses.asdict(sampler),
                    seed=seed,
                    data=loaded,
                    data_root=data_root,
                    extractor=extractor,
                    extractor_weights=extractor_weights,
                    report=on_evaluate(row, sampler),
                )
    page = folder / "report.html"
    if not join().is_main_process:  # one process draws
        return comparison_table(read_rows([row.folder for row in rows])), page
    # An earlier part of a resumed race may have been scored otherwise: after all this work that is marked, not refused.
    return compare([row.folder for row in rows], out=page, title=f"Race on {name}", force=True), page


def train_extractor(  # noqa: PLR0913
    data: str | Dataset,
    *,
    out: Path | str | None = None,
    test: str | Dataset | None = None,
    minutes: float | None = None,
    images: int | None = None,
    size: int | None = None,
    seed: int = 0,
    flip: bool = True,
    width: int = 32,
    data_root: Path | str | None = None,
    report: Callable[[Progress], None] = quiet,
    on_data: Callable[[Dataset], None] = quiet,
) -> Path:
    """Train a classifier of labelled images, to score with as ``extractor``, and return its file.

    Args:
        data: a data set's name, a folder or zip with a subfolder for each class, or a loaded ``Dataset``.
        out: the file; default extractor-DATA.safetensors.
        test: other data of the same classes to judge it on; default the data's own test split, else a tenth of it.
        minutes, images: the budget; default ten passes over the data, at least 20,000 images.
        size: what data loaded by name or path is resized to; default its own size, which must not exceed 64.
        flip: mirror images at random; never done to digits and MNIST.
        width: channels of the first layer; the features are eight times as many.

    Raises:
        TrilemmaError: anything a user can mend, in one line.
    """
    plan = make_extractor_plan(
        data,
        test=test,
        minutes=minutes,
        images=images,
        size=size,
        seed=seed,
        flip=flip,
        width=width,
        data_root=None if data_root is None else Path(data_root),
    )
    path = Path(f"extractor-{plan.train.name}.safetensors") if out is None else Path(out)
    check_extractor_out(path)
    on_data(plan.train)
    return fit_extractor(plan, path, report=report)


def check_data(
    data: str,
    *,
    out: Path | str | None = None,
    labels: Path | str | None = None,
    report: Callable[[str, int, int], None] = quiet,
) -> dict[str, Any]:
    """Look at all training images of a folder, zip, tars, parquet files or a set on the hub before training on them.

    Args:
        data: where they are; known sets need no check.
        out: the folder for check.json and the contact sheet; default checks/NAME.
        labels: a CSV or JSON file of labels that does not lie beside the images.
        report: told what is being done, how far, and of how much.

    Returns:
        what was found, as check.json has it.

    Raises:
        TrilemmaError: anything a user can mend, in one line.
    """
    from trilemma.engine import data_check

    _refuse_known(data)
    folder = Path("checks") / _data_name(data) if out is None else Path(out)
    return data_check.check_data(data, folder, labels=None if labels is None else Path(labels), report=report)


def prepare_data(
    data: str,
    *,
    out: Path | str | None = None,
    size: int | None = None,
    gray: bool = False,
    crop: Literal["center", "none", "pad"] = "center",
    filter: Literal["lanczos", "box"] = "lanczos",
    labels: Path | str | None = None,
    without: Path | str | None = None,
    report: Callable[[int, int], None] = quiet,
) -> Path:
    """Decode images once into a folder that can be given as ``data``, and return the folder.

    Started again after it was stopped it goes on.

    Args:
        data: a folder, zip, tars, parquet files or a set on the hub.
        out: the folder; default prepared/NAME-SIZE.
        size: pixels a side; default the images' own, which must be the same for all.
        gray: make all gray; default gray if all are, else RGB.
        crop: "center" cuts squares, "pad" makes squares with white beside, "none" makes the shorter side ``size``.
        filter: how images are resized.
        labels: a CSV or JSON file of labels that does not lie beside the images.
        without: a text file that names images to leave out, one a line.
        report: told the number of images decoded and of all.

    Raises:
        TrilemmaError: anything a user can mend, in one line.
    """
    from trilemma.data.prepared import Preparation, prepare

    how = Preparation(size, gray, crop, filter)
    _refuse_known(data)
    name = _data_name(data) + ("" if size is None else f"-{size}")
    return prepare(
        data,
        Path("prepared") / name if out is None else Path(out),
        how,
        labels=None if labels is None else Path(labels),
        without=() if without is None else _lines(Path(without)),
        report=report,
    )


def _data_name(data: str) -> str:
    """A word for a folder of results: a path's last part, or a hub set's name."""
    if data.startswith("hf:"):
        return data.split(":")[1].rsplit("/", maxsplit=1)[-1] or "hub"
    name = Path(data).resolve().name if Path(data).is_dir() else Path(data).stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def _refuse_known(data: str) -> None:
    if data in catalogue() or (data.lower() in catalogue() and not Path(data).exists()):
        raise ConfigError(f"{data} is a known set, ready as it is: give a folder or zip of images")


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--without {path} can't be read as text ({error}): give a file with one name a line"
        ) from None

"""What each command does once its flags are parsed: call the library, show progress, print the result.

Each imports what it needs when it is called: a sample does not wait for what scores it, nor a list for torch.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from trilemma.config import require, require_all, shown
from trilemma.errors import ConfigError
from trilemma.files import finite
from trilemma.types import Sampler

if TYPE_CHECKING:
    from trilemma.data import Dataset
    from trilemma.engine import loop
    from trilemma.engine.int8 import Int8

WORDS = Console(stderr=True)
WALK = 16  # images between two samples, at most
TWO_CLASSES = "--class and --label both name the class: give one of them"


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A live bar on standard error with the time left; it is there once a ``Line`` has something to show."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Progress(*columns, console=WORDS, refresh_per_second=2)
    try:
        yield bar
    finally:
        if bar.live.is_started:
            bar.stop()


def is_main() -> bool:
    """Whether this is the only process, or of several the main one, which speaks for all."""
    from trilemma.engine.processes import join, launched

    return not launched() or bool(join().is_main_process)


class Line:
    """One line of the bar."""

    def __init__(self, bar: Progress, title: str) -> None:
        self.bar, self.title = bar, title
        self.task: TaskID | None = None

    def show(self, share: float, note: str = "") -> None:
        """Set the share done, in [0, 1], and the words behind it; of several processes the main one shows it."""
        if not is_main():
            return
        if self.task is None:
            self.bar.start()
            self.task = self.bar.add_task(escape(self.title), total=1.0, note="")
        self.bar.update(self.task, completed=min(1.0, share), note=escape(note))


def training_report(bar: Progress, title: str) -> Callable[[loop.Progress], None]:
    """Shows a training: share of the budget, images a second, losses, the last quick score."""
    line = Line(bar, f"train {title}")

    def report(progress: loop.Progress) -> None:
        for warning in progress.warnings:
            WORDS.print(f"warning: {title}: {warning}", markup=False, highlight=False)
        notes = [f"{progress.images:,} images"]
        if progress.seconds > 0:
            notes.append(f"{progress.images / progress.seconds:.0f}/s")
        notes += [f"{name} {value:.3g}" for name, value in progress.losses.items()]
        notes += [f"{name} {value:.1f}" for name, value in progress.scores.items()]
        line.show(progress.fraction, "  ".join(notes))

    return report


def evaluation_report(bar: Progress, title: str) -> Callable[[str, int, int], None]:
    """Shows an evaluation: what is being done and how far."""
    line = Line(bar, f"score {title}")
    return lambda what, done, total: line.show(done / total, f"{what} {done:,}/{total:,}")


def name_skipped(data: Dataset) -> None:
    """Say on standard error which files of the data could not be used, the first few by name."""
    count = len(data.skipped)
    if count and is_main():
        first = "; ".join(data.skipped[:3]) + ("; ..." if count > 3 else "")
        print(f"skipped {count} file{'s' if count > 1 else ''}: {first}", file=sys.stderr)


def run_race(command: Any) -> None:
    """``trilemma race``."""
    from trilemma import api

    require(0 <= command.seed < 2**31, f"--seed must be from 0 to 2147483647, not {command.seed}")
    methods = [name.strip() for name in command.methods.split(",") if name.strip()]
    require(bool(methods), "--methods needs at least one method, for example ddpm,ddgan")
    with progress_bar() as bar:
        table, page = api.race(
            command.data,
            methods,
            out=command.out,
            minutes=command.minutes,
            images=command.images,
            flops=command.flops,
            samples=command.samples,
            seed=command.seed,
            resume=command.resume,
            size=command.size,
            data_root=command.data_root,
            extractor=command.extractor,
            extractor_weights=command.extractor_weights,
            on_data=name_skipped,
            on_train=lambda row: training_report(bar, row.folder.name),
            on_evaluate=lambda row, sampler: evaluation_report(bar, _row_title(row.folder, sampler)),
        )
    if is_main():
        _print_table(table)
        print(f"report: {page}")


def _row_title(folder: Path, sampler: Sampler) -> str:
    return folder.name if sampler.steps is None else f"{folder.name}, {sampler.steps} steps"


def run_train(command: Any) -> None:
    """``trilemma train``."""
    if command.forecast:
        _print_forecast(command)
        return
    from trilemma import api

    with progress_bar() as bar:
        folder = api.train(
            **_training(command),
            resume=command.resume,
            tracker=command.tracker,
            report=training_report(bar, command.method),
        )
    if is_main():
        print(folder)


def _training(command: Any) -> dict[str, Any]:
    """What ``train`` and its forecast are told alike."""
    flags = "method data out recipe minutes images flops seed size data_root options"
    told = {flag: getattr(command, flag) for flag in flags.split()}
    return told | {"training_options": command.training, "on_data": name_skipped}


def _print_forecast(command: Any) -> None:
    from trilemma import api

    require(not command.resume, "--forecast is for a training from its start: leave out --resume")
    found = api.forecast(**_training(command))
    print("\n".join(found.lines()))


def run_sample(command: Any) -> None:
    """``trilemma sample``."""
    from trilemma.engine.generator import Generator, sample_seeds
    from trilemma.engine.outputs import check_out, save_path, save_samples, save_steps, save_trajectory, save_walk

    wrong: list[str] = []
    batch_size = _count_or(command.batch_size, "auto", "--batch-size", wrong)
    steps = _numbers(command.steps, int, "--steps takes whole numbers, for example 4 or 1,2,4,8", wrong)
    us = _numbers(command.u, float, "--u takes points of the path, for example 0,0.25,0.5,0.75,1", wrong)
    ends = _numbers(command.interpolate, int, "--interpolate takes two samples' numbers, for example 0,1", wrong)
    pictures = [flag for flag in ("trajectory", "u", "interpolate") if getattr(command, flag)]
    pictures += ["steps"] if len(steps) > 1 else []
    named = " and ".join(f"--{flag}" for flag in pictures)
    auto = command.batch_size == "auto"
    require_all(
        *((False, problem) for problem in wrong),
        (command.n >= 1, f"--n must be at least 1, not {command.n}"),
        (batch_size is None or batch_size >= 1, f"--batch-size must be at least 1, not {batch_size}"),
        (0 <= command.seed < 2**31, f"--seed must be from 0 to 2147483647, not {command.seed}"),
        (len(pictures) <= 1, f"{named} are different pictures: choose one"),
        (not (auto and pictures), "--batch-size auto is for single images: give it a number"),
        (len(ends) in (0, 2) and all(end >= 0 for end in ends), f"--interpolate takes two samples, not {ends}"),
        (command.label is None or command.class_ is None, TWO_CLASSES),
    )
    generator = Generator.load(command.run)
    check_out(command.out, generator.spec, trajectory=bool(pictures))
    label = _label(command)
    samplers = [
        Sampler(
            steps=count,
            eta=command.eta,
            variance=command.variance,
            truncation=command.truncation,
            label=label,
        )
        for count in steps or [None]
    ]
    words = [generator.method.describe(sampler) for sampler in samplers]  # each is refused if it is not offered
    sampler = samplers[0]
    seeds = sample_seeds(command.seed, 0, command.n)
    main = is_main()
    if pictures and not main:
        return  # these are made by one process
    if len(steps) > 1:
        with progress_bar() as bar:
            show = Line(bar, f"sample with {command.steps} steps").show
            path = save_steps(generator, seeds, samplers, command.out, batch_size=batch_size or 1, advance=show)
    elif command.trajectory:
        path = save_trajectory(generator, seeds, sampler, command.out)
    elif us:
        path = save_path(generator, seeds, us, command.out)
    elif ends:
        chosen = [sample_seeds(command.seed, end, end + 1)[0] for end in ends]
        path = save_walk(generator, chosen[0], chosen[1], command.out, steps=min(command.n, WALK))
    else:
        with progress_bar() as bar:
            line, done = Line(bar, f"sample ({words[0]})"), 0

            def advance(made: int) -> None:
                nonlocal done
                done += made
                line.show(done / command.n)

            x = generator.shared(seeds, sampler, batch_size=batch_size, advance=advance)
        if not main:
            return
        path = save_samples(x, generator.spec, command.out)
    print(path)


def _label(command: Any) -> int | None:
    """The number of the class asked for by --class or --label."""
    from trilemma.engine.run import Run

    label: int | None = command.label
    return label if command.class_ is None else Run.open(command.run).class_number(command.class_)


def _numbers(text: str | None, kind: Callable[[str], Any], problem: str, wrong: list[str]) -> list[Any]:
    """Numbers between commas; none where there is no text, or where it is none, which ``wrong`` is told."""
    try:
        return [kind(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        wrong.append(f"{problem}, not {shown(text)}")
        return []


def _count_or(text: str, word: str, flag: str, wrong: list[str]) -> int | None:
    """The number of images that a flag gives; none for ``word``, which leaves it open. ``wrong`` is told of others."""
    try:
        return None if text == word else int(text if text.isdecimal() else "")
    except ValueError:
        wrong.append(f"{flag} takes a whole number or {word}, not {shown(text)}")
        return None


def run_evaluate(command: Any) -> None:
    """``trilemma evaluate``."""
    from trilemma import api
    from trilemma.engine.images import are_images, result_folder

    wrong: list[str] = []
    reference_samples = _count_or(command.reference_samples, "all", "--reference-samples", wrong)
    require_all(
        *((False, problem) for problem in wrong),
        (0 <= command.seed < 2**31, f"--seed must be from 0 to 2147483647, not {command.seed}"),
    )
    with progress_bar() as bar:
        result = api.evaluate(
            command.run,
            samples=command.samples,
            steps=command.steps,
            eta=command.eta,
            variance=command.variance,
            truncation=command.truncation,
            label=command.label,
            seed=command.seed,
            extractor=command.extractor,
            extractor_weights=command.extractor_weights,
            data=command.data,
            data_root=command.data_root,
            report=evaluation_report(bar, str(command.run)),
            repeats=command.repeats,
            cache=command.cache,
            reference_samples=reference_samples,
            name=command.name,
            out=command.out,
            size=command.size,
            on_data=name_skipped,
        )
    if not is_main():
        return
    if command.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("score", "value")
    for name, value in result["scores"].items():
        low, high = result["intervals"].get(name) or (None, None)
        width = "" if low is None or high is None else f" ± {(high - low) / 2:.2g}"
        table.add_row(name, "—" if value is None else f"{value:.4g}{width}")
    _print_table(table)
    for name, reason in result["protocol"].get("cautions", {}).items():
        print(f"caution, {name}: {reason}")
    if are_images(command.run, command.data):
        print(f"scored {result['protocol']['seeds']}", file=sys.stderr)
        print(f"scores: {result_folder(command.run, command.name, command.out)}")


def run_compare(command: Any) -> None:
    """``trilemma compare``."""
    from trilemma import api

    _print_table(api.compare(command.runs, out=command.out, force=command.force, figures=command.figures))
    print(f"report: {command.out}")
    if command.figures is not None:
        print(f"figures: {command.figures}")


def run_bench(command: Any) -> None:
    """``trilemma bench``."""
    from trilemma import api
    from trilemma.comparison import bench_table

    wrong: list[str] = []
    steps = _numbers(command.steps, int, "--steps takes whole numbers, for example 1,2,4,8", wrong)
    batches = _numbers(command.batches, int, "--batches takes whole numbers, for example 1,16,100", wrong)
    require_all(*((False, problem) for problem in wrong))
    with progress_bar() as bar:
        line = Line(bar, "measure")
        results = api.bench(
            command.runs,
            steps=steps,
            batches=batches,
            threads=command.threads,
            repeats=command.repeats,
            limit_seconds=command.seconds,
            report=lambda what, done, total: line.show(done / total, what),
        )
    if command.json:
        print(json.dumps(results[0] if len(results) == 1 else results, indent=2))
        return
    _print_table(bench_table(results))


def run_convert(command: Any) -> None:
    """``trilemma convert``."""
    from trilemma import api

    print(api.convert(command.file, command.run, config=command.config, kind=command.as_))


def run_export(command: Any) -> None:
    """``trilemma export``."""
    from trilemma import api

    wrong: list[str] = []
    batch = _count_or(command.batch, "dynamic", "--batch", wrong)
    require_all(
        *((False, problem) for problem in wrong), (command.label is None or command.class_ is None, TWO_CLASSES)
    )
    sampler = Sampler(
        steps=command.steps,
        eta=command.eta,
        variance=command.variance,
        truncation=command.truncation,
        label=_label(command),
    )
    made = api.export(
        command.run,
        format=command.format,
        out=command.out,
        batch=batch,
        sampler=sampler,
        tolerance=command.tolerance,
        int8=_int8(command),
    )
    for name, shape in made.inputs.items():
        print(f"{name}: {' x '.join(map(str, (made.batch or 'N', *shape)))}", file=sys.stderr)
    print(f"largest difference from PyTorch: {made.difference:.2g}", file=sys.stderr)
    ratio = made.seconds_torch / made.seconds
    print(f"a batch takes {1e3 * made.seconds:.3g} ms, {ratio:.2f} times as fast as PyTorch", file=sys.stderr)
    for name, (before, after) in made.scores.items():
        print(f"{name}: {before:.4g} in float32, {after:.4g} in eight bits", file=sys.stderr)
    print(made.path)


def _int8(command: Any) -> Int8 | None:
    """How eight bits are judged, if they are asked for."""
    given = {name: getattr(command, name) for name in ("samples", "fid_rise", "extractor", "data_root")}
    given = {name: value for name, value in given.items() if value is not None}
    if command.int8:
        from trilemma.engine.int8 import Int8

        return Int8(**given)
    if given:
        flags = " and ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{flags}: for --int8 alone, which is not given")
    return None


def run_list(command: Any) -> None:
    """``trilemma list``."""
    from trilemma.listing import listing

    del command
    for heading, entries in listing().items():
        print(f"{heading}:")
        width = max(len(name) for name in entries)
        for name, line in entries.items():
            print(f"  {name:<{width}}  {line}")


def _print_table(table: Table) -> None:
    """On standard output, as wide as the terminal, or wide enough when it goes into a file."""
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 180).print(table)


def run_extractor(command: Any) -> None:
    """``trilemma extractor train``."""
    from trilemma import api
    from trilemma.measure.classifier import read_made

    with progress_bar() as bar:
        path = api.train_extractor(
            command.data,
            out=command.out,
            test=command.test,
            minutes=command.minutes,
            images=command.images,
            size=command.size,
            seed=command.seed,
            flip=command.flip,
            width=command.width,
            data_root=command.data_root,
            report=training_report(bar, "extractor"),
            on_data=name_skipped,
        )
    made = read_made(path)
    print(f"{made['test_accuracy']:.4f} of {made['test_images']:,} test images right ({made['test']})", file=sys.stderr)
    print(path)


def run_verify_resume(command: Any) -> None:
    """``trilemma verify-resume``."""
    from trilemma import api

    require(0 <= command.seed < 2**31, f"--seed must be from 0 to 2147483647, not {command.seed}")
    with progress_bar() as bar:
        found = api.verify_resume(
            command.method,
            command.data,
            recipe=command.recipe,
            steps=command.steps,
            kill_in=command.kill_in,
            seed=command.seed,
            size=command.size,
            data_root=command.data_root,
            out=command.out,
            report=Line(bar, f"verify {command.method}").show,
        )
    how = f"{found.tensors} tensors after {found.steps} steps, killed in step {found.killed_in} and resumed"
    if found.difference is not None:
        print(f"{found.difference} differs ({how})")
        sys.exit(1)
    print(f"bit-identical: {how}")


def run_data(command: Any) -> None:
    """``trilemma data check`` and ``trilemma data prepare``."""
    check = command.action == "check"
    usual = {"size": None, "gray": False, "crop": "center", "filter": "lanczos", "without": None}
    misplaced = [flag for flag, value in usual.items() if getattr(command, flag) != value] if check else []
    misplaced += ["json"] if command.json and not check else []
    other = "prepare" if check else "check"
    require(not misplaced, f"--{', --'.join(misplaced)}: for data {other}, not for data {command.action}")
    if check:
        _check_data(command)
    else:
        _prepare_data(command)


def _check_data(command: Any) -> None:
    from trilemma import api

    with progress_bar() as bar:
        line = Line(bar, f"check {command.data}")
        found = api.check_data(
            command.data,
            out=command.out,
            labels=command.labels,
            report=lambda what, done, total: line.show(done / total, what),
        )
    if command.json:
        print(json.dumps(finite(found), indent=2))
    else:
        _print_check(found)


def _prepare_data(command: Any) -> None:
    from trilemma import api
    from trilemma.data import load_data

    try:
        with progress_bar() as bar:
            line = Line(bar, f"prepare {command.data}")
            folder = api.prepare_data(
                command.data,
                out=command.out,
                size=command.size,
                gray=command.gray,
                crop=command.crop,
                filter=command.filter,
                labels=command.labels,
                without=command.without,
                report=lambda done, total: line.show(done / total, f"{done:,}/{total:,} images"),
            )
    except KeyboardInterrupt:
        print("trilemma: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    name_skipped(load_data(str(folder.resolve())))  # in full, lest a folder called digits be taken for the set
    print(folder)


def _print_check(found: dict[str, Any]) -> None:
    """Two tables: what the images are, and what is wrong with them."""
    about = Table("images", f"{found['images']:,} of {escape(found['source'])}")
    for name in ("formats", "modes", "sizes", "classes"):
        counts = list((found[name] or {}).items())
        words = ", ".join(f"{key} {count:,}" for key, count in counts[:8]) + (", ..." if len(counts) > 8 else "")
        about.add_row(name, escape(words or "none"))
    side, ratio = found["shorter_side"], found["aspect_ratio"]
    about.add_row("shorter side", f"{side['least']} to {side['most']} pixels, median {side['median']}")
    about.add_row("width / height", f"{ratio['least']:.2f} to {ratio['most']:.2f}, median {ratio['median']:.2f}")
    about.add_row("contact sheet", escape(found["contact_sheet"]))
    about.add_row("all that was found", escape(str(Path(found["contact_sheet"]).with_name("check.json"))))
    _print_table(about)
    if not found["problems"]:
        print("no problems found")
        return
    table = Table("problem", "count", "what mends it", "for example")
    for each in found["problems"]:
        examples = "; ".join(each["examples"][:3])
        table.add_row(*(escape(text) for text in (each["problem"], f"{each['count']:,}", each["fix"], examples)))
    _print_table(table)

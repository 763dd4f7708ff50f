"""Run folders become rows, rows become tables; what is missing, broken or unequal is said in one line."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fake_runs import evaluation, point_runs, race, run_folder
from trilemma import api
from trilemma.cli import Compare, parse
from trilemma.comparison import comparison_table, differences, markdown_table, read_rows, refuse_unequal
from trilemma.errors import ConfigError, RunError
from trilemma.report import write_report
from trilemma.rows import MARK_MEANS, Row, column, labels, marks, rankable, ranking, ties
from trilemma.words import count, duration, half_width, significant


def printed(rows: list[Row], width: int = 80) -> str:
    stream = StringIO()
    Console(file=stream, width=width).print(comparison_table(rows))
    return stream.getvalue()


def problem(*runs: Path) -> str:
    with pytest.raises(RunError) as caught:
        read_rows(runs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_evaluation_is_a_row(tmp_path: Path) -> None:
    ddgan, ddpm, _ = race(tmp_path)
    evaluation(ddpm, tag="ddim9", row={"title": "DDIM", "sampler": "9 steps"})
    evaluation(ddpm, tag="ddim100", row={"title": "DDIM", "sampler": "100 steps"})
    rows = read_rows([ddgan, ddpm])
    assert [row.tag for row in rows] == ["default", "default", "ddim9", "ddim50", "ddim100"]
    first = rows[0]
    assert (first.title, first.method, first.sampler, first.kind) == ("DDGAN, T = 4", "ddgan", "4 steps", "images")
    assert (first.scores.fid, first.scores.recall, first.scores.nfe) == (72.14, 0.621, 4)
    assert first.scores.modes is None
    assert (first.parameters, first.training_images, first.training_seconds) == (712_345, 92_160, 1201.5)
    assert first.samples == ddgan / "eval/default/samples.png"
    assert rows[3].trajectory == ddpm / "eval/ddim50/trajectory.png"
    assert len(first.log) == 200
    assert first.log[9].fid is not None and first.log[8].fid is None
    assert set(first.log[0].losses) == {"generator", "discriminator"}


def test_a_race_stands_for_its_runs_and_no_run_counts_twice(tmp_path: Path) -> None:
    runs = race(tmp_path / "race")
    (tmp_path / "race" / "notes").mkdir()
    assert [row.run for row in read_rows([tmp_path / "race"])] == [runs[0], runs[1], runs[1], runs[2]]
    assert len(read_rows([tmp_path / "race", runs[0]])) == 4


def test_points_are_told_from_images(tmp_path: Path) -> None:
    rows = read_rows(point_runs(tmp_path))
    assert [row.kind for row in rows] == ["points", "points"]
    assert [row.scores.modes for row in rows] == [24, 25]
    text = printed(rows)
    assert "Modes" in text and "In 4" in text and "FID" not in text


@pytest.mark.parametrize("name", ["ddgan-mnst", "ddgan_mnist"])
def test_a_path_that_does_not_exist_names_the_nearest(tmp_path: Path, name: str) -> None:
    run_folder(tmp_path / "ddgan-mnist")
    assert problem(tmp_path / name).endswith(f"does not exist: did you mean {tmp_path / 'ddgan-mnist'}?")


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("hello", encoding="utf-8")
    assert "empty is not a run folder: no config.json; " in problem(tmp_path / "empty")
    assert "file.txt is not a run folder: it is a file; " in problem(tmp_path / "file.txt")
    assert "there is no folder" in problem(tmp_path / "nowhere" / "run")
    assert "nothing to compare" in problem()


def test_a_run_without_scores_says_how_to_get_them(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "my run")
    assert problem(run) == f"{run} has not been evaluated: trilemma evaluate '{run}'"
    assert problem(tmp_path) == f"{run} has not been evaluated: trilemma evaluate '{run}'"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "cannot be read"),
        ("[1]", "does not hold a JSON object"),
        ('{"row": {}, "scores": {}}', "no object named 'protocol'"),
        ('{"row": {}, "scores": {"fid": "low"}, "protocol": {}}', "score 'fid' is 'low', not a number"),
        ('{"row": {}, "scores": {"fid": true}, "protocol": {}}', "score 'fid' is True, not a number"),
    ],
)
def test_broken_evaluations(tmp_path: Path, text: str, expected: str) -> None:
    run = run_folder(tmp_path / "run")
    (run / "eval.json").write_text(text, encoding="utf-8")
    message = problem(run)
    assert expected in message
    assert message.endswith(f"evaluate again: trilemma evaluate {run}")


def test_a_half_written_last_log_line_is_left_out_and_any_other_refused(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    evaluation(run)
    log = run / "log.jsonl"
    log.write_text('{"step": 1, "images": 32, "seconds": 1.5, "losses": {"g": 0.5, "bad": null}}\n\n{"step": 2, "im')
    (point,) = read_rows([run])[0].log
    assert (point.step, point.images, point.seconds, dict(point.losses), point.fid) == (1, 32, 1.5, {"g": 0.5}, None)
    log.write_text('{"step"\n{"step": 2}\n', encoding="utf-8")
    assert "log.jsonl line 1 is not JSON" in problem(run)
    log.unlink()
    assert read_rows([run])[0].log == ()


def test_missing_pictures_and_fields_are_no_error(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (run / "eval.json").write_text('{"row": {}, "scores": {"fid": null}, "protocol": {}}', encoding="utf-8")
    (row,) = read_rows([run])
    assert (row.title, row.method, row.sampler, row.samples) == ("DDGAN, T = 4", "ddgan", "default", None)
    assert "—" in printed([row]) and "—" in markdown_table([row])


def test_equal_terms_have_no_differences(tmp_path: Path) -> None:
    race(tmp_path)
    assert differences(read_rows([tmp_path])) == ()


@pytest.mark.parametrize(
    ("field", "value", "affects", "name"),
    [
        ("data_digest", "0" * 64, "quality", "data digest"),
        ("extractor_digest", "0" * 64, "quality", "feature extractor's digest"),
        ("reference_samples", 5000, "quality", "number of reference samples"),
        ("generated_samples", 500, "quality", "number of generated samples"),
        ("generated_samples", None, "quality", "number of generated samples"),
        ("lossless", False, "quality", "images kept without loss"),
        ("reference_seed", 1, "quality", "choice of the reference samples"),
        ("kid_subsets", 50, "quality", "number of KID's subsets"),
        ("metric_seed", 1, "quality", "seed of the scores"),
        ("precision", "bfloat16", "speed", "floating-point type of sampling"),
        ("threads", 8, "speed", "number of threads"),
        ("hardware", {"cpu": "another"}, "speed", "hardware"),
    ],
)
def test_unequal_terms_are_named_and_stop_the_ranking(
    tmp_path: Path, field: str, value: object, affects: str, name: str
) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    rows[-1] = replace(rows[-1], protocol={**rows[-1].protocol, field: value})
    (found,) = differences(rows)
    assert (found.name, found.affects) == (name, affects)
    assert len(found.values) == 2 and found.values[1][1] == ("SPI-GAN",)
    assert found.odd == (3,) and marks([found]) == {3: name}
    assert f"- Not equal: {name} differs, " in markdown_table(rows)
    assert [line.split(" | ")[0] for line in markdown_table(rows).splitlines() if "≠ |" in line] == ["| SPI-GAN ≠"]
    assert f"- ≠: {MARK_MEANS}." in markdown_table(rows).splitlines()
    assert found.sentence().endswith("(SPI-GAN)")
    assert name in " ".join(printed(rows).split())
    assert "SPI-GAN ≠" in printed(rows, 200) and "DDPM ≠" not in printed(rows, 200) and MARK_MEANS in printed(rows, 200)
    fid, speed = column("fid"), column("images_per_second_batch_100")
    assert (ranking(rows, fid, (found,)) == []) == (affects == "quality")
    assert (3 in ranking(rows, speed, (found,))) == (affects != "speed")
    assert ranking(rows, speed, (found,)) != []  # three rows on equal terms are ranked


def test_times_are_ranked_among_those_on_the_terms_of_more_than_half(tmp_path: Path) -> None:
    race(tmp_path)
    rows, speed = read_rows([tmp_path]), column("images_per_second_batch_100")

    def on(*threads: int) -> list[Row]:
        return [replace(row, protocol={**row.protocol, "threads": t}) for row, t in zip(rows, threads, strict=True)]

    one, two = on(1, 1, 1, 8), on(1, 1, 8, 8)
    (odd,), (tie,) = differences(one), differences(two)
    assert rankable(one, "speed", [odd]) == {0, 1, 2} and rankable(two, "speed", [tie]) == set()
    assert rankable(one, "quality", [odd]) == {0, 1, 2, 3}
    assert "differs, times are ranked among most rows alone: " in odd.sentence()
    assert "differs, times cannot be ranked: " in tie.sentence()
    assert ranking(one, speed, [odd]) == ranking(one[:3], speed, []) != []
    assert ranking(two, speed, [tie]) == []
    both = [odd, replace(odd, odd=(0, 1)), odd]  # another condition that splits them in two
    assert rankable(one, "speed", both) == set()


def test_a_budget_is_equal_in_images_or_in_seconds(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", title="Other")
    evaluation(a)
    evaluation(b, row={"title": "Other"}, protocol={"training_seconds": 90})
    assert differences(read_rows([a, b])) == ()
    evaluation(b, row={"title": "Other"}, protocol={"training_seconds": 90, "training_images": 1000})
    (found,) = differences(read_rows([a, b]))
    assert (found.affects, found.values[1]) == ("training", ("1,000 in 90 s", ("Other",)))


def trained(rows: list[Row], *configs: dict[str, object]) -> list[Row]:
    """The rows with other statements in their config.json."""
    return [replace(row, config={**row.config, **config}) for row, config in zip(rows, configs, strict=True)]


LAPTOP = {"cpu": "A", "cores": 2, "threads": 2, "memory_gib": 8.0, "gpu": None}
SERVER = {"cpu": "B", "cores": 2, "threads": 2, "memory_gib": 8.0, "gpu": None}


def test_the_same_seconds_on_another_machine_are_another_training(tmp_path: Path) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    one, other = {"hardware": LAPTOP}, {"hardware": SERVER}
    (found,) = differences(trained(rows, one, one, one, other))
    assert (found.name, found.affects, found.odd) == ("training hardware", "training", (3,))
    assert "training hardware differs, the same seconds are not the same training: cpu A, " in found.sentence()
    assert "the same seconds" in markdown_table(trained(rows, one, one, one, other))
    assert differences(trained(rows, one, one, one, one)) == ()
    assert differences(trained(rows, one, one, one, {"hardware": {**LAPTOP, "memory_gib": 16.0}})) == ()
    assert differences(trained(rows, one, {}, one, {"hardware": "a laptop"})) == ()  # unknown is not different
    assert differences(trained(rows, one, one, one, {"hardware": {"cpu": "A"}})) == ()
    level = [replace(row, training_images=1000.0) for row in rows]  # the machine decides nothing then
    assert differences(trained(level, one, one, one, other)) == ()


def test_other_training_data_and_another_seed_are_named(tmp_path: Path) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    data, other = ({"name": "mnist", "digest": digit * 64} for digit in "ab")
    found = differences(trained(rows, {"data": data}, {"data": other}, {"data": data}, {"data": data, "seed": 1}))
    assert [(one.name, one.affects, one.odd) for one in found] == [
        ("digest of the training data", "training", (1,)),
        ("training seed", "training", (3,)),
    ]
    assert "not trained on the same data: aaaaaaaaaaa… (DDGAN, T = 4 · DDIM · SPI-GAN)" in found[0].sentence()
    assert ranking(rows, column("fid"), found) == [3]  # scores made alike can still be ranked
    assert marks(found) == {1: "digest of the training data", 3: "training seed"}
    assert differences(trained(rows, {"data": data}, {"data": {}}, {"data": None}, {"data": data, "seed": None})) == ()


def test_of_two_rows_the_second_is_marked_and_of_budgets_those_off_the_most_common(tmp_path: Path) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    other = replace(rows[1], protocol={**rows[1].protocol, "threads": 8})
    assert marks(differences([rows[0], other])) == {1: "number of threads"}
    assert marks(differences([other, rows[0]])) == {1: "number of threads"}
    longer = [replace(rows[0], training_seconds=9000.0, training_images=1.0), *rows[1:]]
    (found,) = differences(longer)
    assert (found.name, found.odd) == ("training budget", (0,))  # the others agree in seconds, not in images
    nothing = [replace(rows[0], training_seconds=None, training_images=None), *rows[1:]]
    assert marks(differences(nothing)) == {0: "training budget"}
    assert differences([replace(row, training_seconds=None, training_images=None) for row in rows]) == ()


def test_scores_to_read_with_care_are_told_below_the_table(tmp_path: Path) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    assert "caution" not in printed(rows, 200)
    few = {"fid": "20 samples in 64 dimensions: biased", "density": "too\nsparse\x1b[31m"}
    rows = [replace(row, protocol={**row.protocol, "cautions": few}) for row in rows]
    lines = [line.strip() for line in printed(rows, 200).splitlines()]
    assert lines.count("caution, FID: 20 samples in 64 dimensions: biased") == 1
    assert lines.count("caution, Dens.: too sparse [31m") == 1


def test_labels_are_distinct_and_short(tmp_path: Path) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    assert labels(rows) == ["DDGAN, T = 4", "DDPM", "DDIM", "SPI-GAN"]
    same = [replace(rows[1], title="A"), replace(rows[2], title="A"), rows[3], replace(rows[3], run=Path("other"))]
    assert labels(same) == ["A, 1000 steps", "A, 50 steps", "SPI-GAN (spigan)", "SPI-GAN (other)"]
    assert len(set(labels([rows[0], replace(rows[0], run=Path("x") / rows[0].run.name)]))) == 2


def test_ranking_shares_ties_and_needs_a_contest(tmp_path: Path) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    assert ranking(rows, column("fid"), ()) == [3]
    assert ranking(rows, column("recall"), ()) == [1]
    assert ranking(rows, column("inception_score"), ()) == []  # all of them tied
    assert ranking(rows, column("parameters"), ()) == []
    assert ranking(rows[:1], column("fid"), ()) == []
    twin = replace(rows[3], scores=replace(rows[3].scores, fid=16.312))  # shown alike, so no winner
    assert ranking([*rows, twin], column("fid"), ()) == [3, 4]
    broken = replace(rows[3], scores=replace(rows[3].scores, fid=float("nan")))
    assert ranking([rows[0], rows[1], broken], column("fid"), ()) == [1]


def test_the_terminal_table_fits_eighty_columns(tmp_path: Path) -> None:
    race(tmp_path)
    text = printed(read_rows([tmp_path]))
    assert max(map(len, text.splitlines())) <= 80
    for shown in ("DDGAN, T = 4", "1000 steps", "16.3", "0.0113", "0.742", "2,610", "0.00310", "712 k", "20 min"):
        assert shown in text


def test_names_are_text_in_both_tables(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    evaluation(run, row={"title": "[red]a|b[/red]\n*c*", "sampler": "<b>"})
    rows = read_rows([run])
    assert "[red]a|b[/red]" in printed(rows, 200)
    line = markdown_table(rows).splitlines()[2]
    assert line.startswith("| \\[red\\]a\\|b\\[/red\\] \\*c\\* | &lt;b> |")


def test_the_markdown_table(tmp_path: Path) -> None:
    race(tmp_path)
    lines = markdown_table(read_rows([tmp_path])).splitlines()
    assert lines[0].startswith("| Method | Sampler | Params | Training | FID ↓ | KID ↓ | IS ↑ | Prec. ↑ | Recall ↑ |")
    assert lines[5].startswith(
        "| SPI-GAN | 1 step | 534 k | 101 k in 20 min | **16.3** | **0.0113** | 8.93 | **0.773** |"
    )
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"), (0, "0"), (0.0123456, "0.0123"), (9.996, "10.0"), (72.14, "72.1"), (999.9, "1,000"),
        (2613, "2,610"), (-0.00034, "-0.000340"), (1.2345e-7, "1.23e-07"), (float("nan"), "NaN"),
        (float("inf"), "∞"),
    ],
)  # fmt: skip
def test_significant_digits(value: float | None, text: str) -> None:
    assert significant(value) == text


def test_counts_and_durations() -> None:
    assert [count(n) for n in (2000, 92_160, 712_345, 35_700_000)] == ["2,000", "92.2 k", "712 k", "35.7 M"]
    assert [duration(s) for s in (0.42, 75, 1201.5, 12_000)] == ["0.42 s", "75 s", "20 min", "3.3 h"]


def test_neither_compare_nor_report_imports_torch(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    evaluation(run)
    code = (
        "import sys; from pathlib import Path; from trilemma.comparison import read_rows, comparison_table;"
        "from trilemma.report import write_report; rows = read_rows([Path(sys.argv[1])]); comparison_table(rows);"
        "write_report(rows, Path(sys.argv[1]) / 'r.html', 't', 'c'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_fake_runs_are_what_a_run_is(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    content = json.loads(evaluation(run).read_text(encoding="utf-8"))
    assert set(content) == {"row", "scores", "protocol"}


# What is refused


def test_rows_scored_otherwise_are_refused_with_the_fields_and_values(tmp_path: Path) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    refuse_unequal(rows)
    other = {**rows[-1].protocol, "generated_samples": 500, "data_digest": "0" * 64, "threads": 8}
    with pytest.raises(ConfigError) as caught:
        refuse_unequal([*rows[:-1], replace(rows[-1], title="SPI\nGAN", protocol=other)])
    assert str(caught.value) == (
        "these rows were not scored alike: data digest is 9f2c41d07be… (DDGAN, T = 4 · DDPM · DDIM) and "
        f"{'0' * 11}… (SPI GAN); number of generated samples is 2000 (DDGAN, T = 4 · DDPM · DDIM) and 500 (SPI GAN); "
        "evaluate them under one protocol, or compare them all the same with --force, which marks what differs"
    )


def test_another_machine_or_budget_is_only_marked(tmp_path: Path) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    other = replace(rows[0], protocol={**rows[0].protocol, "threads": 8}, training_images=9.0, training_seconds=9.0)
    refuse_unequal([other, *rows[1:]])
    assert [difference.affects for difference in differences([other, *rows[1:]])] == ["speed", "training"]


def test_comparing_by_force_marks_what_differs(tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b")
    evaluation(a)
    evaluation(b, row={"title": "Other"}, protocol={"generated_samples": 500})
    page = tmp_path / "page.html"
    with pytest.raises(ConfigError, match=r"number of generated samples is 2000 \(.*\) and 500 \(Other\)"):
        api.compare([a, b], out=page)
    assert not page.exists()
    table = api.compare([a, b], out=page, force=True)
    assert "number of generated samples differs" in str(table.caption)
    assert f"--out {page} --force" in page.read_text(encoding="utf-8")
    evaluation(b, row={"title": "Other"})
    api.compare([a, b], out=page, force=True)
    assert "--force" not in page.read_text(encoding="utf-8")


def test_the_page_s_command_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "write_figures", lambda rows, folder: None)
    run, page, figures = run_folder(tmp_path / "my run"), tmp_path / "my page.html", tmp_path / "my plots"
    evaluation(run)
    api.compare([run], out=page, figures=figures)
    told = re.findall(r"^(?:.*>)?(trilemma compare .*?)</code>", page.read_text(encoding="utf-8"), re.MULTILINE)
    program, verb, *arguments = shlex.split(html.unescape(told[0]))
    assert (program, verb) == ("trilemma", "compare")
    assert parse(Compare, "compare", arguments) == Compare(runs=(run,), out=page, figures=figures)


def test_the_same_reference_under_another_name_is_the_same(tmp_path: Path) -> None:
    race(tmp_path)
    rows = read_rows([tmp_path])
    names = {"data": "copy", "split": "other", "size": "28x28", "resize": "Lanczos"}
    renamed = replace(rows[0], protocol={**rows[0].protocol, **names})
    assert differences([renamed, *rows[1:]]) == ()
    nameless = [replace(row, protocol={**row.protocol, "data_digest": None}) for row in (renamed, rows[1])]
    assert {difference.name for difference in differences(nameless)} >= {"data", "split"}


RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
YOUNGER = {"size": "28x28", "channels": 1, "resize": "Lanczos", "reference_seed": 0, "lossless": True}
YOUNGER |= {"precision": "float32", "fingerprint": "0" * 16}


@pytest.mark.parametrize("name", ["digits", "mnist", "gaussians"])
def test_results_from_before_a_field_was_compare_among_themselves_and_with_new_ones(name: str) -> None:
    rows = read_rows([RESULTS / name])
    refuse_unequal(rows)
    rows = [row for row in rows if row.protocol["hardware"] == rows[0].protocol["hardware"]]
    assert differences(rows) == ()
    rows = [replace(row, protocol={k: v for k, v in row.protocol.items() if k not in YOUNGER}) for row in rows]
    new = replace(rows[0], protocol={**rows[0].protocol, **YOUNGER})
    refuse_unequal([new, *rows[1:]])
    assert not [difference for difference in differences([new, *rows[1:]]) if difference.affects != "training"]
    lossy = replace(new, protocol={**new.protocol, "lossless": False})
    with pytest.raises(ConfigError, match=r"images kept without loss is false \(.*\) and true"):
        refuse_unequal([lossy, *rows[1:]])


# Images of other programs


def images_folder(folder: Path, title: str = "Theirs") -> Path:
    """What the evaluation of images writes, with made-up scores."""
    folder.mkdir()
    data = {"name": "mnist", "path": None, "spec": {"kind": "images"}, "source": "MNIST"}
    config = {"kind": "images", "title": title, "images": {"path": "their images.zip"}, "data": data}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    nothing = ("seeds", "repeats", "threads", "hardware", "parameters", "training_images", "training_seconds")
    unmeasured = dict.fromkeys(("nfe", "seconds_per_image_batch_1", "images_per_second_batch_100"))
    row = {"title": title, "method": title, "family": "images", "paper": "", "sampler": "from PNG files"}
    protocol = {**dict.fromkeys(nothing), "lossless": True}
    evaluation(folder, row=row, scores={"fid": 12.5, **unmeasured}, protocol=protocol)
    (folder / "eval" / "default" / "trajectory.png").unlink()
    return folder


def test_images_stand_beside_runs(tmp_path: Path) -> None:
    runs = race(tmp_path / "race")
    rows = read_rows([*runs, images_folder(tmp_path / "theirs")])
    refuse_unequal(rows)
    unequal = differences(rows)
    assert [difference.affects for difference in unequal] == ["training"]
    assert ranking(rows, column("fid"), unequal) == [4]
    assert ranking(rows, column("images_per_second_batch_100"), unequal) == [3]
    line = next(line for line in markdown_table(rows).splitlines() if line.startswith("| Theirs"))
    assert line.startswith("| Theirs ≠ | from PNG files | — | — | **12.5** |") and line.endswith("| — | — | — |")
    text = write_report(rows, tmp_path / "page.html", "t", "c").read_text(encoding="utf-8")
    assert "Not in the plot, for want of a speed or a quality score: Theirs" in text


def test_images_without_scores_say_how_to_get_them(tmp_path: Path) -> None:
    folder = images_folder(tmp_path / "theirs")
    (folder / "eval.json").unlink()
    expected = f"trilemma evaluate 'their images.zip' --data mnist --out {folder}"
    assert problem(folder) == f"{folder} has not been evaluated: {expected}"


# Intervals


@pytest.mark.parametrize(
    ("interval", "figure", "text"),
    [
        ((3.52, 3.76), "3.64", "0.12"),
        ((0.612, 0.636), "0.624", "0.012"),
        ((2582.0, 2638.0), "2,610", "28"),
        ((0.0, 4000.0), "2,610", "2,000"),
        ((0.9993, 0.9997), "1.000", "0.0002"),
        ((25.0, 25.0), "25", "0"),
        ((1.0e-7, 1.6e-7), "1.30e-07", "3e-08"),
    ],
)
def test_half_widths(interval: tuple[float, float], figure: str, text: str) -> None:
    assert half_width(interval, figure) == text


def with_intervals(rows: list[Row]) -> list[Row]:
    """The race with intervals for FID and recall: DDIM's FID is too vague to be told apart from the best."""
    widths = {"DDGAN, T = 4": 0.5, "DDPM": 0.5, "DDIM": 50.0, "SPI-GAN": 0.4}
    changed = []
    for row in rows:
        fid, recall, half = row.scores.fid, row.scores.recall, widths[row.title]
        assert fid is not None and recall is not None
        intervals = {"fid": (fid - half, fid + half), "recall": (recall - 0.012, recall + 0.012)}
        changed.append(replace(row, intervals=intervals))
    return changed


def test_scores_show_half_the_width_of_their_intervals(tmp_path: Path) -> None:
    race(tmp_path)
    rows = with_intervals(read_rows([tmp_path]))
    line = markdown_table(rows).splitlines()[5]
    assert "| **16.3 ± 0.4** | **0.0113** |" in line and "| 0.171 ± 0.012 |" in line
    assert "16.3 ± 0.4" in printed(rows, 200)
    assert "16.3 ± 0.4" in write_report(rows, tmp_path / "page.html", "t", "c").read_text(encoding="utf-8")
    assert column("fid").text(replace(rows[0], scores=replace(rows[0].scores, fid=None))) == "—"


def test_the_table_with_intervals_fits_eighty_columns(tmp_path: Path) -> None:
    race(tmp_path)
    rows = with_intervals(read_rows([tmp_path]))
    rows = [
        replace(row, intervals={**row.intervals, "kid": (0.01, 0.0124), "inception_score": (8.5, 9.5)}) for row in rows
    ]
    text = printed(rows)
    assert max(map(len, text.splitlines())) <= 80
    numbers = set(text.split())
    assert {"72.1", "0.5", "0.0612", "0.0012", "0.621", "0.012", "8.93", "0.50", "0.0123", "2,610", "1,000"} <= numbers


def test_rows_tied_with_the_best_share_the_bold_and_are_named(tmp_path: Path) -> None:
    race(tmp_path)
    rows = with_intervals(read_rows([tmp_path]))
    assert ranking(rows, column("fid"), ()) == [3, 2]  # the best first; DDIM's 58.2 ± 50 could be as good as 16.3
    assert ranking(rows, column("recall"), ()) == [1]  # 0.742 ± 0.012 against 0.718 ± 0.012
    (sentence,) = ties(rows, ())
    assert sentence == "FID: not significantly different from the best (SPI-GAN) in a two-sided test at 5 %: DDIM"
    assert f"- {sentence}" in markdown_table(rows).splitlines()
    assert sentence in " ".join(printed(rows, 200).split())
    bold = [line.count("**") for line in markdown_table(rows).splitlines() if "± 50.0" in line]
    assert bold == [2]


def test_two_rows_that_tie_are_both_bold(tmp_path: Path) -> None:
    race(tmp_path)
    rows = with_intervals(read_rows([tmp_path]))
    pair = [rows[2], rows[3]]
    assert ranking(pair, column("fid"), ()) == [1, 0]
    alone = [replace(rows[2], intervals={}), rows[3]]  # without an interval nothing is known
    assert ranking(alone, column("fid"), ()) == [1] and ties(alone, ()) == []


def test_nothing_is_tied_on_unequal_terms(tmp_path: Path) -> None:
    race(tmp_path)
    rows = with_intervals(read_rows([tmp_path]))
    rows[0] = replace(rows[0], protocol={**rows[0].protocol, "generated_samples": 500})
    assert ties(rows, differences(rows)) == []


def test_intervals_are_read_from_the_evaluation(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    path = evaluation(run)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert read_rows([run])[0].intervals == {}
    path.write_text(json.dumps({**content, "intervals": {"fid": [71, 73.5], "kid": [None, None]}}), encoding="utf-8")
    assert read_rows([run])[0].intervals == {"fid": (71.0, 73.5)}
    for broken in ([1, 2], {"fid": [1]}, {"fid": ["low", 2]}, {"fid": 3}):
        path.write_text(json.dumps({**content, "intervals": broken}), encoding="utf-8")
        assert problem(run).endswith(f"evaluate again: trilemma evaluate {run}")

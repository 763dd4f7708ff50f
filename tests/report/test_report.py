"""The page is one file that loads nothing, shows every picture, escapes every name and says what is missing."""

from __future__ import annotations

import base64
import html
import json
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fake_runs import evaluation, point_runs, race, run_folder
from trilemma.comparison import published_for, read_rows
from trilemma.errors import RunError
from trilemma.report import write_report
from trilemma.report.figures import figures, plain
from trilemma.report.headline import corners, findings, headline
from trilemma.report.pictures import embed
from trilemma.report.plots import PUBLISHED, add_published, colours, learning_plots, loss_plots, trilemma_plot
from trilemma.rows import Row, differences, labels

LARGEST = 6_000_000
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
NAME = '<script>alert("x")</script></script> & {{ 7 * 7 }}'


class Page(HTMLParser):
    """The tags with their attributes, the text outside scripts and styles, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def figures(self) -> dict[str, Any]:
        return {entry["id"]: entry["figure"] for entry in json.loads(self.scripts[0])}

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def made(rows: list[Row], folder: Path) -> tuple[str, Page]:
    text = write_report(rows, folder / "report.html", "MNIST race", "trilemma compare runs/*").read_text("utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("runs")
    race(folder)
    return read_rows([folder])


@pytest.fixture(scope="module")
def page(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return made(rows, tmp_path_factory.mktemp("page"))


def test_the_page_loads_nothing(page: tuple[str, Page]) -> None:
    text, parsed = page
    assert len(text.encode()) < LARGEST
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:", "#")), (tag, address)
    assert not any("src" in attributes for attributes in parsed.all("script"))
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style and "@import" not in style
    (policy,) = [m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
    assert text.count("plotly.js v") == 1
    assert "showSendToCloud: false" in text


def test_every_picture_is_inside_byte_for_byte(page: tuple[str, Page], rows: list[Row]) -> None:
    _, parsed = page
    inside = [image["src"] for image in parsed.all("img")]
    assert len(inside) == 4 * len(rows)
    for row in rows:
        for path in (row.samples, row.trajectory, row.neighbours, row.worst):
            assert path is not None
            assert f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" in inside
    assert all(image.get("alt") and image.get("width") for image in parsed.all("img"))


def test_every_place_of_a_plot_has_its_figure_and_back(page: tuple[str, Page]) -> None:
    _, parsed = page
    places = {tag["id"] for tag in parsed.all("div") if "plot" in (tag.get("class") or "").split()}
    learning = {"learning-fid-seconds", "learning-fid-images"}
    assert places == set(parsed.figures) == {"trilemma-images", *learning, "losses-0", "losses-1", "losses-2"}


def test_the_numbers_protocol_and_command_are_in_words(page: tuple[str, Page], rows: list[Row]) -> None:
    _, parsed = page
    for words in (
        "SPI-GAN has the best quality (FID 16.3) and the highest speed (2,610 images/s); DDPM has the best coverage",
        "Some Processor 3000",
        "torch 2.9.0",
        "0..1999",
        "trilemma compare runs/*",
        str(rows[0].run),
        "9f2c41d07be3a5186c0d4e7f9f2c41d07be3a5186c0d4e7f9f2c41d07be3a518",
        "0.00310",
        "92.2 k in 20 min",
    ):
        assert words in parsed.words
    assert "equal terms" not in parsed.words
    assert not any(tag.get("class") == "absent" for tag in parsed.all("p"))


def test_names_stay_text_everywhere(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", title=NAME, method="<b>m</b>", losses=("</script><i>loss</i>",))
    evil = {"title": NAME, "sampler": '"><img src=x onerror=alert(1)>', "paper": "<u>"}
    evaluation(run, row={**evil, "method": "<b>m</b>"}, protocol={"data": "</style>", "<em>": "<em>"}, pictures=False)
    text, parsed = made(read_rows([run]), tmp_path)
    assert NAME in parsed.text and "{{ 7 * 7 }}" in parsed.text
    assert "<script>alert" not in text and "</script><i>" not in text
    assert {tag for tag, _ in parsed.tags} & {"b", "em", "u", "img"} == set()
    assert len(parsed.all("script")) == 3
    # plotly reads tags in its texts, so there the name is escaped once more
    (dot,) = parsed.figures["trilemma-images"]["data"]
    assert dot["text"] == ['&lt;script&gt;alert("x")&lt;/script&gt;&lt;/script&gt; &amp; {{ 7 * 7 }}']
    assert "<script" not in json.dumps(parsed.figures)


def test_unequal_terms_name_a_winner_only_in_speed_among_the_others(rows: list[Row], tmp_path: Path) -> None:
    protocol = {**rows[0].protocol, "data_digest": "0" * 64, "threads": 8}
    unequal = [replace(rows[0], protocol=protocol), *rows[1:]]
    text, parsed = made(unequal, tmp_path)
    assert "not made on equal terms" in parsed.words
    assert "data digest differs, quality and coverage scores cannot be ranked" in parsed.words
    assert "number of threads differs, times are ranked among most rows alone" in parsed.words
    assert "SPI-GAN has the highest speed (2,610 images/s)." in parsed.words and "the best" not in parsed.words
    assert parsed.words.count("not measured on equal terms") == 2
    (mark,) = [tag for tag in parsed.all("span") if tag.get("role") == "img"]
    assert mark["title"] == mark["aria-label"] == "differs in data digest, number of threads"
    assert "DDGAN, T = 4 ≠" in parsed.words and "DDPM ≠" not in parsed.words
    assert "≠ not on the terms that most rows share, or in a tie the first; what differs is listed" in parsed.words
    found = findings(unequal, labels(unequal), differences(unequal))
    assert found[0] == "DDGAN, T = 4 against DDPM: 250 times fewer network evaluations."


def test_missing_pictures_logs_and_scores_are_said_in_words(rows: list[Row], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    scores = replace(rows[0].scores, images_per_second_batch_100=None)
    poor = replace(rows[0], samples=broken, trajectory=None, neighbours=None, worst=None, log=(), scores=scores)
    _, parsed = made([poor], tmp_path)
    assert parsed.all("img") == []
    assert "The picture broken.png cannot be shown" in parsed.words
    assert "No picture: trilemma evaluate draws it." in parsed.words
    assert "Without a training log: DDGAN, T = 4" in parsed.words
    assert "there is no quality curve" in parsed.words
    assert "Not in the plot, for want of a speed or a quality score: DDGAN, T = 4" in parsed.words
    assert parsed.figures == {}


def test_numbers_that_are_not_finite_leave_the_page_whole(rows: list[Row], tmp_path: Path) -> None:
    nan = float("nan")
    spoilt = replace(rows[0], scores=replace(rows[0].scores, fid=nan, recall=nan, images_per_second_batch_100=nan))
    spoilt = replace(spoilt, log=tuple(replace(point, losses={"g": nan}, fid=nan) for point in spoilt.log))
    _, parsed = made([spoilt, rows[3]], tmp_path)
    assert "NaN" in parsed.words and "NaN" not in parsed.scripts[0].replace("FID NaN", "")
    assert [trace["name"] for trace in parsed.figures["learning-fid-seconds"]["data"]] == ["SPI-GAN"]


def test_points(tmp_path: Path) -> None:
    _, parsed = made(read_rows(point_runs(tmp_path)), tmp_path)
    assert "DDPM has the best quality (0.981 of the samples within 4σ) and the best coverage (25 modes)" in parsed.words
    figure = parsed.figures["trilemma-points"]
    assert "share" in figure["layout"]["yaxis"]["title"]["text"]
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < high < 1.05
    assert "FID" not in " ".join(tag.get("title") or "" for tag in parsed.all("button"))


def test_images_and_points_together_get_a_plot_each(rows: list[Row], tmp_path: Path) -> None:
    _, parsed = made([*rows, *read_rows(point_runs(tmp_path))], tmp_path)
    assert {"trilemma-images", "trilemma-points"} <= set(parsed.figures)
    assert "data differs" in parsed.words


def test_up_is_better_right_is_faster_large_covers_more(rows: list[Row]) -> None:
    figure, left_out = trilemma_plot(rows, labels(rows), colours(rows))
    assert figure is not None and left_out == []
    dots = {trace["name"]: trace for trace in figure["data"] if "markers" in trace["mode"]}
    low, high = figure["layout"]["yaxis"]["range"]
    assert low > high  # reversed: a small FID is at the top
    assert dots["SPI-GAN"]["x"][0] > dots["DDPM"]["x"][0]
    area = {name: dot["marker"]["size"] ** 2 for name, dot in dots.items()}
    assert area["DDPM"] / area["SPI-GAN"] == pytest.approx(0.742 / 0.171, rel=0.02)
    assert dots["DDPM"]["marker"]["color"] == dots["DDIM"]["marker"]["color"] != dots["SPI-GAN"]["marker"]["color"]
    assert dots["DDPM"]["marker"]["symbol"] != dots["DDIM"]["marker"]["symbol"]
    assert figure["front"] is False  # SPI-GAN is both the fastest and the best: no staircase


def test_the_front_leaves_out_what_is_beaten(rows: list[Row]) -> None:
    better = replace(rows[1], scores=replace(rows[1].scores, fid=3.0))
    figure, _ = trilemma_plot([rows[0], better, rows[2], rows[3]], labels(rows), colours(rows))
    assert figure is not None and figure["front"] is True
    assert (figure["data"][0]["x"], figure["data"][0]["y"]) == ([1.62, 2613.0], [3.0, 16.31])
    assert figure["layout"]["yaxis"]["type"] == "log"
    quick = replace(rows[2], scores=replace(rows[2].scores, images_per_second_batch_100=9999.0))
    elsewhere = replace(quick, protocol={**quick.protocol, "threads": 8})
    figure, _ = trilemma_plot([rows[0], better, elsewhere, rows[3]], labels(rows), colours(rows))
    assert figure is not None and figure["data"][0]["x"] == [1.62, 2613.0]
    assert figure["note"].endswith("The line of best rows leaves some out, as these terms differ: number of threads.")


@pytest.mark.parametrize(
    ("field", "value", "drawn"),
    [("data_digest", "0" * 64, False), ("threads", 8, False), ("training_seconds", 9.0, True)],
)
def test_rows_on_other_terms_are_open_symbols_and_not_in_the_front(
    rows: list[Row], tmp_path: Path, field: str, value: Any, drawn: bool
) -> None:
    better = replace(rows[1], scores=replace(rows[1].scores, fid=3.0))
    other = replace(better, protocol={**better.protocol, field: value})
    if field == "training_seconds":
        other = replace(other, training_seconds=value, training_images=value)
    unequal = [rows[0], other, rows[2], rows[3]]
    figure, _ = trilemma_plot(unequal, labels(unequal), colours(unequal))
    assert figure is not None and figure["front"] is drawn
    assert any(trace["mode"] == "lines" for trace in figure["data"]) is drawn
    dots = {trace["name"]: trace for trace in figure["data"] if "markers" in trace["mode"]}
    assert dots["DDPM ≠"]["text"] == ["DDPM ≠"] and "≠ differs in " in dots["DDPM ≠"]["hovertemplate"]
    assert [name for name, dot in dots.items() if dot["marker"]["symbol"].endswith("-open")] == ["DDPM ≠"]
    assert dots["DDPM ≠"]["marker"]["color"] == dots["DDIM"]["marker"]["color"]
    _, parsed = made(unequal, tmp_path)
    assert "Open symbols (≠) are rows not on the terms that most rows share" in parsed.words
    assert ("No row beats those on the dotted line" in parsed.words) is drawn
    assert ("There is no line of best rows, as these terms differ: " in parsed.words) is (field == "data_digest")
    paper = figures(unequal)["trilemma-images"]
    assert paper["front"] is drawn and "Open symbols (≠)" in plain(paper)["layout"]["title"]["text"]


def test_on_equal_terms_nothing_is_open_and_the_front_stays(rows: list[Row]) -> None:
    all_rows = read_rows([RESULTS / "mnist"])
    same = [row for row in all_rows if row.protocol["hardware"] == all_rows[0].protocol["hardware"]]
    found = figures(same)["trilemma-images"]
    assert found["front"] is True and found["note"] == "" and "title" not in plain(found)["layout"]
    assert not any(trace.get("marker", {}).get("symbol", "").endswith("-open") for trace in found["data"])
    unmeasured = replace(rows[0], scores=replace(rows[0].scores, recall=None), training_seconds=None)
    figure, _ = trilemma_plot([rows[1], unmeasured], ["A", "B"], ["red", "blue"])
    assert figure is not None
    assert figure["data"][-1]["marker"]["color"] == "blue"  # an open symbol's outline: a clear one would not be seen


def test_the_same_seeds_are_claimed_only_where_they_are_the_same(rows: list[Row], tmp_path: Path) -> None:
    claim = "Every run drew from the same seeds, in the same order"
    other = replace(rows[3], protocol={**rows[3].protocol, "seeds": "seed 1, samples 0 to 1999"})
    theirs = replace(other, config={"kind": "images"})  # of another program: not drawn from seeds
    silent = [replace(row, protocol={**row.protocol, "seeds": None}) for row in rows[:2]]
    assert claim in made(rows, tmp_path)[1].words and claim in made([*rows[:3], theirs], tmp_path)[1].words
    _, parsed = made([*rows[:3], other], tmp_path)
    assert claim not in parsed.words
    told = "0..1999 (DDGAN, T = 4 · DDPM · DDIM); seed 1, samples 0 to 1999 (SPI-GAN). Nothing was picked by hand."
    assert f"The runs did not all draw from the same seeds: {told}" in parsed.words
    _, parsed = made(silent, tmp_path)
    assert claim not in parsed.words and "The seeds are not stated." in parsed.words
    assert "seeds" not in made([theirs], tmp_path)[1].words.split("Samples")[1].split("From noise")[0]


def test_learning_curves_have_one_line_a_run(rows: list[Row]) -> None:
    found = learning_plots(rows, labels(rows), colours(rows))
    assert [(probe, axis) for probe, axis, _, _ in found] == [("fid", "seconds"), ("fid", "images")]
    for _, axis, _, figure in found:
        assert [trace["name"] for trace in figure["data"]] == ["DDGAN, T = 4", "DDPM", "SPI-GAN"]
        assert all(len(trace["x"]) == 20 for trace in figure["data"])
        assert max(figure["data"][0]["x"]) == pytest.approx(getattr(rows[0].log[-1], axis), rel=1e-4)
    losses = loss_plots(rows, labels(rows))
    assert [name for name, _ in losses] == ["DDGAN, T = 4", "DDPM", "SPI-GAN"]
    assert all(len(trace["x"]) <= 160 for _, figure in losses for trace in figure["data"])


def test_warnings_in_training_stand_on_the_curve_and_in_words(rows: list[Row], tmp_path: Path) -> None:
    *before, last = rows[0].log
    last = replace(last, coverage=0.21, warnings=("coverage fell to 0.21 from 0.62 <at> 40,000 images",))
    # The same run under a second sampler tells it only once.
    twice = [replace(rows[0], log=(*before, last)), replace(rows[0], tag="other", log=(*before, last)), rows[3]]
    _, parsed = made(twice, tmp_path)
    for probe, y in (("fid", last.fid), ("coverage", 0.21)):
        *_, marks = parsed.figures[f"learning-{probe}-images"]["data"]
        assert (marks["name"], marks["x"]) == ("warning", [pytest.approx(last.images, rel=1e-4)])
        assert marks["y"] == [pytest.approx(y, rel=1e-4)]
        assert "&lt;at&gt;" in marks["text"][0] and "<br>" in marks["text"][0]
    assert parsed.words.count("coverage fell to 0.21 from 0.62 <at> 40,000 images") == 1


def test_the_commands_that_make_the_rows(rows: list[Row], tmp_path: Path) -> None:
    config = {**rows[0].config, "command": "trilemma train ddgan --data '<my> photos'"}
    protocol = {**rows[0].protocol, "command": "trilemma evaluate runs/it --steps 4"}
    run = tmp_path / "a run"
    told = [replace(rows[0], run=run, tag=tag, config=config, protocol=protocol) for tag in ("default", "other")]
    text, _ = made([*told, rows[3]], tmp_path)
    inside = html.unescape(text.split("<pre", 1)[1].split("</pre>")[0])
    assert inside.count("trilemma train ddgan --data '<my> photos' --out '" + str(run) + "'\n") == 1
    assert inside.count("trilemma evaluate runs/it --steps 4\n") == 1


def test_sentences_come_from_the_numbers(rows: list[Row]) -> None:
    names = labels(rows)
    assert findings(rows, names, ()) == [
        "DDGAN, T = 4 against DDPM: 250 times fewer network evaluations, 248 times as many images a second, "
        "FID 72.1 against 49.7 (1.5 times as high), recall 0.621 against 0.742.",
        "DDGAN, T = 4 against DDIM: 12.5 times fewer network evaluations, 12.1 times as many images a second, "
        "FID 72.1 against 58.2 (1.2 times as high), recall 0.621 against 0.718.",
    ]
    wide = [replace(row, intervals={"fid": (row.scores.fid - 20, row.scores.fid + 20)}) for row in rows[:2]]
    (alike,) = findings(wide, names[:2], ())
    assert "FID 72.1 ± 20.0 against 49.7 ± 20.0 (not significantly different), recall" in alike
    assert headline(rows[:1], names[:1], ()) == "DDGAN, T = 4: FID 72.1, recall 0.621 and 402 images/s."
    all_three = replace(rows[3], scores=replace(rows[3].scores, recall=0.9))
    assert headline([rows[0], all_three], ["A", "B"], ()) == (
        "B leads in all three: FID 16.3, recall 0.900 and 2,610 images/s."
    )
    tied = [replace(rows[3], title=title) for title in ("GAN, ADA", "GAN", "Other")]
    assert headline([*tied, rows[0]], ["GAN, ADA", "GAN", "Other", "D"], ()).startswith("GAN, ADA · GAN · Other share")
    twin = replace(rows[0], title="Twin")
    assert headline([rows[0], twin], ["A", "Twin"], ()).startswith("No row can be called best")
    assert [corner.note for corner in corners([rows[0], twin], ["A", "Twin"], ())] == ["all tied"] * 3
    assert headline([rows[0], rows[0], rows[1]], ["A", "B", "C"], ()) == (
        "C has the best quality (FID 49.7) and the best coverage (recall 0.742); "
        "A and B share the highest speed (402 images/s)."
    )


def test_large_pictures_are_reduced_to_the_budget(tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("L", (224, 224), 30).save(small)
    Image.effect_noise((900, 900), 80).convert("RGB").save(large)
    first, second = embed([small, large], 200_000)
    assert first.note == "" and first.address is not None
    assert base64.b64decode(first.address.split(",")[1]) == small.read_bytes()
    assert second.address is not None and len(second.address) < 200_000
    assert "reduced" in second.note
    assert (second.width, second.height) == (900, 900)


def test_a_picture_too_large_even_as_a_thumbnail_is_left_out(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.effect_noise((900, 900), 80).save(large)
    for budget in (0, 100, 2_000, 20_000):
        (found,) = embed([large], budget)
        assert len(found.address or "") <= budget
        assert ("large.png lies in the run folder" in found.note) is (found.address is None)
    assert found.address is not None and "reduced" in found.note


def test_eight_methods_of_real_pictures_stay_below_the_limit(rows: list[Row], tmp_path: Path) -> None:
    """Noise as 64 x 64 samples would be at worst: 2.8 MB a row."""
    draw, many = random.Random(0), []
    sides = {"samples": (528, 528), "trajectory": (728, 398), "neighbours": (528, 266), "worst": (528, 134)}
    for k in range(8):
        pictures = {}
        for name, (width, height) in sides.items():
            pictures[name] = tmp_path / f"{name}-{k}.png"
            Image.frombytes("RGB", (width, height), draw.randbytes(3 * width * height)).save(pictures[name])
        many.append(replace(rows[k % 4], run=tmp_path / str(k), title=f"Method {k}", method=str(k), **pictures))
    text, parsed = made(many, tmp_path)
    assert 5_500_000 < len(text.encode()) < LARGEST
    assert len(parsed.all("img")) == 4 * 8
    assert parsed.words.count("Shown reduced in size") + parsed.words.count("Shown with 256 colours") >= 8


def test_without_room_the_page_has_no_pictures_and_says_so(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trilemma.report.page.LARGEST_PAGE", 1_000_000)  # less than what draws the plots
    _, parsed = made(rows, tmp_path)
    assert parsed.all("img") == [] and "samples.png lies in the run folder" in parsed.words


def test_nothing_half_written_and_clear_refusals(rows: list[Row], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "down" / "report.html"
    assert write_report(rows[:1], out, "t", "c") == out
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    with pytest.raises(RunError, match="is a folder: give a file name"):
        write_report(rows, tmp_path, "t", "c")
    with pytest.raises(RunError, match="nothing to report"):
        write_report([], out, "t", "c")
    with pytest.raises(RunError, match="cannot write"):
        write_report(rows[:1], out / "below-a-file.html", "t", "c")


# What others published


@pytest.fixture(scope="module")
def cifar(rows: list[Row]) -> list[Row]:
    return [replace(row, protocol={**row.protocol, "data": "cifar10"}) for row in rows]


def test_published_figures_are_hidden_until_asked_for(cifar: list[Row]) -> None:
    figure, _ = trilemma_plot(cifar, labels(cifar), colours(cifar))
    assert figure is not None
    measured = json.loads(json.dumps(figure))
    add_published(figure, published_for(cifar))
    *others, layer = figure["data"]
    assert others == measured["data"]
    assert (layer["visible"], layer["legendgroup"], layer["name"]) == ("legendonly", "published", PUBLISHED)
    assert layer["marker"]["color"] == "rgba(0,0,0,0)"
    assert "other data, other hardware" in layer["name"] and figure["layout"]["showlegend"] is True
    for axis in ("xaxis", "yaxis"):
        assert figure["layout"][axis] == measured["layout"][axis]  # hidden dots squeeze nothing
        assert figure["wide"][axis]["type"] == measured["layout"][axis]["type"]
    low, high = figure["wide"]["xaxis"]["range"]
    assert all(low < math.log10(x) < high for trace in figure["data"] for x in trace["x"])
    bottom, top = figure["wide"]["yaxis"]["range"]
    scale = math.log10 if figure["wide"]["yaxis"]["type"] == "log" else float
    assert all(top < scale(y) < bottom for trace in figure["data"] for y in trace["y"])


def test_a_published_dot_is_where_its_tables_put_it(cifar: list[Row]) -> None:
    figure, _ = trilemma_plot(cifar, labels(cifar), colours(cifar))
    assert figure is not None
    add_published(figure, published_for(cifar))
    layer = figure["data"][-1]
    dots = list(zip(layer["x"], layer["y"], layer["text"], strict=True))
    assert len(dots) == 3 + 13  # those with a time and a FID
    (ours,) = [dot for dot in dots if "<b>SPI-GAN (Ours)</b>" in dot[2]]
    assert ours[:2] == (2500.0, 3.01)  # the time from one table, the FID from another
    assert "Table 1 and Table 3" in ours[2] and "0.04 s for 100 images" in ours[2] and "recall 0.66" in ours[2]
    (slow,) = [dot for dot in dots if "Score SDE (VE)" in dot[2]]
    assert slow[:2] == (pytest.approx(100 / 423.2, rel=1e-4), 2.2)
    assert "FID 2.20" in slow[2] and "Razig" in slow[2]


def test_published_figures_stand_apart(cifar: list[Row], tmp_path: Path) -> None:
    out = write_report(cifar, tmp_path / "full.html", "MNIST race", "c", published=published_for(cifar))
    page, (_, bare) = Page(out.read_text("utf-8")), made(cifar, tmp_path)
    above, below = page.words.split("Published figures, not measured here")
    assert "Score SDE" not in above and "Score SDE" in below and "423.2" in below and "PGGAN" not in below
    assert above.split("The trilemma")[0] == bare.words.split("The trilemma")[0]  # headline, corners and findings
    assert [tag for tag in page.all("table") if tag.get("id") == "scores"]
    for table in ("Table 1", "Table 3", "Model comparison on CIFAR-10 (b)"):
        assert table in below
    assert "Table 2" not in below  # of other data
    assert len(page.figures["trilemma-images"]["data"]) == len(bare.figures["trilemma-images"]["data"]) + 1


def test_without_published_figures_nothing_is_said_of_them(page: tuple[str, Page]) -> None:
    _, parsed = page
    assert "Published figures" not in parsed.words and PUBLISHED not in parsed.scripts[0]
    assert "wide" not in parsed.figures["trilemma-images"]

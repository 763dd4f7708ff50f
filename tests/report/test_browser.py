"""The page as a reader meets it: plots are drawn, keys work, nothing is loaded and no error is reported; also in the
dark, on a phone and on paper."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from browser import needs_chromium, opened, visit
from fake_runs import race
from trilemma.comparison import published_for, read_rows
from trilemma.errors import RunError
from trilemma.report import write_figures, write_report
from trilemma.report.figures import figures
from trilemma.rows import Row

NAME = '<script>document.title = "taken over"</script>'


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return read_rows(race(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def page(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    return write_report(rows, out, title=NAME, command="trilemma compare")


@needs_chromium
def test_plots_are_drawn_and_nothing_is_loaded(page: Path, tmp_path: Path) -> None:
    script = """
        return {
            drawn: [...document.querySelectorAll(".plot")].filter((p) => !p.closest("details:not([open])"))
                .map((p) => [p.id, p.querySelectorAll("svg.main-svg").length,
                    p.querySelectorAll("path.point, .js-line").length]),
            loaded: performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:")),
            title: document.title,
            wide: document.documentElement.scrollWidth - innerWidth,
        };
    """
    found, errors = visit(page, script, tmp_path, "--window-size=1280,900")
    assert {place for place, _, _ in found["drawn"]} >= {"trilemma-images", "learning-fid-seconds"}
    assert all(layers > 0 and marks > 0 for _, layers, marks in found["drawn"])
    assert found["loaded"] == [] and errors == []
    assert found["title"] == NAME  # as text: its script did not run
    assert found["wide"] <= 0


@pytest.fixture(scope="module")
def published_page(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "report.html"
    cifar = [replace(row, protocol={**row.protocol, "data": "cifar10"}) for row in rows]
    return write_report(cifar, out, title="t", command="trilemma compare", published=published_for(cifar))


@needs_chromium
def test_enter_on_a_heading_sorts(page: Path, tmp_path: Path) -> None:
    find = """
        const table = document.getElementById("scores");
        const headings = [...table.tHead.rows[0].cells];
        const k = headings.findIndex((cell) => cell.textContent.includes("FID"));
    """
    order = "return [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[k].dataset.sort));"
    told = "return headings.map((cell) => cell.getAttribute('aria-sort')).filter(Boolean);"
    with opened(page, tmp_path) as tab:
        tab.run(f"{find} headings[k - 1].querySelector('button').focus();")
        tab.press("Tab")
        assert tab.run(f"{find} return document.activeElement === headings[k].querySelector('button');")
        tab.press("Enter")
        rising, up = tab.run(find + order), tab.run(find + told)
        tab.press(" ")
        falling, down = tab.run(find + order), tab.run(find + told)
        assert tab.errors == []
    assert len(rising) == 4 and rising == sorted(rising) and falling == rising[::-1]
    assert (up, down) == (["ascending"], ["descending"])


@needs_chromium
def test_a_key_shows_what_others_published_and_hides_it(published_page: Path, tmp_path: Path) -> None:
    look = """
        const place = document.getElementById("trilemma-images");
        const axis = place.layout.xaxis.range;
        return [document.activeElement.getAttribute("aria-pressed"), place.querySelectorAll("path.point").length,
            axis[1] - axis[0]];
    """
    with opened(published_page, tmp_path) as tab:
        tab.run('document.querySelector("button.toggle").focus();')
        before = tab.run(look)
        tab.press("Enter")
        shown = tab.run(look)
        tab.press(" ")
        after = tab.run(look)
    assert before == after and before[:2] == ["false", 4]
    assert shown[:2] == ["true", 4 + 16] and shown[2] > before[2]


CONTRAST = """
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92
        : ((v / 255 + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    function behind(element) {
        for (; element; element = element.parentElement) {
            const colour = parse(getComputedStyle(element).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return light(colour);
        }
        return 1;
    }
    function contrast(element) {
        const [a, b] = [light(parse(getComputedStyle(element).color)), behind(element)];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }
"""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read_in_light_and_in_the_dark(published_page: Path, tmp_path: Path, scheme: str) -> None:
    script = f"""{CONTRAST}
        document.querySelectorAll("details").forEach((details) => (details.open = true));
        const words = document.querySelectorAll(
            "td, th, th button, button.toggle, p, li, figcaption, summary, h1, h2, dt, dd");
        return [behind(document.body), Math.min(...[...words].map(contrast)), words.length,
            light(parse(document.getElementById("trilemma-images").layout.paper_bgcolor.replace(
                /#(..)(..)(..)/, (_, ...hex) => hex.slice(0, 3).map((two) => parseInt(two, 16)).join(" "))))];
    """
    with opened(published_page, tmp_path, scheme=scheme) as tab:
        ground, least, count, plot = tab.run(script)
    assert (ground < 0.05 and plot < 0.05) if scheme == "dark" else (ground > 0.8 and plot > 0.8)
    assert least >= 4.5 and count > 100


@needs_chromium
def test_on_paper_all_is_unfolded_and_nothing_is_cut_off(published_page: Path, tmp_path: Path) -> None:
    watch = """
        addEventListener("beforeprint", () => {
            const plots = [...document.querySelectorAll(".plot")];
            window.printed = {
                folded: document.querySelectorAll("details:not([open])").length,
                undrawn: plots.filter((plot) => !plot.querySelector("svg.main-svg")).length,
                wide: plots.filter((plot) => plot.querySelector("svg.main-svg").clientWidth > 700).length,
            };
        });
        return document.querySelectorAll("details:not([open])").length;
    """
    look = """
        const seen = (element) => element.getClientRects().length > 0;
        const cells = [...document.querySelectorAll("#scores td, #scores th, .provenance td, h2, img")];
        return {
            buttons: [...document.querySelectorAll(".toggle, .modebar")].filter(seen).length,
            unseen: cells.filter((cell) => !seen(cell)).length,
            clipped: [...document.querySelectorAll(".scroll")].filter(
                (box) => getComputedStyle(box).overflowX !== "visible").length,
            ink: getComputedStyle(document.body).color,
        };
    """
    with opened(published_page, tmp_path, scheme="dark") as tab:
        folded = tab.run(watch)
        assert len(tab.send("Page.printToPDF")["data"]) > 10_000
        tab.settle()
        assert tab.run("return window.printed;") == {"folded": 0, "undrawn": 0, "wide": 0}
        assert tab.run('return document.querySelectorAll("details:not([open])").length;') == folded > 0
    with opened(published_page, tmp_path, scheme="dark", media="print") as tab:
        assert tab.run(look) == {"buttons": 0, "unseen": 0, "clipped": 0, "ink": "rgb(0, 0, 0)"}


@needs_chromium
def test_the_page_can_be_read_aloud(published_page: Path, tmp_path: Path) -> None:
    script = """
        const all = (what) => [...document.querySelectorAll(what)];
        return {
            language: document.documentElement.lang,
            mute: all("img").filter((img) => !img.alt).length + all(".plot").filter((p) => !p.ariaLabel).length,
            levels: all("h1, h2, h3, h4").map((heading) => Number(heading.tagName[1])),
            scopeless: all("th").filter((cell) => !["row", "col"].includes(cell.scope)).length,
            nameless: all("button").filter((button) => !button.textContent.trim() && !button.ariaLabel)
                .filter((button) => !button.closest(".plot")).length,
            untitled: all("section").filter((s) => !document.getElementById(s.getAttribute("aria-labelledby"))).length,
        };
    """
    with opened(published_page, tmp_path) as tab:
        found = tab.run(script)
    levels = found.pop("levels")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(level <= before + 1 for before, level in zip(levels, levels[1:], strict=False))
    assert found == {"language": "en", "mute": 0, "scopeless": 0, "nameless": 0, "untitled": 0}


@needs_chromium
def test_the_name_of_a_run_is_never_a_program(rows: list[Row], tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    evil = [replace(row, title=f"{name}{i}", sampler='"><img src=x onerror=alert(2)>') for i, row in enumerate(rows)]
    out = write_report(evil, tmp_path / "report.html", title="t", command="c")
    with opened(out, tmp_path) as tab:
        shown = tab.run("return [...document.querySelectorAll('#scores tbody th')].map((th) => th.textContent.trim());")
        drawn = tab.run("return [...document.querySelectorAll('.textpoint')].map((text) => text.textContent);")
        assert not [event for event, _ in tab.events if event == "Page.javascriptDialogOpening"]
    assert shown == [f"{name}{i}" for i in range(4)] and set(drawn) == set(shown)


@needs_chromium
def test_on_a_phone_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path) -> None:
    with opened(page, tmp_path, size=(390, 844)) as tab:
        wide, screen = tab.run("return [document.documentElement.scrollWidth, innerWidth];")
        assert tab.errors == []
    assert wide <= screen == 390


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_many_names_leave_the_plots_their_room(rows: list[Row], tmp_path: Path, width: int) -> None:
    many = [replace(rows[k % 4], run=tmp_path / str(k), title=f"A method with a name, {k}") for k in range(12)]
    out = write_report(many, tmp_path / "report.html", title="t", command="c")
    script = """
        return [...document.querySelectorAll(".plot:not(details .plot)")].map((place) => {
            const legend = place.querySelector(".legend");
            const below = legend ? legend.getBoundingClientRect().bottom - place.getBoundingClientRect().bottom : 0;
            return [place.id, below, place._fullLayout._size.h];
        });
    """
    with opened(out, tmp_path, size=(width, 844)) as tab:
        found = tab.run(script)
    assert len(found) == 3
    for place, below, height in found:
        assert below <= 1 and height > 130, place


@needs_chromium
def test_figures_for_papers(rows: list[Row], tmp_path: Path) -> None:
    files = write_figures(rows, tmp_path / "figures")
    assert {file.name for file in files} == {f"{name}.{kind}" for name in figures(rows) for kind in ("png", "pdf")}
    assert sorted((tmp_path / "figures").iterdir()) == sorted(files)
    for file in files:
        if file.suffix == ".pdf":
            assert file.read_bytes().startswith(b"%PDF-")
        else:
            with Image.open(file) as image:
                assert image.size == (1800, 960)
                assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20  # there is something on it


def test_without_kaleido_one_line_says_what_to_install(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(RunError, match=r"pip install 'trilemma\[figures\]'"):
        write_figures(rows, tmp_path / "figures")
    assert not list((tmp_path / "figures").iterdir())

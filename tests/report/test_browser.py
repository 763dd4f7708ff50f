"""The page as a reader meets it: plots are drawn, sorting works, nothing is loaded and no error is reported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from browser import needs_chromium, visit
from fake_runs import race
from trilemma.comparison import read_rows
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


@needs_chromium
def test_a_click_on_a_heading_sorts(page: Path, tmp_path: Path) -> None:
    script = """
        const table = document.getElementById("scores");
        const k = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.includes("FID"));
        const button = table.tHead.rows[0].cells[k].querySelector("button");
        const order = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[k].dataset.sort));
        button.focus();
        const focused = document.activeElement === button;
        button.click();
        const rising = order();
        button.click();
        return { focused, rising, falling: order(), told: table.tHead.rows[0].cells[k].getAttribute("aria-sort") };
    """
    found, errors = visit(page, script, tmp_path)
    assert found["focused"] and errors == []
    assert len(found["rising"]) == 4
    assert found["rising"] == sorted(found["rising"]) and found["falling"] == found["rising"][::-1]
    assert found["told"] == "descending"


@needs_chromium
def test_on_a_phone_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path) -> None:
    script = "return [document.documentElement.scrollWidth, innerWidth];"
    (wide, screen), errors = visit(page, script, tmp_path, "--window-size=500,900")
    assert wide <= screen and errors == []


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

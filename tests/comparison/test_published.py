"""Figures that others printed: typed once, found by the data they are on."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from fake_runs import evaluation, point_runs, run_folder
from trilemma.comparison import published, published_for, read_rows
from trilemma.rows import Published, Row

SLIDES, SPIGAN = "Razig", "Jeon"


def of(source: str, table: str = "") -> list[Published]:
    return [entry for entry in published() if entry.source.startswith(source) and entry.table.startswith(table)]


def entry(source: str, table: str, method: str) -> Published:
    (found,) = [e for e in of(source, table) if e.method.startswith(method)]
    return found


def images(folder: Path, data: str) -> list[Row]:
    run = run_folder(folder / data)
    evaluation(run, protocol={"data": data}, pictures=False)
    return read_rows([run])


def test_every_printed_row_is_there() -> None:
    counts = Counter((e.source[:5], e.table) for e in published())
    assert counts == {
        ("Jeon ", "Table 1"): 15,
        ("Jeon ", "Table 2"): 9,
        ("Jeon ", "Table 3"): 4,
        ("Razig", "Model comparison on CIFAR-10 (b)"): 25,
    }


@pytest.mark.parametrize(
    ("source", "table", "method", "cells"),
    [
        (SPIGAN, "Table 1", "SPI-GAN (ours)", ("10.2", "3.01", "0.66", "1")),
        (SPIGAN, "Table 1", "Diffusion-GAN", ("9.94", "3.19", "0.58", "1")),
        (SPIGAN, "Table 1", "NCSN", ("8.87", "25.3", "-", "1000")),
        (SPIGAN, "Table 1", "Improved DDPM", ("-", "2.90", "-", "4000")),
        (SPIGAN, "Table 2", "SPI-GAN", ("6.62",)),
        (SPIGAN, "Table 2", "DC-AE", ("15.8",)),
        (SPIGAN, "Table 3", "DD-GAN", ("0.36",)),
        (SLIDES, "Model", "Denoising Diffusion GAN", ("9.63", "3.75", "0.57", "4", "0.21")),
        (SLIDES, "Model", "DDPM (Ho", ("9.46", "3.21", "0.57", "1000", "80.5")),
        (SLIDES, "Model", "Score SDE (VE)", ("9.89", "2.20", "0.59", "2000", "423.2")),
        (SLIDES, "Model", "SNGAN+DGflow", ("9.35", "9.62", "0.48", "25", "1.98")),
        (SLIDES, "Model", "DDPM Distillation", ("8.36", "9.36", "0.51", "1", "")),
        (SLIDES, "Model", "StyleGAN2 w/ ADA", ("9.83", "2.92", "0.49", "1", "0.04")),
    ],
)
def test_cells_are_as_printed(source: str, table: str, method: str, cells: tuple[str, ...]) -> None:
    assert entry(source, table, method).cells[1:] == cells


def test_every_cell_is_a_number_or_says_that_there_is_none() -> None:
    for e in published():
        assert len(e.cells) == len(e.columns) and e.cells[0] == e.method
        assert tuple(e.scores.values()) == e.cells[1:]
        assert set(e.scores) <= {"inception_score", "fid", "recall", "nfe", "seconds"}
        assert all(re.fullmatch(r"-?|\d+(\.\d+)?", cell) for cell in e.cells[1:]), e
    assert len({(e.source, e.table, e.method) for e in published()}) == len(published())


def test_both_sources_print_the_same_where_they_share_a_row() -> None:
    """Both take the rows of others from the same paper, so a slip in typing one of them would show."""

    def scores(entries: list[Published]) -> dict[str, list[float | None]]:
        keys = ("inception_score", "fid", "recall", "nfe")
        return {e.method.rsplit(" (", 1)[0].lower(): [e.value(key) for key in keys] for e in entries}

    first, second = scores(of(SPIGAN, "Table 1")), scores(of(SLIDES))
    shared = first.keys() & second.keys()
    assert len(shared) == 11  # and LSGM, whose name one of them misprints
    assert {name: first[name] for name in shared} == {name: second[name] for name in shared}


def test_the_gap_that_the_text_of_the_paper_states() -> None:
    """SPI-GAN's FID is 0.6 above that of Score SDE (VP)."""
    gap = (entry(SPIGAN, "Table 1", "SPI-GAN").value("fid") or 0) - (
        entry(SPIGAN, "Table 1", "Score SDE (VP)").value("fid") or 0
    )
    assert gap == pytest.approx(0.6)


def test_another_name_leads_to_a_row_of_the_same_source() -> None:
    named = [e for e in published() if e.same != e.method]
    assert len(named) == 3
    for e in named:
        assert any(other.method == e.same and other.value("fid") for other in of(e.source) if other.data == e.data)


def test_speed_is_the_batch_over_the_time() -> None:
    assert entry(SPIGAN, "Table 3", "DD-GAN").images_per_second == pytest.approx(100 / 0.36)
    assert entry(SLIDES, "Model", "UDM").images_per_second is None
    assert entry(SPIGAN, "Table 1", "SPI-GAN").images_per_second is None


@pytest.mark.parametrize(
    ("data", "count"), [("cifar10", 44), ("CIFAR-10", 44), ("celebahq256", 9), ("CelebA-HQ-256", 9), ("mnist", 0)]
)
def test_rows_are_found_by_their_data(tmp_path: Path, data: str, count: int) -> None:
    assert len(published_for(images(tmp_path, data))) == count


def test_points_have_none(tmp_path: Path) -> None:
    assert published_for(read_rows(point_runs(tmp_path))) == ()

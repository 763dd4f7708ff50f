"""Pictures of samples, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data import save_grid, save_points
from trilemma.errors import DataError, NonFiniteError, RunError


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_each_image_unchanged(tmp_path: Path, channels: int) -> None:
    x = torch.randint(0, 256, (5, channels, 40, 36), dtype=torch.uint8)
    save_grid(x, tmp_path / "new" / "grid.png", 3)
    picture = _read(tmp_path / "new" / "grid.png")
    assert picture.shape[:2] == (2 + 2 * 42, 2 + 3 * 38)  # lines of 2 pixels between and around
    picture = picture.reshape(*picture.shape[:2], channels).transpose(2, 0, 1)
    for i in range(5):
        top, left = 2 + 42 * (i // 3), 2 + 38 * (i % 3)
        assert np.array_equal(picture[:, top : top + 40, left : left + 36], x[i].numpy())
    assert (picture[:, 42:, 76:] == 255).all()


def test_small_images_are_enlarged_by_whole_squares(tmp_path: Path) -> None:
    x = torch.randint(0, 256, (2, 1, 8, 12), dtype=torch.uint8)
    save_grid(x, tmp_path / "grid.png", 2)
    picture = _read(tmp_path / "grid.png")
    assert picture.shape == (36, 102)
    assert np.array_equal(picture[2:34, 2:50], np.kron(x[0, 0].numpy(), np.ones((4, 4), np.uint8)))


def test_a_single_image_and_too_many_columns(tmp_path: Path) -> None:
    save_grid(torch.full((1, 3, 32, 32), 7, dtype=torch.uint8), tmp_path / "one.png", 8)
    assert _read(tmp_path / "one.png").shape == (32, 32, 3)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    save_grid(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), tmp_path / "grid.png", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError):
        save_grid(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), tmp_path / "file" / "grid.png", 1)


@pytest.mark.parametrize(
    ("x", "columns"),
    [
        (torch.zeros(1, 1, 8, 8), 1),
        (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), 1),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), 1),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), 1),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 0),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, x: torch.Tensor, columns: int) -> None:
    with pytest.raises(DataError):
        save_grid(x, tmp_path / "grid.png", columns)


def test_points_land_where_they_are(tmp_path: Path) -> None:
    points = torch.tensor([[-4.95, -4.95], [4.95, 4.95], [4.95, 4.95], [25.0, 0.05]])
    save_points(points, tmp_path / "points.png", side=40)
    picture = _read(tmp_path / "points.png")
    assert picture.shape == (40, 40, 3)
    dark = {(int(r), int(c)) for r, c in np.argwhere(picture[..., 0] < 255)}
    assert dark == {(39, 0), (0, 39), (19, 39)}  # left below, right above, and the far one on the right border
    assert picture[0, 39, 0] < picture[39, 0, 0]


def test_points_as_samples_and_with_modes(tmp_path: Path) -> None:
    points = torch.rand(50, 2, 1, 1) * 2 - 1
    save_grid(points, tmp_path / "a.png", 8)
    save_points(points.flatten(1), tmp_path / "b.png")
    assert np.array_equal(_read(tmp_path / "a.png"), _read(tmp_path / "b.png"))
    save_points(points.flatten(1), tmp_path / "c.png", modes=torch.tensor([[0.0, 0.0], [-5.0, 5.0]]))
    assert not np.array_equal(_read(tmp_path / "b.png"), _read(tmp_path / "c.png"))


def test_points_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        save_points(torch.tensor([[0.0, float("nan")]]), tmp_path / "a.png")
    with pytest.raises(DataError):
        save_points(torch.zeros(3, 3), tmp_path / "a.png")


# Captions


def test_captions_stand_beneath_their_columns(tmp_path: Path) -> None:
    x = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    save_grid(x, tmp_path / "plain.png", 3)
    save_grid(x, tmp_path / "grid.png", 3, ["one", "", "3\nlines\nof it"])
    plain, picture = _read(tmp_path / "plain.png"), _read(tmp_path / "grid.png")
    assert np.array_equal(picture[: len(plain)], plain)
    strip = picture[len(plain) :]
    columns = [strip[:, 66 * i : 66 * (i + 1)] for i in range(3)]
    inked = [np.flatnonzero((column < 128).any(axis=(1, 2))) for column in columns]
    assert len(inked[1]) == 0 and len(inked[0]) > 0
    assert np.ptp(inked[2]) > 2 * np.ptp(inked[0])  # three lines are higher than one
    assert (strip[0] == 255).all() and (strip[-1] == 255).all()
    left, right = (np.flatnonzero((columns[0] < 128).any(axis=(0, 2)))[i] for i in (0, -1))
    assert abs((left + right) / 2 - 33) < 4  # in the middle


@pytest.mark.parametrize("channels", [1, 3])
def test_images_grow_until_the_text_fits(tmp_path: Path, channels: int) -> None:
    x = torch.randint(0, 256, (2, channels, 8, 8), dtype=torch.uint8)
    save_grid(x, tmp_path / "grid.png", 2, ["a caption of many letters"] * 2)
    picture = _read(tmp_path / "grid.png").reshape(-1, _read(tmp_path / "grid.png").shape[1], channels)
    pitch = (picture.shape[1] - 2) // 2
    factor = (pitch - 2) // 8
    assert factor > 4 and pitch == 8 * factor + 2
    tile = picture[2 : 2 + 8 * factor, 2 : 2 + 8 * factor]
    assert np.array_equal(tile[::factor, ::factor], x[0].permute(1, 2, 0).numpy())
    strip = picture[4 + 8 * factor :]
    assert (strip < 128).any() and (strip[:, [0, 1, pitch, pitch + 1, -1]] > 128).all()  # neither cut nor run together

"""Samples into files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.engine import outputs
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.outputs import check_out, save_path, save_samples, save_steps, save_trajectory, save_walk
from trilemma.errors import ConfigError, RunError
from trilemma.measure.speed import Timing
from trilemma.types import DataSpec, Sampler

Runs = Callable[[str], Path]
GRAY, COLOUR, POINTS = DataSpec("images", 1, 6, 6), DataSpec("images", 3, 6, 6), DataSpec("points", 2, 1, 1)


def stored(spec: DataSpec, n: int = 5) -> torch.Tensor:
    if spec.kind == "points":
        return torch.rand(n, *spec.shape) * 2 - 1
    return torch.randint(0, 256, (n, *spec.shape), dtype=torch.uint8)


@pytest.mark.parametrize("spec", [GRAY, COLOUR], ids=["gray", "colour"])
def test_single_pngs_hold_the_very_pixels(tmp_path: Path, spec: DataSpec) -> None:
    x = stored(spec)
    save_samples(x, spec, tmp_path / "out")
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == [f"00000{i}.png" for i in range(5)]
    for image, path in zip(x.permute(0, 2, 3, 1).numpy(), paths, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)).reshape(image.shape), image)


@pytest.mark.parametrize("spec", [GRAY, COLOUR], ids=["gray", "colour"])
def test_an_npz_holds_the_very_pixels(tmp_path: Path, spec: DataSpec) -> None:
    x = stored(spec)
    assert save_samples(x, spec, tmp_path / "deep" / "out.npz") == tmp_path / "deep" / "out.npz"
    with np.load(tmp_path / "deep" / "out.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["images"] and np.array_equal(arrays["images"], x.permute(0, 2, 3, 1).numpy())


def test_points_in_an_npz(tmp_path: Path) -> None:
    x = stored(POINTS)
    save_samples(x, POINTS, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["points"], x.flatten(1).numpy())


@pytest.mark.parametrize("spec", [GRAY, COLOUR, POINTS], ids=["gray", "colour", "points"])
def test_a_grid_is_one_picture(tmp_path: Path, spec: DataSpec) -> None:
    save_samples(stored(spec, 20), spec, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 50


@pytest.mark.parametrize(
    ("name", "spec", "trajectory", "words"),
    [
        ("grid.jpg", GRAY, False, "give a .png grid, an .npz file or a folder"),
        ("grid.PNG", GRAY, False, "give a .png grid"),
        ("folder", POINTS, False, "points go into an .npz or a .png"),
        ("steps.npz", GRAY, True, "a trajectory is a picture"),
        ("steps", POINTS, True, "a trajectory is a picture"),
    ],
)
def test_a_file_of_the_wrong_kind_is_refused(
    tmp_path: Path, name: str, spec: DataSpec, trajectory: bool, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_out(tmp_path / name, spec, trajectory=trajectory)
    if not trajectory:
        with pytest.raises(ConfigError, match=words):
            save_samples(stored(spec), spec, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file/grid.png", "file/a.npz", "file"):
        with pytest.raises(RunError, match="cannot write"):
            save_samples(stored(GRAY), GRAY, tmp_path / name)
    assert (tmp_path / "file").read_text() == ""


def test_a_trajectory_has_one_row_a_sample(trained: Runs, tmp_path: Path) -> None:
    generator = Generator.load(trained("ddgan"))
    save_trajectory(generator, sample_seeds(0, 0, 3), Sampler(), tmp_path / "steps.png")
    with Image.open(tmp_path / "steps.png") as picture:
        width, height = picture.size
    assert width > height and abs(width / height - 5 / 3) < 0.1  # noise and four steps, three samples


def test_a_trajectory_of_points_has_one_panel_a_state(trained: Runs, tmp_path: Path) -> None:
    generator = Generator.load(trained("points"))
    save_trajectory(generator, sample_seeds(0, 0, 50), Sampler(), tmp_path / "steps.png")
    with Image.open(tmp_path / "steps.png") as picture:
        width, height = picture.size
    assert abs(width / height - 5) < 0.1


@pytest.mark.parametrize(("name", "ratio"), [("spigan", 4 / 3), ("points-spigan", 4.0)])
def test_a_path_has_one_row_a_sample_and_one_column_a_point(
    trained: Runs, tmp_path: Path, name: str, ratio: float
) -> None:
    generator = Generator.load(trained(name))
    save_path(generator, sample_seeds(0, 0, 3), [0.0, 0.5, 0.9, 1.0], tmp_path / "path.png")
    with Image.open(tmp_path / "path.png") as picture:
        width, height = picture.size
    assert abs(width / height - ratio) < 0.1


@pytest.mark.parametrize("name", ["spigan", "stylegan2"])
def test_a_walk_is_one_row_between_two_samples(trained: Runs, tmp_path: Path, name: str) -> None:
    generator = Generator.load(trained(name))
    save_walk(generator, *sample_seeds(0, 2, 4), tmp_path / "walk.png", steps=5)
    save_samples(generator.stored(sample_seeds(0, 2, 4)), generator.spec, tmp_path / "ends.png")
    walk, ends = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("walk", "ends"))
    side = ends.shape[0]
    for ours, sample in ((walk[:, :side], ends[:, :side]), (walk[:, -side:], ends[:, -side:])):
        assert ours.shape == sample.shape and abs(ours - sample).max() <= 1  # up to rounding
    with pytest.raises(ConfigError, match="at least 2 images"):
        save_walk(generator, 0, 1, tmp_path / "short.png", steps=1)


def test_a_method_without_path_or_latent_space_says_so(trained: Runs, tmp_path: Path) -> None:
    generator = Generator.load(trained("ddpm"))
    with pytest.raises(ConfigError, match="leave out --u"):
        save_path(generator, [0], [1.0], tmp_path / "path.png")
    with pytest.raises(ConfigError, match="leave out --interpolate"):
        save_walk(generator, 0, 1, tmp_path / "walk.png", steps=3)
    assert not list(tmp_path.iterdir())


def test_columns_of_steps_are_the_samples_of_each_number(trained: Runs, tmp_path: Path) -> None:
    generator = Generator.load(trained("ddpm"))
    seeds, counts = sample_seeds(0, 0, 3), (1, 2, 5)
    shares: list[float] = []
    samplers = [Sampler(steps=count) for count in counts]
    save_steps(generator, seeds, samplers, tmp_path / "steps.png", batch_size=2, advance=shares.append)
    picture = np.asarray(Image.open(tmp_path / "steps.png"))
    pitch = (picture.shape[1] - 2) // 3
    factor = (pitch - 2) // 8
    assert picture.shape[1] == 2 + 3 * (8 * factor + 2)
    for column, sampler in enumerate(samplers):
        alone = generator.stored(seeds, sampler, batch_size=2)
        for row in range(3):
            top, left = 2 + row * pitch, 2 + column * pitch
            tile = picture[top : top + 8 * factor, left : left + 8 * factor]
            assert np.array_equal(tile[::factor, ::factor], alone[row, 0].numpy())
    beneath = picture[2 + 3 * pitch :]
    assert all((beneath[:, pitch * i : pitch * (i + 1)] < 128).any() for i in range(3))
    assert shares == [1 / 3, 2 / 3, 1]


def test_the_time_beneath_a_column_is_of_one_image(
    trained: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[str] = []
    monkeypatch.setattr(outputs.pictures, "save_grid", lambda *args, **kwargs: captions.extend(kwargs["captions"]))
    made = iter((0.5, 1.0))

    def timed(run: Callable[[], object], **_: object) -> Timing:
        run()
        return Timing((next(made),))

    monkeypatch.setattr(outputs, "measure", timed)
    samplers = [Sampler(steps=1), Sampler(steps=10)]
    save_steps(Generator.load(trained("ddpm")), sample_seeds(0, 0, 4), samplers, tmp_path / "steps.png")
    assert captions == ["1 step\n125 ms/image", "10 steps\n250 ms/image"]


def test_columns_of_steps_of_points_are_one_plot_each(trained: Runs, tmp_path: Path) -> None:
    generator = Generator.load(trained("points"))
    save_steps(generator, sample_seeds(0, 0, 50), [Sampler(steps=4)] * 2, tmp_path / "steps.png")
    with Image.open(tmp_path / "steps.png") as picture:
        width, height = picture.size
        beneath = np.asarray(picture)[400:]
    assert width == 802 and 400 < height < 460
    assert all((half < 128).any() for half in (beneath[:, :401], beneath[:, 401:]))

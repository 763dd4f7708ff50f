"""A trained run as a source of samples: their shapes, that they depend on the seed alone, and damaged runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, RunError, TrilemmaError
from trilemma.types import Sampler

Runs = Callable[[str], Path]


@pytest.mark.parametrize("name", ["ddgan", "ddpm"])
def test_images_are_uint8_with_channels_last(trained: Runs, name: str) -> None:
    images = Generator.load(trained(name)).sample(5, seed=3)
    assert images.dtype == np.uint8 and images.shape == (5, 8, 8, 1)
    assert len(np.unique(images)) > 5


def test_points_are_float_pairs(trained: Runs) -> None:
    points = Generator.load(str(trained("points"))).sample(7)
    assert points.dtype == np.float32 and points.shape == (7, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("name", ["ddgan", "ddpm"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_nothing(trained: Runs, name: str, batch_size: int) -> None:
    """But for the order of sums, which may tip a value over to the next grey level."""
    generator = Generator.load(trained(name))
    together = generator.sample(7, seed=1, batch_size=7).astype(int)
    assert np.abs(generator.sample(7, seed=1, batch_size=batch_size).astype(int) - together).max() <= 1
    assert np.abs(generator.sample(3, seed=1, batch_size=batch_size).astype(int) - together[:3]).max() <= 1


def test_another_seed_gives_other_images_and_seeds_do_not_overlap(trained: Runs) -> None:
    generator = Generator.load(trained("ddgan"))
    images = [generator.sample(8, seed=seed) for seed in (0, 1)]
    assert not np.array_equal(*images)
    assert len({image.tobytes() for batch in images for image in batch}) == 16
    assert not set(sample_seeds(0, 0, 10**4)) & set(sample_seeds(1, 0, 10**4))


def test_it_loads_the_averaged_weights(trained: Runs) -> None:
    generator = Generator.load(trained("ddgan"))
    stored = load_file(trained("ddgan") / "model.safetensors")
    for key, value in generator.method.networks()["generator"].state_dict().items():
        assert torch.equal(value, stored[f"generator.{key}"]), key
    assert not any(module.training for module in generator.method.modules())


def test_fewer_steps_by_ddim(trained: Runs) -> None:
    generator = Generator.load(trained("ddpm"))
    assert not np.array_equal(generator.sample(2, steps=5), generator.sample(2, steps=6))
    assert np.array_equal(generator.sample(2, steps=5), generator.sample(2, steps=5, eta=0.0))


def test_progress_and_trajectory(trained: Runs) -> None:
    generator = Generator.load(trained("ddgan"))
    told: list[int] = []
    stored = generator.stored(sample_seeds(0, 0, 5), batch_size=2, advance=told.append)
    assert told == [2, 2, 1] and stored.shape == (5, 1, 8, 8) and stored.dtype == torch.uint8
    states = generator.trajectory(sample_seeds(0, 0, 3), Sampler())
    assert states.shape == (5, 3, 1, 8, 8)  # noise and four steps


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"seed": -1}, {"seed": 2**31}, {"batch_size": 0}, {"steps": 2}, {"eta": 0.5}]
)
def test_what_cannot_be_sampled_is_refused(trained: Runs, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Generator.load(trained("ddgan")).sample(**wrong)


# Runs that are none, or damaged


def refused(folder: Path, words: str) -> None:
    with pytest.raises(TrilemmaError, match=words) as caught:
        Generator.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_no_folder_and_no_run(trained: Runs, tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "give the folder of a trained run")
    near = trained("ddgan")
    refused(near.with_name("ddgna"), f"did you mean {near}")
    refused(tmp_path, "is not a run: it has no config.json")


def test_missing_weights(copied: Runs) -> None:
    folder = copied("ddgan")
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors")


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_damaged_weights(copied: Runs, size: int) -> None:
    path = copied("ddgan") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(path.parent, "does not fit its config.json or is damaged")


@pytest.mark.parametrize("change", ["missing", "shape", "none"])
def test_weights_of_another_network(copied: Runs, change: str) -> None:
    path = copied("ddgan") / "model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    if change == "missing":
        del tensors[first]
    elif change == "shape":
        tensors[first] = torch.zeros(3, 3)
    else:
        tensors = {f"denoiser.{key}": value for key, value in tensors.items()}
    save_file(tensors, path)
    refused(path.parent, "does not fit its config.json or is damaged")


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", "[1, 2]", "3", "{}", '{"method": 1, "options": 2, "data": 3}'])
def test_a_damaged_config(copied: Runs, text: str) -> None:
    path = copied("ddgan") / "config.json"
    path.write_bytes(text.encode("latin-1"))
    refused(path.parent, "config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"num_timesteps": "four"}}, "num_timesteps must be a whole number"),
        ({"options": {"timestep": 4}}, "unknown key 'timestep'"),
        ({"options": None}, "lacks options"),
        ({"data": {"name": "digits"}}, "lacks data.spec"),
        ({"data": {"name": "digits", "spec": {"kind": "images"}}}, "missing channels, height, width"),
        ({"data": {"name": "digits", "spec": 3}}, "lacks data.spec"),
    ],
)
def test_a_config_that_does_not_hold(copied: Runs, change: dict[str, Any], words: str) -> None:
    path = copied("ddgan") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(path.parent, words)


def test_an_unknown_method_is_named(copied: Runs) -> None:
    path = copied("ddgan") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "method": "ddgam"}))
    with pytest.raises(ConfigError, match="unknown method 'ddgam': did you mean 'ddgan'"):
        Generator.load(path.parent)


def test_a_run_without_a_config_cannot_be_read() -> None:
    with pytest.raises(RunError, match="cannot read"):
        Run("/nonexistent/run").config()

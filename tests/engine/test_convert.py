"""Published checkpoints: the converted run is the generator it came from, and no code inside a file is run."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from golden import golden
from tiny import tiny_data, tiny_plan
from trilemma.engine.convert import convert
from trilemma.engine.evaluate import evaluate
from trilemma.engine.generator import Generator
from trilemma.engine.run import Run
from trilemma.engine.train import train
from trilemma.errors import ConfigError, DataError, RunError, TrilemmaError
from trilemma.interop import ddgan as reference
from trilemma.types import Sampler


def fixture(variant: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """State dict, configuration and inputs with outputs of a reference generator."""
    arrays = dict(np.load(golden(f"ddgan_generator_{variant}.io.npz"), allow_pickle=False))
    state = load_file(golden(f"ddgan_generator_{variant}.state.safetensors"))
    return state, json.loads(str(arrays["config_json"])), arrays


def written(folder: Path, state: Any, config: Any) -> tuple[Path, Path]:
    torch.save(state, folder / "netG.pth")
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "netG.pth", folder / "config.json"


@pytest.mark.parametrize("variant", ["a", "c2_gray28", "b_ddpm_nofir", "d_oneadagn_inputskip"])
def test_the_run_is_the_generator(tmp_path: Path, variant: str) -> None:
    state, config, arrays = fixture(variant)
    file, json_file = written(tmp_path, state, config)
    folder = convert(file, tmp_path / "run", config=json_file)
    generator = Generator.load(folder)
    x, t, z, y = (torch.from_numpy(arrays[name]) for name in ("x", "t", "z", "y"))
    with torch.no_grad():
        made = generator.method.networks()["generator"](x, t, z)
        assert torch.allclose(made, reference.generator(state, config)(x, t, z), atol=1e-6)
    assert (made - y).abs().max() <= 2e-5 * y.abs().max()
    images = generator.sample(3, seed=1)
    assert images.dtype == np.uint8 and images.shape == (3, *np.moveaxis(arrays["y"], 1, -1).shape[1:])
    assert Run(folder).config()["options"]["num_timesteps"] == config.get("num_timesteps", 4)


@pytest.fixture(scope="module")
def small() -> tuple[dict[str, Tensor], dict[str, Any]]:
    state, config, _ = fixture("c_gray")
    return state, config


Small = tuple[dict[str, Tensor], dict[str, Any]]


def test_a_training_file_holds_it_under_its_name(tmp_path: Path, small: Small) -> None:
    state, config = small
    training = {"netG_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    folder = convert(*[written(tmp_path, training, config)[0], tmp_path / "run"], config=tmp_path / "config.json")
    assert Generator.load(folder).sample(1).shape == (1, 16, 16, 1)


class Payload:
    """Unpickled by a careless reader, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, small: Small) -> None:
    state, config = small
    mark = tmp_path / "it-ran"
    bad = {**state, "extra": Payload(mark)}
    file, json_file = written(tmp_path, bad, config)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(bad, protocol=2))
    for path in (file, tmp_path / "plain.pth"):
        with pytest.raises(RunError, match="cannot be read as plain weights .*: save its state dict alone") as caught:
            convert(path, tmp_path / "run", config=json_file)
        assert "\n" not in str(caught.value)
    assert not mark.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_sise": 16}, "unknown name in the configuration 'image_sise': did you mean 'image_size'"),
        ({"image_size": None}, "image_size"),
        ({"image_size": "16"}, "height must be a whole number, not '16'"),
        ({"num_channels": "one"}, "one"),
        ({"ch_mult": 3}, "channel_mult must be a list"),
        ({"nz": 7}, "has shape"),
        ({"num_res_blocks": 2}, "state dict of the generator"),
        ({"num_timesteps": "four"}, "num_timesteps must be a whole number"),
        ({"num_timesteps": 0}, "num_timesteps must be at least 1"),
        ({"conditional": False}, "conditional|state dict"),
        ({"centered": False}, "centered is false"),
    ],
)
def test_a_configuration_that_does_not_hold_is_one_line(
    tmp_path: Path, small: Small, change: dict[str, Any], words: str
) -> None:
    state, config = small
    config = {key: value for key, value in {**config, **change}.items() if value is not None}
    file, json_file = written(tmp_path, state, config)
    with pytest.raises(ConfigError, match=words) as caught:
        convert(file, tmp_path / "run", config=json_file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no checkpoint"),
        (b"", "cannot be read as plain weights"),
        (b"hello", "cannot be read as plain weights"),
        ([1, 2], "is not a state dict"),
        ({"a": 3}, "is not a state dict"),
        ({"a": torch.zeros(1)}, "state dict of the generator lacks"),
    ],
)
def test_a_file_that_holds_no_weights_is_one_line(tmp_path: Path, small: Small, content: Any, words: str) -> None:
    file, json_file = written(tmp_path, content, small[1])
    if content is None:
        file.unlink()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(TrilemmaError, match=words) as caught:
        convert(file, tmp_path / "run", config=json_file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("text", "words"), [("[]", "one JSON object"), ("{", "not valid JSON"), (None, "cannot read")])
def test_a_configuration_that_is_none_is_one_line(tmp_path: Path, small: Small, text: str | None, words: str) -> None:
    file, json_file = written(tmp_path, small[0], small[1])
    json_file.unlink()
    if text is not None:
        json_file.write_text(text)
    with pytest.raises(TrilemmaError, match=words):
        convert(file, tmp_path / "run", config=json_file)


def test_nothing_is_written_over(tmp_path: Path, small: Small) -> None:
    file, json_file = written(tmp_path, *small)
    with pytest.raises(RunError, match="is in use"):
        convert(file, tmp_path, config=json_file)
    with pytest.raises(ConfigError, match="--as ddpm"):
        convert(file, tmp_path / "run", config=json_file, kind="ddpm")


def test_a_converted_run_needs_a_reference_and_is_not_trained_on(tmp_path: Path, small: Small) -> None:
    state, config = small
    file, json_file = written(tmp_path, state, {**config, "dataset": "lsun"})
    folder = convert(file, tmp_path / "run", config=json_file)
    with pytest.raises(DataError, match="lsun .give a reference with --data."):
        evaluate(Run(folder), Sampler(), samples=10)
    with pytest.raises(DataError, match="has shape .1, 8, 8., the run makes .1, 16, 16."):
        evaluate(Run(folder), Sampler(), samples=10, data=tiny_data())
    with pytest.raises(RunError, match="was trained with another options, data"):
        train(tiny_plan(), folder, resume=True)

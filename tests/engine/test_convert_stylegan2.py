"""StyleGAN2's pickles become runs: the same images as the network they hold, and no code in them is run.

The files are made here, by stand-ins for the reference's modules (see `style_pickles`).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from golden import golden
from style_pickles import EasyDict, Persistent, network, settings, snapshot, storage_bytes, written
from trilemma import cli
from trilemma.engine.convert import convert
from trilemma.engine.generator import Generator
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, RunError, TrilemmaError
from trilemma.interop import stylegan2 as reference
from trilemma.networks.stylegan2 import StyleGenerator, StyleMapping, Synthesis

Net = tuple[dict[str, Tensor], dict[str, Any]]


def theirs(made: StyleGenerator) -> dict[str, Tensor]:
    """Our generator's state under the reference's names, with the filters it stores."""
    ours = made.state_dict()
    state = {name: ours[own] for own, name in reference._generator_names(made)}
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    return state | {"synthesis.b8.resample_filter": torch.outer(taps, taps)}


@pytest.fixture(scope="module")
def small() -> Net:
    """A generator of 8 x 8 pixels, of random weights."""
    torch.manual_seed(1)
    mapping = StyleMapping(6, 5, layers=3, lr_scale=0.02)
    made = StyleGenerator(mapping, Synthesis(w_dim=5, size=8, channels=1, channel_base=64, channel_max=7))
    mapping.register_buffer("w_avg", torch.randn(5))
    config = {
        **{"z_dim": 6, "c_dim": 0, "w_dim": 5, "img_resolution": 8, "img_channels": 1},
        "mapping_kwargs": {"num_layers": 3, "lr_multiplier": 0.02},
        "synthesis_kwargs": {"channel_base": 64, "channel_max": 7, "num_fp16_res": 4, "conv_clamp": 256},
    }
    return theirs(made), config


@pytest.mark.parametrize("name", ["stylegan2_generator", "stylegan2_generator_cond"])
def test_the_run_is_the_published_generator(tmp_path: Path, name: str) -> None:
    io = np.load(golden(f"{name}.io.npz"))
    state, config = load_file(golden(f"{name}.state.safetensors")), json.loads(str(io["config_json"]))
    folder = convert(written(tmp_path / "net.pkl", snapshot(state, config)), tmp_path / "run", kind="stylegan2")
    generator = Generator.load(folder)
    made = generator.method.networks()["generator"]
    z, c = torch.from_numpy(io["z"]), torch.from_numpy(io["c"]) if "c" in io.files else None
    with torch.no_grad():
        for image, expected in (
            (made(z, c, noise="const"), io["img_const_fused0"]),
            (made(z, c, noise="const", truncation_psi=0.7), io["img_psi0.7"]),
        ):
            assert np.abs(image.numpy() - expected).max() <= 2e-5 * np.abs(expected).max()
    options = Run(folder).config()["options"]
    assert options["conditional"] is (config["c_dim"] > 0)
    assert options["mapping"]["z_dim"] == config["z_dim"] and options["mapping"]["w_dim"] == config["w_dim"]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_setting_has_its_counterpart(tmp_path: Path, small: Net, protocol: int) -> None:
    state, config = small
    file = written(tmp_path / "net.pkl", snapshot(state, config), protocol)
    folder = convert(file, tmp_path / "run", kind="stylegan2")
    run = Run(folder).config()
    assert run["method"] == "stylegan2" and run["recipe"] == "converted from net.pkl"
    assert run["options"]["mapping"] == {"z_dim": 6, "w_dim": 5, "layers": 3, "lr_scale": 0.02}
    assert run["options"]["generator"]["channel_base"] == 64 and run["options"]["generator"]["channel_max"] == 7
    assert run["data"]["spec"] == {"kind": "images", "channels": 1, "height": 8, "width": 8, "classes": 0}
    z = torch.randn(3, 6)
    with torch.no_grad():
        made = Generator.load(folder).method.networks()["generator"](z, noise="const", truncation_psi=0.5)
        expected = reference.generator(state, config)(z, noise="const", truncation_psi=0.5)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_the_command_and_what_it_writes_can_be_sampled(
    tmp_path: Path, small: Net, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = written(tmp_path / "net.pkl", snapshot(*small)), tmp_path / "run"
    cli.main(["convert", str(file), str(run), "--as", "stylegan2"])
    assert capsys.readouterr().out.strip() == str(run)
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "model.safetensors"]
    cli.main(["sample", str(run), "--n", "4", "--truncation", "0.7", "--out", str(tmp_path / "grid.png")])
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.mode == "L"
    again = convert(file, tmp_path / "again", kind="stylegan2")
    assert np.array_equal(Generator.load(run).sample(3, seed=5), Generator.load(again).sample(3, seed=5))


def test_settings_by_position_and_a_bare_network(tmp_path: Path, small: Net) -> None:
    state, config = small
    values = tuple(settings(value) if isinstance(value, dict) else value for value in config.values())
    made = network(state, _init_args=values, _init_kwargs=EasyDict())
    folder = convert(written(tmp_path / "net.pkl", made), tmp_path / "run", kind="stylegan2")
    assert Run(folder).config()["options"]["mapping"]["layers"] == 3


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("w_dim"), "made without w_dim"),
        (lambda c: c.update(z_dim="six"), "mapping.z_dim must be a whole number, not 'six'"),
        (lambda c: c.update(z_dim=10**12), "1000000000000 is too large for a setting"),
        (lambda c: c.update(z_dim=7), "has shape"),
        (lambda c: c.update(z_dim=0), "mapping|lacks|shape"),
        (lambda c: c.update(c_dim=1), "c_dim is 1"),
        (lambda c: c.update(c_dim=3), "lacks mapping.embed"),
        (lambda c: c.update(c_dim=None), "classes must be a whole number|mapping"),
        (lambda c: c.update(img_channels=4), "img_channels is 4"),
        (lambda c: c.update(img_resolution=16), "lacks"),
        (lambda c: c.update(img_resolution=-8), "at least 4 pixels"),
        (lambda c: c.update(img_resolution=8.0), "height must be a whole number, not 8.0"),
        (lambda c: c.update(mapping_kwargs=[1]), "must be tables of settings"),
        (lambda c: c["mapping_kwargs"].update(num_layers=-1), "mapping network needs"),
        (lambda c: c["mapping_kwargs"].update(num_layers=10**6), "no network can be made"),
        (lambda c: c["mapping_kwargs"].update(w_avg_beta=None), "w_avg_beta is none"),
        (lambda c: c["mapping_kwargs"].update(activation="relu"), "activation 'relu'"),
        (lambda c: c["mapping_kwargs"].update(layer_features=9), "layer_features 9"),
        (lambda c: c["synthesis_kwargs"].update(architecture="resnet"), "only 'skip'"),
        (lambda c: c["synthesis_kwargs"].update(resample_filter=[1, 1]), "resample_filter"),
        (lambda c: c["synthesis_kwargs"].update(channel_base=2**40), "too large for a setting"),
        (lambda c: c["synthesis_kwargs"].update(channel_max=float("nan")), "channel_max must be a whole number"),
        (lambda c: c["synthesis_kwargs"].update(num_critical=2), "unknown name"),
        (lambda c: c.update(magnitude_ema_beta=0.9), "unknown name"),
    ],
)
def test_a_setting_without_counterpart_is_refused_by_name(
    tmp_path: Path, small: Net, change: Change, words: str
) -> None:
    state, config = copy.deepcopy(small)
    content = snapshot(state, config)
    change(content["G_ema"].state["_init_kwargs"])
    file = written(tmp_path / "net.pkl", content)
    with pytest.raises(ConfigError, match=words) as caught:
        convert(file, tmp_path / "run", kind="stylegan2")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_another_way_to_the_same_numbers_is_no_setting(tmp_path: Path, small: Net) -> None:
    state, config = copy.deepcopy(small)
    config["synthesis_kwargs"]["fused_modconv_default"] = "inference_only"
    assert convert(written(tmp_path / "net.pkl", snapshot(state, config)), tmp_path / "run", kind="stylegan2")


class Call:
    """Its pickle calls a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def stored(content: Any) -> Call:
    """A tensor whose storage is a file of torch's with anything in it."""
    storage = Call(torch.storage._load_from_bytes, storage_bytes(content))
    return Call(torch._utils._rebuild_tensor_v2, storage, 0, (5,), (1,), False)


PLACES: dict[str, Callable[[dict[str, Any], Any], object]] = {
    "beside the networks": lambda content, bad: content.update(extra=bad),
    "in G, which is not asked for": lambda content, bad: content.update(G=[bad]),
    "an attribute of G_ema": lambda content, bad: content["G_ema"].state.update(extra={"a": [bad]}),
    "a setting": lambda content, bad: content["G_ema"].state["_init_kwargs"].update(z_dim=bad),
    "a parameter": lambda content, bad: _mapping(content)["_parameters"].update(bias=bad),
    "a buffer": lambda content, bad: _mapping(content)["_buffers"].update(w_avg=bad),
    "a hook": lambda content, bad: _mapping(content)["_forward_hooks"].update({0: bad}),
    "inside a storage": lambda content, bad: _mapping(content)["_buffers"].update(w_avg=stored(bad)),
    "deeper inside one": lambda content, bad: _mapping(content)["_buffers"].update(w_avg=stored({"a": [bad]})),
}


def _mapping(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["G_ema"].state["_modules"]["mapping"].state
    return found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("function", ["mkdir", "exec", "system"])
def test_code_in_a_snapshot_is_refused_and_does_not_run(tmp_path: Path, small: Net, place: str, function: str) -> None:
    mark = tmp_path / "it-ran"
    code = f"import os; os.mkdir({str(mark)!r})"
    calls = {"mkdir": (os.mkdir, str(mark)), "exec": (exec, code), "system": (os.system, f"touch {mark}")}
    content = snapshot(*copy.deepcopy(small))
    PLACES[place](content, Call(*calls[function]))
    file = written(tmp_path / "net.pkl", content)
    with pytest.raises(RunError, match="nothing in it was run") as caught:
        convert(file, tmp_path / "run", kind="stylegan2")
    words = "a storage that is damaged or holds more than numbers" if "inside" in place else f".{function}', which is"
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"G": None}, "it holds no G_ema"),
        ({"G_ema": None}, "'NoneType' where a dict should be"),
        ({"G_ema": 3}, "'int' where a dict should be"),
        ([1], "'list' where a dict should be"),
        ({"G_ema": {}}, "where a network should be"),
        ({"G_ema": Persistent("Generator", {})}, "where a network should be"),
        ({"G_ema": Persistent("Generator", {"_init_kwargs": [1]})}, "does not tell the arguments"),
        ({"G_ema": Persistent("Generator", {"_init_args": list(range(99))})}, "does not tell the arguments"),
        ({"G_ema": Persistent("Generator", {"_init_kwargs": {"a": {1, 2}}})}, "'set' among its settings"),
        ({"G_ema": Persistent("Generator", {"_parameters": 1, "_buffers": {}, "_modules": {}})}, "a dict should be"),
        ({"G_ema": network({})}, "made without z_dim"),
    ],
)
def test_a_pickle_of_something_else_is_one_line(tmp_path: Path, content: Any, words: str) -> None:
    file = written(tmp_path / "net.pkl", content)
    with pytest.raises(TrilemmaError, match=words) as caught:
        convert(file, tmp_path / "run", kind="stylegan2")
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_file_cut_short_is_one_line(tmp_path: Path, small: Net) -> None:
    whole = written(tmp_path / "net.pkl", snapshot(*small)).read_bytes()
    for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.999):
        (tmp_path / "cut.pkl").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(RunError, match="cut.pkl cannot be read") as caught:
            convert(tmp_path / "cut.pkl", tmp_path / "run", kind="stylegan2")
        assert "\n" not in str(caught.value)

"""An exported sampler makes of its noise what PyTorch makes of it, and needs nothing of the library to do so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny import POINTS, SPEC, tiny_method
from trilemma.engine import export as exporting
from trilemma.engine.export import Exported, PureSampler, draws, export
from trilemma.engine.int8 import Int8
from trilemma.errors import ConfigError, RunError
from trilemma.maths.noise import SeedNoise, give_noise, record_noise
from trilemma.methods import method_names
from trilemma.methods.base import Method
from trilemma.types import DataSpec, Sampler

Runs = Callable[[str], Path]
METHODS = method_names()
MAPS = ["noise_0", "noise_1", "noise_2"]
ONNX = "onnxruntime" in exporting.runtimes()


def lively(name: str, spec: DataSpec = SPEC, **changes: Any) -> Method:
    """Networks start near zero: samples would hardly depend on their noise."""
    method = tiny_method(name, spec, **changes).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for weight in method.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=random)
    return method


def sampler_of(name: str) -> Sampler:
    return Sampler(steps=3, eta=0.5) if name == "ddpm" else Sampler()


def quick(run: Path, **changes: Any) -> Exported:
    return export(run, limit_seconds=0.0, **changes)


@pytest.mark.parametrize("name", METHODS)
def test_given_noise_makes_the_sample_whatever_the_seeds(name: str) -> None:
    method, sampler = lively(name), sampler_of(name)
    noise, wanted = draws(method, [5, 17], sampler)
    assert torch.equal(wanted, method.sample([5, 17], sampler).x)
    pure = PureSampler(method, sampler)
    with torch.no_grad():
        torch.testing.assert_close(pure(noise), wanted)
        flipped = pure({key: value.flip(0) for key, value in noise.items()})
    torch.testing.assert_close(flipped.flip(0), wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("ddgan", ["x_T", "z_2", "noise_2", "z_1"]),
        ("ddpm", ["x_T", "noise_13", "noise_7", "noise_1"]),
        ("spigan", ["noise_T", *MAPS]),
        ("stylegan2", ["z", *MAPS]),
        ("vae", ["z"]),
    ],
)
def test_draws_are_named(name: str, names: list[str]) -> None:
    changes = {"ddgan": {"num_timesteps": 2}, "ddpm": {"timesteps": 20}}.get(name, {})
    noise, _ = draws(lively(name, **changes), [0], sampler_of(name))
    assert list(noise) == names


@pytest.mark.parametrize(
    ("name", "spec"),
    [*((name, POINTS) for name in METHODS), *((name, SPEC) for name in METHODS if name != "diffusion_gan")],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_a_program_of_any_batch_makes_the_same(name: str, spec: DataSpec) -> None:
    """All steps with the small networks for points, one step with those for images (Diffusion-GAN has StyleGAN2's)."""
    single = spec.kind == "images"
    method = lively(name, spec, **({"num_timesteps": 1} if name == "ddgan" and single else {}))
    sampler = Sampler(steps=1, eta=0.5) if name == "ddpm" and single else sampler_of(name)
    with torch.no_grad():
        traced, _ = draws(method, range(3), sampler)
        program = exporting._trace(PureSampler(method, sampler), traced, dynamic=True).module()
        for seeds in ([9], [5, 17, 3, 2]):
            noise, wanted = draws(method, seeds, sampler)
            torch.testing.assert_close(program(noise), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 2, None])
def test_a_file_needs_no_method(trained: Runs, tmp_path: Path, batch: int | None) -> None:
    made = quick(trained("points"), out=tmp_path / "a.pt2", batch=batch)
    assert made.path == tmp_path / "a.pt2" and made.batch == batch
    assert made.difference <= exporting.TOLERANCE and min(made.seconds, made.seconds_torch) > 0
    extra = {"trilemma.json": ""}
    program = torch.export.load(made.path, extra_files=extra).module()
    told = json.loads(extra["trilemma.json"])
    assert told["inputs"] == {name: list(shape) for name, shape in made.inputs.items()}
    assert told["sampler"] == "4 steps" and told["range"] == "points"
    n = batch or 4
    with torch.no_grad():
        samples = program({name: torch.randn(n, *made.inputs[name]) for name in sorted(made.inputs)})  # in any order
    assert samples.shape == (n, 2, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


def test_the_file_lies_beside_the_weights_and_holds_those_of_the_sampler_alone(
    copied: Runs,
) -> None:
    run = copied("stylegan2")
    made = quick(run)
    assert made.path == run / "sampler.pt2"
    weights = load_file(run / "model.safetensors")
    extra = {"trilemma.json": ""}
    held = torch.export.load(made.path, extra_files=extra).state_dict
    assert json.loads(extra["trilemma.json"])["range"] == "[-1, 1]" and list(made.inputs) == ["z", *MAPS]
    assert sum(x.numel() for x in held.values()) == sum(x.numel() for x in weights.values())


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_traced_steps_are_those_of_torchdiffeq(solver: str) -> None:
    method = lively("spigan", POINTS, mapping={"dim": 8, "layers": 2, "solver": {"solver": solver, "steps": 3}})
    with torch.no_grad():
        noise, wanted = draws(method, [1, 2], None)
        program = exporting._trace(PureSampler(method), noise, dynamic=False).module()
        torch.testing.assert_close(program(noise), wanted, atol=1e-5, rtol=0)


def test_steps_that_depend_on_values_are_refused() -> None:
    method = lively("spigan", mapping={"dim": 8, "layers": 2, "solver": {"solver": "dopri5"}})
    with torch.no_grad(), pytest.raises(ConfigError, match="dopri5 chooses its steps while it runs"):
        exporting._trace(PureSampler(method), draws(method, [1], None)[0], dynamic=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 0}, "batch must be at least 1 or dynamic, not 0"),
        ({"tolerance": 0.0}, "tolerance must be positive, not 0"),
        ({"limit_seconds": -1.0}, "seconds must not be negative, not -1"),
        ({"format": "onxx"}, "unknown format 'onxx': did you mean 'onnx'"),
        ({"out": "a.onnx"}, "--out a.onnx: the file's name must end in .pt2"),
        ({"sampler": Sampler(steps=7)}, "this DDGAN was trained for"),
    ],
)
def test_bad_settings_are_refused(trained: Runs, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        export(trained("ddgan"), **changes)


def test_too_many_steps_are_refused(trained: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MOST_STEPS", 2)
    with pytest.raises(ConfigError, match="calls its network 3 times, and a file holds at most 2 calls: choose fewer"):
        quick(trained("ddpm"), sampler=Sampler(steps=3))


def put_in_place(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Instead of a program a file of one word, which when read makes the method's samples, changed."""
    methods: list[Method] = []

    def save(method: Method, sampler: Sampler | None, path: Path, n: int, **_: Any) -> dict[str, torch.Tensor]:
        methods.append(method)
        path.write_text("program")
        return draws(method, range(n), sampler)[0]

    def run(noise: dict[str, torch.Tensor]) -> torch.Tensor:
        with give_noise(noise):
            return change(methods[-1].sample(range(1)).x.clone())

    monkeypatch.setattr(exporting, "_save", save)
    monkeypatch.setitem(exporting._LOAD, "exported", lambda path: run)


@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x + 0.01, "differ from PyTorch's by 0.01, more than 0.0001: nothing was written"),
        (lambda x: x * math.nan, "differ from PyTorch's by nan, more than 0.0001: nothing was written"),
        (lambda x: x[:, :1], r"makes \(., 1, 1, 1\), not \(., 2, 1, 1\): nothing was written"),
    ],
    ids=["other", "no number", "another shape"],
)
def test_a_program_that_differs_is_not_kept(
    trained: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, words: str, batch: int | None
) -> None:
    put_in_place(monkeypatch, change)
    with pytest.raises(RunError, match=words):
        quick(trained("points"), out=tmp_path / "a.pt2", batch=batch)
    assert not list(tmp_path.iterdir())


def test_larger_differences_pass_where_they_are_let(
    trained: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(monkeypatch, lambda x: x + 0.01)
    made = quick(trained("points"), out=tmp_path / "a.pt2", tolerance=0.1)
    assert made.difference == pytest.approx(0.01, abs=1e-5) and made.path.read_text() == "program"


@pytest.mark.parametrize("runtime", exporting.PACKAGES)
def test_a_runtime_makes_the_samples_of_the_method(runtime: str, tmp_path: Path) -> None:
    if runtime not in exporting.runtimes():
        with pytest.raises(ConfigError, match=f"{runtime} needs .*: pip install "):
            exporting.program(lively("vae"), None, runtime, tmp_path, 2)
        pytest.skip(f"{runtime} is not installed here")
    method = lively("vae")
    with torch.no_grad():
        run, noise = exporting.program(method, None, runtime, tmp_path, 2)
        with give_noise(noise):
            wanted = method.sample([0]).x
        near = 0.3 if runtime.endswith("-int8") else 1e-4
        torch.testing.assert_close(run(noise), wanted.clone(), atol=near, rtol=0)
        (path,) = tmp_path.iterdir()
        written = path.stat().st_mtime_ns
        exporting.program(method, None, runtime, tmp_path, 2)
        assert path.stat().st_mtime_ns == written


def test_missing_packages_are_named(trained: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporting.PACKAGES, "onnxruntime", ("json", "no_such_runtime"))
    with pytest.raises(ConfigError, match=r"onnx needs no_such_runtime: pip install 'trilemma\[export\]'"):
        quick(trained("ddgan"), format="onnx")


@pytest.mark.skipif(not ONNX, reason="needs trilemma[export]")
@pytest.mark.parametrize("batch", [2, None])
@pytest.mark.parametrize("name", ["points", "spigan", "stylegan2"])
def test_onnx(trained: Runs, tmp_path: Path, name: str, batch: int | None) -> None:
    made = quick(trained(name), format="onnx", out=tmp_path / "a.onnx", batch=batch)
    assert made.difference <= exporting.TOLERANCE
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    assert {given.name for given in session.get_inputs()} <= set(made.inputs)
    assert [found.name for found in session.get_outputs()] == ["samples"]
    told = json.loads(session.get_modelmeta().custom_metadata_map["trilemma"])
    assert list(told["inputs"]) == list(made.inputs)


@pytest.mark.skipif(not ONNX, reason="needs trilemma[export]")
@pytest.mark.parametrize("batch", [8, None])
@pytest.mark.parametrize("name", ["ddgan", "stylegan2"])
def test_eight_bits(trained: Runs, tmp_path: Path, name: str, batch: int | None) -> None:
    made = quick(
        trained(name),
        format="onnx",
        out=tmp_path / "a.onnx",
        batch=batch,
        int8=Int8(samples=40, fid_rise=9.0),
    )
    assert 1e-6 < made.difference < 1.0
    assert set(made.scores) == {"fid", "precision", "recall"}
    before, after = made.scores["fid"]
    assert after == pytest.approx(before, rel=0.3) and after != before
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    import onnx

    model = onnx.load(made.path)
    kinds = {weight.data_type for weight in model.graph.initializer if len(weight.dims) == 4}
    assert onnx.TensorProto.INT8 in kinds, "no convolution has weights in eight bits"
    told = {entry.key: entry.value for entry in model.metadata_props}["trilemma"]
    assert list(json.loads(told)["inputs"]) == list(made.inputs)


@pytest.mark.skipif(not ONNX, reason="needs trilemma[export]")
@pytest.mark.parametrize("after", [1.2, math.nan])
def test_eight_bits_that_do_harm_are_not_kept(
    trained: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: float
) -> None:
    fids = iter([1.0, after])
    monkeypatch.setattr(exporting, "scores_of", lambda samples, judge: {"fid": next(fids)})
    with pytest.raises(RunError, match="in eight bits FID is .*, in float32 1: a rise of more than 10%"):
        quick(trained("ddgan"), format="onnx", out=tmp_path / "a.onnx", batch=8, int8=Int8(samples=16))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("run", "changes", "words"),
    [
        ("ddgan", {}, "int8 is for --format onnx"),
        ("points", {"format": "onnx"}, "int8 is for images: points have no FID"),
    ],
)
def test_eight_bits_that_cannot_be_are_refused(
    trained: Runs, monkeypatch: pytest.MonkeyPatch, run: str, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(exporting, "_missing", lambda runtime: [])
    with pytest.raises(ConfigError, match=words):
        quick(trained(run), int8=Int8(), **changes)


def test_how_eight_bits_are_judged_is_checked() -> None:
    with pytest.raises(ConfigError, match="--samples must be at least 10, not 9.*--fid-rise must be positive, not 0"):
        Int8(samples=9, fid_rise=0.0)


def test_recorded_noise_is_what_was_drawn() -> None:
    with record_noise() as record:
        source = SeedNoise([3, 4])
        first, second = source.normal((2,)), source.normal((1, 2, 2), "maps")
    assert list(record) == ["draw_0", "maps"]
    assert torch.equal(record["draw_0"], first) and torch.equal(record["maps"], second)
    again = SeedNoise([3, 4])
    assert torch.equal(again.normal((2,)), first) and torch.equal(again.normal((1, 2, 2)), second)
    assert list(record) == ["draw_0", "maps"]


def test_noise_that_does_not_fit_is_refused() -> None:
    source = SeedNoise([0])
    with give_noise({"z": torch.zeros(5, 3)}):
        assert source.normal((3,), "z").shape == (5, 3)
        with pytest.raises(ConfigError, match=r"noise 'z' must have the shape \('N', 2\), not \(5, 3\)"):
            source.normal((2,), "z")
        with pytest.raises(ConfigError, match="no noise 'x_T' was given: there is z"):
            source.normal((3,), "x_T")
    assert source.normal((3,), "x_T").shape == (1, 3)
    with record_noise(), pytest.raises(ConfigError, match="noise 'z' is drawn twice"):
        for _ in range(2):
            source.normal((3,), "z")

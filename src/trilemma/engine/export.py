"""A run's sampler as one file that needs nothing of this library: noise in, samples out.

The loop over the steps, the schedule and the weights are inside. Every normal draw is an input with a name (x_T, z_4,
noise_4, ...), so the file is a pure function: before it is kept, what it makes is compared with PyTorch's samples.

    exported: a program of torch.export (.pt2), for ``torch.export.load`` and what compiles such programs
    onnx:     for onnxruntime and other runtimes; needs the packages of ``trilemma[export]``; in eight bits on demand

The steps are unrolled: the file repeats the network as often as the sampler calls it, though not its weights.
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trilemma import __version__
from trilemma.config import require, require_all
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.int8 import CALIBRATION, Int8, quantise, scores_of
from trilemma.engine.judge import Judge
from trilemma.errors import ConfigError, RunError, nearest
from trilemma.files import write_atomically
from trilemma.maths.noise import give_noise, record_noise
from trilemma.measure.speed import Timing, measure
from trilemma.methods.base import Method
from trilemma.types import Sampler

Format = Literal["exported", "onnx"]
Noise = Mapping[str, Tensor]
Program = Callable[[Noise], Tensor]

SUFFIX = {"exported": ".pt2", "onnx": ".onnx"}
PACKAGES: dict[str, tuple[str, ...]] = {
    "exported": (),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),  # what trilemma[export] brings
    "openvino": ("onnx", "onnxscript", "openvino"),
    "onnxruntime-int8": ("onnx", "onnxscript", "onnxruntime"),
    "openvino-int8": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}
"""What each way to run a file needs: PyTorch itself, onnxruntime or OpenVINO, and these in eight bits."""
TOLERANCE = 1e-4  # of a sample in [-1, 1]: a sum in another order, through all steps
MOST_STEPS = 100  # unrolled
MOST_ONNX = 1536 * 2**20  # bytes of weights beyond which torch would put them into a second file
EXAMPLE = 3  # images in the batch that is traced when any number shall do; 1 would be taken for a constant
ANY = 16  # images at a time through a file that takes any number, to find ranges and scores


@dataclass(frozen=True)
class Exported:
    """The file, and how it compares with PyTorch on the same noise."""

    path: Path
    inputs: dict[str, tuple[int, ...]]  # name to the shape of one sample's draw
    batch: int | None  # images it makes at a time; None: any number
    difference: float  # largest, in a sample's own units
    seconds: float  # median of one batch
    seconds_torch: float  # the same of PyTorch, its noise given, too
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)  # in eight bits: PyTorch's and the file's


class PureSampler(nn.Module):
    """``forward(noise)``: the samples that ``method`` makes of these draws, and of nothing else."""

    def __init__(self, method: Method, sampler: Sampler | None = None) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(method.sampling_networks())  # without a discriminator
        # ``sample`` runs in inference mode, whose tensors no graph may hold: the function inside that is taken.
        self._sample = partial(inspect.unwrap(type(method).sample), method)
        self._sampler = sampler

    def forward(self, noise: dict[str, Tensor]) -> Tensor:
        """``noise``: name to (N, *shape), as ``draws`` gives them."""
        with give_noise(noise):
            x: Tensor = self._sample(range(1), self._sampler).x
        return x


def draws(method: Method, seeds: range | list[int], sampler: Sampler | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """What ``method`` draws for ``seeds``, by name, and the samples that it makes of it."""
    with record_noise() as record:
        x = method.sample(seeds, sampler).x
    # Clones, because tensors of inference mode cannot be traced.
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in record.items()}, x.clone()


def export(
    run: Path | str,
    *,
    format: Format = "exported",
    out: Path | str | None = None,
    batch: int | None = 1,
    sampler: Sampler | None = None,
    tolerance: float = TOLERANCE,
    int8: Int8 | None = None,
    limit_seconds: float = 2.0,
) -> Exported:
    """Write a run's sampler into one file.

    Args:
        run: a run folder.
        format: "exported" or "onnx" (module docstring).
        out: the file; default RUN/sampler.pt2 or RUN/sampler.onnx.
        batch: images made at a time; None for any number.
        sampler: the choices the method leaves.
        tolerance: the largest difference from PyTorch's samples that is let pass; in eight bits scores decide instead.
        int8: of ONNX: convolutions in eight bits, and how their samples are judged.
        limit_seconds: for timing each of the two.

    Raises:
        RunError: no run or no weights; the program cannot be made of this sampler, or makes other or worse samples.
        ConfigError: a setting that does not hold, a sampler of too many steps, or packages that are missing.
        DataError, ExtractorError: the run's data, against which eight bits are scored, or what scores is not there.
    """
    require_all(
        (int8 is None or format == "onnx", "int8 is for --format onnx"),
        (batch is None or batch >= 1, f"batch must be at least 1 or dynamic, not {batch}"),
        (tolerance > 0, f"tolerance must be positive, not {tolerance:g}"),
        (limit_seconds >= 0, f"seconds must not be negative, not {limit_seconds:g}"),
    )
    if format not in get_args(Format):
        raise nearest("format", str(format), get_args(Format))
    runtime = "onnxruntime" if format == "onnx" else "exported"
    if missing := _missing(runtime):
        raise ConfigError(f"onnx needs {', '.join(missing)}: pip install 'trilemma[export]', or use --format exported")
    path = _checked_path(Path(run) / f"sampler{SUFFIX[format]}" if out is None else Path(out), SUFFIX[format])
    generator = Generator.load(run, device="cpu")
    method = generator.method.requires_grad_(False)
    words = method.describe(sampler or Sampler())
    # The first number in these words is that of the steps: tests/methods/test_contract.py holds every method to it.
    steps = next(int(word) for word in words.split() if word.isdigit())
    if steps > MOST_STEPS:
        raise ConfigError(
            f"the sampler ({words}) calls its network {steps} times, and a file holds at most {MOST_STEPS} calls: "
            "choose fewer with --steps"
        )
    require(int8 is None or method.spec.kind == "images", "int8 is for images: points have no FID to hold it by")
    judge = int8.judge(generator) if int8 is not None else None  # data that is missing is said before the work
    result = Exported(path, {}, batch, 0.0, 0.0, 0.0)

    def write(temporary: Path) -> None:
        nonlocal result
        save = _save if int8 is None else _save_int8
        noise = save(method, sampler, temporary, EXAMPLE if batch is None else batch, dynamic=batch is None)
        result = replace(result, inputs={name: tuple(value.shape[1:]) for name, value in noise.items()})
        made = _LOAD[runtime](temporary)
        result = _compared(made, method, sampler, result, tolerance if int8 is None else math.inf, limit_seconds)
        if int8 is not None and judge is not None:
            result = replace(result, scores=_scored(made, method, sampler, batch or ANY, judge, int8))

    with torch.no_grad():
        write_atomically(path, write)  # which says first whether the file can be written at all
    return result


def _save_int8(method: Method, sampler: Sampler | None, path: Path, n: int, *, dynamic: bool) -> dict[str, Tensor]:
    """The file of ``_save`` in eight bits, by way of that in float32."""
    size = ANY if dynamic else n
    count = math.ceil(CALIBRATION / size) * size
    with tempfile.TemporaryDirectory() as folder:
        float32 = Path(folder) / f"float32{path.suffix}"
        noise = _save(method, sampler, float32, n, dynamic=dynamic)
        seeds = sample_seeds(2, 0, count)
        quantise(float32, path, (draws(method, seeds[i : i + size], sampler)[0] for i in range(0, count, size)))
    return noise


def _scored(  # noqa: PLR0917
    run: Program, method: Method, sampler: Sampler | None, n: int, judge: Judge, int8: Int8
) -> dict[str, tuple[float, float]]:
    """Scores of PyTorch's samples and of the program's from the same noise. Raises RunError where FID rises too far."""
    seeds = sample_seeds(0, 0, math.ceil(int8.samples / n) * n)
    float32, eight = [], []
    for start in range(0, len(seeds), n):
        noise, wanted = draws(method, seeds[start : start + n], sampler)
        float32.append(wanted)
        eight.append(run(noise))
    before, after = scores_of(float32, judge), scores_of(eight, judge)
    if not after["fid"] <= (1 + int8.fid_rise) * before["fid"]:
        raise RunError(
            f"in eight bits FID is {after['fid']:.4g}, in float32 {before['fid']:.4g}: a rise of more than "
            f"{int8.fid_rise:.0%}, so nothing was written; --fid-rise lets larger ones pass"
        )
    return {name: (before[name], after[name]) for name in before}


def runtimes() -> list[str]:
    """What could run an exported file here: those of ``PACKAGES`` that are installed."""
    return [name for name in PACKAGES if not _missing(name)]


@torch.no_grad()
def program(method: Method, sampler: Sampler | None, runtime: str, folder: Path, n: int) -> tuple[Program, Noise]:
    """``method``'s sampler of ``n`` images as ``runtime`` runs it from a file in ``folder``, and noise for it.

    It is made without gradients and must be called so. A file that lies there already is taken.

    Raises:
        RunError, ConfigError: as ``export``.
    """
    if missing := _missing(runtime):
        raise ConfigError(f"{runtime} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    bits, form = ("-int8" if runtime.endswith("-int8") else ""), "exported" if runtime == "exported" else "onnx"
    path = folder / f"sampler-{n}{bits}{SUFFIX[form]}"
    if not path.exists():
        (_save_int8 if bits else _save)(method, sampler, path, n, dynamic=False)
    return _LOAD[runtime.removesuffix("-int8")](path), draws(method, sample_seeds(1, 0, n), sampler)[0]


def _checked_path(path: Path, suffix: str) -> Path:
    if path.suffix != suffix:
        raise ConfigError(f"--out {path}: the file's name must end in {suffix}")
    if path.is_dir():
        raise ConfigError(f"--out {path} is a folder: give a file in it")
    return path


def _missing(runtime: str) -> list[str]:
    return [name for name in PACKAGES[runtime] if importlib.util.find_spec(name) is None]


def _save(method: Method, sampler: Sampler | None, path: Path, n: int, *, dynamic: bool) -> dict[str, Tensor]:
    """Trace the sampler with ``n`` images, write the file in the format that its name ends in; the noise traced."""
    noise, _ = draws(method, sample_seeds(0, 0, n), sampler)
    told = {
        "trilemma": __version__,
        "title": method.title(),
        "sampler": method.describe(sampler or Sampler()),
        "inputs": {name: list(value.shape[1:]) for name, value in noise.items()},
        "range": "points" if method.spec.kind == "points" else "[-1, 1]",
    }
    traced = _trace(PureSampler(method, sampler), noise, dynamic=dynamic)
    if path.suffix == SUFFIX["onnx"]:
        _save_onnx(traced, path, noise, told)
    else:
        _save_exported(traced, path, told)
    return noise


def _trace(pure: PureSampler, noise: Noise, *, dynamic: bool) -> torch.export.ExportedProgram:
    """The graph of one call."""
    shapes: Any = None
    if dynamic:
        any_number = torch.export.Dim("batch", min=1, max=2**16)
        shapes = {"noise": {name: {0: any_number} for name in noise}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(pure, (dict(noise),), dynamic_shapes=shapes, strict=False)
    except ConfigError:
        raise
    except Exception as error:  # torch has no common base for what it cannot trace
        raise RunError(f"this sampler cannot be made a program: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _compared(
    run: Program, method: Method, sampler: Sampler | None, result: Exported, tolerance: float, limit_seconds: float
) -> Exported:
    """Both on noise that was not traced; of any number of images, on one and on some more."""
    sizes = (1, EXAMPLE + 2) if result.batch is None else (result.batch,)
    worst = 0.0
    for size in sizes:
        noise, wanted = draws(method, sample_seeds(1, 0, size), sampler)
        found = run(noise)
        if found.shape != wanted.shape:
            raise RunError(f"the program makes {tuple(found.shape)}, not {tuple(wanted.shape)}: nothing was written")
        difference = float((found - wanted).abs().max())
        if not difference <= tolerance:  # nor if it is not a number
            raise RunError(
                f"the program's samples differ from PyTorch's by {difference:.2g}, more than {tolerance:.2g}: nothing "
                "was written; --tolerance lets larger differences pass"
            )
        worst = max(worst, difference)

    def plain() -> None:
        with give_noise(noise):
            method.sample(range(1), sampler)

    def seconds(call: Callable[[], Any]) -> float:
        call()
        timing: Timing = measure(call, limit_seconds=limit_seconds)
        return timing.quantile(0.5)

    return replace(result, difference=worst, seconds=seconds(lambda: run(noise)), seconds_torch=seconds(plain))


def _save_exported(traced: torch.export.ExportedProgram, path: Path, told: dict[str, Any]) -> None:
    held = io.BytesIO()  # written to a file, torch has errors of its own for a full disk
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights in channels_last, which it keeps as they are
        torch.export.save(traced, held, extra_files={"trilemma.json": json.dumps(told)})
    path.write_bytes(held.getbuffer())


def _load_exported(path: Path) -> Program:
    module = torch.export.load(path).module()
    return lambda noise: module(dict(noise))


def _save_onnx(traced: torch.export.ExportedProgram, path: Path, noise: Noise, told: dict[str, Any]) -> None:
    if sum(weight.nbytes for weight in traced.state_dict.values()) > MOST_ONNX:
        raise ConfigError("one ONNX file cannot hold weights of more than 1.5 GiB: leave out --format onnx")
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                traced, (), input_names=list(noise), output_names=["samples"], dynamo=True, verbose=False
            )
    except Exception as error:  # as with torch.export
        raise RunError(f"this sampler cannot be written as ONNX: {_first_line(error)}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert made is not None
    made.model.metadata_props["trilemma"] = json.dumps(told)
    made.save(str(path), external_data=False)


def _load_onnx(path: Path) -> Program:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base either
        raise RunError(f"onnxruntime cannot run this program: {_first_line(error)}") from error
    names = [given.name for given in session.get_inputs()]  # those that the graph reads

    def run(noise: Noise) -> Tensor:
        (samples,) = session.run(None, {name: noise[name].numpy() for name in names})
        return torch.from_numpy(samples)

    return run


def _load_openvino(path: Path) -> Program:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    try:
        model = openvino.Core().compile_model(str(path), "CPU", settings)
    except Exception as error:
        raise RunError(f"OpenVINO cannot run this program: {_first_line(error)}") from error
    names = [given.any_name for given in model.inputs]

    def run(noise: Noise) -> Tensor:
        samples = model({name: noise[name].numpy() for name in names})[0]
        return torch.from_numpy(samples)

    return run


_LOAD: dict[str, Callable[[Path], Program]] = {
    "exported": _load_exported,
    "onnxruntime": _load_onnx,
    "openvino": _load_openvino,
}

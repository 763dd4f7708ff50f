"""The ``trilemma`` command: parse, then call.

Each command is a dataclass whose fields are its flags. ``train`` also has the recipe's settings as flags
(``--options.unet.channels 64``, ``--training.batch-size 32``). Results go to standard output, words and progress to
standard error; bad input is one line and exit status 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trilemma.errors import SAID, ConfigError, Terminated, TrilemmaError, nearest

USAGE = """\
usage: trilemma COMMAND ...

Train, sample and fairly compare fast generative image models.

  race DATA        train several methods on the same data and budget; prints a table, writes one HTML page
  train METHOD     train one method into a run folder
  verify-resume M  show that an interrupted training ends with the same weights, bit for bit
  sample RUN       make images: a grid, a folder of PNGs or an .npz
  evaluate RUN     FID, KID, Inception Score, precision, recall, network evaluations and seconds; also of any images
  compare RUN...   one table and one HTML page from evaluated runs
  bench RUN...     images a second batch by batch, FLOPs, memory, share of what the machine can do
  export RUN       one file, a program of torch.export or ONNX, that makes the run's images from noise
  convert FILE     turn a published checkpoint into a run folder
  extractor train  train a feature extractor on labelled images
  data check DATA  what is wrong with images before they are trained on, and what mends it
  data prepare     decode images once into a folder that is given as DATA
  list             methods, recipes and data sets

DATA is digits, mnist, fashion-mnist, cifar10, gaussians, or a folder or zip of images; also prepared images, a .tar or
.parquet, hf:NAME, or the URL of tars.
Start with: trilemma race digits      Help for a command: trilemma COMMAND --help
"""


@dataclass(frozen=True)
class Race:
    """Train methods one by one on the same data and budget, evaluate them, and draw the comparison."""

    data: str  # digits, mnist, fashion-mnist, cifar10, gaussians, or a folder or zip of images
    methods: str = "ddpm,ddgan"  # comma-separated; ddgan races with its recipe's T and as a one-shot GAN
    minutes: float | None = None  # training minutes for each method
    images: int | None = None  # training images for each method, in place of minutes
    flops: float | None = None  # training FLOPs for each method, in place of minutes: 1e15
    samples: int | None = None  # images generated for the scores (default: depends on the data)
    seed: int = 0  # of the data order, the weights and the noise
    out: Path | None = None  # folder for the runs and report.html (default: runs/race-DATA)
    resume: bool = False  # go on with an interrupted race; finished rows are kept
    size: int | None = None  # resize and centre-crop the images to this many pixels a side
    data_root: Path | None = None  # where torchvision's data sets are or go (default: a cache folder)
    extractor: str | None = None  # of the scores: digits, inception, dinov2, clip or a file (default: by the data)
    extractor_weights: Path | None = None  # Inception weights from a file
    processes: int = 1  # of this machine, that share the work: one for each GPU, or the cores of a CPU


@dataclass(frozen=True)
class Train:
    """Train one method into a run folder."""

    method: str  # see trilemma list
    data: str  # digits, mnist, fashion-mnist, cifar10, gaussians, or a folder or zip of images
    recipe: str | None = None  # a packaged recipe or a TOML file (default: the method's own for the data)
    out: Path | None = None  # the run folder (default: runs/METHOD-DATA)
    minutes: float | None = None  # budget in minutes of training
    images: int | None = None  # budget in images shown
    flops: float | None = None  # budget in floating-point operations: 1e15
    seed: int = 0  # of the data order, the weights and the noise
    resume: bool = False  # continue from the last checkpoint
    size: int | None = None  # resize and centre-crop the images to this many pixels a side
    tracker: str | None = None  # an accelerate tracker: tensorboard, wandb, mlflow, ...
    data_root: Path | None = None  # where torchvision's data sets are or go
    forecast: bool = False  # half a minute: say what time, memory and disk the training would take, and train nothing
    processes: int = 1  # of this machine, that share the work: one for each GPU, or the cores of a CPU


@dataclass(frozen=True)
class VerifyResume:
    """Show that a training that is killed and resumed ends as an unbroken one, bit for bit; exit status 1 if not."""

    method: str  # see trilemma list
    data: str = "digits"  # digits, mnist, fashion-mnist, cifar10, gaussians, or a folder or zip of images
    recipe: str | None = None  # a packaged recipe or a TOML file (default: the method's own for the data)
    steps: int = 6  # of training, in each of the two runs
    kill_in: int | None = None  # the step that a process is killed in, from 2 on (default: half way)
    seed: int = 0  # of the data order, the weights and the noise
    size: int | None = None  # resize and centre-crop the images to this many pixels a side
    out: Path | None = None  # a new folder that keeps both runs (default: they are deleted)
    data_root: Path | None = None  # where torchvision's data sets are or go


@dataclass(frozen=True)
class Sample:
    """Make images with a trained run."""

    run: Path  # a run's folder
    n: int = 64  # how many
    seed: int = 0  # sample i of a seed is always the same image
    steps: str | None = None  # denoising steps (ddpm: by DDIM); several, 1,2,4,8, are drawn and timed side by side
    eta: float | None = None  # DDIM's noise, 0 to 1
    variance: Literal["fixed_small", "fixed_large"] | None = None  # ddpm: of the ancestral sampler
    truncation: float | None = None  # stylegan2, diffusion_gan: psi in [0, 1]; below 1 better images, fewer kinds
    class_: str | None = None  # conditional models: the class by name, or by number (default: drawn)
    label: int | None = None  # the same by number alone
    out: Path = Path("grid.png")  # a .png grid, an .npz file, or a folder for single PNGs
    trajectory: bool = False  # draw the states from noise to image, one row a sample
    u: str | None = None  # spigan: draw these points of the path, one row a sample: 0,0.25,0.5,0.75,1
    interpolate: str | None = None  # walk from sample A to sample B through the latent space: A,B
    batch_size: str = "100"  # images made at a time; auto: what is fastest here and fits the memory
    processes: int = 1  # of this machine, that share the work: one for each GPU, or the cores of a CPU


@dataclass(frozen=True)
class Evaluate:
    """Score a run and time its sampling, or score images of another program; writes eval.json and its pictures."""

    run: Path  # a run's folder; or a folder, zip or .npz of images, with --data
    samples: int | None = None  # images to generate (default: depends on the data); of images, how many (default: all)
    json: bool = False  # print eval.json to standard output
    steps: int | None = None  # denoising steps (ddpm: by DDIM)
    eta: float | None = None  # DDIM's noise, 0 to 1
    variance: Literal["fixed_small", "fixed_large"] | None = None  # ddpm: of the ancestral sampler
    truncation: float | None = None  # stylegan2, diffusion_gan: psi in [0, 1]
    label: int | None = None  # conditional models: the class (default: drawn)
    seed: int = 0  # of the samples
    extractor: str | None = None  # digits, inception, dinov2, clip or a file (default: depends on the data)
    extractor_weights: Path | None = None  # its weights from a file
    data: str | None = None  # the reference data, where it is not the run's own; images need it
    data_root: Path | None = None  # where torchvision's data sets are or go
    reference_samples: str = "10000"  # images of the reference that are compared with, or all
    repeats: int = 1  # sets of samples, each from a seed of its own: mean scores with intervals
    cache: bool = True  # keep the reference's features for the next time, by their content
    name: str | None = None  # images: what the row is called (default: the file's or folder's name)
    out: Path | None = None  # images: the folder for the scores (default: runs/NAME)
    size: int | None = None  # images: bring them and the reference to this many pixels a side
    processes: int = 1  # of this machine, that share the work: one for each GPU, or the cores of a CPU


@dataclass(frozen=True)
class Compare:
    """Draw one table and one HTML page from evaluated runs."""

    runs: tuple[Path, ...]  # run folders, or a race's folder
    out: Path = Path("report.html")  # the page
    force: bool = False  # compare rows that were scored under different protocols; what differs is marked
    figures: Path | None = None  # a folder for the page's plots as PNG and PDF (needs trilemma[figures] and Chromium)


@dataclass(frozen=True)
class Bench:
    """Measure how fast runs make images, batch by batch; writes bench.json into each run."""

    runs: tuple[Path, ...]  # run folders
    steps: str | None = None  # step counts to measure beside the default sampler, where a run offers them: 1,4,50
    batches: str = "1,4,16,64,100,256"  # images made at a time; 1 is always among them
    threads: int | None = None  # of the CPU (default: as many as torch takes)
    repeats: int = 10  # of each timing, at most
    seconds: float = 20.0  # no further repeat is begun after so many at one batch size
    json: bool = False  # print bench.json to standard output; of several runs, a list


@dataclass(frozen=True)
class Export:
    """Write a run's sampler into one file: noise in, images out, the steps and the schedule inside."""

    run: Path  # a run's folder
    format: Literal["exported", "onnx"] = "exported"  # a program of torch.export, or ONNX (needs trilemma[export])
    out: Path | None = None  # the file (default: RUN/sampler.pt2 or RUN/sampler.onnx)
    batch: str = "1"  # images made at a time, or dynamic for any number
    steps: int | None = None  # denoising steps (ddpm: by DDIM)
    eta: float | None = None  # DDIM's noise, 0 to 1
    variance: Literal["fixed_small", "fixed_large"] | None = None  # ddpm: of the ancestral sampler
    truncation: float | None = None  # stylegan2, diffusion_gan: psi in [0, 1]
    class_: str | None = None  # conditional models: the class by name, or by number (default: drawn from the noise)
    label: int | None = None  # the same by number alone
    tolerance: float = 1e-4  # the largest difference from PyTorch's samples that is let pass
    int8: bool = False  # onnx: convolutions in eight bits, kept if FID against the run's data holds
    samples: int | None = None  # --int8: images scored of each kind (default: 1000)
    fid_rise: float | None = None  # --int8: the largest rise of FID that is let pass (default: 0.1, a tenth of it)
    extractor: str | None = None  # --int8: digits, inception, dinov2, clip or a file (default: by the data)
    data_root: Path | None = None  # --int8: where the run's data lies, if not in the usual folder


@dataclass(frozen=True)
class Convert:
    """Turn a published checkpoint (a state dict, or StyleGAN2's pickle) into a run folder, without running its code."""

    file: Path  # the .pth file, or stylegan2's .pkl
    run: Path  # the run folder to write
    config: Path | None = None  # ddgan: JSON with the reference's own argument names
    as_: str = "ddgan"  # whose checkpoint it is: ddgan or stylegan2


@dataclass(frozen=True)
class Extractor:
    """Train a classifier of labelled images into a file; evaluate --extractor FILE scores with its features."""

    action: Literal["train"]  # what to do
    data: str  # digits, mnist, fashion-mnist, cifar10, or a folder or zip with a subfolder for each class
    out: Path | None = None  # the file to write (default: extractor-DATA.safetensors)
    minutes: float | None = None  # budget in minutes of training
    images: int | None = None  # budget in images shown (default: ten passes, at least 20,000)
    test: str | None = None  # data to judge it on (default: the test split, else a tenth of the images)
    size: int | None = None  # resize and centre-crop the images to this many pixels a side
    seed: int = 0  # of the weights, the order and the augmentation
    flip: bool = True  # mirror images at random; digits and mnist never are
    width: int = 32  # channels of the first layer; the features are eight times as many
    data_root: Path | None = None  # where torchvision's data sets are or go


@dataclass(frozen=True)
class Data:
    """Look at images before training (check), or decode them once into a folder that is given as DATA (prepare)."""

    action: Literal["check", "prepare"]  # what to do
    data: str  # a folder, zip, .tar or .parquet (or a pattern of these), hf:NAME[:SPLIT[:COLUMN]], or a URL of tars
    out: Path | None = None  # the folder to write (default: checks/NAME, or prepared/NAME-SIZE)
    labels: Path | None = None  # a CSV (file,label) or JSON of labels (default: one beside the images, or subfolders)
    size: int | None = None  # prepare: pixels a side (default: as they are)
    gray: bool = False  # prepare: make all gray
    crop: Literal["center", "none", "pad"] = "center"  # prepare: squares from the middle, whole, or with white beside
    filter: Literal["lanczos", "box"] = "lanczos"  # prepare: how images are resized
    without: Path | None = None  # prepare: a text file of images to leave out, one a line
    json: bool = False  # check: print what was found as JSON


@dataclass(frozen=True)
class List:
    """Methods, recipes and data sets, each with one line."""


COMMANDS: dict[str, type[Any]] = {
    "race": Race,
    "train": Train,
    "verify-resume": VerifyResume,
    "sample": Sample,
    "evaluate": Evaluate,
    "compare": Compare,
    "bench": Bench,
    "export": Export,
    "convert": Convert,
    "extractor": Extractor,
    "data": Data,
    "list": List,
}
POSITIONAL: dict[str, tuple[str, ...]] = {
    "race": ("data",),
    "train": ("method",),
    "verify-resume": ("method",),
    "sample": ("run",),
    "evaluate": ("run",),
    "compare": ("runs",),
    "bench": ("runs",),
    "export": ("run",),
    "convert": ("file", "run"),
    "extractor": ("action", "data"),
    "data": ("action", "data"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with status 0, 1 for a difference, 2 for bad input, 130 by Ctrl-C, or 143 by SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return
    if arguments[0] in ("-V", "--version"):
        import trilemma

        print(trilemma.__version__)
        return
    rank = os.environ.get("RANK", "0")  # of several processes, as their launcher numbers them
    try:
        name = arguments[0]
        if name not in COMMANDS:
            raise nearest("command", name, COMMANDS)
        command = _parse_train(arguments[1:]) if name == "train" else parse(COMMANDS[name], name, arguments[1:])
        processes = getattr(command, "processes", 1)
        if processes != 1 and "LOCAL_RANK" not in os.environ:  # those that are started come here again
            from trilemma.engine.launch import launch

            sys.exit(launch(arguments, processes))
        from trilemma import commands

        getattr(commands, f"run_{name.replace('-', '_')}")(command)
    except TrilemmaError as error:
        who = "trilemma" if rank == "0" else f"trilemma (process {rank})"
        print(f"{who}: {' '.join(str(error).split())}", file=sys.stderr)
        if rank == "0" and SAID in os.environ:
            with contextlib.suppress(OSError):
                Path(os.environ[SAID]).touch()
        sys.exit(2)
    except KeyboardInterrupt as stop:
        resumable = hasattr(COMMANDS[arguments[0]], "resume")
        usual = "interrupted" + ("; go on with --resume" if resumable else "")
        if rank == "0":  # all are told to stop together, and one says so
            print(f"trilemma: {str(stop) or usual}", file=sys.stderr)
        sys.exit(130)
    except Terminated as stop:
        if rank == "0":
            print(f"trilemma: {stop}", file=sys.stderr)
        sys.exit(143)
    except BrokenPipeError:
        sys.exit(141)


def parse(cls: type[Any], name: str, arguments: Sequence[str]) -> Any:
    """Fill a command's dataclass from its flags.

    Raises:
        ConfigError: an unknown flag (with the nearest), a missing or a malformed value.
    """
    import tyro

    marked = _marked(cls, POSITIONAL.get(name, ()))
    if not any(argument in ("-h", "--help") for argument in arguments):
        _check_flags(cls, name, arguments)
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            parsed = tyro.cli(marked, prog=f"trilemma {name}", args=arguments)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(f"{name}: {_one_line(words.getvalue())}") from None
    return parsed


def _marked(cls: type[Any], positional: Sequence[str]) -> type[Any]:
    """The same dataclass with hints for the parser: fields without a flag, and ``as_`` as the flag ``--as``."""
    import tyro

    as_positional: Any = tyro.conf.Positional
    for owner in cls.__mro__:
        hints = typing.get_type_hints(owner) if dataclasses.is_dataclass(owner) else {}
        for field in set(hints) & set(vars(owner).get("__annotations__", {})):
            if field in positional:
                owner.__annotations__[field] = as_positional[hints[field]]
            elif field.endswith("_"):
                owner.__annotations__[field] = typing.Annotated[hints[field], tyro.conf.arg(name=field.strip("_"))]
    return cls


def flags(cls: Any, prefix: str = "") -> list[str]:
    """All flags of a command, nested settings included; a switch has a second one with no- in front of its name."""
    hints = typing.get_type_hints(cls)
    names: list[str] = []
    for field in dataclasses.fields(cls):
        hint, name = hints.get(field.name), field.name.strip("_").replace("_", "-")
        if dataclasses.is_dataclass(hint):
            names += flags(hint, f"{prefix}{name}.")
        else:
            names += [f"--{prefix}{name}"] + ([f"--{prefix}no-{name}"] if hint is bool else [])
    return names


def _check_flags(cls: Any, name: str, arguments: Sequence[str]) -> None:
    known = [flag for flag in flags(cls) if flag.removeprefix("--") not in POSITIONAL.get(name, ())]
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            close = difflib.get_close_matches(flag, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"{name}: unknown flag {argument!r}: {hint}all flags: trilemma {name} --help")


def _one_line(box: str) -> str:
    """The first sentence of the parser's boxed message, in plain words."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [row.strip("│╭╮╰╯|+ \t") for row in text.splitlines()][1:]  # below the title
    below = itertools.dropwhile(lambda row: not re.search(r"\w", row), rows)
    body = " ".join(itertools.takewhile(lambda row: re.search(r"\w", row), below))  # up to a rule or an empty row
    parsing = re.match(r"Error parsing (\S+):", body)
    if parsing is None:
        words = re.sub(r"Missing from [\w ]+:", "missing", body.replace("(required)", ""))
        words = re.sub(r"one of \((.*)\)", lambda found: f"one of {_choices(found[1])}", words)
        return re.sub(r"\s+", " ", words).strip(" .") or "the arguments do not parse"
    flag = parsing[1]
    wanted = next((row.removeprefix(flag) for row in rows if row.startswith(f"{flag} ")), "")
    kind = "whole number" if "INT" in wanted else "number"
    value = " ".join(re.findall(r"'(.*?)'", body))
    return f"{flag} must be {kind + 's' if '[' in wanted else 'a ' + kind}, not {value!r}"


def _choices(listed: str) -> str:
    """The parser's choices, which it lists in any order, without the None that stands for leaving a flag out."""
    return ", ".join(sorted(set(listed.strip(",").split(", ")) - {"'None'"}))


def _parse_train(arguments: Sequence[str]) -> Any:
    """``train`` takes its recipe's settings as flags too, so the recipe is read first."""
    wants_help = any(argument in ("-h", "--help") for argument in arguments)
    method = next((a for i, a in enumerate(arguments) if not a.startswith("-") and _free(arguments, i)), None)
    if method is None and not wants_help:
        raise ConfigError("train: a method is missing: for example trilemma train ddgan --data digits")
    if method is None:
        return parse(Train, "train", arguments)
    data, recipe = _value(arguments, "--data"), _value(arguments, "--recipe")
    if data is None and not wants_help:
        raise ConfigError(f"train: --data is missing: for example trilemma train {method} --data digits")
    from trilemma.config import Training, build
    from trilemma.engine.train import resolve_recipe
    from trilemma.methods import method_class

    name, loaded = resolve_recipe(method, data or "digits", recipe)
    kind = method_class(method)
    options = build(kind.Options, loaded.options, f"recipe {name}")
    full = dataclasses.make_dataclass(
        "TrainWithSettings",
        [
            ("options", kind.Options, dataclasses.field(default=options)),
            ("training", Training, dataclasses.field(default=loaded.training)),
        ],
        bases=(Train,),
        frozen=True,
        kw_only=True,
    )
    full.__doc__ = Train.__doc__
    full.__module__, full.__qualname__ = Train.__module__, Train.__qualname__  # where the help's comments are read
    return parse(full, "train", arguments)


def _free(arguments: Sequence[str], index: int) -> bool:
    """Whether the argument at ``index`` is not the value of the flag before it."""
    if index == 0:
        return True
    before = arguments[index - 1]
    return not before.startswith("--") or "=" in before or before in ("--resume", "--forecast")


def _value(arguments: Sequence[str], flag: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None

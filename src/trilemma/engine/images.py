"""Score images that another program made, under the protocol of runs, so that they take a row beside them.

What is written is a folder that `compare` reads like a run: eval.json, config.json (kind "images", no method and no
weights) and a picture of samples. Nothing is known of network evaluations, seconds or training, so none are told.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.config import require_all
from trilemma.data import Dataset, content_digest, load_data
from trilemma.data.given import GivenImages, load_given
from trilemma.data.load import load_held_out
from trilemma.data.pictures import save_grid
from trilemma.engine.again import evaluation_command, reference_flag
from trilemma.engine.evaluate import GRID, Report
from trilemma.engine.evidence import save_evidence
from trilemma.engine.judge import (
    MIN_SAMPLES,
    REFERENCE_SAMPLES,
    Trained,
    check_reference,
    make_judge,
    reference_protocol,
    verdict,
)
from trilemma.engine.run import IMAGES, Run
from trilemma.engine.train import data_path, describe_data
from trilemma.errors import ConfigError, DataError, RunError
from trilemma.files import finite, read_json, write_json
from trilemma.measure.speed import versions
from trilemma.protocol import fingerprint

NOT_MEASURED = dict.fromkeys(("nfe", "seconds_per_image_batch_1", "images_per_second_batch_100"))


def are_images(path: Path, data: str | Dataset | None) -> bool:
    """Whether ``path`` is images to score rather than a run: a file, or a folder that is no run with a reference."""
    return path.is_file() or (data is not None and path.is_dir() and not (path / "config.json").is_file())


def result_folder(path: Path, name: str | None, out: Path | None) -> Path:
    """Where the scores go: ``out``, else runs/NAME."""
    return (
        out if out is not None else Path("runs") / (re.sub(r"[^\w.-]+", "-", _title(path, name)).strip("-.") or IMAGES)
    )


def evaluate_images(  # noqa: PLR0913
    path: Path,
    data: str | Dataset,
    *,
    name: str | None = None,
    out: Path | None = None,
    size: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    extractor_name: str | None = None,
    extractor_weights: Path | None = None,
    data_root: Path | None = None,
    cache: bool = True,
    reference_samples: int | None = REFERENCE_SAMPLES,
    report: Report = lambda what, done, total: None,
    on_images: Callable[[Dataset], None] = lambda images: None,
) -> dict[str, Any]:
    """Everything eval.json holds.

    Args:
        path: a folder, zip or .npz of images (see `data.given`).
        data: the reference they are compared with.
        name: what the row is called; default the file's or folder's name.
        out: the folder for the result; default runs/NAME. One that holds such a result already is written anew.
        size: reference and images become size x size; without it the images must have the reference's size.
        samples: how many of the images are scored, drawn with ``seed``; default all.
        reference_samples: how many of the reference they are compared with; None: all.
        on_images: called with the images once they are read.

    Raises:
        RunError, DataError, ExtractorError, ConfigError: in one line, before anything is written.
    """
    started = time.perf_counter()
    require_all(
        (0 <= seed < 2**31, f"seed must be from 0 to 2147483647, not {seed}"),
        (samples is None or samples >= MIN_SAMPLES, f"--samples must be at least {MIN_SAMPLES}, not {samples}"),
        (bool(_title(path, name).strip()), "--name must not be empty"),
    )
    folder = result_folder(path, name, out)
    _check_folder(folder)
    reference = _reference(data, size, data_root)
    given = load_given(path, reference.spec, size=size)
    on_images(given.data)
    x, words = _choose(path, given.data.x, samples, seed)
    judge = make_judge(
        reference,
        extractor_name,
        extractor_weights,
        cache=cache,
        reference_samples=reference_samples,
        trained=Trained(
            reference,
            load_held_out(data, reference.spec, root=data_root, size=size) if isinstance(data, str) else None,
            "reference, as the training images are not known",
        ),
    )
    report("scores", 0, len(x))
    judgement = judge(x)
    found = verdict([judgement])
    report("scores", len(x), len(x))

    about = {
        **reference_protocol(reference),
        **found.protocol,
        "generated_digest": content_digest(x),
        "lossless": given.lossless,
        "formats": list(given.formats),
        # Stated only where it is so: what a run makes is never resized, and equal protocols have equal fingerprints.
        **({"resized": True} if given.resized else {}),
        "command": evaluation_command(
            path,
            {
                "data": data.name if isinstance(data, Dataset) else data,
                "name": name,
                "out": out,
                "size": size,
                "samples": samples,
                "seed": seed or None,
                "extractor": extractor_name,
                "extractor_weights": extractor_weights,
                "data_root": data_root,
                "reference_samples": reference_flag(reference_samples),
            },
        ),
        "seeds": words,
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    title = _title(path, name)
    result = {
        "row": {
            "title": title,
            "method": title,
            "family": "images of another program",
            "paper": "",
            "sampler": f"from {' and '.join(given.formats)} files",
            "tag": "default",
        },
        "scores": {**found.scores, **NOT_MEASURED},
        "intervals": found.intervals,
        "protocol": {**about, "fingerprint": fingerprint(about)},
    }
    Run(folder).write_config(_config(path, title, given, describe_data(reference, _source(data))))
    shown = torch.linspace(0, len(x) - 1, min(len(x), GRID)).round().long()  # evenly: they may lie class by class
    save_grid(x[shown], folder / "eval" / "default" / "samples.png", columns=8)
    if judgement.evidence is not None:
        save_evidence(x, judgement.evidence, folder / "eval" / "default")
    write_json(folder / "eval.json", result)
    written: dict[str, Any] = finite(result)
    return written


def _title(path: Path, name: str | None) -> str:
    if name is not None:
        return name
    return path.resolve().name if path.is_dir() else path.stem


def _source(data: str | Dataset) -> str | None:
    return data_path(data) if isinstance(data, str) else None


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else, or that cannot be written to. Raises RunError."""
    config = folder / "config.json"
    if config.is_file():
        found = read_json(config)
        if not isinstance(found, dict) or found.get("kind") != IMAGES:
            raise RunError(f"{folder} holds a run already: choose another folder with --out")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty: choose another folder for the scores with --out, or another --name")
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise RunError(f"cannot write {folder}: {place} is no folder that can be written to: choose another --out")


def _reference(data: str | Dataset, size: int | None, root: Path | None) -> Dataset:
    if isinstance(data, Dataset):
        if size is not None and data.spec.shape[1:] != (size, size):
            raise ConfigError(f"size {size} is not that of the reference given, {data.spec.width}x{data.spec.height}")
        reference = data
    else:
        reference = load_data(data, root=root, size=size)
    if reference.spec.kind == "points":
        raise ConfigError(f"{reference.name} are points: images cannot be compared with them")
    check_reference(reference)
    return reference


def _choose(path: Path, x: Tensor, samples: int | None, seed: int) -> tuple[Tensor, str]:
    """The images that are scored, uint8 (N, C, H, W), and which they are in words."""
    count = len(x)
    if count < MIN_SAMPLES:
        raise DataError(f"{path} holds {count} images, but scores need {MIN_SAMPLES}: give more")
    if samples is None:
        return x, f"all {count:,} images"
    if samples > count:
        raise DataError(f"{path} holds {count} images, but --samples asks for {samples}: give more, or ask for fewer")
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:samples].sort().values
    return x[chosen], f"{samples:,} of {count:,} images, drawn with seed {seed}"


def _config(path: Path, title: str, given: GivenImages, reference: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": IMAGES,
        "title": title,
        "images": {
            "path": str(path.resolve()),
            "source": given.data.source,
            "images": len(given.data),
            "digest": given.data.digest,
            "formats": list(given.formats),
            "lossless": given.lossless,
            "resized": given.resized,
            "skipped": list(given.data.skipped),
        },
        "data": reference,
        "versions": versions(),
    }

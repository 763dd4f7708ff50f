"""Score a run: fidelity and coverage against its data, network evaluations counted by hooks, seconds measured.

Writes eval.json (or eval-TAG.json for another sampler over the same weights) and the pictures a comparison shows, so
that a comparison needs nothing but run folders.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.config import Training, require
from trilemma.data import Dataset, load_data
from trilemma.data.pictures import save_grid, save_points
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.outputs import save_trajectory
from trilemma.engine.run import Run
from trilemma.errors import DataError, RunError
from trilemma.files import finite, read_json, write_json
from trilemma.measure.features import default_extractor, extract, load_extractor
from trilemma.measure.fidelity import fidelity_from_features, fidelity_protocol
from trilemma.measure.modes import mode_scores
from trilemma.measure.speed import hardware, speed_scores, versions
from trilemma.methods.base import Method
from trilemma.types import Sampler

REFERENCE_SAMPLES = 10_000  # for nearest neighbours; drawn once, by a fixed seed
MIN_SAMPLES = 10  # fewer say nothing
GRID, ROWS, POINTS = 64, 6, 1_000  # images in the grid, rows in the trajectory; points in each panel of theirs
Report = Callable[[str, int, int], None]


def eval_path(run: Run, method: Method, sampler: Sampler) -> Path:
    """eval.json, or eval-TAG.json for a sampler that is not the method's default."""
    tag = method.tag(sampler)
    return run.folder / ("eval.json" if tag == "default" else f"eval-{tag}.json")


def is_current(run: Run, method: Method, sampler: Sampler) -> bool:
    """Whether there are scores already, and of the weights that the run has now."""
    path = eval_path(run, method, sampler)
    try:
        protocol = read_json(path)["protocol"] if path.is_file() else {}
        return _trained(run).items() <= protocol.items()
    except (RunError, KeyError, TypeError, AttributeError):  # a damaged file is no score
        return False


def evaluate(  # noqa: PLR0913
    run: Run,
    sampler: Sampler,
    *,
    samples: int | None = None,
    seed: int = 0,
    extractor_name: str | None = None,
    extractor_weights: Path | None = None,
    data: str | Dataset | None = None,
    data_root: Path | None = None,
    report: Report = lambda what, done, total: None,
) -> dict[str, Any]:
    """Everything eval.json holds.

    Raises:
        RunError, DataError, ExtractorError, ConfigError: in one line, before any sampling where it can be known.
    """
    started = time.perf_counter()
    require(0 <= seed < 2**31, f"seed must be from 0 to 2147483647, not {seed}")
    require(samples is None or samples >= MIN_SAMPLES, f"--samples must be at least {MIN_SAMPLES}, not {samples}")
    generator = Generator.load(run.folder)
    method = generator.method
    method.describe(sampler)  # refuses what the method does not offer
    reference = _reference(run, generator, data, data_root)
    usual = run.config().get("training", {}).get("score_samples", Training.score_samples)
    count = samples if samples is not None else min(usual, len(reference))
    seeds = sample_seeds(seed, 0, count)

    measure = _points if generator.spec.kind == "points" else _images
    judge = measure(reference, extractor_name, extractor_weights)
    done = 0

    def advance(made: int) -> None:
        nonlocal done
        done += made
        report("samples", done, count)

    generated = generator.stored(seeds, sampler, advance=advance)
    scores, protocol = judge(generated)
    report("seconds", count, count)
    speed = speed_scores(
        lambda batch: method.sample(batch, sampler),
        method.counted_networks(),
        inner=method.inner_solvers(),
        warmup=lambda batch: method.sample(batch, method.preview()),
    )
    _draw(generator, sampler, seed, generated, reference, run.folder / "eval" / method.tag(sampler))

    about = {
        "data": reference.name,
        "data_digest": reference.digest,
        "split": reference.split,
        **protocol,
        **speed.protocol,
        "seeds": f"seed {seed}, samples 0 to {count - 1}",
        "steps": sampler.steps,
        "parameters": sum(p.numel() for n in method.sampling_networks().values() for p in n.parameters()),
        **_trained(run),
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    result = {"row": _row(method, sampler), "scores": scores | speed.scores, "protocol": about}
    write_json(eval_path(run, method, sampler), result)
    written: dict[str, Any] = finite(result)
    return written


def _row(method: Method, sampler: Sampler) -> dict[str, str]:
    """What the row is called in a table."""
    words, tag = method.describe(sampler), method.tag(sampler)
    return {
        "title": method.title() if tag == "default" else f"{method.title()}, {words}",
        "method": method.name,
        "family": method.family,
        "paper": method.paper,
        "sampler": words,
        "tag": tag,
    }


def _reference(run: Run, generator: Generator, data: str | Dataset | None, root: Path | None) -> Dataset:
    """The run's own data, loaded again by name or path, or the one given instead."""
    described = run.config()["data"]
    if isinstance(data, Dataset):
        reference = data
    else:
        wanted = data or described.get("path") or described["name"]
        spec = generator.spec
        size = spec.height if spec.kind == "images" else None
        reference = load_data(wanted, root=root, size=size, channels=spec.channels if size else None)
        if data is None and reference.digest != described.get("digest", reference.digest):
            raise RunError(
                f"{run.folder} was trained on {described['name']} with digest {described['digest'][:12]}, "
                f"but that data now has {reference.digest[:12]}: restore it or name a reference with --data"
            )
    if reference.spec.shape != generator.spec.shape:
        raise DataError(f"{reference.name} has shape {reference.spec.shape}, the run makes {generator.spec.shape}")
    if len(reference) < MIN_SAMPLES:
        raise DataError(f"{reference.name} has {len(reference)} samples, but scores need {MIN_SAMPLES}: use more data")
    return reference


def _draw(  # noqa: PLR0917
    generator: Generator, sampler: Sampler, seed: int, generated: Tensor, reference: Dataset, folder: Path
) -> None:
    """samples.png and trajectory.png; ``generated`` are the samples that were scored, of the same seed."""
    if generator.spec.kind == "points":
        save_points(generated.flatten(1), folder / "samples.png", modes=reference.modes)
        save_trajectory(generator, sample_seeds(seed, 0, POINTS), sampler, folder / "trajectory.png")
        return
    missing = sample_seeds(seed, min(len(generated), GRID), GRID)
    rest = [generator.stored(missing, sampler)] if missing else []
    save_grid(torch.cat([generated[:GRID], *rest]), folder / "samples.png", columns=8)
    save_trajectory(generator, sample_seeds(seed, 0, ROWS), sampler, folder / "trajectory.png")


def _images(
    data: Dataset, name: str | None, weights: Path | None
) -> Callable[[Tensor], tuple[dict[str, float], dict[str, Any]]]:
    extractor = load_extractor(name or default_extractor(data.name, data.spec), weights)
    reference = data.x
    if len(reference) > REFERENCE_SAMPLES:
        chosen = torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))[:REFERENCE_SAMPLES]
        reference = reference[chosen]

    def judge(generated: Tensor) -> tuple[dict[str, float], dict[str, Any]]:
        seen, truth = extract(generated, extractor), extract(reference, extractor)
        return fidelity_from_features(seen, truth), fidelity_protocol(seen, truth)

    return judge


def _points(
    data: Dataset, name: str | None, weights: Path | None
) -> Callable[[Tensor], tuple[dict[str, float], dict[str, Any]]]:
    require(name is None and weights is None, "points are scored by their modes: leave out --extractor")
    if data.modes is None or data.sigma is None:
        raise DataError(f"{data.name} has no known modes to score points by")
    modes, sigma = data.modes, data.sigma
    return lambda generated: (mode_scores(generated.flatten(1), modes, sigma), {"generated_samples": len(generated)})


def _trained(run: Run) -> dict[str, Any]:
    """How long and on how many images the run was trained, from its log."""
    log = run.read_log()
    last = log[-1] if log else {}
    return {"training_seconds": last.get("seconds"), "training_images": last.get("images")}

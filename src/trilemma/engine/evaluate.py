"""Score a run: fidelity and coverage against its data, network evaluations counted by hooks, seconds measured.

Writes eval.json (or eval-TAG.json for another sampler over the same weights) and the pictures a comparison shows, so
that a comparison needs nothing but run folders.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.config import Training, build, require_all
from trilemma.data import Dataset, load_data
from trilemma.data.load import is_at_hand, load_held_out
from trilemma.data.pictures import save_grid, save_points
from trilemma.engine.again import evaluation_command, reference_flag
from trilemma.engine.evidence import save_evidence
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.judge import (
    MIN_SAMPLES,
    REFERENCE_SAMPLES,
    Evidence,
    Judge,
    Judgement,
    Trained,
    Verdict,
    check_reference,
    make_judge,
    reference_protocol,
    verdict,
)
from trilemma.engine.outputs import save_trajectory
from trilemma.engine.processes import company, join, told
from trilemma.engine.run import Run
from trilemma.engine.seeing import help_to_see, release, see_together
from trilemma.errors import ConfigError, DataError, RunError
from trilemma.files import finite, read_json, write_json
from trilemma.measure.classifier import load_classifier
from trilemma.measure.digits_cnn import WEIGHTS, load_digits_cnn
from trilemma.measure.features import default_extractor, load_extractor
from trilemma.measure.path_length import classifier_features, digits_features, feature_path_length
from trilemma.measure.programs import TRUST
from trilemma.measure.speed import hardware, speed_scores, versions
from trilemma.methods.base import Method
from trilemma.protocol import fingerprint
from trilemma.types import Sampler

PATHS, FEWEST_PATHS = 1_000, 100  # of the path length
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


@company()
def evaluate(  # noqa: PLR0913
    run: Run,
    sampler: Sampler,
    *,
    samples: int | None = None,
    seed: int = 0,
    repeats: int = 1,
    extractor_name: str | None = None,
    extractor_weights: Path | None = None,
    data: str | Dataset | None = None,
    data_root: Path | None = None,
    cache: bool = True,
    reference_samples: int | None = REFERENCE_SAMPLES,
    report: Report = lambda what, done, total: None,
) -> dict[str, Any]:
    """Everything eval.json holds; several processes share sampling and the extractor's work, and all must call this.

    Args:
        samples: in each set of samples.
        repeats: sets of samples, from the seeds ``seed``, ``seed + 1``, ...; no two share a sample. The scores are
            means over the sets; their intervals are Student's over the sets, or the jackknife's of a single one.
        cache: keep the reference's features for the next time, or take those that were kept.
        reference_samples: how many images of the reference are compared with; None: all.

    Raises:
        RunError, DataError, ExtractorError, ConfigError: in one line, before any sampling where it can be known.
    """
    started = time.perf_counter()
    require_all(
        (repeats >= 1, f"--repeats must be at least 1, not {repeats}"),
        (0 <= seed < 2**31, f"seed must be from 0 to 2147483647, not {seed}"),
        (seed + repeats <= 2**31, f"--repeats {repeats} from seed {seed} on goes beyond the last seed 2147483647"),
        (samples is None or samples >= MIN_SAMPLES, f"--samples must be at least {MIN_SAMPLES}, not {samples}"),
    )
    generator = Generator.load(run.folder)
    method = generator.method
    method.describe(sampler)  # refuses what the method does not offer
    reference = own_reference(run, generator, data, data_root)
    count = samples if samples is not None else min(_usual_samples(run), len(reference))
    sets = [sample_seeds(seed + k, 0, count) for k in range(repeats)]
    images = reference.spec.kind == "images"
    if not join().is_main_process:  # samples and features are shared work, all the rest is the main process's
        if images:
            _help(generator, sampler, sets, reference, extractor_name, extractor_weights)
        else:
            for seeds in sets:
                generator.shared(seeds, sampler)
        shared: dict[str, Any] = told(None)
        return shared
    judge = make_judge(
        reference,
        extractor_name,
        extractor_weights,
        cache=cache,
        reference_samples=reference_samples,
        trained=trained_on(run, generator, reference, data_root) if images else None,
        see=see_together,
    )
    if images:
        judge = _releasing(judge)
    generated, found, evidence = _judge_sets(generator, sampler, sets, judge, report)
    report("seconds", count, count)
    speed = speed_scores(
        lambda batch: method.sample(batch, sampler),
        method.counted_networks(),
        inner=method.inner_solvers(),
        warmup=lambda batch: method.sample(batch, method.preview()),
    )
    pictures = run.folder / "eval" / method.tag(sampler)
    _draw(generator, sampler, seed, generated, reference, pictures)
    if evidence is not None:
        save_evidence(generated, evidence, pictures)

    words = f"seed {seed}" if repeats == 1 else f"seeds {seed} to {seed + repeats - 1}"
    about = {
        **reference_protocol(reference),
        **found.protocol,
        **speed.protocol,
        "lossless": True,  # samples are judged as they were made, never written to a file before
        "sampling_repeats": repeats,
        "command": evaluation_command(
            run.folder,
            {
                "samples": samples,
                **asdict(sampler),
                "extractor": extractor_name,
                "extractor_weights": extractor_weights,
                "data": _named(run, reference) if isinstance(data, Dataset) else data,
                "data_root": data_root,
                "reference_samples": reference_flag(reference_samples),
                "seed": seed or None,
                "repeats": repeats if repeats > 1 else None,
            },
        ),
        "seeds": f"{words}, samples 0 to {count - 1}",
        **_sampling(run, generator, sampler),
        "seconds": round(time.perf_counter() - started, 1),
    }
    result = {
        "row": _row(method, sampler),
        "scores": found.scores
        | _path_length(generator, sampler, found.protocol, extractor_name, extractor_weights, sets[0])
        | speed.scores,
        "intervals": found.intervals,
        "protocol": {**about, "fingerprint": fingerprint(about)},
    }
    write_json(eval_path(run, method, sampler), result)
    written: dict[str, Any] = told(finite(result))
    return written


def _help(  # noqa: PLR0917
    generator: Generator,
    sampler: Sampler,
    sets: Sequence[Sequence[int]],
    reference: Dataset,
    name: str | None,
    weights: Path | None,
) -> None:
    """Share the main process's work on images: its reference, the samples, and their features."""
    usual = default_extractor(reference.name, reference.spec)
    load = functools.cache(lambda: load_extractor(name or usual, weights, spec=reference.spec))
    help_to_see(load)
    for seeds in sets:
        generator.shared(seeds, sampler)
        help_to_see(load)


def _releasing(judge: Judge) -> Judge:
    """The same judge, made and used with the others' help: after each time they go on."""
    release()

    def judged(generated: Tensor) -> Judgement:
        found = judge(generated)
        release()
        return found

    return judged


def _usual_samples(run: Run) -> int:
    """The number of samples that the run's settings ask for. Raises ConfigError where they are out of order."""
    kept = run.config().get("training") or {}
    given = {key: kept[key] for key in ("score_samples",) if key in kept}  # a version may have others beside it
    return build(Training, given, f"{run.config_path}, training").score_samples


def _judge_sets(
    generator: Generator, sampler: Sampler, sets: Sequence[Sequence[int]], judge: Judge, report: Report
) -> tuple[Tensor, Verdict, Evidence | None]:
    """The samples of the first set of seeds, the scores over all sets, and what lies behind those of the first.

    The others are made one by one.
    """
    total, done = sum(map(len, sets)), 0

    def advance(made: int) -> None:
        nonlocal done
        done += made
        report("samples", done, total)

    first = generator.shared(sets[0], sampler, advance=advance)
    judgements = [judge(first)]
    for seeds in sets[1:]:
        found = judge(generator.shared(seeds, sampler, advance=advance))
        judgements.append(replace(found, evidence=None))  # it may be large, and only the first set's is drawn
    return first, verdict(judgements), judgements[0].evidence


def _path_length(  # noqa: PLR0917
    generator: Generator,
    sampler: Sampler,
    protocol: Mapping[str, Any],
    extractor: str | None,
    weights: Path | None,
    seeds: Sequence[int],
) -> dict[str, float]:
    """Path length of a method with a latent space, as the digits network or a classifier of one's own sees it.

    The other judges round to bytes.
    """
    method = generator.method
    if not method.has_latent or sampler != Sampler() or len(seeds) < FEWEST_PATHS:
        return {}
    if protocol.get("extractor") == "digits":
        judge = digits_features(load_digits_cnn(WEIGHTS if weights is None else weights).to(method.device))
    elif extractor is not None and extractor.endswith(".safetensors"):
        path = Path(extractor.removeprefix(TRUST)).expanduser()
        judge = classifier_features(load_classifier(path).to(method.device))
    else:
        return {}
    return {"path_length": feature_path_length(method.latent_path, judge, seeds[:PATHS])}


def _named(run: Run, reference: Dataset) -> str | None:
    """What a reference given as an object is called; None for the run's own data, which need not be named."""
    return None if reference.digest == run.config()["data"].get("digest") else reference.name


def _sampling(run: Run, generator: Generator, sampler: Sampler) -> dict[str, Any]:
    """What made the samples, and on what."""
    weights = [p for network in generator.method.sampling_networks().values() for p in network.parameters()]
    return {
        "steps": sampler.steps,
        "precision": generator.precision,
        "parameters": sum(p.numel() for p in weights),
        **_trained(run),
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
        "versions": versions(),
    }


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


def own_reference(run: Run, generator: Generator, data: str | Dataset | None, root: Path | None) -> Dataset:
    """The run's own data, loaded again by name or path, or the one given instead.

    Raises:
        RunError, DataError: it is not there, has changed since the training, or is too little to judge by.
    """
    described = run.config()["data"]
    if isinstance(data, Dataset):
        reference = data
    else:
        with join().main_process_first():  # it may have to download
            reference = _load(data or _place(described), generator, root)
        if data is None:
            _refuse_changed(run, described, reference)
    if reference.spec.shape != generator.spec.shape:
        raise DataError(f"{reference.name} has shape {reference.spec.shape}, the run makes {generator.spec.shape}")
    check_reference(reference)
    return reference


def trained_on(run: Run, generator: Generator, reference: Dataset, root: Path | None) -> Trained:
    """The images that the run was trained on, to look for copies in, and the test split of the same data.

    They are not always at hand: a reference may be named because they are not.
    """
    described = run.config()["data"]
    place, data = _place(described), reference
    try:
        if reference.digest != described.get("digest"):
            if not is_at_hand(place, "train", root):
                raise DataError(f"{place} would have to be fetched")
            data = _load(place, generator, root)
            _refuse_changed(run, described, data)
    except (RunError, DataError, ConfigError) as error:
        return Trained(None, words=f"the training images are not at hand ({error})")
    return Trained(data, load_held_out(place, generator.spec, root=root, size=_side(generator)))


def _place(described: Mapping[str, Any]) -> str:
    """What loads a run's data again."""
    return str(described.get("path") or described["name"])


def _load(data: str, generator: Generator, root: Path | None) -> Dataset:
    """Data at the size and with the channels that a run makes."""
    spec = generator.spec
    channels = spec.channels if spec.kind == "images" else None
    return load_data(data, root=root, size=_side(generator), channels=channels)


def _side(generator: Generator) -> int | None:
    """The size to load images at; None for rectangles, which one number would cut square, and for points."""
    spec = generator.spec
    return spec.height if spec.kind == "images" and spec.height == spec.width else None


def _refuse_changed(run: Run, described: Mapping[str, Any], data: Dataset) -> None:
    if data.digest != (described.get("digest") or data.digest):
        raise RunError(
            f"{run.folder} was trained on {described['name']} with digest {described['digest'][:12]}, "
            f"but that data now has {data.digest[:12]}: restore it or name a reference with --data"
        )


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


def _trained(run: Run) -> dict[str, Any]:
    """How long, on how many images and with how many FLOPs the run was trained, from its log."""
    log = run.read_log()
    last = log[-1] if log else {}
    told = {"training_seconds": last.get("seconds"), "training_images": last.get("images")}
    return told | ({"training_flops": last["flops"]} if "flops" in last else {})

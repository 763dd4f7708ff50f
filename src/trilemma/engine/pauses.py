"""Seconds that a training's snapshots will take beside their grids: the watch's look and the quick score.

Both are tried on a few images and counted up to as many as there will be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from trilemma.engine.loop import LEAST_WATCHED, WATCH_SHARE
from trilemma.engine.train import Plan
from trilemma.measure.features import default_extractor, extract, load_extractor
from trilemma.measure.fidelity import fid_only
from trilemma.measure.watch import Watch

TRIED = 10_000  # training images that the watch is tried on, at most
SCORED = 256  # images that the extractor is tried on, at most
REFERENCE = 10_000  # training images that the quick score compares with, at most


def look_seconds(plan: Plan, samples: Tensor, an_image: float, training: float) -> float:
    """Of all looks of the watch, where sampling takes ``an_image`` seconds each and all steps ``training`` seconds.

    ``samples``: a few, as data sets are stored; what they are makes no difference.
    """
    settings, n = plan.training, len(plan.data.x)
    if plan.data.spec.kind != "images" or settings.snapshots == 0:
        return 0.0
    between = training / settings.snapshots
    watched = min(settings.watch_samples, n, int(WATCH_SHARE * between / an_image))
    if watched < LEAST_WATCHED:
        return 0.0
    tried = plan.data.x[:TRIED]
    many = samples.repeat(-(-watched // len(samples)), 1, 1, 1)[: min(watched, len(tried))]
    watch, making = _timed(lambda: Watch(tried))
    _, looking = _timed(lambda: watch.look(many))
    share = n / len(tried)
    return share * making + settings.snapshots * (watched * an_image + share * looking)


def score_seconds(plan: Plan, an_image: float) -> float:
    """Of all quick scores, the reference's features once among them.

    Raises:
        ExtractorError: its weights cannot be had, without which the training would not begin either.
    """
    settings, data = plan.training, plan.data
    if settings.probe_samples == 0 or settings.snapshots == 0:
        return 0.0
    sampling = settings.probe_samples * an_image
    if data.spec.kind == "points":
        return settings.snapshots * sampling
    extractor = load_extractor(default_extractor(data.name, data.spec))
    x = data.x[: min(SCORED, extractor.batch)]
    extract(x[:2], extractor)  # the first is slower
    seen, extracting = _timed(lambda: extract(x, extractor))
    _, comparing = _timed(lambda: fid_only(seen, seen))
    each = extracting / len(x)
    once = min(REFERENCE, len(data.x)) * each
    return once + settings.snapshots * (sampling + settings.probe_samples * each + comparing)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the seconds that it takes."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started

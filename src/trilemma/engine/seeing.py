"""Features of images by all processes at hand: the main one judges, and the others look at their share with it.

They take turns with the batches that one process would make, so that the features, and the scores, are the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch import Tensor

from trilemma.engine.processes import join, told
from trilemma.measure.features import Extractor, FeatureSet, extract, feature_set


def see_together(x: Tensor, extractor: Extractor) -> FeatureSet:
    """``extract`` of uint8 images (N, C, H, W), by the main process; all others must be in ``help_to_see``."""
    if join().num_processes == 1 or len(x) == 0:
        return extract(x, extractor)
    told(x)
    return feature_set(_looked_at(x, extractor), extractor)


def release() -> None:
    """Let the others go on: the main process has nothing more to look at for now."""
    told(None)


def help_to_see(load: Callable[[], Extractor]) -> None:
    """Take a share of whatever the main process looks at, until it calls ``release``.

    ``load`` gives the same extractor: called only when the main process has it, and with it the weights' file.
    """
    while (x := told(None)) is not None:
        _looked_at(x, load())


def _looked_at(x: Tensor, extractor: Extractor) -> list[dict[str, Tensor]]:
    """What all processes see in the batches of ``x``, in order."""
    batches = torch.split(x, extractor.batch)
    rank, count = join().process_index, join().num_processes
    own = [extractor.features(batch) for batch in batches[rank::count]]
    seen: list[list[dict[str, Tensor]]] = gather_object([own])
    return [seen[i % count][i // count] for i in range(len(batches))]

"""An ONNX sampler whose convolutions work in eight bits: static quantisation by onnxruntime.

Weights are rounded to int8, each output channel with a scale of its own; what goes into a layer is rounded to uint8,
with the range that it had on noise drawn for the purpose. All else stays float32. No tolerance of single
pixels tells whether that does harm: samples of the same noise are scored, made by PyTorch in float32 and by the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.config import require_all
from trilemma.data import to_uint8
from trilemma.engine.evaluate import own_reference
from trilemma.engine.generator import Generator
from trilemma.engine.judge import MIN_SAMPLES, Judge, make_judge
from trilemma.errors import RunError

LAYERS = ["Conv"]
CALIBRATION = 64  # images whose ranges are taken
SCORES = ("fid", "precision", "recall")
Noise = Mapping[str, Tensor]


@dataclass(frozen=True)
class Int8:
    """How a sampler in eight bits is judged.

    Raises:
        ConfigError: for a value out of its range.
    """

    samples: int = 1_000  # scored of each kind
    fid_rise: float = 0.1  # the largest rise of FID, as a share of it, that is let pass
    extractor: str | None = None  # what scores them; default: the data's
    data_root: Path | None = None  # where the run's data lies, if not in the usual folder

    def __post_init__(self) -> None:
        require_all(
            (self.samples >= MIN_SAMPLES, f"--samples must be at least {MIN_SAMPLES}, not {self.samples}"),
            (self.fid_rise > 0, f"--fid-rise must be positive, not {self.fid_rise:g}"),
        )

    def judge(self, generator: Generator) -> Judge:
        """What scores images against the data of the run.

        Raises:
            RunError, DataError, ExtractorError: the data or the extractor is not there.
        """
        assert generator.run is not None
        return make_judge(own_reference(generator.run, generator, None, self.data_root), self.extractor, None)


class _Ranges:
    """The noise on which ranges are taken, as onnxruntime reads it: one batch after another, then None."""

    def __init__(self, noise: Iterable[Noise], names: list[str]) -> None:
        self._feeds = ({name: batch[name].numpy() for name in names} for batch in noise)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _rename_weights(graph: Any) -> None:
    """Where layers share a bias, onnxruntime appends a number to its name, which may be that of something else: mul_1
    becomes mul_14. After a full stop it cannot."""
    names = {weight.name: f"{weight.name}." for weight in graph.initializer}
    for weight in graph.initializer:
        weight.name = names[weight.name]
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)


def quantise(source: Path, target: Path, noise: Iterable[Noise]) -> None:
    """Write the ONNX file ``source`` in eight bits to ``target``; ``noise``: batches of the size that it takes.

    Raises:
        RunError: onnxruntime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = onnx.load(source)
    _rename_weights(model.graph)
    held = {weight.name for weight in model.graph.initializer}
    names = [given.name for given in model.graph.input if given.name not in held]
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)  # it recommends a preparation that torch.onnx has done
        quantize_static(
            model,
            str(target),
            _Ranges(noise, names),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=LAYERS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},
        )
    except Exception as error:  # it has no common base for what it cannot do
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise RunError(f"onnxruntime cannot quantise this sampler: {first}") from error
    finally:
        root.setLevel(level)


def scores_of(samples: Iterable[Tensor], judge: Judge) -> dict[str, float]:
    """FID, precision and recall of batches of images (N, C, H, W) in [-1, 1]; those that the extractor has."""
    found = judge(torch.cat([to_uint8(batch) for batch in samples])).scores
    return {name: value for name in SCORES if (value := found.get(name)) is not None}

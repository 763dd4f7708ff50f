"""Rectangles from the folder to the scores: prepared, trained on, sampled, drawn, evaluated, trained again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny import tiny_options
from trilemma.config import Training
from trilemma.data.prepared import Preparation, prepare
from trilemma.engine import evaluate as evaluation
from trilemma.engine.again import training_command
from trilemma.engine.evaluate import evaluate
from trilemma.engine.generator import Generator, sample_seeds
from trilemma.engine.outputs import save_samples
from trilemma.engine.run import Run
from trilemma.engine.train import make_plan, train
from trilemma.errors import ConfigError
from trilemma.types import Sampler

TRAINING = Training(batch_size=8, snapshots=1, probe_samples=0, watch_samples=0)


def photos(folder: Path, width: int, height: int, count: int) -> Path:
    """Noise of so many pixels, in colour."""
    folder.mkdir()
    random = np.random.RandomState(0)
    for i in range(count):
        Image.fromarray(random.randint(0, 256, (height, width, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("method", ["ddgan", "stylegan2"])
def test_from_the_folder_to_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    timed = evaluation.speed_scores
    monkeypatch.setattr(evaluation, "speed_scores", lambda *args, **kwargs: timed(*args, **kwargs, limit_seconds=0.0))
    data = prepare(
        str(photos(tmp_path / "photos", 32, 16, 100)),
        tmp_path / "prepared",
        Preparation(size=8, crop="none", gray=True),
    )
    # The recipe wants squares of 32 pixels; what is prepared stays as it is.
    plan = make_plan(method, str(data), images=16, options=tiny_options(method), training=TRAINING)
    assert plan.data.spec.shape == (1, 8, 16)
    assert "--size" not in training_command(plan).split()
    run = train(plan, tmp_path / "run")
    with Image.open(sorted((run.folder / "samples").iterdir())[0]) as grid:
        # 8 x 8 samples, four times as large to be seen, with 2 pixels around each
        assert grid.size == (8 * (64 + 2) + 2, 8 * (32 + 2) + 2) and grid.mode == "L"
    generator = Generator.load(run.folder)
    x = generator.stored(sample_seeds(0, 0, 2))
    save_samples(x, generator.spec, tmp_path / "files")
    with Image.open(tmp_path / "files" / "000001.png") as one:
        assert np.array_equal(np.asarray(one), x[1, 0].numpy()) and one.size == (16, 8)
    result = evaluate(Run(run.folder), Sampler(), samples=20, extractor_name="digits", cache=False)
    assert result["protocol"]["size"] == "16x8" and result["protocol"]["data_digest"] == plan.data.digest
    assert result["scores"]["fid"] > 0


def test_a_size_that_does_not_halve_is_refused_with_one_that_does(tmp_path: Path) -> None:
    data = prepare(str(photos(tmp_path / "photos", 26, 13, 4)), tmp_path / "prepared", Preparation(crop="none"))
    plan = make_plan("ddpm", str(data), images=16, options=tiny_options("ddpm"), training=TRAINING)
    with pytest.raises(ConfigError, match="13 x 26: .* multiple of 4; the nearest that fits is 12 x 28"):
        train(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()

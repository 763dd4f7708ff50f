"""Run folders with made-up numbers, for tests: the files a real run has, but for its weights."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

Tree = dict[str, Any]

PROTOCOL: Tree = {
    "data": "mnist",
    "data_digest": "9f2c41d07be3a5186c0d4e7f9f2c41d07be3a5186c0d4e7f9f2c41d07be3a518",
    "split": "test",
    "reference_samples": 10000,
    "generated_samples": 2000,
    "extractor": "digits",
    "extractor_digest": "1b7d0c22a9e45f3388d6107c1b7d0c22a9e45f3388d6107c1b7d0c22a9e45f33",
    "seeds": "0..1999",
    "steps": 4,
    "repeats": 3,
    "threads": 2,
    "hardware": {"cpu": "Some Processor 3000", "cores": 2, "memory_gib": 8},
    "versions": {"trilemma": "0.1.0", "torch": "2.9.0"},
    "seconds": 94.0,
    "parameters": 712_345,
    "training_images": 92_160,
    "training_seconds": 1201.5,
}

IMAGE_SCORES: Tree = {
    "fid": 72.14,
    "kid": 0.0612,
    "inception_score": 8.93,
    "precision": 0.512,
    "recall": 0.621,
    "nfe": 4,
    "seconds_per_image_batch_1": 0.0123,
    "images_per_second_batch_100": 402.0,
}

POINT_SCORES: Tree = {
    "modes": 24,
    "share_within_4_sigma": 0.934,
    "nfe": 4,
    "seconds_per_image_batch_1": 0.0011,
    "images_per_second_batch_100": 51_000.0,
}


def png(path: Path, columns: int, lines: int, cell: int, seed: int) -> Path:
    """A grid of blobs that look a little like digits: noise in the first column of a trajectory, smooth elsewhere."""
    draw = random.Random(seed)
    image = Image.new("L", (columns * cell, lines * cell))
    pixels = image.load()
    assert pixels is not None
    for line in range(lines):
        for column in range(columns):
            u, v, width = draw.uniform(0.35, 0.65), draw.uniform(0.35, 0.65), draw.uniform(0.02, 0.05)
            for y in range(cell):
                for x in range(cell):
                    radius = math.hypot(x / cell - u, y / cell - v)
                    pixels[column * cell + x, line * cell + y] = int(255 * math.exp(-((radius - 0.2) ** 2) / width**2))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def log_lines(images: float, seconds: float, final_fid: float, names: tuple[str, ...], seed: int) -> str:
    """A training log: every line has losses, every tenth a quick FID."""
    draw, lines = random.Random(seed), []
    for k in range(1, 201):
        share = k / 200
        entry: Tree = {
            "step": 14 * k,
            "images": images * share,
            "seconds": seconds * share,
            "losses": {name: 1.4 * math.exp(-share * (j + 1)) + draw.gauss(0, 0.05) for j, name in enumerate(names)},
            "lr": {"generator": 1e-3 * (1 - share)},
        }
        if k % 10 == 0:
            entry["fid"] = final_fid * (1 + 6 * math.exp(-6 * share)) * draw.uniform(0.95, 1.15)
        lines.append(json.dumps(entry))
    return "\n".join(lines) + "\n"


def evaluation(
    run: Path,
    *,
    tag: str = "default",
    row: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
    pictures: bool = True,
    seed: int = 0,
) -> Path:
    """eval.json or eval-TAG.json with its pictures; the mappings go over the usual values."""
    about = {"title": "DDGAN, T = 4", "method": "ddgan", "family": "denoising GAN", "paper": "Xiao et al. 2022"}
    content = {
        "row": {**about, "sampler": "4 steps", "tag": tag, **(row or {})},
        "scores": {**IMAGE_SCORES, **(scores or {})},
        "protocol": {**PROTOCOL, **(protocol or {})},
    }
    path = run / ("eval.json" if tag == "default" else f"eval-{tag}.json")
    path.write_text(json.dumps(content), encoding="utf-8")
    if pictures:
        png(run / "eval" / tag / "samples.png", 8, 8, 28, seed)
        png(run / "eval" / tag / "trajectory.png", min(content["protocol"]["steps"], 10) + 1, 6, 28, seed + 1)
        png(run / "eval" / tag / "neighbours.png", 8, 4, 28, seed + 2)
        png(run / "eval" / tag / "worst.png", 8, 2, 28, seed + 3)
    return path


def run_folder(
    run: Path,
    *,
    title: str = "DDGAN, T = 4",
    method: str = "ddgan",
    kind: str = "images",
    losses: tuple[str, ...] = ("generator", "discriminator"),
    final_fid: float = 80.0,
    seed: int = 0,
) -> Path:
    """config.json and log.jsonl; evaluations are added by ``evaluation``."""
    run.mkdir(parents=True)
    spec = {"kind": kind, "channels": 1, "height": 28, "width": 28, "classes": 10}
    config = {
        "method": method,
        "recipe": f"{method}-mnist",
        "title": title,
        "data": {"name": "mnist", "source": "MNIST, LeCun et al.", "digest": PROTOCOL["data_digest"], "spec": spec},
        "options": {"steps": 4},
        "training": {"batch_size": 32},
        "seed": 0,  # of the training; ``seed`` only varies the made-up log
    }
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (run / "log.jsonl").write_text(log_lines(92_160, 1201.5, final_fid, losses, seed), encoding="utf-8")
    return run


def race(folder: Path) -> list[Path]:
    """Three image runs on equal terms, four rows: DDGAN, DDPM with its two samplers, SPI-GAN."""
    ddgan = run_folder(folder / "ddgan")
    evaluation(ddgan, seed=1)
    ddpm = run_folder(folder / "ddpm", title="DDPM", method="ddpm", losses=("eps",), final_fid=60.0, seed=1)
    about = {"method": "ddpm", "family": "diffusion", "paper": "Ho et al. 2020"}
    evaluation(
        ddpm,
        row={**about, "title": "DDPM", "sampler": "1000 steps"},
        scores={"fid": 49.72, "kid": 0.0401, "precision": 0.611, "recall": 0.742, "nfe": 1000}
        | {"seconds_per_image_batch_1": 5.31, "images_per_second_batch_100": 1.62},
        protocol={"steps": 1000, "training_images": 146_000, "training_seconds": 1199.0, "parameters": 1_061_000},
        seed=3,
    )
    evaluation(
        ddpm,
        tag="ddim50",
        row={**about, "title": "DDIM", "sampler": "50 steps", "paper": "Song et al. 2021"},
        scores={"fid": 58.2, "kid": 0.0477, "precision": 0.604, "recall": 0.718, "nfe": 50}
        | {"seconds_per_image_batch_1": 0.262, "images_per_second_batch_100": 33.1},
        protocol={"steps": 50, "training_images": 146_000, "training_seconds": 1199.0, "parameters": 1_061_000},
        seed=5,
    )
    spigan = run_folder(folder / "spigan", title="SPI-GAN", method="spigan", final_fid=24.0, seed=2)
    evaluation(
        spigan,
        row={"title": "SPI-GAN", "method": "spigan", "family": "GAN", "paper": "Choi et al. 2024", "sampler": "1 step"},
        scores={"fid": 16.31, "kid": 0.0113, "precision": 0.773, "recall": 0.171, "nfe": 1}
        | {"seconds_per_image_batch_1": 0.0031, "images_per_second_batch_100": 2613.0},
        protocol={"steps": 1, "training_images": 101_000, "training_seconds": 1202.0, "parameters": 534_000},
        seed=7,
    )
    return [ddgan, ddpm, spigan]


def point_runs(folder: Path) -> list[Path]:
    """Two runs on a ring of Gaussians."""
    runs = []
    for k, (method, title, scores) in enumerate(
        [
            ("ddgan", "DDGAN, T = 4", {}),
            ("ddpm", "DDPM", {"modes": 25, "share_within_4_sigma": 0.981, "images_per_second_batch_100": 410.0}),
        ]
    ):
        run = run_folder(folder / f"{method}-points", title=title, method=method, kind="points", seed=k)
        path = evaluation(
            run,
            row={"title": title, "method": method},
            protocol={"data": "gaussians", "data_digest": "25" * 32},
            seed=k,
        )
        content = json.loads(path.read_text(encoding="utf-8"))
        content["scores"] = {**POINT_SCORES, **scores}
        path.write_text(json.dumps(content), encoding="utf-8")
        runs.append(run)
    return runs

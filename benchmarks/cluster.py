"""An estimate, not a measurement: memory, images a second, traffic and hours of recipes on several GPUs.

    python benchmarks/cluster.py ddgan-celebahq256 ddpm-lsun-church256 --gpus 8 --tflops 100 --share 0.3 --gbytes 50

It is made from what `trilemma.engine.counted` counts on torch's meta device: f FLOPs, g bytes of gradients and m bytes
of memory of one GPU's share of a step. With n GPUs,

    seconds of a step = f / (share * peak)  +  2 (n - 1) / n * g / bandwidth        (a ring's traffic, never overlapped)
    images a second   = batch / seconds of a step
    traffic           = 2 (n - 1) / n * g                                           (bytes that a GPU sends in a step)

``--tflops`` is the GPU's peak at the precision trained in and ``--gbytes`` the bandwidth between GPUs in GB/s, both
from its maker; ``--share`` is the part of the peak that training reaches, which only a measurement tells (``trilemma
bench`` prints it for sampling). Reading data, grids and checkpoints are left out. Memory is that of float32.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trilemma.config import Recipe, build, load_recipe
from trilemma.engine.counted import StepCost, step_cost
from trilemma.methods import method_class
from trilemma.types import DataSpec


def counted(recipe: Recipe, name: str, gpus: int, steps: int) -> StepCost:
    """Of one GPU's share of the batch."""
    if recipe.data.size is None or recipe.training.batch_size % gpus:
        raise SystemExit(
            f"{name}: needs a size, and a batch_size {recipe.training.batch_size} that {gpus} GPUs can share"
        )
    kind = method_class(recipe.method)
    options = build(kind.Options, recipe.options, f"recipe {name}")
    spec = DataSpec("images", recipe.data.channels or 3, recipe.data.size, recipe.data.size)
    return step_cost(kind, options, spec, recipe.training.batch_size // gpus, steps)


def estimate(recipe: Recipe, cost: StepCost, images: int, command: argparse.Namespace) -> dict[str, Any]:
    """What follows from the counts."""
    gpus, batch = command.gpus, recipe.training.batch_size
    traffic = 2 * (gpus - 1) / gpus * cost.gradient_bytes
    computing = cost.flops / (command.share * command.tflops * 1e12)
    sending = traffic / (command.gbytes * 1e9)
    return {
        "batch_size": batch,
        "images": images,
        "memory_gib": round((cost.state_bytes + cost.kept_bytes) / 2**30, 2),
        "traffic_mb_a_step": round(traffic / 1e6, 1),
        "seconds_computing": round(computing, 5),
        "seconds_sending": round(sending, 5),
        "images_per_second": round(batch / (computing + sending), 1),
        "hours": round(images / batch * (computing + sending) / 3600, 1),
    }


def main() -> None:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--tflops", type=float, required=True, help="peak of one GPU")
    parser.add_argument("--share", type=float, required=True, help="of the peak that is reached, in (0, 1]")
    parser.add_argument("--gbytes", type=float, required=True, help="GB/s between GPUs")
    parser.add_argument("--images", type=int, help="images shown (default: the recipe's budget)")
    parser.add_argument("--steps", type=int, default=30, help="steps to count: a multiple of the penalties' intervals")
    parser.add_argument("--out", type=Path, help="a JSON file for the counts and what follows from them")
    command = parser.parse_args()
    assumed = {key: getattr(command, key) for key in ("gpus", "tflops", "share", "gbytes", "steps")}
    found: dict[str, Any] = {"assumed": assumed, "recipes": {}}
    print("recipe  parameters  TFLOP/step/GPU  memory GiB/GPU  traffic MB/step/GPU  images/s  hours")
    for name in command.recipes:
        recipe = load_recipe(name)
        images = command.images or recipe.training.images
        if images is None:
            raise SystemExit(f"{name} has a budget of minutes: give --images")
        cost = counted(recipe, name, command.gpus, command.steps)
        about = estimate(recipe, cost, images, command)
        found["recipes"][name] = {"counted": asdict(cost), "estimated": about}
        print(
            f"{name}  {cost.parameters:,}  {cost.flops / 1e12:.3f}  {about['memory_gib']:.1f}  "
            f"{about['traffic_mb_a_step']:.0f}  {about['images_per_second']:.0f}  {about['hours']:.0f}",
            flush=True,
        )
    if command.out is not None:
        command.out.parent.mkdir(parents=True, exist_ok=True)
        command.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

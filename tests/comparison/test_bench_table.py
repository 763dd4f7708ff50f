"""bench.json as a table."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from trilemma.comparison import bench_table


def result(device: str = "cpu", memory: float | None = 312.4) -> dict[str, Any]:
    entry = {"repeats": 10, "peak_memory_mib": memory, "memory_before_mib": 300.0}
    return {
        "rows": [
            {
                "title": "DDGAN [T = 4]",
                "nfe": 4.0,
                "flops_per_image": 12_340_000,
                "batches": [
                    {
                        "batch": batch,
                        "images_per_second": speed,
                        "images_per_second_quartiles": [0.9 * speed, 1.1 * speed],
                        "share_of_roofline": share,
                        **entry,
                    }
                    for batch, speed, share in ((1, 50.0, 0.0125), (4, 160.0, 0.05), (16, 2613.0, 0.512))
                ],
            }
        ],
        "protocol": {
            "device": device,
            "threads": 2,
            "precision": "float32",
            "flops": "2 a multiply-add",
            "memory": "resident set",
            "roofline": {"matmul_flops_per_second": 320e9, "convolution_flops_per_second": 301.4e9},
            "hardware": {"cpu": "Some Processor 3000", "gpu": "Some Card"},
        },
    }


def text(*results: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(bench_table(results))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_one_line_a_batch() -> None:
    lines = text(result()).splitlines()
    (first, second, third) = (next(line for line in lines if word in line) for word in ("DDGAN", "NFE", "FLOP an"))
    assert cells(first) == ["DDGAN [T = 4]", "1", "20.0", "50.0", "45.0 - 55.0", "10", "312", "1.2 %"]
    assert cells(second) == ["NFE 4.00", "4", "6.25", "160", "144 - 176", "10", "312", "5.0 %"]
    assert cells(third) == ["12.3 MFLOP an image", "16", "0.383", "2,610", "2,350 - 2,870", "10", "312", "51.2 %"]


def test_the_machine_is_named_once() -> None:
    shown = " ".join(text(result(), result()).split())
    assert shown.count("Some Processor 3000, 2 threads, float32") == 1
    assert "320 GFLOP/s in a matrix product, 301 GFLOP/s in a convolution" in shown
    assert "memory: resident set" in shown and "FLOPs: 2 a multiply-add" in shown
    assert "Some Card" in text(result("cuda:0"))


def test_memory_that_is_not_known_is_a_dash() -> None:
    assert "—" in text(result(memory=None)) and "—" not in text(result())

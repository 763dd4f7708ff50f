"""What bench.json holds as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from trilemma.words import MISSING, count, plain, significant

NUMBERS = ("batch", "ms/img", "img/s", "quartiles", "repeats", "peak MiB", "of the roof")


def bench_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """One block a sampler, one line a batch size; below it the machine and what the numbers mean."""
    table = Table(
        caption=Text("\n".join(dict.fromkeys(_words(result["protocol"]) for result in results))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("sampler")
    for heading in NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in (row for result in results for row in result["rows"]):
        # Beside the first batch sizes stands what does not depend on them.
        beside = [row["title"], f"NFE {significant(row['nfe'])}", f"{_flops(row['flops_per_image'])} an image"]
        for i, entry in enumerate(row["batches"]):
            name = beside[i] if i < len(beside) else ""
            table.add_row(Text(name), *_cells(entry), end_section=i == len(row["batches"]) - 1)
    return table


def _cells(entry: Mapping[str, Any]) -> list[str]:
    low, high = entry["images_per_second_quartiles"]
    share = entry["share_of_roofline"]
    return [
        str(entry["batch"]),
        significant(1000 / entry["images_per_second"]),
        significant(entry["images_per_second"]),
        f"{significant(low)} - {significant(high)}",
        str(entry["repeats"]),
        MISSING if entry["peak_memory_mib"] is None else f"{entry['peak_memory_mib']:,.0f}",
        MISSING if share is None else f"{100 * share:.1f} %",
    ]


def _words(protocol: Mapping[str, Any]) -> str:
    hardware, roof = protocol["hardware"], protocol["roofline"]
    machine = hardware["gpu"] if protocol["device"].startswith("cuda") else hardware["cpu"]
    rates = (roof["matmul_flops_per_second"], roof["convolution_flops_per_second"])
    matmul, convolution = (f"{_flops(rate)}/s" for rate in rates)
    threads = f"{protocol['threads']} thread{'' if protocol['threads'] == 1 else 's'}"
    return "\n".join(
        (
            f"{plain(machine)}, {threads}, {protocol['precision']}; "
            f"its roof: {matmul} in a matrix product, {convolution} in a convolution",
            f"FLOPs: {protocol['flops']}",
            f"memory: {protocol['memory']}",
        )
    )


def _flops(value: float) -> str:
    """12.3 GFLOP, 9,800 FLOP."""
    text = count(value)
    return f"{text}FLOP" if text[-1].isalpha() else f"{text} FLOP"

"""Devices, processes and precision of a training, and what of them has to stay the same for the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from accelerate.tracking import get_available_trackers  # type: ignore[import-untyped]
from accelerate.utils import LoggerType  # type: ignore[import-untyped]

from trilemma.engine.processes import join
from trilemma.engine.run import Run
from trilemma.errors import ConfigError, nearest


def make_accelerator(run: Run, precision: str, tracker: str | None) -> Accelerator:
    """Devices, processes, precision and tracker of one training.

    Raises:
        ConfigError: a precision that this device lacks, an unknown tracker or one that is not installed.
    """
    join()
    if tracker is not None:
        known = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
        if tracker not in known:
            raise nearest("tracker", tracker, known)
        if tracker not in [LoggerType(kind).value for kind in get_available_trackers()]:
            raise ConfigError(f"tracker {tracker} is not installed: install it or leave it out, log.jsonl has it all")
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    try:
        return Accelerator(
            mixed_precision=precision, log_with=tracker, project_dir=str(run.folder) if tracker else None
        )
    except ValueError as error:
        raise ConfigError(f"precision {precision}: {error}") from error


def machine(accelerator: Accelerator) -> dict[str, Any]:
    """What sums are made by: in another order, or by other instructions, they round otherwise."""
    device = accelerator.device
    return {
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line that tells in what two machines differ, or none."""
    changed = [f"{key} {before[key]}, now {now[key]}" for key in now if key in before and before[key] != now[key]]
    return [f"trained so far with {'; '.join(changed)}: not bit for bit what an unbroken run gives"] if changed else []

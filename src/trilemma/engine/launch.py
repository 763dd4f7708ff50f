"""A command in several processes of this machine, started as torchrun would: what ``--processes`` does."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from trilemma.config import require
from trilemma.errors import SAID

PATIENCE = 300  # seconds that processes may take to save and stop once they are told to


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``trilemma ARGUMENTS`` in so many processes that work as one, and wait for their end.

    On a CPU its cores are shared out, unless OMP_NUM_THREADS says how many threads each process gets; of GPUs, each has
    its own. The main process writes to this one's output and error. The others' words are kept, and printed where one
    of them is the first to fail. Signals are passed on.

    Returns:
        The exit status: 0, that of the process that failed first (128 and the signal's number where one killed it), or
        128 and the number of the signal that stopped all.

    Raises:
        ConfigError: ``processes`` is less than 1, or more than there are GPUs, or cores if there are none.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    most, units = (gpus, "GPUs") if gpus else (cores, "CPU cores")
    require(1 <= processes <= most, f"--processes must be from 1 to the {most} {units} here, not {processes}")
    if not gpus:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    logging.disable(logging.CRITICAL)  # the launcher's own, which tells in many lines what the processes say in one
    with tempfile.TemporaryDirectory(prefix="trilemma-") as words:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            max_restarts=0,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            logs_specs=DefaultLogsSpecs(log_dir=words, redirects={rank: Std.ERR for rank in range(1, processes)}),
            shutdown_timeout=PATIENCE,
        )
        said = Path(words) / "said"
        os.environ[SAID] = str(said)
        try:
            elastic_launch(config, sys.executable)("-m", "trilemma", *arguments)
        except SignalException as stop:
            return 128 + int(stop.sigval)
        except ChildFailedError as error:
            rank, first = error.get_first_failure()
            if rank and not said.exists():  # where all fail alike, the main one has said it
                _repeat(Path(words), rank)
            if first.exitcode < 0:
                print(f"trilemma: process {rank} was killed by {first.signal_name()}", file=sys.stderr)
            return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    return 0


def _repeat(words: Path, rank: int) -> None:
    """Print what a process wrote to standard error while nobody saw it."""
    for file in words.rglob(f"{rank}/stderr.log"):
        print(file.read_text(encoding="utf-8", errors="replace"), end="", file=sys.stderr)

"""``--processes``: the command starts the processes that share its work, and speaks, stops and fails as one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trilemma.cli import main

SECONDS = 120.0  # after which a command is ended: many times what it takes
TRAIN = ["train", "ddpm", "--data", "digits", "--training.snapshots", "0"]

two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two CPU cores")


def start(*arguments: object) -> subprocess.Popen[str]:
    outside = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in outside}
    command = [sys.executable, "-m", "trilemma", *map(str, arguments), "--processes", "2"]
    pipe = subprocess.PIPE
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def ended(started: subprocess.Popen[str]) -> tuple[int, str]:
    """Status, and what the command said beside its progress."""
    try:
        _, complaints = started.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        pytest.fail(f"no end after {SECONDS} s")
    return started.returncode, "\n".join(re.findall(r"trilemma.*: .*", complaints))


def workers(of: subprocess.Popen[str]) -> dict[str, int]:
    """The processes that a command has started, by rank."""
    found = Path(f"/proc/{of.pid}/task/{of.pid}/children").read_text(encoding="utf-8").split()
    named = {}
    for child in found:
        told = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [each.removeprefix(b"RANK=") for each in told if each.startswith(b"RANK=")]
        named |= {rank.decode(): int(child) for rank in ranks}
    return named


def wait_for(path: Path) -> None:
    until = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name} after {SECONDS} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A training of two processes that was told to stop: its folder, status and words."""
    out = tmp_path_factory.mktemp("launch") / "run"
    started = start(*TRAIN, "--images", 10**7, "--out", out)
    wait_for(out / "log.jsonl")
    started.send_signal(signal.SIGINT)
    return out, *ended(started)


@two_cores
def test_both_train_and_stop_together(stopped: tuple[Path, int, str]) -> None:
    out, status, words = stopped
    assert status == 130
    assert re.fullmatch(r"trilemma: .*run: stopped after [\d,]+ steps?, all saved: go on .* --resume", words)
    [checkpoint] = (out / "checkpoints").iterdir()
    assert checkpoint.stat().st_size > 0
    hardware = json.loads((out / "config.json").read_text(encoding="utf-8"))["hardware"]
    assert hardware["threads"] <= max(1, hardware["cores"] // 2)


@two_cores
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_one_that_is_killed_ends_all(stopped: tuple[Path, int, str]) -> None:
    out, before = stopped[0], (stopped[0] / "log.jsonl").stat().st_size
    started = start(*TRAIN, "--images", 10**7, "--out", out, "--resume")
    until = time.monotonic() + SECONDS
    while (out / "log.jsonl").stat().st_size <= before and time.monotonic() < until:
        time.sleep(0.05)
    both = workers(started)
    os.kill(both["1"], signal.SIGKILL)
    status, words = ended(started)
    assert status == 128 + signal.SIGKILL
    assert "trilemma: process 1 was killed by SIGKILL" in words
    assert not any(Path(f"/proc/{worker}").exists() for worker in both.values())


@two_cores
def test_bad_input_is_said_once(tmp_path: Path) -> None:
    status, words = ended(start(*TRAIN, "--images", 64, "--training.batch-size", 63, "--out", tmp_path / "run"))
    assert status == 2
    line = r"training.batch_size 63 cannot be shared equally by 2 processes: take 62 or 64"
    assert re.fullmatch(rf"trilemma( \(process 1\))?: {line}", words)  # by the first to find it


@two_cores
def test_they_make_the_images_of_one(trained: Callable[[str], Path], tmp_path: Path) -> None:
    sample = ["sample", trained("ddgan"), "--n", 12, "--batch-size", 4, "--out"]
    assert ended(start(*sample, tmp_path / "two.npz"))[0] == 0
    main([str(argument) for argument in [*sample, tmp_path / "one.npz"]])
    [two], [one] = ([*np.load(tmp_path / name).values()] for name in ("two.npz", "one.npz"))
    assert len(one) == 12
    assert np.abs(one.astype(int) - two).max() <= 1  # where the number of threads decides the order of sums


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_how_many_there_may_be(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*TRAIN, "--images", "64", "--out", str(tmp_path / "run"), "--processes", str(count)])
    assert stop.value.code == 2
    assert re.fullmatch(rf"trilemma: --processes must be from 1 to .* not {count}\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()

"""Signals that ask a training to end: it saves first, and what handled them before handles them again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from same_run import assert_same_run, log, quick_plan
from trilemma.engine import loop, stop
from trilemma.engine.checkpoint import checkpoints
from trilemma.engine.loop import Progress
from trilemma.engine.stop import Stop, asked_to_stop
from trilemma.engine.train import train
from trilemma.errors import Interrupted, RunError, Terminated

Handlers = tuple[Any, Any]


def handlers() -> Handlers:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def before() -> Iterator[Handlers]:
    """The handlers from before, which every test has to leave as they were."""
    found = handlers()
    yield found
    assert handlers() == found


def sent_at(step: int, number: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), number)

    return report


@pytest.mark.parametrize(
    ("number", "error", "step"),
    [
        (signal.SIGTERM, Terminated, 2),
        (signal.SIGINT, Interrupted, 1),
    ],
)
def test_a_signal_saves_first(tmp_path: Path, points: Path, number: int, error: type[BaseException], step: int) -> None:
    plan = quick_plan(checkpoint_minutes=60.0)  # no checkpoint of its own before the end
    with pytest.raises(error, match=f"run: stopped after {step} steps?, all saved: go on .* --resume") as caught:
        train(plan, tmp_path / "run", report=sent_at(step, number))
    assert "\n" not in str(caught.value)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == [f"step-{step:09d}.safetensors"]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    train(quick_plan(), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", points)


def test_they_end_a_process_as_others_do() -> None:
    """Nothing but them: no error that somebody catches and goes on from."""
    assert issubclass(Interrupted, KeyboardInterrupt) and issubclass(Terminated, SystemExit)
    assert Terminated("words").code == 128 + signal.SIGTERM and str(Terminated("words")) == "words"


def test_one_before_the_first_step(tmp_path: Path, points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first grid of samples is made: it is finished, and nothing is trained that would have to be saved."""
    draw = loop.save_grid

    def signalled(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        draw(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_grid", signalled)
        with pytest.raises(Terminated, match="stopped after 0 steps"):
            train(quick_plan(), tmp_path / "run")
    assert (tmp_path / "run" / "samples" / "000000k.png").is_file()
    assert checkpoints(tmp_path / "run" / "checkpoints") == []
    train(quick_plan(), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", points)


def test_one_in_the_last_step(tmp_path: Path, points: Path) -> None:
    """The run is finished, but what comes after it in a program must not begin."""
    with pytest.raises(Terminated, match="stopped after 4 steps"):
        train(quick_plan(), tmp_path / "run", report=sent_at(4, signal.SIGTERM))
    assert_same_run(tmp_path / "run", points)


def test_a_grid_that_is_due_is_drawn_before_the_end(tmp_path: Path) -> None:
    """A resumed run takes it for done, as the checkpoint was written after it."""
    plan = quick_plan(probe_samples=20)
    with pytest.raises(Terminated):
        train(plan, tmp_path / "run", report=sent_at(2, signal.SIGTERM))
    train(plan, tmp_path / "run", resume=True)
    assert [record["step"] for record in log(tmp_path / "run") if "modes" in record] == [2, 4]


def test_a_full_disk_at_the_end_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Handlers) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    def report(progress: Progress) -> None:
        if progress.step == 2:
            monkeypatch.setattr(os, "fsync", full)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunError, match="cannot write .*step-000000002.*: No space left on device"):
        train(quick_plan(checkpoint_minutes=60.0, snapshots=0), tmp_path / "run", report=report)
    assert handlers() == before


def test_handlers_are_there_only_within(before: Handlers) -> None:
    with asked_to_stop() as asked:
        assert handlers() == (asked.receive, asked.receive)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.signal == signal.SIGTERM
        with pytest.raises(ValueError, match="inside"), asked_to_stop() as inner:
            raise ValueError("inside")
        assert inner.signal == 0 and handlers() == (asked.receive, asked.receive)
    assert handlers() == before


def test_an_ignored_signal_stays_ignored() -> None:
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with asked_to_stop() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert asked.signal == 0 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, old)


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stop.time, "monotonic", lambda: now)
    asked = Stop()
    asked.receive(signal.SIGINT)
    now += stop.IMPATIENT / 2
    asked.receive(signal.SIGINT)  # a launcher's, for the same key
    now += stop.IMPATIENT
    asked.receive(signal.SIGTERM)
    assert asked.signal == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        asked.receive(signal.SIGINT)


def test_a_training_in_another_thread(tmp_path: Path, points: Path, before: Handlers) -> None:
    """Python lets only the main thread handle signals: there is nothing to install and nothing to fail."""
    seen: list[Any] = []

    def work() -> None:
        train(quick_plan(), tmp_path / "run", report=lambda progress: seen.append(handlers()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert set(seen) == {before}
    assert_same_run(tmp_path / "run", points)

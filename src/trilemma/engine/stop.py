"""SIGTERM and Ctrl-C ask a training to stop: it finishes its step, saves its state and then ends.

Handlers are there only while ``asked_to_stop`` is entered, and only where Python allows any: in the main thread. A
signal that the process ignores (under ``nohup``, say) stays ignored.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from trilemma.errors import Interrupted, Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IMPATIENT = 1.0  # seconds after which a second Ctrl-C ends at once; launchers send one right behind the terminal's


class Stop:
    """Which signal came: ``signal`` is its number, 0 while there is none."""

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """The handler. Raises KeyboardInterrupt at a second Ctrl-C, where saving takes too long for somebody."""
        del frame
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > IMPATIENT:
            raise KeyboardInterrupt


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Stop]:
    """Within it, a signal to end only sets ``Stop.signal``; behind it, handlers are what they were."""
    stop = Stop()
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # None: not Python's, so it could not be put back
                    before[number] = signal.signal(number, stop.receive)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped_by(number: int, words: str) -> Interrupted | Terminated:
    """What a training raises once it has saved: ``words`` say where it is and how to go on."""
    return Interrupted(words) if number == signal.SIGINT else Terminated(words)

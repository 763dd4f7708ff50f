"""How much training a run gets: minutes of training time or images shown, and what share of it is spent.

The clock counts time trained, not time since the start: it stops for snapshots, scores and checkpoints, and goes on
where it stopped when a run is resumed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from trilemma.config import require


@dataclass(frozen=True)
class Budget:
    """Either ``minutes`` or ``images``."""

    minutes: float | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        require(self.minutes is None or self.images is None, "give either --minutes or --images, not both")
        require(self.minutes is not None or self.images is not None, "give --minutes or --images")
        require(self.minutes is None or self.minutes > 0, f"--minutes must be positive, not {self.minutes}")
        require(self.images is None or self.images > 0, f"--images must be positive, not {self.images}")

    def fraction(self, images: int, seconds: float) -> float:
        """The share spent, 0 at the start and 1 (or more) at the end."""
        if self.images is not None:
            return images / self.images
        assert self.minutes is not None
        return seconds / (60.0 * self.minutes)

    def __str__(self) -> str:
        return f"{self.images:,} images" if self.images is not None else f"{self.minutes:g} minutes"


class Clock:
    """Seconds of training, with pauses."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        running = time.perf_counter() - self._started if self._started is not None else 0.0
        return self._before + running

    def start(self) -> None:
        """Count from now on."""
        if self._started is None:
            self._started = time.perf_counter()

    def pause(self) -> None:
        """Stop counting until ``start``."""
        self._before, self._started = self.seconds, None

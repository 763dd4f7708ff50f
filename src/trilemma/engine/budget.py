"""How much training a run gets: minutes of training time, images shown or FLOPs, and what share of it is spent.

The clock counts time trained, not time since the start: it stops for snapshots, scores and checkpoints, and goes on
where it stopped when a run is resumed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from trilemma.config import require_all


@dataclass(frozen=True)
class Budget:
    """One of ``minutes``, ``images`` and ``flops``."""

    minutes: float | None = None
    images: int | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        given = sum(value is not None for value in (self.minutes, self.images, self.flops))
        both = self.minutes is not None and self.images is not None
        require_all(
            (not both, "give either --minutes or --images, not both"),
            (both or given <= 1, "give one of --minutes, --images and --flops, not two"),
            (given >= 1, "give --minutes or --images, or --flops"),
            (self.minutes is None or self.minutes > 0, f"--minutes must be positive, not {self.minutes}"),
            (self.images is None or self.images > 0, f"--images must be positive, not {self.images}"),
            (self.flops is None or self.flops > 0, f"--flops must be positive, not {self.flops}"),
        )

    def fraction(self, images: int, seconds: float, flops: float = 0.0) -> float:
        """The share spent, 0 at the start and 1 (or more) at the end."""
        if self.flops is not None:
            return flops / self.flops
        if self.images is not None:
            return images / self.images
        assert self.minutes is not None
        return seconds / (60.0 * self.minutes)

    def __str__(self) -> str:
        if self.flops is not None:
            return f"{self.flops:g} FLOPs"
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

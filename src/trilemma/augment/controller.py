"""The strength p of an adaptive augmentation, steered by how far the discriminator overfits (Karras et al. 2020a).

With r_t = E[sign(D(real))], the mean over the ``interval`` steps since the last adjustment (section 3, equation 1),

    p <- max(p + sign(r_t - target) batch interval / (1000 kimg), 0)

so p crosses from 0 to 1 in ``kimg`` thousand images at the fastest. r_t equal to the target leaves p as it is. Without
``clamp_above`` p may pass 1, where an augmentation is no stronger; Diffusion-GAN (Wang et al. 2022) clamps to [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from trilemma.config import require_all
from trilemma.errors import ConfigError


class AdaController:
    """Holds ``p``: call ``update`` with D's logits of real images once a step."""

    def __init__(
        self,
        *,
        target: float = 0.6,
        interval: int = 4,
        kimg: float = 500.0,
        clamp_above: float | None = None,
        p: float = 0.0,
    ) -> None:
        """``target`` of r_t, in [-1, 1]; ``interval`` in steps; ``kimg`` in thousands of images; ``p`` at the start.

        Raises ConfigError for values outside.
        """
        require_all(
            (-1 <= target <= 1, f"target of the sign of D(real) must lie in [-1, 1], not {target}"),
            (interval >= 1, f"interval must be at least 1 step, not {interval}"),
            (kimg > 0, f"kimg must be positive, not {kimg}"),
            (clamp_above is None or clamp_above > 0, f"clamp_above must be positive, not {clamp_above}"),
            (p >= 0, f"p must be at least 0, not {p}"),
        )
        self.target = target
        self.interval = interval
        self.kimg = kimg
        self.clamp_above = clamp_above
        self.p = p
        self._steps = 0  # since the last adjustment, as all that follows
        self._images = 0
        self._logits = 0
        self._signs: Tensor | float = 0.0  # their sum; stays on the device

    def update(self, real_logits: Tensor) -> None:
        """Counts one step's logits of real images, one or more an image: (N, ...). Every ``interval``-th call adjusts.

        Only that call waits for the device. Where several processes train one network, pass the logits of all, so that
        their p stay equal.
        """
        self._signs = self._signs + real_logits.detach().float().sign().sum()
        self._images += len(real_logits)
        self._logits += real_logits.numel()
        self._steps += 1
        if self._steps == self.interval:
            self.adjust(float(self._signs) / max(self._logits, 1), self._images)
            self._steps, self._images, self._logits, self._signs = 0, 0, 0, 0.0

    def adjust(self, mean_sign: float, images: int) -> None:
        """One adjustment of p: r_t is ``mean_sign`` over ``images`` real images, batch times interval."""
        direction = (mean_sign > self.target) - (mean_sign < self.target)
        self.p = max(self.p + direction * images / (self.kimg * 1000), 0.0)
        if self.clamp_above is not None:
            self.p = min(self.p, self.clamp_above)

    def state(self) -> dict[str, float]:
        """All that a resumed run needs, as plain numbers."""
        return {
            "p": self.p,
            "steps": self._steps,
            "images": self._images,
            "logits": self._logits,
            "signs": float(self._signs),
        }

    def load(self, state: Mapping[str, float]) -> None:
        """Goes on from what ``state`` returned. Raises ConfigError where a number is missing or cannot be."""
        missing = [key for key in self.state() if key not in state]
        if missing:
            raise ConfigError(f"state of the augmentation strength lacks {', '.join(missing)}")
        self.p = float(state["p"])
        self._steps, self._images, self._logits = (int(state[key]) for key in ("steps", "images", "logits"))
        self._signs = float(state["signs"])
        if not (0 <= self.p < math.inf and min(self._steps, self._images, self._logits) >= 0):
            raise ConfigError("state of the augmentation strength has a strength or count that cannot be")

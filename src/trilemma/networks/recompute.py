"""Gradient checkpointing (Chen et al. 2016): what a block computes inside is not kept for the backward pass: it is
computed again there. Less memory, about one more forward pass, the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(on: bool, run: Callable[..., Any], *inputs: Any) -> Any:
    """``run(*inputs)``, where ``on`` and gradients are wanted with checkpointing; random draws are repeated alike."""
    if on and torch.is_grad_enabled():
        return checkpoint(run, *inputs, use_reentrant=False)
    return run(*inputs)

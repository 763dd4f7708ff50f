"""Path length: how far an image moves, as a network sees it, for a small step in latent space. Lower is smoother.

With w(t) the images along a path between two random latents (a great circle for Gaussian z, a line in w), t uniform,
eps small and u = f / |f| the features at unit length (Karras et al. 2019, section 4.1):

    path length = E |u(w(t + eps)) - u(w(t))|^2 / eps^2

The paper's distance is LPIPS, whose network is not at hand without a download: ours is the same squared distance of
unit features, but of one layer of the network given. The two are different quantities; compare only within one network.
As in the paper's code, the lowest and highest percent of the terms are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.errors import ConfigError
from trilemma.measure.classifier import Classifier
from trilemma.measure.digits_cnn import SIZE, DigitsCNN

Walk = Callable[[Sequence[int], Tensor], Tensor]
"""Seeds and t (N,) in [0, 1], float64 -> images (N, C, H, W): each seed alone draws both ends of its path, and all
noise besides; it is the same at every t."""

TRIM = 0.01  # of the terms, at either end


@torch.inference_mode()
def feature_path_length(
    walk: Walk,
    features: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    *,
    seed: int = 0,
    epsilon: float = 1e-4,
    batch: int = 50,
) -> float:
    """The path length over one pair of images a seed of ``seeds``; ``seed`` draws the t.

    ``features`` maps what ``walk`` gives, unrounded, to (N, d): rounded to uint8, a step of 1e-4 is no step at all, so
    a network that insists on uint8 needs a far larger ``epsilon`` (0.05).

    Raises ConfigError for no seeds or an epsilon outside (0, 1).
    """
    if not seeds or not 0 < epsilon < 1:
        raise ConfigError(f"path length needs seeds and an epsilon between 0 and 1, got {len(seeds)} and {epsilon}")
    t = torch.rand(len(seeds), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * (1 - epsilon)
    terms = []
    for start in range(0, len(seeds), batch):
        some, at = seeds[start : start + batch], t[start : start + batch]
        here, there = (_unit(features(walk(some, place))) for place in (at, at + epsilon))
        terms.append((there - here).square().sum(1).cpu() / epsilon**2)
    found = torch.cat(terms).sort().values
    cut = int(TRIM * len(found))
    return found[cut : len(found) - cut].mean().item()


def digits_features(network: DigitsCNN) -> Callable[[Tensor], Tensor]:
    """The digits judge for unrounded images (N, C, H, W) in [-1, 1]: channels averaged, resized to 28 x 28, (N, 64)."""

    def judge(x: Tensor) -> Tensor:
        gray = x.float().mean(1, keepdim=True)
        if gray.shape[2:] != (SIZE, SIZE):
            gray = F.interpolate(gray, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        features: Tensor = network(gray)[0]
        return features

    return judge


def classifier_features(network: Classifier) -> Callable[[Tensor], Tensor]:
    """The same with a classifier of one's own: unrounded images (N, 1 or 3, H, W) in [-1, 1] -> (N, d)."""

    def judge(x: Tensor) -> Tensor:
        return network.look((x.float() + 1.0) * 127.5)[0]

    return judge


def _unit(x: Tensor) -> Tensor:
    """float64 rows of length 1; a row of zeros stays."""
    return F.normalize(x.double(), dim=1)

"""Adversarial losses on logits, and the gradient penalty. Logits are (N, 1) or (N,); every loss is a batch mean.

Non-saturating (Goodfellow et al. 2014):
    L_D = E softplus(-D(real)) + E softplus(D(fake)),    L_G = E softplus(-D(fake))
Relativistic pairing (Huang et al. 2024, R3GAN, equation 2), sample i of the one batch against sample i of the other:
    L_D = E softplus(-(D(real) - D(fake))),    L_G = E softplus(-(D(fake) - D(real)))
Gradient penalty (Mescheder et al. 2018; R1 on real x, R2 on fake x):
    R = gamma / 2 E ||grad_x D(x)||^2
Path length (Karras et al. 2020, equation 4), with y ~ N(0, I) an image, J_w = dG / dw and a the running mean of E l:
    l(w) = ||J_w^T y / sqrt(H W)||_2,    R_path = E (l - a)^2
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.errors import ConfigError


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Scalar L_D of the non-saturating game."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Scalar L_G of the non-saturating game."""
    return F.softplus(-fake_logits).mean()


def relativistic_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Scalar L_D of the relativistic pairing game; both logits must have one shape."""
    return F.softplus(_paired(fake, real)).mean()


def relativistic_generator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Scalar L_G of the relativistic pairing game; both logits must have one shape."""
    return F.softplus(_paired(real, fake)).mean()


def _paired(first: Tensor, second: Tensor) -> Tensor:
    """first - second, refusing shapes that would broadcast to all pairs."""
    if first.shape != second.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ConfigError(f"relativistic losses pair logits of one shape, not {shapes}")
    return first - second


def gradient_penalty(logits: Tensor, x: Tensor, gamma: float) -> Tensor:
    """Scalar gamma/2 E ||grad_x D||^2, differentiable again, where ``logits`` were computed from ``x`` (N, ...).

    A discriminator whose samples see each other (minibatch statistics) contributes the gradient of the sum of logits.
    Raises ConfigError when ``x`` was not tracked.
    """
    if not x.requires_grad:
        raise ConfigError("gradient penalty: x is not tracked; call x.requires_grad_() before the discriminator")
    (grad,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return 0.5 * gamma * grad.square().sum(dim=tuple(range(1, grad.ndim))).mean()


def path_lengths(images: Tensor, ws: Tensor, y: Tensor) -> Tensor:
    """l (N,), differentiable again: ``images`` (N, C, H, W) were computed from ``ws`` (N, layers, w_dim), ``y`` like
    images is N(0, I). Over the layers the mean of squares is taken."""
    scaled = y / (y.shape[2] * y.shape[3]) ** 0.5
    (grad,) = torch.autograd.grad((images * scaled).sum(), ws, create_graph=True)
    return grad.square().sum(dim=2).mean(dim=1).sqrt()


def discriminator_objective(
    judge: Callable[..., Tensor],
    real: Tensor,
    fake: Tensor,
    *conditions: Tensor,
    group: int = 0,
    relativistic: bool = False,
    r1_gamma: float = 0.0,
    r2_gamma: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_D with the penalties whose gamma is above 0, and its parts by name, detached: d_loss, r1, r2.

    ``judge`` gives D's logits of images like ``real`` and ``fake``, which are cut off from what made them, and of
    ``conditions``, which hold for both. ``group``: as in ``logits_of_both``, where no penalty is due.
    """
    real = real.detach().requires_grad_(r1_gamma > 0)
    fake = fake.detach().requires_grad_(r2_gamma > 0)
    together = group if r1_gamma == r2_gamma == 0.0 else 0
    real_logits, fake_logits = logits_of_both(judge, real, fake, *conditions, group=together)
    criterion = relativistic_discriminator_loss if relativistic else discriminator_loss
    loss = criterion(real_logits, fake_logits)
    parts = {"d_loss": loss.detach()}
    for name, x, logits, gamma in (("r1", real, real_logits, r1_gamma), ("r2", fake, fake_logits, r2_gamma)):
        if gamma > 0:
            penalty = gradient_penalty(logits, x, gamma)
            loss, parts[name] = loss + penalty, penalty.detach()
    return loss, parts


def logits_of_both(
    judge: Callable[..., Tensor], real: Tensor, fake: Tensor, *conditions: Tensor, group: int
) -> tuple[Tensor, Tensor]:
    """D's logits of real and fake images, given the same ``conditions``: in one pass, ``interleaved`` by ``group``, or
    in two where that is 0."""
    if not group:
        return judge(real, *conditions), judge(fake, *conditions)
    shared = (interleaved(c, c, group) for c in conditions)
    return separated(judge(interleaved(real, fake, group), *shared), group)


def interleaved(a: Tensor, b: Tensor, group: int) -> Tensor:
    """a and b (N, ...) as one batch (2N, ...), ``group`` parts of a and of b in turn.

    Where statistics are shared by ``group`` samples that lie as far apart as they can (minibatch standard deviation:
    N / group, here 2N / group), those of a meet, and those of b meet, exactly as they do in batches of their own.
    """
    return torch.cat([part for pair in zip(a.chunk(group), b.chunk(group), strict=True) for part in pair])


def separated(both: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Undo ``interleaved``: (2N, ...) -> a and b (N, ...)."""
    parts = both.chunk(2 * group)
    return torch.cat(parts[::2]), torch.cat(parts[1::2])

"""VAE: a decoder turns z into an image in one step, an encoder bounds the likelihood (Kingma and Welling 2014).

    p(z) = N(0, I),   p(x|z) = N(x; decoder(z), sigma^2 I),   q(z|x) = N(z; mean(x), diag exp log_var(x))
    ELBO(x) = E_q(z|x) log p(x|z) - beta KL(q(z|x) || p(z))    <= log p(x) if beta >= 1    (Eq. 3; beta: Higgins 2017)
    KL      = 1/2 sum_j (mean_j^2 + exp log_var_j - 1 - log_var_j)                            (appendix B)
    z       = mean + exp(log_var / 2) eps,   eps ~ N(0, I)                                    (section 2.4)

With D numbers in an image and MSE = E (x - decoder(z))^2 over the batch and its pixels,

    - log p(x|z) = D/2 (log 2 pi + log sigma^2 + MSE / sigma^2)

which is smallest at sigma^2 = MSE: the "optimal" sigma of sigma-VAE (Rybkin et al. 2021). There d/d sigma vanishes, so
the gradient is that of D/2 log MSE whether sigma is held fixed or not; here it is.

Where the data have no linear structure (points on a square grid), a decoder deaf to z, with sigma as large as the data,
is hard to leave: ``beta_warmup`` lets beta rise from 0, or a fixed sigma says how closely the data are to be met.

Differs from the papers: the networks; the cosine and the warm-up of the learning rate. No observation noise is added
to samples: they are the decoder's mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trilemma.config import require_all
from trilemma.maths.noise import SeedNoise, great_circle
from trilemma.maths.schedules import cosine_decay
from trilemma.methods.base import Learnt, Method, Tools, adam, learn_in_parts, set_learning_rate
from trilemma.networks.autoencoder import AutoencoderOptions, build_autoencoder
from trilemma.networks.options import PointOptions
from trilemma.types import Batch, DataSpec, Sampler, SampleResult

_STATES = 11  # of a trajectory


@dataclass(frozen=True)
class VAEOptions:
    """Settings of a VAE; the defaults are ours."""

    beta: float = 1.0  # weight of the KL divergence; 1: the tightest bound on the likelihood; more: a beta-VAE
    beta_warmup: float = 0.0  # share of the budget over which beta rises linearly from 0
    likelihood: Literal["gaussian", "optimal_gaussian"] = "optimal_gaussian"  # sigma fixed, or the best of each batch
    sigma: float = 0.1  # of gaussian: deviation of a pixel around the decoder's mean, in the data's units
    least_sigma: float = 1e-3  # of optimal_gaussian: sigma is at least this
    learning_rate: float = 1e-3  # of Adam, for both networks
    final_learning_rate: float = 2e-5  # reached by a cosine at the end of the budget; equal: constant
    warmup_steps: int = 200  # linear rise of the learning rate
    adam_betas: tuple[float, ...] = (0.9, 0.999)  # moments
    clip_gradient: float = 1.0  # largest norm of the gradient; 0: no limit
    autoencoder: AutoencoderOptions = field(default_factory=AutoencoderOptions)
    points: PointOptions = field(default_factory=PointOptions)

    def __post_init__(self) -> None:
        require_all(
            (self.beta >= 0, f"beta must not be negative, not {self.beta}"),
            (0.0 <= self.beta_warmup <= 1.0, f"beta_warmup must be in [0, 1], not {self.beta_warmup}"),
            (self.sigma > 0, f"sigma must be positive, not {self.sigma}"),
            (self.least_sigma > 0, f"least_sigma must be positive, not {self.least_sigma}"),
            (self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}"),
            (len(self.adam_betas) == 2, f"adam_betas must be two numbers, not {self.adam_betas}"),
        )


def kl_to_prior(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag exp log_var) || N(0, I)) in nats: (N, nz), (N, nz) -> (N,)."""
    return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(dim=1)


def gaussian_nll(mse: Tensor, variance: Tensor | float) -> Tensor:
    """- log N in nats a dimension, from the mean squared error and the variance common to all dimensions."""
    variance = torch.as_tensor(variance, dtype=mse.dtype, device=mse.device)
    return 0.5 * (math.log(2.0 * math.pi) + variance.log() + mse / variance)


class VAE(Method):
    """Variational autoencoder with a Gaussian decoder."""

    name = "vae"
    family = "VAE"
    paper = "Kingma and Welling 2014"
    Options = VAEOptions
    averaged = ("decoder",)
    options: VAEOptions

    def __init__(self, options: VAEOptions, spec: DataSpec) -> None:
        super().__init__(options, spec)
        self.encoder, self.decoder = build_autoencoder(spec, options.autoencoder, options.points)
        self.nz = options.points.nz if spec.kind == "points" else options.autoencoder.nz
        self.steps_done = 0

    def title(self) -> str:
        beta = self.options.beta
        return "VAE" if beta == 1.0 else f"beta-VAE, beta = {beta:g}"

    def networks(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    def optimizers(self) -> dict[str, Optimizer]:
        return {"autoencoder": adam(self._weights(), self.options.learning_rate, self.options.adam_betas)}

    def _weights(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def step(self, batch: Batch, progress: float, tools: Tools) -> dict[str, Tensor]:
        """``loss`` = ``reconstruction`` + beta ``kl``, all in nats a dimension of x; and the ``sigma`` of the batch."""
        options, optimizer = self.options, tools.optimizers["autoencoder"]
        rise = min(1.0, (self.steps_done + 1) / max(1, options.warmup_steps))
        set_learning_rate(optimizer, rise * cosine_decay(options.learning_rate, options.final_learning_rate, progress))

        beta = options.beta * (min(1.0, progress / options.beta_warmup) if options.beta_warmup > 0 else 1.0)

        def learn(part: slice) -> Learnt:
            x = batch.x[part]
            mean, log_var = tools.networks["encoder"](x)
            z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
            mse = (x - tools.networks["decoder"](z)).square().mean()
            variance = self._variance(mse)
            reconstruction = gaussian_nll(mse, variance)
            kl = kl_to_prior(mean, log_var).mean() / math.prod(self.spec.shape)
            loss = reconstruction + beta * kl
            found = {"loss": loss, "reconstruction": reconstruction, "kl": kl, "sigma": variance.sqrt()}
            return loss, {name: value.detach() for name, value in found.items()}

        def clip() -> None:
            if options.clip_gradient > 0:
                tools.clip(self._weights(), options.clip_gradient)

        losses = learn_in_parts(len(batch.x), learn, [optimizer], tools, clip)
        self.steps_done += 1
        return losses

    def _variance(self, mse: Tensor) -> Tensor:
        """sigma^2, without a gradient."""
        if self.options.likelihood == "gaussian":
            return torch.full_like(mse, self.options.sigma**2, requires_grad=False)
        return mse.detach().clamp(min=self.options.least_sigma**2)

    def extra_state(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done}

    def load_extra_state(self, state: Any) -> None:
        self.steps_done = int(state["steps_done"])

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], sampler: Sampler | None = None, *, trajectory: bool = False) -> SampleResult:
        """The decoder's mean at z ~ N(0, I). A trajectory decodes s z for s from 0, the prior's centre, to 1."""
        self.describe(sampler or Sampler())
        z = SeedNoise(seeds, self.device).normal((self.nz,), "z")
        x = self.decoder(z)
        if not trajectory:
            return SampleResult(x)
        way = [self.decoder(z * (k / (_STATES - 1))) for k in range(_STATES - 1)]
        return SampleResult(x, torch.stack([*way, x]))

    @torch.inference_mode()
    def walk(self, first: int, last: int, steps: int) -> Tensor:
        """On a great circle of z, where all points are as likely as the ends."""
        z = SeedNoise([first, last], self.device).normal((self.nz,))
        x: Tensor = self.decoder(great_circle(z[:1], z[1:], torch.linspace(0.0, 1.0, steps, device=self.device)))
        return x

    has_latent = True

    @torch.inference_mode()
    def latent_path(self, seeds: Sequence[int], t: Tensor) -> Tensor:
        """On a great circle of z."""
        noise = SeedNoise(seeds, self.device)
        first, second = (noise.normal((self.nz,)) for _ in range(2))
        x: Tensor = self.decoder(great_circle(first, second, t.to(self.device)))
        return x


METHOD = VAE

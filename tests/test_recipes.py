"""Every packaged recipe holds: it builds, small ones train and sample, published ones have the published numbers."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from tiny import tools
from trilemma.config import Recipe, build, load_recipe, recipe_names
from trilemma.methods import method_class
from trilemma.methods.base import Method
from trilemma.networks.options import build_denoiser, build_discriminator
from trilemma.types import Batch, DataSpec, Sampler

SPECS = {
    "digits": DataSpec("images", 1, 8, 8),
    "mnist": DataSpec("images", 1, 28, 28),
    "stackedmnist": DataSpec("images", 3, 28, 28),
    "small": DataSpec("images", 3, 32, 32),
    "cifar10": DataSpec("images", 3, 32, 32),
    "celebahq256": DataSpec("images", 3, 256, 256),
    "lsun-church256": DataSpec("images", 3, 256, 256),
    "gaussians": DataSpec("points", 2, 1, 1),
}
NAMES = recipe_names()
LARGE = ("cifar10", "celebahq256", "lsun-church256")  # as published, or with published settings; but a VAE for a CPU
PUBLISHED = [name for name in NAMES if name.split("-", 1)[1] in LARGE and name != "vae-cifar10"]


def method_of(name: str) -> Method:
    loaded = load_recipe(name)
    kind = method_class(loaded.method)
    return kind(build(kind.Options, loaded.options, name), SPECS[name.split("-", 1)[1]])


def published(name: str, monkeypatch: pytest.MonkeyPatch | None = None) -> dict[str, torch.nn.Module]:
    """A method's networks, without the memory that their weights would take."""
    if monkeypatch is not None:  # the noise that a Diffusion-GAN starts with is numbers, not weights
        monkeypatch.setattr("trilemma.methods.diffusion_gan.DiffusionNoise", lambda options: None)
    loaded, spec = load_recipe(name), SPECS[name.split("-", 1)[1]]
    options = build(method_class(loaded.method).Options, loaded.options, name)
    with torch.device("meta"):
        if loaded.method not in ("ddpm", "ddgan"):  # whose schedules compute with numbers
            return method_class(loaded.method)(options, spec).networks()
        if loaded.method == "ddpm":
            return {"denoiser": build_denoiser(spec, options.unet, options.points, None, tanh=False)}
        generator = build_denoiser(spec, options.unet, options.points, options.latent, tanh=True)
        return {
            "generator": generator,
            "discriminator": build_discriminator(spec, options.discriminator, options.points),
        }


def millions(network: torch.nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_whole(name: str) -> None:
    loaded = load_recipe(name)
    method, data = name.split("-", 1)
    assert loaded.method == method
    assert loaded.data.name == ("" if data == "small" else data)
    assert loaded.about and "\n" not in loaded.about and not loaded.about.endswith(".")
    assert (loaded.training.minutes is None) != (loaded.training.images is None)
    build(method_class(method).Options, loaded.options, name)
    size = SPECS[data].height
    assert loaded.data.size in (None, size)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PUBLISHED])
def test_a_small_recipe_trains_and_samples(name: str) -> None:
    method = method_of(name).to(memory_format=torch.channels_last)
    lent = tools(method)
    for progress in (0.0, 0.9):
        x = torch.rand(2, *method.spec.shape).mul(2).sub(1).contiguous(memory_format=torch.channels_last)
        losses = method.step(Batch(x), progress, lent)
        assert losses and all(torch.isfinite(value) for value in losses.values())
    method.eval()
    sampler = Sampler(steps=3) if method.name == "ddpm" else Sampler()
    x = method.sample([0, 1], sampler).x
    assert x.shape == (2, *method.spec.shape) and torch.isfinite(x).all()


def settings(name: str) -> tuple[Recipe, dict[str, object]]:
    loaded = load_recipe(name)
    return loaded, asdict(build(method_class(loaded.method).Options, loaded.options, name))


REFERENCE = {
    "ddgan-cifar10": {
        "options": {"num_timesteps": 4, "lr_g": 1.6e-4, "lr_d": 1.25e-4, "r1_gamma": 0.02, "lazy_reg": 15},
        "unet": {"channels": 128, "channel_mult": (1, 2, 2, 2)},
        "layers": 4,
        "discriminator": "small",
        "training": {"batch_size": 4 * 64, "images": 1800 * 50_000, "ema_decay": 0.9999},
    },
    "ddgan-celebahq256": {
        "options": {"num_timesteps": 2, "lr_g": 2e-4, "lr_d": 1e-4, "r1_gamma": 2.0, "lazy_reg": 10},
        "unet": {"channels": 64, "channel_mult": (1, 1, 2, 2, 4, 4)},
        "layers": 3,
        "discriminator": "large",
        "training": {"batch_size": 8 * 4, "images": 800 * 27_000, "ema_decay": 0.9999},
    },
    "ddgan-lsun-church256": {
        "options": {"num_timesteps": 4, "lr_g": 1.6e-4, "lr_d": 1e-4, "r1_gamma": 1.0, "lazy_reg": 10},
        "unet": {"channels": 64, "channel_mult": (1, 1, 2, 2, 4, 4)},
        "layers": 3,
        "discriminator": "large",
        "training": {"batch_size": 8 * 8, "images": 500 * 126_227, "ema_decay": 0.999},
    },
}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_published_ddgan_recipes_have_the_published_numbers(name: str) -> None:
    """Of the commands in the reference's README, and its defaults for what they leave out."""
    loaded, options = settings(name)
    expected = REFERENCE[name]
    common = {
        "schedule": "vp",
        "beta_min": 0.1,
        "beta_max": 20.0,
        "final_lr": 1e-5,
        "adam_betas": (0.5, 0.9),
        "loss": "nonsaturating",
        "r2_gamma": 0.0,
        "auxiliary": "none",
        "warm_share": 0.0,
        "judge": "x_t",
        "grouped_t": False,
        "t_odds": 1.0,
        "energy_share": 1.0,
        "shared_pass": False,
        "warmup_steps": 0,
    }
    assert options.items() >= {**common, **expected["options"]}.items()
    unet = {
        "blocks": 2,
        "attention": (16,),
        "dropout": 0.0,
        "resample_with_conv": True,
        "fir": True,
        "fir_kernel": (1, 3, 3, 1),
        "skip_rescale": True,
        "block": "biggan",
        "progressive_output": "none",
        "progressive_input": "residual",
        "progressive_combine": "sum",
        "embedding": "positional",
        "fourier_scale": 16.0,
        "tanh": True,
        "patch": 1,
        "checkpoint": False,
    }
    assert options["unet"] == {**unet, **expected["unet"]}
    assert options["latent"] == {"nz": 100, "embedding": 256, "layers": expected["layers"]}
    kind = {"kind": expected["discriminator"], "channels": 64, "embedding": 256, "patch": 1}
    assert options["discriminator"].items() >= kind.items()
    assert asdict(loaded.training).items() >= {**expected["training"], "minutes": None, "ema_share": 0.0}.items()


def test_the_published_cifar10_networks_have_the_published_size() -> None:
    networks = published("ddgan-cifar10")
    assert millions(networks["generator"]) == 48.4
    assert millions(networks["discriminator"]) == 12.7


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_makes_its_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, network in published(name, monkeypatch).items():
        assert millions(network) > (1 if part == "mapping" else 10)
        assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("ddpm")])
def test_the_published_ddpm_recipes_have_the_published_numbers(name: str) -> None:
    """Appendix B of Ho et al. 2020."""
    loaded, options = settings(name)
    cifar = name == "ddpm-cifar10"
    expected = {
        "timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "variance": "fixed_large",
        "learning_rate": 2e-4 if cifar else 2e-5,
        "final_learning_rate": 2e-4 if cifar else 2e-5,
        "weight_decay": 0.0,
    }
    assert options.items() >= expected.items()
    assert options["unet"]["dropout"] == (0.1 if cifar else 0.0)
    assert options["unet"]["channel_mult"] == ((1, 2, 2, 2) if cifar else (1, 1, 2, 2, 4, 4))
    assert loaded.training.ema_decay == 0.9999 and loaded.training.batch_size == (128 if cifar else 64)
    if cifar:
        assert loaded.training.images == 800_000 * 128
        assert millions(published(name)["denoiser"]) == pytest.approx(35.7, abs=2.0)  # the paper's U-Net


def test_the_published_stylegan2_recipes_have_the_published_numbers() -> None:
    """The configurations "cifar" and "paper256" that come with ADA's code."""
    common = {
        "lr_g": 0.0025,
        "lr_d": 0.0025,
        "final_share": 1.0,
        "adam_betas": (0.0, 0.99),
        "lazy_reg": 16,
        "path_every": 4,
    }
    for name, options, training, half_life in (
        (
            "stylegan2-cifar10",
            {"r1_gamma": 0.01, "path_weight": 0.0, "style_mixing": 0.0},
            {"batch_size": 64, "images": 100_000_000, "ema_share": 0.05},
            500_000,
        ),
        (
            "stylegan2-celebahq256",
            {"r1_gamma": 1.0, "path_weight": 2.0, "style_mixing": 0.9},
            {"batch_size": 64, "images": 25_000_000, "ema_share": 0.0},
            20_000,
        ),
    ):
        loaded, found = settings(name)
        assert found.items() >= {**common, **options, "augment": "none", "shared_pass": False}.items()
        assert asdict(loaded.training).items() >= training.items()
        assert loaded.training.ema_decay == pytest.approx(0.5 ** (64 / half_life), abs=1e-8)
        cifar = name.endswith("cifar10")
        assert found["mapping"] == {"z_dim": 512, "w_dim": 512, "layers": 2 if cifar else 8, "lr_scale": 0.01}
        base = 32768 if cifar else 16384
        synthesis = {"channel_base": base, "channel_max": 512, "patch": 1, "start": "constant", "tanh": False}
        assert found["generator"] == synthesis | {"checkpoint": False}
        critic = {"architecture": "orig" if cifar else "resnet", "std_group": 32 if cifar else 8, "channel_base": base}
        assert found["discriminator"].items() >= critic.items()


def test_diffusion_gan_has_the_published_noise_on_the_networks_of_stylegan2() -> None:
    loaded, found = settings("diffusion_gan-cifar10")
    noise = {
        "t_min": 10,
        "t_max": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "noise_std": 0.05,
        "distribution": "priority",
    }
    assert found["noise"] == noise and found["target"] == 0.6 and found["interval"] == 4
    other_loaded, other = settings("stylegan2-cifar10")
    for part in ("mapping", "generator", "discriminator", "r1_gamma", "lazy_reg", "lr_g", "lr_d"):
        assert found[part] == other[part]
    assert loaded.training == other_loaded.training


@pytest.mark.parametrize("data", ["digits", "mnist", "small", "cifar10", "celebahq256"])
def test_style_methods_race_on_the_same_synthesis_network_and_discriminator(data: str) -> None:
    _, stylegan2 = settings(f"stylegan2-{data}")
    for name in ("spigan", "diffusion_gan"):
        if f"{name}-{data}" in NAMES:
            _, other = settings(f"{name}-{data}")
            assert other["generator"] == stylegan2["generator"]
            assert other["discriminator"] == stylegan2["discriminator"]

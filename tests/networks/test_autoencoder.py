"""Encoder and decoder: shapes, what a patch and the tanh mean exactly, independence of the images, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from trilemma.errors import ConfigError
from trilemma.networks.autoencoder import (
    AutoencoderOptions,
    Decoder,
    Encoder,
    PointDecoder,
    PointEncoder,
    build_autoencoder,
)
from trilemma.networks.options import PointOptions
from trilemma.types import DataSpec

SMALL: dict[str, Any] = {"nz": 5, "channels": 8, "channel_mult": (1, 2), "blocks": 1}


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (DataSpec("images", 1, 8, 8), {}),
        (DataSpec("images", 1, 28, 28), {"patch": 2}),
        (DataSpec("images", 3, 16, 16), {"channel_mult": (1, 1, 2), "blocks": 2, "fir": True}),
        (DataSpec("images", 3, 4, 4), {"channel_mult": (1,), "patch": 4, "dropout": 0.1}),
        (DataSpec("points", 2, 1, 1), {}),
    ],
    ids=str,
)
def test_there_and_back_every_weight_has_a_gradient(spec: DataSpec, changes: dict[str, Any]) -> None:
    options = AutoencoderOptions(**{**SMALL, **changes})
    encoder, decoder = build_autoencoder(spec, options, PointOptions(hidden=16, layers=2, nz=5))
    x = torch.rand(4, *spec.shape) * 2 - 1
    mean, log_var = encoder(x)
    assert mean.shape == log_var.shape == (4, 5)
    if spec.kind == "images":
        assert log_var.abs().max() < 1e-3  # the variance starts at 1
    y = decoder(mean + (0.5 * log_var).exp() * torch.randn_like(mean))
    assert y.shape == x.shape
    ((y - x).square().mean() + log_var.exp().mean()).backward()
    for network in (encoder, decoder):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_a_patch_is_a_pixel_unshuffle_in_front_and_a_shuffle_behind() -> None:
    """With the same weights, patch 2 on S pixels is patch 1 on S / 2 pixels of four times the channels."""
    whole, parts = (
        Encoder(image_size=8, in_channels=3, patch=2, **SMALL),
        Encoder(image_size=4, in_channels=12, **SMALL),
    )
    parts.load_state_dict(whole.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for a, b in zip(whole(x), parts(F.pixel_unshuffle(x, 2)), strict=True):
        assert torch.equal(a, b)
    big, small = (
        Decoder(image_size=8, out_channels=3, patch=2, **SMALL),
        Decoder(image_size=4, out_channels=12, **SMALL),
    )
    small.load_state_dict(big.state_dict())
    z = torch.randn(2, 5)
    assert torch.equal(big(z), F.pixel_shuffle(small(z), 2))


def test_tanh_bounds_the_image() -> None:
    bounded, free = (Decoder(image_size=8, out_channels=1, tanh=tanh, **SMALL) for tanh in (True, False))
    free.load_state_dict(bounded.state_dict())
    z = 10 * torch.randn(3, 5)
    assert torch.equal(bounded(z), free(z).tanh())
    assert free(z).abs().max() > 1.0


def test_images_do_not_see_each_other_and_z_is_read() -> None:
    encoder, decoder = Encoder(image_size=8, in_channels=1, **SMALL), Decoder(image_size=8, out_channels=1, **SMALL)
    x, z = torch.randn(4, 1, 8, 8), torch.randn(4, 5)
    assert torch.allclose(encoder(x)[0][1:3], encoder(x[1:3])[0], atol=1e-5)
    assert torch.allclose(decoder(z)[1:3], decoder(z[1:3]), atol=1e-5)
    for j in range(5):
        assert not torch.allclose(decoder(z), decoder(z + torch.eye(5)[j]), atol=1e-3)


def test_the_decoder_starts_from_one_dense_layer_laid_out_pixel_by_pixel() -> None:
    """Unit j of the dense layer is channel j mod C of pixel j // C, which in channels_last is no copy."""
    decoder = Decoder(image_size=8, out_channels=1, nz=1, channels=8, channel_mult=(1,), tanh=False)
    seen: list[torch.Tensor] = []
    decoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    decoder.start.weight.data.copy_(torch.arange(512.0)[:, None])
    decoder(torch.ones(1, 1))
    expected = torch.arange(512.0).view(8, 8, 8).permute(2, 0, 1)
    assert torch.equal(seen[0][0], expected)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 7}, "multiple of 2"),
        ({"image_size": 6, "patch": 2}, "multiple of 4"),
        ({"nz": 0}, "nz 0"),
        ({"channels": 0, "blocks": 0}, "channels 0, blocks 0"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"patch": 0}, "patch 0"),
        ({"dropout": 1.0}, "dropout"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    settings = {"image_size": 8, **SMALL, **changes}
    with pytest.raises(ConfigError, match=words):
        Encoder(in_channels=1, **settings)
    with pytest.raises(ConfigError, match=words):
        Decoder(out_channels=1, **settings)


def test_other_shapes_are_refused() -> None:
    encoder, decoder = Encoder(image_size=8, in_channels=1, **SMALL), Decoder(image_size=8, out_channels=1, **SMALL)
    with pytest.raises(ConfigError, match="was built for images"):
        encoder(torch.zeros(2, 3, 8, 8))
    for network in (decoder, PointDecoder(nz=5, hidden=8, layers=1)):
        with pytest.raises(ConfigError, match="needs a latent"):
            network(torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="takes"):
        PointEncoder(nz=1, hidden=8, layers=1)(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ConfigError, match="nz and channels of at least 1"):
        PointEncoder(nz=0)
    with pytest.raises(ConfigError, match="hidden and layers"):
        PointDecoder(nz=1, hidden=0)
    with pytest.raises(ConfigError, match="cannot take images of 8 x 5: .* multiple of"):
        build_autoencoder(DataSpec("images", 1, 8, 5), AutoencoderOptions(), PointOptions())

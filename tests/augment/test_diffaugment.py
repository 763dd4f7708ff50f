"""DiffAugment: golden numbers, the identities of its formulas, ranges of the draws, derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import golden
from trilemma.augment.diffaugment import brightness, contrast, cutout, diffaugment, saturation, translation
from trilemma.errors import ConfigError

CUTOUT_RATIO = 0.2  # of the golden numbers


def stored() -> dict[str, Tensor]:
    with np.load(golden("diffaugment.npz"), allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


def test_each_kind_agrees_with_the_published_one() -> None:
    file = stored()
    x = file["x"]
    assert relative(brightness(x, file["u_brightness"]), file["brightness"]) < 1e-6
    assert relative(saturation(x, file["u_saturation"]), file["saturation"]) < 1e-6
    assert relative(contrast(x, file["u_contrast"]), file["contrast"]) < 1e-6
    assert torch.equal(translation(x, file["translation_x"], file["translation_y"]), file["translation"])
    assert torch.equal(cutout(x, file["offset_x"], file["offset_y"], CUTOUT_RATIO), file["cutout"])


def test_all_kinds_in_sequence_agree_with_the_published_ones() -> None:
    file = stored()
    x = contrast(saturation(brightness(file["x"], file["u_brightness"]), file["u_saturation"]), file["u_contrast"])
    x = translation(x, file["translation_x"], file["translation_y"])
    assert relative(cutout(x, file["offset_x"], file["offset_y"], CUTOUT_RATIO), file["all"]) < 1e-6


def test_one_half_is_the_identity_of_the_colours() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    half = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    for change in (brightness, saturation, contrast):
        assert torch.allclose(change(x, half), x, rtol=0, atol=1e-15)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    x = torch.randn(4, channels, 8, 6)
    assert diffaugment(x).shape == x.shape
    gray = saturation(x, torch.zeros(4, 1, 1, 1))
    assert torch.allclose(gray, x.mean(dim=1, keepdim=True).expand_as(x))
    if channels == 1:
        assert torch.equal(saturation(x, torch.rand(4, 1, 1, 1)), x)


def test_translation_moves_rows_and_columns_and_fills_with_zeros() -> None:
    x = torch.arange(1.0, 13.0).view(1, 1, 3, 4)
    moved = translation(x, torch.tensor([1]), torch.tensor([-2]))
    assert moved[0, 0].tolist() == [[0, 0, 5, 6], [0, 0, 9, 10], [0, 0, 0, 0]]
    assert not translation(x, torch.tensor([3]), torch.tensor([0])).any()


@pytest.mark.parametrize(
    ("offset", "ratio", "kept"),
    [
        (3, 0.5, [1, 1, 0, 0, 0, 1]),
        (0, 0.5, [0, 0, 1, 1, 1, 1]),
        (5, 0.5, [1, 1, 1, 1, 0, 0]),
        (6, 0.34, [1, 1, 1, 1, 1, 0]),  # an even side may have its middle behind the last pixel
        (0, 1.0, [0, 0, 0, 1, 1, 1]),
        (2, 0.05, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_cutout_is_centred_and_clamped(offset: int, ratio: float, kept: list[int]) -> None:
    x = torch.ones(1, 1, 6, 6)
    place = torch.tensor([offset])
    cut = cutout(x, place, torch.tensor([3]), ratio)
    assert cut[0, 0, :, 3].tolist() == kept
    cut = cutout(x, torch.tensor([3]), place, ratio)
    assert cut[0, 0, 3].tolist() == kept


def test_draws_fill_the_published_ranges() -> None:
    n, size = 4000, 16
    dot = torch.zeros(n, 1, size, size)
    dot[:, :, 8, 8] = 1
    moved = diffaugment(dot, ("translation",)).flatten(1).argmax(dim=1)
    assert set((moved // size).tolist()) == set((moved % size).tolist()) == set(range(6, 11))

    bright = diffaugment(torch.zeros(n, 1, 1, 1), ("color",))
    assert -0.5 <= float(bright.min()) < -0.49 and 0.49 < float(bright.max()) <= 0.5

    cut = diffaugment(torch.ones(n, 1, size, size), ("cutout",))[:, 0]
    # A square of side 8 whose middle lies on one of 17 places of each axis.
    assert set((cut.amin(dim=2) == 0).sum(dim=1).tolist()) == set(range(4, 9))
    lines = [min(k + 4, size) - max(k - 4, 0) for k in range(17)]
    assert float((cut == 0).float().mean()) == pytest.approx((sum(lines) / 17 / size) ** 2, rel=0.02)


def test_policy_is_applied_in_its_order_from_the_global_generator() -> None:
    x = torch.randn(5, 3, 8, 8)
    torch.manual_seed(3)
    whole = diffaugment(x)
    torch.manual_seed(3)
    parts = diffaugment(diffaugment(diffaugment(x, ["color"]), ["translation"]), ["cutout"])
    assert torch.equal(whole, parts)
    assert torch.equal(diffaugment(x, ()), x)


def test_derivatives_of_first_and_second_order() -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    rows, cols = torch.tensor([1, -2]), torch.tensor([0, 3])
    u = torch.rand(2, 1, 1, 1, dtype=torch.float64)

    def every(v: Tensor) -> Tensor:
        v = contrast(saturation(brightness(v, u), u), u)
        return cutout(translation(v, rows, cols), rows + 2, cols, 0.3)

    assert torch.autograd.gradcheck(every, x)
    assert torch.autograd.gradgradcheck(lambda v: every(v).square(), x)


def test_channels_last_stays_so_forwards_and_backwards() -> None:
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = diffaugment(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_wrong_settings_are_refused() -> None:
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ConfigError, match="did you mean 'translation'"):
        diffaugment(x, ("color", "translate"))
    with pytest.raises(ConfigError, match="cutout_ratio"):
        diffaugment(x, cutout_ratio=1.5)

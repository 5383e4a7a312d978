# SPDX-License-Identifier: Apache-2.0
"""Augmentation's further options; flip, rotation, shift, contrast and erasing are in test_data.py."""

from __future__ import annotations

import pytest
import torch

from fastfer.data import Augment

STILL = {"flip": 0.0, "degrees": 0.0, "shift": 0.0, "zoom": 0.0, "contrast": 0.0, "erase": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_defaults_draw_the_same_numbers_as_ever() -> None:
    """Runs that are continued, and published figures, rest on them: 12 numbers an image, whatever is switched on."""
    x = torch.randn(3, 1, 20, 20, generator=generator())
    for settings in ({}, {"erase": 1.0}, {"flip": 0.0, "contrast": 0.0}):
        used, counted = generator(7), generator(7)
        Augment(**settings)(x, used)
        torch.rand(3, 12, generator=counted)
        assert torch.equal(used.get_state(), counted.get_state())
    new = Augment(**STILL, crop=0.3)(x, generator(7))
    assert new.shape == x.shape
    assert not torch.equal(new, x)


def test_crop_shows_a_window_of_the_image() -> None:
    ramp = torch.arange(40.0).view(1, 1, 1, 40).expand(300, 1, 40, 40)
    y = Augment(**STILL, crop=0.5)(ramp, generator())
    slope = (y[:, 0, 20, 30] - y[:, 0, 20, 10]) / 20
    assert slope.min() == pytest.approx(0.5, abs=0.02)
    assert slope.max() == pytest.approx(1, abs=0.02)
    centre = y[:, 0, 20, 19:21].mean(1)
    assert (centre - 19.5).abs().max() > 7
    # A window never leaves the image: only bilinear sampling at the border itself repeats a pixel.
    assert y.min() >= 0
    assert ((y[:, 0, 20, 2:-2].diff(dim=1)) > 0.4).all()


def test_image_contrast_keeps_each_mean() -> None:
    x = torch.randn(200, 3, 8, 8, generator=generator()) + torch.tensor([3.0, 0.0, -2.0]).view(1, 3, 1, 1)
    y = Augment(**STILL, image_contrast=0.3)(x, generator())
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)), atol=1e-5, rtol=0)
    factors = y.std((2, 3)) / x.std((2, 3))
    torch.testing.assert_close(factors, factors[:, :1].expand(-1, 3), atol=1e-4, rtol=0)
    assert factors.min() == pytest.approx(0.7, abs=0.02)
    assert factors.max() == pytest.approx(1.3, abs=0.02)


def test_noise_is_gaussian_of_a_strength_drawn_per_image() -> None:
    x = torch.zeros(400, 1, 24, 24)
    y = Augment(**STILL, noise=0.5)(x, generator())
    strength = y.std((1, 2, 3))
    assert strength.max() == pytest.approx(0.5, abs=0.05)
    assert strength.min() < 0.03
    whole = (y / strength.view(-1, 1, 1, 1)).flatten()
    assert float(whole.abs().lt(1).float().mean()) == pytest.approx(0.6827, abs=0.005)
    assert torch.equal(y, Augment(**STILL, noise=0.5)(x, generator()))


def test_augment_works_where_the_batch_is() -> None:
    x = torch.zeros(4, 1, 8, 8, device="meta")
    assert Augment(erase=0.5, crop=0.2, image_contrast=0.3)(x, generator()).device.type == "meta"


@pytest.mark.parametrize(("name", "value"), [("crop", 0.95), ("image_contrast", 1.5), ("noise", -1.0)])
def test_ranges(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"augment.{name}"):
        Augment(**{name: value})

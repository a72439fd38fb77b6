"""Augmented pictures are what their generator says, and still the same picture."""

import pytest
import torch

from triptych.fields import from_json, to_json
from triptych.vision.augment import Augmentation, augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramps(count=64, side=32):
    """Red is where a pixel was across, green where it was down, in [-0.9, 0.9]."""
    line = (torch.arange(side) + 0.5) / side * 1.8 - 0.9
    across = line.expand(side, side)
    return torch.stack([across, across.T, torch.zeros(side, side)]).expand(count, 3, side, side)


def test_crops_have_the_area_and_shape_asked_for():
    count, side = 400, 32
    settings = Augmentation(crop=(0.5, 0.8), ratio=1.5)
    cropped = augment(ramps(count, side), settings, generator())
    inner = (side - 1) / side * 1.8  # what the ramp spans between the outer pixels' centres
    width = (cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]) / inner
    height = (cropped[:, 1, -1, 0] - cropped[:, 1, 0, 0]) / inner
    area, ratio = width * height, width / height
    assert area.min() > 0.5 - 1e-4 and area.max() < 0.8 + 1e-4
    assert area.min() < 0.53 and area.max() > 0.77
    assert ratio.min() > 1 / 1.5 - 1e-4 and ratio.max() < 1.5 + 1e-4
    assert ratio.min() < 0.75 and ratio.max() > 1.33
    centres = cropped.mean((2, 3))[:, :2]
    assert centres.mean().abs() < 0.02 and centres.std() > 0.05
    assert cropped.abs().max() <= 0.9  # no pixel from outside
    torch.testing.assert_close(cropped[:, 0], cropped[:, 0, :1].expand(-1, side, -1))  # no turning


def test_crops_stay_inside_even_where_the_shape_does_not_fit():
    cropped = augment(ramps(), Augmentation(crop=(0.95, 1.0), ratio=3), generator())
    assert cropped.abs().max() <= 0.9
    span = (cropped[:, 0, 0, -1] - cropped[:, 0, 0, 0]) / (31 / 32 * 1.8)
    assert span.max() <= 1 + 1e-4 and span.min() > 0.94


def test_whole_pictures_stay():
    images = torch.rand(8, 3, 9, 13, generator=generator()) * 2 - 1
    assert torch.equal(augment(images, Augmentation((1.0, 1.0), ratio=1), generator()), images)
    settings = Augmentation((1.0, 1.0), ratio=1, flip=True)
    flipped = augment(images.repeat(50, 1, 1, 1), settings, generator()).unflatten(0, (50, 8))
    same = (flipped - images).abs().amax((2, 3, 4)) < 1e-5
    turned = (flipped - images.flip(-1)).abs().amax((2, 3, 4)) < 1e-5
    assert (same ^ turned).all()
    assert 0.4 < turned.float().mean() < 0.6


def test_the_generator_decides():
    images = ramps()
    settings = Augmentation((0.5, 1.0), flip=True, brightness=0.2, contrast=0.2, saturation=0.2)
    first, again = (augment(images, settings, generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, settings, generator(4)))
    assert len({tuple(picture.flatten().tolist()) for picture in first}) == len(images)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    augment(images, settings, generator())
    assert torch.equal(torch.get_rng_state(), state)
    crop_only = augment(images, Augmentation((0.5, 1.0), flip=True), generator(3))
    coloured = Augmentation((0.5, 1.0), flip=True, brightness=1e-9)
    torch.testing.assert_close(augment(images, coloured, generator(3)), crop_only)


def test_colours():
    grey = torch.full((200, 3, 4, 4), -0.2)
    lit = augment(grey, Augmentation((1.0, 1.0), 1, brightness=0.5), generator())
    factors = (lit[:, 0, 0, 0] + 1) / 0.8
    assert 0.5 <= factors.min() < 0.55 and 1.45 < factors.max() <= 1.5
    flat = augment(grey, Augmentation((1.0, 1.0), 1, contrast=0.9, saturation=0.9), generator())
    torch.testing.assert_close(flat, grey)  # nothing to contrast with, no colour to fade
    images = torch.rand(20, 3, 8, 8, generator=generator(1)) - 0.5
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    faded = augment(images, Augmentation((1.0, 1.0), 1, saturation=0.3), generator())
    torch.testing.assert_close((faded * weights).sum(1), (images * weights).sum(1))
    spread = (faded.std(1) / images.std(1)).flatten(1)
    assert spread.std(1).max() < 1e-3 and 0.7 <= spread.min() < spread.max() <= 1.3 + 1e-4
    bright = augment(torch.ones(50, 3, 4, 4), Augmentation((1, 1), 1, brightness=0.5), generator())
    assert bright.max() == 1 and bright.min() >= 0


def test_settings_are_data_and_checked():
    settings = Augmentation((0.5, 1.0), 1.2, True, 0.1, 0.2, 0.3)
    assert from_json(Augmentation, to_json(settings)) == settings
    for changes in ({"crop": (0.0, 1.0)}, {"crop": (0.9, 0.8)}, {"ratio": 0.5}, {"contrast": 1.0}):
        with pytest.raises(ValueError, match=r"must be|range"):
            Augmentation(**changes)

"""What small pictures look like before an upsampler learns from them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from triptych.systems.unclip.degradation import cosine_basis, degrade, gaussian_blur, jpeg
from triptych.systems.unclip.training.upsampler_recipe import random_crops
from triptych.systems.unclip.upsampler import psnr, shrink


def pictures(count=4, size=16):
    torch.manual_seed(0)
    return torch.rand(count, 3, size, size) * 2 - 1


def test_each_picture_is_blurred_by_its_own_gaussian():
    """Scipy's, cut off at the same reach."""
    x, sigma = pictures(), torch.tensor([0.6, 1.0, 2.0, 0.3])
    ours = gaussian_blur(x, sigma, 7)
    for picture, blurred, deviation in zip(x, ours, sigma.tolist(), strict=True):
        expected = gaussian_filter(
            picture.numpy(), (0, deviation, deviation), radius=3, mode="nearest"
        )
        np.testing.assert_allclose(blurred, expected, atol=1e-5)


def test_blur_is_of_half_of_the_pictures_and_none_changes_nothing():
    x = pictures(64)
    assert degrade(x, "none") is x
    blurred = degrade(x, "blur")
    whole = gaussian_blur(x, torch.full((64,), 0.6), 3)
    changed = (blurred != x).flatten(1).any(1)
    assert 16 < int(changed.sum()) < 48
    torch.testing.assert_close(blurred[changed], whole[changed])


def test_the_harder_degradation_loses_more_and_keeps_shape_and_range():
    x = torch.nn.functional.interpolate(pictures(32, 4), 16, mode="bilinear")
    blurred, hard = degrade(x, "blur"), degrade(x, "hard")
    assert hard.shape == x.shape and hard.abs().max() <= 1
    assert psnr(hard, x).mean() < psnr(blurred, x).mean() - 3
    assert psnr(hard, x).mean() > 10  # still the same pictures
    torch.manual_seed(1)
    one = degrade(x, "hard")
    torch.manual_seed(1)
    assert torch.equal(degrade(x, "hard"), one)


def test_the_cosine_transform_is_scipys():
    x = torch.randn(8, 8, dtype=torch.float64)
    basis = cosine_basis(x)
    np.testing.assert_allclose(basis @ x @ basis.T, dctn(x.numpy(), norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_loses_what_pillow_loses(quality):
    """Of a grey picture, whose one channel Pillow quantises by the same table."""
    y, x = np.mgrid[:19, :21]
    grey = (np.sin(x / 3) * 60 + np.cos(y / 2) * 50 + 128).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "jpeg", quality=quality)
    theirs = np.asarray(Image.open(file)).astype(float)
    tensor = torch.from_numpy(grey).float()[None, None] / 127.5 - 1
    ours = (jpeg(tensor, quality)[0, 0].numpy() + 1) * 127.5
    assert np.abs(ours - theirs)[:16, :16].mean() < 0.8  # whole blocks: the others are padded
    assert np.abs(theirs - grey).mean() > 0.2 or quality > 90


def test_crops_keep_small_pixels_whole():
    x = torch.arange(3 * 8 * 8, dtype=torch.float32).view(1, 3, 8, 8).repeat(40, 1, 1, 1)
    crops = random_crops(x, 4, 2)
    places = {(int(crop[0, 0, 0]) // 8, int(crop[0, 0, 0]) % 8) for crop in crops}
    assert places == {(y, x) for y in (0, 2, 4) for x in (0, 2, 4)}
    assert torch.equal(random_crops(x, 8, 2), x)
    assert shrink(pictures(), 2).shape == (4, 3, 8, 8)

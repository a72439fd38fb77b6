"""Standardised latents against their own statistics and the pictures of the autoencoder before."""

import pytest
import torch

from tests.systems.autoencoder.test_model import autoencoder, pictures
from triptych.systems.autoencoder.latent_channels import keep_channels, standardise_channels
from triptych.systems.autoencoder.objective import perturb


@torch.no_grad()
def silence(model, unused):
    """Channels that the encoder does not use: mean 0, deviation 1 for every picture."""
    rows = [*unused, *(c + model.config.latent_channels for c in unused)]
    model.encoder.conv_out.weight[rows] = 0
    model.encoder.conv_out.bias[rows] = 0
    return model


@torch.no_grad()
@pytest.mark.parametrize("quant_conv", [True, False])
def test_every_channel_is_standardised(quant_conv):
    """Of draws from the posterior, whose noise is a good part of these latents."""
    model, image = autoencoder(std=0.3, quant_conv=quant_conv), pictures(8)
    result = standardise_channels(model, image.split(3))
    posterior = result.posterior(image)
    assert posterior.logvar.exp().mean((0, 2, 3)).max() > 0.1
    mean = posterior.mean.transpose(0, 1).flatten(1)
    variance = mean.var(1) + posterior.logvar.exp().mean((0, 2, 3))  # of a draw
    torch.testing.assert_close(mean.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(variance, torch.ones(4), atol=1e-3, rtol=0)
    assert result.config.scale == 1 and result.config.quant_conv
    torch.testing.assert_close(
        result.reconstruct(image), model.reconstruct(image), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_draws_of_the_posterior_stay_the_same():
    """Means and deviations change together, so that the same noise gives the same picture."""
    model, image = autoencoder(std=0.3), pictures(8)
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    result = standardise_channels(model, image.split(3))
    torch.testing.assert_close(
        result.reconstruct(image, noise), model.reconstruct(image, noise), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_unused_channels_are_removed():
    model, image = silence(autoencoder(std=0.3, quant_conv=False), [0, 2]), pictures(8)
    result = standardise_channels(model, image.split(3))
    assert result.config.latent_channels == 2
    torch.testing.assert_close(
        result.reconstruct(image), model.reconstruct(image), atol=1e-4, rtol=1e-4
    )
    kept = keep_channels(model, torch.tensor([False, True, False, True]))
    torch.testing.assert_close(kept.encode(image), model.encode(image)[:, [1, 3]])


def test_an_encoder_that_uses_no_channel_keeps_all():
    model = silence(autoencoder(quant_conv=False), [0, 1, 2, 3])
    assert standardise_channels(model, [pictures(4)]).config.latent_channels == 4


def test_noise_of_a_share_of_each_channels_deviation():
    torch.manual_seed(0)
    spread = torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    latents = torch.randn(2000, 3, 4, 4) * spread + 5
    noise = perturb(latents, 0.2) - latents
    torch.testing.assert_close(
        noise.std((0, 2, 3)), 0.2 * latents.std((0, 2, 3)), rtol=0.05, atol=0
    )
    each = noise.std((1, 2, 3))
    assert each.min() < 0.05 * each.median() < each.max()  # the share differs between pictures
    latents.requires_grad_()
    (gradient,) = torch.autograd.grad(perturb(latents, 0.2).sum(), latents)
    torch.testing.assert_close(gradient, torch.ones_like(gradient))

"""The KL autoencoder and its objective against closed forms, tiles and half precision against the
whole in float32.
"""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from triptych.requests import TrainAutoencoder
from triptych.systems.autoencoder.model import Autoencoder, AutoencoderConfig, Gaussian
from triptych.systems.autoencoder.objective import (
    LossWeights,
    Reconstruction,
    adaptive_weight,
    discriminator_objective,
    generator_objective,
)
from triptych.systems.autoencoder.perceptual import PatchDiscriminator
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder, TinyAutoencoderConfig
from triptych.vision.images import open_picture

SMALL = {"widths": (16, 32, 32), "blocks": 1, "groups": 8}


def autoencoder(std=0.1, **changes):
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(**(SMALL | changes)))
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, std)
    return model.eval()


def pictures(count=2, height=32, width=32):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def psnr(image, other):
    return 10 * math.log10((other.max() - other.min()) ** 2 / (image - other).square().mean())


def test_the_gaussian():
    mean, logvar = normal(3, 4, 2, 2), normal(3, 4, 2, 2).flip(0)
    gaussian = Gaussian(mean, logvar)
    theirs = Normal(mean, (0.5 * logvar).exp())
    expected = kl_divergence(theirs, Normal(0, 1)).flatten(1).sum(1)
    torch.testing.assert_close(gaussian.kl(), expected)
    noise = normal(3, 4, 2, 2).flip(1)
    torch.testing.assert_close(gaussian.sample(noise), theirs.icdf(Normal(0, 1).cdf(noise)))
    assert gaussian.mode() is mean


@torch.no_grad()
def test_log_variances_are_clipped():
    model = autoencoder()
    model.encoder.quant_conv.weight.mul_(1e4)
    logvar = model.posterior(pictures()).logvar
    assert logvar.min() == -30 and logvar.max() == 20


def photo(real_data):
    pixels = open_picture(real_data / "photos" / "coffee.png", channels=3)[:384, :512]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1


def jumps(error, places):
    """How much an error changes at some columns, against all of them."""
    change = (error[..., 1:] - error[..., :-1]).square().mean((0, 1, 2))
    return (change[[place - 1 for place in places]].mean() / change.mean()).item()


@pytest.mark.slow
@torch.no_grad()
def test_tiles_of_a_photo(real_data):
    """Near to the whole, in the memory of a tile, and without seams where tiles that only lie side
    by side have them.
    """
    model = autoencoder(widths=(16, 32, 32, 32))
    image = photo(real_data)
    areas = []
    watch = [part.conv_in for part in (model.encoder, model.decoder)]
    for layer in watch:
        layer.register_forward_pre_hook(lambda _, x: areas.append(x[0].shape[2:].numel()))
    whole = model.encode(image)
    parts = model.encode(image, tile=192)
    assert psnr(parts, whole) > 28
    decoded = model.decode(whole)
    del areas[:]
    tiled = model.decode(whole, tile=192)
    assert len(areas) == 12 and max(areas) == (192 // 8) ** 2
    assert psnr(tiled, decoded) > 28
    beside = torch.cat([model.decode(part) for part in whole.split(16, 3)], 3)
    borders = [128, 256, 384]
    assert jumps(beside - decoded, borders) > 10  # what a seam looks like
    places = [place for start in (0, 106, 213, 320) for place in (start, start + 192)]
    places = [8 * (p // 8) for p in places if 0 < p < 512]
    assert jumps(tiled - decoded, places) < 1.5
    assert torch.equal(model.decode(whole, tile=512), decoded)
    assert torch.equal(model.encode(image, tile=512), whole)


@torch.no_grad()
def test_tiles_of_a_size_that_is_no_multiple():
    model = autoencoder()
    image = pictures(1, 75, 98)
    latents = model.encode(image, tile=32)
    assert latents.shape[1:] == model.config.latent_shape(75, 98) == (4, 19, 25)
    assert model.decode(latents, (75, 98), tile=32).shape == image.shape


@pytest.mark.parametrize("tile", [0, 8, 30])
def test_tiles_that_cannot_be(tile):
    model = autoencoder()
    with pytest.raises(ValueError, match="tile must be a multiple of 4, at least 16"):
        model.encode(pictures(), tile=tile)
    with pytest.raises(ValueError, match="tile must be a multiple of 4, at least 16"):
        model.decode(normal(1, 4, 8, 8), tile=tile)


@torch.no_grad()
def test_what_overflows_float16_is_done_again_in_float32():
    """As the published SDXL autoencoder does; the other pictures of the batch stay as they are."""
    model = autoencoder()
    half = autoencoder().half()
    latents = normal(2, 4, 8, 8).mul_(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = half.decode(latents)
    torch.testing.assert_close(fine, model.decode(latents), atol=0.05, rtol=0.05)
    latents[1] *= 3e6
    with pytest.warns(RuntimeWarning, match="1 of 2 pictures overflowed torch.float16"):
        mixed = half.decode(latents)
    assert torch.equal(mixed[0], fine[0])
    expected = half.float().decode(latents)[1]
    torch.testing.assert_close(mixed[1], expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


@torch.no_grad()
def test_an_overflow_in_the_encoder():
    half = autoencoder().half()
    half.encoder.conv_in.weight.mul_(1.5e5)
    assert half.encoder.conv_in.weight.isfinite().all()
    image = pictures()
    with pytest.warns(RuntimeWarning, match="2 of 2 pictures overflowed"):
        latents = half.encode(image)
    torch.testing.assert_close(latents, half.float().encode(image), atol=1e-4, rtol=1e-4)


def test_numbers_that_were_not_finite_before_are_named():
    half = autoencoder().to(torch.bfloat16)
    latents = normal(1, 4, 4, 4)
    latents[0, 0, 0, 0] = math.nan
    with torch.no_grad(), pytest.raises(ValueError, match="input of the autoencoder is not finite"):
        half.decode(latents)


def test_wrong_shapes_are_named():
    model = autoencoder()
    with pytest.raises(ValueError, match="pictures with 3 channels, not 1"):
        model.encode(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"40 x 41 have shape \(4, 10, 11\), not \(4, 10, 10\)"):
        model.decode(torch.zeros(1, 4, 10, 10), (40, 41))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": ()}, "widths must be positive"),
        ({"widths": (16, 20)}, r"multiples of groups \(8\)"),
        ({"latent_channels": 0}, "latent_channels must be at least 1, not 0"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"channel_stds": (1.0, 2.0)}, "one number for each of 4"),
        ({"channel_stds": (1.0, 2.0, 0.0, 1.0)}, "channel_stds must be positive"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**(SMALL | changes))


def values(image):
    return image[0].numel()


def test_with_a_gaussian_and_the_whole_kl_it_is_the_evidence_bound():
    model = Reconstruction(autoencoder(), "gaussian")
    nn.init.constant_(model.logvar, -1.3)
    image, noise = pictures(), normal(2, 4, 8, 8)
    loss = generator_objective(model, image, noise, LossWeights(1.0, 0.0, 0.0))
    posterior = model.autoencoder.posterior(image)
    decoded = model.autoencoder.reconstruct(image, noise)
    likelihood = Normal(decoded, math.exp(-0.65)).log_prob(image).sum()
    approximate = Normal(posterior.mean, (0.5 * posterior.logvar).exp())
    bound = likelihood - kl_divergence(approximate, Normal(0, 1)).sum()
    torch.testing.assert_close(loss.total, -bound, rtol=1e-5, atol=0.01)
    assert loss.count == 2
    assert loss.terms["sigma"].item() == pytest.approx(math.exp(-0.65))
    loss.total.backward()
    # at its best the learned variance is the mean squared error: where its gradient is 0
    error = (decoded - image).square().mean().item()
    expected = values(image) * (1 - error / math.exp(-1.3))
    assert model.logvar.grad.item() == pytest.approx(expected, rel=1e-4)


def test_a_deviation_starts_where_it_is_told_to():
    model = Reconstruction(autoencoder(), "gaussian", 0.05)
    image, noise = pictures(), normal(2, 4, 8, 8)
    loss = generator_objective(model, image, noise, LossWeights(0.0, 0.0, 0.0))
    likelihood = Normal(model.autoencoder.reconstruct(image, noise), 0.05).log_prob(image).sum()
    torch.testing.assert_close(loss.total, -likelihood, rtol=1e-5, atol=0.01)
    with pytest.raises(ValueError, match="deviation must be above 0"):
        TrainAutoencoder(likelihood="gaussian", deviation=0.0)


def test_the_terms_of_l1():
    model = Reconstruction(autoencoder())
    assert model.logvar is None
    image, noise = pictures(), normal(2, 4, 8, 8)
    weights = LossWeights(kl=0.01, perceptual=2.0)

    def distance(a, b):
        assert a is image
        return (a - b).square().flatten(1).mean(1)

    loss = generator_objective(model, image, noise, weights, perceptual=distance)
    decoded = model.autoencoder.reconstruct(image, noise)
    seen = distance(image, decoded)
    kl = model.autoencoder.posterior(image).kl()
    expected = (decoded - image).abs().sum() + 2 * values(image) * seen.sum() + 0.01 * kl.sum()
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.terms["absolute"], (decoded - image).abs().mean())
    torch.testing.assert_close(loss.terms["perceptual"], seen.mean())
    torch.testing.assert_close(loss.terms["kl"], kl.mean())
    assert set(loss.terms) == {"absolute", "perceptual", "kl"}
    none = generator_objective(model, image, noise, LossWeights(kl=0.01, perceptual=0.0))
    torch.testing.assert_close(none.total, expected - 2 * values(image) * seen.sum())


def discriminator():
    torch.manual_seed(3)
    model = PatchDiscriminator(3, (16, 32), groups=8)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def test_the_adversarial_part_pulls_as_strongly_as_the_reconstruction():
    """VQGAN's eq. 7: at the last layer, both gradients have one norm before the weight of 0.5."""
    model, critic = Reconstruction(autoencoder()), discriminator()
    image, noise = pictures(), normal(2, 4, 8, 8)
    last = model.autoencoder.decoder.conv_out.weight
    plain = LossWeights(perceptual=0.0)

    def gradient(weights, **parts):
        total = generator_objective(model, image, noise, weights, **parts).total
        return torch.autograd.grad(total, last)[0]

    with_kl = gradient(plain)  # the latents' part does not reach the decoder's last layer
    both = gradient(plain, discriminator=critic)
    decoded = model.autoencoder.reconstruct(image, noise)
    alone = torch.autograd.grad(-critic(decoded).mean((1, 2, 3)).sum(), last)[0]
    added = both - with_kl
    torch.testing.assert_close(added.norm(), 0.5 * with_kl.norm(), rtol=1e-3, atol=0)
    assert F.cosine_similarity(added.flatten(), alone.flatten(), dim=0) > 0.9999
    loss = generator_objective(model, image, noise, plain, discriminator=critic)
    ratio = with_kl.norm() / (alone.norm() + 1e-6)
    torch.testing.assert_close(loss.terms["adaptive_weight"], ratio, rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.terms["g_loss"], -critic(decoded).mean())
    loss.total.backward()
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_adaptive_weight_is_bounded_and_constant():
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    weight = adaptive_weight(last.square().sum(), 2 * last.sum(), last)  # (6, 8) and (2, 2)
    assert weight.item() == pytest.approx(10 / 8**0.5, rel=1e-5)
    assert not weight.requires_grad
    assert adaptive_weight(last.square().sum(), 1e-9 * last.sum(), last).item() == 1e4


def test_the_discriminator_alone_moves_with_its_objective():
    model, critic = Reconstruction(autoencoder()), discriminator()
    image, noise = pictures(), normal(2, 4, 8, 8)
    loss = discriminator_objective(model, critic, image, noise)
    fake = critic(model.autoencoder.reconstruct(image, noise).detach())
    real = critic(image)
    parts = [F.relu(1 - real), F.relu(1 + fake)]
    expected = sum(part.flatten(1).mean(1) for part in parts).sum() / 2
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.terms["real"], real.mean())
    torch.testing.assert_close(loss.terms["fake"], fake.mean())
    loss.total.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in critic.parameters())
    nn.init.zeros_(critic.layers[-1].weight)
    nn.init.zeros_(critic.layers[-1].bias)
    assert discriminator_objective(model, critic, image, noise).terms["d_loss"] == 1


@pytest.mark.parametrize("parts", ["plain", "adversarial"])
def test_accumulated_halves_are_the_whole(parts):
    """Sums and counts; the adaptive weight is one number per call, so it is left out."""
    model = Reconstruction(autoencoder(), "gaussian")
    critic = discriminator()
    image, noise = pictures(4), normal(4, 4, 8, 8)

    def objective(rows):
        if parts == "plain":
            return generator_objective(model, image[rows], noise[rows], LossWeights())
        return discriminator_objective(model, critic, image[rows], noise[rows])

    whole, halves = objective(slice(0, 4)), [objective(slice(0, 1)), objective(slice(1, 4))]
    torch.testing.assert_close(whole.total, halves[0].total + halves[1].total)
    assert whole.count == halves[0].count + halves[1].count == 4


@pytest.mark.slow
def test_a_fresh_one_learns_four_pictures():
    torch.manual_seed(0)
    model = Reconstruction(Autoencoder(AutoencoderConfig(widths=(16, 16), blocks=1, groups=4)))
    critic = PatchDiscriminator(3, (8,), groups=4)
    image = F.interpolate(pictures(4, 4, 4), scale_factor=4.0)
    rates = {"lr": 3e-3, "betas": (0.5, 0.9)}
    ours = torch.optim.Adam(model.parameters(), **rates)
    theirs = torch.optim.Adam(critic.parameters(), **rates)
    found = []
    for step in range(80):
        noise = torch.randn(4, 4, 8, 8)
        parts = {"discriminator": critic} if step >= 40 else {}
        loss = generator_objective(model, image, noise, LossWeights(), **parts)
        ours.zero_grad()
        loss.total.backward()
        ours.step()
        theirs.zero_grad()
        discriminator_objective(model, critic, image, noise).total.backward()
        theirs.step()
        found.append(loss.terms["absolute"].item())
    assert found[0] > 0.4 and min(found) < 0.25 and found[-1] < 0.3


@torch.no_grad()
def test_a_tiny_autoencoder_of_any_size():
    torch.manual_seed(0)
    model = TinyAutoencoder(TinyAutoencoderConfig(width=8)).eval()
    image = pictures(1, 75, 98)
    latents = model.encode(image)
    assert latents.shape[1:] == model.config.latent_shape(75, 98) == (4, 10, 13)
    rows = torch.arange(80).clamp(max=74)
    columns = torch.arange(104).clamp(max=97)
    assert torch.equal(latents, model.encode(image[:, :, rows][:, :, :, columns]))
    back = model.decode(latents, (75, 98))
    assert torch.equal(back, model.decode(latents)[:, :, :75, :98])
    tiled = model.decode(latents, (75, 98), tile=48)
    assert psnr(tiled, back) > 20
    assert torch.equal(model.decode(latents, (75, 98), tile=104), back)
    half = model.half()
    assert half.decode(latents).dtype == torch.float32
    with pytest.raises(ValueError, match=r"have shape \(4, 10, 13\)"):
        model.decode(latents[:, :, 1:], (75, 98))
    with pytest.raises(ValueError, match="pictures with 3 channels, not 1"):
        model.encode(image[:, :1])

"""The conditional VAE against closed forms, numerical integrals and torch.distributions."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from triptych.systems.cvae import model as cvae
from triptych.systems.cvae.model import Cvae, CvaeConfig, Gaussian
from triptych.vision.quadrants import partial_view, quadrant_mask

SIDE = 8


def config(**changes):
    settings = {
        "height": SIDE, "width": SIDE, "channels": 1, "condition": "label", "condition_size": 3,
        "latent": 2, "network": "mlp", "widths": (16, 12),
    }  # fmt: skip
    return CvaeConfig(**(settings | changes))


def model_and_batch(batch=5, **changes):
    torch.manual_seed(0)
    settings = config(**changes)
    image = torch.rand(batch, settings.channels, settings.height, settings.width) * 2 - 1
    condition = {
        "none": lambda: None,
        "label": lambda: torch.arange(batch) % settings.condition_size,
        "attributes": lambda: torch.randint(0, 2, (batch, settings.condition_size)).float(),
        "vector": lambda: torch.randn(batch, settings.condition_size),
        "image": lambda: partial_view(image, quadrant_mask(SIDE, SIDE, 2)),
    }[settings.condition]()
    return Cvae(settings).eval(), image, condition


KINDS = ["none", "label", "attributes", "vector", "image"]


@pytest.mark.parametrize("network", ["mlp", "convolutional"])
@pytest.mark.parametrize("condition", KINDS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_every_kind_learns_and_its_pictures_are_in_range(network, condition, likelihood):
    model, image, given = model_and_batch(
        network=network,
        condition=condition,
        likelihood=likelihood,
        learned_prior=condition == "image",
    )
    weights = list(model.parameters())
    noise = torch.randn(5, 2)
    losses = []
    for _ in range(15):
        loss = cvae.objective(model, image, given, noise=noise)
        gradients = torch.autograd.grad(loss.total, weights)  # every weight has a part in it
        assert all(g.isfinite().all() for g in gradients)
        norm = torch.stack([g.norm() for g in gradients]).norm()
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.1 * gradient / norm
        losses.append(loss.total.item())
    assert losses[-1] < losses[0]
    pictures = cvae.sample(model, given, torch.randn(5, 2))
    assert pictures.shape == image.shape
    assert pictures.abs().max() <= 1


def test_terms_are_those_of_torch_distributions():
    model, image, label = model_and_batch(learned_prior=True)
    noise = torch.randn(5, 2)
    loss = cvae.objective(model, image, label, noise=noise)
    features = torch.eye(3)[label]
    q_mean, q_log = model.encoder(image, features).chunk(2, 1)
    p_mean, p_log = model.prior_network(features).chunk(2, 1)
    q, p = Normal(q_mean, (q_log / 2).exp()), Normal(p_mean, (p_log / 2).exp())
    logits = model.decoder(q_mean + (q_log / 2).exp() * noise, features)
    grey = (image + 1) / 2
    logs = Bernoulli(logits=logits, validate_args=False).log_prob(grey).sum() / 5
    kl = kl_divergence(q, p).sum() / 5
    assert loss.terms["reconstruction"].item() == pytest.approx(-logs.item(), rel=1e-5)
    assert loss.terms["kl"].item() == pytest.approx(kl.item(), rel=1e-4)
    assert loss.terms["elbo"].item() == pytest.approx((logs - kl).item(), rel=1e-5)
    assert loss.total.item() == pytest.approx(5 * (kl - logs).item(), rel=1e-5)
    assert loss.count == 5


def test_gaussian_likelihood_is_that_of_torch_distributions():
    model, image, label = model_and_batch(likelihood="gaussian")
    with torch.no_grad():
        model.log_variance.fill_(-1.3)
    features, z = torch.eye(3)[label], torch.randn(5, 2)
    expected = Normal(model.decoder(z, features), math.exp(-0.65)).log_prob(image).sum((1, 2, 3))
    found = model.log_likelihood(image, label, z, features)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_code_has_the_density_of_torch_distributions():
    torch.manual_seed(0)
    mean, log_variance, noise = torch.randn(3, 4, 2)
    q, exact = Gaussian(mean, log_variance), Normal(mean, (log_variance / 2).exp())
    z = q.at(noise)
    torch.testing.assert_close(q.log_density(z), exact.log_prob(z).sum(1))
    torch.testing.assert_close(z, exact.icdf(Normal(0, 1).cdf(noise)), rtol=1e-3, atol=1e-3)


def test_a_drawn_picture_is_the_mean_of_the_likelihood():
    """Whose sigmoid is the probability of white, and whose range is [-1, 1]."""
    model, _, label = model_and_batch()
    noise = torch.randn(5, 2) * 3
    white = torch.sigmoid(model.decoder(noise, torch.eye(3)[label]))
    torch.testing.assert_close(cvae.sample(model, label, noise), 2 * white.detach() - 1)


def test_beta_and_free_bits_weigh_only_what_they_say():
    model, image, label = model_and_batch()
    noise = torch.randn(5, 2)

    def loss(**settings):
        return cvae.objective(model, image, label, noise=noise, **settings)

    plain = loss()
    kl = plain.terms["kl"] * 5
    half = loss(beta=torch.tensor(0.5))
    torch.testing.assert_close(plain.total - half.total, kl / 2, rtol=1e-4, atol=1e-3)
    assert half.terms["elbo"] == plain.terms["elbo"]
    # A floor above every dimension's KL: the term is that constant, and its gradient vanishes.
    floored = loss(free_bits=50.0)
    reconstruction = plain.total - kl
    torch.testing.assert_close(floored.total, reconstruction + 2 * 50.0 * 5)
    # A floor between the KLs of the two dimensions raises the smaller one only.
    features = torch.eye(3)[label]
    each = cvae.kl_divergence(model.posterior(image, features), model.prior(features)).mean(0)
    between = each.mean().item()
    expected = reconstruction + 5 * (max(each).item() + between)
    torch.testing.assert_close(loss(free_bits=between).total, expected)


def test_parts_of_a_batch_add_up_to_it():
    model, image, label = model_and_batch(network="convolutional")
    noise = torch.randn(5, 2)
    whole = cvae.objective(model, image, label, noise=noise, beta=0.7)
    parts = [
        cvae.objective(model, image[s], label[s], noise=noise[s], beta=0.7)
        for s in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(p.total for p in parts), whole.total)
    assert sum(p.count for p in parts) == whole.count


def test_likelihood_counts_hidden_pixels_only():
    model, image, view = model_and_batch(condition="image", latent=0)
    first = cvae.objective(model, image, view).total
    changed = image.clone()
    changed[..., : SIDE // 2] = 0.123  # visible, and the view stays as it was
    torch.testing.assert_close(cvae.objective(model, changed, view).total, first)
    changed[..., SIDE // 2 :] = 0.123
    assert (cvae.objective(model, changed, view).total - first).abs() > 0.01
    # Nothing visible: all pixels count.
    blind = partial_view(image, torch.zeros(1, 1, SIDE, SIDE))
    logits = model.decoder(image.new_zeros(5, 0), model.features(blind, 5))
    grey = (image + 1) / 2
    expected = nn.functional.binary_cross_entropy_with_logits(logits, grey, reduction="sum")
    torch.testing.assert_close(cvae.objective(model, image, blind).total, expected)


def test_quadrants_and_completion():
    areas = [quadrant_mask(SIDE, SIDE, n).mean().item() for n in (1, 2, 3)]
    assert areas == [0.25, 0.5, 0.75]
    one, two, three = (quadrant_mask(SIDE, SIDE, n)[0, 0] for n in (1, 2, 3))
    assert one[-1, 0] == 1
    assert two[0, 0] == 1
    assert three[0, -1] == 1
    assert three[-1, -1] == 0
    model, image, view = model_and_batch(condition="image")
    completed = cvae.sample(model, view, torch.randn(5, 2))
    assert torch.equal(completed[..., : SIDE // 2], image[..., : SIDE // 2])
    assert not torch.equal(completed[..., SIDE // 2 :], image[..., SIDE // 2 :])
    assert (view[:, :1, :, SIDE // 2 :] == 0).all()  # the view shows nothing of what is hidden


def test_without_a_latent_the_prediction_is_exact_and_free():
    model, image, view = model_and_batch(condition="image", latent=0)
    loss = cvae.objective(model, image, view)
    assert loss.terms["kl"] == 0
    nll = cvae.importance_weighted_nll(model, image, view, 7)
    torch.testing.assert_close(nll.sum(), loss.total.detach())
    noise = torch.zeros(5, 0)
    assert torch.equal(cvae.sample(model, view, noise), cvae.reconstruct(model, image, view))


def linear_gaussian():
    """x = A z + b_c + noise: its marginal likelihood is a normal density."""
    model, image, label = model_and_batch(likelihood="gaussian", batch=4)
    weight, offset = torch.randn(SIDE * SIDE, 2) * 0.3, torch.randn(3, SIDE * SIDE) * 0.2
    log_variance = -0.5

    class Linear(nn.Module):
        def forward(self, z, condition):
            return (z @ weight.T + condition @ offset).unflatten(1, (1, SIDE, SIDE))

    model.decoder = Linear()
    with torch.no_grad():
        model.log_variance.fill_(log_variance)
    covariance = weight @ weight.T + math.exp(log_variance) * torch.eye(SIDE * SIDE)
    exact = -MultivariateNormal(offset[label], covariance).log_prob(image.flatten(1))
    # The true posterior of z; its covariance is not diagonal, so a factored q stays approximate.
    precision = torch.eye(2) + weight.T @ weight / math.exp(log_variance)
    mean = (image.flatten(1) - offset[label]) @ weight / math.exp(log_variance)
    mean = mean @ precision.inverse()
    return model, image, label, exact, mean, precision


def test_importance_weighted_nll_is_exact_on_a_linear_gaussian_model():
    model, image, label, exact, mean, precision = linear_gaussian()
    log_variance = -precision.diagonal().log().expand(4, 2)
    model.posterior = lambda image, features: Gaussian(mean, log_variance)
    found = cvae.importance_weighted_nll(model, image, label, 4000, chunk=1500)
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)


def test_a_perfect_posterior_needs_one_sample():
    model, image, label, _, _, _ = linear_gaussian()
    with torch.no_grad():
        weight = torch.linalg.qr(torch.randn(SIDE * SIDE, 2))[0]  # orthogonal: q can be exact

    class Linear(nn.Module):
        def forward(self, z, condition):
            return (z @ weight.T).unflatten(1, (1, SIDE, SIDE))

    model.decoder = Linear()
    variance = math.exp(-0.5)
    covariance = weight @ weight.T + variance * torch.eye(SIDE * SIDE)
    exact = -MultivariateNormal(torch.zeros(SIDE * SIDE), covariance).log_prob(image.flatten(1))
    posterior = Gaussian(
        image.flatten(1) @ weight / (1 + variance),
        torch.full((4, 2), math.log(variance / (1 + variance))),
    )
    model.posterior = lambda image, features: posterior
    found = cvae.importance_weighted_nll(model, image, label, 1)
    torch.testing.assert_close(found, exact, atol=1e-3, rtol=0)
    assert -cvae.objective(model, image, label).terms["elbo"].item() == pytest.approx(
        exact.mean().item(), abs=0.6
    )


def test_one_sample_is_the_bound_and_more_samples_tighten_it():
    model, image, label, exact, mean, _ = linear_gaussian()
    model.posterior = lambda image, features: Gaussian(mean + 0.2, torch.zeros(4, 2))  # a poor q
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 4, 2, generator=generator)[0]
    ones = cvae.importance_weighted_nll(
        model, image, label, 1, generator=torch.Generator().manual_seed(3)
    )
    features = torch.eye(3)[label]
    q = model.posterior(image, features)
    z = q.at(noise)
    prior, own = Normal(0, 1).log_prob(z).sum(1), Normal(q.mean, 1).log_prob(z).sum(1)
    expected = -(model.log_likelihood(image, label, z, features) + prior - own)
    torch.testing.assert_close(ones, expected)
    # In expectation K = 1 is the bound that the objective reports (with its closed-form KL).
    many = [cvae.importance_weighted_nll(model, image, label, 1).mean() for _ in range(200)]
    elbos = [cvae.objective(model, image, label).terms["elbo"] for _ in range(200)]
    assert torch.stack(many).mean() == pytest.approx(-torch.stack(elbos).mean().item(), rel=0.04)
    bounds = [
        torch.stack(
            [cvae.importance_weighted_nll(model, image, label, k) for _ in range(60)]
        ).mean()
        for k in (1, 4, 16, 64)
    ]
    assert all(more < fewer for fewer, more in pairwise(bounds))
    assert all(bound > exact.mean() - 0.05 for bound in bounds)


def test_chunks_do_not_change_the_estimate():
    model, image, view = model_and_batch(condition="image", learned_prior=True)
    found = [
        cvae.importance_weighted_nll(
            model, image, view, 12, chunk=chunk, generator=torch.Generator().manual_seed(1)
        )
        for chunk in (12, 6)
    ]
    torch.testing.assert_close(*found)


def test_arithmetic_is_float32_under_autocast():
    model, image, label = model_and_batch(learned_prior=True, network="convolutional")
    noise = torch.randn(5, 2)
    exact = cvae.objective(model, image, label, noise=noise)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cvae.objective(model, image, label, noise=noise)
        pictures = cvae.sample(model, label, noise)
    assert loss.total.dtype == pictures.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in loss.terms.values())
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=0.01)
    loss.total.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_swap_interpolate_and_shared_z_agree_with_reconstruct_and_sample():
    model, image, label = model_and_batch(network="convolutional")
    other = (label + 1) % 3
    assert torch.equal(cvae.swap(model, image, label, label), cvae.reconstruct(model, image, label))
    assert not torch.allclose(
        cvae.swap(model, image, label, other), cvae.reconstruct(model, image, label)
    )
    line = cvae.interpolate(model, image, image.flip(0), label, 5)
    assert line.shape == (5, *image.shape)
    torch.testing.assert_close(line[0], cvae.reconstruct(model, image, label))
    torch.testing.assert_close(line[-1], cvae.swap(model, image.flip(0), label, label))
    noise = torch.randn(4, 2)
    grid = cvae.shared_z(model, torch.arange(3), noise)
    assert grid.shape == (4, 3, 1, SIDE, SIDE)
    single = cvae.sample(model, torch.tensor([2]), noise[1:2])
    torch.testing.assert_close(grid[1, 2], single[0])


def test_both_networks_see_the_condition():
    model, image, label = model_and_batch(network="convolutional")
    other = (label + 1) % 3
    codes = [model.posterior(image, model.features(c, 5)).mean for c in (label, other)]
    assert (codes[0] - codes[1]).abs().max() > 1e-4
    noise = torch.zeros(5, 2)
    assert not torch.allclose(cvae.sample(model, label, noise), cvae.sample(model, other, noise))


def test_manifold_holds_equal_probability():
    grid = cvae.manifold(20)
    assert grid.shape == (400, 2)
    share = (grid.abs() <= 0.6745).all(1).float().mean()  # the middle half of each axis
    assert share.item() == pytest.approx(0.25, abs=0.01)
    assert grid[0, 0] < 0 < grid[0, 1]  # upper left
    assert grid[-1, 1] < 0 < grid[-1, 0]  # lower right
    torch.testing.assert_close(grid[:20, 0], Normal(0, 1).icdf((torch.arange(20) + 0.5) / 20))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": -1}, "latent must be at least 0"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"widths": ()}, "widths must be positive"),
        ({"condition_size": 0}, "needs condition_size"),
        ({"condition": "none", "latent": 0}, "without a condition"),
        ({"latent": 0, "learned_prior": True}, "needs a latent"),
        ({"network": "convolutional", "widths": (4, 4, 4, 4, 4)}, "multiples of 16"),
    ],
)
def test_bad_configurations_say_what_to_do(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_bad_conditions_are_refused():
    model, image, _ = model_and_batch()
    with pytest.raises(ValueError, match="give a condition"):
        cvae.objective(model, image, None)
    with pytest.raises(ValueError, match=r"must have shape \(5,\), not \(4,\)"):
        cvae.objective(model, image, torch.zeros(4, dtype=torch.int64))
    model, image, _ = model_and_batch(condition="vector")
    with pytest.raises(ValueError, match="must have shape"):
        cvae.objective(model, image, torch.zeros(5, 2))
    model, image, _ = model_and_batch(condition="none")
    with pytest.raises(ValueError, match="unconditional"):
        cvae.objective(model, image, torch.zeros(5))
    with pytest.raises(ValueError, match="1, 2 or 3"):
        quadrant_mask(8, 8, 4)

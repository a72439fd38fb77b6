"""The conditional WGAN-GP against critics of known gradient, and plain concatenation."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from triptych.systems.wgan import model as wgan
from triptych.systems.wgan.model import COLLAPSED, Wgan, WganConfig, gradient_penalty

SHAPE = (6, 2, 4, 4)
ELEMENTS = math.prod(SHAPE[1:])


def config(**changes):
    settings = {
        "height": 8, "width": 8, "channels": 1, "condition": "label", "condition_size": 3,
        "latent": 5, "generator_widths": (8,), "critic_widths": (6, 8),
    }  # fmt: skip
    return WganConfig(**(settings | changes))


def model_and_batch(batch=6, **changes):
    torch.manual_seed(0)
    settings = config(**changes)
    image = torch.rand(batch, settings.channels, settings.height, settings.width) * 2 - 1
    condition = {
        "none": None,
        "label": torch.arange(batch) % 3,
        "attributes": torch.randint(0, 2, (batch, 3)).float(),
    }[settings.condition]
    return Wgan(settings), image, condition, torch.randn(batch, settings.latent)


def pictures(dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(SHAPE, dtype=dtype), torch.randn(SHAPE, dtype=dtype)


class Linear(nn.Module):
    """w . x: its gradient is w everywhere."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ELEMENTS, dtype=dtype))

    def forward(self, image, condition):
        return image.flatten(1) @ self.weight


@pytest.mark.parametrize("factor", ["uniform", "normal"])
def test_linear_critic_has_the_norm_of_its_weights(factor):
    critic = Linear()
    penalty, norms = gradient_penalty(critic, *pictures(), None, factor=factor)
    norm = critic.weight.detach().norm()
    torch.testing.assert_close(norms, norm.expand(6))
    torch.testing.assert_close(penalty.detach(), ((norm - 1) ** 2).expand(6))
    # d/dw of (|w| - 1)^2, averaged per picture, is 2 (|w| - 1) w / |w|
    penalty.mean().backward()
    torch.testing.assert_close(critic.weight.grad, 2 * (norm - 1) * critic.weight.detach() / norm)


@pytest.mark.parametrize(("factor", "inside"), [("uniform", 1.0), ("normal", 0.3413)])
def test_each_picture_is_mixed_with_its_own_factor(factor, inside):
    """For |x|^2 / 2 the gradient is the mixed picture itself: zeros and ones reveal the factor."""
    torch.manual_seed(0)
    count = 4000
    real, fake = torch.zeros(count, 1, 1, 1), torch.ones(count, 1, 1, 1)
    seen = []

    def critic(image, condition):
        seen.append(image.detach().flatten())
        return image.square().flatten(1).sum(1) / 2

    _, norms = gradient_penalty(critic, real, fake, None, factor=factor)
    (shares,) = seen
    torch.testing.assert_close(norms, shares.abs())
    assert ((shares >= 0) & (shares <= 1)).float().mean().item() == pytest.approx(inside, abs=0.03)
    assert shares.unique().numel() > 0.99 * count
    expected = (0.5, 12**-0.5) if factor == "uniform" else (0.0, 1.0)
    assert (shares.mean().item(), shares.std().item()) == pytest.approx(expected, abs=0.05)


def test_one_factor_for_all_pixels_of_a_picture_and_norm_over_all_axes():
    real, fake = torch.zeros(SHAPE), torch.ones(SHAPE)
    mixed = []

    def critic(image, condition):
        mixed.append(image.detach())
        return image.square().flatten(1).sum(1) / 2

    _, norms = gradient_penalty(critic, real, fake, None)
    assert all(row.unique().numel() == 1 for row in mixed[0])
    torch.testing.assert_close(norms, mixed[0][:, 0, 0, 0] * ELEMENTS**0.5)


def test_zero_gradient_costs_one_and_stays_finite():
    critic = Linear()
    nn.init.zeros_(critic.weight)
    penalty, norms = gradient_penalty(critic, *pictures(), None)
    assert (norms == 0).all()
    assert (penalty == 1).all()
    penalty.sum().backward()
    assert critic.weight.grad.isfinite().all()
    model, image, label, noise = model_and_batch()
    nn.init.zeros_(model.critic.head.weight)
    loss = wgan.critic_objective(model, image, label, noise, gp_weight=7.0)
    loss.total.backward()
    assert loss.terms["c_gp"] == 1
    assert loss.terms["gradient_norm"] == 0
    assert all(p.grad.isfinite().all() for p in model.critic.parameters())


def test_double_backward_in_float64():
    real, fake = pictures(torch.float64)
    first = torch.randn(5, ELEMENTS, dtype=torch.float64, requires_grad=True)
    second = torch.randn(5, dtype=torch.float64, requires_grad=True)

    def penalty(first, second):
        torch.manual_seed(2)  # the same factors at every evaluation

        def critic(image, condition):
            return torch.tanh(image.flatten(1) @ first.T / 4) @ second

        return gradient_penalty(critic, real, fake, None).penalty

    assert torch.autograd.gradcheck(penalty, (first, second))


def test_double_backward_through_the_convolutional_critic():
    """A directional derivative of the whole objective against a central difference."""
    model, image, label, noise = model_and_batch()
    model, image, noise = model.double(), image.double(), noise.double()

    def total():
        torch.manual_seed(5)
        return wgan.critic_objective(model, image, label, noise).total

    weights = list(model.critic.parameters())
    gradients = torch.autograd.grad(total(), weights)
    direction = [torch.randn_like(w) for w in weights]
    promised = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    step = 1e-7

    def moved(by):
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight.add_(d, alpha=by)
        return total().item()

    difference = (moved(step) - moved(-2 * step)) / (2 * step)
    assert difference == pytest.approx(promised, rel=1e-4)


@pytest.mark.parametrize("condition", ["label", "attributes"])
def test_planes_are_those_of_the_lecture(condition):
    model, image, given, _ = model_and_batch(condition=condition, channels=2)
    vector = F.one_hot(given, 3).float() if condition == "label" else given
    x = torch.cat([image, vector[:, :, None, None].expand(-1, -1, 8, 8)], 1)
    for layer in model.critic.layers:
        x = F.leaky_relu(layer(x), 0.2)
    expected = model.critic.head(x.flatten(1))[:, 0]
    torch.testing.assert_close(model.critic(image, given), expected)


def test_projection_adds_an_inner_product():
    model, image, label, _ = model_and_batch(critic="projection")
    critic = model.critic
    features = []
    hook = critic.head.register_forward_hook(lambda m, inputs, out: features.append(inputs[0]))
    scores = critic(image, label)
    hook.remove()
    expected = critic.head(features[0])[:, 0]
    expected = expected + (critic.projection.weight[:, label].T * features[0]).sum(1)
    torch.testing.assert_close(scores, expected)


def test_dense_layers_follow_the_critics_smallest_planes():
    model, image, label, _ = model_and_batch(critic="projection", critic_hidden=(7, 9))
    weights = dict(model.critic.named_parameters())
    x = image
    for name in ("layers.0", "layers.1"):
        x = F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2, padding=1)
        x = torch.where(x > 0, x, 0.2 * x)
    x = x.flatten(1)
    for name in ("dense.0", "dense.1"):
        x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        x = torch.where(x > 0, x, 0.2 * x)
    projected = weights["projection.weight"].T[label]
    expected = x @ weights["head.weight"][0] + weights["head.bias"] + (projected * x).sum(1)
    assert x.shape == (6, 9)
    torch.testing.assert_close(model.critic(image, label), expected)


def test_conditional_norm_scales_and_shifts_each_class_on_its_own():
    """In training, channels of a class are normal numbers times 1 + its scale, plus its shift."""
    torch.manual_seed(0)
    norm = wgan.ConditionalNorm(4, 3)
    nn.init.normal_(norm.change.weight)
    x = torch.randn(3000, 4, 2, 5) * 7 + 3
    label = torch.arange(3000) % 3
    found = norm(x, F.one_hot(label, 3).float())
    assert found.shape == x.shape
    scale, shift = norm.change.weight.T.chunk(2, 1)  # (3, 4) each
    for k in range(3):
        rows = found[label == k].transpose(0, 1).flatten(1)
        torch.testing.assert_close(rows.mean(1), shift[k], rtol=0, atol=0.05)
        torch.testing.assert_close(rows.std(1), (1 + scale[k]).abs(), rtol=0.05, atol=0)
    flat = torch.randn(5, 4)
    assert norm.eval()(flat, torch.zeros(5, 3)).shape == flat.shape


@pytest.mark.parametrize("condition", ["none", "label", "attributes"])
def test_norms_tell_the_generator_its_condition(condition):
    """With the first layer deaf to it, the condition comes through the norms, and only then."""
    for generator in ("input", "norms"):
        model, _, given, noise = model_and_batch(
            condition=condition, generator=generator, generator_hidden=(11,)
        )
        drawer = model.generator.eval()
        kinds = [type(layer) for layer in drawer.layers]
        in_norms = generator == "norms" and condition != "none"
        assert (wgan.ConditionalNorm in kinds) == in_norms
        if condition == "none":
            continue
        nn.init.zeros_(drawer.layers[0].weight[:, noise.shape[1] :])
        other = (given + 1) % 3 if condition == "label" else 1 - given
        assert torch.equal(drawer(noise, given), drawer(noise, other))  # as it starts
        for layer in drawer.layers:
            if isinstance(layer, wgan.ConditionalNorm):
                nn.init.normal_(layer.change.weight)
        assert torch.equal(drawer(noise, given), drawer(noise, other)) == (not in_norms)


def test_objectives_are_what_the_lecture_computes():
    model, image, label, noise = model_and_batch()
    model.eval()
    torch.manual_seed(3)
    loss = wgan.critic_objective(model, image, label, noise, gp_weight=4.0)
    fake = model.generator(noise, label).detach()
    torch.manual_seed(3)
    penalty, norms = gradient_penalty(model.critic, image, fake, label)
    distance = model.critic(fake, label).mean() - model.critic(image, label).mean()
    close = {"rel": 1e-4, "abs": 1e-6}
    assert loss.terms["c_wass_loss"].item() == pytest.approx(distance.item(), **close)
    assert loss.terms["c_gp"].item() == pytest.approx(penalty.mean().item(), **close)
    expected = (distance + 4 * penalty.mean()).item()
    assert loss.terms["c_loss"].item() == pytest.approx(expected, **close)
    assert loss.total.item() / loss.count == pytest.approx(expected, **close)
    assert loss.terms["gradient_norm"].item() == pytest.approx(norms.mean().item(), **close)
    score = wgan.generator_objective(model, label, noise)
    expected = -model.critic(fake, label).mean().item()
    assert score.terms["g_loss"].item() == pytest.approx(expected, **close)


def test_each_objective_moves_its_own_network_only():
    model, image, label, noise = model_and_batch()
    wgan.critic_objective(model, image, label, noise).total.backward()
    assert all(p.grad is not None for p in model.critic.parameters())
    assert all(p.grad is None for p in model.generator.parameters())
    model.zero_grad(set_to_none=True)
    wgan.generator_objective(model, label, noise).total.backward()
    assert all(p.grad is None for p in model.critic.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.generator.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_bfloat16_autocast_keeps_the_penalty_in_float32():
    model, image, label, noise = model_and_batch(
        critic="projection", generator="norms", generator_hidden=(9,), critic_hidden=(7,)
    )
    torch.manual_seed(4)
    exact = wgan.critic_objective(model, image, label, noise)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(4)
        loss = wgan.critic_objective(model, image, label, noise)
        score = wgan.generator_objective(model, label, noise)
    assert loss.total.dtype == score.total.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in loss.terms.values())
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=0.05)
    loss.total.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.critic.parameters())


@pytest.mark.parametrize("critic", ["planes", "projection"])
@pytest.mark.parametrize("condition", ["none", "label", "attributes"])
@pytest.mark.parametrize("side", [8, 28, 64])
def test_every_size_and_condition(side, condition, critic):
    widths = {8: (8,), 28: (8, 8), 64: (8, 8, 8, 8)}[side]
    model, image, given, noise = model_and_batch(
        batch=3, height=side, width=side, channels=3, condition=condition, critic=critic,
        generator_widths=widths, critic_widths=widths,
        generator_hidden=(5,), critic_hidden=(7,), generator="norms",
    )  # fmt: skip
    made = wgan.sample(model.generator.eval(), given, noise)
    assert made.shape == image.shape
    assert made.abs().max() <= 1
    assert wgan.critic_objective(model, image, given, noise).total.isfinite()


def test_the_critic_has_no_batch_statistics():
    """Its score of a picture, and so the penalty, must not depend on the rest of the batch."""
    model, image, label, _ = model_and_batch()
    together = model.critic(image, label)
    alone = torch.cat([model.critic(image[i : i + 1], label[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)


def test_truncation_is_the_truncated_normal():
    noise = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    cut = wgan.truncate(noise, 1.0)
    assert cut.abs().max() <= 1
    # The variance of a standard normal truncated to [-1, 1]
    density = Normal(0.0, 1.0).log_prob(torch.tensor(1.0)).exp()
    mass = math.erf(1 / math.sqrt(2))
    assert cut.var().item() == pytest.approx((1 - 2 * density / mass).item(), rel=0.02)
    assert torch.equal(cut.argsort(1)[:, ::5000], noise.argsort(1)[:, ::5000])
    torch.testing.assert_close(wgan.truncate(noise, 9.0), noise, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="must be positive"):
        wgan.truncate(noise, 0.0)


def test_interpolation_starts_and_ends_at_the_conditions():
    model, _, label, noise = model_and_batch()
    generator, other = model.generator.eval(), (label + 1) % 3
    line = wgan.interpolate_conditions(generator, label, other, noise, 4)
    assert line.shape == (4, 6, 1, 8, 8)
    torch.testing.assert_close(line[0], wgan.sample(generator, label, noise))
    torch.testing.assert_close(line[-1], wgan.sample(generator, other, noise))
    halfway = wgan.interpolate_conditions(generator, label, other, noise, 3)[1]
    assert not torch.allclose(halfway, line[0])


def test_class_spread_is_the_mean_pairwise_distance_and_finds_collapse():
    torch.manual_seed(0)
    images, labels = torch.randn(60, 1, 3, 3), torch.arange(60) % 3
    images[labels == 1] *= 0.3
    images[labels == 2] = images[2].clone()
    found = wgan.class_spread(images, labels, 4)
    for label in (0, 1):
        rows = images[labels == label].flatten(1)
        squares = torch.pdist(rows).square().mean()
        assert found[label].item() == pytest.approx(squares.sqrt().item(), rel=1e-4)
    assert found[2] == 0
    assert found[3].isnan()
    assert found[1] / found[0] < COLLAPSED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": 0}, "latent must be at least 1"),
        ({"condition_size": 0}, "needs condition_size"),
        ({"critic_widths": ()}, "critic_widths must be positive"),
        ({"generator_widths": (4, 4, 4, 4)}, "multiples of 16"),
    ],
)
def test_bad_configurations_say_what_to_do(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_bad_conditions_are_refused():
    model, _, _, noise = model_and_batch()
    with pytest.raises(ValueError, match="give a condition"):
        model.generator(noise, None)
    with pytest.raises(ValueError, match="must have shape"):
        model.generator(noise, torch.zeros(4, dtype=torch.int64))

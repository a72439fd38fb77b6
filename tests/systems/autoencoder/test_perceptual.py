"""The perceptual distance against torchmetrics' LPIPS; the patch discriminator against its
geometry.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS

from triptych.nn.norm import GroupNorm
from triptych.systems.autoencoder.perceptual import (
    PatchDiscriminator,
    PerceptualDistance,
    classifier_maps,
    clip_maps,
    hinge_critic,
    hinge_generator,
)
from triptych.systems.classifier.model import Classifier, ClassifierConfig
from triptych.systems.clip.model import VisionTransformer, VitConfig


def pictures(seed=0, size=64, count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_with_equal_weights(net):
    """The network has random weights, and every channel the weight 1."""
    torch.manual_seed(0)
    peer = _LPIPS(pretrained=False, net=net, pnet_rand=True)
    for name, weight in peer.named_parameters():
        if name.startswith("lin"):
            weight.fill_(1)

    def features(image):
        return list(peer.net(peer.scaling_layer(image)))

    ours = PerceptualDistance(features)
    image, other = pictures(), 0.5 * pictures() + 0.5 * pictures(1)
    theirs = peer(image, other).flatten()
    assert theirs.min() > 1e-4
    torch.testing.assert_close(ours(image, other), theirs, atol=1e-6, rtol=1e-4)


def rows(image):
    """Two maps of closed form: the picture's own channels, and one channel."""
    return [image, image[:, :1, ::2, ::2]]


def test_a_map_counts_the_angle_between_places():
    """2 - 2 cos of the angle, averaged over places; one channel knows its sign only."""
    image, other = pictures(), pictures(1)
    cosine = F.cosine_similarity(image, other, dim=1).mean((1, 2))
    signs = image[:, 0, ::2, ::2].sign() * other[:, 0, ::2, ::2].sign()
    expected = 2 - 2 * cosine + 2 - 2 * signs.mean((1, 2))
    distance = PerceptualDistance(rows)
    torch.testing.assert_close(distance(image, other), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(distance(image, other), distance(other, image))
    assert distance(image, image).tolist() == [0, 0, 0]


def test_gradients_are_finite_where_features_are_zero():
    image = torch.zeros(1, 3, 8, 8, requires_grad=True)
    PerceptualDistance(rows)(image, pictures(count=1, size=8)).sum().backward()
    assert image.grad.isfinite().all()


def test_features_of_our_classifier():
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(32, 32, 3, (10,), widths=(8, 16, 24)))
    features = classifier_maps(model)
    distance = PerceptualDistance(features)
    assert not list(distance.parameters()) and not distance.state_dict()
    image = pictures(size=32).requires_grad_()
    maps = features(image)
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 16, 16), (8, 16, 16), (16, 8, 8), (24, 4, 4)]
    torch.testing.assert_close(  # the last map is what the classifier's own features come from
        F.relu(model.norm(model.blocks(model.stem(image)))).mean((2, 3)), model.features(image)
    )
    torch.testing.assert_close(maps[-1], F.relu(model.blocks(model.stem(image))))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    distance(image, pictures(1, size=32)).sum().backward()
    assert image.grad.abs().max() > 0
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_features_of_a_clip_tower():
    torch.manual_seed(0)
    tower = VisionTransformer(VitConfig(32, 8, 16, 3, 2, 32), 8)
    found = []
    for i in (0, 2):
        tower.transformer.blocks[i].register_forward_hook(lambda m, i, o: found.append(o))
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    maps = clip_maps(tower, [0, 2], mean, std)
    image = pictures(size=32)
    given = maps(image)
    calls = list(found)
    assert [tuple(x.shape) for x in given] == [(3, 16, 4, 4)] * 2
    pixels = (image / 2 + 0.5 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    del found[:]
    tower.transformer(tower.pre_norm(tower.tokens(pixels)))
    for ours, call, expected in zip(given, calls, found, strict=True):
        torch.testing.assert_close(call, expected)
        torch.testing.assert_close(ours[:, :, 1, 2], expected[:, 1 + 4 + 2])  # second row, third
    with pytest.raises(ValueError, match="layers must name blocks from 0 to 2"):
        clip_maps(tower, [3], mean, std)


@pytest.mark.parametrize(("widths", "field"), [((8,), 16), ((8, 16), 34), ((8, 16, 16), 70)])
def test_a_score_sees_a_patch(widths, field):
    """70 pixels for three halvings, as in the paper's appendix; norms, which see the whole picture,
    are taken out for it.
    """
    torch.manual_seed(0)
    model = PatchDiscriminator(3, widths, groups=4)
    for i, layer in enumerate(model.layers):
        if isinstance(layer, GroupNorm):
            model.layers[i] = nn.Identity()
    image = pictures(size=128, count=1).requires_grad_()
    scores = model(image)
    middle = scores.shape[2] // 2
    scores[0, 0, middle, middle].backward()
    rows_seen, columns = image.grad[0].abs().sum(0).nonzero().T
    assert 1 + rows_seen.max() - rows_seen.min() == 1 + columns.max() - columns.min() == field


def test_scores_do_not_depend_on_company():
    torch.manual_seed(0)
    model = PatchDiscriminator(3, (8, 16), groups=4).train()
    image = pictures()
    torch.testing.assert_close(model(image)[1:2], model(image[1:2]))
    assert model(image).shape == (3, 1, 14, 14)


@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 16, 16)])
def test_the_smallest_picture(widths):
    model = PatchDiscriminator(3, widths, groups=4)
    assert model(torch.zeros(1, 3, model.least, model.least)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=f"sides of at least {model.least} pixels"):
        model(torch.zeros(1, 3, model.least - 1, 64))


@pytest.mark.parametrize(
    ("widths", "groups", "message"),
    [((), 4, "must not be empty"), ((8, 10), 4, "multiples of groups"), ((7,), 4, "twice the")],
)
def test_discriminators_that_cannot_be(widths, groups, message):
    with pytest.raises(ValueError, match=message):
        PatchDiscriminator(3, widths, groups)


def test_hinges():
    real = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]).reshape(2, 1, 1, 2)
    fake = torch.tensor([[-3.0, 0.0], [1.0, -0.5]]).reshape(2, 1, 1, 2)
    assert hinge_critic(real, fake).tolist() == [0.5 * (0.25 + 0.5), 0.5 * (1.0 + 1.25)]
    assert hinge_generator(fake).tolist() == [1.5, -0.25]
    assert hinge_critic(real * 0, fake * 0).tolist() == [1, 1]
    assert math.isclose(hinge_critic(real.abs() + 1, -fake.abs() - 1).sum(), 0)

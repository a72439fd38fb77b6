"""The latent U-Net: any size, conditions that matter, zeros at first, impossible settings."""

import pytest
import torch

from triptych.nn.norm import GroupNorm
from triptych.systems.stable_diffusion.unet import LatentUNet, LatentUNetConfig


def config(**changes):
    settings = {
        "in_channels": 3, "out_channels": 2, "widths": (8, 16), "blocks": 1,
        "transformers": (0, 1), "heads": (2, 4), "context": 6, "groups": 4, "added": 5 + 2 * 4,
        "size_waves": 4, "labels": 7,
    }  # fmt: skip
    return LatentUNetConfig(**(settings | changes))


def network(**changes):
    """With weights everywhere, also where training begins with zeros."""
    torch.manual_seed(0)
    model = LatentUNet(config(**changes))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(height=6, width=9):
    torch.manual_seed(1)
    return torch.randn(2, 3, height, width), torch.tensor([1.5, 700.0]), torch.randn(2, 4, 6)


def told():
    random = torch.Generator().manual_seed(2)
    return {
        "vector": torch.randn(2, 5, generator=random),
        "sizes": torch.tensor([[64, 48], [32, 32]]),
        "label": torch.tensor([0, 6]),
    }


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (6, 5), (1, 1), (1, 6)])
def test_any_size(size):
    model, inputs = (
        network(widths=(8, 16, 16), transformers=(0, 1, 2), heads=(2, 2, 4)),
        batch(*size),
    )
    output = model(*inputs, **told())
    assert output.shape == (2, 2, *size)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_it_begins_with_zeros_and_every_part_learns():
    torch.manual_seed(0)
    model = LatentUNet(config())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert torch.equal(model(*batch(), **told()), torch.zeros(2, 2, 6, 9))
    for _ in range(4):  # zeros hide what is before them until they have moved
        optimizer.zero_grad()
        (model(*batch(), **told()) - 1).square().mean().backward()
        optimizer.step()
    # rows of labels that did not occur stay
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


@torch.no_grad()
@pytest.mark.parametrize("name", ["time", "context", "vector", "sizes", "label"])
def test_whatever_it_is_told_matters_to_that_picture_alone(name):
    model, conditions = network(), told()
    x, time, context = batch()
    given = {"time": time, "context": context, **conditions}
    first = model(x, **given)
    given[name] = given[name].clone()
    given[name][1] = given[name][1] - 1
    second = model(x, **given)
    torch.testing.assert_close(second[0], first[0])
    assert (second[1] - first[1]).abs().max() > 1e-4


@torch.no_grad()
def test_a_level_of_context_alone_has_no_path_between_far_pixels():
    """Of a single level without attention between pixels, convolutions reach twelve pixels."""
    settings = {"widths": (8,), "heads": (2,), "transformers": (1,), "only_context": (0,)}
    model = network(**settings)
    model.middle.transformer.proj_out.weight.zero_()  # the middle always looks at everything
    for module in model.modules():
        if isinstance(module, GroupNorm):  # so do group norms
            module.forward = lambda x: x
    x, time, context = batch(1, 30)
    moved = x.clone()
    moved[..., 0] += 5
    change = (model(moved, time, context, **told()) - model(x, time, context, **told())).abs()
    assert change[..., 0].min() > 0
    assert change[..., 20:].max() == 0


def test_sizes_beside_a_vector():
    xl = LatentUNetConfig(added=2816)
    assert xl.sizes(1280) == 6
    assert LatentUNetConfig(added=2560).sizes(1280) == 5
    assert LatentUNetConfig().sizes(0) == 0
    for vector in (1279, 4096):
        with pytest.raises(ValueError, match="it needs another text encoder"):
            xl.sizes(vector)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vector": None}, "vector and embedded sizes have width 8, but this U-Net needs 13"),
        ({"sizes": None}, "have width 5"),
        ({"label": None}, "label is missing in a U-Net with 7 labels"),
        (
            {"context": torch.zeros(2, 4, 5)},
            "needs 3 channels and a context of width 6, not 3 and 5",
        ),
        ({"x": torch.zeros(2, 4, 6, 6)}, "needs 3 channels and a context of width 6, not 4 and 6"),
    ],
)
def test_what_is_missing_or_too_much_is_named(changes, message):
    x, time, context = batch()
    given = {"x": x, "time": time, "context": context, **told()} | changes
    with pytest.raises(ValueError, match=message):
        network()(**given)


def test_a_network_without_labels_and_vector():
    model = network(added=0, labels=0)
    assert model(*batch()).shape == (2, 2, 6, 9)
    with pytest.raises(ValueError, match="label is not expected in a U-Net with 0 labels"):
        model(*batch(), label=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="have width 5, but this U-Net needs 0"):
        model(*batch(), vector=torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 0}, "blocks must be at least 1, not 0"),
        ({"widths": ()}, "one per level"),
        ({"transformers": (1,)}, "transformers must have one number for each of 2 levels"),
        ({"heads": (2, 2, 2)}, "heads must have one number for each of 2 levels"),
        ({"heads": (3, 4)}, "a width of 8 is not divisible by 3 heads"),
        ({"groups": 16}, "a width of 8 is not divisible by 16 groups"),
        ({"only_context": (2,)}, "levels from 0 to 1, not 2"),
        ({"transformers": (-1, 0)}, "at least 0"),
        ({"size_waves": 3}, "size_waves must be even"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@torch.no_grad()
def test_channels_last_gives_the_same():
    model, inputs = network(), batch()
    expected = model(*inputs, **told())
    fast = model.to(memory_format=torch.channels_last)
    wide = inputs[0].to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(wide, *inputs[1:], **told()), expected, atol=1e-5, rtol=1e-5)


def test_autocast_ends_at_the_output():
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*batch(), **told())
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, model(*batch(), **told()), atol=0.2, rtol=0.1)

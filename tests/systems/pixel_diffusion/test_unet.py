"""The U-Net: any size, conditions that matter, zeros at first, and settings that cannot be."""

import pytest
import torch

from triptych.systems.pixel_diffusion.unet import PixelAttention, UNet, UNetConfig


def config(**changes):
    settings = {
        "in_channels": 2, "out_channels": 3, "widths": (8, 16), "attention": (1,), "head_width": 4,
        "time_width": 12, "groups": 4,
    }  # fmt: skip
    return UNetConfig(**(settings | changes))


def network(**changes):
    """With weights everywhere, also where training begins with zeros."""
    torch.manual_seed(0)
    model = UNet(config(**changes))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(height=8, width=8):
    torch.manual_seed(1)
    return torch.randn(2, 2, height, width), torch.tensor([1.5, 700.0])


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (16, 4), (7, 9), (6, 5), (2, 3), (1, 1), (1, 6)])
def test_any_size(patch, size):
    model, (x, time) = network(patch=patch, widths=(8, 16, 16)), batch(*size)
    output = model(x, time)
    assert output.shape == (2, 3, *size)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_patch_is_pixels_as_channels():
    """The same as a network without patches on the rearranged picture."""
    model, (x, time) = network(patch=2), batch(8, 12)
    plain = network(in_channels=8, out_channels=12)
    plain.load_state_dict(model.state_dict())
    squares = x.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, H / 2, W / 2, 2, 2)
    squares = squares.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
    output = plain(squares, time).unflatten(1, (3, 2, 2)).permute(0, 1, 4, 2, 5, 3)
    torch.testing.assert_close(model(x, time), output.flatten(4, 5).flatten(2, 3))


def test_a_side_that_patches_do_not_fill_is_continued():
    """The last row and column are repeated, and cut off again."""
    model, (x, time) = network(patch=4), batch(7, 10)
    larger = torch.cat([x, x[:, :, -1:]], dim=2)
    larger = torch.cat([larger, larger[:, :, :, -1:], larger[:, :, :, -1:]], dim=3)
    torch.testing.assert_close(model(x, time), model(larger, time)[:, :, :7, :10])


def test_it_begins_with_zeros_and_every_part_learns():
    torch.manual_seed(0)
    model, (x, time) = UNet(config()), batch()
    assert torch.equal(model(x, time), torch.zeros(2, 3, 8, 8))
    for part in model.modules():
        if isinstance(part, PixelAttention):
            pixels = torch.randn(1, part.norm.weight.shape[0], 3, 3)
            assert torch.equal(part(pixels), pixels)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):  # zeros before zeros wake one after the other
        (model(x, time) - 1).square().sum().backward()
        sleeping = [name for name, p in model.named_parameters() if p.grad.abs().max() == 0]
        optimizer.step()
        optimizer.zero_grad()
    assert sleeping == []


def test_time_and_vector_reach_the_output():
    model, (x, time) = network(vector=5), batch()
    vector = torch.randn(2, 5, requires_grad=True)
    output = model(x, time, vector)
    assert (model(x, time + 100, vector) - output).abs().max() > 1e-3
    assert (model(x, time, vector + 1) - output).abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(output[0].sum(), vector)
    assert gradient[0].abs().min() > 0
    assert gradient[1].abs().max() == 0  # another picture's condition is nothing to this one


def test_whole_and_fractional_times():
    model, (x, _) = network(), batch()
    whole = model(x, torch.tensor([3, 700]))
    torch.testing.assert_close(whole, model(x, torch.tensor([3.0, 700.0])))
    assert (model(x, torch.tensor([3.5, 700.0]))[0] - whole[0]).abs().max() > 1e-5


@pytest.mark.parametrize(("width", "given"), [(0, True), (5, False)])
def test_a_vector_is_given_exactly_where_it_belongs(width, given):
    x, time = batch()
    with pytest.raises(ValueError, match=f"to a U-Net with vector {width}"):
        network(vector=width)(x, time, torch.randn(2, 5) if given else None)


def test_dropout_only_while_training():
    model, (x, time) = network(dropout=0.5), batch()
    assert not torch.equal(model(x, time), model(x, time))
    model.eval()
    assert torch.equal(model(x, time), model(x, time))


def test_inputs_are_left_alone_and_rows_are_independent():
    model, (x, time) = network(), batch()
    before = x.clone()
    output = model(x, time)
    assert torch.equal(x, before)
    torch.testing.assert_close(model(x[1:], time[1:]), output[1:])
    with torch.no_grad():
        torch.testing.assert_close(model(x, time), output.detach())


def test_autocast_gives_the_type_of_the_picture():
    model, (x, time) = network(), batch()
    exact = model(x, time)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, time)
    assert output.dtype == torch.float32
    assert (output - exact).abs().max() < 0.1 * exact.abs().max()
    output.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, not 0"),
        ({"blocks": 0}, "blocks must be at least 1, not 0"),
        ({"widths": ()}, "widths must be positive numbers, at least one"),
        ({"widths": (8, 0)}, "widths must be positive numbers"),
        ({"widths": (8, 18)}, "multiples of groups, 4, for .* 18 is not"),
        ({"attention": (2,)}, "levels from 0 to 1, one per width, not 2"),
        ({"attention": (-1,)}, "attention must be at least 0, not -1"),
        ({"head_width": 3}, "multiples of head_width, 3: 16 is not"),
        ({"widths": (20, 16), "attention": (0,), "head_width": 8}, "head_width, 8: 20 is not"),
        ({"vector": -1}, "vector must be at least 0, not -1"),
        ({"patch": 3}, "patch must be 1, 2 or 4, not 3"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)

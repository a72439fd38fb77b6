"""Eight-bit layers against the same sums of whole numbers in double precision."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from triptych.backends import int8 as module
from triptych.backends.int8 import Int8Conv2d, Int8Linear, int8, quantize_input, quantize_weight
from triptych.nn.circular import circular
from triptych.systems.stable_diffusion.unet import LatentUNet, LatentUNetConfig

needs_vnni = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="this CPU does not multiply bytes exactly"
)


def noise_ratio(found, exact):
    return 10 * torch.log10(exact.square().mean() / (found - exact).square().mean())


def test_weights_are_the_nearest_of_255_numbers_a_row():
    torch.manual_seed(0)
    weight = torch.randn(5, 7, 3, 3) * torch.tensor([1e-6, 1.0, 0.0, 30.0, 2.0]).view(-1, 1, 1, 1)
    whole, scale = quantize_weight(weight)
    assert whole.dtype == torch.int8 and whole.abs().max() == 127
    error = (weight - whole * scale.view(-1, 1, 1, 1)).abs().amax((1, 2, 3))
    assert (error <= scale / 2 * 1.0001).all()
    assert not whole[2].any()


@pytest.mark.parametrize("move", [0.0, 3.0, -50.0])
def test_inputs_are_the_nearest_of_255_numbers_and_zero_is_one_of_them(move):
    torch.manual_seed(0)
    x = torch.randn(4, 50) * 3 + move
    x[0, 0] = 0
    whole, scale, zero = quantize_input(x)
    assert whole.dtype == torch.uint8 and 0 <= zero <= 255
    assert ((whole.float() - zero) * scale - x).abs().max() <= scale * 1.001
    assert whole[0, 0] == zero


def test_nothing_is_nothing_and_what_is_not_finite_is_said():
    whole, _, zero = quantize_input(torch.zeros(3, 3))
    assert (whole == zero).all()
    with pytest.raises(FloatingPointError, match="finite"):
        quantize_input(torch.tensor([1.0, float("nan")]))
    with pytest.raises(FloatingPointError, match="finite"):
        quantize_input(torch.tensor([1.0, float("inf")]))


@needs_vnni
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_its_sum_of_whole_numbers(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 40, bias=bias), torch.randn(3, 9, 48) + 0.3
    with torch.inference_mode():
        found = Int8Linear(layer)(x)
        weight, by = quantize_weight(layer.weight)
        for picture, output in zip(x, found, strict=True):
            whole, scale, zero = quantize_input(picture)
            sums = (whole.double() - zero) @ weight.double().T
            exact = sums * scale * by + (layer.bias if bias else 0)
            torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)
        assert torch.equal(Int8Linear(layer)(x[1:2]), found[1:2])  # the same in any company
    assert noise_ratio(found, layer(x)) > 35


@needs_vnni
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("edges", ["zeros", "circular"])
def test_a_convolution_is_its_sum_of_whole_numbers(stride, edges):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(33, 40, 3, stride=stride, padding=1), torch.randn(2, 33, 9, 6) + 0.3
    with torch.inference_mode(), circular(layer, edges == "circular"):
        found = Int8Conv2d(layer)(x)
        weight, by = quantize_weight(layer.weight)
        for picture, output in zip(x[:, None], found, strict=True):
            whole, scale, zero = quantize_input(picture)
            wide = whole.double() - zero
            wide = F.pad(wide, (1, 1, 1, 1), "circular" if edges == "circular" else "constant")
            sums = F.conv2d(wide, weight.double(), stride=stride)[0]
            exact = sums * scale * by[:, None, None] + layer.bias[:, None, None]
            torch.testing.assert_close(output.double(), exact, rtol=1e-5, atol=1e-5)
        assert torch.equal(Int8Conv2d(layer)(x[1:]), found[1:])
        assert noise_ratio(found, layer(x)) > 35


def unet() -> LatentUNet:
    torch.manual_seed(0)
    network = LatentUNet(LatentUNetConfig(4, 4, (64, 128), 1, (1, 1), 1, (2, 4), 64))
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.03)
    return network.eval()


def asked(network, rows=slice(None)):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 16, 12, generator=generator)[rows]
    context = torch.randn(3, 7, 64, generator=generator)[rows]
    return network(x, torch.full((len(x),), 500.0), context)


@needs_vnni
def test_a_network_is_close_inside_and_to_the_bit_itself_outside():
    network = unet()
    layers = dict(network.named_modules())
    with torch.inference_mode():
        before = asked(network)
        with int8(network):
            kinds = [type(part) for part in network.modules()]
            assert kinds.count(Int8Conv2d) > 8 and kinds.count(Int8Linear) > 8
            inside = asked(network)
            # what rounds otherwise in other company, in the layers between, can tip a byte over
            assert noise_ratio(asked(network, slice(1, 2)), inside[1:2]) > 30
        assert dict(network.named_modules()) == layers
        assert torch.equal(asked(network), before)
    assert 30 < noise_ratio(inside, before) < 60


@needs_vnni
def test_weights_are_those_on_the_way_in_and_errors_leave_nothing_behind():
    network = unet()
    kept = network.middle.first.conv1
    with torch.no_grad():
        kept.weight += 1
    with pytest.raises(KeyboardInterrupt), int8(network):
        changed = network.middle.first.conv1
        assert torch.equal(changed.scale, quantize_weight(kept.weight)[1])
        raise KeyboardInterrupt
    assert network.middle.first.conv1 is kept
    with int8(network, False):
        assert not any(isinstance(part, Int8Conv2d | Int8Linear) for part in network.modules())


def test_a_cpu_that_cannot_is_told_so(monkeypatch):
    monkeypatch.setattr(module.torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match="VNNI"), int8(unet()):
        pass
    with pytest.raises(ValueError, match="needs a CPU"), int8(unet().to("meta")):
        pass

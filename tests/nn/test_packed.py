"""Products with packed weights against float64 products with the weights that the bits mean."""

import gguf
import numpy as np
import pytest
import torch

from triptych.nn import packed
from triptych.nn.one_row import multiply
from triptych.weights.files.gguf_blocks import COARSE, FOUR_BITS, read_groups, unpack


def _of(weight: torch.Tensor, pack):
    return pack(*weight.shape, lambda part: weight[part])


def _unpacked(product) -> torch.Tensor:
    return torch.cat(list(product.unpack()), 1).T


def _meant(product) -> torch.Tensor:
    """The weights that the bits of an int8 product mean, in float64."""
    if isinstance(product, packed.Int8Rows):
        return product.weight.double() * product.scale.double()[:, None]
    panel = product.panel
    numbers = product.table[:, panel:].contiguous().view(torch.float32).double()
    weights = product.table[:, :panel].double() * numbers[:, :1] + numbers[:, 1:]
    panels = weights.view(product.panels, product.inputs, panel)
    return panels.transpose(1, 2).reshape(-1, product.inputs)


@pytest.mark.parametrize("pack", [packed.pack_int8, packed.pack_int8_rows, packed.pack_int4])
def test_packed_weights_are_not_saved(pack):
    """They are made when a model is loaded; files have its own."""
    assert _of(torch.randn(128, 96), pack).state_dict() == {}


@pytest.mark.parametrize("outputs", [64, 200, 640])
@pytest.mark.parametrize("rows", [1, 3, 65])
@pytest.mark.parametrize("pack", [packed.pack_int8, packed.pack_int8_rows])
def test_int8_is_the_product_of_its_weights(pack, outputs, rows):
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, 96), torch.randn(rows, 96)
    product = _of(weight, pack)
    layer = packed.PackedLinear([product])
    assert (product.few < rows) == (rows == 65)  # so both ways of multiplying are seen
    meant = _meant(product)
    exact, narrow = x.double(), x.bfloat16().double()
    if pack is packed.pack_int8:
        # half a step of each input of a panel, and its sums are in float32
        panels = weight.view(product.panels, -1, 96)
        step = (panels.amax(1) - panels.amin(1))[:, None] / 255
        assert ((meant.view(panels.shape) - panels).abs() <= step * 0.51).all()
        atol = 1e-5 if rows <= product.few else 8e-2
        given = exact if rows <= product.few else narrow
    else:
        # half a step of the row, whose scale is rounded to bfloat16
        largest = weight.abs().amax(1, keepdim=True)
        assert ((meant - weight).abs() <= largest / 127 * 0.76).all()
        atol, given = (1e-2 if rows <= product.few else 8e-2), narrow
    torch.testing.assert_close(_unpacked(product).double(), meant, atol=0, rtol=2**-8)
    rtol = 1e-5 if atol == 1e-5 else 2**-7
    torch.testing.assert_close(layer(x).double(), given @ meant.T, atol=atol, rtol=rtol)


@pytest.mark.parametrize("pack", [packed.pack_int8, packed.pack_int8_rows, packed.pack_int4])
def test_one_row_is_the_same_with_fewer_calls(pack):
    weight, x = torch.randn(640, 96), torch.randn(96)
    product = _of(weight, pack)
    assert torch.equal(product.multiply_one(x), product.multiply(x[None])[0])


def test_without_kernels_for_bags_rows_have_scales(monkeypatch):
    monkeypatch.setattr(packed, "_has_bags", lambda: False)
    assert isinstance(_of(torch.randn(64, 32), packed.pack_int8), packed.Int8Rows)


@pytest.mark.parametrize("rows", [1, 3, 65])
def test_four_bits_are_the_product_of_their_weights(rows):
    """Also unpacked, wherever this processor keeps a weight."""
    torch.manual_seed(0)
    weight, x = torch.randn(128, 96), torch.randn(rows, 96)
    groups = packed.nearest_groups(weight)
    layer = packed.PackedLinear([packed.pack_groups(128, 96, lambda part: packed.Groups(
        *(x[part] for x in groups)))])  # fmt: skip
    meant = (groups.integers.float().view(128, 3, 32) - 8) * groups.scale[..., None]
    meant = (meant + groups.centre[..., None]).flatten(1)
    torch.testing.assert_close(_unpacked(layer.products[0]).float(), meant, atol=1e-6, rtol=2**-8)
    span = weight.view(128, 3, 32).amax(2) - weight.view(128, 3, 32).amin(2)
    assert ((meant - weight).view(128, 3, 32).abs().amax(2) <= span / 15 * 0.6 + 2e-2).all()
    atol = 3e-2 if rows <= packed.Int4.few else 1.2e-1  # many rows: of weights in bfloat16, too
    torch.testing.assert_close(layer(x), x.bfloat16().float() @ meant.T, atol=atol, rtol=2**-7)


@pytest.mark.parametrize("outputs", [64, 192])
def test_four_bits_unpack_alike_however_a_processor_packs(outputs, monkeypatch):
    product = _of(torch.randn(outputs, 96), packed.pack_int4)
    usual = _unpacked(product)
    monkeypatch.setattr(packed, "_packs_by_input", lambda: False)
    assert torch.equal(_unpacked(product), usual)


def test_weights_are_unpacked_a_part_at_a_time(monkeypatch):
    """No more than what a cache holds, for a prompt as for anything else."""
    monkeypatch.setattr(packed, "AT_ONCE", 64 * 128)
    for pack in (packed.pack_int8, packed.pack_int8_rows, packed.pack_int4):
        product = _of(torch.randn(1280, 128), pack)
        parts = [part.shape for part in product.unpack()]
        assert len(parts) >= 4 and all(inputs == 128 for inputs, _ in parts)


def test_layers_of_one_input_are_one():
    """Neighbours of one kind become one product."""
    weights = [torch.randn(64, 64) for _ in range(6)]
    kinds = (packed.pack_int8, packed.pack_int8_rows, packed.pack_int4)
    kinds = [kind for kind in kinds for _ in range(2)]
    parts = [_of(weight, pack) for weight, pack in zip(weights, kinds, strict=True)]
    x = torch.randn(2, 5, 64)
    alone = torch.cat([packed.PackedLinear([part])(x) for part in parts], -1)
    joined = packed.join(parts)
    assert len(joined.products) == 3 and torch.equal(joined(x), alone)


@pytest.mark.parametrize("form", [*FOUR_BITS])
def test_four_bits_of_a_file_are_taken_over(form):
    rng = np.random.default_rng(0)
    if form == "Q4_K":
        data = rng.integers(0, 256, (3, 144), dtype=np.uint8)
        data[:, :4] = np.array([0.01, 0.02], np.float16).view(np.uint8)
    else:
        kind = gguf.GGMLQuantizationType[form]
        data = gguf.quantize(rng.standard_normal((3, 256), np.float32), kind)
    rows = torch.from_numpy(data)
    weights = unpack(rows.flatten(), form, (3, 256))
    integers, scale, centre = read_groups(rows, form, FOUR_BITS[form])
    found = (integers.float().view(3, 8, 32) - 8) * scale[..., None] + centre[..., None]
    torch.testing.assert_close(found.flatten(1), weights, atol=1e-5, rtol=1e-5)


def test_q8_0_has_four_bits_of_its_own():
    """Off by at most half of their step."""
    values = np.random.default_rng(0).standard_normal((3, 256), np.float32)
    rows = torch.from_numpy(gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0))
    weights = unpack(rows.flatten(), "Q8_0", (3, 256)).view(3, 8, 32)
    integers, scale, centre = read_groups(rows, "Q8_0", COARSE["Q8_0"])
    found = (integers.float().view(3, 8, 32) - 8) * scale[..., None] + centre[..., None]
    assert ((found - weights).abs() <= scale[..., None] * 0.4688 + 1e-6).all()  # 7.5 / 16


@pytest.mark.parametrize("size", [10, 1000, 64 * 400])
def test_the_best_are_those_of_topk(size):
    for values in (torch.randn(size), torch.arange(float(size)), -torch.arange(float(size))):
        expected = values.topk(min(300, size)).values
        found = values[packed.find_best(values, 300)].sort(descending=True).values
        assert torch.equal(found, expected)


def test_the_best_of_a_screened_vocabulary_are_exact():
    """And the others are as four bits have them."""
    torch.manual_seed(0)
    weight, x = torch.randn(64 * 300, 64) * 0.125, torch.randn(2, 1, 64)
    coarse = _of(weight, packed.pack_int4)
    screened = packed.Screened(coarse, packed.Table(weight))
    exact, found = x @ weight.T, screened(x)
    order = exact[:, 0].argsort(descending=True)[:, :100]
    best = exact[:, 0].gather(1, order)
    torch.testing.assert_close(found[:, 0].gather(1, order), best, atol=1e-5, rtol=1e-5)
    errors = (found - exact).abs()
    assert 0.01 < errors.mean() < 0.1 and (errors < 1e-5).sum() < 1100
    # so the probabilities keep their sum, and the likelihood of a token is nearly unchanged
    assert (found.logsumexp(-1) - exact.logsumexp(-1)).abs().max() < 0.01


def test_one_row_in_bfloat16_is_the_product():
    torch.manual_seed(0)
    weight, x = torch.randn(300, 256).bfloat16(), torch.randn(1, 1, 256).bfloat16()
    exact = x.double() @ weight.double().T
    with torch.inference_mode():
        found = multiply(x, weight)
    assert found.shape == (1, 1, 300)
    torch.testing.assert_close(found.double(), exact, atol=1e-2, rtol=2**-7)

"""Rules that rename, split and drop: both ways, and every way to be wrong."""

import pytest
import torch
from torch import nn

from triptych.weights.keymap import convert, drop, export, fill, rename, split, under

BLOCK = [
    split("qkv.weight", "q.weight", "k.weight", "v.weight"),
    split("kv.bias", "k.bias", "v.bias", sizes=(2, 1)),
    rename("out.0.weight", "out.weight"),
]
RULES = [
    *under(BLOCK, "layers.{}.blocks.{}.", "levels.{}.{}."),
    rename("mid.0.weight", "first.weight"),
    rename("mid.1.weight", "second.weight"),
    rename("0.scale", "scale"),
    drop("positions"),
]


def published():
    torch.manual_seed(0)
    state = {"mid.0.weight": torch.randn(2), "mid.1.weight": torch.randn(3)}
    state |= {"0.scale": torch.randn(())}
    for place in ("layers.0.blocks.1.", "layers.12.blocks.0."):
        state[place + "qkv.weight"] = torch.randn(6, 2)
        state[place + "kv.bias"] = torch.randn(3)
        state[place + "out.0.weight"] = torch.randn(2, 2)
    return state


def test_convert_renames_splits_and_drops():
    state = published()
    converted = convert(state | {"positions": torch.arange(3)}, RULES)
    for name in ("first", "second"):
        theirs = {"first": "mid.0.weight", "second": "mid.1.weight"}[name]
        assert torch.equal(converted[f"{name}.weight"], state[theirs])
    whole = state["layers.12.blocks.0.qkv.weight"]
    assert torch.equal(converted["levels.12.0.k.weight"], whole[2:4])
    assert torch.equal(converted["levels.0.1.v.bias"], state["layers.0.blocks.1.kv.bias"][2:])
    assert torch.equal(converted["levels.0.1.out.weight"], state["layers.0.blocks.1.out.0.weight"])
    assert "positions" not in converted


def test_export_undoes_convert():
    state = published()
    restored = export(convert(state, RULES), RULES)
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "name", ["mid.2.weight", "layers.0.blocks.1.out.1.weight", "layers.0.qkv.weight", "extra", ""]
)
def test_a_tensor_that_no_rule_claims(name):
    with pytest.raises(ValueError, match=f"no rule claims {name}"):
        convert(published() | {name: torch.zeros(1)}, RULES)
    with pytest.raises(ValueError, match="no rule claims levels"):
        export({"levels.3.q.weight": torch.zeros(1)}, RULES)


def test_two_rules_for_one_tensor():
    state = {"a.0": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"two rules claim a\.\{\}"):
        convert(state, [rename("a.{}", "b.{}"), rename("a.{}", "c.{}")])
    with pytest.raises(ValueError, match=r"two rules claim a\.0: a\.\{\} and a\.0"):
        convert(state, [rename("a.{}", "b.{}"), rename("a.0", "c")])
    with pytest.raises(ValueError, match="two rules claim b"):
        export({"b": torch.zeros(1)}, [rename("a", "b"), rename("c", "b")])


def test_two_tensors_for_one_name():
    rules = [rename("a.{}", "b.{}"), rename("c.{}", "b.0")]
    with pytest.raises(ValueError, match=r"two tensors become b\.0; the second of them is c\.5"):
        convert({"a.0": torch.zeros(1), "c.5": torch.zeros(1)}, rules)
    ours = [rename("b.0", "a.{}"), rename("b.0", "c")]
    with pytest.raises(ValueError, match=r"two tensors become b\.0; the second of them is c"):
        export({"a.1": torch.zeros(1), "c": torch.zeros(1)}, ours)


@pytest.mark.parametrize("rows", [5, 7])
def test_a_stack_of_another_size(rows):
    with pytest.raises(ValueError, match=f"layers.0.blocks.0.qkv.weight has {rows} rows"):
        convert({"layers.0.blocks.0.qkv.weight": torch.zeros(rows, 2)}, RULES)
    with pytest.raises(ValueError, match=r"kv.bias has 4 rows, which are not 2 parts: \(2, 1\)"):
        convert({"layers.0.blocks.0.kv.bias": torch.zeros(4)}, RULES)


def test_a_stack_without_one_of_its_parts():
    state = convert(published(), RULES)
    del state["levels.0.1.k.weight"]
    with pytest.raises(ValueError, match=r"is a stack of .* no \['levels.0.1.k.weight'\]"):
        export(state, RULES)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fill_gives_every_parameter_its_tensor(device):
    with torch.device(device):
        module = nn.Linear(2, 3)
    state = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
    fill(module, state)
    assert all(torch.equal(module.state_dict()[name], state[name]) for name in state)


def test_fill_says_all_that_does_not_fit():
    with pytest.raises(ValueError) as error:
        fill(nn.Linear(2, 3), {"weight": torch.randn(2, 2), "scale": torch.zeros(1)})
    for fault in ("there is no bias", "scale is unknown", "weight is (2, 2), not (3, 2)"):
        assert fault in str(error.value)
    with pytest.raises(ValueError, match="and 3 more"):
        fill(nn.Linear(2, 3), {f"extra.{i}": torch.zeros(1) for i in range(6)})

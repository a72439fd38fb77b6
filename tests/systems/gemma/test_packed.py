"""A Gemma in few bits against the same in float32."""

import math

import pytest
import torch

from tests.systems.gemma.tiny_gguf import write_gguf
from triptych.loading import load
from triptych.nn.packed import FEW, Int4, Int8
from triptych.requests import Chat, Decoding
from triptych.running import run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    found = tmp_path_factory.mktemp("packed") / "small.gguf"
    write_gguf(found)
    return f"{found}"


@pytest.fixture(scope="module")
def exact(path):
    return load(path, dtype="float32").model


TOKENS = torch.tensor([[2, *range(20, 60)]])


@pytest.mark.parametrize(("dtype", "bound"), [("int8", 0.12), ("int4", 0.7)])
def test_logits_are_nearly_those_of_float32(path, exact, dtype, bound):
    """Error by signal, at once, and one token after another beyond the window of 8. Random weights
    are harder than real ones, of which `test_real.py` has the perplexity: bfloat16 has 0.05 here.
    """
    model = load(path, dtype=dtype).model
    with torch.inference_mode():
        logits = exact(TOKENS)
        cache = model.new_cache()
        begun = model(TOKENS[:, :20], cache)
        rest = [model(token[None, None], cache) for token in TOKENS[0, 20:]]
        stepped, whole = torch.cat([begun, *rest], 1), model(TOKENS)
    for found in (stepped, whole):
        error = (found - logits).norm() / logits.norm()
        assert error < bound and found.dtype == torch.float32
    assert FEW < 20  # so both ways of multiplying are seen
    assert (stepped - whole).norm() / whole.norm() < 0.06  # rounding to bfloat16


def test_weights_stay_in_the_bits_of_the_file(path):
    """Q4_0 and Q4_1 as they are, and with int8 the others in bytes."""
    kinds = {name: type(x) for name, x in load(path, dtype="int8").model.named_modules()}
    assert kinds["blocks.0.attn.joined.products.0"] is Int8  # Q5_0
    four = load(path, dtype="int4").model
    assert {type(x) for x in four.blocks.modules()} & {Int8, Int4} == {Int4, Int8}


def test_a_chat_of_a_gguf_file_is_packed_unless_a_precision_is_given(path, exact):
    def tokens(precision: str) -> tuple[int, ...]:
        decoding = Decoding(max_tokens=3, temperature=0)
        request = Chat(raw="a red circle", model=path, decoding=decoding, precision=precision)
        *_, said = run(request)
        assert all(math.isfinite(x) for x in said.log_probs)
        return said.log_probs

    assert tokens("auto") == tokens("int8") != tokens("float32")


def test_packed_weights_have_no_other_precision(path):
    loaded = load(path, dtype="int8")
    with pytest.raises(ValueError, match="load it again with another dtype"):
        loaded.to(precision="float32")


def test_other_models_are_not_packed():
    with pytest.raises(ValueError, match="int8 is for published language models"):
        load("scenes-clip", dtype="int8")

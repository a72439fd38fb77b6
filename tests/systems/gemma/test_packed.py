"""A Gemma in few bits against the same in float32."""

import math

import pytest
import torch

from tests.parity.reference import randomised
from tests.systems.gemma.tiny_gguf import write_gguf
from triptych.loading import load
from triptych.nn.packed import Int4, Int8
from triptych.requests import Chat, Decoding
from triptych.running import run
from triptych.systems.gemma.model import Gemma, GemmaConfig
from triptych.systems.gemma.pack import finish, pack_state
from triptych.weights.keymap import fill


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
def test_logits_are_nearly_those_of_float32(path, exact, dtype, bound, monkeypatch):
    """Error by signal, at once, and one token after another beyond the window of 8. Random weights
    are harder than real ones, of which `test_real.py` has the perplexity: bfloat16 has 0.05 here.
    """
    for kind in (Int4, Int8):  # so that both ways of multiplying are seen
        monkeypatch.setattr(kind, "few", 8)
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


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_heads": 2},
        {"post_norms": False, "head_norms": False, "window": None, "pattern": 1},
        {"head_norms": False, "attention_cap": 50.0, "logit_cap": 30.0, "pattern": 2},
    ],
    ids=["3", "1", "2"],
)
def test_one_token_is_what_the_blocks_compute(fields):
    """With all weights in bytes, so that nothing is rounded to bfloat16; the window is crossed."""
    config = GemmaConfig(90, 48, 3, 4, **({"kv_heads": 1, "window": 6} | fields), head_width=16,
        hidden=80, context=64)  # fmt: skip
    model = randomised(Gemma(config), 0.3)
    fill(model, pack_state(model, model.state_dict(), 8))
    finish(model)
    quick, tokens = model.one_token, torch.randint(0, 90, (1, 14))
    assert quick is not None
    found = []
    for way in (quick, None):
        model.one_token = way
        with torch.inference_mode():
            cache = model.new_cache()
            model(tokens[:, :3], cache)
            found.append(torch.cat([model(tokens[:, i : i + 1], cache) for i in range(3, 14)], 1))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-5)

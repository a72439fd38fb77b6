"""Gemma against transformers with the same random weights, and what its configuration means."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaForCausalLM,
)
from transformers import GemmaConfig as TheirGemma1

from tests.parity.reference import randomised
from triptych.nn.attention import attend
from triptych.systems.gemma import model
from triptych.systems.gemma.model import Gemma, GemmaConfig, objective, pad_left
from triptych.systems.gemma.published import from_transformers, rules, to_transformers
from triptych.weights.keymap import convert, export, fill

SIZES = {
    "vocab_size": 99, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 7,
    "num_attention_heads": 4, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
SCALED = {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}
THEIRS = {
    "1": (GemmaForCausalLM, TheirGemma1(**SIZES, num_key_value_heads=1)),
    "1-many": (GemmaForCausalLM, TheirGemma1(**SIZES, num_key_value_heads=4, hidden_act="gelu")),
    "2": (
        Gemma2ForCausalLM,
        Gemma2Config(
            **SIZES, num_key_value_heads=2, sliding_window=5, query_pre_attn_scalar=6,
            attn_logit_softcapping=2.0, final_logit_softcapping=1.5, tie_word_embeddings=False,
        ),
    ),
    "3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **SIZES, num_key_value_heads=2, sliding_window=5, query_pre_attn_scalar=6,
            rope_parameters=SCALED,
        ),
    ),
    "3-plain": (
        Gemma3ForCausalLM, Gemma3TextConfig(**SIZES, num_key_value_heads=1, sliding_window=3),
    ),
}  # fmt: skip


def both(name):
    """transformers' model and ours, with the same weights."""
    kind, config = THEIRS[name]
    config._attn_implementation = "eager"
    theirs = randomised(kind(config))
    settings = from_transformers(config.to_dict())
    ours = Gemma(settings)
    fill(ours, convert(dict(theirs.state_dict()), rules(settings)))
    return theirs, ours.eval()


def texts(*lengths):
    torch.manual_seed(1)
    return [torch.randint(5, 99, (length,)).tolist() for length in lengths]


@pytest.mark.parametrize("name", THEIRS)
def test_logits_are_those_of_transformers(name):
    """The whole text at once, and in parts with a cache; twenty tokens cross every window."""
    theirs, ours = both(name)
    tokens = torch.tensor(texts(20, 20))
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=0)
        cache, parts = ours.new_cache(), []
        for new in (4, 1, 1, 9, 1, 3, 1):
            parts.append(ours(tokens[:, cache.count : cache.count + new], cache))
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["1", "2", "3"])
def test_a_padded_batch_gives_transformers_logits_of_each_text(name):
    """Of texts of 3, 14 and 8 tokens, alone there, in one batch here, then four more tokens."""
    theirs, ours = both(name)
    rows = texts(7, 18, 12)
    tokens, pads = pad_left([row[:-4] for row in rows])
    cache = ours.new_cache(pads)
    with torch.no_grad():
        parts = [ours(tokens, cache)]
        for i in range(4, 0, -1):
            parts.append(ours(torch.tensor([[row[-i]] for row in rows]), cache))
        logits = torch.cat(parts, 1)
        for row, text in enumerate(rows):
            expected = theirs(torch.tensor([text])).logits[0]
            torch.testing.assert_close(logits[row, pads[row] :], expected, atol=1e-4, rtol=0)
        at_once = ours.logits(ours.states(ours.embed(tokens), pads=pads))
    torch.testing.assert_close(parts[0], at_once)


@pytest.mark.parametrize("name", ["1", "3"])
def test_bfloat16_is_that_of_transformers(name):
    """Also the factor of the embeddings, which is rounded to bfloat16 there."""
    theirs, ours = both(name)
    tokens = torch.tensor(texts(20))
    with torch.no_grad():
        exact = ours(tokens)
        expected, ours_half = theirs.bfloat16()(tokens).logits, ours.bfloat16()(tokens)
    error = (expected.float() - exact).abs().mean()
    assert (ours_half.float() - expected.float()).abs().mean() < error
    embedded = theirs.model.embed_tokens(tokens)
    assert torch.equal(ours.embed(tokens), embedded)


def test_the_loss_is_the_mean_over_counted_tokens():
    theirs, ours = both("3")
    tokens = torch.tensor(texts(9, 9))
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[1, 5:] = False
    labels = tokens.masked_fill(~counted, -100)
    with torch.no_grad():
        loss = objective(ours, tokens, counted)
        assert loss.count == 8 + 4
        torch.testing.assert_close(loss.total / loss.count, theirs(tokens, labels=labels).loss)


def test_gradients_reach_every_weight():
    ours = Gemma(from_transformers(THEIRS["3"][1].to_dict()))
    objective(ours, torch.tensor(texts(9))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ours.parameters())


@pytest.mark.parametrize("name", ["1", "3"])
def test_training_in_bfloat16_attends_in_bfloat16(name, monkeypatch):
    """Cosines in float32 would turn queries and keys into float32, and attention would be slow."""
    _, ours = both(name)
    seen = []

    def attend_and_note(q, k, v, *rest, **more):
        seen.extend([q.dtype, k.dtype, v.dtype])
        return attend(q, k, v, *rest, **more)

    monkeypatch.setattr(model, "attend", attend_and_note)
    with torch.autocast("cpu", torch.bfloat16):
        ours(torch.randint(1, 99, (2, 7)))
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("name", THEIRS)
def test_weights_and_configuration_go_back_to_transformers(name):
    kind, config = THEIRS[name]
    theirs, ours = both(name)
    back = export(dict(ours.state_dict()), rules(ours.config))
    stored = to_transformers(ours.config)
    again = kind(type(config)(**stored))
    missing = again.load_state_dict(back, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if ours.config.tied else [])
    again.tie_weights()
    again.set_attn_implementation("eager")
    tokens = torch.tensor(texts(12))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(tokens).logits, theirs(tokens).logits)


def test_generations_differ_by_values_only():
    sizes = {"vocabulary": 9, "width": 8, "layers": 12, "heads": 2, "head_width": 4, "hidden": 8}
    third = GemmaConfig(**sizes)
    assert third.windows == (512,) * 5 + (None,) + (512,) * 5 + (None,)
    assert replace(third, pattern=2, window=4).windows == (4, None) * 6
    assert replace(third, window=None).windows == (None,) * 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3, "kv_heads": 2}, "do not divide"),
        ({"head_width": 3}, "must be even"),
        ({"window": 0}, "window must be at least 1"),
        ({"attention_cap": 0.0}, "attention_cap must be"),
        ({"base": 0.0}, "base must be"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GemmaConfig(**fields)

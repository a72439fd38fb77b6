"""PaliGemma against transformers with the same random weights; who sees whom; the loss."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PaliGemmaConfig as TheirConfig
from transformers import PaliGemmaForConditionalGeneration

from tests.parity.reference import randomised
from triptych.systems.paligemma.model import PaliGemma, objective
from triptych.systems.paligemma.published import (
    from_transformers,
    rename_older,
    rules,
    to_transformers,
)
from triptych.weights.keymap import convert, export, fill
from triptych.weights.skeleton import skeleton

VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7,
    "vision_use_head": False,
}  # fmt: skip
TEXT = {
    "vocab_size": 99, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
SECOND = {"model_type": "gemma2", "sliding_window": 9, "query_pre_attn_scalar": 6}
CONFIGS = {"1": TEXT | {"model_type": "gemma"}, "2": TEXT | SECOND}
IMAGE = 99
PLACES = 16


def both(name):
    """transformers' model and ours, with the same weights."""
    config = TheirConfig(
        vision_config=VISION, text_config=CONFIGS[name], projection_dim=24, hidden_size=24,
        image_token_index=IMAGE, vocab_size=99,
    )  # fmt: skip
    config._attn_implementation = "eager"
    theirs = randomised(PaliGemmaForConditionalGeneration(config))
    settings = from_transformers(config.to_dict())
    ours = PaliGemma(settings)
    fill(ours, convert(rename_older(theirs.state_dict()), rules(settings)))
    return theirs, ours.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    return both(request.param)


def batch():
    """Two rows of prefix and suffix, of different lengths, padded on the right."""
    torch.manual_seed(1)
    pixels = torch.rand(2, 3, 28, 28) * 2 - 1
    tokens = torch.randint(5, 99, (2, 14))
    return pixels, tokens, torch.tensor([6, 3]), torch.tensor([14, 9])


def their_batch(pixels, tokens, prefix, lengths):
    """The same as transformers' processor gives it."""
    marks = torch.full((2, PLACES), IMAGE)
    places = torch.arange(tokens.shape[1])[None]
    kinds = (places >= prefix[:, None]).long()
    whole = torch.ones(2, PLACES, dtype=torch.long)
    return {
        "pixel_values": pixels,
        "input_ids": torch.cat([marks, tokens], 1),
        "attention_mask": torch.cat([whole, (places < lengths[:, None]).long()], 1),
        "token_type_ids": torch.cat([0 * whole, kinds], 1),
    }


def test_logits_are_those_of_transformers(pair):
    """Of prefix and suffix of every row, up to its own end."""
    theirs, ours = pair
    pixels, tokens, prefix, lengths = batch()
    with torch.no_grad():
        found = ours(pixels, tokens, prefix)
        expected = theirs(**their_batch(pixels, tokens, prefix, lengths)).logits[:, PLACES:]
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :length], expected[row, :length], atol=1e-4, rtol=0)


def test_answers_in_one_batch_are_those_of_transformers_alone(pair):
    """Prefixes of 6 and 3 tokens read at once, then eight tokens of each answer; the window of 9 is
    crossed.
    """
    theirs, ours = pair
    pixels, tokens, prefix, _ = batch()
    pads = prefix.max() - prefix
    rows = [tokens[row, :length] for row, length in enumerate(prefix.tolist())]
    padding = [torch.zeros(int(pad), dtype=torch.long) for pad in pads]
    left = torch.stack([torch.cat(parts) for parts in zip(padding, rows, strict=True)])
    with torch.no_grad():
        logits, cache = ours.read(pixels, left, pads)
        steps = [logits]
        for i in range(7):
            steps.append(ours.step(tokens[:, 6 + i], cache))
        found = torch.stack(steps, 1)
        for row, length in enumerate(prefix.tolist()):
            whole = torch.cat([tokens[row, :length], tokens[row, 6:13]])[None]
            marks = torch.full((1, PLACES), IMAGE)
            kinds = (torch.arange(whole.shape[1]) >= length).long()[None]
            expected = theirs(
                pixel_values=pixels[row : row + 1],
                input_ids=torch.cat([marks, whole], 1),
                attention_mask=torch.ones(1, PLACES + whole.shape[1], dtype=torch.long),
                token_type_ids=torch.cat([0 * marks, kinds], 1),
            ).logits[0, PLACES + length - 1 :]
            torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)


def test_what_comes_later_in_the_answer_changes_nothing_before(pair):
    """A later suffix token never changes an earlier logit; a later prefix token and the picture
    change those of the prefix. Without types of tokens too: `prefix` is always given.
    """
    _, ours = pair
    pixels, tokens, prefix, _ = batch()
    with torch.no_grad():
        before = ours(pixels, tokens, prefix)
        for place in range(6, 14):
            other = tokens.clone()
            other[0, place] = (other[0, place] + 1) % 99
            after = ours(pixels, other, prefix)
            assert torch.equal(after[0, :place], before[0, :place])
            assert not torch.equal(after[0, place], before[0, place])
        other = tokens.clone()
        other[0, 5] = (other[0, 5] + 1) % 99
        assert (ours(pixels, other, prefix)[0, :5] != before[0, :5]).any(1).all()
        assert (ours(pixels.flip(3), tokens, prefix)[0] != before[0]).any(1).all()


def test_the_loss_by_tokens_is_that_of_transformers(pair):
    theirs, ours = pair
    pixels, tokens, prefix, lengths = batch()
    inputs = their_batch(pixels, tokens, prefix, lengths)
    seen = inputs["attention_mask"] * inputs["token_type_ids"]
    labels = inputs["input_ids"].masked_fill(seen == 0, -100)
    with torch.no_grad():
        loss = objective(ours, pixels, tokens, prefix, lengths, "token")
        torch.testing.assert_close(loss.total / loss.count, theirs(**inputs, labels=labels).loss)
    assert loss.count == 8 + 6


def test_the_loss_by_examples_is_computed_by_hand(pair):
    """The mean over the tokens of each answer, then over answers."""
    _, ours = pair
    pixels, tokens, prefix, lengths = batch()
    with torch.no_grad():
        logits = ours(pixels, tokens, prefix).log_softmax(2)
        loss = objective(ours, pixels, tokens, prefix, lengths)
    rows = []
    for row in range(2):
        terms = [-logits[row, i - 1, tokens[row, i]] for i in range(prefix[row], lengths[row])]
        rows.append(sum(terms) / len(terms))
    assert loss.count == 2
    torch.testing.assert_close(loss.total, sum(rows))


def test_weights_and_configuration_go_back_to_transformers(pair):
    theirs, ours = pair
    config = TheirConfig(**to_transformers(ours.config))
    config._attn_implementation = "eager"
    again = PaliGemmaForConditionalGeneration(config).eval()
    missing = again.load_state_dict(
        export(dict(ours.state_dict()), rules(ours.config)), strict=False
    )
    assert missing.missing_keys == ["lm_head.weight"] and missing.unexpected_keys == []
    again.tie_weights()
    inputs = their_batch(*batch())
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, theirs(**inputs).logits)


def test_names_of_transformers_4_are_read(pair):
    _, ours = pair
    new = export(dict(ours.state_dict()), rules(ours.config))
    old = {
        name.replace("model.vision_tower.", "vision_tower.vision_model.")
        .replace("model.language_model.", "language_model.model.")
        .replace("model.multi_modal", "multi_modal"): tensor
        for name, tensor in new.items()
    }
    assert set(rename_older(old)) == set(new) != set(old)


def test_the_published_configuration_builds(real_data: Path):
    file = real_data / "configs" / "paligemma-3b-pt-224" / "config.json"
    config = from_transformers(json.loads(file.read_text()))
    assert config.places == 256 and config.text.vocabulary == 257_152
    model = skeleton(lambda: PaliGemma(config))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6) == 2923


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, "'llava'"),
        ({"text_config": TEXT | {"model_type": "llama"}}, "'llama'"),
        ({"text_config": CONFIGS["1"] | {"max_position_embeddings": 16}}, "no room"),
        ({"projection_dim": 7}, "projected to 7"),
    ],
)
def test_what_is_no_paligemma_is_refused(changes, message):
    stored = {
        "model_type": "paligemma", "vision_config": VISION, "text_config": CONFIGS["1"],
        "projection_dim": 24,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        from_transformers(stored | changes)

"""Gemma out of transformers' folders, and back; every published configuration."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from tests.parity.reference import randomised
from tests.systems.gemma.tiny_gguf import write_gguf
from tests.text.test_scored_pieces import lines
from triptych.config import BadFile
from triptych.export import convert_checkpoint
from triptych.loading import load
from triptych.systems.gemma import published
from triptych.systems.gemma.model import Gemma, GemmaConfig
from triptych.systems.gemma.published import from_transformers, to_transformers
from triptych.weights.skeleton import skeleton

SIZES = {
    "vocab_size": 99, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
PRODUCTS = {"3840 * 8 // 2": 15_360, "5376 * 8 // 2": 21_504}  # as the file has them
TOKENS = torch.tensor([[2, *range(10, 30)]])


def test_a_folder_of_shards_loads_and_goes_back(tmp_path: Path):
    config = Gemma3TextConfig(**SIZES, attn_implementation="eager")
    theirs = randomised(Gemma3ForCausalLM(config))
    theirs.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 2
    loaded = load(f"{tmp_path / 'a'}", dtype="float32")
    assert loaded.card.model == "gemma" and loaded.notes == () and loaded.language is None
    convert_checkpoint(f"{tmp_path / 'a'}", tmp_path / "b", "transformers")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b", attn_implementation="eager")
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        torch.testing.assert_close(loaded.model(TOKENS), expected, atol=1e-4, rtol=0)
        assert torch.equal(again(TOKENS).logits, expected)
    next((tmp_path / "a").glob("model-00002*")).unlink()
    with pytest.raises(BadFile, match="lacks 1 of its"):
        load(f"{tmp_path / 'a'}")


def test_a_large_gemma_loads_its_language_part(tmp_path: Path, monkeypatch):
    """Without the spare rows of its vocabulary, and saying that the picture part is left out."""
    monkeypatch.setattr(published, "TEXT", 96)
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        image_size=28, patch_size=14,
    )  # fmt: skip
    text = Gemma3TextConfig(**SIZES | {"vocab_size": 96 + 64})
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision.to_dict())
    config._attn_implementation = "eager"
    theirs = randomised(Gemma3ForConditionalGeneration(config))
    theirs.save_pretrained(tmp_path)
    loaded = load(f"{tmp_path}", dtype="float32")
    assert loaded.notes == ("its picture part is not loaded: it reads text only here",)
    with torch.no_grad():
        expected = theirs(input_ids=TOKENS).logits[..., :96]
        torch.testing.assert_close(loaded.model(TOKENS), expected, atol=1e-4, rtol=0)


def test_a_gguf_file_becomes_a_folder_of_transformers(tmp_path: Path):
    theirs = write_gguf(tmp_path / "small.gguf")
    convert_checkpoint(f"{tmp_path / 'small.gguf'}", tmp_path / "folder", "transformers")
    before, after = (load(f"{tmp_path / name}").language for name in ("small.gguf", "folder"))
    for text in lines(100):
        assert after.encode(text) == before.encode(text)
        assert after.decode(before.encode(text)) == text
    assert after.ends == before.ends
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", attn_implementation="eager")
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        torch.testing.assert_close(again(TOKENS).logits, expected, atol=1e-4, rtol=0)


def test_every_published_configuration_builds(real_data: Path):
    """Of google/gemma_pytorch, with as many million parameters as the published checkpoints."""
    stored = json.loads((real_data / "configs" / "gemma_variants.json").read_text())
    millions = {
        "2b": 2506, "7b": 8538, "2b_v2": 2614, "9b": 9242, "27b": 27227, "1b": 1000, "4b": 3880,
        "12b": 11766, "27b_v3": 27009,
    }  # fmt: skip
    assert set(stored["variants"]) == set(millions)
    for name, own in stored["variants"].items():
        values = stored["defaults"] | own
        sizes = {ours: values[theirs] for ours, theirs in published.SIZES.items()}
        sizes["hidden"] = PRODUCTS.get(sizes["hidden"], sizes["hidden"])
        third, second = bool(values["use_qk_norm"]), values["attn_logit_softcapping"] is not None
        scale = values["query_pre_attn_scalar"] or sizes["head_width"]
        config = GemmaConfig(
            vocabulary=values["vocab_size"],
            **sizes,
            post_norms=bool(values["use_post_ffw_norm"]),
            head_norms=third,
            attention_cap=values["attn_logit_softcapping"],
            logit_cap=values["final_logit_softcapping"],
            window=values["sliding_window_size"],
            pattern=6 if third else 2 if second else 1,
            base=1e6 if third else 1e4,
            stretch=float(values["rope_scaling_factor"] or 1),
            query_scale=168.0 if scale == "5376 // 32" else float(scale),
        )
        model = skeleton(lambda config=config: Gemma(config))
        count = sum(parameter.numel() for parameter in model.parameters())
        assert round(count / 1e6) == millions[name], name
        assert from_transformers(to_transformers(config)) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"hidden_activation": "silu"}, "its activation is 'silu'"),
        ({"attention_bias": True}, "has biases"),
        ({"use_bidirectional_attention": True}, "both directions"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "no pattern"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "'yarn'"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(changes, message):
    stored = {"model_type": "gemma3_text", "num_hidden_layers": 2} | changes
    with pytest.raises(ValueError, match=message):
        from_transformers(stored)

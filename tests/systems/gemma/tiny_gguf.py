"""A small Gemma 3 as a GGUF file with a vocabulary, written by the package `gguf`."""

import io
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests.parity.reference import randomised
from triptych.scenes.descriptions import caption
from triptych.scenes.world import scene

RUNS = [letter * n for letter in ("\n", "▁", "\t") for n in (4, 3, 2)]
USERS = [*RUNS, "<b>", "</b>", "\n", "\t", "<start_of_image>"]
FORMS = {
    "token_embd": "Q8_0",
    "attn_q": "Q5_0",
    "attn_v": "Q4_0",
    "ffn_up": "Q5_1",
    "ffn_gate": "Q4_1",
}


@cache
def small_vocabulary() -> tuple[bytes, list[bytes], list[float], list[int]]:
    """A SentencePiece model of captions, and its pieces, scores and types as GGUF has them."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(caption(scene(0, i)) for i in range(300)), model_writer=made,
        model_type="bpe", vocab_size=500, byte_fallback=True, pad_id=0, eos_id=1, bos_id=2,
        unk_id=3, bos_piece="<bos>", eos_piece="<eos>", add_dummy_prefix=False,
        control_symbols=["<start_of_turn>", "<end_of_turn>"], user_defined_symbols=USERS,
        remove_extra_whitespaces=False, normalization_rule_name="identity", num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto.FromString(made.getvalue())
    pieces = [
        # the converter writes the user's pieces with plain spaces
        (p.piece.replace("▁", " ") if p.type == p.USER_DEFINED else p.piece).encode()
        for p in model.pieces
    ]
    return made.getvalue(), pieces, [p.score for p in model.pieces], [p.type for p in model.pieces]


def small_model() -> Gemma3ForCausalLM:
    """transformers' model with random weights, 256 wide for the blocks of 256."""
    vocabulary = len(small_vocabulary()[1])
    config = Gemma3TextConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=64, num_hidden_layers=7,
        num_attention_heads=4, num_key_value_heads=1, head_dim=32, sliding_window=8,
        max_position_embeddings=128, query_pre_attn_scalar=32, attn_implementation="eager",
    )  # fmt: skip
    model: Gemma3ForCausalLM = randomised(Gemma3ForCausalLM(config), 0.1)
    return model


def write_gguf(path: Path, **others: object) -> Gemma3ForCausalLM:
    """Write the small model in several forms of blocks, and return it with what they leave of the
    weights. `others` replaces or, by None, leaves out settings of the model.
    """
    model, facts = small_model(), {"rope.freq_base": 1e6} | others
    config = model.config
    writer = gguf.GGUFWriter(path, "gemma3")
    for name, value in {
        "context_length": 128, "embedding_length": config.hidden_size, "block_count": 7,
        "feed_forward_length": config.intermediate_size, "attention.head_count": 4,
        "attention.head_count_kv": 1, "attention.key_length": 32, "attention.value_length": 32,
        "attention.sliding_window": 8, "attention.layer_norm_rms_epsilon": 1e-6, **facts,
    }.items():  # fmt: skip
        if value is not None:
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"gemma3.{name}", value)
    _, pieces, scores, kinds = small_vocabulary()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 7)
    with torch.no_grad():
        for theirs, weight in model.named_parameters():
            name = names.get_name(theirs, try_suffixes=(".weight",))
            values = weight.numpy()
            if "norm" in name:
                writer.add_tensor(name, values + 1)
                continue
            kind = gguf.GGMLQuantizationType[FORMS.get(name.split(".")[-2], "BF16")]
            packed = gguf.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            weight.copy_(torch.from_numpy(np.ascontiguousarray(gguf.dequantize(packed, kind))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model

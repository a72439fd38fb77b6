"""Gemma in llama.cpp's GGUF files: configuration, names of tensors, vocabulary.

llama.cpp's converter adds 1 to the weights of norms (conversion/gemma.py there), and leaves out
what its own code knows: that stands in the tables here.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from triptych.nn.packed import Groups
from triptych.systems.gemma.model import GemmaConfig
from triptych.systems.gemma.pack import Stored
from triptych.text.language import PLACEHOLDER, LanguageTokenizer
from triptych.text.scored_pieces import CONTROL, USER, ScoredPieces
from triptych.weights.files.gguf import GgufFile, Value
from triptych.weights.files.gguf_blocks import BLOCKS, COARSE, FOUR_BITS, read_groups, unpack
from triptych.weights.keymap import Rule, convert, rename, under

ARCHITECTURES = {"gemma": 1, "gemma2": 2, "gemma3": 3}

QUERY_SCALES = {(46, 4608): 144.0, (62, 5376): 168.0}
"""Of the models whose query scale is not their head width, by layers and width: both of 27B
(google/gemma_pytorch, gemma/config.py: 4608 / 32 and 5376 / 32).
"""
STRETCHES = {(34, 2560): 8.0, (48, 3840): 8.0, (62, 5376): 8.0}
"""The factor of the positions of Gemma 3, by layers and width: 4B, 12B and 27B (the same file)."""
KNOWN = {
    1: {(18, 2048), (28, 3072)},
    2: {(26, 2304), (42, 3584), (46, 4608)},
    3: {(18, 640), (26, 1152), *STRETCHES},
}
"""Layers and width of what was published, by generation."""

BLOCK = [
    rename("attn_norm.weight", "attn_norm.weight", "plus one"),
    *(rename(f"attn_{x}.weight", f"attn.{x}_proj.weight") for x in "qkv"),
    rename("attn_output.weight", "attn.out_proj.weight"),
    rename("ffn_norm.weight", "mlp_norm.weight", "plus one"),
    *(rename(f"ffn_{x}.weight", f"mlp.{x}.weight") for x in ("gate", "up", "down")),
]
POST_NORMS = [
    rename("post_attention_norm.weight", "attn_post_norm.weight", "plus one"),
    rename("post_ffw_norm.weight", "mlp_post_norm.weight", "plus one"),
]
HEAD_NORMS = [rename(f"attn_{x}_norm.weight", f"attn.{x}_norm.weight", "plus one") for x in "qk"]


def rules(config: GemmaConfig) -> list[Rule]:
    """llama.cpp's names of a model of this configuration."""
    block = [*BLOCK, *(POST_NORMS if config.post_norms else [])]
    block += HEAD_NORMS if config.head_norms else []
    return [
        rename("token_embd.weight", "token.weight"),
        *under(block, "blk.{}.", "blocks.{}."),
        rename("output_norm.weight", "norm.weight", "plus one"),
        *([] if config.tied else [rename("output.weight", "head.weight")]),
    ]


def read_config(file: GgufFile) -> tuple[GemmaConfig, tuple[str, ...]]:
    """The configuration of a file, and remarks on what it leaves open.

    Raises:
        ValueError: a file of another model, or a setting is missing or of another type.
    """
    architecture = file.metadata.get("general.architecture")
    generation = ARCHITECTURES.get(f"{architecture}")
    if generation is None:
        raise ValueError(
            f"holds a model of the architecture {str(architecture)[:60]!r}; those that load: "
            f"{', '.join(ARCHITECTURES)}"
        )
    facts = _Facts(file.metadata, f"{architecture}.")
    size = facts.whole("block_count"), facts.whole("embedding_length")
    head = facts.whole("attention.key_length")
    stretch = facts.number("rope.scaling.factor", STRETCHES.get(size, 1.0))
    third, windowed = generation == 3, generation > 1
    base = facts.number("rope.freq_base", 1_000_000.0 if third else 10_000.0)
    config = GemmaConfig(
        vocabulary=file.shapes.get("token_embd.weight", (0,))[0],
        layers=size[0],
        width=size[1],
        heads=facts.whole("attention.head_count"),
        kv_heads=facts.whole("attention.head_count_kv"),
        head_width=head,
        hidden=facts.whole("feed_forward_length"),
        context=facts.whole("context_length"),
        post_norms=windowed,
        head_norms=third,
        attention_cap=facts.number("attn_logit_softcapping", 50.0) if generation == 2 else None,
        logit_cap=facts.number("final_logit_softcapping", 30.0) if generation == 2 else None,
        window=facts.whole("attention.sliding_window") if windowed else None,
        pattern={1: 1, 2: 2, 3: 6}[generation],
        base=base,
        window_base=10_000.0 if third else base,
        stretch=stretch if third else 1.0,
        query_scale=QUERY_SCALES.get(size, float(head)),
        tied="output.weight" not in file.entries,
        eps=facts.number("attention.layer_norm_rms_epsilon", 1e-6),
    )
    notes = []
    if size not in KNOWN[generation]:
        notes.append(
            f"the file does not say the query scale, and no Gemma of {size[0]} layers and width "
            f"{size[1]} was published: its head width, {head}, is used"
        )
    return config, tuple(notes)


def read_packed(file: GgufFile, config: GemmaConfig) -> tuple[dict[str, Tensor], dict[str, Stored]]:
    """The norms, under our names, and the matrices, still in blocks.

    Raises:
        ValueError: tensors of another model.
    """
    flat = [name for name, entry in file.entries.items() if len(entry.shape) != 2]
    norms = convert(file.read(torch.float32, flat), rules(config))
    numbers = {name: torch.tensor(i) for i, name in enumerate(file.entries) if name not in flat}
    entries = list(file.entries)
    named = convert(numbers, rules(config))
    return norms, {name: _stored(file, entries[int(number)]) for name, number in named.items()}


def _stored(file: GgufFile, name: str) -> Stored:
    form, shape = file.entries[name][:2]
    data, dtype = file.packed(name), BLOCKS[form].dtype
    if dtype is not None:
        return Stored(data.view(dtype).view(shape))

    def take(chosen: Callable[[Tensor], Groups] | None) -> Callable[[Tensor], Groups] | None:
        return None if chosen is None else partial(read_groups, form=form, take=chosen)

    def read(rows: Tensor) -> Tensor:
        return unpack(rows.reshape(-1), form, (len(rows), shape[1]))

    four, coarse = FOUR_BITS.get(form), COARSE.get(form)
    return Stored(data.view(shape[0], -1), read, take(four), take(coarse))


class _Facts:
    """The settings of a model among the metadata, with their types checked."""

    def __init__(self, metadata: Mapping[str, Value], prefix: str):
        self.metadata, self.prefix = metadata, prefix

    def whole(self, name: str) -> int:
        value = self.metadata.get(self.prefix + name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"lacks the number {self.prefix}{name}, or has something else there")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.metadata.get(self.prefix + name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"has no number as {self.prefix}{name}")
        return float(value)


def read_tokenizer(file: GgufFile) -> LanguageTokenizer:
    """The vocabulary of a file as a tokenizer.

    Raises:
        ValueError: there is none, or not one of SentencePiece's byte pairs.
    """
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind != "llama":
        raise ValueError(f"has a vocabulary of the kind {str(kind)[:60]!r}, and Gemma's is 'llama'")
    pieces = file.metadata.get("tokenizer.ggml.tokens")
    scores = file.metadata.get("tokenizer.ggml.scores")
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    if not (isinstance(pieces, list) and isinstance(scores, Tensor) and isinstance(kinds, Tensor)):
        raise ValueError("has no complete vocabulary: tokens, scores and types")
    types = kinds.tolist()
    for i in (kinds == USER).nonzero().flatten().tolist():  # also such as <start_of_image>
        if i < len(pieces) and PLACEHOLDER.fullmatch(pieces[i].decode("utf-8", "replace")):
            types[i] = CONTROL
    return LanguageTokenizer(ScoredPieces(pieces, scores.tolist(), types))

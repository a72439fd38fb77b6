"""A Gemma out of a GGUF file, against transformers with the weights that the blocks leave."""

from pathlib import Path

import pytest
import sentencepiece
import torch

from tests.systems.gemma.tiny_gguf import small_vocabulary, write_gguf
from triptych.config import BadFile
from triptych.loading import load
from triptych.nn.decoding import decode
from triptych.systems.gemma import gguf
from triptych.systems.gemma.model import pad_left
from triptych.weights.files.gguf import GgufFile, Packed, read_gguf
from triptych.weights.files.weight_file import open_weights

PROMPTS = [
    f"{a} {b}" for a in ("a red", "two", "the", "Ein") for b in ("circle", "left", "", "of\n", "🙂")
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """transformers' model of the file, and ours."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    theirs = write_gguf(path)
    return theirs, load(f"{path}", dtype="float32"), path


def test_weights_are_what_the_blocks_leave(pair):
    """By llama.cpp's own names of transformers' tensors; norms without the 1 that it adds."""
    theirs, ours, _ = pair
    state = ours.model.state_dict()
    assert torch.equal(state["token.weight"], theirs.model.embed_tokens.weight)
    layer = theirs.model.layers[6]
    assert torch.equal(state["blocks.6.attn.q_proj.weight"], layer.self_attn.q_proj.weight)
    norm = layer.pre_feedforward_layernorm.weight
    torch.testing.assert_close(state["blocks.6.mlp_norm.weight"], norm, atol=2e-7, rtol=0)


def test_logits_and_64_greedy_tokens_are_those_of_transformers(pair):
    """Of 20 prompts of different lengths in one batch here and alone there, the window of 8
    crossed: each token is the most likely one there, too.
    """
    theirs, ours, _ = pair
    rows = [ours.language.continuation(prompt) for prompt in PROMPTS]
    tokens, pads = pad_left(rows)
    cache = ours.model.new_cache(pads)
    with torch.inference_mode():
        logits = ours.model(tokens, cache)
        steps = decode(logits[:, -1], lambda t: ours.model(t[:, None], cache)[:, -1], limit=64)
        found = torch.tensor([[token.id for token in step] for step in steps]).T
        for row, text in enumerate(rows):
            whole = theirs(torch.tensor([[*text, *found[row].tolist()]])).logits[0]
            begun = logits[row, pads[row] :]
            torch.testing.assert_close(begun, whole[: len(text)], atol=1e-4, rtol=0)
            assert found[row].tolist() == whole[len(text) - 1 : -1].argmax(1).tolist()


def test_the_vocabulary_is_that_of_sentencepiece(pair):
    reference = sentencepiece.SentencePieceProcessor(model_proto=small_vocabulary()[0])
    for text in ("two red circles", "a  <b>bold</b>\n\n\nline\t🙂", "<bos><end_of_turn>"):
        assert pair[1].language.encode(text) == reference.encode(text)
    assert pair[1].language.ends == (1, 5)


def test_a_picture_mark_in_a_text_is_text(pair):
    """The file calls it a piece of the user; published tokenizers a special one."""
    tokens = pair[1].language.encode("<start_of_image>")
    assert len(tokens) > 1 and pair[1].language.decode(tokens) == "<start_of_image>"


def test_what_the_file_leaves_out_comes_from_the_table(tmp_path: Path):
    write_gguf(tmp_path / "a.gguf", **{"rope.scaling.factor": 4.0})
    config, notes = gguf.read_config(open_weights(tmp_path / "a.gguf").gguf)
    assert config.windows == (8,) * 5 + (None, 8)
    assert (config.window_base, config.query_scale, config.stretch) == (10_000, 32, 4)
    assert "no Gemma of 7 layers and width 256 was published" in notes[0]


@pytest.mark.parametrize(
    ("generation", "size", "head", "expected"),
    [
        ("gemma", (18, 2048), 256, (256, 1, 10_000, 10_000, None)),
        ("gemma2", (46, 4608), 128, (144, 1, 10_000, 10_000, 30)),
        ("gemma3", (26, 1152), 256, (256, 1, 1e6, 10_000, None)),
        ("gemma3", (34, 2560), 256, (256, 8, 1e6, 10_000, None)),
        ("gemma3", (62, 5376), 128, (168, 8, 1e6, 10_000, None)),
    ],
)
def test_published_sizes_have_their_published_values(generation, size, head, expected):
    """Query scale, stretch, bases and cap of google/gemma_pytorch."""
    facts = {
        "block_count": size[0], "embedding_length": size[1], "attention.head_count": 4,
        "attention.key_length": head, "attention.head_count_kv": 1, "context_length": 8192,
        "feed_forward_length": 64, "attention.sliding_window": 512,
    }  # fmt: skip
    metadata = {f"{generation}.{name}": value for name, value in facts.items()}
    file = GgufFile(
        None,
        metadata | {"general.architecture": generation},
        {"token_embd.weight": Packed("F32", (9, size[1]), 0, 0)},
    )
    config, notes = gguf.read_config(file)
    found = config.query_scale, config.stretch, config.base, config.window_base, config.logit_cap
    assert found == expected and notes == ()


def test_float16_is_refused_with_the_reason(pair):
    with pytest.raises(ValueError, match="float16 ends at 65,504"):
        load(f"{pair[2]}", dtype="float16")
    with pytest.raises(ValueError, match="float16 ends at 65,504"):
        pair[1].to(precision="float16")


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"block_count": None}, "lacks the number gemma3.block_count"),
        ({"block_count": 1.5}, "lacks the number gemma3.block_count"),
        ({"block_count": 6}, "no rule|unknown|do not fit"),
        ({"attention.head_count": 3}, "do not fit|is \\("),
        ({"block_count": 1 << 31}, "must be at most"),
    ],
)
def test_a_file_that_describes_another_model_is_refused(others, message, tmp_path: Path):
    write_gguf(tmp_path / "bad.gguf", **others)
    with pytest.raises(BadFile, match=message):
        load(f"{tmp_path / 'bad.gguf'}")


def test_the_vocabulary_is_read_once(tmp_path: Path, monkeypatch):
    """Of a real file it takes a third of a second: the time to the first token is what counts."""
    write_gguf(tmp_path / "small.gguf")
    opened: list[Path] = []

    def count(path: Path) -> object:
        opened.append(path)
        return read_gguf(path)

    monkeypatch.setattr("triptych.weights.files.weight_file.read_gguf", count)
    load(f"{tmp_path / 'small.gguf'}", dtype="packed")
    assert opened == [tmp_path / "small.gguf"]

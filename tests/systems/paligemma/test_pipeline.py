"""Questions about pictures, from transformers' folder to the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from tests.parity.reference import randomised
from tests.systems.paligemma.test_model import TEXT, VISION
from tests.text.tiny_tokenizer import write_tokenizer
from triptych.cli.main import run as command
from triptych.loading import load
from triptych.nn.packed import PackedLinear
from triptych.requests import Ask, Decoding
from triptych.running import run
from triptych.text.language import open_language_tokenizer

TASKS = [
    Ask("p.png", "two red circles ?", "m"),
    Ask("p.png", "x", "m", language="de"),
    Ask("p.png", model="m", task="caption"),
    Ask("p.png", model="m", task="detect", labels=("red circle", "square")),
    Ask("p.png", model="m", task="ocr"),
    Ask("p.png", "segment red circle", "m", task="plain"),
    Ask("p.png", "a\nb  c\n", "m", task="plain"),
]


def save_tiny(path: Path) -> Path:
    """A folder of transformers with random weights."""
    path.mkdir(exist_ok=True)
    write_tokenizer(path)
    vocabulary = open_language_tokenizer(path).vocabulary
    config = PaliGemmaConfig(
        vision_config=VISION, projection_dim=24, hidden_size=24, vocab_size=vocabulary,
        text_config=TEXT | {"model_type": "gemma", "vocab_size": vocabulary},
        image_token_index=vocabulary,
    )  # fmt: skip
    config._attn_implementation = "eager"
    randomised(PaliGemmaForConditionalGeneration(config)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("paligemma"))


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return f"{tmp_path / 'p.png'}"


@pytest.mark.parametrize("size", [224, 448, 896])
def test_the_sequence_is_that_of_transformers_processor(folder, size, picture):
    """Of every task: picture, start, prefix, newline; the picture alone is not written here."""
    tokenizer = open_language_tokenizer(folder)
    reference = PreTrainedTokenizerFast(
        tokenizer_file=f"{folder / 'tokenizer.json'}", bos_token="<bos>", eos_token="<eos>",
        pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip
    places = (size // 14) ** 2
    images = SiglipImageProcessor(size={"height": size, "width": size})
    images.image_seq_length = places
    processor = PaliGemmaProcessor(images, reference)
    with Image.open(picture) as image:
        small = image.convert("RGB")
    for request in TASKS:
        text = "<image>" + request.prefix.rstrip("\n")
        expected = processor(images=small, text=text)["input_ids"][0]
        assert list(expected[:places]) == [processor.image_token_id] * places
        assert list(expected[places:]) == tokenizer.question(request.prefix)
        assert tokenizer.question(request.prefix).count(tokenizer.start) == 1


def test_a_picture_is_read_as_by_transformers(folder, picture):
    loaded = load(f"{folder}", dtype="float32")
    images = SiglipImageProcessor(
        size={"height": 28, "width": 28}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    with Image.open(picture) as image:
        expected = images(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        found = loaded.transform([np.asarray(image.convert("RGB"))])
    torch.testing.assert_close(found, expected, atol=2 / 255, rtol=0)


def test_an_answer_is_that_of_transformers(folder, picture):
    """Greedy, of a folder that transformers wrote: each token is the most likely one there."""
    loaded = load(f"{folder}", dtype="float32")
    request = Ask(picture, "red", f"{folder}", decoding=Decoding(max_tokens=8, temperature=0.0))
    *_, said = run(request, loaded)
    theirs = PaliGemmaForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    prompt = loaded.language.question(request.prefix)
    tokens = torch.tensor([[loaded.config.text.vocabulary] * 16 + prompt + list(said.tokens)])
    kinds = torch.zeros_like(tokens)
    kinds[0, 16 + len(prompt) :] = 1
    pixels = loaded.transform([np.asarray(Image.open(picture).convert("RGB"))])
    with torch.no_grad():
        logits = theirs.eval()(
            input_ids=tokens, pixel_values=pixels, token_type_ids=kinds,
            attention_mask=torch.ones_like(tokens),
        ).logits[0, 15 + len(prompt) : -1]  # fmt: skip
    assert list(said.tokens) == logits.argmax(1).tolist()
    expected = logits.log_softmax(1).max(1).values
    torch.testing.assert_close(torch.tensor(said.log_probs), expected, atol=1e-4, rtol=0)


class Unpacked(nn.Module):
    """A packed layer as one matrix in float32."""

    def __init__(self, packed: PackedLinear):
        super().__init__()
        parts = [part for product in packed.products for part in product.unpack()]
        self.weight = torch.cat(parts, 1).T.float()

    def forward(self, x):
        return F.linear(x.float(), self.weight)


def test_in_few_bits_it_answers_as_its_unpacked_weights(folder, picture):
    """The logits after the question, and after three tokens more, one by one. Its packed products
    are of bfloat16, which is off by 0.07 with random weights of width 24.
    """
    expected, small = (load(f"{folder}", dtype="int8") for _ in range(2))
    tokens = torch.tensor([small.language.question("answer en red")])
    for module in [*expected.model.modules()]:
        for name, layer in module.named_children():
            if isinstance(layer, PackedLinear):
                setattr(module, name, Unpacked(layer))
    expected.model.text.one_token = None
    images = small.transform([np.asarray(Image.open(picture).convert("RGB"))])
    none = torch.zeros(1, dtype=torch.long)
    with torch.inference_mode():
        logits, cache = expected.model.read(images, tokens, none)
        found, packed = small.model.read(images, tokens, none)
        for token in (5, 9, 30, 0):
            assert 0 < (found - logits).norm() < 0.08 * logits.norm()
            chosen = torch.tensor([token])
            logits, found = expected.model.step(chosen, cache), small.model.step(chosen, packed)


def ask(capsys, *words):
    code = command([*words, "--max-tokens", "12", "--precision", "float32"])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_commands_answer_describe_and_locate(capsys, folder, picture):
    model = ("--model", f"{folder}")
    code, out, _ = ask(capsys, "ask", picture, "red", *model, "--json")
    answer = json.loads(out)
    *_, said = run(
        Ask(picture, "red", f"{folder}", precision="float32", decoding=Decoding(12, 0.0))
    )
    assert code == 0 and answer["text"] == said.text and answer["tokens"] == list(said.tokens)
    code, out, _ = ask(capsys, "caption", picture, *model)
    assert code == 0 and out.endswith("\n")
    labels = ("--task", "detect", "--labels", "red circle", "square")
    code, out, _ = ask(capsys, "ask", picture, *model, *labels, "--json", "--temperature", "5")
    found = json.loads(out)
    assert code == 0 and found["ignored"] == [] and found["reason"] == "end"
    assert {row["label"] for row in found["boxes"]} <= {"red circle", "square"}
    code, out, said = ask(capsys, "ask", picture, *model, *labels, "--free", "--json")
    assert code == 0 and json.loads(out)["boxes"] == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1)])
def test_a_picture_of_one_pixel_is_answered(folder, tmp_path, shape):
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(tmp_path / "one.png")
    request = Ask(
        f"{tmp_path / 'one.png'}", model=f"{folder}", task="caption", decoding=Decoding(2, 0.0)
    )
    *_, said = run(request)
    assert len(said.tokens) >= 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ask", "P", "--model", "M"], 2, "give a question"),
        (["ask", "P", "x"], 2, "give a model"),
        (["ask", "P", "x", "--model", "M", "--task", "detect"], 2, "goes with the tasks"),
        (["ask", "P", "--model", "M", "--task", "detect"], 2, "labels and the tasks detect"),
        (["ask", "P", "--model", "M", "--task", "detect", "--labels", "a;b"], 2, "semicolon"),
        (["ask", "none.png", "x", "--model", "M"], 3, "none.png"),
        (["ask", "P", "x " * 200, "--model", "M"], 3, "reads at most 128"),
        (["ask", "P", "x" * 1_000_000, "--model", "M"], 2, "1,000,000 characters"),
        (["ask", "P", "x", "--model", "M", "--precision", "float16"], 2, "float32"),
        (["caption", "--model", "M"], 2, "PICTURE is missing"),
    ],
)
def test_what_cannot_be_answered_is_said(capsys, folder, picture, words, code, message):
    places = {"M": f"{folder}", "P": picture}
    found, out, said = ask(capsys, *[places.get(word, word) for word in words])
    assert message in said and out == "" and found == code


def test_a_missing_shard_is_named(folder, tmp_path: Path):
    theirs = PaliGemmaForConditionalGeneration.from_pretrained(folder)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match="lacks 1 of its"):
        load(f"{tmp_path}")

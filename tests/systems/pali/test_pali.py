"""PaLI-3's T5 against transformers with the same random weights; pictures before the text; the
training that it shares with PaliGemma.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipVisionModel, T5ForConditionalGeneration
from transformers import T5Config as TheirConfig

from tests.parity.reference import randomised
from triptych.cli.main import run as command
from triptych.fields import to_json
from triptych.loading import load
from triptych.requests import Answers, Training, TrainPali, TrainVlm
from triptych.systems.pali import published
from triptych.systems.pali.model import Pali, PaliConfig
from triptych.systems.pali.recipe import build
from triptych.systems.pali.t5 import T5, T5Config, bucket
from triptych.systems.paligemma import examples
from triptych.systems.paligemma.model import objective
from triptych.systems.paligemma.recipe import build as build_vlm
from triptych.systems.siglip.model import SiglipImageConfig
from triptych.text.language import train_language_tokenizer
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.loop import fit
from triptych.training import adopt
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.files.weight_file import read_safetensors
from triptych.weights.keymap import convert, export, fill
from triptych.weights.loaded import Card
from triptych.weights.skeleton import skeleton

SIZES = {
    "vocab_size": 61, "d_model": 24, "d_kv": 5, "d_ff": 40, "num_layers": 3, "num_heads": 4,
    "num_decoder_layers": 2, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12, "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0, "dropout_rate": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "with a head"])
def pair(request):
    """transformers' model and ours, with the same weights."""
    config = TheirConfig(tie_word_embeddings=request.param, **SIZES)
    config.tie_word_embeddings = request.param  # which its constructor forgets
    config.scale_decoder_outputs = request.param  # as version 1.1 was trained
    theirs = randomised(T5ForConditionalGeneration(config))
    theirs.decoder.embed_tokens = theirs.encoder.embed_tokens = theirs.shared  # as published
    config = published.from_transformers(theirs.config.to_dict())
    ours = T5(config)
    fill(ours, convert(theirs.state_dict(), published.rules(config)))
    return theirs, ours.eval()


def batch():
    """States of two rows of different lengths, padded on the right, and what is written."""
    torch.manual_seed(1)
    seen = torch.ones(2, 17, dtype=torch.bool)
    seen[1, 9:] = False
    return torch.randn(2, 17, 24), seen, torch.randint(1, 61, (2, 15))


def test_logits_are_those_of_transformers(pair):
    """Embeddings read, tokens written, beyond the distance where buckets end."""
    theirs, ours = pair
    x, seen, tokens = batch()
    start = torch.zeros(2, 1, dtype=torch.long)
    with torch.no_grad():
        expected = theirs(
            inputs_embeds=x, attention_mask=seen.long(),
            decoder_input_ids=torch.cat([start, tokens], 1),
        ).logits  # fmt: skip
        memory = ours.remember(ours.encode(x, seen), seen)
        found = ours.logits(ours.write(torch.cat([start, tokens], 1), memory))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_tokens_one_by_one_and_rows_alone_are_the_same(pair):
    """With the cache, and without the padding of another row."""
    theirs, ours = pair
    x, seen, tokens = batch()
    written = torch.cat([torch.zeros(2, 1, dtype=torch.long), tokens], 1)
    with torch.no_grad():
        memory = ours.remember(ours.encode(x, seen), seen)
        steps = [ours.write(written[:, :3], memory, keep=True)]
        steps += [ours.write(written[:, i : i + 1], memory, keep=True) for i in range(3, 16)]
        found = ours.logits(torch.cat(steps, 1))
        for row, length in enumerate((17, 9)):
            expected = theirs(
                inputs_embeds=x[row : row + 1, :length], decoder_input_ids=written[row : row + 1]
            ).logits[0]
            torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=0)


def test_bfloat16_is_near(pair):
    """To 2 % of the spread of the logits."""
    _, ours = pair
    x, seen, tokens = batch()
    with torch.no_grad():
        wide = ours.logits(ours.write(tokens, ours.remember(ours.encode(x, seen), seen)))
        half = T5(ours.config).to(torch.bfloat16)
        half.load_state_dict(ours.state_dict())
        memory = half.remember(half.encode(x.bfloat16(), seen), seen)
        narrow = half.logits(half.write(tokens, memory)).float()
    assert (wide - narrow).abs().mean() < 0.02 * wide.std()


def test_export_undoes_conversion(pair):
    theirs, ours = pair
    found = export(ours.state_dict(), published.rules(ours.config))
    expected = theirs.state_dict()
    again = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    again |= {"lm_head.weight"} if ours.config.tied else set()
    assert set(found) == set(expected) - again
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("both", [True, False])
def test_buckets_are_those_of_transformers(both):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-300, 301)[None]
    expected = T5Attention._relative_position_bucket(distances, both, 32, 128)
    assert torch.equal(bucket(distances, 32, 128, both=both), expected)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "bart"}, "model_type"),
        ({"feed_forward_proj": "relu"}, "supported: gated-gelu"),
    ],
)
def test_other_models_are_refused(changed, said):
    config = {"model_type": "t5", **SIZES, **changed}
    with pytest.raises(ValueError, match=said):
        published.from_transformers(config)


def small() -> Pali:
    torch.manual_seed(0)
    image = SiglipImageConfig(16, 8, 8, 1, 2, 16, pooled=False)
    text = T5Config(50, 16, 2, 2, 2, 8, 24, 8, 20, tied=True)
    return randomised(Pali(PaliConfig(image, text)))


def test_an_exported_folder_loads_in_transformers(tmp_path: Path, capsys):
    """By the command, from a run folder: T5 and SigLIP there have the logits that the model has
    here, and the folder loads here again.
    """
    ours = small()
    size = ours.config.size
    card = Card("pali", to_json(ours.config),
        transform=ImageTransform(size, HALF, HALF, "squash", "bicubic", crop=False))  # fmt: skip
    (tmp_path / "run").mkdir()
    checkpoint.export(tmp_path / "run", ours, to_json(card))
    train_language_tokenizer(["a b"], 330).save(tmp_path / "run")
    out = tmp_path / "out"
    words = ["weights", "convert", f"{tmp_path / 'run'}", f"{out}", "--to", "transformers"]
    assert command(words) == 0, capsys.readouterr().err
    text = T5ForConditionalGeneration.from_pretrained(out).eval()
    eye = SiglipVisionModel.from_pretrained(out / "vision").eval()
    between = read_safetensors(out / "projector.safetensors")
    pixels, tokens, _, _ = rows()
    asked, written = tokens[:, :3], tokens[:, 3:6]
    with torch.no_grad():
        seen = eye(pixels).last_hidden_state @ between["weight"].T + between["bias"]
        given = torch.cat([seen, text.get_input_embeddings()(asked)], 1)
        begun = torch.cat([torch.zeros(3, 1, dtype=torch.long), written], 1)
        expected = text(inputs_embeds=given, decoder_input_ids=begun).logits
        found = ours(pixels, torch.cat([asked, written], 1), torch.full((3,), 3))[:, 2:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    again = load(f"{out}", dtype="float32")
    assert again.config == ours.config and again.language is not None
    same = again.model.state_dict()
    assert all(torch.equal(same[name], x) for name, x in ours.state_dict().items())
    (out / "vision" / "config.json").unlink()
    with pytest.raises(ValueError, match="reads text only"):
        load(f"{out}")


def rows():
    torch.manual_seed(2)
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    return pixels, torch.randint(5, 50, (3, 11)), torch.tensor([5, 3, 4]), torch.tensor([11, 7, 4])


def test_training_and_answering_give_the_same_logits():
    """Rows padded on the right at once, and questions padded on the left, then token by token."""
    model, (pixels, tokens, prefix, _) = small(), rows()
    pads = prefix.max() - prefix
    questions = [
        torch.cat([torch.zeros(int(pad), dtype=torch.long), row[:length]])
        for pad, row, length in zip(pads, tokens, prefix.tolist(), strict=True)
    ]
    with torch.no_grad():
        whole = model(pixels, tokens, prefix)
        logits, memory = model.read(pixels, torch.stack(questions), pads)
        for step in range(5):
            expected = whole[torch.arange(3), prefix - 1 + step]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
            chosen = tokens.gather(1, (prefix + step)[:, None])[:, 0]
            logits = model.step(chosen, memory)


def test_who_sees_whom():
    """A later word of the answer changes nothing before it; every word of the question, and the
    picture, changes all of the answer; padding changes nothing.
    """
    model, (pixels, tokens, prefix, lengths) = small(), rows()

    def logits(pixels, tokens):
        with torch.no_grad():
            return model(pixels, tokens, prefix)[0]

    before = logits(pixels, tokens)
    later, asked = tokens.clone(), tokens.clone()
    later[0, 8], asked[0, 0] = 4, 4
    after = logits(pixels, later)
    torch.testing.assert_close(after[4:8], before[4:8])
    assert (after[8:] - before[8:]).abs().amax(1).min() > 1e-5
    for changed in (logits(pixels, asked), logits(pixels.flip(0), tokens)):
        assert (changed[4:] - before[4:]).abs().amax(1).min() > 1e-5
    padded = tokens.clone()
    padded[1, 7:] = 1
    with torch.no_grad():
        losses = [objective(model, pixels, t, prefix, lengths).total for t in (tokens, padded)]
    torch.testing.assert_close(losses[0], losses[1])


SMALL = {"width": 32, "layers": 1, "heads": 2, "head_width": 16, "hidden": 64}
EYE = Answers(
    image_width=32, image_layers=1, image_heads=2, vocabulary=400, stem=(8, 16, 32), length=48,
    patch=8,
)  # fmt: skip


def test_a_run_is_asked_and_evaluated_like_a_paligemma(tmp_path: Path, capsys, monkeypatch):
    """The commands know the kind of the model; it resumes to the bit."""
    monkeypatch.setattr(examples, "LEARNED_FROM", 40)
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"picture {'abcdefgh'[number]}")
    training = Training(
        data=f"{data}", steps=4, batch_size=8, sample_every=0, device="cpu", save_every=2
    )
    request = TrainPali(training, EYE, **SMALL, decoder_layers=1)
    (tmp_path / "whole").mkdir()
    adopt(tmp_path / "whole", request)
    for _ in fit(build(request, World(), load), training, tmp_path / "whole"):
        pass
    steps = fit(build(request, World(), load), training, tmp_path / "broken")
    next(report for report in steps if report.step == 2)
    steps.close()
    for _ in fit(build(request, World(), load), training, tmp_path / "broken"):
        pass
    whole, broken = (load(f"{tmp_path / name}").model.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    words = ["--model", f"{tmp_path / 'whole'}", "--max-tokens", "6", "--json"]
    assert command(["caption", f"{data / '0.png'}", *words]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]
    assert command(["evaluate", f"{tmp_path / 'whole'}", "--pictures", "4", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"perplexity", "perplexity_shuffled", "perplexity_blind"} <= set(figures)
    assert all(row["prefix"] == "caption en" for row in figures["answers"])
    assert "| their picture |" in (tmp_path / "whole" / "evaluation" / "vlm.md").read_text()


def test_the_presets_have_equal_parameters(monkeypatch):
    """So that the original and its successor stand in one table."""
    monkeypatch.setattr(examples, "LEARNED_FROM", 40)
    counts = []
    for request, make in ((TrainPali(), build), (TrainVlm(), build_vlm)):
        training = dataclasses.replace(request.training, device="cpu")
        model = make(dataclasses.replace(request, training=training), World(), load).model
        counts.append(sum(p.numel() for p in model.parameters()))
    assert abs(counts[0] - counts[1]) < 0.01 * counts[1] < 0.01 * 10e6


def test_a_frozen_eye_needs_one():
    with pytest.raises(ValueError, match="give vision"):
        TrainPali(freeze="image")


def test_the_published_sizes_build():
    """ViT-G/14 and an encoder and decoder of 3B: five billion parameters in all, none in memory."""
    model = skeleton(lambda: Pali(PaliConfig()))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(5e9, rel=0.1)

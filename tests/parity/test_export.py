"""What was made here loads in the other libraries, with the same numbers; and theirs here."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, SiglipModel

from tests.parity.reference import randomised
from triptych.export import convert_checkpoint
from triptych.fields import to_json
from triptych.loading import load
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.siglip.model import Siglip, SiglipConfig, SiglipImageConfig, SiglipTextConfig
from triptych.systems.two_towers import recipe
from triptych.systems.two_towers.request import CLIP_PRESETS, SIGLIP_PRESETS
from triptych.text.tokenizer import train_tokenizer
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.loaded import Card

CAPTIONS = ["a red circle on a blue ground", "two green squares", "a small star", "circle"]
LONG = " ".join(["stars and circles"] * 20)


def pictures():
    """Cut evenly on both sides: of half a pixel open_clip and transformers think differently."""
    shapes = ((40, 55, 3), (60, 48, 3))
    return [np.random.default_rng(0).integers(0, 256, shape, np.uint8) for shape in shapes]


@pytest.fixture
def clip_run(tmp_path):
    """A run folder of a tiny CLIP with random weights."""
    tokenizer = train_tokenizer(CAPTIONS * 3, 560, 12)
    end = tokenizer.config.end
    config = ClipConfig(
        24,
        VitConfig(32, 8, 32, 2, 4, 64),
        text=TextConfig(tokenizer.vocabulary, 12, 32, 2, 4, 64, end=end),
    )
    return write_run(
        tmp_path / "run", Clip(config), "clip", tokenizer, ImageTransform(32, HALF, HALF)
    )


def write_run(folder, model, kind, tokenizer, transform):
    folder.mkdir()
    model = randomised(model)
    card = Card(kind, to_json(model.config), tokenizer=tokenizer.config, transform=transform)
    (folder / "config.json").write_text(json.dumps(to_json(card)))
    write_safetensors(folder / "model.safetensors", model.state_dict())
    tokenizer.save(folder)
    return folder


@torch.no_grad()
def test_clip_loads_in_transformers(clip_run, tmp_path):
    convert_checkpoint(str(clip_run), tmp_path / "out", "transformers")
    ours = load(str(clip_run), dtype="float32")
    theirs = CLIPModel.from_pretrained(tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")
    read = tokens(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(read["input_ids"], ours.tokenizer.encode(CAPTIONS).tokens)
    processor = CLIPImageProcessor.from_pretrained(tmp_path / "out")
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, ours.transform(pictures()), atol=2 / 255 + 1e-4, rtol=0)
    image = theirs.get_image_features(ours.transform(pictures())).pooler_output
    torch.testing.assert_close(
        F.normalize(image, dim=-1), ours.embed_image(pictures()), atol=1e-5, rtol=0
    )
    text = theirs.get_text_features(read["input_ids"]).pooler_output
    torch.testing.assert_close(
        F.normalize(text, dim=-1), ours.embed_text(CAPTIONS), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_clip_loads_in_open_clip(clip_run, tmp_path):
    convert_checkpoint(str(clip_run), tmp_path / "out", "open_clip")
    ours = load(str(clip_run), dtype="float32")
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    theirs.eval()
    image = theirs.encode_image(ours.transform(pictures()), normalize=True)
    torch.testing.assert_close(image, ours.embed_image(pictures()), atol=1e-5, rtol=0)
    text = theirs.encode_text(ours.tokenizer.encode(CAPTIONS).tokens, normalize=True)
    torch.testing.assert_close(text, ours.embed_text(CAPTIONS), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("to", ["transformers", "open_clip", "triptych"])
def test_there_and_back_loses_nothing(clip_run, tmp_path, to):
    convert_checkpoint(str(clip_run), tmp_path / "out", to)
    before, after = (
        load(str(clip_run), dtype="float32"),
        load(str(tmp_path / "out"), dtype="float32"),
    )
    state = after.model.state_dict()
    assert before.config == after.config
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert after.tokenizer.config.end == before.tokenizer.config.end
    texts = [*CAPTIONS, LONG]
    assert torch.equal(after.embed_text(texts), before.embed_text(texts))
    assert before.tokenizer.encode([LONG]).cut[0]
    torch.testing.assert_close(after.embed_image(pictures()), before.embed_image(pictures()))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_plain_preset_converts_and_comes_back(tmp_path, kind):
    """The layout of the model that `train` makes with it, at a smaller size."""
    preset = {"clip": CLIP_PRESETS, "siglip": SIGLIP_PRESETS}[kind]["plain"]
    request = replace(preset, towers=replace(preset.towers, width=48, layers=2, text_width=48))
    tokenizer = train_tokenizer(CAPTIONS * 3, 560, request.towers.length)
    config = recipe._config(request, 32, tokenizer)
    model = Clip(config) if kind == "clip" else Siglip(config)
    run = write_run(tmp_path / "run", model, kind, tokenizer, ImageTransform(32, HALF, HALF))
    forms = ["transformers", "open_clip"] if kind == "clip" else ["transformers"]
    for to in forms:
        convert_checkpoint(str(run), tmp_path / to, to)
        before, after = load(str(run), dtype="float32"), load(str(tmp_path / to), dtype="float32")
        assert before.config == after.config
        texts = [*CAPTIONS, LONG, "Circle, star!"]
        tokens = [one.tokenizer.encode(texts, full=True).tokens for one in (before, after)]
        assert kind == "clip" or torch.equal(*tokens)
        assert torch.equal(after.embed_text(texts), before.embed_text(texts))
        torch.testing.assert_close(after.embed_image(pictures()), before.embed_image(pictures()))
        tokens = AutoTokenizer.from_pretrained(tmp_path / "transformers")
        read = tokens(texts, padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(read["input_ids"], before.tokenizer.encode(texts, full=True).tokens)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("to", ["transformers", "open_clip"])
def test_a_refused_conversion_names_the_preset_that_converts_and_leaves_nothing(tmp_path, kind, to):
    preset = {"clip": CLIP_PRESETS, "siglip": SIGLIP_PRESETS}[kind]["tiny"]
    request = replace(preset, towers=replace(preset.towers, width=48, layers=1, text_width=48))
    tokenizer = train_tokenizer(CAPTIONS * 3, 560, request.towers.length)
    config = recipe._config(request, 32, tokenizer)
    model = Clip(config) if kind == "clip" else Siglip(config)
    run = write_run(tmp_path / "run", model, kind, tokenizer, ImageTransform(32, HALF, HALF))
    with pytest.raises(ValueError, match="--preset plain"):
        convert_checkpoint(str(run), tmp_path / "new" / "deep" / "out", to)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@torch.no_grad()
def test_siglip_loads_in_transformers(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS * 3, 560, 12)
    config = SiglipConfig(
        SiglipImageConfig(32, 8, 32, 2, 4, 64),
        SiglipTextConfig(tokenizer.vocabulary, 12, 32, 2, 4, 64),
    )
    transform = ImageTransform(32, HALF, HALF, "squash", crop=False)
    run = write_run(tmp_path / "run", Siglip(config), "siglip", tokenizer, transform)
    convert_checkpoint(str(run), tmp_path / "out", "transformers")
    ours = load(str(run), dtype="float32")
    theirs = SiglipModel.from_pretrained(tmp_path / "out")
    image = theirs.get_image_features(ours.transform(pictures())).pooler_output
    torch.testing.assert_close(
        F.normalize(image, dim=-1), ours.embed_image(pictures()), atol=1e-5, rtol=0
    )
    text = theirs.get_text_features(ours.tokenizer.encode(CAPTIONS).tokens).pooler_output
    torch.testing.assert_close(
        F.normalize(text, dim=-1), ours.embed_text(CAPTIONS), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="convert to transformers instead"):
        convert_checkpoint(str(run), tmp_path / "no", "open_clip")
    assert not (tmp_path / "no").exists()


@torch.no_grad()
def test_openai_archives_load_and_nothing_in_them_runs(tmp_path):
    """An archive as OpenAI published it: TorchScript, with numbers beside the weights."""
    vision = {"image_size": 64, "patch_size": 16, "width": 128, "layers": 2}
    text = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 1, "layers": 2}
    peer = open_clip.model.CLIP(32, vision, text, quick_gelu=True)
    peer = randomised(peer)
    for name, number in {"input_resolution": 64, "context_length": 16, "vocab_size": 100}.items():
        if hasattr(peer, name):
            delattr(peer, name)
        peer.register_buffer(name, torch.tensor(number))
    tokens = torch.tensor([[98, 5, 7, 99] + [0] * 12])
    pixels = torch.randn(1, 3, 64, 64)
    traced = torch.jit.trace_module(peer, {"encode_image": pixels, "encode_text": tokens})
    traced.save(tmp_path / "tiny.pt")
    loaded = load(str(tmp_path / "tiny.pt"), dtype="float32")
    assert loaded.config.vit.activation == "quick_gelu" and loaded.transform.size == 64
    image = peer.encode_image(pixels, normalize=True)
    torch.testing.assert_close(loaded.model.embed_image(pixels), image, atol=1e-5, rtol=0)
    read = peer.encode_text(tokens, normalize=True)
    torch.testing.assert_close(loaded.model.embed_text(tokens), read, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="has no vocabulary"):
        loaded.embed_text(["a fox"])


def dense(x, arrays, name):
    return x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]


def norm(x, arrays, name):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    scale, bias = arrays[f"{name}/scale"], arrays[f"{name}/bias"]
    return (x - mean) / np.sqrt(variance + 1e-6) * scale + bias


def attention(q, kv, arrays, name):
    """flax's MultiHeadDotProductAttention: heads are an axis of the kernels."""
    heads = {
        part: np.einsum("td,dhc->thc", x, arrays[f"{name}/{part}/kernel"])
        + arrays[f"{name}/{part}/bias"]
        for part, x in (("query", q), ("key", kv), ("value", kv))
    }
    scores = np.einsum("qhc,khc->hqk", heads["query"], heads["key"])
    scores = np.exp(scores / np.sqrt(heads["query"].shape[-1]))
    weights = scores / scores.sum(-1, keepdims=True)
    mixed = np.einsum("hqk,khc->qhc", weights, heads["value"])
    return (
        np.einsum("qhc,hcd->qd", mixed, arrays[f"{name}/out/kernel"]) + arrays[f"{name}/out/bias"]
    )


def mlp(x, arrays, name):
    h = dense(x, arrays, f"{name}/Dense_0")
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return dense(h, arrays, f"{name}/Dense_1")


def encoder(x, arrays, name, layers):
    for layer in range(layers):
        at = f"{name}/encoderblock_{layer}"
        h = norm(x, arrays, f"{at}/LayerNorm_0")
        x = x + attention(h, h, arrays, f"{at}/MultiHeadDotProductAttention_0")
        x = x + mlp(norm(x, arrays, f"{at}/LayerNorm_1"), arrays, f"{at}/MlpBlock_0")
    return norm(x, arrays, f"{name}/encoder_norm")


def shapes(width, heads, layers):
    """Names and shapes of big_vision's two towers, written down from its flax modules."""
    each = width // heads
    block = {f"LayerNorm_{i}/{kind}": (width,) for i in (0, 1) for kind in ("scale", "bias")}
    at = "MultiHeadDotProductAttention_0"
    for part in ("query", "key", "value"):
        block |= {f"{at}/{part}/kernel": (width, heads, each), f"{at}/{part}/bias": (heads, each)}
    block |= {f"{at}/out/kernel": (heads, each, width), f"{at}/out/bias": (width,)}
    block |= {"MlpBlock_0/Dense_0/kernel": (width, 24), "MlpBlock_0/Dense_0/bias": (24,)}
    block |= {"MlpBlock_0/Dense_1/kernel": (24, width), "MlpBlock_0/Dense_1/bias": (width,)}
    found = {
        "img/embedding/kernel": (8, 8, 3, width),
        "img/embedding/bias": (width,),
        "img/pos_embedding": (1, 16, width),
        "img/MAPHead_0/probe": (1, 1, width),
        "txt/Embed_0/embedding": (50, width),
        "txt/pos_embedding": (1, 6, width),
        "txt/head/kernel": (width, width),
        "txt/head/bias": (width,),
        "t": (1,),
        "b": (1,),
    }
    for tower in ("img/Transformer", "txt/Encoder_0"):
        found |= {f"{tower}/encoder_norm/{kind}": (width,) for kind in ("scale", "bias")}
        for layer in range(layers):
            found |= {f"{tower}/encoderblock_{layer}/{k}": v for k, v in block.items()}
    skipped = "LayerNorm_1"
    found |= {f"img/MAPHead_0/{k}": v for k, v in block.items() if skipped not in k}
    return found


@torch.no_grad()
@pytest.mark.parametrize("stacked", [False, True])
def test_big_vision_arrays_load(tmp_path, stacked):
    """Against the towers written out in numpy as flax computes them."""
    random = np.random.default_rng(0)
    arrays = {k: random.normal(0, 0.3, v).astype(np.float32) for k, v in shapes(16, 4, 2).items()}
    stored = dict(arrays)
    if stacked:
        for tower in ("img/Transformer", "txt/Encoder_0"):
            for name in [k for k in arrays if k.startswith(f"{tower}/encoderblock_0/")]:
                both = [stored.pop(name.replace("block_0", f"block_{i}")) for i in (0, 1)]
                stored[name.replace("encoderblock_0", "encoderblock")] = np.stack(both)
    np.savez(tmp_path / "tiny.npz", **{f"params/{k}": v for k, v in stored.items()})
    loaded = load(str(tmp_path / "tiny.npz"), dtype="float32")
    pixels = random.normal(0, 1, (3, 32, 32)).astype(np.float32)
    patches = pixels.reshape(3, 4, 8, 4, 8).transpose(1, 3, 2, 4, 0).reshape(16, 8 * 8 * 3)
    x = patches @ arrays["img/embedding/kernel"].reshape(-1, 16) + arrays["img/embedding/bias"]
    x = encoder(x + arrays["img/pos_embedding"][0], arrays, "img/Transformer", 2)
    head = "img/MAPHead_0"
    probe = arrays[f"{head}/probe"][0]
    pooled = attention(probe, x, arrays, f"{head}/MultiHeadDotProductAttention_0")
    pooled = pooled + mlp(norm(pooled, arrays, f"{head}/LayerNorm_0"), arrays, f"{head}/MlpBlock_0")
    image = torch.from_numpy(pooled).float()
    given = loaded.model.embed_image(torch.from_numpy(pixels)[None])
    torch.testing.assert_close(given, F.normalize(image, dim=-1), atol=1e-5, rtol=0)
    tokens = np.array([3, 9, 4, 1, 1, 1])
    y = arrays["txt/Embed_0/embedding"][tokens] + arrays["txt/pos_embedding"][0]
    y = dense(encoder(y, arrays, "txt/Encoder_0", 2)[-1:], arrays, "txt/head")
    text = loaded.model.embed_text(torch.from_numpy(tokens)[None])
    torch.testing.assert_close(
        text, F.normalize(torch.from_numpy(y).float(), dim=-1), atol=1e-5, rtol=0
    )
    assert loaded.model.logit_scale == arrays["t"][0]


def test_what_is_no_siglip_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", **{"params/img/embedding/kernel": np.zeros((8, 8, 3, 4))})
    with pytest.raises(ValueError, match=r"other\.npz"):
        load(str(tmp_path / "other.npz"))
    np.savez(tmp_path / "cats.npz", x_train=np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="not a SigLIP of big_vision"):
        load(str(tmp_path / "cats.npz"))

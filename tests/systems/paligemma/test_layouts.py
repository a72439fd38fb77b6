"""PaliGemma in other programs' files: big_vision's arrays, computed as it computes them; folders
that transformers loads.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import PaliGemmaForConditionalGeneration

from tests.systems.paligemma.test_model import TEXT, both
from triptych.cli.main import run as command
from triptych.config import read_object
from triptych.fields import to_json
from triptych.loading import find_kind, load
from triptych.systems.paligemma import big_vision
from triptych.systems.paligemma.model import PaliGemma, PaliGemmaConfig
from triptych.systems.paligemma.published import from_transformers, to_transformers
from triptych.systems.siglip.model import SiglipImageConfig
from triptych.text.language import train_language_tokenizer
from triptych.train import checkpoint
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card
from triptych.weights.skeleton import skeleton

L, D, H, K, C, M = 2, 16, 4, 2, 6, 24  # layers, width, heads, key/value heads, head width, hidden
W, V = 12, 30  # width of the eye, vocabulary


def arrays(second: bool) -> dict[str, np.ndarray]:
    """Random arrays with the names and shapes of big_vision's checkpoints."""
    attention = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0"
    mlp = "img/Transformer/encoderblock/MlpBlock_0"
    shapes: dict[str, tuple[int, ...]] = {
        "img/embedding/kernel": (7, 7, 3, W), "img/embedding/bias": (W,),
        "img/pos_embedding": (1, 16, W), "img/head/kernel": (W, D), "img/head/bias": (D,),
        "img/Transformer/encoder_norm/scale": (W,), "img/Transformer/encoder_norm/bias": (W,),
        f"{mlp}/Dense_0/kernel": (1, W, 20), f"{mlp}/Dense_0/bias": (1, 20),
        f"{mlp}/Dense_1/kernel": (1, 20, W), f"{mlp}/Dense_1/bias": (1, W),
        f"{attention}/out/kernel": (1, 3, 4, W), f"{attention}/out/bias": (1, W),
        "llm/embedder/input_embedding": (V, D), "llm/final_norm/scale": (D,),
        "llm/layers/attn/q_einsum/w": (L, H, D, C), "llm/layers/attn/kv_einsum/w": (L, 2, K, D, C),
        "llm/layers/attn/attn_vec_einsum/w": (L, H, C, D),
        "llm/layers/mlp/gating_einsum": (L, 2, D, M), "llm/layers/mlp/linear": (L, M, D),
        "llm/layers/pre_attention_norm/scale": (L, D), "llm/layers/pre_ffw_norm/scale": (L, D),
    }  # fmt: skip
    for name in ("query", "key", "value"):
        shapes |= {
            f"{attention}/{name}/kernel": (1, W, 3, 4),
            f"{attention}/{name}/bias": (1, 3, 4),
        }
    for n in (0, 1):
        block = f"img/Transformer/encoderblock/LayerNorm_{n}"
        shapes |= {f"{block}/scale": (1, W), f"{block}/bias": (1, W)}
    if second:
        shapes |= {f"llm/layers/post_{part}_norm/scale": (L, D) for part in ("attention", "ffw")}
    rng = np.random.default_rng(0)
    return {f"params/{k}": (rng.normal(size=s) * 0.3).astype(np.float32) for k, s in shapes.items()}


def rope(x):
    """Of (T, heads, C), as big_vision's `_apply_rope`."""
    timescale = 10_000 ** (2.0 / C * torch.arange(C // 2))
    radians = (torch.arange(len(x))[:, None] / timescale)[:, None]
    first, second = x.chunk(2, -1)
    sin, cos = radians.sin(), radians.cos()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def norm(x, scale):
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + scale)


def language_logits(named, x):
    """The logits of a row of embeddings, attended to in both directions: big_vision's einsums."""
    p = {k.removeprefix("params/llm/"): torch.from_numpy(v) for k, v in named.items()}
    second = "layers/post_ffw_norm/scale" in p
    for n in range(L):
        layer = {k.removeprefix("layers/"): v[n] for k, v in p.items() if k.startswith("layers/")}
        y = norm(x, layer["pre_attention_norm/scale"])
        q = rope(torch.einsum("TD,NDH->TNH", y, layer["attn/q_einsum/w"])) * C**-0.5
        k, v = torch.einsum("SD,PKDH->PSKH", y, layer["attn/kv_einsum/w"])
        q = q.unflatten(1, (K, H // K))
        scores = torch.einsum("TKGH,SKH->KGTS", q, rope(k))
        scores = 50 * (scores / 50).tanh() if second else scores
        seen = torch.einsum("KGTS,SKH->TKGH", scores.softmax(-1), v).flatten(1, 2)
        y = torch.einsum("TNH,NHD->TD", seen, layer["attn/attn_vec_einsum/w"])
        x = x + (norm(y, layer["post_attention_norm/scale"]) if second else y)
        y = norm(x, layer["pre_ffw_norm/scale"])
        gate, up = (y @ w for w in layer["mlp/gating_einsum"])
        y = (F.gelu(gate, approximate="tanh") * up) @ layer["mlp/linear"]
        x = x + (norm(y, layer["post_ffw_norm/scale"]) if second else y)
    logits = norm(x, p["final_norm/scale"]) @ p["embedder/input_embedding"].T
    return 30 * (logits / 30).tanh() if second else logits


@pytest.mark.parametrize("second", [False, True], ids=["1", "2"])
def test_arrays_of_big_vision_are_computed_as_there(tmp_path: Path, second: bool):
    """Picture tokens by their own projection, unscaled, before the words; the caps are those of
    transformers.
    """
    named = arrays(second)
    np.savez(tmp_path / "model.npz", **named)
    train_language_tokenizer(["a b"], 330).save(tmp_path)
    loaded = load(f"{tmp_path / 'model.npz'}", dtype="float32")
    model = loaded.model
    assert isinstance(model, PaliGemma) and loaded.language is not None
    assert (model.config.size, model.config.text.post_norms) == (28, second)
    torch.manual_seed(0)
    pixels, tokens = torch.rand(1, 3, 28, 28) * 2 - 1, torch.randint(0, V, (1, 5))
    with torch.no_grad():
        states = model.image.states(pixels)[0]
        head = {k: torch.from_numpy(named[f"params/img/head/{k}"]) for k in ("kernel", "bias")}
        table = torch.from_numpy(named["params/llm/embedder/input_embedding"])
        row = torch.cat([states @ head["kernel"] + head["bias"], table[tokens[0]] * D**0.5])
        expected = language_logits(named, row)[16:]
        found = model(pixels, tokens, torch.tensor([5]))[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"params/img/head/kernel": None}, "has no img/head/kernel"),
        ({"params/llm/layers/mlp/linear": None}, "has no llm/layers/mlp/linear"),
        ({"params/llm/layers/attn/q_einsum/w": None}, "there is no text.blocks"),
        ({"params/llm/more": np.ones(2, np.float32)}, "not an array of a PaliGemma"),
        ({"params/llm/layers/mlp/linear": np.ones(3, np.float32)}, "another number of dimensions"),
    ],
)
def test_incomplete_arrays_are_refused(tmp_path: Path, change, said):
    named = arrays(False) | change
    np.savez(tmp_path / "m.npz", **{k: v for k, v in named.items() if v is not None})
    with pytest.raises(ValueError, match=said):
        load(f"{tmp_path / 'm.npz'}")


def test_an_exported_folder_loads_in_transformers(tmp_path: Path, capsys):
    """By the command, from a run folder; the same logits there, and here again."""
    theirs, ours = both("2")
    card = Card(
        "paligemma", to_json(ours.config),
        transform=ImageTransform(28, HALF, HALF, "squash", "bicubic", crop=False),
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    checkpoint.export(tmp_path / "run", ours, to_json(card))
    train_language_tokenizer(["a b"], 330).save(tmp_path / "run")
    out = tmp_path / "out"
    words = ["weights", "convert", f"{tmp_path / 'run'}", f"{out}", "--to", "transformers"]
    assert command(words) == 0, capsys.readouterr().err
    back = PaliGemmaForConditionalGeneration.from_pretrained(out, attn_implementation="eager")
    state, expected = back.state_dict(), theirs.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    again = load(f"{out}", dtype="float32")
    assert again.config == ours.config and again.language is not None
    same = again.model.state_dict()
    assert all(torch.equal(same[name], x) for name, x in ours.state_dict().items())


def test_a_stem_is_not_exported():
    text = {**TEXT, "model_type": "gemma", "max_position_embeddings": 512}
    config = from_transformers({"model_type": "paligemma", "text_config": text})
    image = SiglipImageConfig(32, 4, 16, 1, 2, 32, stem=(4, 8), pooled=False)
    with pytest.raises(ValueError, match="preset plain"):
        to_transformers(PaliGemmaConfig(image, config.text))


def test_the_published_shapes_are_those_of_the_configuration(real_data):
    """big_vision's shapes of the 3B model give what transformers' configuration gives."""
    config = from_transformers(
        read_object(real_data / "configs" / "paligemma-3b-pt-224" / "config.json")
    )
    model = skeleton(lambda: find_kind("paligemma").build(config))
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    table = {
        big_vision.TABLE: (257_152, 2048), "img/embedding/kernel": (14, 14, 3, 1152),
        "img/pos_embedding": (1, 256, 1152), "img/head/kernel": (1152, 2048),
        big_vision.BLOCK + "MultiHeadDotProductAttention_0/query/kernel": (27, 1152, 16, 72),
        big_vision.BLOCK + "MlpBlock_0/Dense_0/kernel": (27, 1152, 4304),
        "llm/layers/attn/attn_vec_einsum/w": (18, 8, 256, 2048),
        "llm/layers/attn/kv_einsum/w": (18, 2, 1, 2048, 256),
        "llm/layers/mlp/linear": (18, 16_384, 2048),
    }  # fmt: skip
    assert big_vision.read_config(table) == config
    assert shapes["text.blocks.17.mlp.down.weight"] == (2048, 16_384)

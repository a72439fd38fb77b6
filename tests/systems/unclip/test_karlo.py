"""Karlo's own checkpoints: names, attention stored head by head, statistics, sizes."""

import dataclasses
import re
from pathlib import Path

import diffusers
import pytest
import torch

from tests.parity import karlo
from tests.systems.unclip.tiny_unclip import tokenizer
from triptych.loading import load
from triptych.nn.attention import Attention
from triptych.nn.convolution import PixelAttention
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.unclip import load_karlo, prior, published
from triptych.systems.unclip.decoder import DecoderConfig
from triptych.systems.unclip.model import Unclip, UnclipConfig
from triptych.systems.unclip.upsampler import UpsamplerConfig
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.keymap import convert, export
from triptych.weights.loaded import Published
from triptych.weights.skeleton import skeleton

DIM, WIDTH, HEADS = 24, 128, 2


def test_attention_of_the_prior_is_stored_head_by_head():
    """As its own code reads it: rows of a head are its queries, then its keys, then its values."""
    torch.manual_seed(0)
    weight, bias = torch.randn(3 * WIDTH, WIDTH), torch.randn(3 * WIDTH)
    rules = [rule for rule in published.KARLO_PRIOR if ".attn.c_qkv." in rule.theirs]
    name = "model.transformer.resblocks.0.attn.c_qkv."
    state = convert({name + "weight": weight, name + "bias": bias}, rules)
    ours = Attention(WIDTH, HEADS)
    prefix = "transformer.blocks.0.attn."
    ours.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items()}
        | {f"out_proj.{k}": v for k, v in torch.nn.Linear(WIDTH, WIDTH).state_dict().items()}
    )
    x = torch.randn(2, 5, WIDTH)
    q, k, v = (x @ weight.T + bias).view(2, 5, HEADS, -1).split(64, dim=-1)
    scores = torch.einsum("bthc,bshc->bhts", q, k) / 8
    expected = torch.einsum("bhts,bshc->bthc", scores.softmax(-1), v).reshape(2, 5, -1)
    torch.testing.assert_close(ours(x), ours.out_proj(expected), atol=1e-4, rtol=1e-4)


def test_attention_of_the_decoder_is_stored_head_by_head():
    """Pixels and context, each as its own code reads it."""
    torch.manual_seed(0)
    ours = PixelAttention(WIDTH, HEADS, 32, context=20)
    stored = {
        "norm.weight": torch.rand(WIDTH), "norm.bias": torch.rand(WIDTH),
        "qkv.weight": torch.randn(3 * WIDTH, WIDTH, 1), "qkv.bias": torch.randn(3 * WIDTH),
        "encoder_kv.weight": torch.randn(2 * WIDTH, 20, 1),
        "encoder_kv.bias": torch.randn(2 * WIDTH),
        "proj_out.weight": torch.randn(WIDTH, WIDTH, 1), "proj_out.bias": torch.randn(WIDTH),
    }  # fmt: skip
    ours.load_state_dict(convert(stored, published.KARLO_ATTENTION))
    ours, stored = ours.double(), {name: tensor.double() for name, tensor in stored.items()}
    x, context = torch.randn(2, WIDTH, 3, 3).double(), torch.randn(2, 4, 20).double()
    conv = torch.nn.functional.conv1d
    qkv = conv(ours.norm(x).flatten(2), stored["qkv.weight"], stored["qkv.bias"])
    q, k, v = qkv.reshape(2 * HEADS, 3 * 64, 9).split(64, dim=1)
    kv = conv(context.transpose(1, 2), stored["encoder_kv.weight"], stored["encoder_kv.bias"])
    more_k, more_v = kv.reshape(2 * HEADS, 2 * 64, 4).split(64, dim=1)
    k, v = torch.cat([more_k, k], 2), torch.cat([more_v, v], 2)
    weights = torch.einsum("bct,bcs->bts", q, k / 8).softmax(-1)
    mixed = torch.einsum("bts,bcs->bct", weights, v).reshape(2, WIDTH, 9)
    out = conv(mixed, stored["proj_out.weight"], stored["proj_out.bias"])
    torch.testing.assert_close(ours(x, context), x + out.view_as(x))


def small() -> UnclipConfig:
    words = tokenizer()
    text = TextConfig(words.vocabulary, 12, DIM, 1, 2, 32, end=words.config.end)
    return UnclipConfig(
        DIM, text, VitConfig(8, 4, 16, 1, 2, 32),
        prior=prior.PriorConfig(DIM, DIM, 12, WIDTH, 2, HEADS, 256, limit=10.0),
        decoder=DecoderConfig(
            DIM, DIM, context=32, widths=(64, 128), blocks=1, attention=(1,), time_width=256,
            steps=50,
        ),
        upsamplers=(
            UpsamplerConfig(64, 256, widths=(64, 128), blocks=1, time_width=256, last=True),
        ),
    )  # fmt: skip


def write(folder: Path, model: Unclip) -> None:
    """The files of Karlo's own program."""
    config = model.config
    state = model.state_dict()
    rules = {
        "prior": published.KARLO_PRIOR, "decoder": published.karlo_decoder(config.decoder),
        "upsamplers.0": published.karlo_upsampler(config.upsamplers[0]),
    }  # fmt: skip
    names = {"prior": "prior-ckpt-step=01", "decoder": "decoder-ckpt-step=01",
             "upsamplers.0": "improved-sr-ckpt-step=1.2M"}  # fmt: skip
    for part, table in rules.items():
        own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(f"{part}.")}
        own = {k: v for k, v in own.items() if k not in ("mean", "std")}
        torch.save({"state_dict": export(own, table)}, folder / f"{names[part]}.ckpt")
    torch.save((state["prior.mean"], state["prior.std"]), folder / "ViT-L-14_stats.th")
    (folder / "ViT-L-14.pt").write_bytes(b"an archive")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder, and the model in it. That OpenAI's archives load is proven elsewhere."""
    torch.manual_seed(0)
    model = Unclip(small())
    model.prior.std.uniform_(0.5, 1.5)
    model.prior.mean.normal_()
    clip = Clip(ClipConfig(DIM, model.config.image, None, model.config.text))
    clip.text.load_state_dict(model.text.state_dict())
    clip.image.load_state_dict(model.image.state_dict())
    towers = Published("clip", clip.config, clip, tokenizer(), ImageTransform(8, HALF, HALF))
    monkeypatch.setattr(load_karlo, "layout", lambda path: path)
    monkeypatch.setattr(load_karlo, "load_towers", lambda layout, dtype: towers)
    write(tmp_path, model)
    return tmp_path, model


def test_its_own_folder_loads(made):
    """Every tensor at its place; x0 of the prior is bounded at 10, as in its program."""
    folder, model = made
    loaded = load(str(folder))
    assert loaded.config == model.config and loaded.config.prior.limit == 10.0
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    names = [rule.theirs for rule in published.karlo_decoder(model.config.decoder)]
    for name in (  # of the published checkpoint
        "model.input_blocks.2.0.in_layers.0.weight", "model.input_blocks.3.1.encoder_kv.weight",
        "model.middle_block.1.qkv.weight", "model.output_blocks.1.2.out_layers.3.weight",
        "model.cf_param", "model.text_seq_proj.1.bias", "model.time_embed.2.weight",
    ):  # fmt: skip
        assert name in names


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ("ViT-L-14_stats.th", r"there is no file \*_stats.th, Karlo's statistics"),
        ("decoder-ckpt-step=01.ckpt", r"Karlo's decoder: put exactly one into the folder"),
    ],
)
def test_a_missing_file_is_named(made, file, why):
    folder, _ = made
    (folder / file).unlink()
    with pytest.raises(ValueError, match=why):
        load(str(folder))
    torch.save({"x": torch.zeros(3)}, folder / file)
    with pytest.raises(ValueError, match=r"must hold two vectors|lacks model\."):
        load(str(folder))


def test_both_bounds_limit_what_is_drawn():
    """10 of Karlo's own checkpoints and 5 of diffusers' folders: x0 reaches the bound, not more."""
    torch.manual_seed(0)
    for limit in (5.0, 10.0):
        config = dataclasses.replace(small().prior, limit=limit)
        model = prior.DiffusionPrior(config).eval()
        model.out.weight.data.mul_(200)
        cond = {"text": torch.randn(2, DIM), "states": torch.randn(2, 12, DIM),
                "mask": torch.ones(2, 12) > 0}  # fmt: skip
        noise = prior.PictureNoise([0, 1])
        with torch.no_grad():
            *_, last = prior.sample(model, cond, cond, noise, steps=3, guidance=1.0)
        assert float(last.x.abs().max()) == limit


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.slow
def test_the_published_sizes_on_the_meta_device(real_data):
    """Karlo's configuration files, and diffusers' classes with the converter's settings: the same
    names and shapes as ours.
    """
    folder = real_data / "configs" / "original" / "kakaobrain__karlo" / "configs"
    texts = {path.stem.split("_")[0]: path.read_text() for path in folder.glob("*.yaml")}

    def stated(part: str, name: str) -> int:
        return int(re.search(rf"^ *{name}: (\d+)", texts[part], re.M)[1])

    config = UnclipConfig()
    assert (stated("prior", "xf_width"), stated("prior", "xf_layers")) == (2048, 20)
    own = config.prior
    assert (own.width, own.layers, own.heads, own.length, own.dim) == (
        *(stated("prior", f"xf_{name}") for name in ("width", "layers", "heads")),
        stated("prior", "text_ctx"), stated("prior", "clip_dim"),
    )  # fmt: skip
    assert config.decoder.widths[0] == stated("decoder", "num_channels")
    assert config.decoder.blocks == stated("decoder", "num_res_blocks")
    assert config.decoder.context == stated("decoder", "xf_width")
    assert config.decoder.tokens == stated("decoder", "clip_emb_mult")
    assert config.upsamplers[0].widths[0] == stated("improved", "channels")
    assert config.upsamplers[0].steps == 7
    large = {
        "block_out_channels": (320, 640, 960, 1280),
        "layers_per_block": 3,
        "norm_num_groups": 32,
    }
    with torch.device("meta"):
        prior_of = diffusers.PriorTransformer()
        decoder_of = diffusers.UNet2DConditionModel(
            **karlo.DECODER | large | {
                "sample_size": 64, "cross_attention_dim": 1536, "attention_head_dim": 64,
                "down_block_types": ("ResnetDownsampleBlock2D",)
                + ("SimpleCrossAttnDownBlock2D",) * 3,
                "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
            }
        )  # fmt: skip
        upsampler_of = diffusers.UNet2DModel(
            **karlo.UPSAMPLER | large | {
                "sample_size": 256, "down_block_types": ("ResnetDownsampleBlock2D",) * 4,
                "up_block_types": ("ResnetUpsampleBlock2D",) * 4,
            }
        )  # fmt: skip
    model = skeleton(lambda: Unclip(config))
    for peer, rules, ours in (
        (prior_of, published.PRIOR, model.prior),
        (decoder_of, published.DECODER, model.decoder.unet),
        (upsampler_of, published.UPSAMPLER, model.upsamplers[0].unet),
    ):  # fmt: skip
        converted = {
            name: tuple(value.shape) for name, value in convert(peer.state_dict(), rules).items()
        }
        assert converted == {name: tuple(value.shape) for name, value in ours.state_dict().items()}
    count = sum(parameter.numel() for parameter in model.prior.parameters())
    assert 0.9e9 < count < 1.1e9

"""LoRA files of every form: names against diffusers' own tables, sums against a closed form."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.parity.reference import randomised
from triptych.config import BadFile
from triptych.nn import lora
from triptych.systems.clip.model import TextConfig, TextTransformer
from triptych.systems.clip.published import TRANSFORMERS_TEXT
from triptych.systems.stable_diffusion.adapters.lora_files import (
    Alpha,
    Lora,
    export_lora,
    parse_lora,
    read_lora,
    text_target,
    unet_target,
)
from triptych.systems.stable_diffusion.adapters.lora_updates import (
    Update,
    merge,
    restore,
    updates_of,
)
from triptych.systems.stable_diffusion.published.unet import diffusers_rules, from_diffusers
from triptych.systems.stable_diffusion.unet import LatentUNet
from triptych.weights.keymap import convert, fill, rename, under

SMALL = {
    "block_out_channels": [16, 32], "layers_per_block": 1, "attention_head_dim": 4,
    "cross_attention_dim": 20, "norm_num_groups": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
XL = SMALL | {
    "block_out_channels": [16, 32, 32], "layers_per_block": 2, "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 1, 2],
}  # fmt: skip
TEXT = CLIPTextConfig(
    vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=9, projection_dim=12,
    hidden_act="gelu", bos_token_id=48, eos_token_id=49,
)  # fmt: skip
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
LAYERS = [  # attention, the gated MLP, ways in and out, every kind of convolution, the time
    *(f"{BLOCK}.attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")),
    f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2", "down_blocks.0.attentions.0.proj_in",
    "mid_block.attentions.0.proj_out", "down_blocks.0.resnets.0.conv1",
    "up_blocks.0.resnets.0.conv_shortcut", "down_blocks.0.downsamplers.0.conv",
    "up_blocks.0.upsamplers.0.conv", "up_blocks.1.resnets.1.time_emb_proj",
]  # fmt: skip
TEXT_LAYERS = [
    f"text_model.encoder.layers.1.{name}"
    for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
]
ATTENTION = [layer for layer in LAYERS if ".attn" in layer]


@pytest.fixture(scope="module")
def unets():
    return pair(SMALL)


def pair(settings):
    peer = randomised(UNet2DConditionModel.from_config(settings), std=0.1)
    config = from_diffusers(dict(peer.config))
    ours = LatentUNet(config)
    fill(ours, convert(peer.state_dict(), diffusers_rules(config)))
    return peer, ours


@pytest.fixture(scope="module")
def towers():
    peer = randomised(CLIPTextModelWithProjection(TEXT))
    ours = TextTransformer(TextConfig(50, 9, 16, 2, 2, 32, end=49), 12)
    rules = [
        *under(TRANSFORMERS_TEXT, "text_model."),
        rename("text_projection.weight", "projection.weight"),
    ]
    fill(ours, convert(peer.state_dict(), rules))
    return peer, ours


def halves(peer, layers, rank=3):
    """Random updates of a peer's layers, of the shapes that trainers give them."""
    random = torch.Generator().manual_seed(2)
    made = {}
    for layer in layers:
        weight = peer.get_parameter(f"{layer}.weight")
        filters = weight.shape[2:]
        down = torch.randn(rank, weight.shape[1], *filters, generator=random)
        up = torch.randn(weight.shape[0], rank, *[1] * len(filters), generator=random)
        made[layer] = down, up, 1.0 + len(made) % 4
    return made


def fused(peer, made, strength, alphas=True):
    """Diffusers' network with the sums in it: W + strength alpha / rank up down."""
    state = {name: tensor.clone() for name, tensor in peer.state_dict().items()}
    for layer, (down, up, alpha) in made.items():
        factor = strength * (alpha / len(down) if alphas else 1.0)
        change = torch.einsum("or,r...->o...", up.flatten(1), down)
        state[f"{layer}.weight"] += factor * change.view_as(state[f"{layer}.weight"])
    return state


def as_kohya(made, prefix="lora_unet_"):
    file = {}
    for layer, (down, up, alpha) in made.items():
        name = prefix + layer.replace(".", "_")
        file |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        file[f"{name}.alpha"] = torch.tensor(alpha)
    return file


def named(made, pattern, prefix="unet."):
    """`pattern` says how a half of a layer is called."""
    file = {}
    for layer, (down, up, _) in made.items():
        for half, tensor in (("down", down), ("up", up)):
            letter = {"down": "A", "up": "B"}[half]
            file[prefix + pattern.format(layer=layer, half=half, letter=letter)] = tensor
    return file


def inputs(channels=4):
    torch.manual_seed(3)
    return torch.randn(2, channels, 8, 12), torch.tensor([5, 700]), torch.randn(2, 7, 20)


@torch.no_grad()
def check(unets, found: Lora, expected, strength=0.7):
    """Ours with the updates answers as diffusers' network with the sums; and back to the bit."""
    peer, ours = unets
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    plain = ours(*inputs())
    originals = merge(ours, (found.updates["unet"], strength))
    merged = ours(*inputs())
    summed = UNet2DConditionModel.from_config(peer.config)
    summed.load_state_dict(expected)
    torch.testing.assert_close(merged, summed.eval()(*inputs()).sample, atol=1e-4, rtol=1e-4)
    assert (merged - plain).abs().max() > 0.01
    restore(ours, originals)
    after = ours.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_kohya(unets):
    made = halves(unets[0], LAYERS)
    found = parse_lora(as_kohya(made), [unet_target(unets[1])])
    assert str(found) == "kohya LoRA of rank 3, alpha 1 to 4: 17 layers matched, 0 unmatched"
    check(unets, found, fused(unets[0], made, 0.7))


def test_diffusers_reads_kohyas_names_as_we_do(unets):
    """Its table is the witness for what each of the names means."""
    made = halves(unets[0], LAYERS)
    theirs, alphas = _convert_non_diffusers_lora_to_diffusers(as_kohya(made))
    alphas = {name.removesuffix(".alpha"): value for name, value in alphas.items()}
    found = parse_lora(theirs, [unet_target(unets[1])])
    ours = parse_lora(as_kohya(made), [unet_target(unets[1])])
    assert len(found.matched) == len(LAYERS)
    assert found.updates["unet"].keys() == ours.updates["unet"].keys()
    for name, update in ours.updates["unet"].items():
        other = found.updates["unet"][name]
        assert torch.equal(update.down, other.down)
        assert torch.equal(update.up, other.up)
    assert len(alphas) == len(LAYERS)


@pytest.mark.parametrize(
    ("form", "pattern", "layers"),
    [
        ("PEFT", "{layer}.lora_{letter}.weight", LAYERS),
        ("PEFT", "{layer}.lora_{letter}.default_0.weight", LAYERS),
        ("diffusers", "{layer}.lora.{half}.weight", LAYERS),
        ("diffusers", "{parent}.processor.{last}_lora.{half}.weight", ATTENTION),
    ],
)
@pytest.mark.parametrize("prefix", ["unet.", "base_model.model.", ""])
def test_diffusers_and_peft(unets, form, pattern, layers, prefix):
    made = halves(unets[0], layers)
    if "{parent}" in pattern:  # the first form: to_out without the number of its layer
        file = {}
        for layer, (down, up, _) in made.items():
            parent, last = layer.removesuffix(".0").rsplit(".", 1)
            for half, tensor in (("down", down), ("up", up)):
                file[prefix + pattern.format(parent=parent, last=last, half=half)] = tensor
    else:
        file = named(made, pattern, prefix)
    found = parse_lora(file, [unet_target(unets[1])])
    assert (found.form, len(found.matched), found.unmatched) == (form, len(layers), ())
    check(unets, found, fused(unets[0], made, 0.7, alphas=False))


def test_xl_files_count_blocks_as_ldm_does():
    """Kohya's trainer for SDXL names blocks input_blocks_4_1; diffusers' own table says which."""
    peer, ours = pair(XL)
    theirs = [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.2.attentions.1.transformer_blocks.1.ff.net.0.proj",
        "mid_block.attentions.0.transformer_blocks.1.attn2.to_k",
        "up_blocks.0.attentions.2.transformer_blocks.1.attn2.to_v",
        "up_blocks.1.attentions.0.proj_in",
    ]
    ldm = [
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.8.1.transformer_blocks.1.ff.net.0.proj",
        "middle_block.1.transformer_blocks.1.attn2.to_k",
        "output_blocks.2.1.transformer_blocks.1.attn2.to_v",
        "output_blocks.3.1.proj_in",
    ]
    made = halves(peer, theirs)
    file = as_kohya(dict(zip(ldm, made.values(), strict=True)))
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(file), peer.config)
    mapped, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    direct, _ = _convert_non_diffusers_lora_to_diffusers(as_kohya(made))
    assert mapped.keys() == direct.keys()  # their tables agree with the pairs above
    found = parse_lora(file, [unet_target(ours)])
    assert found.unmatched == ()
    check((peer, ours), found, fused(peer, made, 0.7))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["lora_te_", "lora_te1_"])
def test_text_encoders(unets, towers, prefix):
    peer, ours = towers
    made = halves(peer, TEXT_LAYERS)
    file = as_kohya(made, prefix) | as_kohya(halves(unets[0], LAYERS))
    found = parse_lora(file, [unet_target(unets[1]), text_target(ours)])
    assert len(found.matched) == len(LAYERS) + len(TEXT_LAYERS)
    summed = CLIPTextModelWithProjection(TEXT)
    summed.load_state_dict(fused(peer, made, 1.0))
    tokens = torch.tensor([[48, 3, 4, 49, 0], [48, 7, 8, 9, 49]])
    plain = ours(tokens)
    originals = merge(ours, (found.updates["text_encoder"], 1.0))
    expected = summed.eval()(tokens).text_embeds
    torch.testing.assert_close(ours(tokens), expected, atol=1e-4, rtol=1e-4)
    restore(ours, originals)
    assert torch.equal(ours(tokens), plain)


@pytest.mark.parametrize(
    "names", [("text_encoder.", "{layer}.lora_linear_layer.{half}.weight"),
              ("text_encoder.", "{layer}.lora_{letter}.weight"), ("old", "")]
)  # fmt: skip
def test_diffusers_text_encoders(towers, names):
    made = halves(towers[0], TEXT_LAYERS[:3])
    if names[0] == "old":
        file = {}
        for layer, (down, up, _) in made.items():
            stem, last = layer.rsplit(".", 1)
            last = {"out_proj": "to_out"}.get(last, f"to_{last[0]}")
            file[f"text_encoder.{stem}.{last}_lora.down.weight"] = down
            file[f"text_encoder.{stem}.{last}_lora.up.weight"] = up
    else:
        file = named(made, names[1], names[0])
    found = parse_lora(file, [text_target(towers[1])])
    assert sorted(found.updates["text_encoder"]) == [
        f"transformer.blocks.1.attn.{x}.weight" for x in ("out_proj", "q_proj", "v_proj")
    ]


def test_both_text_encoders_of_xl(towers):
    made = halves(towers[0], TEXT_LAYERS)
    both = [text_target(towers[1], part) for part in ("text_encoder", "text_encoder_2")]
    found = parse_lora(as_kohya(made, "lora_te2_"), both)
    assert list(found.updates) == ["text_encoder_2"]


def test_a_filter_between_two_small_ones(unets):
    """LoCon with a Tucker decomposition: lora_up, lora_mid, lora_down one after the other."""
    torch.manual_seed(4)
    up, mid, down = torch.randn(32, 3, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(3, 16, 1, 1)
    name = "lora_unet_down_blocks_1_resnets_0_conv1"
    file = {f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": mid,
            f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.0)}  # fmt: skip
    found = parse_lora(file, [unet_target(unets[1])])
    delta = found.updates["unet"]["down.1.blocks.0.residual.conv1.weight"].delta()
    x = torch.randn(1, 16, 6, 7)
    stacked = nn.functional.conv2d(x, down)
    stacked = nn.functional.conv2d(stacked, mid, padding=1)
    stacked = nn.functional.conv2d(stacked, up) * (2.0 / 3)
    torch.testing.assert_close(
        nn.functional.conv2d(x, delta, padding=1), stacked, atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_several_are_summed_and_rounded_once(unets):
    ours = LatentUNet(unets[1].config).to(torch.bfloat16)
    ours.load_state_dict(unets[1].state_dict())
    name = "down.0.blocks.0.transformer.blocks.0.attn.q_proj.weight"
    old = ours.get_parameter(name).float()
    torch.manual_seed(5)
    one, two = (Update(torch.randn(2, 16), torch.randn(16, 2), 4.0) for _ in range(2))
    originals = merge(ours, ({name: one}, 0.3), ({name: two}, -1.2))
    exact = old.double() + 0.3 * 2 * (one.up.double() @ one.down.double())
    exact = exact - 1.2 * 2 * (two.up.double() @ two.down.double())
    assert torch.equal(ours.get_parameter(name), exact.to(torch.bfloat16))
    restore(ours, originals)
    assert torch.equal(ours.get_parameter(name).float(), old)


@torch.no_grad()
def test_what_is_trained_here_is_a_file_that_others_read(unets):
    """Low-rank layers of ours, of which the gated MLP has two for one of theirs."""
    ours = LatentUNet(unets[1].config)
    ours.load_state_dict(unets[1].state_dict())
    lora.add(ours, 3, alpha=6.0, names=("q_proj", "v_proj", "up", "gate"))
    torch.manual_seed(6)
    for name, parameter in ours.named_parameters():
        if "lora_up" in name:
            parameter.normal_(0, 0.1)
    trained = {n: u for n, u in updates_of(ours).items() if "transformer" in n}
    target = unet_target(unets[1])
    file = export_lora(trained, target)
    theirs, alphas = _convert_non_diffusers_lora_to_diffusers(dict(file))
    state = {name: tensor.clone() for name, tensor in unets[0].state_dict().items()}
    for name, down in theirs.items():
        if ".down." in name:
            stem = name.split(".lora.")[0]  # of attention, their table leaves alphas a longer name
            layer = stem.removeprefix("unet.").replace(".processor", "").split("_lora")[0]
            layer += ".0" if layer.endswith("to_out") else ""
            factor = alphas[f"{stem}.alpha"] / len(down)
            state[f"{layer}.weight"] += factor * (theirs[name.replace(".down.", ".up.")] @ down)
    summed = LatentUNet(unets[1].config)
    fill(summed, convert(state, diffusers_rules(summed.config)))
    alone = LatentUNet(unets[1].config)
    alone.load_state_dict(unets[1].state_dict())
    merge(alone, (trained, 1.0))
    torch.testing.assert_close(alone.state_dict(), summed.state_dict(), atol=1e-5, rtol=1e-5)
    again = parse_lora(file, [target]).updates["unet"]
    assert again.keys() == trained.keys()
    for name, update in trained.items():
        torch.testing.assert_close(again[name].delta(), update.delta(), atol=1e-5, rtol=1e-5)


def test_alphas_beside_the_tensors(unets, tmp_path):
    made = halves(unets[0], ATTENTION)
    target = unet_target(unets[1])
    file = named(made, "{layer}.lora_{letter}.weight")
    stored = {"unet.lora_alpha": 12, "unet.r": 3, "text_encoder.lora_alpha": 5}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(file, path, {"lora_adapter_metadata": json.dumps(stored), "format": "pt"})
    assert {u.alpha for u in read_lora(path, [target]).updates["unet"].values()} == {12}
    assert read_lora(tmp_path, [target]).matched == read_lora(path, [target]).matched
    peft = tmp_path / "peft"
    peft.mkdir()
    save_file(
        named(made, "{layer}.lora_{letter}.weight", "base_model.model."),
        peft / "adapter_model.safetensors",
    )
    (peft / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_rslora": True}))
    for update in read_lora(peft, [target]).updates["unet"].values():
        assert update.alpha / update.rank == pytest.approx(6 / 3**0.5)
    (peft / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_dora": True}))
    with pytest.raises(ValueError, match="use_dora is True; only plain LoRA"):
        read_lora(peft, [target])
    own = parse_lora(as_kohya(made), [target], {"": Alpha(99.0)})
    assert {u.alpha for u in own.updates["unet"].values()} == {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize(
    "settings",
    ['{"unet.lora_alpha": Infinity}', '{"unet.lora_alpha": 1e400}', '{"unet.lora_alpha": NaN}',
     f'{{"unet.lora_alpha": 1{"0" * 400}}}', "[" * 100_000, "[]", '"x"', "{"],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_alphas_that_are_no_numbers_are_refused(unets, tmp_path, settings) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    file = named(halves(unets[0], ATTENTION[:1]), "{layer}.lora_{letter}.weight")
    save_file(file, path, {"lora_adapter_metadata": settings})
    with pytest.raises(BadFile, match="download it again"):
        read_lora(path, [unet_target(unets[1])])


@pytest.mark.parametrize(
    ("alpha", "up"),
    [
        (torch.tensor(float("inf")), None), (torch.tensor(float("nan")), None),
        (torch.ones(2), None), (torch.ones(0), None), (torch.tensor(1j), None),
        (torch.tensor(1.0), torch.zeros(0, 3)), (torch.tensor(1.0), torch.zeros(16)),
    ],
)  # fmt: skip
def test_parts_of_a_layer_that_are_none_are_refused(unets, alpha, up) -> None:
    file = as_kohya(halves(unets[0], ATTENTION[:1]))
    (name,) = (name for name in file if name.endswith(".alpha"))
    file[name] = alpha
    if up is not None:
        file[name.replace(".alpha", ".lora_up.weight")] = up
    with pytest.raises(ValueError, match=r"alpha|do not fit each other"):
        parse_lora(file, [unet_target(unets[1])])


def test_what_finds_no_place_is_counted(unets):
    file = as_kohya(halves(unets[0], LAYERS))
    file |= {n.replace("down_blocks_0", "down_blocks_7"): x for n, x in file.items()}
    found = parse_lora(file, [unet_target(unets[1])])
    assert len(found.matched) == len(LAYERS)
    assert len(found.unmatched) == sum("down_blocks.0" in layer for layer in LAYERS)


FLUX = "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((FLUX, FLUX.replace("lora_A", "lora_B")), "none of its 1 layers, such as .* for FLUX"),
        (
            ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
             "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"),
            "LoRA for FLUX",
        ),
        (("a.lora_down.weight", "a.lora_up.weight"), "for another family of models"),
        (("conv_in.weight",), "conv_in.weight is not part of a LoRA"),
        (("lora_unet_x.hada_w1_a",), "LoHa"),
        (("lora_unet_x.lokr_w1",), "LoKr"),
        (("lora_unet_x.dora_scale",), "DoRA"),
        (("lora_unet_conv_in.alpha",), "contains no LoRA"),
        (("lora_unet_conv_in.lora_up.weight",), "has only up: the file is incomplete"),
        ((), "contains no LoRA"),
    ],
)  # fmt: skip
def test_what_is_no_lora_of_this_model_is_refused(unets, names, message):
    file = {name: torch.zeros(3, 3) for name in names}
    with pytest.raises(ValueError, match=message):
        parse_lora(file, [unet_target(unets[1])])


@pytest.mark.parametrize(
    ("width", "family"),
    [(768, "1.x"), (1024, "2.x"), (2048, "Stable Diffusion XL"), (333, "another family")],
)
@pytest.mark.parametrize("kohya", [True, False])
def test_a_lora_of_another_family_is_refused_by_its_name(unets, width, family, kohya):
    """Names match, widths of the text do not."""
    layer = f"{BLOCK}.attn2.to_k"
    made = {layer: (torch.zeros(4, width), torch.zeros(16, 4), 1.0)}
    file = as_kohya(made) if kohya else named(made, "{layer}.lora_{letter}.weight")
    with pytest.raises(
        ValueError, match=rf"in this model is \(16, 20\): it is a LoRA for .*{family}"
    ):
        parse_lora(file, [unet_target(unets[1])])


def test_an_update_of_an_unknown_weight_is_refused(unets):
    update = Update(torch.zeros(2, 5), torch.zeros(5, 2), 1.0)
    with pytest.raises(ValueError, match="which the model does not have"):
        merge(unets[1], ({"nothing.weight": update}, 1.0))
    with pytest.raises(ValueError, match=r"is \(5, 5\), not \(16, 4, 3, 3\)"):
        merge(unets[1], ({"conv_in.weight": update}, 1.0))

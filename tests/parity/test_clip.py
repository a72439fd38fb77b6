"""CLIP and SigLIP against transformers and open_clip, with the same random weights."""

from dataclasses import replace

import open_clip
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    Siglip2Config,
    Siglip2Model,
    SiglipModel,
)
from transformers import SiglipConfig as TransformersSiglipConfig

from tests.parity.reference import randomised
from triptych.systems.clip import configs as clip_configs
from triptych.systems.clip import model as clip_model
from triptych.systems.clip import published as clip
from triptych.systems.clip.model import Clip
from triptych.systems.siglip import model as siglip_model
from triptych.systems.siglip import published as siglip
from triptych.systems.siglip.model import Siglip, as_rows
from triptych.weights.keymap import convert, export, fill

VISION = {
    "image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 96,
}  # fmt: skip
TEXT = {
    "vocab_size": 100, "max_position_embeddings": 16, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "bos_token_id": 98, "eos_token_id": 99,
}  # fmt: skip


def pixels(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def texts(length=16, end=99):
    tokens = torch.randint(1, 90, (3, length), generator=torch.Generator().manual_seed(2))
    for row, place in enumerate((length - 1, 5, 9)):
        tokens[row, place] = end
    return tokens


def features(output):
    return F.normalize(getattr(output, "pooler_output", output), dim=-1)


def same(model, rules, state):
    """Our model with their weights; the way back must give every tensor that is not recomputed."""
    fill(model, convert(state, rules))
    back = export(model.state_dict(), rules)
    assert all(torch.equal(back[name], state[name]) for name in back)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("projection", [24, 48])
def test_clip_of_transformers(activation, projection):
    settings = CLIPConfig(
        projection_dim=projection,
        vision_config=VISION | {"hidden_act": activation},
        text_config=TEXT | {"hidden_act": activation},
    )
    peer = randomised(CLIPModel(settings))
    ours = same(
        Clip(clip_configs.from_transformers(settings.to_dict())),
        clip.TRANSFORMERS,
        peer.state_dict(),
    )
    image, text = ours.embed_image(pixels()), ours.embed_text(texts())
    theirs = peer(pixel_values=pixels(), input_ids=texts())
    torch.testing.assert_close(
        image, features(peer.get_image_features(pixels())), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(text, features(peer.get_text_features(texts())), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.logits(image, text), theirs.logits_per_image, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_end_token_of_the_first_published_files():
    """Their configuration says end token 2 and means the highest number (transformers#24773)."""
    settings = CLIPConfig(vision_config=VISION, text_config=TEXT | {"eos_token_id": 2})
    config = clip_configs.from_transformers(settings.to_dict())
    peer = randomised(CLIPModel(settings))
    ours = same(Clip(config), clip.TRANSFORMERS, peer.state_dict())
    torch.testing.assert_close(
        ours.embed_text(texts()), features(peer.get_text_features(texts())), atol=1e-5, rtol=0
    )


OPEN_CLIP = {
    "vit": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 12},
    "layer scale": {
        "image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 12,
        "ls_init_value": 0.1, "mlp_ratio": 2.5,
    },
    "clipa": {
        "image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 12,
        "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True,
    },
    "mean": {
        "image_size": 32, "patch_size": 8, "width": 48, "layers": 2, "head_width": 12,
        "pool_type": "avg",
    },
    "resnet": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 32},
}  # fmt: skip
OPEN_TEXT = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 4, "layers": 2}


@torch.no_grad()
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("tower", sorted(OPEN_CLIP))
def test_clip_of_open_clip(tower, quick):
    text = OPEN_TEXT
    if tower == "clipa":
        text = text | {"pool_type": "last", "no_causal_mask": True}
    model = {
        "embed_dim": 24, "quick_gelu": quick, "vision_cfg": OPEN_CLIP[tower], "text_cfg": text,
    }  # fmt: skip
    peer = randomised(open_clip.model.CLIP(**model))
    config = clip_configs.from_open_clip(model)
    rules = clip.openai_rules(config.resnet is not None)
    ours = same(Clip(config), rules, peer.state_dict())
    size = OPEN_CLIP[tower]["image_size"]
    theirs = peer.encode_image(pixels(size), normalize=True)
    torch.testing.assert_close(ours.embed_image(pixels(size)), theirs, atol=1e-5, rtol=0)
    theirs = peer.encode_text(texts(), normalize=True)
    torch.testing.assert_close(ours.embed_text(texts()), theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_text_of_ordinary_length_costs_no_more():
    """Cut at the longest text, the tower gives the numbers of the padded one."""
    text = clip_model.TextConfig(100, 77, 16, 2, 2, 32, end=99)
    ours = Clip(clip_model.ClipConfig(16, clip_model.VitConfig(16, 8, 16, 1, 2, 32), text=text))
    tokens = texts(12)
    padded = torch.cat([tokens, torch.full((3, 65), 7)], 1)
    torch.testing.assert_close(ours.embed_text(tokens), ours.embed_text(padded), atol=1e-6, rtol=0)
    seen = []
    ours.text.transformer.blocks[0].register_forward_hook(lambda m, i, o: seen.append(i[0].shape))
    ours.embed_text(padded)
    assert seen[0][1] == 12


@torch.no_grad()
def test_a_tower_read_as_the_mean_of_its_tokens():
    """Of the last states in transformers, up to each end token; padding plays no part.

    No other library's CLIP has it, so nothing of theirs is exported in its place.
    """
    settings = CLIPConfig(vision_config=VISION, text_config=TEXT)
    peer = randomised(CLIPModel(settings))
    config = clip_configs.from_transformers(settings.to_dict())
    config = replace(config, text=replace(config.text, pool="mean"))
    ours = same(Clip(config), clip.TRANSFORMERS, peer.state_dict())
    raw = []
    peer.text_model.final_layer_norm.register_forward_pre_hook(
        lambda _, given: raw.append(given[0])
    )
    states = peer.text_model(texts()).last_hidden_state
    means = [row[: end + 1].mean(0) for row, end in zip(raw[0], (15, 5, 9), strict=True)]
    theirs = peer.text_projection(peer.text_model.final_layer_norm(torch.stack(means)))
    torch.testing.assert_close(ours.text(texts()), theirs, atol=1e-5, rtol=1e-5)
    read, vector = ours.text.states_and_vector(texts())
    torch.testing.assert_close(vector, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read, states, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="read at its end token"):
        clip_configs.to_transformers(config)
    with pytest.raises(ValueError, match="open_clip cannot pool the mean of a text"):
        clip_configs.to_open_clip(config)


@torch.no_grad()
def test_siglip_of_transformers():
    settings = TransformersSiglipConfig(vision_config=VISION, text_config=TEXT)
    peer = randomised(SiglipModel(settings))
    ours = Siglip(siglip.from_transformers(settings.to_dict()))
    same(ours, siglip.TRANSFORMERS, peer.state_dict())
    image, text = ours.embed_image(pixels()), ours.embed_text(texts())
    torch.testing.assert_close(
        image, features(peer.get_image_features(pixels())), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(text, features(peer.get_text_features(texts())), atol=1e-5, rtol=0)
    theirs = peer(pixel_values=pixels(), input_ids=texts()).logits_per_image
    torch.testing.assert_close(ours.logits(image, text), theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_siglip2_with_native_aspect_ratio():
    vision = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}
    settings = Siglip2Config(vision_config=vision, text_config=TEXT)
    peer = randomised(Siglip2Model(settings))
    ours = Siglip(siglip.from_transformers(settings.to_dict()))
    same(ours, siglip.TRANSFORMERS, peer.state_dict())
    grid = torch.tensor([[3, 6], [5, 2], [4, 4]])
    values = torch.randn(3, 20, 192, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(20) < grid.prod(1, keepdim=True)
    theirs = peer.get_image_features(
        pixel_values=values, pixel_attention_mask=mask.long(), spatial_shapes=grid
    )
    ragged = ours.embed_patches(values, mask, grid)
    torch.testing.assert_close(ragged, features(theirs), atol=1e-5, rtol=0)
    picture = torch.randn(1, 3, 24, 48, generator=torch.Generator().manual_seed(4))
    rows = as_rows(picture, 8)
    whole = torch.ones(1, 18, dtype=torch.bool)
    alone = ours.embed_patches(rows, whole, torch.tensor([[3, 6]]))
    torch.testing.assert_close(ours.embed_image(picture), alone, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "naflexvit_base_patch16_siglip"])
def test_siglip_of_open_clip(name, monkeypatch):
    """Of timm's towers only the published sizes have names, so two layers of the base one."""
    vision = {
        "image_size": 224, "timm_model_name": name, "timm_pool": "map", "timm_proj": "none",
        "timm_model_pretrained": False,
    }  # fmt: skip
    text = OPEN_TEXT | {
        "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"},
    }  # fmt: skip
    model = {"embed_dim": 768, "init_logit_bias": -10, "vision_cfg": vision, "text_cfg": text}
    naflex = name.startswith("naflex")
    create = open_clip.timm_model.timm.create_model
    monkeypatch.setattr(
        open_clip.timm_model.timm,
        "create_model",
        lambda name, **words: create(name, depth=2, **words),
    )
    peer = randomised(open_clip.model.CustomTextCLIP(**model), 0.05)
    monkeypatch.setitem(siglip.TIMM, "base", (768, 2, 12, 3072))
    config = siglip.from_open_clip(model)
    ours = same(Siglip(config), siglip.open_clip_rules(naflex), peer.state_dict())
    size = 256 if naflex else 224
    theirs = peer.encode_image(pixels(size, 2), normalize=True)
    torch.testing.assert_close(ours.embed_image(pixels(size, 2)), theirs, atol=1e-5, rtol=0)
    theirs = peer.encode_text(texts(), normalize=True)
    torch.testing.assert_close(ours.embed_text(texts()), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_losses_of_open_clip(kind):
    """The objective of a whole model: value, and the gradient of every weight."""
    if kind == "softmax":
        peer = randomised(open_clip.model.CLIP(
            embed_dim=24, vision_cfg=OPEN_CLIP["vit"], text_cfg=OPEN_TEXT
        ))  # fmt: skip
        ours = same(
            Clip(clip_configs.from_open_clip(
                {"embed_dim": 24, "vision_cfg": OPEN_CLIP["vit"], "text_cfg": OPEN_TEXT}
            )),
            clip.openai_rules(False),
            peer.state_dict(),
        )  # fmt: skip
        image, text, scale = peer(pixels(), texts())
        theirs = open_clip.loss.ClipLoss()(image, text, scale)
        loss = clip_model.objective(ours, pixels(), texts())
        rules = clip.openai_rules(False)
    else:
        settings = TransformersSiglipConfig(vision_config=VISION, text_config=TEXT)
        peer = randomised(SiglipModel(settings))
        ours = same(
            Siglip(siglip.from_transformers(settings.to_dict())),
            siglip.TRANSFORMERS,
            peer.state_dict(),
        )
        image = features(peer.get_image_features(pixels()))
        text = features(peer.get_text_features(texts()))
        theirs = open_clip.loss.SigLipLoss()(image, text, peer.logit_scale.exp(), peer.logit_bias)
        loss = siglip_model.objective(ours, pixels(), texts())
        rules = siglip.TRANSFORMERS
    mean = loss.total / loss.count
    torch.testing.assert_close(mean, theirs, atol=1e-6, rtol=1e-5)
    mean.backward()
    theirs.backward()
    gradients = export({n: p.grad for n, p in ours.named_parameters()}, rules)
    for name, parameter in peer.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-3)

"""Stable Diffusion's text towers against transformers and open_clip, with the same weights."""

import json
import os
from pathlib import Path

import open_clip
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.manifests import FOLDER
from tests.parity.reference import randomised
from tests.systems.two_towers.test_published_configurations import collapsed
from triptych.systems.clip.model import TextConfig, TextEncoderConfig, TextTransformer
from triptych.systems.stable_diffusion.model import CLIP_L
from triptych.systems.stable_diffusion.published import text_encoder
from triptych.systems.stable_diffusion.published.text_encoder import (
    OPENCLIP_BIGG,
    OPENCLIP_H,
    OPENCLIP_RULES,
    from_transformers,
    to_transformers,
    transformers_rules,
)
from triptych.weights.keymap import convert, export, fill, under

SMALL = {
    "vocab_size": 100, "max_position_embeddings": 16, "hidden_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "intermediate_size": 64, "bos_token_id": 98, "eos_token_id": 99,
    "pad_token_id": 1, "projection_dim": 24,
}  # fmt: skip
CONFIGS = Path(os.environ.get("TRIPTYCH_DATA", "nowhere")) / "configs" / "diffusers"
MANIFESTS = json.loads((FOLDER / "text_encoders.json").read_text())
needs_data = pytest.mark.skipif(not CONFIGS.is_dir(), reason="TRIPTYCH_DATA is not set")


def windows():
    """Whole windows: the end token in three places, padding behind it."""
    tokens = torch.randint(2, 90, (3, 16), generator=torch.Generator().manual_seed(2))
    for row, place in enumerate((15, 5, 9)):
        tokens[row, place] = 99
        tokens[row, place + 1 :] = 0
    return tokens


def same(config, rules, state):
    model = TextTransformer(config.text, config.dim)
    fill(model, convert(state, rules))
    back = export(model.state_dict(), rules)
    assert all(torch.equal(back[name], state[name]) for name in back)
    return model.eval()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("end", [2, 99])
def test_every_layer_and_both_vectors_of_transformers(activation, projected, end):
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    peer = randomised(
        kind(CLIPTextConfig(**SMALL | {"hidden_act": activation, "eos_token_id": end}))
    )
    stored = peer.config.to_dict() | {"architectures": [kind.__name__]}
    config = from_transformers(stored)
    assert config.text.end == 99 and config.dim == (24 if projected else None)
    state = peer.state_dict()
    ours = same(config, transformers_rules(config, state), state)
    tokens = windows()
    theirs = peer(input_ids=tokens, output_hidden_states=True)
    norm = peer.text_model.final_layer_norm if projected else peer.final_layer_norm
    for skip in range(4):
        layer = theirs.hidden_states[-1 - skip]
        close(ours.states(tokens, skip=skip, norm=False), layer)
        close(ours.states(tokens, skip=skip), norm(layer))  # diffusers' and A1111's clip skip
    close(ours.states(tokens), theirs.last_hidden_state)
    at = (tokens == 99).int().argmax(1)
    pooled = theirs.last_hidden_state[torch.arange(3), at]
    for skip in (0, 1):
        states, vector = ours.states_and_vector(tokens, skip=skip, norm=False, projected=False)
        close(states, theirs.hidden_states[-1 - skip])
        close(vector, pooled if projected else theirs.pooler_output)
    states, vector = ours.states_and_vector(tokens, skip=1)
    close(states, norm(theirs.hidden_states[-2]))
    close(vector, theirs.text_embeds if projected else theirs.pooler_output)
    assert torch.equal(states, ours.states(tokens, skip=1))
    close(F.normalize(vector, dim=-1), F.normalize(ours(tokens), dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["cond_stage_model.model.", "conditioner.embedders.1.model."])
def test_open_clips_form_of_single_files(prefix):
    """The penultimate layer with and without the final norm, and the projected vector."""
    text = {"context_length": 16, "vocab_size": 100, "width": 48, "heads": 4, "layers": 4}
    vision = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 1, "head_width": 12}
    peer = randomised(open_clip.model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text))
    # a single file has the text tower and what lies beside it
    state = {prefix + k: v for k, v in peer.state_dict().items() if not k.startswith("visual.")}
    config = TextEncoderConfig(TextConfig(100, 16, 48, 4, 4, 192, end=99), 24, skip=1)
    ours = same(config, under(OPENCLIP_RULES, prefix), state)
    tokens = windows()
    x = peer.token_embedding(tokens) + peer.positional_embedding
    for block in peer.transformer.resblocks[:-1]:
        x = block(x, attn_mask=peer.attn_mask)
    states, vector = ours.states_and_vector(tokens, skip=config.skip, norm=False)
    close(states, x)
    close(ours.states(tokens, skip=config.skip, norm=config.norm), peer.ln_final(x))
    close(vector, peer.encode_text(tokens))


@torch.no_grad()
def test_the_skipped_block_is_not_computed():
    model = TextTransformer(TextConfig(100, 16, 16, 3, 2, 32, end=99), None)
    seen = []
    for number, block in enumerate(model.transformer.blocks):
        block.register_forward_hook(lambda *_, number=number: seen.append(number))
    model.states(windows(), skip=1)
    assert seen == [0, 1]


def test_what_a_tower_refuses():
    model = TextTransformer(TextConfig(100, 16, 16, 3, 2, 32, end=99), None)
    with pytest.raises(ValueError, match="0 to 2, for a text tower of 3 blocks, not 3"):
        model.states(windows(), skip=3)
    with pytest.raises(ValueError, match="reads at most 16"):
        model.states(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(ValueError, match="lacks the end token 99"):
        model.states_and_vector(torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="skip must leave at least one of 12 blocks"):
        TextEncoderConfig(skip=12)


@needs_data
@pytest.mark.parametrize(
    "name",
    [
        name if place % 4 == 0 else pytest.param(name, marks=pytest.mark.slow)
        for place, name in enumerate(sorted(MANIFESTS["models"]))
    ],
)
def test_published_folders_have_their_names_and_shapes(name):
    stored = json.loads((CONFIGS / name / "config.json").read_text())
    config = from_transformers(stored)
    with torch.device("meta"):
        model = TextTransformer(config.text, config.dim)
    names = MANIFESTS["models"][name]
    assert collapsed(export(model.state_dict(), transformers_rules(config, names))) == names
    assert from_transformers(to_transformers(config)) == config


@needs_data
def test_every_published_text_encoder_is_built_or_refused_by_name():
    refused = {}
    for path in sorted(CONFIGS.glob("*/text_encoder*/config.json")):
        name = str(path.parent.relative_to(CONFIGS))
        if name not in MANIFESTS["models"]:
            with pytest.raises(ValueError) as error:
                from_transformers(json.loads(path.read_text()))
            refused[name] = str(error.value)
    assert sorted(refused) == [
        "FLUX.1-dev/text_encoder_2", "stable-diffusion-3-medium-diffusers/text_encoder_3",
    ]  # fmt: skip
    assert all("'t5'" in reason for reason in refused.values())
    with pytest.raises(ValueError, match="architecture is 'CLIPModel'"):
        from_transformers({"model_type": "clip_text_model", "architectures": ["CLIPModel"]})


@needs_data
def test_the_bundled_configurations_are_the_published_ones():
    def stored(name):
        return json.loads((CONFIGS / name / "config.json").read_text())

    assert from_transformers(stored("stable-diffusion-v1-5/text_encoder")) == CLIP_L
    big = stored("stable-diffusion-xl-base-1.0/text_encoder_2")
    assert from_transformers(big, skip=1, norm=False) == OPENCLIP_BIGG
    # the folder lacks the block that is not read, and the projection
    cut = from_transformers(stored("stable-diffusion-2-1/text_encoder"))
    assert (cut.text.layers, OPENCLIP_H.text.layers - OPENCLIP_H.skip) == (23, 23)
    huge = json.loads((CONFIGS.parent / "open_clip" / "ViT-H-14.json").read_text())
    whole = text_encoder.OPENCLIP_H
    assert (whole.text.layers, whole.dim) == (huge["text_cfg"]["layers"], huge["embed_dim"])


def test_both_forms_of_transformers_own_files():
    """Without a projection transformers 5 leaves the prefix out; published files have it."""
    config = TextEncoderConfig(TextConfig(100, 16, 16, 1, 2, 32, end=99))
    model = TextTransformer(config.text, config.dim)
    published = export(model.state_dict(), transformers_rules(config))
    assert "text_model.embeddings.token_embedding.weight" in published
    bare = {name.removeprefix("text_model."): x for name, x in published.items()}
    for state in (published, bare):
        fill(model, convert(state, transformers_rules(config, state)))

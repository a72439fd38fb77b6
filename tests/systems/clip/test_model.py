"""CLIP and SigLIP as models: shapes, dense patches, caching, and what they refuse."""

import math

import pytest
import torch
from torch.nn import functional as F

from triptych.systems.clip import model as clip
from triptych.systems.clip.model import (
    CbowConfig,
    Clip,
    ClipConfig,
    TextConfig,
    TextTransformer,
    VitConfig,
)
from triptych.systems.clip.resnet import ResNetConfig
from triptych.systems.siglip import model as siglip
from triptych.systems.siglip.model import Siglip, SiglipConfig, SiglipImageConfig, SiglipTextConfig

TEXT = TextConfig(50, 12, 16, 2, 2, 32, end=49)
VIT = VitConfig(32, 8, 16, 2, 2, 32)


def made(**changes):
    torch.manual_seed(0)
    model = Clip(ClipConfig(**({"dim": 12, "vit": VIT, "text": TEXT} | changes)))
    return model.eval()


def made_siglip(**changes):
    torch.manual_seed(0)
    image = SiglipImageConfig(32, 8, 16, 2, 2, 32)
    text = SiglipTextConfig(50, 12, 16, 2, 2, 32)
    return Siglip(SiglipConfig(**({"image": image, "text": text} | changes))).eval()


MODELS = {
    "vit": lambda: made(),
    "mean": lambda: made(vit=VitConfig(32, 8, 16, 2, 2, 32, pool="mean", stem=(4, 8, 8))),
    "resnet": lambda: made(vit=None, resnet=ResNetConfig(64, 8, (1, 1, 1, 1), 4)),
    "words": lambda: made(text=None, words=CbowConfig(50, 12, 8, (0, 48, 49))),
    "siglip": lambda: made_siglip(),
    "siglip words": lambda: made_siglip(text=None, words=CbowConfig(50, 12, 8, (0, 49))),
}


def batch(model, count=6):
    torch.manual_seed(1)
    size = model.config.size
    tokens = torch.randint(1, 48, (count, 12))
    tokens[:, 7] = 49
    return torch.randn(count, 3, size, size), tokens


@pytest.mark.parametrize(
    "name",
    [
        *("vit", "resnet", "siglip"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mean", "words", "siglip words")),
    ],
)
def test_every_pair_of_towers_embeds_and_learns(name):
    model = MODELS[name]()
    pixels, tokens = batch(model)
    for embedded in (model.embed_image(pixels), model.embed_text(tokens)):
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(6))
        assert embedded.dtype == torch.float32
    model.train()  # a ResNet's normalisation learns from its batches
    family = clip if isinstance(model, Clip) else siglip
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = family.objective(model, pixels, tokens)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        losses.append(loss.total.item() / loss.count)
    assert losses[-1] < losses[0] / 2
    logits = model.logits(model.embed_image(pixels), model.embed_text(tokens))
    assert logits.argmax(1).tolist() == list(range(6))


def test_a_clip_that_knows_nothing_is_at_chance():
    model = made()
    pixels, tokens = batch(model, 48)
    model.logit_scale.data.fill_(0)
    loss = clip.objective(model, pixels, tokens)
    assert loss.total.item() / 48 == pytest.approx(math.log(48), rel=0.02)


def test_the_temperature_is_clipped_at_100():
    model = made()
    pixels, tokens = batch(model)
    model.logit_scale.data.fill_(6.0)
    clipped = clip.objective(model, pixels, tokens)
    assert clipped.terms["scale"].item() == pytest.approx(100)
    model.logit_scale.data.fill_(math.log(100))
    assert clip.objective(model, pixels, tokens).total == clipped.total


@pytest.mark.parametrize("name", ["vit", "siglip", "words"])
def test_cached_chunks_give_the_gradients_of_the_whole_batch(name):
    model = MODELS[name]()
    family = clip if isinstance(model, Clip) else siglip
    pixels, tokens = batch(model)
    gradients = []
    for cache in (0, 4):
        model.zero_grad()
        loss = family.objective(model, pixels, tokens, cache=cache)
        loss.total.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)


def test_equal_captions_are_positives_of_one_another():
    """Three pictures, two of one caption: the plain formula, with the target spread over both."""
    model = made()
    pixels, tokens = batch(model, 3)
    tokens[1] = tokens[0]
    together = clip.objective(model, pixels, tokens, groups=torch.tensor([5, 5, 7])).total / 3
    logits = model.logits(model.embed_image(pixels), model.embed_text(tokens))
    target = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]])
    both = [-(target * logits.log_softmax(axis)).sum() / 3 for axis in (0, 1)]
    torch.testing.assert_close(together, sum(both) / 2)


def test_a_text_read_as_the_mean_begins_as_its_words_and_its_blocks_learn():
    torch.manual_seed(0)
    tower = TextTransformer(TextConfig(50, 12, 16, 2, 2, 32, end=49, pool="mean"), 12)
    bag = TextTransformer(TextConfig(50, 12, 16, 0, 2, 32, end=49, pool="mean"), 12)
    bag.load_state_dict(tower.state_dict(), strict=False)
    tokens = torch.randint(1, 48, (6, 12))
    tokens[:, 7] = 49
    torch.testing.assert_close(tower(tokens), bag(tokens), atol=0, rtol=0)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    optimizer = torch.optim.SGD(tower.parameters(), 0.1)
    for _ in range(2):  # the first moves what blocks add, the second all of them
        optimizer.zero_grad()
        tower(tokens)[:, 0].sum().backward()
        optimizer.step()
    still = [n for n, value in tower.named_parameters() if torch.equal(before[n], value)]
    assert all(name.endswith("k_proj.bias") for name in still), still  # which moves no softmax


def test_patches_of_a_mean_pooled_tower_add_up_to_the_picture():
    model = MODELS["mean"]()
    pixels, _ = batch(model)
    projected = model.image.patches(pixels)
    assert projected.shape == (6, 4, 4, 12)
    pooled = F.normalize(projected.mean((1, 2)), dim=-1)
    torch.testing.assert_close(pooled, model.embed_image(pixels), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit", "mean", "resnet", "siglip"])
def test_patches_of_any_size(name):
    model = MODELS[name]()
    step = 32 if name == "resnet" else 8
    found = model.patches(torch.randn(2, 3, 3 * step, 5 * step))
    assert found.shape[:3] == (2, 3, 5)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match=r"patch|smaller"):
        model.patches(torch.randn(1, 3, 4, 64))


LOOKING_ONCE = VitConfig(32, 8, 16, 1, 2, 32, pool="mean")


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "looks"),
    [(made(), 1), (made(vit=LOOKING_ONCE), 1), (made_siglip(), 2)],
    ids=["class", "mean", "siglip"],
)
def test_a_patch_hears_of_what_its_reach_covers(model, looks):
    """Once in every block that looks around: a class-pooled tower's last one does not."""
    plain, marked = torch.zeros(2, 1, 3, 40, 56)
    marked[:, :, 16:24, 8:16] = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model.patches(marked, 7), model.patches(marked), atol=1e-6, rtol=0)
    row, column = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    apart = torch.maximum((row - 2).abs(), (column - 1).abs())
    for reach in (0, 1):
        off = model.patches(marked, reach) - model.patches(plain, reach)
        assert torch.equal(off[0].abs().amax(-1) > 1e-7, apart <= looks * reach)


def test_a_resnet_has_no_reach():
    with pytest.raises(ValueError, match="a ResNet has none"):
        MODELS["resnet"]().patches(torch.randn(1, 3, 64, 64), 1)


@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_patch_dropout_looks_at_fewer_patches(name):
    model = MODELS[name]()
    seen = []
    model.image.transformer.blocks[0].register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[1])
    )
    pixels, _ = batch(model)
    model.image(pixels, 0.25)
    assert seen == [4 + (name == "vit")]


def test_a_word_of_the_bag_is_heard_wherever_it_stands():
    model = MODELS["words"]()
    tokens = torch.tensor([[48, 3, 4, 5, 49, 0], [48, 5, 3, 4, 49, 0]])
    texts = model.embed_text(tokens)
    torch.testing.assert_close(texts[0], texts[1])


def test_configurations_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="one image tower"):
        ClipConfig(resnet=ResNetConfig())
    with pytest.raises(ValueError, match="one text tower"):
        ClipConfig(text=None)
    with pytest.raises(ValueError, match="5 heads"):
        VitConfig(heads=5)
    with pytest.raises(ValueError, match="makes patches of 4"):
        VitConfig(stem=(8, 8))
    with pytest.raises(ValueError, match="four stages"):
        ResNetConfig(layers=(1, 2))
    with pytest.raises(ValueError, match="needs its projection"):
        SiglipConfig(text=SiglipTextConfig(width=512, heads=8, projection=False))
    model = made()
    with pytest.raises(ValueError, match="at most 12"):
        model.embed_text(torch.full((1, 13), 49))
    with pytest.raises(ValueError, match="lacks the end token 49"):
        model.embed_text(torch.full((1, 5), 3))
    with pytest.raises(ValueError, match="padded to 12"):
        made_siglip().embed_text(torch.full((1, 5), 3))
    with pytest.raises(ValueError, match="only a naflex model"):
        made_siglip().embed_patches(
            torch.zeros(1, 4, 192), torch.ones(1, 4, dtype=torch.bool), torch.tensor([[2, 2]])
        )

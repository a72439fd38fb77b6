"""The autoregressive prior: its codes, its causal mask, its cache."""

import pytest
import torch

from triptych.systems.unclip import autoregressive, prior
from triptych.systems.unclip.autoregressive import (
    AutoregressiveConfig,
    AutoregressivePrior,
    PcaCoder,
    draw_nearness,
    sample,
)

CONFIG = AutoregressiveConfig(8, 6, 9, 5, 16, 8, 16, 2, 2, 32)


def made(**changes) -> AutoregressivePrior:
    torch.manual_seed(0)
    model = AutoregressivePrior(CONFIG)
    for name, parameter in model.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, centre, 0.3)
    model.fit(torch.randn(200, 8) * torch.linspace(0.2, 2, 8), torch.randn(200, 8))
    return model.eval().requires_grad_(False)


def texts(lengths=(4, 9, 7)):
    torch.manual_seed(1)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    return {
        "text": torch.randn(len(lengths), 8), "states": torch.randn(len(lengths), 9, 6),
        "mask": mask,
    }  # fmt: skip


@pytest.mark.parametrize("buckets", [2, 16, 1000])
def test_codes_and_back_lose_at_most_half_a_bucket(buckets):
    """Of every component; with all components that is all that is lost, and what is left out
    otherwise is what the components left out held.
    """
    torch.manual_seed(0)
    embeddings = torch.randn(500, 8).double() * torch.linspace(0.2, 2, 8) + 1
    coder = PcaCoder(8, 8, buckets).double()
    coder.fit(embeddings)
    codes = coder.encode(embeddings)
    assert codes.min() == 0 and codes.max() == buckets - 1
    lost = (coder.scores(coder.decode(codes)) - coder.scores(embeddings)).abs()
    half = (coder.high - coder.low) / buckets / 2
    assert (lost <= half + 1e-6).all()  # components are kept in float32
    assert (lost.amax(0) > 0.5 * half).all()
    assert torch.equal(coder.encode(coder.decode(codes)), codes)
    variances = coder.components.variances
    assert (variances.diff() <= 0).all()  # by eigenvalue
    few = PcaCoder(8, 3, buckets).double()
    few.fit(embeddings)
    assert torch.equal(few.encode(embeddings), codes[:, :3])


def test_how_near_picture_and_text_are_is_said_in_values_as_frequent():
    torch.manual_seed(0)
    model, image, text = AutoregressivePrior(CONFIG), torch.randn(800, 8), torch.randn(800, 8)
    model.fit(image, text)
    near = model.find_nearness(image, text)
    assert near.bincount().tolist() == [100] * 8
    dots = (image * text).sum(1)
    assert all(dots[near == k].max() < dots[near == k + 1].min() for k in range(7))
    drawn = draw_nearness(CONFIG, range(400))
    assert set(drawn.tolist()) == {4, 5, 6, 7}
    assert draw_nearness(CONFIG, [17])[0] == drawn[17]


def test_no_code_sees_those_after_it():
    """Changing code j changes the logits of later codes only; and the first ones know no code."""
    model, cond = made(), texts()
    near = torch.tensor([1, 5, 7])
    codes = torch.randint(16, (3, 5), generator=torch.Generator().manual_seed(0))
    before = model(codes, cond, near)
    for changed in range(5):
        other = codes.clone()
        other[:, changed] = (other[:, changed] + 1) % 16
        moved = (model(other, cond, near) - before).abs().amax((0, 2)) > 1e-6
        assert moved.tolist() == [place > changed for place in range(5)]


def test_every_code_sees_the_text_without_its_padding():
    model, cond, near = made(), texts(), torch.tensor([1, 5, 7])
    codes = torch.zeros(3, 5, dtype=torch.long)
    before = model(codes, cond, near)
    garbage = cond | {"states": cond["states"].masked_fill(~cond["mask"][..., None], 99.0)}
    torch.testing.assert_close(model(codes, garbage, near), before)
    for name in ("text", "states"):
        other = model(codes, cond | {name: -cond[name]}, near)
        assert ((other - before).abs().amax(2) > 1e-4).all()
    assert ((model(codes, cond, (near + 1) % 8) - before).abs().amax(2) > 1e-4).all()
    alone = {name: value[:1, :4] if value.ndim > 1 and name != "text" else value[:1]
             for name, value in cond.items()}  # fmt: skip
    torch.testing.assert_close(model(codes[:1], alone, near[:1]), before[:1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_token_of_the_diffusion_prior_sees_those_after_it():
    """Of the tokens' states, which the mask alone separates; padding is seen by none."""
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    seen = prior.causal_mask(mask, 9)
    assert not seen.triu(1).any()
    assert not seen[0, :, 3:5].any() and seen[0, 5:, 5].all() and seen[1, 8].all()
    torch.manual_seed(0)
    model = prior.DiffusionPrior(prior.PriorConfig(8, 6, 5, 16, 2, 2, 32)).eval()
    x = torch.randn(2, 9, 16)
    before = model.transformer(x, seen[:, None])
    for changed in (0, 4, 6):
        other = x.clone()
        other[1, changed] = torch.randn(16)
        moved = (model.transformer(other, seen[:, None])[1] - before[1]).abs().amax(1) > 1e-6
        assert moved.tolist() == [place >= changed for place in range(9)]


@torch.no_grad()
def test_the_query_reads_every_input_but_no_padding():
    torch.manual_seed(0)
    model = prior.DiffusionPrior(prior.PriorConfig(8, 6, 9, 16, 2, 2, 32)).eval()
    cond, x, time = texts(), torch.randn(3, 8), torch.tensor([5, 500, 900])
    before = model.predict(x, time, cond)
    garbage = cond | {"states": cond["states"].masked_fill(~cond["mask"][..., None], 99.0)}
    torch.testing.assert_close(model.predict(x, time, garbage), before)
    for changed in (
        model.predict(x + 1, time, cond), model.predict(x, time + 50, cond),
        model.predict(x, time, cond | {"text": -cond["text"]}),
        model.predict(x, time, cond | {"states": -cond["states"]}),
    ):  # fmt: skip
        assert ((changed - before).abs().amax(1) > 1e-5).all()


@torch.no_grad()
def test_texts_that_were_read_once_give_the_same_embedding_at_every_step():
    """Also of texts of several lengths, and in any order of steps."""
    torch.manual_seed(0)
    model = prior.DiffusionPrior(prior.PriorConfig(8, 6, 9, 16, 2, 2, 32)).eval()
    cond = texts()
    read = model.read_texts(cond)
    for time in (900, 5, 500):
        x, at = torch.randn(3, 8), torch.full((3,), time)
        expected = model.predict(x, at, cond)
        torch.testing.assert_close(model.predict_after(x, at, read), expected)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_cache_changes_no_code(guidance):
    """And one row alone is drawn as in company."""
    model, cond, uncond = made(), texts(), texts((3, 3, 3))

    def draw(cond, uncond, seeds, **more):
        *_, codes = sample(model, cond, uncond, seeds, guidance=guidance, temperature=1.0, **more)
        return codes

    codes = draw(cond, uncond, [4, 5, 6])
    assert codes.shape == (3, 5)
    assert torch.equal(draw(cond, uncond, [4, 5, 6], cached=False), codes)
    second = [{name: value[1:2] for name, value in each.items()} for each in (cond, uncond)]
    assert torch.equal(draw(*second, [5])[0], codes[1])
    assert not torch.equal(draw(cond, uncond, [7, 8, 9]), codes)


def test_without_temperature_each_code_is_the_most_likely():
    """By the logits of the whole sequence at once."""
    model, cond = made(), texts()
    *_, codes = sample(model, cond, cond, [0, 1, 2], temperature=0.0, guidance=1.0)
    logits = model(codes, cond, draw_nearness(CONFIG, [0, 1, 2]))
    assert torch.equal(logits.argmax(2), codes)


def test_the_loss_is_the_likelihood_of_the_codes():
    model, cond, uncond = made(), texts(), texts((3,))
    torch.manual_seed(3)
    image = torch.randn(3, 8)
    kept = torch.zeros(3, dtype=torch.bool)
    loss = autoregressive.objective(model, image, cond, uncond, kept)
    codes, near = model.coder.encode(image), model.find_nearness(image, cond["text"])
    likely = model(codes, cond, near).log_softmax(2).gather(2, codes[..., None])
    assert float(loss.total) == pytest.approx(-float(likely.sum()) / 5, rel=1e-5)
    assert float(loss.terms["nats"]) == pytest.approx(-float(likely.mean()), rel=1e-5)
    without = autoregressive.objective(model, image, cond, uncond, ~kept)
    other = autoregressive.objective(model, image, texts((9, 4, 7)), uncond, ~kept)
    assert float(without.total) != pytest.approx(float(loss.total), abs=1e-3)
    assert float(other.total) == pytest.approx(float(without.total), abs=1e-5)

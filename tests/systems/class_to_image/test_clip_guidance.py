"""A CLIP's score of pictures while they are drawn, and what it makes of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.diffusion.exact import even
from tests.systems.class_to_image.test_diffusion import loaded as diffusion
from tests.systems.clip.tiny_clip import saved, tiny_clip
from triptych import runtime
from triptych.diffusion.samplers.deterministic import dpmpp_2m, euler
from triptych.diffusion.steps import Level
from triptych.loading import load
from triptych.requests import ClassToImage
from triptych.running import run
from triptych.systems.class_to_image import pipeline as class_to_image
from triptych.systems.class_to_image.clip_guidance import guide_with_clip, prompt_score
from triptych.vision.images import to_pictures
from triptych.vision.transforms import PatchTransform

CLIP = tiny_clip()


def images(count: int = 4, side: int = 48) -> torch.Tensor:
    blocks = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return blocks.repeat_interleave(side // 6, 2).repeat_interleave(side // 6, 3)


@pytest.mark.parametrize("side", [24, 32, 48])
def test_the_score_is_the_logit_of_the_picture_that_is_saved(side: int) -> None:
    """Through bytes and the model's own transform, which knows no gradients."""
    x0 = images(side=side)
    score = prompt_score(CLIP, "two cats")(x0)
    text = CLIP.embed_text(["two cats"])
    logits = CLIP.model.logits(CLIP.embed_image(list(to_pictures(x0))), text)[:, 0]
    # Pillow rounds and clips between its two passes: a third of a grey level on average
    assert torch.allclose(score, logits, atol=0.25)
    assert float(logits.std()) > 1


def test_its_slope_is_that_of_finite_differences() -> None:
    x0 = images() * 0.8
    for cutouts in (0, 3):
        fresh = prompt_score(CLIP, "two cats", cutouts, seed=1)
        at = x0.clone().requires_grad_()
        (slope,) = torch.autograd.grad(fresh(at).sum(), at)
        direction = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
        step = 3e-4

        def along(amount: float, cutouts: int = cutouts, d: torch.Tensor = direction) -> float:
            return float(
                prompt_score(CLIP, "two cats", cutouts, seed=1)(x0 + amount * d).double().sum()
            )

        measured = (along(step) - along(-step)) / (2 * step)
        assert float((slope * direction).sum()) == pytest.approx(measured, rel=0.03)


def test_cutouts_are_the_seeds_and_the_same_for_every_picture() -> None:
    def scored(x0: torch.Tensor, seed: int) -> torch.Tensor:
        score = prompt_score(CLIP, "two cats", 4, seed)
        return torch.stack([score(x0), score(x0)])

    x0 = images()
    assert torch.equal(scored(x0, 1), scored(x0, 1))
    assert not torch.equal(scored(x0, 1), scored(x0, 2))
    assert not torch.equal(*scored(x0, 1))  # drawn anew at each call
    assert torch.allclose(scored(x0, 1)[:, 2:3], scored(x0[2:3], 1), atol=1e-5)  # in any batch


def drawn(tmp_path, load=load, **fields) -> np.ndarray:
    saved(CLIP, tmp_path / "clip")
    request = ClassToImage(
        seed=3, n=4, steps=6, precision="float32", clip=str(tmp_path / "clip"),
        clip_prompt="two cats", **fields,
    )  # fmt: skip
    model = diffusion()
    *_, result = class_to_image.run(
        request, lambda name, *given: model if name == request.model else load(name, *given)
    )
    return result.pictures


@pytest.mark.parametrize(
    ("sampler", "cutouts", "rise"),
    [
        (dpmpp_2m, 0, 0.3),
        (euler, 4, 0.05),
        pytest.param(euler, 0, 0.3, marks=pytest.mark.slow),
        pytest.param(dpmpp_2m, 4, 0.05, marks=pytest.mark.slow),
    ],
)
def test_guided_pictures_score_higher(sampler, cutouts, rise) -> None:
    """White noise of deviation 0.5, whose ideal denoiser is known, and a random CLIP: only guidance
    can raise the cosine, of whole pictures and of squares that it never saw.
    """

    def ideal(x: torch.Tensor, level: Level) -> torch.Tensor:
        return level.alpha * x / (level.alpha**2 + 4 * level.sigma**2)

    start = runtime.noise((3, 32, 32), range(8))
    scored = {}
    for scale in (0.0, 20.0):
        request = ClassToImage(
            clip="x", clip_prompt="two cats", clip_scale=scale, seed=0, clip_cutouts=cutouts
        )
        *_, last = sampler(guide_with_clip(request, CLIP, ideal), start, even(30))
        other = prompt_score(CLIP, "two cats", 8 * cutouts, seed=9)
        scored[scale] = other(last.x) / CLIP.model.logit_scale.exp()
    assert float((scored[20.0] - scored[0.0]).mean()) > rise, scored
    assert bool((scored[20.0] > scored[0.0]).float().mean() >= 0.75), scored


def test_a_guided_picture_is_the_same_in_any_company(tmp_path) -> None:
    fields = {"clip_scale": 20.0, "clip_cutouts": 2}
    together = drawn(tmp_path, **fields)
    alone = drawn(tmp_path, deterministic=True, **fields)
    assert np.abs(together.astype(int) - alone.astype(int)).max() <= 1


def test_the_clip_that_guides_computes_as_precisely_as_what_it_guides(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "multiplies_bfloat16", lambda: True)  # so `auto` would not
    found = []

    def reads(name, *given):
        found.append(load(name, *given))
        return found[-1]

    drawn(tmp_path, reads, clip_scale=1.0)
    assert [next(each.model.image.parameters()).dtype for each in found] == [torch.float32]


def test_guidance_reaches_the_model_through_its_request(tmp_path) -> None:
    plain, guided = (drawn(tmp_path, clip_scale=scale) for scale in (0.0, 20.0))
    assert np.abs(plain.astype(int) - guided.astype(int)).mean() > 5


def test_without_a_prompt_nothing_changes(tmp_path) -> None:
    plain = drawn(tmp_path, clip_scale=0.0)
    *_, result = run(ClassToImage(seed=3, n=4, steps=6, precision="float32"), diffusion())
    assert np.array_equal(result.pictures, plain)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clip": "runs/clip"}, "go together"),
        ({"clip_prompt": "a cat"}, "go together"),
        ({"clip_scale": -1.0}, "clip_scale must be"),
        ({"clip_cutouts": 1000}, "clip_cutouts must be"),
    ],
)
def test_requests_check_themselves(fields, words) -> None:
    with pytest.raises(ValueError, match=words):
        ClassToImage(**fields)


def test_who_cannot_guide_or_be_guided_is_told(tmp_path) -> None:
    from tests.systems.class_to_image.test_pipeline import loaded as other

    with pytest.raises(ValueError, match="cannot guide"):
        prompt_score(other(), "a cat")
    with pytest.raises(ValueError, match="cannot guide"):
        prompt_score(replace(CLIP, transform=PatchTransform()), "a cat")
    request = ClassToImage(clip=str(tmp_path), clip_prompt="a cat")
    with pytest.raises(ValueError, match="--clip-prompt cannot be used"):
        list(run(request, other()))

"""Two curves of a guided diffusion model: quality against guidance, and against network calls.

Guidance trades variety for fidelity (arXiv:2207.12598, figure 4); samplers differ in how many calls
of the network they need for the same quality (arXiv:2206.00364, figure 2). Every point is evaluated
as in `judge.py`, on fewer pictures.

Dimensions: N samples, C channels, H height, W width.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triptych.data.source import Source
from triptych.diffusion.names import SAMPLERS as RECORDS
from triptych.scores.accuracy import Accuracy, accuracy
from triptych.scores.diversity import diversity
from triptych.scores.fid import Estimate, frechet_estimate, kernel_distance
from triptych.scores.prdc import prdc
from triptych.systems.class_to_image.judge import judge_pictures, match_classes, read_pictures
from triptych.systems.classifier.model import Classifier
from triptych.vision.images import to_pictures

Draw = Callable[[Int[Tensor, " N"], int, str, int, float], Float[Tensor, "N C H W"]]
"""(labels, seed, sampler, steps, guidance) to pictures in [-1, 1]; picture i is seeded seed + i."""

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
BUDGETS = (5, 10, 20, 50, 100)  # network calls; a guided pair is one
SAMPLERS = (
    "euler", "heun", "dpm2", "lms", "plms", "dpmpp_2m", "deis", "unipc", "euler_ancestral",
    "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde",
)  # fmt: skip
BATCH = 100


@dataclass(frozen=True)
class Point:
    """One setting of the sampler and its scores."""

    sampler: str
    steps: int
    calls: int
    """Network calls per picture; a guided pair is one."""
    guidance: float
    accuracy: Accuracy
    frechet: Estimate
    kernel: Estimate
    precision: float
    recall: float
    diversity: float | None
    """Mean over classes: distance of two samples divided by that of two real pictures."""


@dataclass(frozen=True)
class Curves:
    """Both curves, and the scores of real pictures."""

    guidance: tuple[Point, ...]
    samplers: tuple[Point, ...]
    judge: Accuracy
    floor: Estimate
    """KID of as many other training pictures: the value for perfect samples."""
    samples: int
    """Pictures per point."""
    seed: int


def max_steps(sampler: str, calls: int) -> int:
    """The most steps that need at most this many network calls (inverse of `network_calls`)."""
    if sampler == "plms":
        return calls - 1
    return (calls + 1) // 2 if RECORDS[sampler].calls == 2 else calls


def network_calls(sampler: str, steps: int) -> int:
    """Network calls of this many steps that end at the clean picture."""
    if sampler == "plms":
        return steps + 1
    return 2 * steps - 1 if RECORDS[sampler].calls == 2 else steps


def compute_curves(
    draw: Draw,
    train: Source,
    test: Source,
    judge: Classifier,
    *,
    samples: int,
    sampler: str,
    steps: int,
    guidance: float,
    seed: int = 0,
) -> Generator[str, None, Curves]:
    """Yields messages about progress and returns both curves.

    The guidance curve uses `sampler` and `steps`, the sampler curve `guidance`.
    """
    classes = len(train.info.classes)
    real = judge_pictures(judge, *read_pictures(train, 4 * samples, seed))
    held_out = judge_pictures(judge, *read_pictures(test, 10_000, seed + 1))
    reference, other = real.features[:samples], real.features[samples : 2 * samples]
    # half as many again, so that every class has enough for the proportions of real pictures
    labels = torch.arange(samples + samples // 2) % classes

    def point(sampler: str, steps: int, guidance: float) -> Point:
        pictures = [
            to_pictures(draw(part, seed + BATCH * i, sampler, steps, guidance))
            for i, part in enumerate(labels.split(BATCH))
        ]
        judged = judge_pictures(
            judge, torch.cat([torch.from_numpy(p).permute(0, 3, 1, 2) for p in pictures]), labels
        )
        features = match_classes(judged, real.label[:samples])
        truth = reference[: len(features)]
        shares = prdc(truth, features)
        per_class = diversity(
            judged.features, judged.label, held_out.features, held_out.label, classes
        )
        ratios = [ratio for ratio in per_class if ratio is not None]
        return Point(
            sampler,
            steps,
            network_calls(sampler, steps),
            guidance,
            accuracy(judged.predicted, judged.label),
            frechet_estimate(features, truth),
            kernel_distance(features, truth),
            shares.precision,
            shares.recall,
            sum(ratios) / len(ratios) if ratios else None,
        )

    guidance_curve, sampler_curve = [], []
    for scale in SCALES:
        yield f"guidance {scale:g}: {len(labels)} pictures"
        guidance_curve.append(point(sampler, steps, scale))
    for name in SAMPLERS:
        for budget in BUDGETS:
            yield f"{name}, {budget} calls: {len(labels)} pictures"
            sampler_curve.append(point(name, max_steps(name, budget), guidance))
    return Curves(
        tuple(guidance_curve),
        tuple(sampler_curve),
        judge=accuracy(held_out.predicted, held_out.label),
        floor=kernel_distance(other, reference),
        samples=samples,
        seed=seed,
    )

"""The diffusion prior: from a text to the CLIP embedding of a picture (arXiv:2204.06125, 2.2).

A causal transformer over the states of the text, the text's embedding, the timestep, the noised
image embedding and a learned query; the state of the query predicts the clean embedding. Embeddings
are normalised by their mean and standard deviation before noise is added to them (Karlo), or
multiplied by a number: a mean of 0 and its inverse as deviation (appendix C of the paper).

Dimensions: B pictures, E width of embeddings, T tokens of the text, S width of their states, D
width of the transformer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from triptych.diffusion.denoiser import PARAMETERISATIONS, Conditioning, conditional_denoiser
from triptych.diffusion.guidance import classifier_free
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.objective import matching, training_levels
from triptych.diffusion.samplers.levels import sampler_levels
from triptych.diffusion.sampling import run_sampler
from triptych.diffusion.schedule import Discrete, Levels, betas
from triptych.diffusion.spacing import Spacing
from triptych.diffusion.steps import Level, Step
from triptych.fields import bounded
from triptych.nn.cache import Cache
from triptych.nn.checks import require_at_least, require_heads
from triptych.nn.levels import Features
from triptych.nn.loss import Loss
from triptych.nn.position import timestep_embedding
from triptych.nn.transformer import Transformer

BESIDE = 4
"""Tokens beside those of the text: its embedding, the timestep, the noised embedding, the query."""
COSINE = Discrete(tuple(betas("cosine")))
"""The noise schedule of the prior, and of Karlo's decoder and upsampler."""


@dataclass(frozen=True)
@bounded
class PriorConfig:
    """Configuration of a diffusion prior; the defaults are Karlo's."""

    dim: int = 768
    """Width of the embeddings."""
    states: int = 768
    """Width of the states of the text."""
    length: int = 77
    """Most tokens of a text."""
    width: int = 2048
    layers: int = 20
    heads: int = 32
    hidden: int = 8192
    limit: float = 5.0
    """Bound of the normalised embedding at every step of sampling; 0 for none. Folders of diffusers
    say 5, Karlo's own program has 10.
    """
    steps: int = 25
    """Default of `generate`, as are sampler and guidance."""
    sampler: str = "ddpm"
    guidance: float = 4.0
    candidates: int = 1
    """Embeddings drawn for each picture, of which the one nearest to the text is taken; the paper
    takes the better of two.
    """

    def __post_init__(self) -> None:
        require_at_least(self, 1, "dim", "states", "length", "layers", "steps", "candidates")
        require_at_least(self, 0, "limit", "guidance")
        require_heads(self)


class DiffusionPrior(nn.Module):
    """Predicts the clean image embedding from a noised one, a timestep and a text."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.time = Features(width, width)
        self.state_proj = nn.Linear(config.states, width)
        self.text_proj = nn.Linear(config.dim, width)
        self.image_proj = nn.Linear(config.dim, width)
        self.position = nn.Parameter(0.01 * torch.randn(config.length + BESIDE, width))
        self.query = nn.Parameter(0.01 * torch.randn(width))
        self.transformer = Transformer(width, config.layers, config.heads, config.hidden)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.dim)
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("std", torch.ones(config.dim))

    mean: Tensor
    std: Tensor

    def normalise(self, image: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        """Image embeddings as noise is added to them."""
        return (image - self.mean) / self.std

    def forward(
        self,
        x: Float[Tensor, "B E"],
        time: Num[Tensor, " B"],
        text: Float[Tensor, "B E"],
        states: Float[Tensor, "B T S"],
        mask: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B E"]:
        """The clean embedding, normalised, as x is. `mask` is True for the tokens of the text."""
        states, mask = _cut_padding(states, mask)
        tokens = [*self._text_tokens(text, states), *self._picture_tokens(x, time)]
        sequence = torch.cat(tokens, dim=1) + self._positions(states.shape[1])  # (B, T + 4, D)
        count = sequence.shape[1]
        last = torch.full((len(x),), count - 1, device=x.device)
        seen = causal_mask(mask, count)
        predicted: Tensor = self.out(self.norm(self.transformer.at(sequence, last, seen)))
        return predicted

    def _text_tokens(self, text: Tensor, states: Tensor) -> list[Float[Tensor, "B _ D"]]:
        return [self.state_proj(states), self.text_proj(text)[:, None]]

    def _picture_tokens(self, x: Tensor, time: Tensor) -> list[Float[Tensor, "B _ D"]]:
        waves = timestep_embedding(time, self.config.width)
        return [
            self.time(waves)[:, None],
            self.image_proj(x)[:, None],
            self.query.expand(len(x), 1, -1),
        ]

    def _positions(self, length: int) -> Float[Tensor, "N D"]:
        """Of the tokens of texts of this length, and of those beside them."""
        return torch.cat([self.position[:length], self.position[-BESIDE:]])

    def read_texts(self, cond: Conditioning) -> "ReadTexts":
        """What the tokens of texts say to those after them. Attention is causal, so it does not
        depend on timestep and noise: all steps of sampling share it, and compute three tokens.
        """
        states, mask = _cut_padding(cond["states"], cond["mask"])
        place = self._positions(states.shape[1])
        before = len(place) - BESIDE + 1
        seen = causal_mask(mask, len(place))[:, None]
        cache = Cache([None] * self.config.layers)
        tokens = torch.cat(self._text_tokens(cond["text"], states), dim=1) + place[:before]
        self.transformer(tokens, seen[:, :, :before, :before], cache)
        return ReadTexts(cache, before, place[before:], seen[:, :, before:])

    def predict_after(
        self, x: Float[Tensor, "B E"], time: Num[Tensor, " B"], read: "ReadTexts"
    ) -> Float[Tensor, "B E"]:
        """As `forward`, of texts that have been read."""
        read.cache.rewind(read.before)
        tokens = torch.cat(self._picture_tokens(x, time), dim=1) + read.place
        hidden = self.transformer(tokens, read.seen, read.cache)
        predicted: Tensor = self.out(self.norm(hidden[:, -1]))
        return predicted.to(x.dtype)  # autocast ends here

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """The network's output for a conditioning by name: text, states and mask."""
        predicted: Tensor = self(x, time, cond["text"], cond["states"], cond["mask"])
        return predicted


class ReadTexts(NamedTuple):
    """Texts as `predict_after` needs them."""

    cache: Cache
    before: int
    """The number of their tokens."""
    place: Float[Tensor, "_ D"]
    """Embeddings of the positions of the tokens after them."""
    seen: Bool[Tensor, "B 1 _ N"]
    """What those attend to."""


def _cut_padding(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without what is padding in all rows, which is never attended to."""
    most = int(mask.any(0).sum()) if mask.device.type == "cpu" else mask.shape[1]
    return states[:, :most], mask[:, :most]


def causal_mask(mask: Bool[Tensor, "B T"], count: int) -> Bool[Tensor, "B N N"]:
    """What each of `count` tokens attends to: itself and those before it, without the padding of
    the text, which the first tokens are.
    """
    earlier = torch.ones(count, count, dtype=torch.bool, device=mask.device).tril()
    wide = nn.functional.pad(mask, (0, count - mask.shape[1]), value=True)
    return earlier & wide[:, None]


def objective(
    model: DiffusionPrior,
    image: Float[Tensor, "B E"],
    cond: Conditioning,
    uncond: Conditioning,
    *,
    drop: float = 0.1,
    noise: Float[Tensor, "B E"] | None = None,
    at: Levels | None = None,
) -> Loss:
    """Squared error of the predicted clean embedding (equation 2), averaged over its numbers.

    Texts are replaced by `uncond`, the empty text, at the rate `drop`, for guidance. Noise and
    levels are drawn unless they are given. Term: `mse`, 1 for a prediction of the mean.
    """
    count, device = len(image), image.device
    dropped = torch.rand(count, device=device) < drop
    chosen = drop_rows(cond, uncond, dropped)
    at = at or training_levels(COSINE, count, device)
    x0 = model.normalise(image)
    noise = torch.randn_like(x0) if noise is None else noise
    kind = PARAMETERISATIONS["sample"]
    return matching(lambda x, time: model.predict(x, time, chosen), kind, x0, noise, at)


def drop_rows(
    cond: Conditioning, uncond: Conditioning, dropped: Bool[Tensor, " B"]
) -> Conditioning:
    """The conditioning with these rows replaced by the first row of `uncond`."""
    return {
        name: value.where(~dropped.view(-1, *[1] * (value.ndim - 1)), uncond[name][:1])
        for name, value in cond.items()
    }


def sampling_levels(config: PriorConfig, steps: int = 0, sampler: str = "") -> list[Level]:
    """The noise levels of the steps of `sample`: whole timesteps, evenly from the last to 0."""
    chosen = Spacing("linspace", whole_times=True)
    return sampler_levels(COSINE, sampler or config.sampler, steps or config.steps, chosen)


def sample(
    model: DiffusionPrior,
    cond: Conditioning,
    uncond: Conditioning,
    noise: PictureNoise,
    *,
    steps: int = 0,
    guidance: float | None = None,
    sampler: str = "",
) -> Iterator[Step]:
    """Normalised image embeddings of these texts, step by step; `finish` makes embeddings of the
    last. Defaults are the configuration's.
    """
    config = model.config
    levels = sampling_levels(config, steps, sampler)
    x = noise.start((config.dim,)).to(model.mean.device) * levels[0].sigma
    guidance = config.guidance if guidance is None else guidance
    read: list[ReadTexts] = []  # at the first step, for all: every step has the same texts

    def predict(x: Tensor, time: Tensor, texts: Conditioning) -> Tensor:
        if not read:
            read.append(model.read_texts(texts))
        return model.predict_after(x, time, read[0])

    denoise = conditional_denoiser(predict, COSINE, "sample")
    guided = classifier_free(denoise, cond, uncond, guidance)
    bound = config.limit

    def limit(x0: Tensor) -> Tensor:
        return x0.clamp(-bound, bound) if bound else x0

    return run_sampler(sampler or config.sampler, guided, x, levels, noise, limit=limit)


def finish(model: DiffusionPrior, x: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """Image embeddings of normalised ones."""
    return x * model.std + model.mean

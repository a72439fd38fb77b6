"""Requests of text to image: pictures of a prompt; training, and presets that work."""

import math
import re
from dataclasses import dataclass, field, fields
from typing import Literal

from triptych.diffusion.names import parse_sampler
from triptych.diffusion.settings import check_sampling, check_seed
from triptych.text.limits import MAX_PROMPT
from triptych.train.settings import Training


@dataclass(frozen=True)
class TextToImage:
    """Generate pictures from a prompt."""

    prompt: str
    """What to draw; (word:1.3) counts more, [word] less, BREAK begins a new window of tokens."""
    negative: str = ""
    """What to steer away from."""
    model: str = "runs/text-to-image"
    """A run folder, a checkpoint folder or file, or OWNER/NAME on the hub."""
    size: str = ""
    """WIDTHxHEIGHT in pixels, any of 16 to 4096. Empty: what the model was trained at, or the size
    of the picture that is started from.
    """
    steps: int = 0
    """Steps of the sampler; 0 is what the model's configuration says."""
    sampler: str = ""
    """The algorithm, by our name, AUTOMATIC1111's or diffusers'. Empty: the model's."""
    spacing: str = ""
    """How the steps are spread, such as karras or trailing. Empty: the model's."""
    guidance: float | None = None
    """How far to go from the negative prompt towards the prompt; 1 is plain sampling. None: the
    model's.
    """
    rescale: float = 0.0
    """The share of contrast that guidance added which is taken back."""
    seed: int | None = None
    """Picture i uses seed + i, unless pictures are varied. None draws one, and says which."""
    n: int = 1
    """How many pictures."""
    image: str = ""
    """A picture file to start from."""
    strength: float | None = None
    """With an image: how much of it is drawn anew, above 0 to 1. None: 0.75, or 1 with a mask."""
    mask: str = ""
    """With an image: a picture file whose white parts are drawn; the rest stays to the bit."""
    loras: tuple[str, ...] = ()
    """Low-rank updates, each FILE or FILE:WEIGHT, such as style.safetensors:0.8."""
    clip_skip: int = 0
    """Which of the text tower's last blocks is read: 1 the last, 2 the one before it. 0: the one
    that the model was trained with.
    """
    variation_seed: int | None = None
    """Noise to mix in, which varies a picture without losing it: picture i has the seed itself and
    variation_seed + i. None draws one.
    """
    variation_strength: float = 0.0
    """How much of that noise, 0 to 1."""
    tiling: bool = False
    """Pictures whose edges meet when they are laid side by side."""
    noise_source: Literal["cpu", "philox"] = "cpu"
    """`philox` draws the numbers that a CUDA device would."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the networks compute in; auto is bfloat16 where the device is fast at it."""
    quantize: Literal["", "int8"] = ""
    """`int8`: the U-Net's large layers in eight bits, faster on a CPU, nearly the same picture."""
    backend: Literal["torch", "openvino"] = "torch"
    """What computes the U-Net; openvino, an extra, converts it once and is faster on many CPUs."""
    deterministic: bool = False
    """Pictures one at a time, so that each is the same to the bit whatever its company."""
    conventions: Literal["diffusers", "automatic1111"] = "diffusers"
    """Whose reading of a sampler's start, steps and end, and of what a prompt leaves open."""

    def __post_init__(self) -> None:
        check_sampling(self)
        for name in ("prompt", "negative"):
            if (length := len(getattr(self, name))) > MAX_PROMPT:
                raise ValueError(
                    f"{name} has {length:,} characters; at most {MAX_PROMPT:,} are read: shorten it"
                )
        parse_size(self.size)
        if self.quantize and self.backend == "openvino":
            raise ValueError("quantize is for the backend torch: leave out one of the two")
        if not self.image and (self.mask or self.strength is not None):
            raise ValueError("mask and strength are about a picture to start from: give an image")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength is above 0, at most 1, not {self.strength}")
        for lora in self.loras:
            parse_lora(lora)
        if not 0 <= self.clip_skip <= 32:
            raise ValueError(f"clip_skip is 1 to 32, or 0 for the model's, not {self.clip_skip}")
        check_seed("variation_seed", self.variation_seed)
        if not 0 <= self.variation_strength <= 1:
            raise ValueError(f"variation_strength is 0 to 1, not {self.variation_strength}")
        if self.variation_seed is not None and not self.variation_strength:
            raise ValueError("variation_seed does nothing without a variation_strength above 0")


def parse_size(text: str) -> tuple[int, int] | None:
    """Width and height of a WIDTHxHEIGHT in pixels; None where there is none.

    Raises:
        ValueError: another form, or a side that is not 16 to 4096.
    """
    if not text:
        return None
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    if match is None or not all(16 <= int(side) <= 4096 for side in match.groups()):
        raise ValueError(
            f"size is WIDTHxHEIGHT, each 16 to 4096 pixels, such as 712x1024, not {text!r}"
        )
    return int(match[1]), int(match[2])


def parse_lora(text: str) -> tuple[str, float]:
    """The file of a low-rank update, and how much it counts: FILE is FILE:1.

    Raises:
        ValueError: no file, or a weight that is no number of -10 to 10.
    """
    name, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or "\\" in weight:  # C:\styles\mine.safetensors has none
        name, weight = text, "1"
    try:
        counts = float(weight)
    except ValueError:
        counts = math.nan
    if not name.strip() or not abs(counts) <= 10:
        raise ValueError(
            f"a LoRA is FILE or FILE:WEIGHT with a weight of -10 to 10, such as "
            f"style.safetensors:0.8, not {text!r}"
        )
    return name, counts


@dataclass(frozen=True)
class EvaluateTextToImage:
    """How the pictures of a text-to-image model are judged."""

    prompts: int = 500
    """Captions of held-out pictures that are drawn."""
    sampler: str = ""
    """The sampler, by any name that `generate` takes; empty is the model's own."""
    steps: int = 0
    """Steps of the sampler; 0 is what the model's configuration says."""
    guidance: float | None = None
    """The guidance that pictures are drawn with; None is the model's own."""
    clip: str = ""
    """A CLIP or SigLIP in whose features drawn pictures are compared with real ones and texts."""
    curves: bool = False
    """Draw all prompts at six strengths of guidance and plot quality against it."""

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise ValueError(f"prompts must be at least 1, not {self.prompts}")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, not {self.steps}")
        if self.sampler:
            parse_sampler(self.sampler)


@dataclass(frozen=True)
class TrainTextToImage:
    """Pictures from text by diffusion in latents (Rombach 2022): from nothing, or going on from a
    trained or published model, all of it or by low-rank updates.
    """

    training: Training = field(
        default_factory=lambda: Training(
            data="scenes-one",
            size=32,
            schedule="cosine",
            warmup=200,
            ema_halflife=200,
            precision="auto",
        )
    )
    init: str = ""
    """A text-to-image model to go on from; the sizes below are then its own."""
    autoencoder: str = ""
    """What makes latents, and stays as it is: a run folder, a published autoencoder, large or tiny.
    Empty works on pixels.
    """
    latents: Literal["drawn", "likeliest"] = "drawn"
    """Of an autoencoder that says how sure it is: draws, as published, or the likeliest latents,
    which one that is unsure on purpose (a `kl` near 1) decodes better.
    """
    patch: int = 2
    """Without an autoencoder: squares of so many pixels a side are one place of the U-Net."""
    clip: str = ""
    """A trained CLIP whose text tower reads, and stays as it is. Empty trains a tower with the
    rest.
    """
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    text_pool: Literal["end", "mean"] = "end"
    """What the tower says of a text as a whole: the state at its end token, as published, or the
    mean of its tokens, which small ones learn sooner (and which other libraries' CLIP has not).
    With no layers it is a bag of words, and has to be the mean.
    """
    length: int = 32
    """The longest text in tokens; what is over is cut and counted."""
    vocabulary: int = 2048
    """Tokens of a vocabulary learned from the captions of the data."""
    templates: str = "photo"
    """Sentences that class names become where the data has no captions: photo, simple, imagenet."""
    drop: float = 0.1
    """How often the text is left out, so that sampling can be guided; 0 forbids guidance."""
    widths: tuple[int, ...] = (64, 128, 192)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 1
    transformers: tuple[int, ...] = (0, 1, 1)
    """Transformer blocks behind every residual block of a level, which read the text."""
    head_width: int = 32
    groups: int = 16
    conditioning: Literal["add", "scale_shift"] = "add"
    """How time and the text as a whole reach a block: added, as in Stable Diffusion, or as scale
    and shift of its normalisation.
    """
    noise_schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "flow"] = "flow"
    zero_terminal_snr: bool = False
    """Stretch a table of betas so that it ends in pure noise."""
    shift: float = 1.0
    """Of a flow's time, towards noise; above 1 for large pictures."""
    predicts: Literal["noise", "velocity", "sample", "flow"] = "flow"
    measured: Literal["", "noise", "velocity", "sample", "flow"] = ""
    """Whose error the loss squares; empty for what is predicted. A narrow network that predicts the
    `sample` learns well from the error of the `flow`: it need not carry noise (arXiv:2511.13720).
    """
    min_snr: float = 0.0
    """Above 0, clean levels count less: gamma of arXiv:2303.09556, there 5."""
    offset: float = 0.0
    """Offset noise, so that very dark and bright pictures are learned too; there 0.1."""
    first: str = ""
    """Data for the first `first_steps` steps, easier than the rest: a curriculum."""
    first_steps: int = 0
    pictures: int = 0
    """Only the first so many pictures of the data; 0 uses all."""
    buckets: bool = False
    """Pictures near their own shape, in a few shapes of about `size` x `size` pixels, instead of
    squares out of their middle.
    """
    cache: str = ""
    """A folder in which latents, and the states of texts where their towers are frozen, are kept:
    computed once, and by later runs on the same data and networks never again.
    """
    cache_precision: Literal["float32", "float16"] = "float32"
    """How exactly they are kept; float16 takes half the disk."""
    lora: int = 0
    """Rank of low-rank updates of the U-Net's attention that are learned in place of all weights; 0
    learns all.
    """
    sampler: str = "dpmpp_2m"
    """What `generate` uses unless told otherwise; so with steps, guidance and spacing."""
    sampling_steps: int = 20
    guidance: float = 3.0
    spacing: str = "trailing"
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: filters and matrices between the U-Net's first and last layer, and those that tell it
    time and text, take steps of equal length in all directions, which learns more from every
    picture; the rest keeps to AdamW.
    """
    matrix_rate: float = 0.01
    """Learning rate of those under muon; `learning_rate` is the others'."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    beta2: float = 0.99
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.optimizer == "muon" and (self.lora or self.weight_decay):
            raise ValueError(
                "muon moves whole matrices and decays none: leave out lora and weight_decay"
            )
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop is a share, 0 to below 1, not {self.drop}")
        if self.lora < 0 or (self.lora and not self.init):
            raise ValueError("lora is a rank, for a model to go on from: give init")
        if bool(self.first) != bool(self.first_steps):
            raise ValueError("first and first_steps go together: easier data, and for how long")
        if self.init and (self.autoencoder or self.clip):
            raise ValueError("a model to go on from has its own autoencoder and text towers")
        if self.init and (own := [n for n in OF_THE_MODEL if getattr(self, n) != _default(n)]):
            raise ValueError(
                f"{', '.join(own)}: a model to go on from has its own, which training keeps: leave "
                "it out"
            )
        if self.cache and not (self.init or self.autoencoder):
            raise ValueError(
                "a cache keeps latents: give an autoencoder or a model to go on from, or no cache"
            )
        if self.first and (self.cache or self.buckets):
            raise ValueError("cache and buckets are for one source of data: leave out first")
        if self.buckets and not self.training.size:
            raise ValueError("with buckets, size says how many pixels a picture has: size x size")
        if self.pictures < 0:
            raise ValueError(f"pictures is a number of pictures, at least 0, not {self.pictures}")


OF_THE_MODEL = (
    "patch", "text_width", "text_layers", "text_heads", "text_pool", "length", "vocabulary",
    "widths", "blocks", "transformers", "head_width", "groups", "conditioning", "noise_schedule",
    "zero_terminal_snr", "shift", "predicts", "sampler", "sampling_steps", "guidance", "spacing",
)  # fmt: skip
"""Fields of `TrainTextToImage` that a model to go on from has its own values of."""


def _default(name: str) -> object:
    return next(field.default for field in fields(TrainTextToImage) if field.name == name)


PRESETS = {
    "tiny": TrainTextToImage(
        Training(
            data="scenes-one",
            size=32,
            batch_size=64,
            steps=6800,
            schedule="cosine",
            warmup=200,
            ema_halflife=200,
            evaluate_every=1000,
            sample_every=1000,
            precision="auto",
        ),
        widths=(64, 128, 128),
        transformers=(0, 0, 1),
        text_layers=0,
        text_pool="mean",
        conditioning="scale_shift",
        predicts="sample",
        measured="flow",
        guidance=2.5,
    ),
    "fine-tune": TrainTextToImage(
        Training(
            data="scenes-one",
            size=512,
            batch_size=4,
            steps=2000,
            warmup=100,
            sample_every=500,
            precision="auto",
        ),
        learning_rate=1e-5,
    ),
}
"""The default first."""

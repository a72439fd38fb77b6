"""Requests of text to image: pictures of a prompt; training, and presets that work."""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from triptych.diffusion.names import parse_sampler
from triptych.diffusion.settings import check_sampling, check_seed
from triptych.fields import set_fields
from triptych.given import DataName, FileName, LoraName, ModelName, Words
from triptych.systems.stable_diffusion.given_prompts import (
    Latents,
    Prompt,
    pair_prompts,
    take_latents,
    take_prompts,
)
from triptych.train.settings import Training, check_numbers
from triptych.vision.given_pictures import Picture, take_picture


@dataclass(frozen=True)
class TextToImage:
    """Generate pictures from a prompt, or in Python from a list of prompts."""

    prompt: Prompt = field(metadata={"several": True})
    """What to draw; (word:1.3) weighs a word more, [word] less, BREAK starts a new window of
    tokens. [cat:dog:0.5] changes after half of the steps, [cat|dog] with every step; "a cat AND a
    dog :0.7" draws both.
    """
    negative: Prompt = field(default="", metadata={"several": True})
    """Negative prompt: what to avoid."""
    model: ModelName = "emoji"
    """A run folder, a bundled model (`triptych models`), a checkpoint folder or file, OWNER/NAME on
    the hub, or a name such as sd15.
    """
    size: Words = ""
    """WIDTHxHEIGHT in pixels, each 16 to 4096. Default: the model's training size, or the size of
    `image`.
    """
    steps: int = 0
    """Sampler steps; 0 is the model's default."""
    sampler: Words = ""
    """A sampler by our name, AUTOMATIC1111's or diffusers'. Default: the model's."""
    spacing: Words = ""
    """Timestep spacing, such as karras or trailing. Default: the model's."""
    guidance: float | None = None
    """Strength of classifier-free guidance; 1 is none. Default: the model's."""
    rescale: float = 0.0
    """How much of the contrast added by guidance is removed, 0 to 1 (arXiv:2305.08891)."""
    seed: int | None = None
    """Picture i uses seed + i (with a variation, seed); without one a seed is drawn and printed."""
    n: int = 1
    """Number of pictures; of each prompt, where there are several."""
    image: Picture = ""
    """A picture file to start from (image-to-image)."""
    strength: float | None = None
    """With an image: how much of it is redrawn, above 0 to 1. Default: 0.75, or 1 with a mask."""
    mask: Picture = ""
    """With an image: a picture file whose white parts are redrawn (inpainting); the other pixels
    stay as they are.
    """
    loras: tuple[LoraName, ...] = ()
    """LoRA files, each FILE or FILE:WEIGHT, such as style.safetensors:0.8, or FILE:TEXT:UNET with
    other weights in the text towers than in the U-Net.
    """
    clip_skip: int = 0
    """Which of the text tower's last layers is read: 1 the last, 2 the one before it. 0 is the
    layer the model was trained with.
    """
    variation_seed: int | None = None
    """Seed of the noise that is mixed in: picture i uses seed and variation_seed + i. Default:
    drawn.
    """
    variation_strength: float = 0.0
    """Share of that noise, 0 to 1."""
    tiling: bool = False
    """Seamless pictures, whose opposite edges match."""
    noise_source: Literal["cpu", "philox"] = "cpu"
    """`philox` draws the same noise as a CUDA device."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the networks; auto is bfloat16 where the device computes it fast."""
    quantize: Literal["", "int8"] = ""
    """`int8` quantises the U-Net's large layers: faster on a CPU, nearly the same picture."""
    backend: Literal["torch", "openvino"] = "torch"
    """What runs the U-Net; openvino, an extra, converts it once and is faster on many CPUs."""
    deterministic: bool = False
    """Draw pictures one at a time, so that each is bit-identical for any number of pictures."""
    conventions: Literal["diffusers", "automatic1111"] = "diffusers"
    """Whose defaults apply to a sampler's start, timesteps and end, and to what the prompt leaves
    open.
    """
    latents: Latents = ""
    """An .npy file of noise to start from in place of the seed's: standard normal, of shape
    (pictures, channels, height, width) of the latents.
    """

    def __post_init__(self) -> None:
        set_fields(
            self,
            prompt=take_prompts("prompt", self.prompt),
            negative=take_prompts("negative", self.negative),
            image=take_picture("image", self.image),
            mask=take_picture("mask", self.mask),
            latents=take_latents(self.latents),
        )
        check_sampling(self)
        pair_prompts(self.prompt, self.negative, self.n)
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
        if self.latents and self.variation_strength:
            raise ValueError("latents and a variation both replace the noise: leave out one")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each prompt with its negative prompt."""
        return pair_prompts(self.prompt, self.negative, self.n)


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


class LoraFile(NamedTuple):
    """A LoRA, and its weights in the text towers and in the U-Net."""

    name: str
    text: float
    unet: float

    def __str__(self) -> str:
        weights = (self.text,) if self.text == self.unet else (self.text, self.unet)
        return ":".join([self.name, *map(write_number, weights)])


def parse_lora(text: str) -> LoraFile:
    """The file and the weights of a LoRA: FILE, FILE:WEIGHT or FILE:TEXT:UNET; the default is 1.

    Raises:
        ValueError: there is no file, or a weight is not a number from -10 to 10.
    """
    name, weights = text, list[float]()
    for _ in range(2):
        start, colon, end = name.rpartition(":")
        if not colon or "/" in end or "\\" in end:  # C:\styles\mine.safetensors has none
            break
        weight = _float(end)
        if weights and math.isnan(weight):  # the colon is part of the name
            break
        name, weights = start, [weight, *weights]
    weights = weights or [1.0]
    if not name.strip() or not all(abs(weight) <= 10 for weight in weights):
        raise ValueError(
            f"a LoRA is FILE or FILE:WEIGHT with a weight of -10 to 10, such as "
            f"style.safetensors:0.8, or FILE:TEXT:UNET, not {text[:200]!r}"
        )
    return LoraFile(name, weights[0], weights[-1])


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def write_number(value: float) -> str:
    """The shortest number that is read as this value, without a needless `.0`."""
    return repr(value).removesuffix(".0")


@dataclass(frozen=True)
class EvaluateTextToImage:
    """How the pictures of a text-to-image model are judged."""

    prompts: int = 500
    """Number of held-out captions to generate pictures of."""
    sampler: str = ""
    """The sampler, by any name that `generate` accepts. Default: the model's."""
    steps: int = 0
    """Sampler steps; 0 is the model's default."""
    guidance: float | None = None
    """Guidance scale. Default: the model's."""
    clip: str = ""
    """A CLIP or SigLIP whose features compare generated pictures with real ones and texts."""
    curves: bool = False
    """Generate all pictures at six guidance scales and plot quality against guidance."""

    def __post_init__(self) -> None:
        if self.prompts < 1:
            raise ValueError(f"prompts must be at least 1, not {self.prompts}")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, not {self.steps}")
        if self.sampler:
            parse_sampler(self.sampler)


TRAINING = Training(
    data="scenes-one",
    size=32,
    schedule="cosine",
    warmup=200,
    ema_halflife=200,
    precision="auto",
)


@dataclass(frozen=True)
class TrainTextToImage:
    """Text to image by diffusion in latents or on pixels (Rombach 2022): trained from scratch, or
    fine-tuned from a trained or published model, fully or with LoRA.
    """

    training: Training = TRAINING
    init: ModelName = ""
    """Fine-tune this text-to-image model, such as sd15; its sizes replace those below."""
    autoencoder: ModelName = ""
    """The frozen autoencoder of the latents: a run folder, or a published one, KL or tiny; of a
    text-to-image model its own. Empty trains on pixels.
    """
    latents: Literal["drawn", "likeliest"] = "drawn"
    """With a KL autoencoder: sample latents from the posterior, as published, or take its mode,
    which suits autoencoders trained with a strong KL term.
    """
    patch: int = 2
    """Without an autoencoder: squares of this many pixels a side become one position of the U-Net.
    """
    clip: ModelName = ""
    """A trained CLIP whose text tower encodes the prompts, frozen. Empty trains a new one.
    """
    text_width: int = 128
    """Width of the text tower."""
    text_layers: int = 3
    """Layers of the text transformer; 0 is a bag of words."""
    text_heads: int = 4
    """Attention heads of the text transformer."""
    text_pool: Literal["end", "mean"] = "end"
    """The pooled text embedding: the state at the end token, as published, or the mean over the
    tokens, which small models learn sooner (other libraries' CLIP has no such pooling). Without
    layers it must be the mean.
    """
    length: int = 32
    """Longest prompt in tokens; longer ones are cut and counted."""
    vocabulary: int = 2048
    """Size of the byte-pair vocabulary that is trained on the captions."""
    templates: Words = "photo"
    """Sentences made of class names where the data has no captions: photo, simple or imagenet."""
    drop: float = 0.1
    """How often the prompt is dropped in training, for classifier-free guidance; 0 rules guidance
    out.
    """
    widths: tuple[int, ...] = (64, 128, 192)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 1
    """Residual blocks per level."""
    transformers: tuple[int, ...] = (0, 1, 1)
    """Transformer blocks with cross-attention after each residual block, per level."""
    head_width: int = 32
    """Channels of an attention head."""
    groups: int = 16
    """Groups of the group normalisation."""
    conditioning: Literal["add", "scale_shift"] = "add"
    """How time and the pooled text enter a residual block: added, as in Stable Diffusion, or as
    scale and shift of its normalisation.
    """
    noise_schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "flow"] = "flow"
    """The noise schedule; `flow` is rectified flow."""
    zero_terminal_snr: bool = False
    """Rescale a table of betas so that the last timestep is pure noise (arXiv:2305.08891)."""
    shift: float = 1.0
    """Shift of the flow's time towards noise; above 1 for large pictures."""
    predicts: Literal["noise", "velocity", "sample", "flow"] = "flow"
    """What the network predicts: the noise, the velocity, the clean sample, or the flow."""
    loss_space: Literal["", "noise", "velocity", "sample", "flow"] = field(
        default="", metadata={"was": "measured"}
    )
    """The prediction type in which the squared error is taken; empty is that of `predicts`. Small
    networks that predict the `sample` learn well from the error of the `flow` (arXiv:2511.13720).
    """
    min_snr: float = 0.0
    """Min-SNR loss weighting: gamma of arXiv:2303.09556, which uses 5; 0 is off."""
    offset: float = 0.0
    """Strength of offset noise, so that very dark and bright pictures are learned too; 0.1 is
    usual, 0 is off.
    """
    first: DataName = ""
    """Easier data for the first `first_steps` steps: a curriculum."""
    first_steps: int = 0
    """Steps on that easier data."""
    pictures: int = 0
    """Train on the first this many pictures only; 0 uses all."""
    buckets: bool = False
    """Keep the aspect ratios: pictures are grouped into a few shapes of about `size` x `size`
    pixels, instead of cropped to squares.
    """
    cache: FileName = ""
    """A folder for precomputed latents, and text states where the text towers are frozen; later
    runs with the same data and networks reuse it.
    """
    cache_precision: Literal["float32", "float16"] = "float32"
    """Precision of the cached values; float16 takes half the disk space."""
    lora: int = 0
    """Rank of low-rank updates of the U-Net's attention that are trained in place of all weights; 0
    trains all weights.
    """
    sampler: Words = "dpmpp_2m"
    """Default sampler of `generate`."""
    sampling_steps: int = 20
    """Default sampler steps of `generate`."""
    guidance: float = 3.0
    """Default guidance of `generate`."""
    spacing: Words = "trailing"
    """Default timestep spacing of `generate`."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the updates of the U-Net's filters and matrices between its first and
    last layer, and those of its text and time projections; everything else uses AdamW.
    """
    matrix_rate: float = 0.01
    """Learning rate of the filters and matrices that muon updates."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW, on matrices and filters."""
    beta2: float = 0.99
    """Second beta of AdamW."""
    max_norm: float = 1.0
    """Gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.optimizer == "muon" and (self.lora or self.weight_decay):
            raise ValueError(
                "muon works on full matrices, without weight decay: leave out lora and weight_decay"
            )
        if self.lora < 0 or (self.lora and not self.init):
            raise ValueError(
                "lora must be a rank of at least 0, and needs a model to fine-tune: give init"
            )
        if bool(self.first) != bool(self.first_steps):
            raise ValueError(
                "first and first_steps go together: the easier data, and for how many steps"
            )
        if self.init and (self.autoencoder or self.clip):
            raise ValueError(
                "init brings its own autoencoder and text towers: leave out autoencoder and clip"
            )
        own = [n for n in OF_THE_MODEL if getattr(self, n) != getattr(TrainTextToImage, n)]
        if self.init and own:
            raise ValueError(
                f"{', '.join(own)}: the model of init has its own: leave out these settings, and a "
                "preset that makes them (`--preset fine-tune` makes none)"
            )
        if self.cache and not (self.init or self.autoencoder):
            raise ValueError(
                "cache stores latents: give an autoencoder or init, or leave out cache"
            )
        if self.first and (self.cache or self.buckets):
            raise ValueError("cache and buckets work with one source of data: leave out first")
        if self.buckets and not self.training.size:
            raise ValueError("buckets needs size: pictures then have about size x size pixels")
        if self.pictures < 0:
            raise ValueError(f"pictures must be at least 0, not {self.pictures}")


OF_THE_MODEL = (
    "patch", "text_width", "text_layers", "text_heads", "text_pool", "length", "vocabulary",
    "widths", "blocks", "transformers", "head_width", "groups", "conditioning", "noise_schedule",
    "zero_terminal_snr", "shift", "predicts", "sampler", "sampling_steps", "guidance", "spacing",
)  # fmt: skip
"""Fields of `TrainTextToImage` whose values come from the model of `init`."""


PRESETS = {
    "tiny": TrainTextToImage(
        replace(TRAINING, batch_size=64, steps=6800, evaluate_every=1000, sample_every=1000),
        widths=(64, 128, 128),
        transformers=(0, 0, 1),
        text_layers=0,
        text_pool="mean",
        conditioning="scale_shift",
        predicts="sample",
        loss_space="flow",
        guidance=2.5,
    ),
    "small": TrainTextToImage(
        replace(
            TRAINING,
            size=64,
            batch_size=128,
            steps=2200,
            warmup=100,
            ema_halflife=100,
            evaluate_every=500,
            sample_every=1000,
            save_every=250,
        ),
        latents="likeliest",
        widths=(128, 144),
        transformers=(1, 1),
        text_layers=0,
        text_pool="mean",
        conditioning="scale_shift",
        predicts="flow",
        optimizer="muon",
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

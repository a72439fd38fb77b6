"""Everything one can ask of the package, on one page.

A request is a Python argument, a set of command-line flags, a JSON body, and the record stored
inside its result. This file imports nothing heavy, so `--help` is quick.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from triptych.diffusion.names import SPACINGS, parse_sampler

MAX_PROMPT = 32_000
"""Characters of a prompt."""


@dataclass(frozen=True)
class ClassToImage:
    """Generate pictures of a class, with attributes, that complete one, or of nothing special."""

    model: str = "runs/demo"
    """A run folder."""
    label: str = ""
    """A class by its name or number; empty takes every class in turn."""
    attributes: tuple[str, ...] = ()
    """Attributes that the pictures have, by name."""
    vector: tuple[float, ...] = ()
    """One number per continuous condition, in the order of the model's columns."""
    image: str = ""
    """A picture file whose visible quadrants the model completes."""
    n: int = 10
    """How many pictures."""
    seed: int | None = None
    """Picture i uses seed + i. None draws one, and says which."""
    truncation: float = 0.0
    """GAN, VAE: above 0, no number of the noise exceeds it: more typical, less varied pictures."""
    guidance: float | None = None
    """Diffusion: how far to go from any picture towards the condition; 1 is plain sampling."""
    rescale: float = 0.0
    """Diffusion: the share of contrast that guidance added which is taken back."""
    steps: int = 0
    """Diffusion: steps of the sampler; 0 is what the model's configuration says."""
    sampler: str = ""
    """Diffusion: the algorithm, by our name, AUTOMATIC1111's or diffusers'. Empty: the model's."""
    spacing: str = ""
    """Diffusion: how the steps are spread, such as karras or trailing. Empty: the model's."""
    eta: float | None = None
    """Diffusion: how much fresh noise a stochastic sampler adds; DDIM adds some above 0."""
    noise_source: Literal["cpu", "philox"] = "cpu"
    """Diffusion: `philox` draws the numbers that a CUDA device would."""
    clip_prompt: str = ""
    """Diffusion: what a CLIP is to see in the pictures while they are drawn."""
    clip: str = ""
    """Diffusion: the CLIP or SigLIP that reads clip_prompt."""
    clip_scale: float = 1.0
    """Diffusion: how strongly it pulls; 1 takes its logit for the logarithm of a probability."""
    clip_cutouts: int = 0
    """Diffusion: show it so many random squares of the picture instead of the whole."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Diffusion: what the network computes in; auto is bfloat16 where the device is fast at it."""
    deterministic: bool = False
    """Pictures one at a time, so that each is the same to the bit whatever its company."""

    def __post_init__(self) -> None:
        _check_drawing(self)
        if not 0 <= self.truncation < float("inf"):
            raise ValueError(f"truncation must be 0 (none) or more, not {self.truncation}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be 0 to 1, not {self.eta}")
        if bool(self.clip) != bool(self.clip_prompt):
            raise ValueError("clip and clip_prompt go together: a model, and what it is to see")
        if not 0 <= self.clip_scale <= 1e6:
            raise ValueError(f"clip_scale must be 0 to 1000000, not {self.clip_scale}")
        if not 0 <= self.clip_cutouts <= 256:
            raise ValueError(f"clip_cutouts must be 0 (none) to 256, not {self.clip_cutouts}")


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
        _check_drawing(self)
        for name in ("prompt", "negative"):
            if (length := len(getattr(self, name))) > MAX_PROMPT:
                raise ValueError(
                    f"{name} has {length:,} characters; at most {MAX_PROMPT:,} are read: shorten it"
                )
        size_named(self.size)
        if self.quantize and self.backend == "openvino":
            raise ValueError("quantize is for the backend torch: leave out one of the two")
        if not self.image and (self.mask or self.strength is not None):
            raise ValueError("mask and strength are about a picture to start from: give an image")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength is above 0, at most 1, not {self.strength}")
        for lora in self.loras:
            lora_named(lora)
        if not 0 <= self.clip_skip <= 32:
            raise ValueError(f"clip_skip is 1 to 32, or 0 for the model's, not {self.clip_skip}")
        _check_seed("variation_seed", self.variation_seed)
        if not 0 <= self.variation_strength <= 1:
            raise ValueError(f"variation_strength is 0 to 1, not {self.variation_strength}")
        if self.variation_seed is not None and not self.variation_strength:
            raise ValueError("variation_seed does nothing without a variation_strength above 0")


def size_named(text: str) -> tuple[int, int] | None:
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


def lora_named(text: str) -> tuple[str, float]:
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


def _check_drawing(request: ClassToImage | TextToImage) -> None:
    """What every request for pictures must keep to."""
    if not 1 <= request.n <= 100_000:
        raise ValueError(f"n must be 1 to 100000, not {request.n}")
    _check_seed("seed", request.seed)
    if request.guidance is not None and not 0 <= request.guidance <= 100:
        raise ValueError(f"guidance must be 0 to 100, not {request.guidance}")
    if not 0 <= request.rescale <= 1:
        raise ValueError(f"rescale is a share, 0 to 1, not {request.rescale}")
    if not 0 <= request.steps <= 1000:
        raise ValueError(f"steps must be 1 to 1000, or 0 for the model's, not {request.steps}")
    if request.sampler:
        parse_sampler(request.sampler)
    if request.spacing and request.spacing not in SPACINGS:
        raise ValueError(f"no spacing {request.spacing!r}; there are: {', '.join(SPACINGS)}")


def _check_seed(name: str, seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"{name} must be 0 to 2**63 - 1, not {seed}")


OWN_CLASSES = "auto"
"""In place of labels: the classes of the pictures' own source."""


@dataclass(frozen=True)
class Classify:
    """Say which labels fit pictures that no one has trained for, with a CLIP or SigLIP."""

    pictures: tuple[str, ...]
    """Picture files, or one folder of them; for --labels auto any labelled source."""
    labels: tuple[str, ...] = ()
    """What the pictures may show: names, or one .txt file with a name a line, or `auto`: the
    classes of the source (its sub-folders), which are then also the truth to compare with.
    """
    model: str = "runs/clip"
    """A run folder, the folder or file of a published checkpoint, or OWNER/NAME on the hub."""
    templates: tuple[str, ...] = ("photo",)
    """Sentences around the labels, averaged: photo (one), simple (7), cifar (18), imagenet (80),
    name (the label alone), or your own with {} for the label.
    """
    truth: bool = False
    """Compare with the source's own classes although the labels are given: they rename its classes
    in their order, as for folders that are named by codes.
    """
    split: str = ""
    """Which part of a source; empty is `test` where it has one, else all of it."""
    limit: int = 0
    """At most so many pictures; 0 is all."""
    batch: int = 32
    """Pictures that the model sees at once."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the model computes in; auto is the fastest that the device has instructions for."""

    def __post_init__(self) -> None:
        for name in ("pictures", "labels", "templates"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise ValueError(f"{name} is a list of texts, not the one text {given!r}")
        if not self.pictures:
            raise ValueError("no pictures: name files or a folder, before --labels")
        if not self.labels:
            raise ValueError(
                "no labels: say what the pictures may show, as in --labels cat dog 'a red bus'; "
                "--labels names.txt takes a name a line, --labels auto a folder's sub-folders"
            )
        distinct_labels(self.labels)
        if not self.templates:
            raise ValueError("no templates: photo is the plainest")
        if self.limit < 0 or not 1 <= self.batch <= 65_536:
            raise ValueError(
                f"limit is 0 or more and batch 1 to 65536, not {self.limit} and {self.batch}"
            )

    @property
    def evaluated(self) -> bool:
        """Whether the pictures' own classes are the truth."""
        return self.truth or tuple(self.labels) == (OWN_CLASSES,)


def distinct_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels without needless spaces.

    Raises:
        ValueError: one is empty, or two are the same.
    """
    found: dict[str, int] = {}
    for number, label in enumerate(labels, 1):
        name = " ".join(label.split())
        if not name:
            raise ValueError(f"label {number} of {len(labels)} is empty")
        if name in found:
            raise ValueError(f"the label {name!r} is there twice, as {found[name]} and {number}")
        found[name] = number
    return tuple(found)


@dataclass(frozen=True)
class Embed:
    """Texts and pictures as vectors of one space: unit length, float32."""

    model: str = "runs/clip"
    """A CLIP or SigLIP: a run folder, a published checkpoint, or OWNER/NAME on the hub."""
    text: tuple[str, ...] = ()
    """Texts."""
    image: tuple[str, ...] = ()
    """Picture files."""

    def __post_init__(self) -> None:
        if not self.text and not self.image:
            raise ValueError("nothing to embed: give a text or a picture file")


@dataclass(frozen=True)
class Search:
    """Find pictures of a folder by texts, by pictures, or by sums and differences of both.

    A text or picture written as (it:0.5) counts half.
    """

    folder: str
    """The pictures, in any depth of subfolders."""
    text: tuple[str, ...] = ()
    """What the pictures show."""
    image: tuple[str, ...] = ()
    """Picture files that they are like."""
    minus: tuple[str, ...] = ()
    """Texts that lead away."""
    minus_image: tuple[str, ...] = ()
    """Picture files that lead away."""
    model: str = "runs/clip"
    """A CLIP or SigLIP: a run folder, a published checkpoint, or OWNER/NAME on the hub."""
    k: int = 10
    """How many pictures to find."""
    duplicates: float | None = None
    """Instead: groups of pictures whose cosine is at least this, such as 0.95."""
    index: str = ""
    """A folder for the vectors, which are computed once; empty is one in the user's cache."""
    backend: Literal["auto", "exact", "faiss"] = "auto"
    """auto is exact up to 300,000 pictures; beyond, faiss where it is installed."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 100_000:
            raise ValueError(f"k must be 1 to 100000, not {self.k}")
        if self.duplicates is not None and not 0 < self.duplicates <= 1:
            raise ValueError(f"duplicates is a cosine above 0, at most 1, not {self.duplicates}")
        asked = self.text or self.image or self.minus or self.minus_image
        if self.duplicates is not None and asked:
            raise ValueError("duplicates are looked for without a query: leave out one of them")
        if asked and not (self.text or self.image):
            raise ValueError("a query only leads away: give something to look for, too")


@dataclass(frozen=True)
class Detect:
    """Find in a picture what labels name, with a CLIP or SigLIP that never saw a box."""

    picture: str
    """A picture file: PNG, JPEG, WebP, GIF or BMP."""
    labels: tuple[str, ...] = ()
    """What to look for; each label may be found several times, or not at all."""
    model: str = "runs/clip"
    """A run folder, the folder or file of a published checkpoint, or a hub id."""
    method: Literal["dense", "window", "window-batched"] = "dense"
    """dense: patches of one pass a scale. window: each window through the image tower by itself,
    window-batched: the same numbers, many windows at once.
    """
    templates: tuple[str, ...] = ("photo",)
    """Sentences with {} for the label, or one of photo, simple, cifar, imagenet, name; their
    embeddings are averaged.
    """
    background: tuple[str, ...] = (
        "background", "a photo of the background", "nothing", "an object", "something",
    )  # fmt: skip
    """Texts that compete with the labels, so that a label that is nowhere is found nowhere: what
    lies behind things, and words for any thing, which fit better than a wrong label.
    """
    contrast: bool = True
    """Scores are shares among labels and background. Without: plain cosines from their mean to
    their largest, which always finds every label somewhere.
    """
    threshold: float = 0.3
    """The least score of a box, in [0, 1]."""
    extent: float = 0.0
    """A box holds what reaches this share of its peak, above 0 to 1; 0 is the method's own."""
    nms: float = 0.5
    """Of boxes of one label that overlap by more than this the best one stays."""
    limit: int = 20
    """Boxes of a label at most."""
    patch: int = 0
    """window: pixels of the side of a patch; 0 cuts the shorter side into 16."""
    windows: tuple[int, ...] = ()
    """window: sides of the square windows, in patches; empty derives them from picture and model.
    """
    stride: int = 1
    """window: how many patches a window moves on."""
    scales: tuple[float, ...] = ()
    """dense: longer sides of the passes, in sides of the model's pictures; empty is one pass with
    24 patches along the longer side.
    """
    pool: int = 3
    """dense: patches are averaged in squares of this side before they are compared; odd."""
    reach: int = -1
    """dense: a patch attends to patches at most so many rows and columns away, 0 to itself alone,
    -1 to the whole picture. Small models trained on pictures of one thing need 0 or 1.
    """

    def __post_init__(self) -> None:
        if not self.labels or not all(label.strip() for label in self.labels):
            raise ValueError("labels: give at least one, and none that is empty")
        if len(set(self.labels)) < len(self.labels):
            twice = next(a for i, a in enumerate(self.labels) if a in self.labels[:i])
            raise ValueError(f"labels: {twice!r} stands there twice")
        if not self.templates:
            raise ValueError("templates: give at least one, such as 'a photo of a {}.'")
        for name, least in (("threshold", 0), ("extent", 0), ("nms", 0)):
            if not least <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name, least in (("limit", 1), ("stride", 1), ("patch", 0), ("reach", -1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"pool is the odd side of a square of patches, not {self.pool}")
        if any(side < 1 for side in self.windows):
            raise ValueError(f"windows are sides in patches, at least 1, not {self.windows}")
        if not all(0 < scale <= 16 for scale in self.scales):
            raise ValueError(f"scales must be above 0 and at most 16, not {self.scales}")

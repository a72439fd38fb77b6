"""The request for pictures of a class."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from triptych.diffusion.settings import check_sampling
from triptych.fields import set_fields
from triptych.given import ModelName, Words, take_text, take_texts
from triptych.nn.checks import require_at_least
from triptych.vision.given_pictures import Picture, take_picture

if TYPE_CHECKING:
    Label = str | int | None
else:  # what a request keeps
    Label = Words


@dataclass(frozen=True)
class ClassToImage:
    """Generate pictures of a class, with attributes, completed from a part, or unconditionally."""

    model: ModelName = "digits-cvae"
    """A run folder, or a bundled model (`triptych models`)."""
    label: Label = ""
    """A class by name or number; empty: all classes in turn."""
    attributes: tuple[Words, ...] = ()
    """Names of the attributes of the pictures."""
    vector: tuple[float, ...] = ()
    """One number per continuous condition, in the order of the model's columns."""
    image: Picture = ""
    """A picture file whose visible quadrants the model completes."""
    n: int = 10
    """Number of pictures."""
    seed: int | None = None
    """Picture i uses seed + i. Default: a random seed, which is printed."""
    truncation: float = 0.0
    """GAN, VAE: truncate the noise at +- this, for more typical, less varied pictures; 0: off."""
    guidance: float | None = None
    """Diffusion: classifier-free guidance scale; 1 is none. Default: the model's."""
    rescale: float = 0.0
    """Diffusion: guidance rescale, the share of added contrast to remove, 0 to 1."""
    steps: int = 0
    """Diffusion: steps of the sampler; 0: the model's."""
    sampler: Words = ""
    """Diffusion: sampler, by our name, AUTOMATIC1111's or diffusers'. Empty: the model's."""
    spacing: Words = ""
    """Diffusion: spacing of the steps, such as karras or trailing. Empty: the model's."""
    eta: float | None = None
    """Diffusion: amount of noise that a stochastic sampler adds, 0 to 1; with DDIM, 0 is none."""
    noise_source: Literal["cpu", "philox"] = "cpu"
    """Diffusion: `philox` draws the same noise as a CUDA device."""
    clip_prompt: Words = ""
    """Diffusion: a prompt that a CLIP guides the pictures towards."""
    clip: ModelName = ""
    """Diffusion: the CLIP or SigLIP of clip_prompt."""
    clip_scale: float = 1.0
    """Diffusion: strength of CLIP guidance; at 1 the logit is used as a log-probability."""
    clip_cutouts: int = 0
    """Diffusion: random squares of the picture that the CLIP sees; 0: the full picture."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Diffusion: precision of the network; auto: bfloat16 where the device is fast at it."""
    deterministic: bool = False
    """Draw pictures one at a time: bit-identical for any n."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            label="" if self.label is None else take_text("label", self.label),
            attributes=take_texts("attributes", self.attributes),
            image=take_picture("image", self.image),
        )
        check_sampling(self)
        if not all(map(math.isfinite, self.vector)):
            raise ValueError(f"vector has a number that is not finite: {self.vector}")
        if not 0 <= self.truncation < float("inf"):
            raise ValueError(f"truncation must be 0 (none) or more, not {self.truncation}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be 0 to 1, not {self.eta}")
        if bool(self.clip) != bool(self.clip_prompt):
            raise ValueError(
                "clip and clip_prompt go together: a model, and the prompt it guides towards"
            )
        if not 0 <= self.clip_scale <= 1e6:
            raise ValueError(f"clip_scale must be 0 to 1000000, not {self.clip_scale}")
        if not 0 <= self.clip_cutouts <= 256:
            raise ValueError(f"clip_cutouts must be 0 (none) to 256, not {self.clip_cutouts}")


@dataclass(frozen=True)
class EvaluateClasses:
    """Options of the evaluation of a class-conditional model."""

    samples_per_class: int = 1000
    """Samples per class."""
    judge: str = ""
    """Run folder of a classifier; empty: one beside RUN, trained there if it is missing."""
    judge_steps: int = 0
    """Training steps of a missing judge; 0: its preset's."""
    score: bool = True
    """Also train classifiers on samples and on real pictures: the classification accuracy score."""
    guidance: float | None = None
    """Diffusion: guidance scale of the samples. Default: the model's."""
    curves: bool = False
    """Diffusion: also plot quality against guidance, and against network calls for every sampler.
    Slow: 78 settings with 1.5 times `curve_samples` pictures each.
    """
    curve_samples: int = 200
    """Pictures per point of the curves."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "samples_per_class", "curve_samples")

"""The request for pictures of a class."""

from dataclasses import dataclass
from typing import Literal

from triptych.diffusion.settings import check_sampling


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
        check_sampling(self)
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
class EvaluateClasses:
    """How the pictures of a class-conditional model are judged."""

    samples_per_class: int = 1000
    """Pictures drawn of each class."""
    judge: str = ""
    """A classifier's run folder; by default one beside RUN, trained there if it is missing."""
    judge_steps: int = 0
    """Training steps of a judge that has to be trained; 0 is what its preset says."""
    score: bool = True
    """Also train classifiers on samples and on real pictures: the classification accuracy score."""
    guidance: float | None = None
    """Diffusion: the guidance that samples are drawn with; None is the model's own."""
    curves: bool = False
    """Diffusion: also plot quality against guidance, and against network calls for every sampler.
    Takes long: 78 settings, each with one and a half times `curve_samples` pictures.
    """
    curve_samples: int = 200
    """Pictures that each point of the curves is judged on."""

    def __post_init__(self) -> None:
        for name in ("samples_per_class", "curve_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

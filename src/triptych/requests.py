"""Everything one can ask of the package, on one page.

A request is a Python argument, a set of command-line flags, a JSON body, and the record stored
inside its result. This file imports nothing heavy, so `--help` is quick.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

SAMPLERS: dict[str, tuple[str, ...]] = {  # ours: what AUTOMATIC1111 and diffusers call it
    "ddim": ("DDIM", "DDIMScheduler", "DDIMParallelScheduler"),
    "ddpm": ("DDPM", "DDPMScheduler", "DDPMParallelScheduler"),
    "euler": (
        "Euler", "EulerDiscreteScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler",
    ),
    "euler_ancestral": ("Euler a", "EulerAncestralDiscreteScheduler"),
    "heun": ("Heun", "HeunDiscreteScheduler"),
    "dpm2": ("DPM2", "KDPM2DiscreteScheduler"),
    "dpm2_ancestral": ("DPM2 a", "KDPM2AncestralDiscreteScheduler"),
    "lms": ("LMS", "LMSDiscreteScheduler"),
    "plms": ("PLMS", "PNDM", "PNDMScheduler"),
    "dpmpp_2s_ancestral": ("DPM++ 2S a",),
    "dpmpp_2m": ("DPM++ 2M", "DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"),
    "dpmpp_sde": ("DPM++ SDE", "DPMSolverSDEScheduler"),
    "dpmpp_2m_sde": ("DPM++ 2M SDE",),
    "dpmpp_2m_sde_heun": ("DPM++ 2M SDE Heun",),
    "dpmpp_3m_sde": ("DPM++ 3M SDE",),
    "unipc": ("UniPC", "UniPCMultistepScheduler"),
    "deis": ("DEIS", "DEISMultistepScheduler"),
    "lcm": ("LCM", "LCMScheduler"),
}  # fmt: skip

SPACINGS: dict[str, tuple[str, ...]] = {  # ours: what AUTOMATIC1111 puts behind a sampler's name
    "karras": ("Karras",),
    "exponential": ("Exponential",),
    "polyexponential": ("Polyexponential",),
    "sgm_uniform": ("SGM Uniform",),
    "beta": ("Beta",),
    "align_your_steps": ("Align Your Steps",),
    "align_your_steps_sdxl": (),
    "linspace": (),
    "leading": (),
    "trailing": (),
    "lcm": (),
    "beta_sigma": (),
}


def sampler_named(text: str) -> tuple[str, str]:
    """Our name of a sampler, and of the spacing that stands behind it, or an empty string.

    Any of our names, AUTOMATIC1111's or diffusers', in any case: "DPM++ 2M Karras" is
    ("dpmpp_2m", "karras").

    Raises:
        ValueError: nothing is called so; names the nearest.
    """
    samplers = {alias.lower(): n for n, known in SAMPLERS.items() for alias in (n, *known)}
    spacings = {alias.lower(): n for n, known in SPACINGS.items() for alias in known}
    wanted = " ".join(text.lower().split())
    if wanted in samplers:
        return samplers[wanted], ""
    for suffix, spacing in spacings.items():
        if (
            wanted.endswith(f" {suffix}")
            and (rest := wanted.removesuffix(f" {suffix}")) in samplers
        ):
            return samplers[rest], spacing
    close = difflib.get_close_matches(wanted, samplers, n=1, cutoff=0.4)
    near = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no sampler {text!r}.{near} There are: {', '.join(SAMPLERS)}")


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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Diffusion: what the network computes in; auto is bfloat16 where the device is fast at it."""
    deterministic: bool = False
    """Pictures one at a time, so that each is the same to the bit whatever its company."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 100_000:
            raise ValueError(f"n must be 1 to 100000, not {self.n}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 to 2**63 - 1, not {self.seed}")
        if not 0 <= self.truncation < float("inf"):
            raise ValueError(f"truncation must be 0 (none) or more, not {self.truncation}")
        if self.guidance is not None and not 0 <= self.guidance <= 100:
            raise ValueError(f"guidance must be 0 to 100, not {self.guidance}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale is a share, 0 to 1, not {self.rescale}")
        if not 0 <= self.steps <= 1000:
            raise ValueError(f"steps must be 1 to 1000, or 0 for the model's, not {self.steps}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be 0 to 1, not {self.eta}")
        if self.sampler:
            sampler_named(self.sampler)
        if self.spacing and self.spacing not in SPACINGS:
            raise ValueError(f"no spacing {self.spacing!r}; there are: {', '.join(SPACINGS)}")


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
        for name, least in (("limit", 1), ("stride", 1), ("patch", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"pool is the odd side of a square of patches, not {self.pool}")
        if any(side < 1 for side in self.windows):
            raise ValueError(f"windows are sides in patches, at least 1, not {self.windows}")
        if not all(0 < scale <= 16 for scale in self.scales):
            raise ValueError(f"scales must be above 0 and at most 16, not {self.scales}")

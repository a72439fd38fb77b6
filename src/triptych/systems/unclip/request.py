"""The request for pictures through CLIP embeddings."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from triptych.diffusion.settings import MOST_PICTURES, check_seed
from triptych.fields import set_fields
from triptych.given import ModelName, Words, take_text
from triptych.nn.checks import require_at_least
from triptych.vision.given_pictures import Picture, take_picture

What = Literal["pictures", "variations", "interpolation", "difference", "ladder", "reconstruction"]


class Inputs(NamedTuple):
    """The fields that a kind of drawing is made from, and its shares unless others are given."""

    fields: tuple[str, ...]
    shares: tuple[float, ...] = ()


INPUTS: dict[str, Inputs] = {
    "pictures": Inputs(("prompt",)),
    "variations": Inputs(("image",)),
    "interpolation": Inputs(("image", "second"), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    "difference": Inputs(("prompt", "image", "before"), (0.0, 0.15, 0.3, 0.45, 0.6)),
    "ladder": Inputs(("image",), (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)),
    "reconstruction": Inputs(("image",)),
}


@dataclass(frozen=True)
class UnclipPictures:
    """Generate pictures through CLIP embeddings, of a prompt or of other pictures (DALL-E 2)."""

    prompt: Words = ""
    """What to draw; of a `difference`, what the picture is to become."""
    model: ModelName = "runs/unclip"
    """A run folder, or a folder of a published Karlo."""
    what: What = "pictures"
    """`pictures` of the prompt; of `image`: `variations` with the same embedding, an
    `interpolation` to `second`, a `difference` of texts from `before` to the prompt, the `ladder`
    of more and more principal components, or a `reconstruction` from its own noise.
    """
    image: Picture = ""
    """A picture file that the pictures are made from."""
    second: Picture = ""
    """A second picture file, at the other end of an interpolation."""
    before: Words = ""
    """What the picture shows before a difference, such as "a photo of a cat"."""
    shares: tuple[float, ...] = ()
    """Shares of the way, each 0 to 1, from one embedding to the other: of an interpolation or a
    difference; of a ladder, shares of the principal components. Default: evenly spread.
    """
    prior: Literal["diffusion", "none"] = "diffusion"
    """How the prompt becomes an image embedding; `none` takes its text embedding instead."""
    prior_steps: int = 0
    """Steps of the diffusion prior; 0 is the model's default."""
    steps: int = 0
    """Steps of the decoder; 0 is the model's default."""
    upsampler_steps: int = 0
    """Steps of each upsampler; 0 is the model's default."""
    prior_guidance: float | None = None
    """Strength of guidance in the prior; 1 is none. Default: the model's."""
    guidance: float | None = None
    """Strength of guidance in the decoder; 1 is none. Default: the model's."""
    eta: float | None = None
    """Variations start from the picture's own noise, found by DDIM inversion, and this much of the
    noise of every step is drawn anew: 0 is the reconstruction. Default: all noise is drawn.
    """
    seed: int | None = None
    """Picture i uses seed + i; without one a seed is drawn and printed."""
    n: int = 1
    """Number of pictures; of an interpolation, difference, ladder or reconstruction 1, which is a
    strip with one picture for each share.
    """
    deterministic: bool = False
    """Draw pictures one at a time, so that each is bit-identical for any number of pictures."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            prompt=take_text("prompt", self.prompt),
            before=take_text("before", self.before),
            image=take_picture("image", self.image),
            second=take_picture("second", self.second),
        )
        inputs = INPUTS[self.what]
        for name in ("prompt", "image", "second", "before"):
            if bool(getattr(self, name)) != (name in inputs.fields):
                state = "needs" if name in inputs.fields else "takes no"
                raise ValueError(f"what {self.what!r} {state} {name}")
        if self.shares and not inputs.shares:
            raise ValueError(f"what {self.what!r} takes no shares")
        if not all(0 <= share <= 1 for share in self.shares) or len(self.shares) > MOST_PICTURES:
            raise ValueError(f"shares are numbers from 0 to 1, not {self.shares}")
        if self.eta is not None and (self.what != "variations" or not 0 <= self.eta <= 1):
            raise ValueError(f"eta is for variations, and from 0 to 1, not {self.eta}")
        most = 1 if inputs.shares or self.what == "reconstruction" else MOST_PICTURES
        if not 1 <= self.n <= most:
            raise ValueError(f"n must be 1 to {most} of what {self.what!r}, not {self.n}")
        check_seed("seed", self.seed)
        require_at_least(self, 0, "prior_steps", "steps", "upsampler_steps")
        for name in ("prior_steps", "steps", "upsampler_steps"):
            if getattr(self, name) > 1000:
                raise ValueError(f"{name} must be at most 1000, not {getattr(self, name)}")
        for name in ("prior_guidance", "guidance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                raise ValueError(f"{name} must be 0 to 100, not {value}")

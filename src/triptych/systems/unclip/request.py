"""The request for pictures through CLIP embeddings."""

from dataclasses import dataclass
from typing import Literal

from triptych.diffusion.settings import MOST_PICTURES, check_seed
from triptych.fields import set_fields
from triptych.given import take_text
from triptych.nn.checks import require_at_least
from triptych.vision.given_pictures import Picture, take_picture

What = Literal["pictures", "variations"]
INPUTS: dict[str, tuple[str, ...]] = {"pictures": ("prompt",), "variations": ("image",)}
"""The fields that each kind of drawing is made from."""


@dataclass(frozen=True)
class UnclipPictures:
    """Generate pictures through CLIP embeddings, of a prompt or of other pictures (DALL-E 2)."""

    prompt: str = ""
    """What to draw."""
    model: str = "runs/unclip"
    """A run folder, or a folder of a published Karlo."""
    what: What = "pictures"
    """`pictures` of the prompt, or `variations` of `image`: other pictures with its embedding."""
    image: Picture = ""
    """A picture file that the pictures are made from."""
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
    seed: int | None = None
    """Picture i uses seed + i; without one a seed is drawn and printed."""
    n: int = 1
    """Number of pictures."""
    deterministic: bool = False
    """Draw pictures one at a time, so that each is bit-identical for any number of pictures."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            prompt=take_text("prompt", self.prompt),
            image=take_picture("image", self.image),
        )
        for name in ("prompt", "image"):
            if bool(getattr(self, name)) != (name in INPUTS[self.what]):
                state = "needs" if name in INPUTS[self.what] else "takes no"
                raise ValueError(f"what {self.what!r} {state} {name}")
        if not 1 <= self.n <= MOST_PICTURES:
            raise ValueError(f"n must be 1 to {MOST_PICTURES}, not {self.n}")
        check_seed("seed", self.seed)
        require_at_least(self, 0, "prior_steps", "steps", "upsampler_steps")
        for name in ("prior_guidance", "guidance"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                raise ValueError(f"{name} must be 0 to 100, not {value}")
        for name in ("prior_steps", "steps", "upsampler_steps"):
            if getattr(self, name) > 1000:
                raise ValueError(f"{name} must be at most 1000, not {getattr(self, name)}")

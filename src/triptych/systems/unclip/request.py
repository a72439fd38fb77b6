"""The request for pictures through CLIP embeddings; trainings of every part, and of the chain."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from triptych.diffusion.settings import MOST_PICTURES, check_seed
from triptych.fields import set_fields
from triptych.given import FileName, ModelName, Words, take_text
from triptych.nn.checks import require_at_least
from triptych.train.settings import Training, check_numbers
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
    prior: Literal["diffusion", "autoregressive", "none"] = "diffusion"
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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of prior, decoder and upsamplers; auto: bfloat16 where the device is fast at it."""
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


@dataclass(frozen=True)
class EvaluateUnclip:
    """How the priors of a DALL-E 2 are compared, and its decoder and upsamplers measured."""

    prompts: int = 1000
    """Number of held-out captions that the priors are compared on."""
    pictures: int = 500
    """Of how many of them the decoder draws each prior's embedding, to be judged, where the data is
    the built-in world; 0: none.
    """
    more: int = 200
    """Pictures of each further comparison: with captions, of two objects, of variations at each
    strength of guidance, of each upsampler; 0: none.
    """
    steps: int = 0
    """Steps of the decoder; 0 is the model's default."""
    upsampler: FileName = ""
    """A run of `triptych train unclip-upsampler`, such as one with another degradation, that is
    measured beside the first upsampler.
    """
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the networks; auto: bfloat16 where the device is fast at it."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, "prompts")
        require_at_least(self, 0, "pictures", "more", "steps")
        if 0 < self.more < 3:
            raise ValueError(f"more must be 0 or at least 3, for a distance, not {self.more}")
        if self.steps > 1000:
            raise ValueError(f"steps must be at most 1000, not {self.steps}")


TRAINING = Training(
    data="scenes", schedule="cosine", warmup=200, ema_halflife=200, precision="auto", sample_every=0
)
FOR_PRIOR = replace(TRAINING, batch_size=256, steps=6000, evaluate_every=1000)
FOR_DECODER = replace(TRAINING, size=32, batch_size=64, steps=10_000, sample_every=1000)
FOR_UPSAMPLER = replace(TRAINING, size=64, batch_size=64, steps=5000, sample_every=1000)


@dataclass(frozen=True)
class TrainUnclipPrior:
    """The diffusion prior of a DALL-E 2: from a text to the CLIP embedding of a picture."""

    training: Training = FOR_PRIOR
    clip: ModelName = ""
    """The CLIP whose embeddings it predicts: a run of `triptych train clip`."""
    pictures: int = 0
    """Train on the first so many pictures; 0 is all of them. Endless data needs a number."""
    cache: FileName = ""
    """Folder for the embeddings, which are computed once. Default: in the user's cache folder."""
    templates: Words = "photo"
    """Sentences made of class names where the data has no captions: photo, simple or imagenet."""
    normalise: Literal["statistics", "scale"] = "statistics"
    """Before noise is added, embeddings get mean 0 and deviation 1 in every number (Karlo), or are
    multiplied by one number, so that their squares are 1 on average (the paper).
    """
    drop: float = 0.1
    """Share of pictures trained without their text, for guidance."""
    width: int = 256
    """Width of the transformer."""
    layers: int = 6
    """Layers of the transformer."""
    heads: int = 4
    """Attention heads of the transformer."""
    sampling_steps: int = 25
    """Default steps of `generate`."""
    guidance: float = 1.0
    """Default guidance scale of `generate`."""
    candidates: int = 2
    """Embeddings drawn for each picture by default, of which the one nearest to the text is taken.
    """
    learning_rate: float = 5e-4
    """Learning rate of AdamW."""
    weight_decay: float = 0.06
    """Weight decay of AdamW."""
    beta2: float = 0.96
    """AdamW's decay rate of the second moment."""
    max_norm: float = 1.0
    """Largest gradient norm, before clipping."""

    def __post_init__(self) -> None:
        _check_prior(self)
        require_at_least(self, 1, "sampling_steps", "candidates")


@dataclass(frozen=True)
class TrainUnclipAutoregressive:
    """The autoregressive prior of a DALL-E 2: the CLIP embedding of a picture, code by code."""

    training: Training = FOR_PRIOR
    clip: ModelName = ""
    """The CLIP whose embeddings it predicts: a run of `triptych train clip`."""
    pictures: int = 0
    """Train on the first so many pictures; 0 is all of them. Endless data needs a number."""
    cache: FileName = ""
    """Folder for the embeddings, which are computed once. Default: in the user's cache folder."""
    templates: Words = "photo"
    """Sentences made of class names where the data has no captions: photo, simple or imagenet."""
    explained: float = 0.99
    """Share of the embeddings' variance in the principal components that are coded."""
    buckets: int = 256
    """Codes of each component."""
    nearness: int = 32
    """Values of the token that says how near picture and text are."""
    drop: float = 0.1
    """Share of pictures trained without their text, for guidance."""
    width: int = 256
    """Width of the transformer."""
    layers: int = 6
    """Layers of the transformer."""
    heads: int = 4
    """Attention heads of the transformer."""
    guidance: float = 1.0
    """Default guidance scale of `generate`."""
    learning_rate: float = 5e-4
    """Learning rate of AdamW."""
    weight_decay: float = 0.04
    """Weight decay of AdamW."""
    beta2: float = 0.91
    """AdamW's decay rate of the second moment."""
    max_norm: float = 1.0
    """Largest gradient norm, before clipping."""

    def __post_init__(self) -> None:
        _check_prior(self)
        require_at_least(self, 2, "buckets", "nearness")
        if not 0 < self.explained <= 1:
            raise ValueError(f"explained is a share above 0 up to 1, not {self.explained}")


def _check_prior(request: TrainUnclipPrior | TrainUnclipAutoregressive) -> None:
    check_numbers(request)
    require_at_least(request, 0, "pictures")
    require_at_least(request, 1, "layers", "width", "heads")
    if request.width % request.heads:
        raise ValueError(f"a width of {request.width} does not divide into {request.heads} heads")


@dataclass(frozen=True)
class TrainUnclipDecoder:
    """The decoder of a DALL-E 2: from the CLIP embedding of a picture and a caption to pixels."""

    training: Training = FOR_DECODER
    clip: ModelName = ""
    """The CLIP whose embeddings it decodes: a run of `triptych train clip`."""
    templates: Words = "photo"
    """Sentences made of class names where the data has no captions: photo, simple or imagenet."""
    drop: float = 0.1
    """Share of pictures trained without their image embedding, for guidance."""
    drop_text: float = 0.5
    """Share of pictures trained without their caption."""
    tokens: int = 4
    """Extra tokens that the image embedding becomes."""
    context: int = 128
    """Width of the tokens that attention reads."""
    widths: tuple[int, ...] = (64, 128, 192)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 1
    """Residual blocks per level."""
    attention: tuple[int, ...] = (1, 2)
    """Levels with attention, counted from 0."""
    head_width: int = 32
    """Channels per attention head."""
    time_width: int = 256
    """Width of the time embedding."""
    patch: int = 2
    """Side of the squares of pixels that become channels at the U-Net's input: 1, 2 or 4."""
    groups: int = 16
    """Groups of the group normalisation."""
    dropout: float = 0.0
    """Dropout rate of the residual blocks."""
    predicts: Literal["noise", "velocity"] = "velocity"
    """What it predicts beside the variance: noise, as in the paper, or velocity, which finds the
    colour of large areas in far fewer steps.
    """
    noisiest: float = 0.1
    """Weight of the squared error at the noisiest timestep, beside 1 at the cleanest. There most of
    the error is what no embedding says, such as places, and outlines are learned where there is
    less noise. 1 is the paper's.
    """
    sampling_steps: int = 50
    """Default steps of `generate`."""
    guidance: float = 2.0
    """Default guidance scale of `generate`."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    beta2: float = 0.99
    """AdamW's decay rate of the second moment."""
    max_norm: float = 1.0
    """Largest gradient norm, before clipping."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0 <= self.drop_text <= 1:
            raise ValueError(f"drop_text is a share, 0 to 1, not {self.drop_text}")
        require_at_least(self, 1, "tokens", "context", "sampling_steps")
        require_at_least(self, 0, "noisiest")


@dataclass(frozen=True)
class TrainUnclipUpsampler:
    """An upsampler of a DALL-E 2: from small pictures to large ones, trained on crops."""

    training: Training = FOR_UPSAMPLER
    small: int = 32
    """Side of the small pictures; that of the large ones is `size`."""
    crop: int = 32
    """Side of the crops of the large pictures that it is trained on."""
    degradation: Literal["none", "blur", "hard"] = "blur"
    """What is done to the small pictures in training: a Gaussian blur of half of them, or blur,
    noise, other sizes and JPEG.
    """
    noise_schedule: Literal["cosine", "linear"] = "cosine"
    """The noise schedule; the paper's last upsampler has a linear one."""
    widths: tuple[int, ...] = (48, 96)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 1
    """Residual blocks per level."""
    time_width: int = 192
    """Width of the time embedding."""
    patch: int = 2
    """Side of the squares of pixels that become channels at the U-Net's input: 1, 2 or 4."""
    groups: int = 16
    """Groups of the group normalisation."""
    predicts: Literal["noise", "velocity"] = "velocity"
    """What it predicts: noise, as in the paper, or velocity, whose error in x0 does not grow with
    the noise.
    """
    draws: Literal["picture", "difference"] = "difference"
    """What is diffused: the picture, as in the paper, or its difference from the enlarged small
    one, which needs far fewer steps.
    """
    sampling_steps: int = 20
    """Default steps of `generate`, by DDIM."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    beta2: float = 0.99
    """AdamW's decay rate of the second moment."""
    max_norm: float = 1.0
    """Largest gradient norm, before clipping."""

    def __post_init__(self) -> None:
        check_numbers(self)
        require_at_least(self, 1, "small", "crop", "sampling_steps")


@dataclass(frozen=True)
class TrainUnclip:
    """A whole DALL-E 2, one part after the other: CLIP unless one is given, priors, decoder and
    upsamplers, each in a folder of its own inside the run folder.
    """

    training: Training = FOR_DECODER
    """Of the decoder: its `size` is the side of its pictures. The other parts share its data, seed,
    device and precision, and have the settings of their default presets. To change more of a part,
    train it into its folder (`triptych train unclip-prior --run RUN/prior ...`): what is finished
    is taken as it is.
    """
    clip: ModelName = ""
    """The CLIP to train on. Default: one is trained first, in the folder `clip`."""
    sizes: tuple[int, ...] = (64, 128)
    """Sides of the upsamplers' pictures, each a whole multiple of the one before."""
    clip_steps: int = 3000
    """Training steps of the CLIP."""
    prior_steps: int = 6000
    """Training steps of each prior."""
    upsampler_steps: int = 5000
    """Training steps of each upsampler."""
    priors: Literal["both", "diffusion"] = "both"
    """Which priors are trained: the autoregressive one too, or the diffusion prior alone."""
    pictures: int = 50_000
    """Pictures whose embeddings the prior is trained on; 0 is all of them."""
    templates: Words = "photo"
    """Sentences made of class names where the data has no captions: photo, simple or imagenet."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "clip_steps", "prior_steps", "upsampler_steps")
        require_at_least(self, 0, "pictures")
        small = self.training.size
        if small < 1:
            raise ValueError("size is the side of the decoder's pictures: at least 1, such as 32")
        for size in self.sizes:
            if size <= small or size % small:
                raise ValueError(
                    f"sizes must each be a whole multiple of the one before: {size} after {small}"
                )
            small = size

"""Every recipe's settings, on one page. No torch, so that `--help` is quick.

A recipe's dataclass is the Python argument, the command-line flags, and the record `run.json`.
Rates are per optimizer step; half-lives, warm-ups and intervals are in steps of the loop.
"""

from dataclasses import dataclass, field, fields
from typing import Literal


@dataclass(frozen=True)
class Training:
    """What the loop needs to know, whatever is trained."""

    data: str = "digits"
    """`digits`, `scenes`, or a path: a folder, a tar of shards, an .npz, IDX files."""
    size: int = 0
    """Side of the training pictures in pixels; 0 keeps the size that the data has."""
    steps: int = 1000
    batch_size: int = 128
    accumulate: int = 1
    """Batches whose exact sum makes one step: a larger batch in the memory of a small one."""
    seed: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rates fall after the warm-up, over all steps."""
    warmup: int = 0
    """Steps over which the learning rates rise from zero."""
    rate_floor: float = 0.0
    """Where a falling schedule ends, as a share of the rate."""
    ema_halflife: float = 0.0
    """Half-life of the averaged weights in steps; 0 keeps no average."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """bfloat16 is autocast: weights, optimizer and reductions stay in float32. `auto` takes it
    where the device has instructions for it.
    """
    device: str = "auto"
    workers: int = 0
    """Processes that read pictures; the batches are the same whatever their number."""
    log_every: int = 20
    sample_every: int = 500
    """Steps between labelled grids in samples/; 0 draws none but the last."""
    evaluate_every: int = 0
    """Steps between numbers on held-out data; 0 computes none but the last."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """How many checkpoints stay, at least two."""

    def __post_init__(self) -> None:
        for name, least in AT_LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.rate_floor <= 1:
            raise ValueError(f"rate_floor is a share, 0 to 1, not {self.rate_floor}")


AT_LEAST = {
    "steps": 1, "batch_size": 1, "accumulate": 1, "size": 0, "warmup": 0, "ema_halflife": 0,
    "workers": 0, "log_every": 1, "sample_every": 0, "evaluate_every": 0, "save_every": 1,
    "keep": 2,
}  # fmt: skip

MAY_CHANGE = (
    "steps", "log_every", "sample_every", "evaluate_every", "save_every", "keep", "workers",
    "device",
)  # fmt: skip
"""Fields of `Training` that a resumed run may change: none of them alters a step already done."""

Condition = Literal["none", "label", "attributes", "vector"]


@dataclass(frozen=True)
class TrainCvae:
    """Conditional VAE: draw pictures of a class or with attributes (Sohn 2015, Dykeman 2016)."""

    training: Training = field(default_factory=Training)
    condition: Literal["label", "attributes", "vector", "quadrants", "none"] = "label"
    """What the model is told: the class, the attributes, numbers, visible quadrants, or nothing."""
    quadrants: int = 1
    """With condition `quadrants`: how many of the four are visible."""
    latent: int = 16
    network: Literal["mlp", "convolutional"] = "convolutional"
    widths: tuple[int, ...] = (32, 64, 256)
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    learned_prior: bool = False
    """Learn p(z | condition) instead of the standard normal."""
    beta: float = 1.0
    """Weight of the KL term; 1 is the evidence lower bound."""
    kl_warmup: int = 0
    """Steps over which beta rises from zero."""
    free_bits: float = 0.0
    """Nats per latent dimension that the KL term does not punish (arXiv:1606.04934)."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_norm: float = 100.0
    """Gradients are scaled down to this norm; the objective is in nats a picture, not a pixel."""


@dataclass(frozen=True)
class TrainWgan:
    """Conditional WGAN-GP: critic updates, then one generator update (Gulrajani 2017; the
    lecture).
    """

    training: Training = field(default_factory=lambda: Training(batch_size=64, ema_halflife=500))
    condition: Condition = "label"
    latent: int = 64
    generator_widths: tuple[int, ...] = (128, 64)
    critic_widths: tuple[int, ...] = (64, 128)
    critic: Literal["planes", "projection"] = "planes"
    """The condition as extra channels, as in the lecture, or by projection (arXiv:1802.05637)."""
    generator_hidden: tuple[int, ...] = ()
    """Widths of dense layers between the noise and the generator's smallest planes."""
    critic_hidden: tuple[int, ...] = ()
    """Widths of dense layers between the critic's smallest planes and its score."""
    generator: Literal["input", "norms"] = "input"
    """The condition beside the noise, or there and in every batch norm (arXiv:1707.00683)."""
    critic_steps: int = 3
    gp_weight: float = 10.0
    gp_factor: Literal["uniform", "normal"] = "uniform"
    """How real and fake are mixed: the paper's U[0, 1], or the lecture's normal distribution."""
    critic_data: Literal["fresh", "same"] = "fresh"
    """A fresh batch for every critic step (the paper), or one batch for the whole step (the
    lecture).
    """
    learning_rate: float = 2e-4
    critic_learning_rate: float = 2e-4
    beta1: float = 0.0
    beta2: float = 0.9


@dataclass(frozen=True)
class TrainPixelDiffusion:
    """Class-conditional diffusion on pixels: a U-Net that removes noise (Ho 2020; guidance: Ho and
    Salimans 2022).
    """

    training: Training = field(
        default_factory=lambda: Training(
            batch_size=128, schedule="cosine", warmup=100, ema_halflife=200, precision="auto"
        )
    )
    condition: Condition = "label"
    drop: float = 0.1
    """How often the condition is left out, so that sampling can be guided; 0 forbids guidance."""
    widths: tuple[int, ...] = (64, 128, 128)
    """Channels of the U-Net's levels; each level after the first halves the side."""
    blocks: int = 1
    attention: tuple[int, ...] = (2,)
    """Levels with self-attention, counted from 0."""
    head_width: int = 32
    time_width: int = 256
    conditioning: Literal["add", "scale_shift"] = "scale_shift"
    """How time and condition reach a block: added, or as scale and shift of its normalisation."""
    patch: int = 1
    """Squares of so many pixels a side (1, 2 or 4) become one place of the U-Net."""
    groups: int = 16
    dropout: float = 0.0
    noise_schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow"] = "flow"
    zero_terminal_snr: bool = False
    """Stretch a table of betas so that it ends in pure noise."""
    shift: float = 1.0
    """Of a flow's time, towards noise; above 1 for large pictures."""
    predicts: Literal["noise", "velocity", "sample", "flow", "edm"] = "flow"
    """What the network says: the noise, a mixture of noise and picture, or the picture."""
    min_snr: float = 0.0
    """Above 0, clean levels count less: gamma of arXiv:2303.09556, there 5."""
    offset: float = 0.0
    """Offset noise, so that very dark and bright pictures are learned too; there 0.1."""
    sampler: str = "dpmpp_2m"
    """What `generate` uses unless told otherwise; so with steps, guidance and spacing."""
    sampling_steps: int = 20
    guidance: float = 2.0
    spacing: str = "trailing"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    beta2: float = 0.99
    max_norm: float = 1.0


@dataclass(frozen=True)
class TrainClassifier:
    """A small ResNet: the judge of conditional samples, and the supervised baseline."""

    training: Training = field(default_factory=lambda: Training(ema_halflife=50, schedule="cosine"))
    widths: tuple[int, ...] = (24, 48, 96)
    shift: int = 0
    """Move every training picture by up to so many pixels."""
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class Towers:
    """Two towers trained on pairs of pictures and texts: what CLIP and SigLIP share."""

    init: str = ""
    """A trained or published model to go on from: a run folder, a checkpoint, a hub id. The sizes
    below are then its own.
    """
    patch: int = 8
    stem: tuple[int, ...] = ()
    """Channels of 3 x 3 convolutions, each halving the side, in place of one large patch filter;
    2 to the power of their number is the patch. Small models learn faster with them.
    """
    stem_group: int = 8
    """How many of a stem's channels are normalised together, 0 for all: few bring out what has
    little contrast.
    """
    width: int = 192
    layers: int = 6
    heads: int = 3
    text: Literal["transformer", "words"] = "transformer"
    """The text tower: a transformer, or a bag of words (the lecture's CBOW)."""
    text_width: int = 192
    text_layers: int = 4
    text_heads: int = 3
    text_pool: Literal["end", "mean"] = "end"
    """What a transformer says of a text: the state at its end token, as published, or the mean of
    its tokens, which small ones learn sooner (and which other libraries' CLIP has not). With no
    layers it is a bag of words, and has to be the mean.
    """
    length: int = 32
    """The longest text in tokens; what is over is cut and counted."""
    vocabulary: int = 2048
    """Tokens of a vocabulary learned from the captions of the data."""
    templates: str = "photo"
    """Sentences that class names become where the data has no captions: photo, simple, imagenet."""
    duplicates: bool = True
    """Equal captions in a batch are positives of one another, not errors."""
    alike: int = 1
    """Batches among which pictures of like texts are brought together, so that what they share
    tells them apart no longer (hard negatives); 1 leaves them as chance has it.
    """
    patch_dropout: float = 0.0
    """Share of the patches that is left out in training, another one for every picture
    (arXiv:2212.00794).
    """
    crop: float = 1.0
    """Least share of a picture that a random crop keeps; 1 crops nothing."""
    flip: bool = False
    """Mirror half of the pictures; captions that say left and right then lie."""
    colour: float = 0.0
    """How much brightness, contrast and saturation vary; captions of colours may then lie."""
    cache: int = 0
    """Pairs whose activations are in memory at a time; 0 keeps the whole batch's."""
    lock: Literal["none", "image", "text"] = "none"
    """A tower that stays as `init` has it; `image` is locked-image tuning (arXiv:2111.07991)."""
    lora: int = 0
    """Rank of low-rank updates that are learned in place of all weights; 0 learns all."""
    interpolate: float = 1.0
    """What is exported lies so far from `init` (0) to the tuned weights (1) (WiSE-FT,
    arXiv:2109.01903).
    """
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    beta2: float = 0.98
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1 or not 0 <= self.colour < 1 or not 0 <= self.patch_dropout < 1:
            raise ValueError(
                "crop is a share above 0 up to 1, colour and patch_dropout are below 1"
            )
        if not 0 <= self.interpolate <= 1:
            raise ValueError(f"interpolate is a share, 0 to 1, not {self.interpolate}")
        if not self.init and (self.lora or self.lock != "none" or self.interpolate < 1):
            raise ValueError("lora, lock and interpolate are for a model to go on from: give init")
        if self.alike < 1:
            raise ValueError(f"alike is a number of batches, at least 1, not {self.alike}")
        if self.lora < 0 or self.cache < 0:
            raise ValueError("lora is a rank and cache a number of pairs: neither is negative")


@dataclass(frozen=True)
class TrainClip:
    """CLIP: a picture tower and a text tower that tell pairs apart (Radford 2021)."""

    training: Training = field(
        default_factory=lambda: Training(
            data="scenes-one",
            size=32,
            schedule="cosine",
            warmup=200,
            ema_halflife=100,
            sample_every=0,
            precision="auto",
        )
    )
    towers: Towers = field(default_factory=Towers)
    image: Literal["vit", "resnet"] = "vit"
    pool: Literal["class", "mean"] = "class"
    """What stands for a picture: a token of its own, or the mean of its patches, which then each
    say what is where.
    """
    resnet_width: int = 32
    resnet_layers: tuple[int, ...] = (1, 1, 1, 1)
    dim: int = 128
    """Width of the shared space."""


@dataclass(frozen=True)
class TrainSiglip:
    """SigLIP: every pair of a picture and a text is its own yes/no question (Zhai 2023)."""

    training: Training = field(
        default_factory=lambda: Training(
            data="scenes-one",
            size=32,
            schedule="cosine",
            warmup=200,
            ema_halflife=100,
            sample_every=0,
            precision="auto",
        )
    )
    towers: Towers = field(default_factory=Towers)

    def __post_init__(self) -> None:
        if self.towers.text_pool != "end" or self.towers.text_layers < 1:
            raise ValueError(
                "SigLIP's text transformer has layers and is read at its last position: text_pool "
                "is CLIP's. A bag of words is text words"
            )


@dataclass(frozen=True)
class TrainWordSpace:
    """Name classes that no picture showed, by word vectors (Socher 2013, DeViSE 2013)."""

    training: Training = field(default_factory=lambda: Training(ema_halflife=50, schedule="cosine"))
    words: str = ""
    """A file of word vectors: GloVe or word2vec text, plain or .gz; .npz; or .json."""
    unseen: str = ""
    """Classes kept out of training and tested on, with commas between: cat,truck."""
    method: Literal["socher", "devise"] = "socher"
    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 200
    """Width of Socher's map; DeViSE's is linear."""
    margin: float = 0.1
    """By how much DeViSE wants the right word nearer than any wrong one."""
    fine_tune: float = 0.2
    """The last share of the steps, in which DeViSE's rank loss moves the network too."""
    shift: int = 0
    """Move every training picture by up to so many pixels."""
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    max_norm: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.fine_tune <= 1:
            raise ValueError(f"fine_tune is a share of the steps, 0 to 1, not {self.fine_tune}")


@dataclass(frozen=True)
class TrainAutoencoder:
    """KL autoencoder: pictures as small grids of numbers, in which diffusion then works (Rombach
    2022).
    """

    training: Training = field(
        default_factory=lambda: Training(
            data="scenes", size=32, schedule="cosine", warmup=100, ema_halflife=200
        )
    )
    latent_channels: int = 4
    widths: tuple[int, ...] = (32, 64, 96)
    """Channels per level; each level after the first halves the side."""
    blocks: int = 1
    groups: int = 16
    attention: bool = False
    """Attention over all pixels between the blocks of the smallest grid."""
    likelihood: Literal["l1", "gaussian"] = "l1"
    """Absolute differences, or a normal distribution whose deviation is learned."""
    deviation: float = 0.05
    """What it is at first, where pictures go from -1 to 1. `kl` weighs as its square, and it moves
    by a thousandth a step: from 1 it comes near the error of a good reconstruction in 3,000.
    """
    kl: float = 1e-3
    """Weight of the nats of the latents, against the sum over the values of a picture."""
    perceptual: str = ""
    """A trained classifier or CLIP whose features pictures are compared in, too."""
    perceptual_weight: float = 1.0
    adversarial: float = 0.0
    """Weight of a patch discriminator's opinion, 0 for none; there 0.5."""
    adversarial_from: int = 0
    """The step from which it counts: when reconstructions are worth judging."""
    discriminator_widths: tuple[int, ...] = (32, 64)
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: filters and matrices between the first and last layers of encoder and decoder take
    steps of equal length in all directions; the rest keeps to AdamW, as the discriminator does.
    """
    matrix_rate: float = 0.01
    """Learning rate of those under muon; `learning_rate` is the others'."""
    learning_rate: float = 1e-3
    discriminator_learning_rate: float = 5e-4
    max_norm: float = 1e4
    """Gradients are scaled down to this norm; the objective is a sum over a picture's values."""

    def __post_init__(self) -> None:
        for name in ("kl", "perceptual_weight", "adversarial", "adversarial_from"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not self.deviation > 0:
            raise ValueError(f"deviation must be above 0, not {self.deviation}")


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


TrainRequest = (
    TrainCvae
    | TrainWgan
    | TrainPixelDiffusion
    | TrainClassifier
    | TrainClip
    | TrainSiglip
    | TrainWordSpace
    | TrainAutoencoder
    | TrainTextToImage
)

REQUESTS: dict[str, type[TrainRequest]] = {
    "cvae": TrainCvae,
    "wgan": TrainWgan,
    "pixel-diffusion": TrainPixelDiffusion,
    "classifier": TrainClassifier,
    "clip": TrainClip,
    "siglip": TrainSiglip,
    "word-space": TrainWordSpace,
    "autoencoder": TrainAutoencoder,
    "text-to-image": TrainTextToImage,
}

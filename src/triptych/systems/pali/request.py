"""Settings of PaLI-3, and presets that work. No torch."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.systems.paligemma.request import ON_SCENES, Answers
from triptych.train.settings import Training, check_numbers


@dataclass(frozen=True)
class TrainPali:
    """PaLI-3: an eye before an encoder, whose decoder learns to answer (Chen 2023)."""

    training: Training = ON_SCENES
    answers: Answers = field(default_factory=Answers)
    freeze: Literal["none", "image"] = "none"
    """The part that keeps the weights that it starts from."""
    width: int = 128
    """Width of encoder and decoder."""
    layers: int = 2
    """Layers of the encoder."""
    decoder_layers: int = 1
    """Layers of the decoder."""
    heads: int = 4
    """Attention heads of both."""
    head_width: int = 32
    """Width of a head of both."""
    hidden: int = 592
    """Hidden width of their MLPs."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.freeze == "image" and not (self.answers.vision or self.answers.init):
            raise ValueError("a frozen part needs weights to start from: give vision")


PALI_PRESETS = {
    "tiny": TrainPali(answers=Answers(averaged="token")),
    "plain": TrainPali(answers=Answers(patch=8, stem=(), averaged="token")),
}
"""The default first; `tiny` has as many parameters as PaliGemma's of that name, to 1 %."""

"""What the trainings of PaliGemma and PaLI-3 share: data, the eye, the vocabulary, the loop."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from triptych import runtime
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.fields import to_json
from triptych.nn import lora
from triptych.nn.loss import Loss
from triptych.systems.mask_codes.model import MaskCodes, MaskCodesConfig
from triptych.systems.paligemma.examples import (
    choose_tasks,
    draw_examples,
    encode,
    texts_of,
    unasked,
    with_questions,
)
from triptych.systems.paligemma.first_weights import order_places
from triptych.systems.paligemma.held_out import held_out
from triptych.systems.paligemma.model import objective
from triptych.systems.paligemma.request import Answers
from triptych.systems.siglip.model import Siglip, SiglipImageConfig
from triptych.text.language import LanguageTokenizer, train_language_tokenizer
from triptych.text.templates import template_set
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
from triptych.train.settings import Training
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card, Load, Loaded

GROUP = 16
"""Rows in a group on a CPU: enough for matmuls to be efficient."""


@dataclass(frozen=True)
class Asked:
    """Data, and what is asked of its pictures."""

    train: Source
    test: Source
    tasks: tuple[str, ...]

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.train.info.shape[0]

    @property
    def locates(self) -> bool:
        """Whether answers may have boxes or masks."""
        return self.train.info.asked or bool({"detect", "segment"} & set(self.tasks))


def open_asked(training: Training, answers: Answers) -> Asked:
    """The data of a training.

    Raises:
        ValueError: it does not have what a task needs, or its pictures are no squares.
    """
    train, test = open_train_and_test(training.data, size=training.size or None)
    tasks = choose_tasks(train, answers)
    height, width, _ = train.info.shape
    if height != width:
        raise ValueError(f"pictures of {width} x {height} pixels: choose a square --size")
    return Asked(with_questions(train, tasks), with_questions(test, tasks), tasks)


@dataclass(frozen=True)
class Parts:
    """The eye and the mask codes of a new model, and the trained ones that they start from; or the
    whole model that it starts from.
    """

    image: SiglipImageConfig
    masks: MaskCodesConfig | None
    eye: dict[str, Tensor] | None
    codes: dict[str, Tensor] | None
    start: Loaded | None = None

    def fill(self, model: Any) -> None:
        """Put trained weights into a new model; those of the mask codes stay as they are."""
        if self.start is not None:
            whole = self.start.model.state_dict()
            if self.codes is not None:
                whole = {k: v for k, v in whole.items() if not k.startswith("masks.")}
            model.load_state_dict(model.state_dict() | whole)
        elif self.eye is None:
            order_places(model.image)
        else:
            own = {name: self.eye[name] for name in model.image.state_dict()}
            model.image.load_state_dict(own)
        if self.codes is not None:
            model.masks.load_state_dict(self.codes)
            model.masks.requires_grad_(False)


def load_parts(answers: Answers, kind: type, data: Asked, load: Load) -> Parts:
    """The parts of a model of this class that trained ones may give.

    Raises:
        ValueError: they are of another class or for pictures of another size, or what they start
            from does not know what is learned.
    """
    codes = load_part(answers.mask_codes, MaskCodes, load) if answers.mask_codes else None
    masks = codes.config if codes else None
    trained = codes.model.state_dict() if codes else None
    if answers.init:
        start = load_part(answers.init, kind, load)
        image = start.config.image
        _require_size(image.size, data.size, answers.init)
        if start.language is None or (data.locates and not start.language.locates):
            raise ValueError(f"the vocabulary of {answers.init} has no tokens for boxes and masks")
        return Parts(image, masks or start.config.masks, None, trained, start)
    if not answers.vision:
        image = SiglipImageConfig(
            data.size, answers.patch, answers.image_width, answers.image_layers,
            answers.image_heads, 4 * answers.image_width, stem=answers.stem, pooled=False,
        )  # fmt: skip
        return Parts(image, masks, None, trained)
    eye = load_part(answers.vision, Siglip, load)
    image = _unpooled(eye, data.size, answers.vision)
    return Parts(image, masks, eye.model.get_submodule("image").state_dict(), trained)


def load_part(name: str, kind: type, load: Load) -> Loaded:
    """A trained model of a class, in float32.

    Raises:
        ValueError: it is of another class.
    """
    loaded = load(name, dtype="float32")
    if not isinstance(loaded.model, kind):
        raise ValueError(f"{name} is a {loaded.card.model}, and a {kind.__name__} is needed here")
    loaded.model.requires_grad_(True)
    return loaded


def _unpooled(eye: Loaded, size: int, name: str) -> SiglipImageConfig:
    """The image tower of a SigLIP without its pooling."""
    image: SiglipImageConfig = eye.config.image
    if image.naflex:
        raise ValueError(f"{name} reads pictures of any shape (NaFlex): choose another model")
    _require_size(image.size, size, name)
    return replace(image, pooled=False)


def _require_size(reads: int, size: int, name: str) -> None:
    if reads != size:
        raise ValueError(f"{name} reads {reads} pixels: add --size {reads}")


def learn_words(answers: Answers, data: Asked) -> LanguageTokenizer:
    """A vocabulary of what is asked and answered."""
    texts = texts_of(data.train, data.tasks, template_set(answers.templates))
    return train_language_tokenizer(texts, answers.vocabulary, data.locates)


def group_by_length(
    lengths: Int64[Tensor, " B"], device: torch.device
) -> list[Int64[Tensor, " R"]]:
    """Rows in groups of similar length, so that short answers are not computed at the length of
    the longest: of `scenes` most have 12 tokens, and one in a batch some 60. A GPU takes all rows
    at once.
    """
    groups = len(lengths) // GROUP if device.type == "cpu" else 1
    return list(lengths.argsort(stable=True).chunk(max(1, groups)))


def answer_recipe(
    kind: str,
    model: Any,
    tokenizer: LanguageTokenizer,
    training: Training,
    answers: Answers,
    data: Asked,
    world: World,
    blocks: tuple[type[nn.Module], ...] = (),
) -> Recipe:
    """The training of a model that answers about pictures."""
    device = runtime.device(training.device)
    model = model.to(device)
    templates = template_set(answers.templates)
    draw = draw_examples(data.train, data.tasks, templates, model.masks)
    transform = ImageTransform(model.config.size, HALF, HALF, "squash", "bicubic", crop=False)
    card = to_json(
        Card(
            kind,
            to_json(model.config),
            classes=data.train.info.classes,
            transform=transform,
            triptych=version("triptych"),
        )
    )

    def minimise(batch: Batch, step: int) -> Loss:
        tokens, prefix, lengths, cut = encode(draw(batch), tokenizer, answers.length)
        pixels = batch["image"].expand(-1, 3, -1, -1)  # grey is repeated
        losses = [
            objective(
                model,
                pixels[rows.to(device)],
                tokens[rows, : lengths[rows].max()].to(device),
                prefix[rows].to(device),
                lengths[rows].to(device),
                answers.averaged,
            )
            for rows in group_by_length(lengths, device)
        ]
        total = torch.stack([loss.total for loss in losses]).sum()
        count = sum(loss.count for loss in losses)
        return Loss(total, count, {"cut": total.new_tensor(cut / len(tokens))})

    def export(run: Path, module: nn.Module) -> None:
        if not (run / "tokenizer.json").exists():  # a large vocabulary takes some seconds
            tokenizer.save(run)
        checkpoint.export(run, lora.merge(module) if lora.parameters(module) else module, card)

    optimizer = adam(
        model,
        answers.learning_rate,
        betas=(0.9, answers.beta2),
        weight_decay=answers.weight_decay,
    )
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise, max_norm=answers.max_norm)],
        batches=batches_for(data.train, training, world),
        export=export,
        blocks=blocks,
        chance=f"before learning: about ln({tokenizer.vocabulary:,}) per token",
        evaluate=held_out(data.test, tokenizer, answers.length, templates, device),
        notes=data_notes(unasked(data.train), training),
    )

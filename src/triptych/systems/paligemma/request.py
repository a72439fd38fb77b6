"""The request for an answer about a picture. No torch."""

from dataclasses import dataclass, field, replace
from typing import Literal

from triptych.fields import set_fields
from triptych.given import ModelName, Texts, Words, take_texts
from triptych.nn.checks import require_at_least
from triptych.systems.gemma.request import Decoding
from triptych.train.settings import Training, check_numbers
from triptych.vision.given_pictures import Picture, take_picture

MAX_QUESTION = 32_000
"""Characters of a question."""
Task = Literal["answer", "caption", "detect", "segment", "ocr", "plain"]
TASKS = ("caption", "answer", "detect", "segment")
"""What is learned."""
OBJECTS = ("detect", "segment")
"""Tasks whose answers are objects."""


@dataclass(frozen=True)
class Ask:
    """Ask a question about a picture, have it described, or objects located."""

    picture: Picture
    """A picture file: PNG, JPEG, WebP, GIF or BMP."""
    question: Words = ""
    """What to answer; with `--task plain` the whole prefix as the model was trained."""
    model: ModelName = ""
    """A folder of a PaliGemma, or OWNER/NAME on the hub."""
    task: Task = "answer"
    """answer: the question. caption: describe the picture. detect: boxes around `labels`. segment:
    their masks. ocr: read the text in it. plain: the question as it is.
    """
    labels: Texts = ()
    """detect, segment: what to look for."""
    language: Words = "en"
    """Of the answer: a code such as en, de, fr."""
    free: bool = False
    """detect, segment: without the grammar that permits only objects with these labels; what is
    malformed is then ignored, and shown.
    """
    codes: ModelName = ""
    """segment: what the codes of masks mean, for models that do not have it in themselves, such as
    published ones: big_vision's vae-oid.npz, or a run of `triptych train mask-codes`.
    """
    location_steps: int = 1023
    """detect, segment: by what a location is divided: 1023 as in big_vision, or 1024."""
    decoding: Decoding = field(
        default_factory=lambda: Decoding(temperature=0.0, top_k=0, top_p=1.0)
    )  # fmt: skip
    precision: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """int8 and int4: the most bits of a weight of the language part, on a CPU. auto: what the
    device computes fastest.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the first accelerator, else the CPU."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            picture=take_picture("picture", self.picture),
            labels=take_texts("labels", self.labels),
        )
        if not self.model:
            raise ValueError("give a model, such as --model models/paligemma-3b-mix-224")
        if self.task in ("answer", "plain") and not self.question.strip():
            raise ValueError("give a question")
        if self.task not in ("answer", "plain") and self.question:
            raise ValueError(f"a question goes with the tasks answer and plain, not {self.task}")
        if (self.task in OBJECTS) != bool(self.labels):
            raise ValueError("labels and the tasks detect and segment go together: give both")
        if self.codes and self.task != "segment":
            raise ValueError(f"codes are for the task segment, not {self.task}")
        if any(not label.strip() or ";" in label for label in self.labels):
            raise ValueError(
                "labels: no empty ones, and none with a semicolon, which separates them"
            )
        if self.location_steps not in (1023, 1024):
            raise ValueError(f"location_steps is 1023 or 1024, not {self.location_steps}")
        if not self.language.isalpha() or len(self.language) > 8:
            raise ValueError(f"language is a code such as en, not {self.language[:40]!r}")
        if len(self.question) > MAX_QUESTION:
            raise ValueError(
                f"question has {len(self.question):,} characters; at most {MAX_QUESTION:,}"
            )

    @property
    def prefix(self) -> str:
        """The question as the model was trained, without the newline that ends it."""
        return {
            "answer": f"answer {self.language} {self.question}",
            "caption": f"caption {self.language}",
            "detect": f"detect {' ; '.join(self.labels)}",
            "segment": f"segment {' ; '.join(self.labels)}",
            "ocr": "ocr",
            "plain": self.question,
        }[self.task]


ON_SCENES = Training(
    data="scenes", size=64, batch_size=32, steps=6000, schedule="cosine", warmup=100,
    ema_halflife=200, sample_every=0, evaluate_every=1000, precision="auto",
)  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What is learned about pictures, and by which eye: what PaliGemma and PaLI-3 share."""

    tasks: Texts = ()
    """What is asked of each picture, one drawn at random: caption, and on scenes answer
    (questions), detect (boxes) and segment (masks, with `mask_codes`). None: all that the data has.
    Other data has captions, or sentences made of its class names; a .jsonl file of picture, prefix
    and suffix has its own questions.
    """
    mask_codes: ModelName = ""
    """The autoencoder that writes masks: a run of `triptych train mask-codes`, or big_vision's
    vae-oid.npz. It becomes part of the model.
    """
    init: ModelName = ""
    """Start from this trained model of the same kind, a run folder or published, to teach it what
    your data has: its sizes and its vocabulary replace those below.
    """
    vision: ModelName = ""
    """Start the eye from this SigLIP, a run folder or published: its sizes replace those below."""
    patch: int = 16
    """Side of a patch in pixels."""
    stem: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of 3 x 3 convolutions that each halve the side, in place of one large patch filter;
    2 to the power of their number is the patch. Published PaliGemmas have none.
    """
    image_width: int = 128
    """Width of the eye."""
    image_layers: int = 4
    """Layers of the eye."""
    image_heads: int = 4
    """Attention heads of the eye."""
    vocabulary: int = 1024
    """Tokens that are learned from the texts, beside those of places and masks."""
    length: int = 112
    """Longest prefix and suffix together, in tokens; longer answers are cut, and counted."""
    templates: Words = "photo"
    """Sentences made of class names where the data has no captions: photo, simple or imagenet."""
    averaged: Literal["example", "token"] = "example"
    """Whether every answer weighs the same in the loss, as in big_vision, or every token of the
    batch, as in transformers. Choose `token` where an answer may be empty: its one token would
    weigh as much as all of a mask's, and be expected far too often.
    """
    learning_rate: float = 5e-4
    """Learning rate of AdamW."""
    weight_decay: float = 0.05
    """Weight decay of AdamW, on matrices and filters."""
    beta2: float = 0.98
    """Second beta of AdamW."""
    max_norm: float = 1.0
    """Gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        set_fields(self, tasks=take_texts("tasks", self.tasks))
        check_numbers(self)
        require_at_least(self, 8, "length")
        if not set(self.tasks) <= set(TASKS):
            raise ValueError(f"tasks are some of {', '.join(TASKS)}, not {', '.join(self.tasks)}")
        if self.tasks and ("segment" in self.tasks) != bool(self.mask_codes):
            raise ValueError("the task segment and mask_codes go together: give both")
        if self.init and self.vision:
            raise ValueError("init gives the eye too: leave out vision")


@dataclass(frozen=True)
class TrainVlm:
    """PaliGemma: an eye and a language model that learn to answer about pictures (Beyer 2024)."""

    training: Training = ON_SCENES
    answers: Answers = field(default_factory=Answers)
    language: ModelName = ""
    """Start the words from this Gemma, a GGUF file or a folder of transformers: its sizes and
    vocabulary replace those below.
    """
    freeze: Literal["none", "image", "text"] = "none"
    """The part that keeps the weights that it starts from."""
    lora: int = 0
    """Rank of the low-rank updates that are trained in place of the weights of `language`, or of
    the words of `init`; 0 trains all of them.
    """
    width: int = 128
    """Width of the language model."""
    layers: int = 4
    """Layers of the language model."""
    heads: int = 4
    """Query heads of the language model."""
    kv_heads: int = 1
    """Key/value heads of the language model."""
    head_width: int = 32
    """Width of a head of the language model."""
    hidden: int = 512
    """Hidden width of its MLPs."""

    def __post_init__(self) -> None:
        init = self.answers.init
        if init and self.language:
            raise ValueError("init gives the words too: leave out language")
        words = self.language or init
        if self.lora < 0 or (self.lora and (not words or self.freeze == "text")):
            raise ValueError("lora is the rank of updates of a language model: give language")
        starts = {"image": self.answers.vision or init, "text": words}
        if not starts.get(self.freeze, "-"):
            flag = {"image": "vision", "text": "language"}[self.freeze]
            raise ValueError(f"a frozen part needs weights to start from: give {flag}")


@dataclass(frozen=True)
class EvaluateVlm:
    """Options of `triptych evaluate` for models that answer about pictures."""

    pictures: int = 500
    """Held-out pictures that are described and asked about."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, "pictures")


VLM_PRESETS = {
    "tiny": TrainVlm(answers=Answers(averaged="token")),
    "plain": TrainVlm(answers=Answers(patch=8, stem=(), averaged="token")),
    "224": TrainVlm(
        replace(ON_SCENES, size=224, batch_size=256, steps=100_000, warmup=5000),
        Answers(
            patch=14, stem=(), image_width=1152, image_layers=27, image_heads=16,
            vocabulary=256_000, length=128, learning_rate=1e-5, weight_decay=1e-6, beta2=0.999,
        ),
        width=2048, layers=18, heads=8, head_width=256, hidden=16_384,
    ),
}  # fmt: skip
"""The default first."""
